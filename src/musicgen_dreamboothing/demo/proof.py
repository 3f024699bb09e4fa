"""`demo --proof true`: training, or luck? Several seeds, with and without prior preservation; and a run too long."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean

from musicgen_dreamboothing.arguments import DemoArguments
from musicgen_dreamboothing.console import UserError, log
from musicgen_dreamboothing.demo.recipe import Recipe, evaluate_options, train_options
from musicgen_dreamboothing.evaluation.evaluate import BASE, evaluate
from musicgen_dreamboothing.evaluation.result import Evaluation, Figure, Interval
from musicgen_dreamboothing.files import write_json
from musicgen_dreamboothing.training.train import train

PLAIN, PRIOR, LONG = "plain", "with prior", "too long"  # folders are called after them
ENOUGH = 0.6  # of the way to held-out songs


@dataclass(frozen=True)
class Proved:
    """What one training brought.

    Attributes:
        way: `plain`, `with prior` (preservation) or `too long`.
        seed: of its training and of the clips by which it was judged.
        updates: how long it was.
        loss_before, loss: on held-out songs, in nats.
        gone: share of the way from the base to held-out songs, with its interval.
        drift: of styles that the base knows, 1 is what another seed does, with its interval.
        copies: near-copies among `clips` clips of the style.
    """

    way: str
    seed: int
    updates: int
    loss_before: float
    loss: float
    gone: float
    gone_interval: Interval | None
    drift: float
    drift_interval: Interval | None
    copies: int
    clips: int


def prove(
    recipe: Recipe, prepared: Path, folder: Path, options: DemoArguments, first: tuple[Path, Evaluation] | None = None
) -> list[Proved]:
    """Trains and judges every run that is missing, says what came of it, and writes `proof.json`.

    Args:
        prepared: the songs as clips and tokens.
        folder: for the runs.
        options: the first seed.
        first: the plain run of this seed and what was found of it, if it is there already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for seed in range(options.seed, options.seed + recipe.seeds):
        is_first = seed == options.seed
        plain, ways = folder / f"plain-{seed}", [PLAIN, PRIOR]
        if first is not None and is_first:
            plain, ways = first[0], [PRIOR]
            found.append(_read(first[1], PLAIN, seed, recipe.updates))
        if recipe.too_long and is_first:
            ways.append(LONG)
        for way in ways:
            place = plain if way == PLAIN else folder / f"{way.replace(' ', '-')}-{seed}"
            log(f"\n{way}, seed {seed}: {place}")
            _share_base(plain, place)
            found.append(_proved(recipe, prepared, place, way, replace(options, seed=seed)))
    write_json(folder / "proof.json", [asdict(one) for one in found])
    log(f"\n{folder / 'proof.json'}")
    for line in [*map(_row, found), "", *conclusions(found)]:
        log(line)
    return found


def conclusions(found: Sequence[Proved]) -> list[str]:
    """What the runs say together, whether it pleases or not."""
    usual = [one for one in found if one.way != LONG]
    known = {(one.way, one.seed): one.drift for one in usual}
    pairs = [(known[PLAIN, seed], known[PRIOR, seed]) for way, seed in known if way == PRIOR and (PLAIN, seed) in known]
    lines = [
        f"held-out loss went down in {sum(one.loss < one.loss_before for one in usual)} of {len(usual)} runs",
        f"clips went {100 * ENOUGH:.0f} % of the way to held-out songs or more in "
        f"{sum(one.gone >= ENOUGH for one in usual)} of {len(usual)} runs",
        f"near-copies of songs: {sum(one.copies for one in usual)} of {sum(one.clips for one in usual)} clips",
    ]
    if pairs:
        without, within = (mean(side) for side in zip(*pairs, strict=True))
        less = sum(other < one for one, other in pairs)
        lines.append(
            f"other music drifted less with prior preservation with {less} of {len(pairs)} seeds: "
            f"{within:.1f} with it, {without:.1f} without"
        )
    for one in found:
        if one.way == LONG:
            lines.append(f"near-copies after {one.updates} updates: {one.copies} of {one.clips} clips")
    return lines


def _proved(recipe: Recipe, prepared: Path, run: Path, way: str, options: DemoArguments) -> Proved:
    recipe = replace(recipe, updates=recipe.updates * (recipe.too_long if way == LONG else 1))
    asked = train_options(recipe, prepared, run, options)
    if way == PRIOR:
        asked.with_prior_preservation, asked.class_prompts = True, list(recipe.known_styles)
        asked.num_class_clips = recipe.class_clips
    train(asked)
    judged = evaluate(evaluate_options(recipe, prepared, run, options))
    assert judged is not None  # as it is with answers of the blind page only
    return _read(judged.evaluation, way, options.seed, recipe.updates)


def _share_base(first: Path, run: Path) -> None:
    """The clips of the base are those of the seed, whatever is trained: they are made once."""
    made, wanted = first / "evaluation" / BASE, run / "evaluation" / BASE
    if made.is_dir() and not wanted.exists():
        shutil.copytree(made, wanted)


def _read(evaluation: Evaluation, way: str, seed: int, updates: int) -> Proved:
    known: dict[str, Figure] = {figure.key: figure for figure in evaluation.figures}
    loss, gone, drift = known["loss"], known["style_gap_closed"], known["drift"]
    for figure in (loss, gone, drift):
        if figure.tuned is None:
            raise UserError(f"the proof lacks {figure.key}: {figure.reason}")
    return Proved(
        way=way,
        seed=seed,
        updates=updates,
        loss_before=float(loss.base or 0.0),
        loss=float(loss.tuned or 0.0),
        gone=float(gone.tuned or 0.0),
        gone_interval=gone.tuned_interval,
        drift=float(drift.tuned or 0.0),
        drift_interval=drift.tuned_interval,
        copies=sum(one.is_copy for one in evaluation.nearest),
        clips=len(evaluation.nearest),
    )


def _row(one: Proved) -> str:
    gone, drift = one.gone_interval or (one.gone, one.gone), one.drift_interval or (one.drift, one.drift)
    return (
        f"seed {one.seed}, {one.way:<10}  loss {one.loss_before:.2f} -> {one.loss:.2f}  "
        f"{100 * one.gone:3.0f} % of the way ({100 * gone[0]:.0f} to {100 * gone[1]:.0f} %)  "
        f"drift {one.drift:.1f} ({drift[0]:.1f} to {drift[1]:.1f})  near-copies {one.copies} of {one.clips}"
    )
