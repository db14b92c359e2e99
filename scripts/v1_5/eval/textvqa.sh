#!/usr/bin/env bash
# TextVQA with LLaVA-1.5: textvqa.sh TOKEN
TASK=textvqa KIND=llava source "$(dirname "${BASH_SOURCE[0]}")/../../_eval.sh"
