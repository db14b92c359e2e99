#!/usr/bin/env bash
# MSVD-QA with Video-LLaVA: run_qa_msvd.sh TOKEN
TASK=msvd STEP=run source "$(dirname "${BASH_SOURCE[0]}")/../_qa.sh"
