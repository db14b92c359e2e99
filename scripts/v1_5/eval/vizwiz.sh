#!/usr/bin/env bash
# VizWiz with LLaVA-1.5: vizwiz.sh TOKEN
TASK=vizwiz KIND=llava source "$(dirname "${BASH_SOURCE[0]}")/../../_eval.sh"
