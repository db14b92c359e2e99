#!/usr/bin/env bash
# MMBench with LLaVA-NeXT: mmbench.sh TOKEN, kept of each crop
TASK=mmbench KIND=next source "$(dirname "${BASH_SOURCE[0]}")/../../_eval.sh"
