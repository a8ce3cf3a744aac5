#!/usr/bin/env bash
# A run on all hosts of a Cloud TPU slice, started from anywhere; they find one another by themselves.
#
#   TPU=my-slice ZONE=us-central2-b launch/tpu_pod.sh launch/train.py --config=configs/cyborg_recipe.py \
#       --config.model.dtype=bfloat16 --workdir=/mnt/shared/runs/pod
#
# What to change, by environment variables:
#   TPU, ZONE    the slice
#   FOLDER       of this repository on every host; ~/tfcam_jax
#   PYTHON       the interpreter there, with jax[tpu]; .venv/bin/python
# --workdir and the data lie on a file system that every host has mounted. The same command continues a run.
set -euo pipefail

: "${TPU:?name of the TPU slice}" "${ZONE:?its zone}"
# ~ is the hosts' home.
command="cd ${FOLDER:-~/tfcam_jax} && ${PYTHON:-.venv/bin/python} $(printf '%q ' "$@")"
gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$command"
