#!/usr/bin/env bash
# What a GPU has to show, in nine minutes at most: gpu_check.sh [options of python -m playground.gpu_check]. Nothing is downloaded.
#
#   bash scripts/gpu_check.sh wheels    on a machine with a network: the packages that the other one may lack, into WHEELS
#   bash scripts/gpu_check.sh           on the machine with the GPU: tests, speed, compiled speed, plans, as JSON
#
# Of WHEELS only what is missing there, or older there, is used; it is unpacked into OUT/site, and nothing else is changed.
#
# From the environment:
#   WHEELS          folder of wheels (wheels)
#   PYTHON_VERSION  that they are for (3.12)
#   OUT             where results go (playground/results/gpu)
#   PYTHON          Python to use (.venv/bin/python of the checkout if it is there, else python3)
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$ROOT"
WHEELS="${WHEELS:-$ROOT/wheels}"
OUT="${OUT:-$ROOT/playground/results/gpu}"
if [[ "${1:-}" == wheels ]]; then
    "${PYTHON:-python3}" -m pip download --quiet --no-deps --only-binary=:all: --python-version "${PYTHON_VERSION:-3.12}" \
        --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 --dest "$WHEELS" \
        'transformers<6' huggingface_hub hf-xet tokenizers safetensors typer rich shellingham click markdown-it-py mdurl pygments \
        filelock sentencepiece'<0.2.3' protobuf matplotlib contourpy cycler fonttools kiwisolver pyparsing python-dateutil six \
        pytest iniconfig pluggy packaging regex pyyaml tqdm httpx httpcore h11 anyio certifi idna typing_extensions annotated-doc
    du -sm "$WHEELS"
    exit
fi
if [[ -d "$WHEELS" ]]; then
    mkdir -p "$OUT/site"
    "${PYTHON:-python3}" - "$WHEELS" "$OUT/site" <<'PYTHON'
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
    export PYTHONPATH="$OUT/site${PYTHONPATH:+:$PYTHONPATH}"
fi
source "$ROOT/scripts/_python.sh"
exec "$PYTHON" -m playground.gpu_check --out "$OUT" "$@"
