#!/usr/bin/env bash
# MME with LLaVA-NeXT: mme.sh TOKEN, kept of each crop
TASK=mme KIND=next source "$(dirname "${BASH_SOURCE[0]}")/../../_eval.sh"
