#!/usr/bin/env bash
# ActivityNet-QA with Video-LLaVA: run_qa_activitynet.sh TOKEN
TASK=activitynet STEP=run source "$(dirname "${BASH_SOURCE[0]}")/../_qa.sh"
