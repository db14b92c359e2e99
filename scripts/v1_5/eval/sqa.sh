#!/usr/bin/env bash
# ScienceQA with LLaVA-1.5: sqa.sh TOKEN
TASK=sqa KIND=llava source "$(dirname "${BASH_SOURCE[0]}")/../../_eval.sh"
