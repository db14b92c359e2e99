#!/usr/bin/env bash
# MM-Vet with LLaVA-NeXT: mmvet.sh TOKEN, kept of each crop
TASK=mmvet KIND=next source "$(dirname "${BASH_SOURCE[0]}")/../../_eval.sh"
