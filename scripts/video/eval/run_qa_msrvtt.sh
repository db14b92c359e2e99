#!/usr/bin/env bash
# MSRVTT-QA with Video-LLaVA: run_qa_msrvtt.sh TOKEN
TASK=msrvtt STEP=run source "$(dirname "${BASH_SOURCE[0]}")/../_qa.sh"
