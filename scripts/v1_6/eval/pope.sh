#!/usr/bin/env bash
# POPE with LLaVA-NeXT: pope.sh TOKEN, kept of each crop
TASK=pope KIND=next source "$(dirname "${BASH_SOURCE[0]}")/../../_eval.sh"
