#!/usr/bin/env bash
# MMBench in Chinese with LLaVA-1.5: mmbench_cn.sh TOKEN
TASK=mmbench_cn KIND=llava source "$(dirname "${BASH_SOURCE[0]}")/../../_eval.sh"
