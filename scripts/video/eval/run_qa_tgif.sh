#!/usr/bin/env bash
# TGIF-QA with Video-LLaVA: run_qa_tgif.sh TOKEN
TASK=tgif STEP=run source "$(dirname "${BASH_SOURCE[0]}")/../_qa.sh"
