#!/bin/sh
# Everything that is worth measuring on a GPU, in under eight minutes, without a network: random weights in the real
# shapes. Results go to benchmarks/results/, in the file of the device. Run it from the repository: sh benchmarks/gpu.sh
# Checkpoints take up to 23 GB of the folder for temporary files; TMPDIR names another one.
set -e
PYTHON=${PYTHON:-.venv/bin/python}
export HF_HUB_OFFLINE=1
STARTED=$(date +%s)
KEPT=$(mktemp -d)
trap 'rm -rf "$KEPT"' EXIT
trap 'exit 130' INT TERM

# memory and time of a step: the published recipe, and ours in bf16 and nf4 (bitsandbytes), with and without recompute
step() {
    $PYTHON benchmarks/train_step.py --steps 2 --warmup 1 \
        --only published ours "ours, recompute" "ours, nf4, no recompute" "ours, nf4" "$@"
}
step --size small melody --checkpoints "$KEPT"
# from songs to an adapter: 27 minutes, 4 epochs
$PYTHON benchmarks/headline.py --size melody --checkpoints "$KEPT"
# clips of 30 s, one and eight at once; transformers is timed over 3 s, a step is what is compared
$PYTHON benchmarks/generate.py --size small melody --checkpoints "$KEPT" --seconds 30 --transformers_seconds 3 \
    --only transformers "transformers, 8 at once" ours "ours, 8 at once"
# the codec over 27 minutes
$PYTHON benchmarks/prepare.py
# the sizes that nothing else needs, each checkpoint for as long as it is measured
step --size medium melody-large large
echo "all of it took $(($(date +%s) - STARTED)) s"
