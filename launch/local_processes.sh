#!/usr/bin/env bash
# Several processes on this machine that train or evaluate together, as those of several hosts would.
#
#   launch/local_processes.sh 2 launch/train.py --config=configs/demo.py --workdir=runs/two
#
# What to change, by environment variables:
#   PYTHON            the interpreter; `python`
#   PORT              where the first process listens; drawn by chance, so try again should it be taken
#   ONE_GPU_EACH=1    process i sees GPU i alone; without it every process takes all GPUs, which can't be shared
set -euo pipefail

if (($# < 2)); then
    echo "usage: $0 PROCESSES SCRIPT [FLAG...]" >&2
    exit 2
fi
processes=$1
shift
port=${PORT:-$((20000 + RANDOM % 10000))}

pids=()
# On SIGTERM and Ctrl-C each process saves a last checkpoint and ends.
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT
for ((i = 0; i < processes; i++)); do
    if [[ -n ${ONE_GPU_EACH:-} ]]; then export CUDA_VISIBLE_DEVICES=$i; fi
    "${PYTHON:-python}" "$@" --coordinator_address="127.0.0.1:$port" --num_processes="$processes" --process_id="$i" &
    pids+=("$!")
done

status=0
for pid in "${pids[@]}"; do
    code=0
    wait "$pid" || code=$?
    while kill -0 "$pid" 2>/dev/null; do # a signal ended the wait, not the process
        code=0
        wait "$pid" || code=$?
    done
    if ((code)); then status=$code; fi
done
exit "$status"
