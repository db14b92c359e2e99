#!/usr/bin/env bash
# ScienceQA with LLaVA-NeXT: sqa.sh TOKEN, kept of each crop
TASK=sqa KIND=next source "$(dirname "${BASH_SOURCE[0]}")/../../_eval.sh"
