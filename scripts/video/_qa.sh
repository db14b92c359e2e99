# The one body of the video scripts, sourced by scripts/video/eval/{run_qa,eval_qa}_<task>.sh with TASK and STEP (run, eval) set.
#
# Usage: bash scripts/video/eval/run_qa_msvd.sh TOKEN answers with TOKEN visual tokens kept of each frame, and
# bash scripts/video/eval/eval_qa_msvd.sh TOKEN scores the answers. From the environment, the same for both:
#   CKPT    folder of the model; without it the embedded tiny video model answers, by default the embedded mini benchmark
#   METHOD  pruning method (cls)
#   DATA    folder with test_q.json, test_a.json and the videos (playground/data/eval/GPT_Zero_Shot_QA/<name of the release>)
#   FRAMES  frames of each video that the model is shown (8)
#   BATCH   questions at a time (8)
#   WORKERS processes that answer (one for each GPU that CUDA_VISIBLE_DEVICES names)
#   PYTHON  Python to use (.venv/bin/python of the checkout if it is there, else python3)
# and for eval_qa alone:
#   API_BASE, JUDGE  address of an OpenAI-compatible endpoint and the model there that judges too; key in OPENAI_API_KEY
#   PER_MINUTE       most requests a minute to it
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
TOKEN="${1:-}"
if [[ $# -ne 1 || ! "$TOKEN" =~ ^[1-9][0-9]*$ ]]; then
    MORE=$([[ "$STEP" == eval ]] && echo "[API_BASE=https://... JUDGE=model] " || echo "[BATCH=8] ")
    echo "usage: [CKPT=folder] [METHOD=cls] [DATA=folder] [FRAMES=8] ${MORE}bash $0 TOKEN    (visual tokens to keep of each frame, for example 64)" >&2
    exit 2
fi
source "$ROOT/scripts/_python.sh"
source "$ROOT/scripts/_workers.sh"

case "$TASK" in # the name of the release, its folder of videos, its pictures' origin
    msvd) NAME=MSVD VIDEOS=videos PAGE="https://www.cs.utexas.edu/~ml/clamp/videoDescription" ;;
    msrvtt) NAME=MSRVTT VIDEOS=videos/all PAGE="https://www.microsoft.com/en-us/research/publication/msr-vtt-a-large-video-description-dataset-for-bridging-video-and-language" ;;
    tgif) NAME=TGIF VIDEOS=mp4 PAGE="https://github.com/YunseokJANG/tgif-qa" ;;
    activitynet) NAME=Activitynet VIDEOS=all_test PAGE="http://activity-net.org/download.html" ;;
    *) echo "There is no script for the benchmark $TASK." >&2 && exit 2 ;;
esac

CKPT="${CKPT:-}"
METHOD="${METHOD:-cls}"
MINI="$ROOT/playground/data/eval/video-mini"
MODEL="${CKPT:-$ROOT/playground/models/tiny-video-llava}"
if [[ "$CKPT" == [/.~]* && ! -d "$CKPT" ]]; then
    echo "CKPT=$CKPT is no folder; give the folder of a checkpoint, or its name on the hub." >&2
    exit 2
fi
if [[ -z "$CKPT" && -z "${DATA:-}" ]]; then
    DATA="$MINI"
    VIDEOS=videos
    echo "CKPT is not set: the embedded tiny model ($MODEL) answers the embedded mini benchmark ($DATA)."
    [[ "$STEP" == eval || -f "$DATA/test_q.json" ]] || "$PYTHON" -m fastervlm.embedded video
else
    DATA="${DATA:-$ROOT/playground/data/eval/GPT_Zero_Shot_QA/${NAME}_Zero_Shot_QA}"
    [[ -n "$CKPT" ]] || echo "CKPT is not set: the embedded tiny model ($MODEL) answers the questions in $DATA."
    [[ -d "$DATA/$VIDEOS" ]] || VIDEOS=videos
fi
FRAMES="${FRAMES:-8}"
OUT="$DATA/answers/$(basename "$MODEL")/$METHOD/n_$TOKEN"
[[ "$FRAMES" == 8 ]] || OUT+="_f_$FRAMES" # the runs of other numbers of frames lie side by side

if [[ "$STEP" == eval ]]; then
    if [[ ! -f "$OUT.pred.jsonl" ]]; then
        echo "There are no answers in $OUT.pred.jsonl; run run_qa_$TASK.sh $TOKEN first, with the same CKPT, METHOD, FRAMES and DATA." >&2
        exit 1
    fi
    JUDGED=()
    if [[ -n "${API_BASE:-}${JUDGE:-}" ]]; then
        JUDGED=(${API_BASE:+--api-base "$API_BASE"} ${JUDGE:+--model "$JUDGE"} ${PER_MINUTE:+--requests-per-minute "$PER_MINUTE"})
    fi
    exec "$PYTHON" -m video video-score --result-file "$OUT.pred.jsonl" --json "$OUT.score.json" ${JUDGED[@]+"${JUDGED[@]}"}
fi

if [[ ! -f "$DATA/test_q.json" || ! -f "$DATA/test_a.json" || ! -d "$DATA/$VIDEOS" ]]; then
    echo "The data of $TASK are not complete in $DATA. Put there (or give another folder as DATA):" >&2
    echo "  test_q.json and test_a.json   of ${NAME}_Zero_Shot_QA, linked in TRAIN_AND_VALIDATE.md of https://github.com/PKU-YuanGroup/Video-LLaVA" >&2
    echo "  $VIDEOS/   the videos, from the same page or from $PAGE" >&2
    exit 1
fi
CONV=()
[[ -z "$CKPT" ]] || CONV=(--conv-mode llava_v1) # as the reference asks
exec "$PYTHON" -m video video-qa --model "$MODEL" --visual-token-num "$TOKEN" --method "$METHOD" --num-frames "$FRAMES" \
    --question-file "$DATA/test_q.json" --answer-file "$DATA/test_a.json" --video-dir "$DATA/$VIDEOS" \
    --answers-file "$OUT.jsonl" --sheet "$OUT.png" --batch-size "${BATCH:-8}" \
    ${CONV[@]+"${CONV[@]}"} ${ENGINE[@]+"${ENGINE[@]}"}
