#!/usr/bin/env bash
# VQAv2 with LLaVA-NeXT: vqav2.sh TOKEN, kept of each crop
TASK=vqav2 KIND=next source "$(dirname "${BASH_SOURCE[0]}")/../../_eval.sh"
