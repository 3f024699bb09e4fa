"""Cross-entropy on held-out songs, with intervals. Pure functions of arrays."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from musicgen_dreamboothing.evaluation.metrics.statistics import Estimate, interval, resampled

Array = NDArray[np.float64]


@dataclass(frozen=True)
class CrossEntropy:
    """In nats: of each of K codebooks, and their mean, which is the loss that is trained."""

    codebooks: tuple[Estimate, ...]
    mean: Estimate


def cross_entropy(nll: Array, count: Array, seed: int, songs: ArrayLike | None = None) -> CrossEntropy:
    """Mean cross-entropy on held-out clips, from sums over valid steps and numbers of these, both `[N, K]`.

    Intervals come from drawing clips again, or all clips of a song where the song of each clip is given.
    """
    return _cross_entropy(np.asarray(nll)[None], count, seed, songs)


def cross_entropy_change(
    base: Array, tuned: Array, count: Array, seed: int, songs: ArrayLike | None = None
) -> CrossEntropy:
    """The same of tuned - base, on the same clips: below 0 the fine-tuned model knows them better."""
    return _cross_entropy(np.stack([tuned, -np.asarray(base)]), count, seed, songs)


def _cross_entropy(terms: Array, count: Array, seed: int, songs: ArrayLike | None) -> CrossEntropy:
    """Of a sum of terms `[n, N, K]`."""
    sums, steps = terms.astype(np.float64).sum(axis=0), np.asarray(count, np.float64)
    if sums.shape != steps.shape or not len(steps):
        raise ValueError(f"cross-entropy needs sums and counts [clips, codebooks], not {sums.shape} and {steps.shape}")
    clips = np.stack([sums, steps], axis=1)  # [N, 2, K]
    drawn = resampled(_mean_nll, clips, seed=seed, groups=(songs,)).reshape(-1, clips.shape[2])
    means = _mean_nll(clips)
    codebooks = [Estimate(float(mean), interval(column)) for mean, column in zip(means, drawn.T, strict=True)]
    return CrossEntropy(tuple(codebooks), Estimate(float(means.mean()), interval(drawn.mean(axis=1))))


def _mean_nll(clips: Array) -> Array:
    """`[N, 2, K]`, sums and counts, -> `[K]`."""
    sums, steps = clips.sum(axis=0)
    return np.asarray(sums / np.maximum(steps, 1))


def perplexity(entropy: Estimate) -> Estimate:
    """exp of a cross-entropy in nats; of a change, by which factor the perplexity changes."""
    bounds = entropy.interval
    return Estimate(math.exp(entropy.value), None if bounds is None else (math.exp(bounds[0]), math.exp(bounds[1])))


def perplexity_change(base: Estimate, change: Estimate) -> Estimate:
    """By how much the perplexity changes, from the base's cross-entropy and its change, both in nats.

    exp(base) (exp(change) - 1): the interval is that of the factor, times the base's perplexity on these songs. So it
    excludes 0 where that of the cross-entropy does.
    """
    factor, before = perplexity(change), math.exp(base.value)
    ends = None if factor.interval is None else tuple(before * (end - 1) for end in factor.interval)
    return Estimate(before * (factor.value - 1), None if ends is None else (ends[0], ends[1]))
