# The one body of the evaluation scripts, sourced by scripts/<model>/eval/<task>.sh with TASK and KIND (llava, next) set.
#
# Usage: bash scripts/v1_5/eval/textvqa.sh TOKEN, the number of visual tokens to keep; under v1_6 of each crop. From the environment:
#   CKPT    folder of the model; without it the embedded tiny model answers tiny data in the benchmark's own layout
#   METHOD  pruning method (cls)
#   ANYRES  layout of the crops under v1_6: as the reference implementation's, or native (paper)
#   DATA    folder of the benchmark (playground/data/eval/<task>); fastervlm data <task> says what belongs there
#   BATCH   questions at a time (16)
#   WORKERS processes that answer (one for each GPU that CUDA_VISIBLE_DEVICES names)
#   PYTHON  Python to use (.venv/bin/python of the checkout if it is there, else python3)
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
TOKEN="${1:-}"
if [[ $# -ne 1 || ! "$TOKEN" =~ ^[1-9][0-9]*$ ]]; then
    OF=$([[ "$KIND" == next ]] && echo " of each crop" || true)
    ANY=$([[ "$KIND" == next ]] && echo "[ANYRES=paper] " || true)
    echo "usage: [CKPT=folder] [METHOD=cls] $ANY[DATA=folder] [BATCH=16] [WORKERS=n] bash $0 TOKEN    (visual tokens to keep$OF, for example 58)" >&2
    exit 2
fi
CKPT="${CKPT:-}"
METHOD="${METHOD:-cls}"
BATCH="${BATCH:-16}"
source "$ROOT/scripts/_python.sh"
source "$ROOT/scripts/_workers.sh"

ckpt_is_missing() { # true for a path that leads nowhere, and says so
    [[ "$CKPT" == [/.~]* && ! -d "$CKPT" ]] || return 1
    echo "CKPT=$CKPT is no folder; give the folder of a checkpoint, or its name on the hub." >&2
}

MINI="$TASK-mini"
TINY=tiny-llava
LAYOUT=()
if [[ "$KIND" == next ]]; then
    MINI="$TASK-next-mini"
    TINY=tiny-llava-next
    ANYRES="${ANYRES:-paper}"
    if [[ "$ANYRES" != paper && "$ANYRES" != native ]]; then
        echo "ANYRES=$ANYRES is not known; choose paper or native." >&2
        exit 2
    fi
    LAYOUT=(--anyres "$ANYRES")
fi
if [[ -z "$CKPT" ]]; then
    MODEL="$ROOT/playground/models/$TINY"
    CONV=()
else
    MODEL="$CKPT"
    CONV=(--conv-mode vicuna_v1)
    if [[ "$TASK" == aokvqa || "$TASK" == ocrvqa ]]; then CONV=(--conv-mode llava_v1); fi # as FastV's scripts ask
fi
case "$TASK" in # the folder's usual name
    mme) FOLDER=MME ;;
    mmvet) FOLDER=mm-vet ;;
    *) FOLDER="$TASK" ;;
esac
if [[ -z "$CKPT" && -z "${DATA:-}" ]]; then
    DATA="$ROOT/playground/data/eval/$MINI"
    echo "CKPT is not set: the embedded tiny model ($MODEL) answers tiny data of its own ($DATA)."
    if [[ "$TASK" == textvqa ]]; then
        [[ -f "$DATA/llava_textvqa_val_v051_ocr.jsonl" ]] || "$PYTHON" -m fastervlm.embedded "$KIND"
    else
        echo "Scores on these few questions show that the script works, no more: the tiny model knows no letters and no sentences."
        [[ -d "$DATA" ]] || "$PYTHON" -m playground.layouts "$TASK" "$KIND" --out "$DATA"
    fi
else
    DATA="${DATA:-$ROOT/playground/data/eval/$FOLDER}"
    [[ -n "$CKPT" ]] || echo "CKPT is not set: the embedded tiny model ($MODEL) answers the questions in $DATA."
    if ckpt_is_missing; then exit 2; fi
fi
if [[ -f "$CKPT/config.json" ]]; then # a checkpoint of the other family would be answered under another meaning of TOKEN
    HAS=llava
    grep -qE '"model_type": *"llava_next"|"image_aspect_ratio": *"anyres"' "$CKPT/config.json" && HAS=next
    if [[ "$HAS" != "$KIND" ]]; then
        OTHER=$([[ "$HAS" == next ]] && echo v1_6 || echo v1_5)
        echo "CKPT=$CKPT is for scripts/$OTHER/eval/$TASK.sh: under v1_6 pictures are cut into crops, under v1_5 they are not." >&2
        exit 2
    fi
fi

NAME="$METHOD"
[[ "$KIND" == next && "$ANYRES" != paper ]] && NAME="$METHOD-$ANYRES"
OUT="$DATA/answers/$(basename "$MODEL")/$NAME/n_$TOKEN"
exec "$PYTHON" -m fastervlm.cli eval "$TASK" --model "$MODEL" --visual-token-num "$TOKEN" --method "$METHOD" \
    --data "$DATA" --answers-file "$OUT.jsonl" --overlay "$OUT.png" --batch-size "$BATCH" \
    ${CONV[@]+"${CONV[@]}"} ${LAYOUT[@]+"${LAYOUT[@]}"} ${ENGINE[@]+"${ENGINE[@]}"}
