#!/usr/bin/env bash
# Scores of the answers of run_qa_msvd.sh: eval_qa_msvd.sh TOKEN
TASK=msvd STEP=eval source "$(dirname "${BASH_SOURCE[0]}")/../_qa.sh"
