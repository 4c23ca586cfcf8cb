#!/usr/bin/env bash
# One run on a SLURM cluster. Weights and prompts are read from, and the output goes to, a file system that all
# nodes share; fetch them once before: ttsvar-ray fetch jobs/infinity_2b.yaml
#   sbatch cluster_configs/slurm.sh                            # 2 nodes, one run
#   sbatch cluster_configs/slurm.sh JOB.yaml --output /shared/run [options of generate]
#   sbatch --nodes=1 --array=0-7 cluster_configs/slurm.sh JOB.yaml --output /shared/run    # eight runs, a shard each
# Two minutes before its time limit a run commits what is whole and puts itself back into the queue. It does so
# for no other reason: it ends with the exit code of `generate`, and 2 (settings) and 3 (done, more given up
# than `max_failed` allows) would be the same again.
#SBATCH --job-name=ttsvar
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=ttsvar-%A_%a.log

set -euo pipefail
at_limit=no driver=
trap 'at_limit=yes; [ -z "$driver" ] || kill -TERM "$driver" 2>/dev/null || true' TERM
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
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    arguments+=(--shard "$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN))/$SLURM_ARRAY_TASK_COUNT")
fi

head_node="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
# Jobs that share a node must not meet at one port.
port="$((20000 + SLURM_JOB_ID % 10000))"
export head_node port gpus="${SLURM_GPUS_ON_NODE:-0}" cpus="${SLURM_CPUS_PER_TASK:-1}"

# Every node runs Ray for as long as this script wants it; the first one has the head. Ray gives a node 30 seconds to
# come up, which a busy file system may exceed: it has three tries.
srun --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" --kill-on-bad-exit=1 bash -c '
    here=(--num-gpus "$gpus" --num-cpus "$cpus" --disable-usage-stats --block)
    for try in 1 2 3; do
        if [ "$SLURM_PROCID" -eq 0 ]; then
            ray start --head --port "$port" --include-dashboard=false "${here[@]}" && break
        else
            until (exec 3<>"/dev/tcp/$head_node/$port") 2>/dev/null; do sleep 1; done
            ray start --address "$head_node:$port" "${here[@]}" && break
        fi
    done' &
ray_step=$!
trap 'kill "$ray_step" 2>/dev/null || true' EXIT
until [ "$at_limit" = yes ] ||
    python -c 'import os, ray; ray.init("{head_node}:{port}".format(**os.environ))' 2> /dev/null; do
    kill -0 "$ray_step" || { echo "Ray did not start" >&2; exit 75; }
    sleep 1
done

# The nodes come up one after the other: the run is told how many workers there will be.
if [ "$gpus" -gt 0 ]; then workers="$((SLURM_NNODES * gpus))"; else workers="$((SLURM_NNODES * cpus))"; fi
code=75
if [ "$at_limit" = no ]; then
    python -m ttsvar_ray generate --workers "$workers" "${arguments[@]}" --address "$head_node:$port" &
    driver=$!
    # A signal ends `wait`, not the driver, which is still committing.
    while kill -0 "$driver" 2>/dev/null; do code=0; wait "$driver" || code=$?; done
fi
echo "generate ended with exit code $code"
# 75: stopped in good order; 143: before it could be. `scancel` brings no job back: its state is another one.
if [ "$at_limit" = yes ] && { [ "$code" -eq 75 ] || [ "$code" -eq 143 ]; } &&
    [ "$(squeue -h -j "$SLURM_JOB_ID" -o %T)" = RUNNING ]; then
    echo "the time limit is near: back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
    sleep 60
fi
exit "$code"
