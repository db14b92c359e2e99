# The one body of the evaluation scripts, sourced by scripts/<model>/eval/<task>.sh with TASK set.
#
# Usage: bash scripts/v1_5/eval/textvqa.sh TOKEN, the number of visual tokens to keep. From the environment:
#   CKPT    folder of the model; without it the embedded tiny model answers the embedded mini benchmark
#   METHOD  pruning method (cls)
#   DATA    folder of the benchmark (playground/data/eval/<task>)
#   BATCH   questions at a time (16)
#   PYTHON  Python to use (.venv/bin/python of the checkout if it is there, else python3)
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
TOKEN="${1:-}"
if [[ $# -ne 1 || ! "$TOKEN" =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: [CKPT=folder] [METHOD=cls] [DATA=folder] [BATCH=16] bash $0 TOKEN    (visual tokens to keep, for example 58)" >&2
    exit 2
fi
CKPT="${CKPT:-}"
METHOD="${METHOD:-cls}"
BATCH="${BATCH:-16}"
if [[ -z "${PYTHON:-}" ]]; then
    PYTHON=python3
    [[ -x "$ROOT/.venv/bin/python" ]] && PYTHON="$ROOT/.venv/bin/python"
fi
# The checkout is found by Python from any working directory, installed or not.
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"

questions_of() { # the file names of each benchmark: questions, images, annotations
    case "$1" in
        textvqa) echo "llava_textvqa_val_v051_ocr.jsonl train_images TextVQA_0.5.1_val.json" ;;
        *) echo "There is no script for the benchmark $1." >&2 && return 2 ;;
    esac
}
FILES="$(questions_of "$TASK")"
read -r QUESTIONS IMAGES ANNOTATIONS <<<"$FILES"

say_where_files_go() {
    cat >&2 <<TEXT
The data of $TASK are not complete in $DATA. Put there (or give another folder as DATA):
  $QUESTIONS   from eval.zip, linked in docs/Evaluation.md of https://github.com/haotian-liu/LLaVA
  $ANNOTATIONS   from https://textvqa.org/dataset
  $IMAGES/   unpacked from train_val_images.zip of https://textvqa.org/dataset
TEXT
    exit 1
}

if [[ -z "$CKPT" ]]; then
    MODEL="$ROOT/playground/models/tiny-llava"
    DATA="${DATA:-$ROOT/playground/data/eval/$TASK-mini}"
    CONV=()
    echo "CKPT is not set: the embedded tiny model ($MODEL) answers the embedded mini benchmark ($DATA)."
    [[ -f "$DATA/$QUESTIONS" ]] || "$PYTHON" -m playground.minibench --out "$DATA"
else
    MODEL="$CKPT"
    DATA="${DATA:-$ROOT/playground/data/eval/$TASK}"
    CONV=(--conv-mode vicuna_v1)
    [[ -f "$DATA/$QUESTIONS" && -d "$DATA/$IMAGES" && -f "$DATA/$ANNOTATIONS" ]] || say_where_files_go
fi

OUT="$DATA/answers/$(basename "$MODEL")/$METHOD/n_$TOKEN"
exec "$PYTHON" -m fastervlm.cli eval "$TASK" --model "$MODEL" --visual-token-num "$TOKEN" --method "$METHOD" \
    --question-file "$DATA/$QUESTIONS" --image-folder "$DATA/$IMAGES" --annotation-file "$DATA/$ANNOTATIONS" \
    --answers-file "$OUT.jsonl" --overlay "$OUT.png" --batch-size "$BATCH" ${CONV[@]+"${CONV[@]}"}
