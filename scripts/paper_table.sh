#!/usr/bin/env bash
# FasterVLM's table: ten benchmarks, 144, 58 and 29 of 576 tokens (of each crop with LLaVA-NeXT), beside the numbers its authors give.
#
# Usage: bash scripts/paper_table.sh. Given again after a stop it goes on: what is answered is only scored again. From the environment:
#   CKPT       folder of LLaVA-1.5-7B; left out if only CKPT_NEXT is given
#   CKPT_NEXT  folder of LLaVA-NeXT-7B; left out if only CKPT is given; without both the tiny models answer tiny data of their own
#   DATA_ROOT  where the folders of the benchmarks lie (playground/data/eval)
#   OUT        where the table goes (playground/data/eval/paper-table)
#   TASKS      benchmarks (vqav2 gqa vizwiz sqa textvqa pope mme mmbench mmbench_cn mmvet)
#   TOKENS     numbers of tokens, 576 being all (576 144 58 29)
#   METHOD, BATCH, WORKERS, PYTHON  as for the scripts of the benchmarks
set -euo pipefail

if [[ $# -ne 0 ]]; then
    echo "usage: [CKPT=folder] [CKPT_NEXT=folder] [DATA_ROOT=folder] [OUT=folder] bash $0" >&2
    exit 2
fi
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
source "$ROOT/scripts/_python.sh"
export PYTHON
TASKS="${TASKS:-vqav2 gqa vizwiz sqa textvqa pope mme mmbench mmbench_cn mmvet}"
TOKENS="${TOKENS:-576 144 58 29}"
METHOD="${METHOD:-cls}"
EVAL="$ROOT/playground/data/eval"
OUT="${OUT:-$EVAL/paper-table}"
for TASK in $TASKS; do
    [[ -f "$ROOT/scripts/v1_5/eval/$TASK.sh" ]] && continue
    echo "TASKS names $TASK, of which there is no script; choose from those in scripts/v1_5/eval." >&2
    exit 2
done

folder_of() { # the benchmark's usual name
    case "$1" in mme) echo MME ;; mmvet) echo mm-vet ;; *) echo "$1" ;; esac
}

FAILED=()
REFUSED=() # an answers file that may lie there is that of another run
ANSWERS=()
answer() { # VERSION MODEL-FOLDER-OR-EMPTY TINY MIDDLE
    local version="$1" ckpt="$2" tiny="$3" middle="$4" task token data
    for task in $TASKS; do
        data="$EVAL/$task$middle-mini"
        [[ -z "$ckpt" ]] || data="${DATA_ROOT:-$EVAL}/$(folder_of "$task")"
        ANSWERS+=("$version/$task=$data/answers/$(basename "${ckpt:-$tiny}")/$METHOD")
        for token in $TOKENS; do
            echo "== $version $task, $token tokens"
            # An empty DATA is none: the tiny data are drawn.
            CKPT="$ckpt" DATA="${ckpt:+$data}" METHOD="$METHOD" ANYRES=paper bash "$ROOT/scripts/$version/eval/$task.sh" "$token" \
                || { (($? == 1)) || REFUSED+=("$version/$task/$token"); FAILED+=("$version/$task at $token"); }
        done
    done
}

CKPT_15="${CKPT:-}"
if [[ -n "$CKPT_15" || -z "${CKPT_NEXT:-}" ]]; then answer v1_5 "$CKPT_15" tiny-llava ""; fi
if [[ -n "${CKPT_NEXT:-}" || -z "$CKPT_15" ]]; then answer v1_6 "${CKPT_NEXT:-}" tiny-llava-next -next; fi
"$PYTHON" "$ROOT/scripts/paper_table.py" --out "$OUT" --tokens $TOKENS \
    --without ${REFUSED[@]+"${REFUSED[@]}"} --answers "${ANSWERS[@]}"
if ((${#FAILED[@]})); then
    printf 'paper_table.sh: %s did not end well; what it said stands above, and the same command tries it again.\n' "${FAILED[@]}" >&2
    exit 1
fi
