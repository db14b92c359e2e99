#!/usr/bin/env bash
# What a GPU has to show, in nine minutes at most: gpu_check.sh [options of python -m playground.gpu_check]. Nothing is downloaded.
#
#   bash scripts/gpu_check.sh wheels    on a machine with a network: packages that the other one may lack, into WHEELS
#   bash scripts/gpu_check.sh           on the machine with the GPU: tests, speed, plans, compiled speed, as JSON
#
# Of WHEELS only what is missing there, or older there, is used. It is unpacked into a folder that is gone afterwards, and
# nothing else is changed. WHEELS holds a new transformers and its huggingface_hub, pytest and rich. These have to be there:
# torch, torchvision, numpy, Pillow, and what else transformers 5.17 needs (tokenizers, safetensors, regex, PyYAML, tqdm, httpx).
# Neither matplotlib nor typer is needed. Checkout and WHEELS together may have MOST MiB, so that they are quickly sent.
#
# From the environment:
#   WHEELS          folder of wheels (wheels)
#   PYTHON_VERSION  that they are for (3.12)
#   OUT             where results go (playground/results/gpu)
#   MOST            MiB that checkout and WHEELS may have together (64)
#   LIMIT           seconds after which all is stopped; what was measured by then is in OUT (535)
#   PYTHON          Python to use (.venv/bin/python of the checkout if it is there, else python3)
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$ROOT"
WHEELS="${WHEELS:-$ROOT/wheels}"
OUT="${OUT:-$ROOT/playground/results/gpu}"
LIMIT="${LIMIT:-535}"
MOST=$((${MOST:-64} << 20))

bytes() { # of the files whose names are read, each ended by a zero
    { du -cb --files0-from=- 2>/dev/null || true; } | tail -n 1 | cut -f 1
}

in_words() {
    numfmt --to=iec-i --suffix=B --format=%.1f "$1"
}

if [[ "${1:-}" == wheels ]]; then
    "${PYTHON:-python3}" -m pip download --quiet --no-deps --only-binary=:all: --python-version "${PYTHON_VERSION:-3.12}" \
        --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 --dest "$WHEELS" \
        'transformers<6' 'huggingface_hub<2' pytest iniconfig pluggy packaging pygments rich
    TREE=$(git ls-files -coz --exclude-standard | bytes)
    MORE=$(find "$WHEELS" -type f -print0 | bytes)
    echo "The checkout has $(in_words "$TREE"), and $WHEELS has $(in_words "$MORE")."
    if ((TREE + MORE > MOST)); then
        echo "Together that is more than $(in_words "$MOST"); take wheels that are there already out of $WHEELS." >&2
        exit 1
    fi
    exit
fi
FASTERVLM_NEEDS=torch
source "$ROOT/scripts/_python.sh"
if [[ -d "$WHEELS" ]]; then
    SITE=$(mktemp -d)
    trap 'rm -rf "$SITE"' EXIT
    "$PYTHON" - "$WHEELS" "$SITE" <<'PYTHON'
import sys, zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

def parts(text):
    return [int(part) if part.isdigit() else -1 for part in text.replace("+", ".").split(".")]

for wheel in sorted(Path(sys.argv[1]).glob("*.whl")):
    name, there = wheel.name.split("-")[:2]
    try:
        if parts(version(name.replace("_", "-"))) >= parts(there):
            continue
    except PackageNotFoundError:
        pass
    print(f"Using {name} {there} from {sys.argv[1]}.", file=sys.stderr)
    zipfile.ZipFile(wheel).extractall(sys.argv[2])
PYTHON
    export PYTHONPATH="$ROOT:$SITE:$PYTHONPATH"
fi
LEFT=$((LIMIT > SECONDS ? LIMIT - SECONDS : 1))
CODE=0
timeout --foreground --kill-after=3 "$LEFT" \
    "$PYTHON" -m playground.gpu_check --seconds "$((LEFT - 15))" --out "$OUT" "$@" || CODE=$?
if ((CODE == 124 || (CODE == 137 && SECONDS >= LIMIT))); then
    echo "Stopped after $LIMIT s; what was measured by then is in $OUT." >&2
fi
exit "$CODE"
