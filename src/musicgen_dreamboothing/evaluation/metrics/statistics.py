"""Confidence intervals where few groups (songs, prompts) have several clips each.

Clips of one song or prompt are not independent of each other, so every interval is one of groups. With three to nine
groups a percentile bootstrap is too narrow; the delete-one jackknife with Student's t holds what it says
(`benchmarks/coverage.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.stats import binomtest
from scipy.stats import t as student_t

from musicgen_dreamboothing.evaluation.result import Interval

Array = NDArray[np.float64]
Rows = NDArray[np.intp]

LEVEL = 0.95
FEWEST_GROUPS = 3  # that tell how groups vary
SURELY_APART = 0.5  # of a value, at most, is the margin of one that is surely not 0
LARGEST_RATIO = 1e6


class TooFewError(ValueError):
    """Too few songs or clips for a figure; the message says what it takes."""


@dataclass(frozen=True)
class Estimate:
    """A figure and its interval, None where nothing is known of how it varies."""

    value: float
    interval: Interval | None


def binomial_interval(successes: int, trials: int, level: float = LEVEL) -> Interval:
    """Wilson's score interval of a share (Wilson 1927); without trials it is (0, 1).

    Brown, Cai & DasGupta (2001), "Interval estimation for a binomial proportion", recommend it for 40 trials and fewer.
    """
    if trials == 0 and successes == 0:
        return 0.0, 1.0
    found = binomtest(successes, trials).proportion_ci(level, "wilson")
    return float(found.low), float(found.high)


def mean_of_groups(values: ArrayLike, groups: ArrayLike | None = None, level: float = LEVEL) -> Estimate:
    """The mean of values `[N]` with Student's interval of the groups' means; None where there is one group only.

    Values of one group (the takes of a prompt, the clips of a song) are not independent of each other; groups are. The
    groups' means count alike. Without groups each value is one.
    """
    numbers = np.asarray(values, np.float64)
    labels = np.arange(len(numbers)) if groups is None else np.asarray(groups)
    if not len(numbers) or len(labels) != len(numbers):
        raise ValueError(f"a mean needs values and a group for each, not {len(numbers)} and {len(labels)}")
    means = np.array([numbers[labels == name].mean() for name in dict.fromkeys(labels.tolist())])
    value, count = float(means.mean()), len(means)
    if count < 2:
        return Estimate(value, None)
    margin = float(student_t.ppf((1 + level) / 2, count - 1) * means.std(ddof=1) / np.sqrt(count))
    return Estimate(value, (value - margin, value + margin))


def grouped_difference(before: ArrayLike, after: ArrayLike, groups: ArrayLike | None = None) -> Estimate:
    """`mean_of_groups` of after - before, values `[N]` of the same N clips (prompts and seeds)."""
    first, second = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if first.shape != second.shape:
        raise ValueError(f"pairs need as many values before as after, not {first.shape} and {second.shape}")
    return mean_of_groups(second - first, groups)


@dataclass(frozen=True)
class Change:
    """A figure of the base and of the fine-tuned model, and tuned - base."""

    base: Estimate
    tuned: Estimate
    change: Estimate


def check_several(*sets: Array) -> None:
    """Raises TooFewError where a set has fewer than two clips."""
    fewest = min(map(len, sets))
    if fewest < 2:
        raise TooFewError(f"it takes two clips at least, not {fewest}")


def group_numbers(names: Sequence[str] | None, count: int) -> Rows:
    """The number of each clip's song or prompt, `[count]`, from 0 up.

    Of one or two songs nothing can be said about others: then each clip counts as a group, and so it does without
    names.
    """
    if names is not None and len(names) != count:
        raise ValueError(f"{count} clips need a name each, not {len(names)}")
    if names is None or len(set(names)) < FEWEST_GROUPS:
        return np.arange(count)
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names])


@dataclass(frozen=True)
class Jackknife:
    """Statistics `[Q]` with their covariance by the delete-one jackknife, of one or more independent sets of groups.

    Efron & Stein (1981), "The jackknife estimate of variance". The number of degrees of freedom is that of Welch and
    Satterthwaite, over the sets.

    Attributes:
        values: the statistics `[Q]` of everything.
        covariances: of each set `[Q, Q]`.
        freedoms: the number of groups of each set, less one.
    """

    values: Array
    covariances: tuple[Array, ...]
    freedoms: tuple[int, ...]

    @classmethod
    def of(cls, statistics: Callable[..., Any], *sizes: int) -> Jackknife:
        """Leaves out one group after the other.

        Args:
            statistics: takes one array of group numbers for each set, each number at most once, and gives `[Q]`.
            sizes: the number of groups in each set. Where one has fewer than `FEWEST_GROUPS`, nothing is known of how
                the statistics vary, and there are no intervals.
        """
        everything = [np.arange(size) for size in sizes]
        values = np.atleast_1d(np.asarray(statistics(*everything), np.float64))
        covariances, freedoms = [], []
        for number, size in enumerate(sizes if min(sizes) >= FEWEST_GROUPS else ()):
            without = [
                statistics(*everything[:number], np.delete(everything[number], one), *everything[number + 1 :])
                for one in range(size)
            ]
            deviations = np.asarray(without, np.float64).reshape(size, -1)
            deviations -= deviations.mean(axis=0)
            covariances.append((size - 1) / size * deviations.T @ deviations)
            freedoms.append(size - 1)
        return cls(values, tuple(covariances), tuple(freedoms))

    def margin(self, weights: ArrayLike, level: float = LEVEL) -> float:
        """Half the width of the interval of a sum of the statistics with weights `[Q]`; infinite if it is not known."""
        row = np.asarray(weights, np.float64)
        variances = [float(row @ covariance @ row) for covariance in self.covariances]
        if not variances or not all(map(math.isfinite, variances)):
            return math.inf
        total = sum(variances)
        if total <= 0:
            return 0.0
        freedom = total**2 / sum(
            variance**2 / freedom for variance, freedom in zip(variances, self.freedoms, strict=True)
        )
        return float(student_t.ppf((1 + level) / 2, freedom) * math.sqrt(total))

    def estimate(self, weights: ArrayLike, level: float = LEVEL) -> Estimate:
        """A sum of the statistics with weights `[Q]`, and its interval."""
        value, margin = float(self.values @ np.asarray(weights, np.float64)), self.margin(weights, level)
        return Estimate(value, (value - margin, value + margin) if math.isfinite(margin) else None)

    def ratio(self, above: ArrayLike, below: ArrayLike, level: float = LEVEL) -> Estimate | None:
        """The ratio of two such sums with Fieller's interval; None unless `below` is surely apart from 0.

        Fieller (1954), "Some problems in interval estimation": all r for which above - r below may be 0. "Surely" is an
        interval of `below` whose margin is at most half its value: closer to 0 the interval becomes unbounded, and the
        ratio means nothing.
        """
        first, second = np.asarray(above, np.float64), np.asarray(below, np.float64)
        top, bottom = float(self.values @ first), float(self.values @ second)
        if not self.margin(second, level) <= SURELY_APART * abs(bottom) or bottom == 0:
            return None
        value = top / bottom

        def excess(ratio: float) -> float:
            return abs(top - ratio * bottom) - self.margin(first - ratio * second, level)

        if excess(value) >= 0:  # no width
            return Estimate(value, (value, value))
        return Estimate(value, (_root(excess, value, -1), _root(excess, value, 1)))


def _root(excess: Callable[[float], float], start: float, sign: int) -> float:
    """The nearest place on one side of `start` where `excess`, below 0 there, becomes positive; or infinity."""
    step = 1.0
    while excess(start + sign * step) < 0:
        step *= 2
        if step > LARGEST_RATIO:
            return sign * math.inf
    return float(brentq(excess, start, start + sign * step))
