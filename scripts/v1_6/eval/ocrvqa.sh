#!/usr/bin/env bash
# OCR-VQA with LLaVA-NeXT: ocrvqa.sh TOKEN, kept of each crop
TASK=ocrvqa KIND=next source "$(dirname "${BASH_SOURCE[0]}")/../../_eval.sh"
