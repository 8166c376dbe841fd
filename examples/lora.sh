#!/usr/bin/env bash
# A style learned from a dozen clips, on a CPU within minutes: night with an echo, over the shipped model.
#   examples/lora.sh [OUTPUT]      ends in OUTPUT/before-and-after.png and the adapter, OUTPUT/night/model
# With clips of your own (captions in text files of the same name), give their folder to --data below.
# STEPS=60 is done sooner and goes less far.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-runs/out/lora}
mkdir -p "$out"

[ -d "$out/plain" ] || python -m vidgen.tabletop --output "$out/plain" --count 12 --size 128 --seed 5 --split train
python examples/lora.py restyle "$out/plain" "$out/clips"
[ -d "$out/night/model" ] || python train.py dit --config tabletop-cpu --model weights --data "$out/clips" \
  --output "$out/night" --lora-rank 8 --lora-alpha 16 --set steps="${STEPS:-140}" batch_size="${BATCH:-6}" \
  optimizer=adamw learning_rate=1e-3 ema_decay=0.95 cached_clips=0 warmup_steps=10 sample_every=10000 checkpoint_every=20
python examples/lora.py compare "$out/clips" "$out/night/model" "$out/before-and-after.png"
