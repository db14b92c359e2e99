#!/usr/bin/env bash
# OCR-VQA with LLaVA-1.5: ocrvqa.sh TOKEN
TASK=ocrvqa KIND=llava source "$(dirname "${BASH_SOURCE[0]}")/../../_eval.sh"
