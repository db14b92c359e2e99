#!/usr/bin/env bash
# Scores of the answers of run_qa_msrvtt.sh: eval_qa_msrvtt.sh TOKEN
TASK=msrvtt STEP=eval source "$(dirname "${BASH_SOURCE[0]}")/../_qa.sh"
