"""Intervals of shares of clips that are grouped by prompt: they hold the truth, and have a width at 0 and 1."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from musicgen_dreamboothing.evaluation.metrics.shares import (
    Groups,
    difference_interval,
    mean_interval,
    mean_score,
    score_difference,
)
from musicgen_dreamboothing.evaluation.metrics.statistics import binomial_interval

SHARES = (0.0, 0.1, 0.5, 0.9, 1.0)
REPETITIONS = 2000
KEY_SCORES = np.array([0, 0.2, 0.3, 0.5, 1])

Array = np.ndarray


def probabilities(rng: np.random.Generator, share: float, correlation: float, shape: tuple[int, int]) -> Array:
    """Of each prompt `[R, P, 1]`: beta-distributed, so that two takes of a prompt have this correlation."""
    if correlation == 0 or share in (0, 1):
        return np.full((*shape, 1), share)
    if correlation == 1:
        return (rng.random((*shape, 1)) < share).astype(float)
    scale = 1 / correlation - 1
    return rng.beta(share * scale, (1 - share) * scale, (*shape, 1))


def outcomes(rng: np.random.Generator, share: float, correlation: float, prompts: int, takes: int) -> Array:
    """`[R, P V]`, each 0 or 1."""
    chance = probabilities(rng, share, correlation, (REPETITIONS, prompts))
    return (rng.random((REPETITIONS, prompts, takes)) < chance).astype(float).reshape(REPETITIONS, -1)


def coverage(interval: tuple[Array, Array], truth: float) -> float:
    low, high = interval
    return float(((low <= truth + 1e-9) & (truth - 1e-9 <= high)).mean())


@pytest.mark.parametrize("takes", [1, 4])
@pytest.mark.parametrize("prompts", [4, 5, 9, 20])
def test_intervals_hold_the_true_share_and_the_true_change(prompts: int, takes: int) -> None:
    """In about 94 % of cases or more; 2000 repetitions may be 1 % off."""
    rng = np.random.default_rng(prompts * takes)
    labels = np.repeat(np.arange(prompts), takes)
    for correlation in (0.0, 0.3, 0.8, 1.0) if takes > 1 else (0.0,):
        clips = {share: outcomes(rng, share, correlation, prompts, takes) for share in SHARES}
        for share, before in clips.items():
            assert coverage(mean_interval(Groups.of(before, labels)), share) >= 0.93, (share, correlation)
            for other in SHARES:
                after = outcomes(rng, other, correlation, prompts, takes)
                by_group = Groups.of(after - before, labels)
                assert coverage(difference_interval(by_group), other - share) >= 0.93, (share, other, correlation)


@pytest.mark.parametrize("prompts", [4, 9])
@pytest.mark.parametrize("weights", [(0.5, 0.05, 0.05, 0.15, 0.25), (0.05, 0.05, 0.1, 0.2, 0.6)])
def test_intervals_hold_the_true_score_of_keys(prompts: int, weights: tuple[float, ...]) -> None:
    rng = np.random.default_rng(prompts)
    labels = np.repeat(np.arange(prompts), 4)
    shape = (REPETITIONS, prompts, 4)
    before, after = (
        np.where(
            rng.random(shape) < 0.5,
            rng.choice(KEY_SCORES, (REPETITIONS, prompts, 1), p=weights),
            rng.choice(KEY_SCORES, shape, p=weights),
        ).reshape(REPETITIONS, -1)
        for _ in range(2)
    )
    assert coverage(mean_interval(Groups.of(before, labels)), float(KEY_SCORES @ weights)) >= 0.93
    assert coverage(difference_interval(Groups.of(after - before, labels)), 0.0) >= 0.93


@pytest.mark.parametrize("score", [0.0, 0.5, 1.0])
def test_equal_scores_have_an_interval_with_a_width(score: float) -> None:
    """A bootstrap of equal values has none: "0 % before, 0 % after" would be a certain "as well as before"."""
    scores, prompts = np.full(20, score), np.repeat(np.arange(5), 4)
    low, high = mean_score(scores, prompts).interval
    assert 0 <= low <= score <= high <= 1
    assert high - low > 0.3
    low, high = score_difference(scores, scores, prompts).interval
    assert low < -0.2 < 0.2 < high
    low, high = score_difference(np.zeros(20), np.ones(20), prompts).interval
    assert low < 0.8
    assert high == 1


def test_independent_clips_have_wilsons_interval() -> None:
    """With Student's t for its quantile: with 4000 clips that is the normal one."""
    scores = (np.arange(4000) < 1000).astype(float)
    assert mean_score(scores, np.arange(4000)).interval == pytest.approx(binomial_interval(1000, 4000), abs=2e-4)


def test_many_prompts_have_students_interval_of_the_difference() -> None:
    rng = np.random.default_rng(0)
    chance = rng.random((400, 1))
    before, after = ((rng.random((400, 4)) < power).astype(float) for power in (chance, np.sqrt(chance)))
    means = (after - before).mean(axis=1)
    expected = stats.t.interval(0.95, 399, means.mean(), stats.sem(means))
    prompts = np.repeat(np.arange(400), 4)
    assert score_difference(before.ravel(), after.ravel(), prompts).interval == pytest.approx(expected, abs=0.01)


def test_takes_that_are_alike_count_as_one() -> None:
    prompts = np.repeat(np.arange(8), 4)
    alike = np.repeat([0.0, 1, 0, 1, 0, 1, 0, 1], 4)
    mixed = np.tile([0.0, 1], 16)
    wide, narrow = (np.diff(mean_score(scores, prompts).interval)[0] for scores in (alike, mixed))
    assert wide == pytest.approx(np.diff(mean_score(alike[::4], np.arange(8)).interval)[0])
    assert wide > 1.4 * narrow


def test_groups_of_other_sizes_and_in_any_order() -> None:
    scores, prompts = np.array([1.0, 0, 0, 1, 1]), np.array(["b", "a", "c", "b", "a"])
    order = np.array([4, 2, 0, 1, 3])
    assert mean_score(scores, prompts) == mean_score(scores[order], prompts[order])
    assert mean_score(scores, prompts).value == pytest.approx(0.6)


def test_one_prompt_has_no_interval() -> None:
    assert mean_score([1.0, 0.0], ["a", "a"]).interval is None
    assert score_difference([1.0, 0.0], [1.0, 1.0], ["a", "a"]).interval is None


def test_scores_and_groups_are_pairs() -> None:
    with pytest.raises(ValueError, match="group for each"):
        mean_score([1.0, 0.0], ["a"])
    with pytest.raises(ValueError, match="as many scores"):
        score_difference([1.0], [1.0, 0.0], ["a"])
