#!/usr/bin/env bash
# The tests of vLLM in an environment of their own: `run_vllm.sh ENVIRONMENT MARKERS`, called by make.
#
# Where vLLM for CPUs cannot be installed they are skipped with the reason. INSTALL_LIMIT and TEST_LIMIT, in seconds, bound both
# parts (continuous integration sets them); what takes longer is stopped and said to be skipped. A test that fails, fails.
set -uo pipefail
environment=$1 markers=$2

within() { # within SECONDS COMMAND...: no bound where none is set; `late` is 1 where the bound was what ended it
    local code=0
    begun=$SECONDS late=0
    if [ -z "$1" ]; then "${@:2}" || code=$?; else timeout --signal=INT --kill-after=60 "$@" || code=$?; fi
    if [ -n "$1" ] && [ $code != 0 ] && [ $((SECONDS - begun)) -ge "$1" ]; then late=1; fi
    return $code
}

within "${INSTALL_LIMIT:-}" make --no-print-directory VLLM="$environment" "$environment/.installed"
code=$?
if [ $late = 1 ]; then
    echo "vLLM for CPUs was not installed within $INSTALL_LIMIT s; its tests are skipped." >&2
    exit 0
elif [ $code != 0 ]; then
    echo "vLLM for CPUs cannot be installed here (see above); its tests are skipped." >&2
    exit 0
fi
export OMP_NUM_THREADS=1
within "${TEST_LIMIT:-}" "$environment/bin/python" -m pytest ${TEST_LIMIT:+-x} -m "$markers" tests/serving
code=$?
if [ $late = 1 ]; then
    echo "vLLM's tests took longer than $TEST_LIMIT s here and were stopped; run make test-vllm without a limit." >&2
    exit 0
fi
exit $code
