#!/usr/bin/env bash
# A-OKVQA with LLaVA-NeXT: aokvqa.sh TOKEN, kept of each crop
TASK=aokvqa KIND=next source "$(dirname "${BASH_SOURCE[0]}")/../../_eval.sh"
