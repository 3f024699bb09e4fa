"""How different clips are from each other, and from those before the training. Pure functions of embeddings."""

from __future__ import annotations

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

    Both are means of `half_squares`. By statistics of the signal, halves of a built-in song have 0.05 to 0.22 of what
    lies between these songs, and pieces of another style 4 to 15. `song_names` are the songs of the clips `songs`, if
    several are of one.

    Raises:
        TooFewError: fewer than two clips, or clips of fewer than two songs.
    """
    usual = mean_between_songs(half_squares(songs, songs), song_names)(np.ones(len(songs)))
    return diversity(clips) < COLLAPSED * usual


def drift(before: Array, after: Array, seed: int) -> Estimate:
    """How far neutral prompts have moved; before and after are `[P, S, D]`: P prompts, S seeds.

    The distance (`half_squares`) of the tuned model's clips from the base's of other seeds, over that between two seeds
    of the base: 1 where prompts sound as before, more where they have changed. The interval comes from drawing prompts.

    Raises:
        ValueError: of different shapes, one seed only, or a base whose seeds all sound the same.
    """
    if before.shape != after.shape or before.ndim != 3 or before.shape[1] < 2:
        raise ValueError(f"drift needs [prompts, seeds >= 2, D] of both, not {before.shape} and {after.shape}")
    others = ~np.eye(before.shape[1], dtype=bool)
    rows = np.array([[half_squares(a, b)[others].mean(), diversity(a)] for a, b in zip(before, after, strict=True)])
    if rows[:, 1].mean() < 1e-12:
        raise ValueError("all seeds of the base sound the same: drift can't be measured")
    return estimate(_ratio, rows, seed=seed)


def _ratio(rows: Array) -> float:
    """The mean of the first column over that of the second."""
    changes, spread = rows.mean(axis=0)
    return float(changes / spread)
