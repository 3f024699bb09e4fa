"""How long `train` on prepared tokens takes to begin its first step: imports, plan, weights, adapter.

    python benchmarks/first_step.py                       # the shapes of musicgen-small
    python benchmarks/first_step.py --size melody --times 5

The checkpoint has random weights of the real shapes and is in the system's file cache. One should see seconds from the
start of the process to the first step, and that neither T5 nor EnCodec was loaded for it.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import _common

PREPARE = "prepare"
FIRST_STEP = """
import os, sys
from musicgen_dreamboothing.cli import main
from musicgen_dreamboothing.model import checkpoint
from musicgen_dreamboothing.training.trainer import CodebookTrainer

def stop(self, *rest):
    print("encoders:", sum(name in loaded for name in ("load_codec", "load_text_encoder")), flush=True)
    os._exit(0)

def told(name):
    real = getattr(checkpoint, name)
    return lambda *rest, **options: (loaded.append(name), real(*rest, **options))[1]

loaded = []
for name in ("load_codec", "load_text_encoder"):
    setattr(checkpoint, name, told(name))
CodebookTrainer.training_step = stop
main(sys.argv[1:])
"""


def main() -> None:
    _common.play(_options(), _measure, lambda options: _prepare(options.size, Path(options.folder)))


def _options() -> argparse.Namespace:
    parser = _common.options(__doc__)
    parser.add_argument("--size", choices=_common.SIZES, default="small")
    parser.add_argument("--times", type=int, default=3, help="starts")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args()


def _measure(options: argparse.Namespace) -> None:
    about = _common.run_variant(__file__, _common.PROBE)
    with tempfile.TemporaryDirectory() as folder:
        _common.run_variant(__file__, PREPARE, "--folder", folder)
        starts = [_start(Path(folder)) for _ in range(options.times + 1)][1:]  # the first one reads the disk
    seconds = statistics.median(second for second, _ in starts)
    rows = [{"size": options.size, "seconds to the first step": seconds, "encoders loaded": starts[0][1]}]
    _common.show(f"first step on {about['device']}, median of {options.times}", rows)
    path = _common.keep(about, "first_step", options.size, {"rows": rows})
    print(f"kept in {path.parent.name}/{path.name}")


def _start(folder: Path) -> tuple[float, int]:
    """Seconds from the start of a process to its first step, and how many encoders it loaded."""
    words = ["train", "--dataset_name", folder / "data", "--output_dir", folder / "run", "--restart", "true"]
    words += ["--model_name_or_path", folder / "base", "--instance_prompt", "noise", "--eval_on_start", "false"]
    started = time.perf_counter()
    command = [sys.executable, "-c", FIRST_STEP, *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return time.perf_counter() - started, int(done.stdout.splitlines()[-1].split()[-1])


def _prepare(size: str, folder: Path) -> None:
    import numpy as np
    from _shapes import write_checkpoint

    from musicgen_dreamboothing import audio
    from musicgen_dreamboothing.cli import main as run

    write_checkpoint(size, folder / "base")
    (folder / "songs").mkdir()
    wave = 0.1 * np.random.default_rng(0).standard_normal((1, 30 * 32_000))
    audio.write(folder / "songs" / "noise.flac", wave.astype(np.float32), 32_000)
    words = [folder / "songs", "--output_dir", folder / "data", "--model_name_or_path", folder / "base"]
    run(["prepare", *map(str, words), "--instance_prompt", "noise"])


if __name__ == "__main__":
    main()
