#!/usr/bin/env bash
# MMBench with LLaVA-1.5: mmbench.sh TOKEN
TASK=mmbench KIND=llava source "$(dirname "${BASH_SOURCE[0]}")/../../_eval.sh"
