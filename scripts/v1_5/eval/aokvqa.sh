#!/usr/bin/env bash
# A-OKVQA with LLaVA-1.5: aokvqa.sh TOKEN
TASK=aokvqa KIND=llava source "$(dirname "${BASH_SOURCE[0]}")/../../_eval.sh"
