#!/usr/bin/env bash
# Every stage of the shipped model, from nothing to a model folder. Run it again after a stop: each stage resumes.
#   runs/tabletop.sh [PRESET] [OUTPUT]      presets: tabletop-cpu (two cores, 2.5 hours by estimate), tabletop-gpu,
#                                           tabletop-mini, toy
#   PROCESSES=2     train in two processes that share every batch: on two cores a little faster than one with two threads
#   SPEND="90 180 240 360 60"   seconds of training of vae3d, audio, frames, clips and student, in place of their
#                   numbers of steps; of fewer numbers, the further stages take their steps
#   STUDENT_RANK=64   of the adapter that is the few-step student
# It ends in OUTPUT/student/model: the transformer of the clips, and its student in the folder "fast" (--quality).
set -euo pipefail
cd "$(dirname "$0")/.."
preset=${1:-tabletop-cpu}
out=${2:-runs/out/$preset}
processes=${PROCESSES:-1}
mkdir -p "$out"

case $preset in # frames or clips in a batch, over all processes
  tabletop-gpu) scenes=60000 duration=4.1 frames=512 frame_steps=10000 clips=128 student=128 ;;
  tabletop-cpu) scenes=6000 duration=2.05 frames=128 frame_steps=800 clips=24 student=16 ;;
  tabletop-mini) scenes=1500 duration=2.1 frames=256 frame_steps=200 clips=48 student=32 ;;
  toy) scenes=8 duration=1.0 frames=8 frame_steps=10 clips=4 student=2 ;;
  *) echo "presets: tabletop-cpu, tabletop-gpu, tabletop-mini, toy; not $preset" >&2 && exit 2 ;;
esac

[ -f "$out/scenes.npz" ] || python -m vidgen.tabletop.physics \
  --count "$scenes" --duration "$duration" --seed 1 --output "$out/scenes.npz" --workers "$(env -u OMP_NUM_THREADS nproc)"

read -r vae_s audio_s frames_s clips_s student_s <<<"${SPEND:-}" || true

train() { # STAGE NAME SECONDS FURTHER-ARGUMENTS…
  local stage=$1 name=$2 spend_s=$3
  shift 3
  [ -d "$out/$name/model" ] || torchrun --standalone --nproc-per-node "$processes" train.py "$stage" \
    --config "$preset" --data "$out/scenes.npz" --output "$out/$name" ${spend_s:+--spend "$spend_s"} "$@"
}
train vae3d vae3d "$vae_s"
train audio audio "$audio_s"
models=(--vae "$out/vae3d/model" --codec "$out/audio/model" --latents "$out/latents")
# What things look like is learned from single frames, at a fifth of a clip's cost; then how they move and sound.
train dit frames "$frames_s" "${models[@]}" \
  --set latent_frames=1 video_shift=3 batch_size=$((frames / processes)) steps="$frame_steps"
train dit dit "$clips_s" "${models[@]}" --set batch_size=$((clips / processes)) \
  --init "$out/frames/model/transformer"
# The same world in a few steps, learned from the steps of what was just trained: an adapter, in one folder with it.
train distill student "$student_s" --teacher "$out/dit/model" --latents "$out/latents" \
  --lora-rank "${STUDENT_RANK:-64}" --set batch_size=$((student / processes))
echo "python sample.py --model $out/student/model --prompt \"a small red metal ball drops onto a wooden floor\""
