"""How different clips are from each other, and from those before the training. Pure functions of embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import cdist, pdist

from musicgen_dreamboothing.evaluation.metrics.distances import check_several, mean_between_songs
from musicgen_dreamboothing.evaluation.metrics.statistics import Estimate, estimate

Array = NDArray[np.float64]

COLLAPSED = 0.1  # of the songs' variety


def half_squares(a: Array, b: Array) -> Array:
    """|x - y|²/2 of the rows of `[N, D]` and `[M, D]`: the cosine distance where rows have length 1."""
    return cdist(a, b, "sqeuclidean") / 2


def diversity(embeddings: Array) -> float:
    """How different clips `[N, D]` are: the mean of `half_squares` over pairs. TooFewError for a single clip."""
    check_several(embeddings)
    return float(pdist(embeddings, "sqeuclidean").mean()) / 2


def is_collapsed(clips: Array, songs: Array, song_names: ArrayLike | None = None) -> bool:
    """Whether clips `[N, D]` of one prompt are nearly the same: less than a tenth as different as songs `[M, D]` are.

    Both are means of `half_squares`. Halves of a built-in song have 0.01 to 0.13 of what lies between these songs, and
    pieces of another style 0.6 to 4. `song_names` are the songs of the clips `songs`, if several are of one.

    Raises:
        TooFewError: fewer than two clips, or clips of fewer than two songs.
    """
    usual = mean_between_songs(half_squares(songs, songs), song_names)(np.ones(len(songs)))
    return diversity(clips) < COLLAPSED * usual


@dataclass(frozen=True)
class Drift:
    """How the clips of neutral prompts have changed, relative to the distance between two seeds of the base.

    Attributes:
        same_seed: distance of the tuned model's clip from the base's of one seed; 0 where the clips are unchanged, near
            1 where only the sampling took another course.
        other_seeds: the same of different seeds; 1 where prompts sound as before, more where they have changed.
    """

    same_seed: Estimate
    other_seeds: Estimate


def drift(before: Array, after: Array, seed: int) -> Drift:
    """How far neutral prompts have moved; before and after are `[P, S, D]`: P prompts, S seeds.

    Distances are `half_squares`. Intervals come from drawing prompts.

    Raises:
        ValueError: of different shapes, one seed only, or a base whose seeds all sound the same.
    """
    if before.shape != after.shape or before.ndim != 3 or before.shape[1] < 2:
        raise ValueError(f"drift needs [prompts, seeds >= 2, D] of both, not {before.shape} and {after.shape}")
    across = np.array([half_squares(*clips) for clips in zip(before, after, strict=True)])  # [P, S, S]
    same = np.diagonal(across, axis1=1, axis2=2).mean(axis=1)
    other = np.array([_off_diagonal(rows) for rows in across])
    spread = np.array([diversity(rows) for rows in before])
    if spread.mean() < 1e-12:
        raise ValueError("all seeds of the base sound the same: drift can't be measured")
    return Drift(*(estimate(_ratio, np.stack([changes, spread], axis=1), seed=seed) for changes in (same, other)))


def _ratio(rows: Array) -> float:
    """The mean of the first column over that of the second."""
    changes, spread = rows.mean(axis=0)
    return float(changes / spread)


def _off_diagonal(square: Array) -> float:
    """The mean of `[N, N]` without its diagonal."""
    return float((square.sum() - np.trace(square)) / (len(square) * (len(square) - 1)))
