#!/usr/bin/env bash
# What the mixture of modes costs in plain text to video: two short runs from the same weights with the same seed, clips and
# length, one that only sees whole clips under one noise level, one that also sees material given; then both compared.
#   runs/mixture.sh START DATA HELD-BACK [OUTPUT]
# START: a model's folder. DATA, HELD-BACK: scenes (.npz) or clips; the second is never trained on.
# STEPS (400), CLIPS (3072, in the latent cache), HELD_CLIPS (128, of HELD-BACK), SHARED (0.8, the share of whole clips under one
# noise level), PROMPTS (64), PRESET.
set -euo pipefail
cd "$(dirname "$0")/.."
start=$1 data=$2 held=$3 out=${4:-runs/out/mixture}
preset=${PRESET:-tabletop-cpu}
prompts=${PROMPTS:-64}

for name in plain mixed; do
  shared=1.0
  [ "$name" = plain ] || shared=${SHARED:-0.8}
  [ -d "$out/$name/model" ] || python train.py dit --config "$preset" --model "$start" --data "$data" --validation "$held" \
    --latents "$out/latents" --output "$out/$name" \
    --set "shared_noise=$shared" "steps=${STEPS:-400}" "cached_clips=${CLIPS:-3072}" "validation_clips=${HELD_CLIPS:-128}" \
    sample_every=1000000 ${SET:-}
done
python -m eval.mode_loss --model "$out/plain/model" "$out/mixed/model" --latents "$out/plain/validation-latents" \
  --clips "${HELD_CLIPS:-128}" | tee "$out/losses.txt"
[ "$prompts" = 0 ] || python -m eval.run --model "$out/plain/model" --model "$out/mixed/model" --output "$out/scores" \
  --limit "$prompts" | tee "$out/scores.txt"
