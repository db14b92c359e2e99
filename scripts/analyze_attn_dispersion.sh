#!/usr/bin/env bash
# Attention dispersion of a model's visual tokens: analyze_attn_dispersion.sh, without arguments
NAME=attn-dispersion source "$(dirname "${BASH_SOURCE[0]}")/_analyze.sh"
