#!/usr/bin/env bash
# One leg of training on a rented GPU without a network: the stages of the shipped model in order, as far as time goes.
# Run it again for the next leg: it goes on where the last one ended, with the same OUTPUT folder.
#   OUT=results runs/gpu.sh SCENES.npz [PRESET] [OUTPUT]      presets: tabletop-gpu, toy
#
# SCENES.npz are simulated beforehand (python -m vidgen.tabletop.physics): this needs neither MuJoCo nor PyAV.
#   OUT=folder      what to take home, flat: state.tar.* (cat OUT/state.tar.* | tar -x -C OUTPUT) and the newest sheet
#   RESUME=folder   what an earlier lease took home; unpacked first where OUTPUT is still empty
#   WHEELS=folder   wheels to use beside the packages of the machine (diffusers, accelerate, einops, peft)
#   LEG=540         seconds from start to end, packing included
#   PACK_MB=60      how much to take home; runs/pack.py tells what is left out first
#   SPEND="420 180 240 420 150"   seconds of training of vae3d, audio, frames, clips and student, in all legs together;
#                   the rest of three legs goes into starting, compiling and encoding the clips
#   STUDENT_RANK=64 of the adapter that is the few-step student, in student/model/fast; the teacher is beside it
#   SETTINGS="key=value …"        for every stage; SETTINGS_vae3d, _audio, _frames, _dit, _student for one
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 1 ] && [ -n "${OUT:-}" ] || { echo "OUT=folder runs/gpu.sh SCENES.npz [PRESET] [OUTPUT]" >&2 && exit 2; }
scenes=$1
preset=${2:-tabletop-gpu}
work=${3:-runs/out/$preset}
python=${PYTHON:-python3}
reserve=20 # seconds of a leg for packing
deadline=$((${LEG:-540} - reserve))
read -r vae_s audio_s frames_s clips_s student_s <<<"${SPEND:-420 180 240 420 150}"

case $preset in # frames or clips in a batch
  tabletop-gpu) frames=512 clips=128 ;;
  toy) frames=8 clips=4 ;;
  *) echo "presets: tabletop-gpu, toy; not $preset" >&2 && exit 2 ;;
esac
mkdir -p "$work" "$OUT"
if [ -n "${RESUME:-}" ] && [ -z "$(ls -A "$work")" ]; then
  cat "$RESUME"/state.tar.* | tar -x -C "$work"
fi
if [ -n "${WHEELS:-}" ]; then
  site=$PWD/runs/out/site
  [ -d "$site" ] || "$python" -m pip install --quiet --no-index --no-deps --target "$site" "$WHEELS"/*.whl
  export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
fi
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-$PWD/runs/out/compiled}
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$PWD/runs/out/compiled/triton}
command -v cc >/dev/null || SETTINGS="compile=false ${SETTINGS:-}"

status=0
train() { # STAGE NAME SECONDS OWN-SETTINGS FURTHER-ARGUMENTS…: true when the stage has its model
  local stage=$1 name=$2 spend_s=$3 given=SETTINGS_$2 left_s=$((deadline - SECONDS))
  local -a settings=($4 ${SETTINGS:-} ${!given:-})
  shift 4
  [ -d "$work/$name/model" ] && return
  ((left_s > 20)) || return
  [ ${#settings[@]} -eq 0 ] || settings=(--set "${settings[@]}")
  echo "== $name: $left_s s left in this leg"
  # The signal is for what does not look at the clock: encoding clips, which goes on from its last shard.
  timeout --foreground --signal=TERM --kill-after=10 "$left_s" "$python" train.py "$stage" --config "$preset" \
    --data "$scenes" --output "$work/$name" --spend "$spend_s" --stop-after $((left_s - 10)) \
    ${settings[@]+"${settings[@]}"} "$@" || status=$?
  [ "$status" -ne 124 ] || status=0 # out of time
  [ -d "$work/$name/model" ]
}
all_stages() {
  local models=(--vae "$work/vae3d/model" --codec "$work/audio/model" --latents "$work/latents") start=()
  train vae3d vae3d "$vae_s" "" || return
  train audio audio "$audio_s" "" || return
  if [ ! -d "$work/dit/model" ] && ! compgen -G "$work/dit/checkpoints/step-*" >/dev/null; then
    train dit frames "$frames_s" "latent_frames=1 video_shift=4 batch_size=$frames" "${models[@]}" || return
    start=(--init "$work/frames/model/transformer")
  fi
  train dit dit "$clips_s" "batch_size=$clips" "${models[@]}" ${start[@]+"${start[@]}"} || return
  train distill student "$student_s" "" --teacher "$work/dit/model" --latents "$work/latents" \
    --lora-rank "${STUDENT_RANK:-64}" || return
  echo "== all stages are done: python sample.py --model $work/student/model --prompt …"
}
all_stages || true
"$python" runs/pack.py "$work" "$OUT" --limit-mb "${PACK_MB:-60}"
echo "== leg of $SECONDS s ended"
exit "$status"
