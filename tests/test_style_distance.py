"""The style distance: what it is, what its intervals hold, and what nothing can be said of."""

from __future__ import annotations

import importlib.util
import itertools
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy import stats

from musicgen_dreamboothing.evaluation.metrics.statistics import TooFewError
from musicgen_dreamboothing.evaluation.metrics.style import style_change, style_distance


def normal(rows: int, columns: int, seed: int, mean: float = 0.0) -> np.ndarray:
    return mean + np.random.default_rng(seed).standard_normal((rows, columns))


def by_hand(clips: np.ndarray, songs: np.ndarray, prompts: list[str], names: list[str]) -> float:
    """Mean over groups of means over their pairs, with loops."""

    def mean(
        first: np.ndarray, rows: list[str], second: np.ndarray, columns: list[str]
    ) -> dict[tuple[str, str], float]:
        return {
            (a, b): float(
                np.mean(
                    [
                        np.linalg.norm(first[i] - second[j])
                        for i in range(len(rows))
                        for j in range(len(columns))
                        if (rows[i], columns[j]) == (a, b)
                    ]
                )
            )
            for a, b in itertools.product(dict.fromkeys(rows), dict.fromkeys(columns))
        }

    across = np.mean(list(mean(clips, prompts, songs, names).values()))
    own, spread = (
        np.mean([value for (a, b), value in mean(one, labels, one, labels).items() if a != b])
        for one, labels in ((clips, prompts), (songs, names))
    )
    return float((2 * across - own) / spread - 1)


@pytest.mark.parametrize(("prompts", "names"), [("abcdef", "abcdefgh"), ("aabbcc", "hdadchhh"), ("cabbac", "aabbbccc")])
def test_by_hand(prompts: str, names: str) -> None:
    """In any order, of any sizes; it has no unit."""
    clips, songs = normal(6, 3, 0, mean=1), normal(8, 3, 1)
    found = style_distance(clips, songs, clip_groups=list(prompts), song_names=list(names))
    assert found == pytest.approx(by_hand(clips, songs, list(prompts), list(names)))
    scaled = style_distance(5 * clips, 5 * songs, clip_groups=list(prompts), song_names=list(names))
    assert scaled == pytest.approx(found)


@pytest.mark.parametrize("shift", [0.0, 1.0, 3.0])
def test_of_gaussians(shift: float) -> None:
    """|X - Y| of N(0, 1) and N(m, 1) is a folded normal; of N(0, 1) and itself its mean is 2/√π."""
    spread = 2 / math.sqrt(math.pi)
    apart = stats.foldnorm.mean(shift / math.sqrt(2), scale=math.sqrt(2))
    found = [style_distance(normal(8, 1, 2 * n, mean=shift), normal(10, 1, 2 * n + 1)) for n in range(300)]
    # the divisor is an estimate too: the ratio is right but for some hundredths
    assert np.mean(found) == pytest.approx(2 * apart / spread - 2, abs=0.05 + 0.08 * shift)


def test_takes_of_a_prompt_do_not_make_a_set_narrower() -> None:
    songs = normal(40, 6, 0)
    numbers = np.repeat(np.arange(40), 3)
    clips = songs[numbers] + 0.01 * normal(120, 6, 1)
    reference = normal(60, 6, 2)
    grouped = style_distance(clips, reference, clip_groups=[str(number) for number in numbers])
    assert grouped == pytest.approx(style_distance(songs, reference), abs=0.01)
    assert style_distance(clips, reference) > style_distance(songs, reference) + 0.01


def test_copies_of_the_songs_are_nearer_than_these_are_to_each_other() -> None:
    songs = normal(9, 6, 0)
    change = style_change(songs + 3, songs + 1e-3, songs)
    assert change.tuned.interval is not None
    assert change.tuned.interval[1] < 0


