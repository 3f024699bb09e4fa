"""Fine-tune MusicGen: `python finetune_musicgen.py example_configs/punk.json`, or see `--help`."""

import sys

from musicgen_dreamboothing.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
