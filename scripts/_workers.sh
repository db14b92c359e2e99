# How many workers a script answers with; sets ENGINE, the options for it. From the environment:
#   WORKERS  as many processes; without it as many as CUDA_VISIBLE_DEVICES names GPUs (0,1 is two), one if it names none
if [[ -z "${WORKERS:-}" ]]; then
    IFS=, read -ra NAMED <<<"${CUDA_VISIBLE_DEVICES:-}"
    WORKERS=$((${#NAMED[@]} > 1 ? ${#NAMED[@]} : 1))
fi
if [[ ! "$WORKERS" =~ ^[1-9][0-9]*$ ]]; then
    echo "WORKERS=$WORKERS is no number of workers; give one such as 2, or leave it out." >&2
    exit 2
fi
ENGINE=()
if ((WORKERS > 1)); then ENGINE=(--engine ray --workers "$WORKERS"); fi
