#!/usr/bin/env bash
# One run over several nodes of a SLURM cluster: sbatch cluster_configs/slurm.sh [arguments of generate]
# Submit it again after a time limit: it goes on after its last committed part.
#SBATCH --job-name=ttsvar
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=12:00:00
#SBATCH --requeue

set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?start this with sbatch}"
export PATH="$PWD/.venv/bin:$PATH"
# Other users of the machines must not be able to run code in this cluster: a token that only this job knows.
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN="$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')"
export RAY_AUTH_TOKEN

arguments=("$@")
if [ "${#arguments[@]}" -eq 0 ]; then
    arguments=(jobs/infinity_2b.yaml --output "$PWD/outputs/infinity-2b")
fi
head_node="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"

# Every node starts Ray; the first one runs the command, and all stop with it.
srun --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" \
    ray symmetric-run --address "$head_node:6379" --min-nodes "$SLURM_NNODES" \
    --num-gpus "${SLURM_GPUS_ON_NODE:-8}" --num-cpus "${SLURM_CPUS_PER_TASK:-64}" -- \
    python -m ttsvar_ray generate "${arguments[@]}" --address auto
