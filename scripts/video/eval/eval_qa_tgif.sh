#!/usr/bin/env bash
# Scores of the answers of run_qa_tgif.sh: eval_qa_tgif.sh TOKEN
TASK=tgif STEP=eval source "$(dirname "${BASH_SOURCE[0]}")/../_qa.sh"
