#!/usr/bin/env bash
# Scores of the answers of run_qa_activitynet.sh: eval_qa_activitynet.sh TOKEN
TASK=activitynet STEP=eval source "$(dirname "${BASH_SOURCE[0]}")/../_qa.sh"
