"""Whether the tool teaches: the demo's style on the built-in checkpoint, over several seeds, with and without a prior.

    python benchmarks/proof.py                            # three seeds of both ways, and one training 20 times too long
    python benchmarks/proof.py --seeds 0 --times 0

Each run is trained and evaluated as a person would, in a process of its own, on 20 clips of the style and 16 of styles
that the base knows. The prior is DreamBooth's: clips that the base makes of its styles' names. Two more runs have 8
clips only: one with the demo's number of epochs, one with 20 times as many, which learns them by heart. One sees a
row for each run: held-out loss before and after, share of the way to held-out songs, drift of the base's styles (1 is
what another seed does), and how many clips were flagged as near-copies. It takes some half an hour on two quiet cores.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import _common

PREPARE, PLAIN, PRIOR, KL, FEW, LONG = "prepare", "plain", "prior", "kl", "8 clips", "8 clips, too long"
FEW_CLIPS, ALL_CLIPS = 8, 40
STYLES = ("ballad", "reggae", "folk", "house", "techno")  # that the base knows


def main() -> None:
    _common.play(_options(), _compare, _work)


def _work(options: argparse.Namespace) -> dict[str, Any]:
    return _prepared(options) if options.variant == PREPARE else _proved(options)


def _options() -> argparse.Namespace:
    parser = _common.options(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", default=[PLAIN, PRIOR], choices=[PLAIN, PRIOR, KL])
    parser.add_argument("--times", type=int, default=20, help="how many times too long the last run is; 0 for none")
    parser.add_argument("--updates", type=int, help="of a run; by default as many as the demo makes")
    parser.add_argument("--folder", help="keep everything here; the same call again goes on")
    parser.add_argument("--run_seed", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def _compare(options: argparse.Namespace) -> None:
    about = _common.run_variant(__file__, _common.PROBE)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or scratch
        _common.run_variant(__file__, PREPARE, "--folder", folder)
        wanted = [(way, seed) for seed in options.seeds for way in options.ways]
        wanted += [(way, options.seeds[0]) for way in (FEW, LONG)] if options.times else []
        rows = []
        for way, seed in wanted:
            rows.append(_common.run_variant(__file__, way, "--folder", folder, "--run_seed", str(seed)))
            _common.show(f"the built-in checkpoint learns punk, on {about['device']}", rows)
    means = {way: _means([row for row in rows if row["way"] == way]) for way in options.ways}
    path = _common.keep(about, "proof", f"{len(options.seeds)} seeds", {"rows": rows, "means": means})
    print(f"kept in {path.parent.name}/{path.name}")


def _means(rows: list[dict[str, Any]]) -> dict[str, float]:
    return {key: statistics.mean(row[key] for row in rows) for key in ("loss", "way gone", "drift", "near-copies")}


def _prepared(options: argparse.Namespace) -> dict[str, Any]:
    from musicgen_dreamboothing import prepare
    from musicgen_dreamboothing.builtin.chain import Recipe, prepare_options

    prepare(prepare_options(Recipe(), Path(options.folder) / "prepared"))
    return {}


def _proved(options: argparse.Namespace) -> dict[str, Any]:
    """One row: a run is trained, then evaluated; clips of the base are made once for each seed."""
    from dataclasses import replace

    from musicgen_dreamboothing import evaluate, train
    from musicgen_dreamboothing.arguments import DemoArguments
    from musicgen_dreamboothing.builtin.chain import Recipe, evaluate_options, train_options

    way, seed, folder = options.variant, options.run_seed, Path(options.folder)
    recipe = Recipe()
    updates = options.updates or recipe.updates
    if way in (FEW, LONG):  # as many epochs as all clips have, or so many times as many
        updates = updates * FEW_CLIPS // ALL_CLIPS * (options.times if way == LONG else 1)
    recipe = replace(recipe, updates=updates)
    run = folder / f"{way.replace(' ', '-').replace(',', '')}-{seed}"
    asked = train_options(recipe, folder / "prepared", run, DemoArguments(seed=seed))
    if way in (PRIOR, KL):
        asked.with_prior_preservation, asked.class_prompts = True, list(STYLES)
        asked.prior, asked.num_class_clips = "kl" if way == KL else "clips", 40
    asked.max_train_samples = FEW_CLIPS if way in (FEW, LONG) else None
    train(asked)
    clips, base = run / "evaluation", folder / f"base-{seed}"
    if base.exists() and not clips.exists():
        shutil.copytree(base, clips / "base")
    found = evaluate(evaluate_options(recipe, folder / "prepared", run, DemoArguments(seed=seed)))
    assert found is not None
    if not base.exists():
        shutil.copytree(clips / "base", base)
    return {"way": way, "seed": seed, "updates": recipe.updates, **_row(found.evaluation)}


def _row(evaluation: Any) -> dict[str, Any]:
    by_key = {figure.key: figure for figure in evaluation.figures}
    copies = [one for one in evaluation.nearest if one.is_copy]
    return {
        "loss before": by_key["loss"].base,
        "loss": by_key["loss"].tuned,
        "way gone": by_key["style_gap_closed"].tuned,
        "drift": by_key["drift"].tuned,
        "drift from": by_key["drift"].tuned_interval[0],
        "drift to": by_key["drift"].tuned_interval[1],
        "near-copies": len(copies),
        "clips": len(evaluation.nearest),
    }


if __name__ == "__main__":
    main()
