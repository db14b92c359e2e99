#!/usr/bin/env bash
# MME with LLaVA-1.5: mme.sh TOKEN
TASK=mme KIND=llava source "$(dirname "${BASH_SOURCE[0]}")/../../_eval.sh"
