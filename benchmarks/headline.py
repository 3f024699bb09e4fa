"""The published example end to end: 27 minutes of songs, melody, 4 epochs, from audio files to an adapter.

    python benchmarks/headline.py                              # as said; wants a GPU
    python benchmarks/headline.py --size tiny --minutes 2      # a quick look anywhere

The songs are noise with a beat and the weights random in the real shapes: they cost what real ones cost. Both commands
run as a person would call them, each in a process of its own; without the doctor behind `prepare` and the evaluation
behind `train`, and with no song held out, so that all minutes are trained on.

One should see seconds for `prepare` and `train`, and the peak memory that `train` tells.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import _common

WRITE = "checkpoint"
SONG_SECONDS = 180


def main() -> None:
    _common.play(_options(), _measure, _write)


def _options() -> argparse.Namespace:
    parser = _common.options(__doc__)
    parser.add_argument("--size", choices=_common.SIZES, default="melody")
    parser.add_argument("--minutes", type=float, default=27.0)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--quantization", default="none")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    _common.add_checkpoints(parser)
    return parser.parse_args()


def _measure(options: argparse.Namespace) -> None:
    about = _common.run_variant(__file__, _common.PROBE)
    with tempfile.TemporaryDirectory() as name, _common.checkpoint_folder(options, options.size) as checkpoint:
        folder = Path(name)
        _common.run_variant(__file__, WRITE, "--folder", name, "--checkpoint", str(checkpoint))
        # without melodies, as the published example
        base = ["--model_name_or_path", checkpoint, "--instance_prompt", "noise", "--melody", "none"]
        commands = {
            "prepare": [folder / "songs", "--output_dir", folder / "prepared", *base, "--doctor", "false"],
            "train": [
                *("--dataset_name", folder / "prepared", "--output_dir", folder / "run", *base),
                *("--num_train_epochs", options.epochs, "--quantization", options.quantization),
                *("--eval_strategy", "no", "--eval_fraction", 0, "--save_strategy", "no", "--final_report", "false"),
            ],
        }
        rows = [{"stage": verb, "seconds": _timed(verb, words)} for verb, words in commands.items()]
        rows.append({"stage": "both", "seconds": sum(row["seconds"] for row in rows)})
        summary = json.loads((folder / "run" / "run.json").read_text())["summary"]
    kept = {key: summary[key] for key in ("peak_gb", "peak_of", "seconds", "x_real_time", "updates", "clips")}
    case = f"{options.size}, {options.minutes:g} min, {options.epochs} epochs, {options.quantization}"
    _common.show(f"the published example on {about['device']}: {case}", rows)
    print(f"peak {kept['peak_of']} {kept['peak_gb']:.2f} GB, {kept['x_real_time']:.1f}x real time while it trains")
    path = _common.keep(about, "headline", case, {"rows": rows, "train": kept})
    print(f"kept in {path.parent.name}/{path.name}")


def _timed(verb: str, words: list[Any]) -> float:
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "musicgen_dreamboothing", verb, *map(str, words)], check=False)
    if done.returncode:
        raise SystemExit(f"{verb} failed with exit code {done.returncode}")
    return time.perf_counter() - started


def _write(options: argparse.Namespace) -> None:
    """The checkpoint, and songs of three minutes."""
    import numpy as np
    from _shapes import write_checkpoint

    from musicgen_dreamboothing import audio

    folder, rate = Path(options.folder), 32_000
    write_checkpoint(options.size, Path(options.checkpoint))
    (folder / "songs").mkdir()
    rng, left, number = np.random.default_rng(0), options.minutes * 60, 0
    while left > 0:
        seconds = min(left, SONG_SECONDS)
        beat = np.exp(-8 * (np.arange(int(seconds * rate)) / rate % 0.5))
        wave = 0.3 * beat * rng.standard_normal(len(beat))
        audio.write(folder / "songs" / f"song {number}.flac", wave[None].astype(np.float32), rate)
        left, number = left - seconds, number + 1


if __name__ == "__main__":
    main()
