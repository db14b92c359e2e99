#!/usr/bin/env bash
# TextVQA with LLaVA-NeXT: textvqa.sh TOKEN, kept of each crop
TASK=textvqa KIND=next source "$(dirname "${BASH_SOURCE[0]}")/../../_eval.sh"
