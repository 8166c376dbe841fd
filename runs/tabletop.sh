#!/usr/bin/env bash
# Every stage of the shipped model, from nothing to a model folder. Run it again after a stop: each stage resumes.
#   runs/tabletop.sh [PRESET] [OUTPUT]      presets: tabletop-cpu (two cores, about 2 hours), tabletop-gpu
set -euo pipefail
cd "$(dirname "$0")/.."
preset=${1:-tabletop-cpu}
out=${2:-runs/out/$preset}
mkdir -p "$out"

case $preset in
  tabletop-gpu) scenes=60000 duration=4.1 launch=(accelerate launch --mixed_precision bf16) ;;
  *) scenes=6000 duration=2.05 launch=(python) ;;
esac

[ -f "$out/scenes.npz" ] || python -m vidgen.tabletop.physics \
  --count "$scenes" --duration "$duration" --seed 1 --output "$out/scenes.npz" --workers "$(nproc)"
train() { # STAGE FURTHER-ARGUMENTS…
  local stage=$1
  shift
  [ -d "$out/$stage/model" ] || "${launch[@]}" train.py "$stage" --config "$preset" --data "$out/scenes.npz" \
    --output "$out/$stage" "$@"
}
train vae3d
train audio
train dit --vae "$out/vae3d/model" --codec "$out/audio/model"
echo "python sample.py --model $out/dit/model --prompt \"a small red metal ball drops onto a wooden floor\""
