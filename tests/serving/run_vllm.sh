#!/usr/bin/env bash
# The tests of vLLM in an environment of their own: `run_vllm.sh ENVIRONMENT MARKERS`, called by make.
#
# Where vLLM for CPUs cannot be installed they are skipped with the reason. INSTALL_LIMIT and TEST_LIMIT, in seconds, bound both
# parts (continuous integration sets them); what takes longer is stopped and said to be skipped. A test that fails, fails.
set -uo pipefail
environment=$1 markers=$2

within() { # within SECONDS COMMAND...: no bound where none is set
    if [ -n "$1" ]; then timeout --signal=INT --kill-after=60 "$@"; else "${@:2}"; fi
}

within "${INSTALL_LIMIT:-}" make --no-print-directory VLLM="$environment" "$environment/.installed"
code=$?
if [ $code = 124 ] || [ $code = 137 ]; then
    echo "vLLM for CPUs was not installed within $INSTALL_LIMIT s; its tests are skipped." >&2
    exit 0
elif [ $code != 0 ]; then
    echo "vLLM for CPUs cannot be installed here (see above); its tests are skipped." >&2
    exit 0
fi
export OMP_NUM_THREADS=1
within "${TEST_LIMIT:-}" "$environment/bin/python" -m pytest -m "$markers" tests/serving
code=$?
if [ $code = 124 ] || [ $code = 137 ]; then
    echo "vLLM's tests took longer than $TEST_LIMIT s here and were stopped; run make test-vllm without a limit." >&2
    exit 0
fi
exit $code
