"""Fine-tune MusicGen: `python finetune_musicgen.py --help`, or with a file of options: `... example_configs/punk.json`."""

import sys

from musicgen_dreamboothing.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
