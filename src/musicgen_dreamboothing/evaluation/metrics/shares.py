"""Intervals of shares, and of other means of scores from 0 to 1, of clips that are grouped by prompt.

Takes of one prompt are alike, so that n clips tell less than n independent ones; and a share of 0 or 1 seems to have no
variance at all. Both are dealt with by formulas for independent trials that have a width at 0 and 1, with the number of
trials that have the variance which the groups show (the effective sample size; Korn & Graubard 1998, "Confidence
intervals for proportions with small expected number of positive counts estimated from survey data"), and Student's t
with one degree of freedom less than groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student_t

from musicgen_dreamboothing.evaluation.metrics.statistics import LEVEL, Estimate

Array = NDArray[np.float64]

LEAST_CORRELATION = 0.1  # of the takes of a prompt, where less is measured: it is by chance that few groups seem alike


@dataclass(frozen=True)
class Groups:
    """Scores `[..., N]`, sorted by group, of which the first axes are repetitions.

    Attributes:
        sizes: clips of each of the P groups `[P]`.
        starts: the first clip of each `[P]`.
    """

    scores: Array
    sizes: NDArray[np.intp]
    starts: NDArray[np.intp]

    @classmethod
    def of(cls, scores: ArrayLike, groups: ArrayLike) -> Groups:
        """Sorts scores `[..., N]` by their labels `[N]`."""
        values, labels = np.asarray(scores, np.float64), np.asarray(groups)
        if not values.shape[-1] or values.shape[-1:] != labels.shape:
            raise ValueError(f"scores need a group for each, not {values.shape[-1]} scores and {len(labels)} groups")
        _, places, sizes = np.unique(labels, return_inverse=True, return_counts=True)
        order = np.argsort(places, kind="stable")
        return cls(values[..., order], sizes, np.concatenate([[0], np.cumsum(sizes)[:-1]]))

    @property
    def count(self) -> int:
        return len(self.sizes)

    def variance_of_mean(self) -> Array:
        """Of the mean over clips `[...]`, from the P groups, within what takes that are alike or not allow.

        P / (P - 1) sum(n_i (m_i - m))^2 / n^2 (a ratio estimator's) lies between s^2 / n, a little more for
        `LEAST_CORRELATION`, and s^2 / P, where all takes of a group are one.
        """
        clips, mean = self.scores.shape[-1], self.scores.mean(axis=-1, keepdims=True)
        sums = np.add.reduceat(self.scores - mean, self.starts, axis=-1)
        between = self.count / (self.count - 1) * (sums**2).sum(axis=-1) / clips**2
        most = self.scores.var(axis=-1) / self.count
        takes = clips / self.count
        least = most * (1 + LEAST_CORRELATION * (takes - 1)) / takes
        return np.asarray(np.clip(between, least, most))

    def trials(self, spread: Array) -> Array:
        """The number of independent trials of variance `spread` `[...]` whose mean varies as this one does.

        Where all scores are equal nothing is known of it; then each group is one trial.
        """
        variance = self.variance_of_mean()
        is_known = variance > 0
        return np.where(is_known, spread / np.where(is_known, variance, 1.0), float(self.count))


def mean_score(scores: ArrayLike, groups: ArrayLike, level: float = LEVEL) -> Estimate:
    """The mean of scores `[N]` from 0 to 1 with Wilson's interval (1927), None where there is one group only."""
    by_group = Groups.of(scores, groups)
    value = float(by_group.scores.mean())
    if by_group.count < 2:
        return Estimate(value, None)
    low, high = mean_interval(by_group, level)
    return Estimate(value, (float(low), float(high)))


def mean_interval(by_group: Groups, level: float = LEVEL) -> tuple[Array, Array]:
    """Wilson's interval of the mean of scores from 0 to 1, both ends `[...]`."""
    mean = by_group.scores.mean(axis=-1)
    square = student_t.ppf((1 + level) / 2, by_group.count - 1) ** 2 / by_group.trials(mean * (1 - mean))
    centre = (mean + square / 2) / (1 + square)
    margin = np.sqrt(square * (mean * (1 - mean) + square / 4)) / (1 + square)
    return np.clip(centre - margin, 0, 1), np.clip(centre + margin, 0, 1)


def score_difference(before: ArrayLike, after: ArrayLike, groups: ArrayLike, level: float = LEVEL) -> Estimate:
    """The mean of after - before, scores `[N]` from 0 to 1 of the same N clips; see `difference_interval`."""
    first, second = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if first.shape != second.shape:
        raise ValueError(f"pairs need as many scores before as after, not {first.shape} and {second.shape}")
    by_group = Groups.of(second - first, groups)
    value = float(by_group.scores.mean())
    if by_group.count < 2:
        return Estimate(value, None)
    low, high = difference_interval(by_group, level)
    return Estimate(value, (float(low), float(high)))


def difference_interval(by_group: Groups, level: float = LEVEL) -> tuple[Array, Array]:
    """The adjusted Wald interval of the mean of paired differences from -1 to 1, both ends `[...]`.

    Bonett & Price (2012), "Adjusted Wald confidence interval for a difference of binomial proportions based on paired
    data": one more clip is counted for each of the two ways to differ. Simulations of 4 to 20 prompts with 1 or 4 takes
    hold the true difference in 94 % of cases or more; where shares are near 0 or 1, or prompts are few, in nearly all.
    """
    up, down = (np.clip(sign * by_group.scores, 0, None).mean(axis=-1) for sign in (1, -1))
    trials = by_group.trials(up + down - (up - down) ** 2)
    more, less = ((trials * part + 1) / (trials + 2) for part in (up, down))
    difference, spread = more - less, more + less - (more - less) ** 2
    margin = student_t.ppf((1 + level) / 2, by_group.count - 1) * np.sqrt(spread / (trials + 2))
    return np.clip(difference - margin, -1, 1), np.clip(difference + margin, -1, 1)
