"""The loss on held-out songs in an evaluation: that of the training, with intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from musicgen_dreamboothing.evaluation.metrics.losses import loss_changes
from musicgen_dreamboothing.training.trainer import codebook_metrics


def sums(clips: int, seed: int, level: float = 2.0, codebooks: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Sums and counts `[N, K]`, the later codebooks harder."""
    rng = np.random.default_rng(seed)
    count = rng.integers(200, 400, (clips, 1)) - np.arange(codebooks)
    return count * (level + np.arange(codebooks) + 0.2 * rng.standard_normal((clips, 1))), count


@pytest.mark.parametrize(("codebooks", "sides"), [(4, ()), (8, ("left", "right"))])
def test_they_are_the_trainers(codebooks: int, sides: tuple[str, ...]) -> None:
    """Under the same names, which are audiocraft's."""
    base, count = sums(12, 0, codebooks=codebooks)
    tuned, _ = sums(12, 1, codebooks=codebooks)
    changes = loss_changes(base, tuned, count, sides=sides)
    for nll, side in ((base, "base"), (tuned, "tuned")):
        expected = codebook_metrics(torch.tensor(nll.sum(0)), torch.tensor(count.sum(0)), sides)
        assert {one.key: getattr(one, side).value for one in changes} == pytest.approx(expected)
    for one in changes:
        assert one.change.value == pytest.approx(one.tuned.value - one.base.value)
        for estimate in (one.base, one.tuned, one.change):
            assert estimate.interval is not None
            assert estimate.interval[0] < estimate.value < estimate.interval[1]


def test_the_loss_of_a_side_is_that_of_its_codebooks() -> None:
    """Codebook 2 k is of the left channel, 2 k + 1 of the right one."""
    count = np.full((3, 8), 100)
    nll = count * np.array([1.0, 5.0, 2.0, 6.0, 3.0, 7.0, 4.0, 8.0])
    changes = {one.key: one.base.value for one in loss_changes(nll, nll, count, sides=("left", "right"))}
    assert (changes["ce_left"], changes["ce_right"], changes["loss"]) == pytest.approx((2.5, 6.5, 4.5))
    assert changes["ppl_right"] == pytest.approx(math.exp(6.5))


def test_a_small_gain_on_each_clip_is_seen() -> None:
    base, count = sums(12, 0)
    changes = {one.key: one for one in loss_changes(base, base - count * 0.05, count)}
    loss = changes["loss"]
    assert loss.base.interval is not None
    assert loss.tuned.interval is not None
    assert loss.tuned.interval[1] > loss.base.interval[0]  # they overlap
    for key in ("loss", *(f"ce_q{number}" for number in range(1, 5))):
        change = changes[key].change
        assert change.interval is not None
        assert (change.value, *change.interval) == pytest.approx((-0.05, -0.05, -0.05))
    assert changes["ppl"].change.interval is not None
    assert changes["ppl"].change.interval[1] < 0


def test_songs_count_rather_than_clips() -> None:
    base, count = sums(6, 0)
    tuned, _ = sums(6, 1)
    rows = np.repeat(np.arange(6), 8)
    names = [str(row) for row in rows]
    by_clips, by_songs, one_each = (
        loss_changes(base[chosen], tuned[chosen], count[chosen], songs)[0].change
        for chosen, songs in ((rows, None), (rows, names), (np.arange(6), None))
    )
    assert by_clips.interval is not None
    assert by_songs.interval is not None
    assert np.diff(by_songs.interval) > 2 * np.diff(by_clips.interval)
    assert by_songs.interval == pytest.approx(one_each.interval)


@pytest.mark.parametrize("songs", [["one"] * 6, ["one", "two"] * 3])
def test_of_one_or_two_songs_clips_count(songs: list[str]) -> None:
    base, count = sums(6, 0)
    assert loss_changes(base, base - 0.1 * count, count, songs) == loss_changes(base, base - 0.1 * count, count)


@pytest.mark.parametrize("clips", [1, 2])
def test_few_clips_have_no_interval(clips: int) -> None:
    base, count = sums(clips, 0)
    for one in loss_changes(base, base, count):
        assert one.change.value == 0
        assert one.change.interval is None
        assert math.isfinite(one.base.value)


def test_shapes_must_agree() -> None:
    base, count = sums(4, 0)
    for wrong in (count[:, :3], count[:0]):
        with pytest.raises(ValueError, match="sums and counts"):
            loss_changes(base[: len(wrong)], base[: len(wrong)], wrong)
