"""Makes the shipped checkpoint of a finished training: fp16 weights, processor, and a card with its figures.

    python tools/tiny/export.py WORK/lm --output_dir src/musicgen_dreamboothing/assets/musicgen-tiny
    python tools/tiny/export.py WORK/lm --output_dir ... --figures tools/tiny/figures.json   # once it is judged

No figure is written by hand: without `--figures` the card has none.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, StrictUndefined
from transformers import MusicgenForConditionalGeneration

from musicgen_dreamboothing.hub import weights_fingerprint

MOST_BYTES = 15_000_000
PROCESSOR = ("processor_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")
CARD = Path(__file__).with_name("card.md.jinja")


def value(figure: dict[str, Any]) -> str:
    """`0.93 (0.85 to 0.98)`."""
    return f"{figure['mean']:.2f} ({figure['low']:.2f} to {figure['high']:.2f})"


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="what `train --use_lora false` wrote")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--figures", type=Path, help="what evaluate.py wrote")
    options = parser.parse_args()
    folder = options.output_dir
    model = MusicgenForConditionalGeneration.from_pretrained(options.model, dtype=torch.float16)
    model.config.audio_encoder._name_or_path = ""  # a folder of the machine it was made on
    model.save_pretrained(folder)
    for name in PROCESSOR:
        if (options.model / name).exists():
            shutil.copyfile(options.model / name, folder / name)
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    figures = json.loads(options.figures.read_text()) if options.figures else None
    if figures and figures["weights"] != weights_fingerprint(folder):
        raise SystemExit(f"{options.figures} judges other weights than those in {folder}: run evaluate.py again")
    facts = {
        "weights": sum(parameter.numel() for parameter in model.parameters()),
        "clips": json.loads((options.model / "run.json").read_text())["summary"]["clips"],
        "figures": figures,
    }
    (folder / "README.md").write_text(
        environment.from_string(CARD.read_text()).render(value=value, **facts).rstrip() + "\n"
    )
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder}: {size / 1e6:.1f} MB")
    if size > MOST_BYTES:
        raise SystemExit(f"{folder} has {size} bytes, more than the {MOST_BYTES} that may be shipped")


if __name__ == "__main__":
    main()
