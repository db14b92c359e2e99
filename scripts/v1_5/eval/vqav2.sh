#!/usr/bin/env bash
# VQAv2 with LLaVA-1.5: vqav2.sh TOKEN
TASK=vqav2 KIND=llava source "$(dirname "${BASH_SOURCE[0]}")/../../_eval.sh"
