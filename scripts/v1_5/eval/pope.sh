#!/usr/bin/env bash
# POPE with LLaVA-1.5: pope.sh TOKEN
TASK=pope KIND=llava source "$(dirname "${BASH_SOURCE[0]}")/../../_eval.sh"
