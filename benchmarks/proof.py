"""Whether the tool teaches: the demo's style on the built-in checkpoint, over several seeds, with and without a prior.

    python benchmarks/proof.py                            # three seeds of both ways, and one training 20 times too long
    python benchmarks/proof.py --seeds 1 --times 0

It is `demo --proof true` without the demo: each run is trained and evaluated as a person would, on 20 clips of the
style and 16 of styles that the base knows. One sees a row for each run: held-out loss before and after, share of the
way to held-out songs, drift of the base's styles (1 is what another seed does), and how many clips were flagged as
near-copies. It takes some 50 minutes on two quiet cores.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import _common

PROOF = "proof"


def main() -> None:
    _common.play(_options(), _compare, _prove)


def _options() -> argparse.Namespace:
    parser = _common.options(__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--times", type=int, default=20, help="how many times too long the last run is; 0 for none")
    parser.add_argument("--updates", type=int, help="of a run; by default as many as the demo makes")
    parser.add_argument("--folder", help="keep everything here; the same call again goes on")
    return parser.parse_args()


def _compare(options: argparse.Namespace) -> None:
    about = _common.run_variant(__file__, _common.PROBE)
    with tempfile.TemporaryDirectory() as scratch:
        found = _common.run_variant(__file__, PROOF, "--folder", options.folder or scratch)
    shown = [{key: value for key, value in row.items() if "interval" not in key} for row in found["rows"]]
    _common.show(f"the built-in checkpoint learns punk, on {about['device']}", shown)
    print("\n".join(found["conclusions"]))
    path = _common.keep(about, "proof", f"{options.seeds} seeds", found)
    print(f"kept in {path.parent.name}/{path.name}")


def _prove(options: argparse.Namespace) -> dict[str, Any]:
    from dataclasses import asdict, replace

    from musicgen_dreamboothing.arguments import DemoArguments
    from musicgen_dreamboothing.data.prepare import prepare
    from musicgen_dreamboothing.demo.proof import conclusions, prove
    from musicgen_dreamboothing.demo.recipe import Recipe, prepare_options

    folder, recipe = Path(options.folder), Recipe()
    recipe = replace(recipe, seeds=options.seeds, too_long=options.times, updates=options.updates or recipe.updates)
    prepare(prepare_options(recipe, folder / "prepared"))
    found = prove(recipe, folder / "prepared", folder, DemoArguments())
    return {"rows": [asdict(one) for one in found], "conclusions": conclusions(found)}


if __name__ == "__main__":
    main()
