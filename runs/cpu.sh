#!/usr/bin/env bash
# Every stage from nothing to a clip in under 20 minutes on two cores: the shipped model's recipe, with a small picture
# (96×96, 12 frames a second), a small transformer and minutes of training. Run it again after a stop: it goes on.
#   runs/cpu.sh [OUTPUT] [PROMPT]
#   SPEND="20 40 170 250 60"   seconds of training of vae3d, audio, frames, clips and the few-step student; the rest is
#                   starting and caching
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-runs/out/tabletop-mini}
prompt=${2:-a big red rubber ball rolls in from the left on a wooden floor}
SPEND=${SPEND:-20 40 170 250 60} PROCESSES=${PROCESSES:-2} OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} \
  runs/tabletop.sh tabletop-mini "$out"
python sample.py --model "$out/student/model" --quality high --prompt "$prompt" --output "$out/clip.mp4"
python sample.py --model "$out/student/model" --quality fast --prompt "$prompt" --output "$out/clip-fast.mp4"
