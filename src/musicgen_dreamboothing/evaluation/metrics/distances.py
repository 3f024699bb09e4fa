"""The energy distance of generated clips to songs (style). Pure functions of embeddings.

Embeddings are float arrays `[N, D]`, one row a clip: CLAP's, each of length 1, or points of a `signal.Space`; all of
one call come from one embedder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import cdist

from musicgen_dreamboothing.evaluation.metrics.statistics import Estimate, interval, resampled
from musicgen_dreamboothing.evaluation.result import Interval

Array = NDArray[np.float64]
Rows = NDArray[np.intp]
Measure = Callable[[Array, Array], float]  # how often each clip, and each clip of the songs, was drawn -> distance

EQUAL = 1e-5  # of other distances: what rounding leaves between equal sounds


class TooFewError(ValueError):
    """There are too few different songs or clips to measure something."""


@dataclass(frozen=True)
class Change:
    """A figure of the base and of the fine-tuned model; `change` is the interval of tuned - base, if it is known."""

    base: Estimate
    tuned: Estimate
    change: Interval | None


def style_distance(
    clips: Array,
    reference: Array,
    *,
    clip_songs: ArrayLike | None = None,
    reference_songs: ArrayLike | None = None,
) -> float:
    """How far clips `[N, D]` are from the clips of the training songs `[M, D]`: 0 where one could be the other.

    The energy distance (Székely & Rizzo 2013, "Energy statistics"), an MMD² with the kernel -|x - y| (Sejdinovic et
    al. 2013), divided by how far the songs are from each other:

        (2 mean |x - y| - mean |x - x'|) / mean |y - y'| - 1

    Like KAD (`audio_distances`) it is unbiased for few clips, so it may be a little below 0; unlike KAD it has no
    bandwidth beyond which everything is equally far. It has no unit.

    Args:
        clip_songs, reference_songs: the song of each clip, if several are of one: means within a set are then taken
            over pairs of different songs, as halves of one song are more alike than two songs.

    Raises:
        TooFewError: a set without two different songs (or clips).
    """
    spread = mean_between_songs(cdist(reference, reference), reference_songs)
    songs = np.ones(len(reference))
    distance = _style_measure(clips, reference, clip_songs)(np.ones(len(clips)), songs, spread(songs))
    _check_defined(distance)
    return distance


def style_change(
    base: Array,
    tuned: Array,
    reference: Array,
    seed: int,
    *,
    prompts: ArrayLike | None = None,
    reference_songs: ArrayLike | None = None,
) -> Change:
    """`style_distance` of two models' clips of the same prompts and seeds, `[N, D]`, to `[M, D]`.

    `prompts` and `reference_songs` (the prompt, the song of each clip) are drawn again for the intervals.
    """
    spread_of = mean_between_songs(cdist(reference, reference), reference_songs)

    def measure_of(clips: Array) -> Measure:
        measure = _style_measure(clips, reference, prompts)
        return lambda drawn, songs: measure(drawn, songs, spread_of(songs))

    return _change([measure_of(base), measure_of(tuned)], base, reference, seed, prompts, reference_songs)


def _style_measure(
    clips: Array, reference: Array, clip_songs: ArrayLike | None
) -> Callable[[Array, Array, float], float]:
    """`style_distance` from how often each clip of both sets was drawn, and the mean distance of the drawn songs."""
    between, within = cdist(clips, reference), mean_between_songs(cdist(clips, clips), clip_songs)

    def measure(drawn: Array, songs: Array, spread: float) -> float:
        across = float(drawn @ between @ songs) / float(drawn.sum() * songs.sum())
        return (2 * across - within(drawn)) / spread - 1 if spread > EQUAL * across else math.nan  # equal songs

    return measure


def _change(
    measures: Sequence[Measure],
    clips: Array,
    reference: Array,
    seed: int,
    prompts: ArrayLike | None,
    songs: ArrayLike | None,
) -> Change:
    """Distances of base and tuned model; for the intervals the clips of both are drawn together."""

    def measure(pairs: Rows, training: Rows) -> list[float]:
        return [one(_counts(pairs, clips), _counts(training, reference)) for one in measures]

    rows = [np.arange(len(one)) for one in (clips, reference)]
    before, after = measure(*rows)
    _check_defined(before, after)
    first, second = resampled(measure, *rows, seed=seed, groups=(prompts, songs)).reshape(-1, 2).T
    return Change(Estimate(before, interval(first)), Estimate(after, interval(second)), interval(second - first))


def _counts(rows: Rows, clips: Array) -> Array:
    """How often each clip was drawn, `[N]`."""
    return np.bincount(rows, minlength=len(clips)).astype(float)


def mean_between_songs(values: Array, names: ArrayLike | None) -> Callable[[Array], float]:
    """The mean of `[N, N]` over pairs of different songs, each as often as its clips were drawn; NaN without a pair.

    Each clip counts as a song where there are no names. A clip that is drawn twice makes no pair with itself.
    """
    labels = np.arange(len(values)) if names is None else np.asarray(names)
    pairs = (labels[:, None] != labels).astype(float)
    if pairs.shape != values.shape or not pairs.any():
        raise TooFewError(f"it takes clips of two songs at least, not {len(values)} of {len(set(labels.tolist()))}")
    counted = values * pairs

    def mean(drawn: Array) -> float:
        total = float(drawn @ pairs @ drawn)
        return float(drawn @ counted @ drawn) / total if total else math.nan

    return mean


def check_several(*sets: Array) -> None:
    """Raises TooFewError where a set has fewer than two clips."""
    fewest = min(map(len, sets))
    if fewest < 2:
        raise TooFewError(f"it takes two clips at least, not {fewest}")


def _check_defined(*distances: float) -> None:
    """Raises TooFewError where a distance to songs that are all the same is NaN."""
    if any(map(math.isnan, distances)):
        raise TooFewError("the clips of the songs are all the same")


def gap_closed(base: float, tuned: float, goal: float) -> float | None:
    """The share of the way from the base to held-out songs that was gone, of three style distances.

    1 is as near as held-out songs, 0 as far as the base, below 0 farther; None where the base is as near already.
    """
    return (base - tuned) / (base - goal) if base > goal else None


@dataclass(frozen=True)
class StyleGap:
    """Style distances of the base, the fine-tuned model and held-out songs; `change` is the interval of tuned - base.

    `closed` is the share of the gap that was closed; None where there is no gap.
    """

    base: Estimate
    tuned: Estimate
    goal: Estimate
    change: Interval | None
    closed: Estimate | None


def style_gap(
    base: Array,
    tuned: Array,
    goal: Array,
    reference: Array,
    seed: int,
    *,
    prompts: ArrayLike | None = None,
    goal_songs: ArrayLike | None = None,
    reference_songs: ArrayLike | None = None,
) -> StyleGap:
    """Style distances to the training songs `reference` `[M, D]`, and how much of the gap was closed.

    Intervals come from drawing prompts and songs again, each with all its clips, and both models' clips together.

    Args:
        base, tuned: clips of the same prompts and seeds in one order, `[N, D]`.
        goal: clips of held-out songs `[G, D]`.
        prompts: the prompt of each pair, None if there is only one; clips of a prompt count as clips of one song.
        goal_songs, reference_songs: the song of each clip. With one held-out song leave it out: its clips then count
            as songs, and the goal seems farther than it is.

    Raises:
        ValueError: not as many clips of base and tuned, or a set without two different songs (or clips).
    """
    if base.shape != tuned.shape:
        raise ValueError(f"clips of base and tuned model are paired: {len(base)} and {len(tuned)} are not")
    of_base, of_tuned = (_style_measure(clips, reference, prompts) for clips in (base, tuned))
    of_goal = _style_measure(goal, reference, goal_songs)
    spread_of = mean_between_songs(cdist(reference, reference), reference_songs)

    def measure(pairs: Rows, held_out: Rows, training: Rows) -> tuple[float, float, float]:
        clips, best, songs = _counts(pairs, base), _counts(held_out, goal), _counts(training, reference)
        spread = spread_of(songs)
        return of_base(clips, songs, spread), of_tuned(clips, songs, spread), of_goal(best, songs, spread)

    rows = [np.arange(len(clips)) for clips in (base, goal, reference)]
    before, after, best = measure(*rows)
    _check_defined(before, after, best)
    drawn = resampled(measure, *rows, seed=seed, groups=(prompts, goal_songs, reference_songs)).reshape(-1, 3)
    first, second, third = drawn.T
    closed = gap_closed(before, after, best)
    return StyleGap(
        base=Estimate(before, interval(first)),
        tuned=Estimate(after, interval(second)),
        goal=Estimate(best, interval(third)),
        change=interval(second - first),
        closed=None if closed is None else Estimate(closed, interval((first - second) / (first - third))),
    )
