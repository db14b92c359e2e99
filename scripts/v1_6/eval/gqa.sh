#!/usr/bin/env bash
# GQA with LLaVA-NeXT: gqa.sh TOKEN, kept of each crop
TASK=gqa KIND=next source "$(dirname "${BASH_SOURCE[0]}")/../../_eval.sh"
