#!/usr/bin/env bash
# Asks a pruned model the questions of lmms-eval's tasks.
#
# Usage: bash scripts/lmms_eval.sh [TASKS], names of tasks with commas between; without them the model's mini benchmark. From the
# environment:
#   MODEL   fastervlm_llava_hf, fastervlm_llava_next or fastervlm_video_llava (fastervlm_llava_hf)
#   CKPT    folder of the model, or its name on the hub; without it the embedded tiny model of that kind
#   KEEP    visual tokens to keep: a count (58), a fraction (0.1) or none (58)
#   METHOD  pruning method (cls)
#   ARGS    more model arguments, with commas between, such as anyres=paper or num_frames=16
#   CONV    prompt template, such as vicuna_v1; without it the chat template of the model's processor
#   LIMIT   take only the first questions
#   BATCH   questions at a time (16)
#   TASKDIR folder with tasks of your own
#   OUT     where results and answers go (playground/runs/lmms)
#   PYTHON  Python to use (.venv/bin/python of the checkout if it is there, else python3)
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
if [[ $# -gt 1 ]]; then
    echo "usage: [MODEL=fastervlm_llava_hf] [CKPT=folder] [KEEP=58] [METHOD=cls] [ARGS=] [LIMIT=] [BATCH=16] bash $0 [TASKS]" >&2
    exit 2
fi
source "$ROOT/scripts/_python.sh"
if ! "$PYTHON" -c 'import sys; from importlib.util import find_spec; sys.exit(not find_spec("lmms_eval"))'; then
    echo "PYTHON=$PYTHON has no lmms-eval; install it with: pip install 'fastervlm[lmms-eval]'." >&2
    exit 2
fi
case "${MODEL:=fastervlm_llava_hf}" in
    fastervlm_llava_hf) KIND=llava TINY=tiny-llava MINI=fastervlm_mini ;;
    fastervlm_llava_next) KIND=next TINY=tiny-llava-next MINI=fastervlm_next_mini ;;
    fastervlm_video_llava) KIND=video TINY=tiny-video-llava MINI=fastervlm_video_mini ;;
    *)
        echo "MODEL=$MODEL is not known; choose fastervlm_llava_hf, fastervlm_llava_next or fastervlm_video_llava." >&2
        exit 2
        ;;
esac
if [[ "${CKPT:-}" == [/.~]* && ! -d "$CKPT" ]]; then
    echo "CKPT=$CKPT is no folder; give the folder of a checkpoint, or its name on the hub." >&2
    exit 2
fi
if [[ -z "${CKPT:-}" ]]; then
    CKPT="$ROOT/playground/models/$TINY"
    echo "CKPT is not set: the embedded tiny model ($CKPT) answers."
fi
TASKS="${1:-$MINI}"
if [[ "$TASKS" == "$MINI" && -z "${TASKDIR:-}" ]]; then
    TASKDIR="$ROOT/playground/data/lmms"
    "$PYTHON" -m playground.lmms_task "$KIND" --out "$TASKDIR"
fi
CHOSEN=()
[[ -n "${TASKDIR:-}" ]] && CHOSEN+=(--include_path "$TASKDIR")
[[ -n "${LIMIT:-}" ]] && CHOSEN+=(--limit "$LIMIT")
[[ -n "${CONV:-}" ]] && CHOSEN+=(--force_simple)
# With less said lmms-eval ends well even if it failed.
exec "$PYTHON" -m lmms_eval --verbosity DEBUG --model "$MODEL" --tasks "$TASKS" --batch_size "${BATCH:-16}" \
    --model_args "pretrained=$CKPT,keep=${KEEP:-58},method=${METHOD:-cls}${CONV:+,conv_mode=$CONV}${ARGS:+,$ARGS}" \
    --log_samples --output_path "${OUT:-$ROOT/playground/runs/lmms}" ${CHOSEN[@]+"${CHOSEN[@]}"}
