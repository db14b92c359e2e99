#!/usr/bin/env bash
# Attention shift of a model's visual tokens: analyze_attn_shift.sh, without arguments
NAME=attn-shift source "$(dirname "${BASH_SOURCE[0]}")/_analyze.sh"
