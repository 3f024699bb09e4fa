"""How different clips are from each other, and from those before the training. Pure functions of embeddings.

Clips are given by prompt, `[P, V, D]`: P prompts, V takes (seeds) of each, D dimensions. Intervals are those of a
jackknife over prompts, as takes of a prompt are not independent of each other; there are none for fewer than three
prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist, pdist

from musicgen_dreamboothing.evaluation.metrics.statistics import Estimate, Jackknife, check_several

Array = NDArray[np.float64]
Rows = NDArray[np.intp]

COLLAPSED = 0.3  # of the base's variety
EQUAL = 1e-5  # of other distances: what rounding leaves between equal sounds
TO_ONE_SOUND = math.sqrt(2) - 1  # energy distance of a normal distribution from its own mean, by E|y - y'|


def diversity(embeddings: Array) -> float:
    """How different clips `[N, D]` are: the mean of |x - y| over pairs.

    Raises:
        TooFewError: a single clip.
    """
    check_several(embeddings)
    return float(pdist(embeddings).mean())


def is_collapsed(clips: Array, usual: float) -> bool:
    """Whether clips `[V, D]` of one prompt are nearly the same: at most `COLLAPSED` times as different as usual.

    Args:
        usual: the `diversity` of the base's clips of this prompt. Where it is 0, there was nothing to lose.
    """
    return diversity(clips) <= COLLAPSED * usual if usual > 0 else False


def variety_within(songs: Array, names: Sequence[str]) -> float:
    """The mean `diversity` of excerpts of one song, from all excerpts `[M, D]`; infinite where no song has two."""
    groups = [songs[[number for number, other in enumerate(names) if other == name]] for name in dict.fromkeys(names)]
    varieties = [diversity(rows) for rows in groups if len(rows) > 1]
    return float(np.mean(varieties)) if varieties else math.inf


def diversity_ratio(before: Array, after: Array, *, across: bool = False) -> Estimate:
    """The `diversity` of the tuned model's clips over that of the base's, both `[P, V, D]`.

    1 is as varied as before, 0 where all clips are the same.

    Args:
        across: whether clips of different prompts are compared too. It is then also low where all prompts give the same
            music, however varied.

    Raises:
        ValueError: of different shapes, or a base whose clips all sound the same.
    """
    _check_paired(before, after)
    pairs = [_pair_sums(clips, across) for clips in (before, after)]

    def ratio(prompts: Rows) -> float:
        first, second = (float(sums[np.ix_(prompts, prompts)].sum()) for sums in pairs)
        return second / first if first > EQUAL * np.abs(before).mean() else math.nan

    result = Jackknife.of(ratio, len(before)).estimate([1])
    if math.isnan(result.value):
        raise ValueError("all takes of the base sound the same: there is no variety to compare with")
    return result


def _pair_sums(clips: Array, across: bool) -> Array:
    """Sums of distances of `[P, V, D]` by pairs of prompts, `[P, P]`; only its diagonal unless `across`."""
    prompts, takes, _ = clips.shape
    flat = clips.reshape(prompts * takes, -1)
    sums = cdist(flat, flat).reshape(prompts, takes, prompts, takes).sum(axis=(1, 3))
    return np.asarray(sums if across else np.diag(np.diag(sums)))


def drift(before: Array, after: Array) -> Estimate:
    """How far neutral prompts have moved or narrowed; before and after are `[P, V, D]`.

    The energy distance of the tuned model's takes from the base's takes of the same prompt (as `style_distance`):

        2 mean |x - y| - mean |x - x'| - mean |y - y'|

    averaged over prompts, and divided by that of a base whose takes have all become their own mean, which for normal
    distributions is (√2 - 1) mean |y - y'|. So 0 is as before (takes differ from those of other seeds as the base's do;
    it may be a little below 0), and 1 as if each prompt had only one sound left; other music in its place gives more.
    Takes of the same seed, which resemble each other, are not compared.

    Raises:
        ValueError: of different shapes, one take only, or a base whose takes all sound the same.
    """
    _check_paired(before, after)
    others = ~np.eye(before.shape[1], dtype=bool)
    rows = np.array(
        [[cdist(x, y)[others].mean() for x, y in ((a, b), (b, b), (a, a))] for a, b in zip(before, after, strict=True)]
    )
    usual = rows[:, 2].mean()
    if usual <= EQUAL * max(rows.max(), float(np.abs(before).max())):
        raise ValueError("all takes of the base sound the same: drift can't be measured")

    def ratio(prompts: Rows) -> float:
        across, tuned, base = rows[prompts].mean(axis=0)
        return float((2 * across - tuned - base) / (TO_ONE_SOUND * base)) if base else math.nan

    return Jackknife.of(ratio, len(rows)).estimate([1])


def _check_paired(before: Array, after: Array) -> None:
    if before.shape != after.shape or before.ndim != 3 or before.shape[1] < 2:
        raise ValueError(f"it takes [prompts, takes >= 2, D] of both, not {before.shape} and {after.shape}")
