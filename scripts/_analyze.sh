# The one body of the analysis scripts, sourced by scripts/analyze_attn_<name>.sh with NAME set. No arguments: nothing is pruned.
#
# From the environment:
#   CKPT    folder of the model; without it the embedded tiny model. It is analysed on its mini benchmark unless DATA is given
#   DATA    folder with llava_v1_5_mix1k.jsonl, or test_q.json for a model of clips (playground/data/analysis)
#   IMAGES  folder in which that file's pictures or clips are ($DATA/images, or $DATA/videos)
#   ANYRES  layout of the crops of a LLaVA-NeXT: as the reference implementation's, or native (paper)
#   LIMIT   take only the first questions (1000, all of that file; 100 of the mini benchmark)
#   OUT     where the results go ($DATA/analysis/attention/<model>); both scripts share it, and read the questions once
#   PYTHON  Python to use (.venv/bin/python of the checkout if it is there, else python3)
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
if [[ $# -ne 0 ]]; then
    echo "usage: [CKPT=folder] [DATA=folder] [IMAGES=folder] [ANYRES=paper] [LIMIT=1000] [OUT=folder] bash $0    (no arguments)" >&2
    exit 2
fi
source "$ROOT/scripts/_python.sh"

CKPT="${CKPT:-}"
ANYRES="${ANYRES:-paper}"
if [[ "$ANYRES" != paper && "$ANYRES" != native ]]; then
    echo "ANYRES=$ANYRES is not known; choose paper or native." >&2
    exit 2
fi
if [[ "$CKPT" == [/.~]* && ! -d "$CKPT" ]]; then
    echo "CKPT=$CKPT is no folder; give the folder of a checkpoint, or its name on the hub." >&2
    exit 2
fi
CHOSEN=(--anyres "$ANYRES")
[[ -n "${OUT:-}" ]] && CHOSEN+=(--out-dir "$OUT")
MODEL="${CKPT:-$ROOT/playground/models/tiny-llava}"
if [[ -z "${DATA:-}" && "$(cd "$MODEL" 2>/dev/null && pwd -P)" == "$(cd "$ROOT/playground/models" && pwd -P)"/* ]]; then
    echo "An embedded tiny model ($MODEL) is analysed on its mini benchmark; CKPT and DATA choose others."
    CHOSEN+=(--model "$MODEL" --limit "${LIMIT:-100}")
else
    DATA="${DATA:-$ROOT/playground/data/analysis}"
    QUESTIONS="$DATA/llava_v1_5_mix1k.jsonl" SHOWN=images
    [[ ! -f "$QUESTIONS" && -f "$DATA/test_q.json" ]] && QUESTIONS="$DATA/test_q.json" SHOWN=videos
    IMAGES="${IMAGES:-$DATA/$SHOWN}"
    if [[ ! -f "$QUESTIONS" || ! -d "$IMAGES" ]]; then
        echo "The data of the analysis are not complete in $DATA. Put there (or give other folders as DATA and IMAGES):" >&2
        echo "  llava_v1_5_mix1k.jsonl   conversations in LLaVA's layout, such as the first thousand with a picture of" >&2
        echo "                           llava_v1_5_mix665k.json, https://huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K" >&2
        echo "  images/                  the pictures they name, by the same relative paths (coco/, gqa/, ocr_vqa/, textvqa/, vg/)" >&2
        echo "For a model of clips: test_q.json, questions in Video-ChatGPT's layout, and videos/, the clips they name." >&2
        exit 1
    fi
    CHOSEN+=(--model "$MODEL" --question-file "$QUESTIONS" --image-folder "$IMAGES")
    CHOSEN+=(--limit "${LIMIT:-1000}")
    [[ -n "$CKPT" && "$SHOWN" == images ]] && CHOSEN+=(--conv-mode vicuna_v1)
fi
exec "$PYTHON" -m fastervlm.cli analyze "$NAME" "${CHOSEN[@]}"
