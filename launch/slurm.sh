#!/usr/bin/env bash
# A run on a SLURM cluster, one process for each GPU; they find one another by themselves.
#
#   sbatch launch/slurm.sh launch/train.py --config=configs/cyborg_recipe.py --workdir=runs/cluster
#
# What to change: nodes, GPUs and time here or as options of sbatch; PYTHON, the interpreter, which all nodes see.
# --workdir and the data lie on a file system that all nodes share. The same command continues a run that was stopped.
#SBATCH --job-name=tfcam
#SBATCH --output=%x-%j.log
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
# Two minutes before the time is up: a last checkpoint.
#SBATCH --signal=TERM@120
# After the failure or preemption of a node the job starts again, and the run goes on.
#SBATCH --requeue
#SBATCH --open-mode=append
# As many GPUs as tasks on each node, and every task sees all of the node's: jax gives each the one of its local number.
# Without GPUs, or with one task per node: leave out --gpus-per-node or set --ntasks-per-node=1.
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:-.}"
srun --kill-on-bad-exit=1 "${PYTHON:-python}" "$@"
