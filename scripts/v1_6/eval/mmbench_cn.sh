#!/usr/bin/env bash
# MMBench in Chinese with LLaVA-NeXT: mmbench_cn.sh TOKEN, kept of each crop
TASK=mmbench_cn KIND=next source "$(dirname "${BASH_SOURCE[0]}")/../../_eval.sh"
