# The one body of the evaluation scripts, sourced by scripts/<model>/eval/<task>.sh with TASK and KIND (llava, next) set.
#
# Usage: bash scripts/v1_5/eval/textvqa.sh TOKEN, the number of visual tokens to keep; under v1_6 of each crop. From the environment:
#   CKPT    folder of the model; without it the embedded tiny model answers the embedded mini benchmark
#   METHOD  pruning method (cls)
#   ANYRES  layout of the crops under v1_6: as the reference implementation's, or native (paper)
#   DATA    folder of the benchmark (playground/data/eval/<task>)
#   BATCH   questions at a time (16)
#   PYTHON  Python to use (.venv/bin/python of the checkout if it is there, else python3)
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
TOKEN="${1:-}"
if [[ $# -ne 1 || ! "$TOKEN" =~ ^[1-9][0-9]*$ ]]; then
    OF=$([[ "$KIND" == next ]] && echo " of each crop" || true)
    ANY=$([[ "$KIND" == next ]] && echo "[ANYRES=paper] " || true)
    echo "usage: [CKPT=folder] [METHOD=cls] $ANY[DATA=folder] [BATCH=16] bash $0 TOKEN    (visual tokens to keep$OF, for example 58)" >&2
    exit 2
fi
CKPT="${CKPT:-}"
METHOD="${METHOD:-cls}"
BATCH="${BATCH:-16}"
source "$ROOT/scripts/_python.sh"

questions_of() { # the file names of each benchmark: questions, images, annotations
    case "$1" in
        textvqa) echo "llava_textvqa_val_v051_ocr.jsonl train_images TextVQA_0.5.1_val.json" ;;
        sqa) echo "llava_test_CQM-A.json images/test problems.json" ;;
        aokvqa) echo "aokvqa_v1p0_val.json val2017 aokvqa_v1p0_val.json" ;;
        ocrvqa) echo "dataset.json images dataset.json" ;;
        *) echo "There is no script for the benchmark $1." >&2 && return 2 ;;
    esac
}
FILES="$(questions_of "$TASK")"
read -r QUESTIONS IMAGES ANNOTATIONS <<<"$FILES"

ckpt_is_missing() { # true for a path that leads nowhere, and says so
    [[ "$CKPT" == [/.~]* && ! -d "$CKPT" ]] || return 1
    echo "CKPT=$CKPT is no folder; give the folder of a checkpoint, or its name on the hub." >&2
}

pages_of() { # where the files of each benchmark are
    local llava="from eval.zip, linked in docs/Evaluation.md of https://github.com/haotian-liu/LLaVA"
    case "$1" in
        textvqa)
            echo "  $QUESTIONS   $llava"
            echo "  $ANNOTATIONS   from https://textvqa.org/dataset"
            echo "  $IMAGES/   unpacked from train_val_images.zip of https://textvqa.org/dataset"
            ;;
        sqa)
            echo "  $QUESTIONS   $llava"
            echo "  $ANNOTATIONS and pid_splits.json   from data/scienceqa of https://github.com/lupantech/ScienceQA"
            echo "  $IMAGES/   as https://github.com/lupantech/ScienceQA says"
            ;;
        aokvqa)
            echo "  $QUESTIONS   from https://github.com/allenai/aokvqa"
            echo "  $IMAGES/   of COCO, from https://cocodataset.org/#download"
            ;;
        ocrvqa)
            echo "  $QUESTIONS and, by its key, each picture in $IMAGES/   from https://ocr-vqa.github.io"
            ;;
    esac
}

say_where_files_go() {
    echo "The data of $TASK are not complete in $DATA. Put there (or give another folder as DATA):" >&2
    pages_of "$TASK" >&2
    ckpt_is_missing || true
    exit 1
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
if [[ -z "$CKPT" && -z "${DATA:-}" && "$TASK" == textvqa ]]; then
    DATA="$ROOT/playground/data/eval/$MINI"
    echo "CKPT is not set: the embedded tiny model ($MODEL) answers the embedded mini benchmark ($DATA)."
    [[ -f "$DATA/$QUESTIONS" ]] || "$PYTHON" -m playground.minibench "$KIND" --out "$DATA"
else
    DATA="${DATA:-$ROOT/playground/data/eval/$TASK}"
    [[ -n "$CKPT" ]] || echo "CKPT is not set: the embedded tiny model ($MODEL) answers the questions in $DATA."
    [[ -f "$DATA/$QUESTIONS" && -d "$DATA/$IMAGES" && -f "$DATA/$ANNOTATIONS" ]] || say_where_files_go
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
    --question-file "$DATA/$QUESTIONS" --image-folder "$DATA/$IMAGES" --annotation-file "$DATA/$ANNOTATIONS" \
    --answers-file "$OUT.jsonl" --overlay "$OUT.png" --batch-size "$BATCH" \
    ${CONV[@]+"${CONV[@]}"} ${LAYOUT[@]+"${LAYOUT[@]}"}
