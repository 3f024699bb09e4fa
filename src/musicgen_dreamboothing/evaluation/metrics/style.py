"""How far generated clips are from the songs of a style. Pure functions of embeddings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from musicgen_dreamboothing.evaluation.metrics.statistics import (
    Estimate,
    Jackknife,
    TooFewError,
    group_numbers,
)

Array = NDArray[np.float64]
Rows = NDArray[np.intp]

EQUAL = 1e-5  # of the distance to other sounds: what rounding leaves between songs that are the same


@dataclass(frozen=True)
class StyleChange:
    """Style distances of the base and of the fine-tuned model, see `style_change`.

    Attributes:
        base, tuned: the distances.
        change: tuned - base, of the same prompts and seeds.
        closed: the share of the distance that is gone, 1 - tuned / base; None where the base is not surely apart.
        prompts: number of prompts (or of clips, where there is one prompt).
    """

    base: Estimate
    tuned: Estimate
    change: Estimate
    closed: Estimate | None
    prompts: int


def style_distance(
    clips: Array,
    songs: Array,
    *,
    clip_groups: Sequence[str] | None = None,
    song_names: Sequence[str] | None = None,
) -> float:
    """How far clips `[N, D]` are from excerpts of songs `[M, D]`, in units of how far these songs are from each other.

    The energy distance (Székely & Rizzo 2013, "Energy statistics") over the songs' own spread:

        (2 mean |x - y| - mean |x - x'|) / mean |y - y'| - 1

    with x clips, y excerpts, and x, x' of different prompts, y, y' of different songs; each prompt and song counts
    alike. Its expectation is 0 for clips that could be excerpts of other songs of the style, however few songs there
    are, so 0 is the goal and no held-out song is needed to know it. Below 0, clips are more like these songs than
    these are like each other.

    Args:
        clip_groups: the prompt of each clip; without it, or of one or two prompts, each clip counts as one.
        song_names: the song of each excerpt, as of `style_change`.

    Raises:
        TooFewError: fewer than two clips or excerpts, or excerpts that are all the same.
    """
    names = _groups(song_names, len(songs))
    reference = _blocks(songs, songs, names, names)
    one = _Model(clips, songs, clip_groups, song_names)
    distance = one.distance(np.arange(len(one.within)), np.arange(len(reference)), reference)
    _check_defined(distance)
    return distance


def style_change(
    base: Array,
    tuned: Array,
    songs: Array,
    *,
    prompts: Sequence[str] | None = None,
    song_names: Sequence[str] | None = None,
) -> StyleChange:
    """`style_distance` of two models' clips of the same prompts and seeds, `[N, D]`, to excerpts of songs `[M, D]`.

    Intervals are of the jackknife over prompts and over songs. Of one or two songs nothing can be said about others of
    their style: then each excerpt counts as a song, and the intervals hold for these songs.

    Args:
        prompts: the prompt of each pair of clips.
        song_names: the song of each excerpt. Give all songs of the style, held out or not.

    Raises:
        ValueError: not as many clips of base and tuned.
        TooFewError: fewer than two clips or excerpts, or excerpts that are all the same.
    """
    if base.shape != tuned.shape:
        raise ValueError(f"clips of base and tuned model are paired: {len(base)} and {len(tuned)} are not")
    names = _groups(song_names, len(songs))
    reference = _blocks(songs, songs, names, names)
    models = [_Model(clips, songs, prompts, song_names) for clips in (base, tuned)]

    def distances(rows: Rows, columns: Rows) -> list[float]:
        return [one.distance(rows, columns, reference) for one in models]

    known = Jackknife.of(distances, len(models[0].within), len(reference))
    _check_defined(*known.values.tolist())
    ratio = known.ratio([0, 1], [1, 0]) if known.values[0] > 0 else None
    closed = None
    if ratio is not None:
        low, high = ratio.interval or (ratio.value, ratio.value)
        closed = Estimate(1 - ratio.value, (1 - high, 1 - low))
    return StyleChange(
        base=known.estimate([1, 0]),
        tuned=known.estimate([0, 1]),
        change=known.estimate([-1, 1]),
        closed=closed,
        prompts=len(models[0].within),
    )


class _Model:
    """Mean distances of one model's clips `[N, D]`: between its prompts and the songs, and among its prompts."""

    def __init__(
        self, clips: Array, songs: Array, prompts: Sequence[str] | None, song_names: Sequence[str] | None
    ) -> None:
        groups = _groups(prompts, len(clips))
        self.between = _blocks(clips, songs, groups, _groups(song_names, len(songs)))  # [P, S]
        self.within = _blocks(clips, clips, groups, groups)  # [P, P]

    def distance(self, rows: Rows, columns: Rows, reference: Array) -> float:
        """`style_distance` of some prompts to some songs."""
        across = self.between[np.ix_(rows, columns)].mean()
        spread = _between_groups(reference[np.ix_(columns, columns)])
        if spread <= EQUAL * across:
            return math.nan
        return float((2 * across - _between_groups(self.within[np.ix_(rows, rows)])) / spread - 1)


def _groups(names: Sequence[str] | None, count: int) -> Rows:
    if count < 2:
        raise TooFewError(f"it takes two clips at least, not {count}")
    return group_numbers(names, count)


def _blocks(first: Array, second: Array, rows: Rows, columns: Rows) -> Array:
    """Mean distances |x - y| of all pairs of two groups, `[groups, groups]`."""
    distances = cdist(first, second)
    for axis, labels in enumerate((rows, columns)):
        starts = np.searchsorted(np.sort(labels), np.arange(labels.max() + 1))
        sums = np.add.reduceat(distances.take(np.argsort(labels, kind="stable"), axis), starts, axis)
        counts = np.bincount(labels)
        distances = sums / (counts[:, None] if axis == 0 else counts)
    return distances


def _between_groups(distances: Array) -> float:
    """The mean of `[G, G]` off its diagonal."""
    count = len(distances)
    return float((distances.sum() - np.trace(distances)) / (count * (count - 1)))


def _check_defined(*distances: float) -> None:
    """Raises TooFewError where there is no spread to divide by."""
    if any(map(math.isnan, distances)):
        raise TooFewError("the excerpts of the songs are all the same")
