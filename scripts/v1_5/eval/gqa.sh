#!/usr/bin/env bash
# GQA with LLaVA-1.5: gqa.sh TOKEN
TASK=gqa KIND=llava source "$(dirname "${BASH_SOURCE[0]}")/../../_eval.sh"
