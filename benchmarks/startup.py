"""How long the program takes to say its first word, and whether torch was loaded for it.

    python benchmarks/startup.py
    python benchmarks/startup.py --times 9

One should see a table of median seconds. Importing the package and `--help` cost little more than
Python itself and load no torch; the last rows are what a verb's own options and the training cost.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

import _common

HELP = "import sys; from musicgen_dreamboothing.cli import main; main(sys.argv[1:])"
STARTS = {  # name: code, its arguments
    "python": ("pass", ()),
    "import musicgen_dreamboothing": ("import musicgen_dreamboothing", ()),
    "--help": (HELP, ("--help",)),
    "import torch": ("import torch", ()),
    "train --help": (HELP, ("train", "--help")),
    "from musicgen_dreamboothing import train": ("from musicgen_dreamboothing import train", ()),
}
ASK = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); "


def main() -> None:
    _common.play(_options(), _measure)


def _measure(options: argparse.Namespace) -> None:
    about = _common.run_variant(__file__, _common.PROBE, *_common.ON_THE_CPU)
    rows = []
    for name, (code, words) in STARTS.items():
        starts = [_start(code, words) for _ in range(options.times + 1)][1:]  # the first one reads the disk
        seconds = statistics.median(second for second, _ in starts)
        rows.append({"start": name, "seconds": seconds, "torch": "loaded" if starts[0][1] else "no"})
    _common.show(f"start on {about['cpu']}, median of {options.times}", rows)
    path = _common.keep(about, "startup", "all", {"rows": rows, "times": options.times})
    print(f"kept in {path.parent.name}/{path.name}")


def _options() -> argparse.Namespace:
    parser = _common.options(__doc__)
    parser.add_argument("--times", type=int, default=5, help="starts of each kind")
    return parser.parse_args()


def _start(code: str, words: tuple[str, ...]) -> tuple[float, bool]:
    """Seconds from start to end of a Python process, and whether it had loaded torch by then."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", ASK + code, *words], stdout=subprocess.PIPE, text=True, check=True)
    return time.perf_counter() - started, done.stdout.splitlines()[-1] == "True"


if __name__ == "__main__":
    main()
