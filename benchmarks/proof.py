"""Whether the tool teaches: the demo's style on the built-in checkpoint, over several seeds, with and without a prior.

    python benchmarks/proof.py                            # three seeds of both ways, and one training 20 times too long
    python benchmarks/proof.py --seeds 1 --times 0

Each run is trained and evaluated as the demo does it, on 18 clips of the style and 18 of styles that the base knows.
The table has a row for each run: held-out loss before and after, share of the way to the songs, drift of the base's
styles (0 is no change), and how many clips were flagged as near-copies. It takes some 50 minutes on two quiet cores.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import _common

PROOF = "proof"
PLAIN, PRIOR, LONG = "plain", "with prior", "too long"  # kinds of runs; folders are called after them
ENOUGH = 0.6  # of the way to the songs


@dataclass(frozen=True)
class Row:
    """The result of one run.

    Attributes:
        way: `plain`, `with prior` (preservation) or `too long`.
        seed: of its training and of the clips by which it was evaluated.
        updates: its length.
        loss_before, loss: on held-out songs, in nats.
        gone: share of the way from the base to the songs, with its interval; None where the report gives none.
        drift: of styles that the base knows, 0 is no change, with its interval; None as well.
        copies: near-copies among `clips` clips.
    """

    way: str
    seed: int
    updates: int
    loss_before: float
    loss: float
    gone: float | None
    gone_interval: tuple[float, float] | None
    drift: float | None
    drift_interval: tuple[float, float] | None
    copies: int
    clips: int


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
        result = _common.run_variant(__file__, PROOF, "--folder", options.folder or scratch)
    shown = [{key: value for key, value in row.items() if "interval" not in key} for row in result["rows"]]
    _common.show(f"the built-in checkpoint learns punk, on {about['device']}", shown)
    print("\n".join(result["conclusions"]))
    path = _common.keep(about, "proof", f"{options.seeds} seeds", result)
    print(f"kept in {path.parent.name}/{path.name}")


def _prove(options: argparse.Namespace) -> dict[str, Any]:
    from musicgen_dreamboothing.data.prepare import prepare
    from musicgen_dreamboothing.demo.recipe import Recipe, prepare_options

    folder, recipe = Path(options.folder), Recipe()
    recipe = replace(recipe, updates=options.updates or recipe.updates)
    prepare(prepare_options(recipe, folder / "prepared"))
    runs = [(way, seed) for seed in range(options.seeds) for way in (PLAIN, PRIOR)]
    if options.times:
        runs.append((LONG, 0))
    rows = [_trained(recipe, folder, way, seed, options.times) for way, seed in runs]
    return {"rows": [asdict(row) for row in rows], "conclusions": conclusions(rows)}


def _trained(recipe: Any, folder: Path, way: str, seed: int, times: int) -> Row:
    """Trains and evaluates one run, as far as that is not done."""
    from musicgen_dreamboothing.arguments import DemoArguments
    from musicgen_dreamboothing.demo.recipe import evaluate_options, train_options
    from musicgen_dreamboothing.evaluation.evaluate import evaluate
    from musicgen_dreamboothing.training.train import train

    run, options = _folder(folder, way, seed), DemoArguments(seed=seed)
    recipe = replace(recipe, updates=recipe.updates * (times if way == LONG else 1))
    if way != PRIOR:  # the same number of clips an update, all of the style
        recipe = replace(recipe, classes=(), batch_size=2 * recipe.batch_size)
    training = train_options(recipe, folder / "prepared", run, options)
    print(f"\n{way}, seed {seed}: {run}")
    _share_base(_folder(folder, PLAIN, seed), run)
    train(training)
    return _read(evaluate(evaluate_options(recipe, folder / "prepared", run, options)).evaluation, way, seed, recipe)


def _folder(folder: Path, way: str, seed: int) -> Path:
    return folder / f"{way.replace(' ', '-')}-{seed}"


def _share_base(first: Path, run: Path) -> None:
    """Copies the base's clips of a seed, which do not depend on the training: they are made once."""
    source, target = first / "evaluation" / "base", run / "evaluation" / "base"
    if source.is_dir() and not target.exists():
        shutil.copytree(source, target)


def _read(evaluation: Any, way: str, seed: int, recipe: Any) -> Row:
    figures = {figure.key: figure for figure in evaluation.figures}
    loss, gone, drift = figures["loss"], figures["style_gap_closed"], figures["drift"]
    return Row(
        way=way,
        seed=seed,
        updates=recipe.updates,
        loss_before=loss.base,
        loss=loss.tuned,
        gone=gone.tuned,
        gone_interval=gone.tuned_interval,
        drift=drift.tuned,
        drift_interval=drift.tuned_interval,
        copies=evaluation.originality.tuned.flagged,
        clips=evaluation.originality.tuned.clips,
    )


def conclusions(rows: Sequence[Row]) -> list[str]:
    """The results of all runs in sentences."""
    usual = [row for row in rows if row.way != LONG]
    drifts = {(row.way, row.seed): row.drift for row in usual}
    both = [(drifts[PLAIN, seed], drifts.get((PRIOR, seed))) for way, seed in drifts if way == PLAIN]
    pairs = [(plain, prior) for plain, prior in both if plain is not None and prior is not None]
    lines = [
        f"held-out loss went down in {sum(row.loss < row.loss_before for row in usual)} of {len(usual)} runs",
        f"clips went {100 * ENOUGH:.0f} % of the way to the songs or more in "
        f"{sum(row.gone is not None and row.gone >= ENOUGH for row in usual)} of {len(usual)} runs",
        f"near-copies of songs: {sum(row.copies for row in usual)} of {sum(row.clips for row in usual)} clips",
    ]
    if pairs:
        without, within = (mean(side) for side in zip(*pairs, strict=True))
        less = sum(prior < plain for plain, prior in pairs)
        lines.append(
            f"other music drifted less with prior preservation with {less} of {len(pairs)} seeds: "
            f"{within:.1f} with it, {without:.1f} without"
        )
    lines += [
        f"near-copies after {row.updates} updates: {row.copies} of {row.clips} clips" for row in rows if row.way == LONG
    ]
    return lines


if __name__ == "__main__":
    main()