def test_a_change_has_the_distances_and_adds_up() -> None:
    songs, tuned = normal(24, 4, 0), normal(20, 4, 1, mean=0.3)
    base = tuned + 1.5
    prompts, names = ([str(number // each) for number in range(count)] for count, each in ((20, 4), (24, 2)))
    change = style_change(base, tuned, songs, prompts=prompts, song_names=names)
    for clips, one in ((base, change.base), (tuned, change.tuned)):
        assert one.value == pytest.approx(style_distance(clips, songs, clip_groups=prompts, song_names=names))
        assert one.interval is not None
        assert one.interval[0] < one.value < one.interval[1]
    assert change.prompts == 5
    assert change.change.value == pytest.approx(change.tuned.value - change.base.value)
    assert change.change.interval is not None
    assert change.change.interval[1] < 0
    assert change.closed is not None
    assert change.closed.value == pytest.approx(1 - change.tuned.value / change.base.value)
    assert change.closed.interval is not None
    assert change.closed.interval[0] < change.closed.value < change.closed.interval[1]


def test_a_model_that_did_not_change_went_no_way() -> None:
    songs, base = normal(12, 4, 0), normal(12, 4, 1, mean=4)
    change = style_change(base, base, songs)
    assert (change.change.value, change.change.interval) == (0, (0, 0))
    assert change.closed is not None
    assert (change.closed.value, change.closed.interval) == (0, (0, 0))


def test_no_share_is_given_of_a_distance_that_may_be_none() -> None:
    """However the share comes out: a base as near as songs are to each other has no way to go."""
    for seed in range(20):
        songs, base, tuned = (normal(9, 6, 3 * seed + number) for number in range(3))
        closed = style_change(base, tuned, songs).closed
        assert closed is None or closed.interval is not None
    assert (
        sum(
            style_change(normal(9, 6, 3 * s), normal(9, 6, 3 * s + 1), normal(9, 6, 3 * s + 2)).closed is None
            for s in range(20)
        )
        >= 18
    )


@pytest.mark.parametrize("excerpts", [2, 3, 16])
@pytest.mark.parametrize("songs", [1, 2])
def test_of_one_or_two_songs_excerpts_count(songs: int, excerpts: int) -> None:
    rows = normal(songs * excerpts, 4, 0)
    names = [str(number % songs) for number in range(len(rows))]
    change = style_change(normal(8, 4, 1, mean=5), normal(8, 4, 2), rows, prompts=list("aabbccdd"), song_names=names)
    assert (change.change.interval is None) == (len(rows) < 3)
    assert change.change.value < 0


@pytest.mark.parametrize(("clips", "songs", "wrong"), [(1, 4, "two clips"), (4, 1, "two clips"), (4, 0, "two clips")])
def test_too_few(clips: int, songs: int, wrong: str) -> None:
    with pytest.raises(TooFewError, match=wrong):
        style_distance(normal(clips, 3, 0), normal(songs, 3, 1))


@pytest.mark.parametrize("names", [None, list("aabbcc"), list("abcdef")])
def test_songs_that_are_all_the_same_have_no_unit(names: list[str] | None) -> None:
    songs = np.repeat(normal(1, 3, 0), 6, axis=0) + 1e-9 * normal(6, 3, 5)
    for measure in (
        lambda: style_distance(normal(4, 3, 1), songs, song_names=names),
        lambda: style_change(normal(4, 3, 1), normal(4, 3, 2), songs, song_names=names),
    ):
        with pytest.raises(TooFewError, match="all the same"):
            measure()


def test_a_single_song_that_differs_leaves_no_interval() -> None:
    """Without it, nothing is between the songs to divide by."""
    songs = np.repeat(normal(1, 3, 0), 4, axis=0)
    songs[3] += 1
    change = style_change(normal(5, 3, 1, mean=4), normal(5, 3, 2), songs)
    assert change.change.interval is None
    assert change.closed is None
    assert math.isfinite(change.tuned.value)


def test_base_and_tuned_clips_are_pairs() -> None:
    with pytest.raises(ValueError, match="paired"):
        style_change(normal(5, 3, 0), normal(4, 3, 1), normal(5, 3, 2))
    with pytest.raises(ValueError, match="need a name each"):
        style_change(normal(5, 3, 0), normal(5, 3, 1), normal(5, 3, 2), prompts=list("abc"))


def coverage() -> ModuleType:
    path = Path(__file__).parent.parent / "benchmarks" / "coverage.py"
    spec = importlib.util.spec_from_file_location("coverage_of_intervals", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("songs", "prompts", "takes", "effect"),
    [
        pytest.param(1, 6, 4, "far, learned", marks=pytest.mark.slow),
        (2, 3, 1, "far, no change"),
        (3, 5, 4, "near, learned"),
        pytest.param(5, 4, 1, "far, learned", marks=pytest.mark.slow),
        (9, 6, 4, "near, learned"),
        pytest.param(20, 5, 4, "no distance", marks=pytest.mark.slow),
    ],
)
def test_intervals_hold_the_truth_as_often_as_they_say(songs: int, prompts: int, takes: int, effect: str) -> None:
    """Of 150 simulated evaluations 0.95 +- 0.018 (one deviation) should."""
    shares = coverage().simulate(songs, prompts, takes, effect, 150)
    for name in ("base", "tuned", "change"):
        assert shares[name] >= 0.9, name
    assert math.isnan(shares["closed"]) or shares["shown"] < 0.5 or shares["closed"] >= 0.9
