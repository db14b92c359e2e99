#!/usr/bin/env bash
# VizWiz with LLaVA-NeXT: vizwiz.sh TOKEN, kept of each crop
TASK=vizwiz KIND=next source "$(dirname "${BASH_SOURCE[0]}")/../../_eval.sh"
