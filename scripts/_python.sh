# Finds the Python of a script and this checkout for it; sourced with ROOT set, it sets PYTHON and PYTHONPATH.
# FASTERVLM_NEEDS, if the script sets it, holds the packages that have to be there already (torch typer).
if [[ -z "${PYTHON:-}" ]]; then
    PYTHON=python3
    [[ -x "$ROOT/.venv/bin/python" ]] && PYTHON="$ROOT/.venv/bin/python"
fi
FIND='import sys; from importlib.util import find_spec; sys.exit(not all(map(find_spec, sys.argv[1:])))'
if ! "$PYTHON" -c "$FIND" ${FASTERVLM_NEEDS:-torch typer} 2>/dev/null; then
    echo "PYTHON=$PYTHON has not what fastervlm needs; run make demo once, which sets up .venv, or name another PYTHON." >&2
    exit 2
fi
# The checkout is found by Python from any working directory, installed or not.
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
