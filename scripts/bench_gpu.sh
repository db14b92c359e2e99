#!/usr/bin/env bash
# Speed of the published shapes with random weights: bench_gpu.sh [DEVICE_SPEC]. Nothing is downloaded.
#
# DEVICE_SPEC (h200, h100, a100, l4, rtx4090) adds a plan for each shape, calibrated by what was measured.
#
# From the environment:
#   SHAPES   which ones (llava-1.5-7b llava-1.5-13b llava-next-7b video-llava-7b)
#   BATCH    prompts at a time (1,8)
#   METHODS  what is compared (none,cls,fastv,eager-maps)
#   DTYPE    (float16)
#   DEVICE   (cuda)
#   REPEATS  rounds (7)
#   TOKENS   length of each timed answer (64)
#   OUT      where bench-SHAPE.json, .md and .png go, and plan-SHAPE.json and .md (playground/results)
#   PYTHON   Python to use (.venv/bin/python of the checkout if it is there, else python3)
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
if [[ $# -gt 1 ]]; then
    echo "usage: [SHAPES='llava-1.5-7b ...'] [BATCH=1,8] [OUT=folder] bash $0 [h200|h100|a100|l4|rtx4090|cpu-measured]" >&2
    exit 2
fi
source "$ROOT/scripts/_python.sh"

OUT="${OUT:-$ROOT/playground/results}"
DTYPE="${DTYPE:-float16}"
BATCH="${BATCH:-1,8}"
for SHAPE in ${SHAPES:-llava-1.5-7b llava-1.5-13b llava-next-7b video-llava-7b}; do
    "$PYTHON" -m fastervlm.cli bench shape "$SHAPE" --methods "${METHODS:-none,cls,fastv,eager-maps}" \
        --batch "$BATCH" --dtype "$DTYPE" --device "${DEVICE:-cuda}" --repeats "${REPEATS:-7}" --new-tokens "${TOKENS:-64}" \
        --out "$OUT/bench-$SHAPE.json"
    if [[ $# -eq 1 ]]; then
        "$PYTHON" -m fastervlm.cli plan --shape "$SHAPE" --device-spec "$1" --batch "$BATCH" --dtype "$DTYPE" \
            --calibrate "$OUT/bench-$SHAPE.json" --out "$OUT/plan-$SHAPE.json"
    fi
done
