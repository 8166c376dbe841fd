#!/usr/bin/env bash
# A stage of training on several machines under SLURM. What follows the script's name is what follows train.py:
#   sbatch --nodes 4 runs/slurm.sh dit --config 1.3b --data shards --output /shared/out/dit --model /shared/base
# The output folder must be on a disk that all machines share. When time runs out, or a machine is taken away or lost,
# the job is queued again and goes on from its last checkpoint. SIGTERM, sent two minutes before the end, makes one; 100 s
# are left to end the step and write it (torch 2.13; older ones may know of 30 only). Keep checkpoint_every small where a
# checkpoint takes longer.
# The autoencoders are copied to each GPU, a transformer is shared out over all (FSDP). That takes optimizer=adamw: for
# presets with Muon set ACCELERATE_CONFIG=runs/accelerate/many_nodes.yaml.
#SBATCH --job-name=vidgen
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=vidgen-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
[ $# -ge 1 ] || { sed -n '2,9p' "$0" >&2 && exit 2; }
gpus=${GPUS_PER_NODE:-${SLURM_GPUS_ON_NODE:-8}}
nodes=${SLURM_NNODES:-1}
read -r address < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
port=$((20000 + SLURM_JOB_ID % 20000))
case $1 in vae3d | audio) config=many_nodes.yaml ;; *) config=many_nodes_fsdp.yaml ;; esac
export ACCELERATE_CONFIG=${ACCELERATE_CONFIG:-runs/accelerate/$config}
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-100}

# One launcher a machine, which starts a process for each GPU. Single quotes: SLURM_NODEID is each machine's own.
srun --kill-on-bad-exit=1 bash -c 'exec python -m accelerate.commands.launch \
  --config_file "$ACCELERATE_CONFIG" \
  --num_machines '"$nodes"' --num_processes '"$((nodes * gpus))"' --machine_rank "$SLURM_NODEID" \
  --main_process_ip '"$address"' --main_process_port '"$port"' train.py "$@"' train "$@" &
job=$!
ended_early= interrupted=
# Signalled itself, srun would kill the processes at once: this is for them, the job's steps without this script. A job
# that its owner cancels gets the signal, too, but is told as cancelled or completing then, and is not to come back; where
# SLURM does not answer, it comes back.
on_term() {
  interrupted=1
  case $(squeue --noheader --job "$SLURM_JOB_ID" --format %T) in CANCELLED | COMPLETING) ;; *) ended_early=1 ;; esac
  scancel --signal=TERM "$SLURM_JOB_ID" || true
}
trap on_term TERM
while :; do # the signal ends a wait before the job does
  wait "$job" && status=0 || status=$?
  [ -n "$interrupted" ] || break
  interrupted=
done
# A job that gives way to another one ends by the signal to its steps alone.
[[ $(scontrol show job "$SLURM_JOB_ID") != *PreemptTime=[0-9]* ]] || ended_early=1
if [ -n "$ended_early" ] && [ "${SLURM_RESTART_COUNT:-0}" -lt "${MOST_RESTARTS:-50}" ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
