#!/bin/sh
# Everything that is worth measuring on a GPU, in under eight minutes, without a network: random weights in the real
# shapes. Results go to benchmarks/results/, in the file of the device. Run it from the repository: sh benchmarks/gpu.sh
set -e
PYTHON=${PYTHON:-.venv/bin/python}
QUICK="--steps 3 --warmup 1"

# memory and time of a step: the published recipe, and ours in four ways (nf4 needs bitsandbytes)
$PYTHON benchmarks/train_step.py --size small melody $QUICK
$PYTHON benchmarks/train_step.py --size medium large melody-large $QUICK --only "ours, nf4" "ours, recompute" "ours"
# from songs to an adapter: 27 minutes, 4 epochs
$PYTHON benchmarks/headline.py --size melody
# clips of 30 s, one and eight at once, against transformers
$PYTHON benchmarks/generate.py --size small melody --seconds 30 --only transformers ours "ours, 8 at once"
# the codec over 27 minutes
$PYTHON benchmarks/prepare.py
