#!/usr/bin/env bash
# MM-Vet with LLaVA-1.5: mmvet.sh TOKEN
TASK=mmvet KIND=llava source "$(dirname "${BASH_SOURCE[0]}")/../../_eval.sh"
