"""The numbers of the evaluation, against closed forms, other implementations and brute force."""

from __future__ import annotations

import doctest
import itertools
import math
from collections.abc import Callable
from importlib.resources import files

import mir_eval.key
import numpy as np
import pytest
import torch
from made_music import music
from scipy import special, stats

from musicgen_dreamboothing.analysis.key import TONICS
from musicgen_dreamboothing.data.captions.templates import ClipFacts, captions
from musicgen_dreamboothing.evaluation.metrics import adherence as adherence_module
from musicgen_dreamboothing.evaluation.metrics.adherence import (
    CHANCE,
    CHROMA,
    KEY,
    TEMPO,
    TEMPO_LEVEL,
    Adherence,
    Asked,
    KeyAdherence,
    TempoAdherence,
    adherence,
    asked_of,
    compare,
    key_adherence,
    key_score,
    scale_share,
    tempo_adherence,
    tempo_multiple,
)
from musicgen_dreamboothing.evaluation.metrics.distances import (
    Change,
    gap_closed,
    kernel_change,
    kernel_distance,
    style_change,
    style_distance,
    style_gap,
)
from musicgen_dreamboothing.evaluation.metrics.losses import cross_entropy, cross_entropy_change, perplexity
from musicgen_dreamboothing.evaluation.metrics.prompts import (
    mean_tag_divergence,
    tag_divergence,
    text_audio_score,
    without_key_phrase,
)
from musicgen_dreamboothing.evaluation.metrics.statistics import (
    binomial_interval,
    bootstrap,
    estimate,
    paired_difference,
    resampled,
)
from musicgen_dreamboothing.evaluation.metrics.variety import diversity, drift, is_collapsed
from musicgen_dreamboothing.training.trainer import codebook_metrics

RATE = 16_000


def normal(number: int, dimensions: int, seed: int, mean: float = 0.0) -> np.ndarray:
    """`[N, D]`, the mean of the first coordinate moved."""
    rows = np.random.default_rng(seed).standard_normal((number, dimensions))
    rows[:, 0] += mean
    return rows


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


# Statistics


def test_the_interval_of_a_mean_is_that_of_theory() -> None:
    values = np.random.default_rng(0).normal(3, 1, 400)
    low, high = bootstrap(np.mean, values, seed=0)
    assert (low, high) == pytest.approx(stats.norm.interval(0.95, values.mean(), values.std() / 20), abs=0.01)
    assert bootstrap(np.mean, values, seed=0) == (low, high)
    assert bootstrap(np.mean, values, seed=1) != (low, high)
    narrow = bootstrap(np.mean, values, seed=0, level=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    found = [bootstrap(np.mean, rng.exponential(2.0, 40), seed=n, level=0.9, draws=200) for n in range(100)]
    assert 0.82 <= np.mean([low < 2 < high for low, high in found]) <= 0.96


def test_samples_are_drawn_independently() -> None:
    a, b = normal(200, 1, 0)[:, 0], normal(100, 1, 1, mean=1)[:, 0]
    low, high = bootstrap(lambda a, b: b.mean() - a.mean(), a, b, seed=0)
    assert low < b.mean() - a.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(1 / 200 + 1 / 100), rel=0.15)


def test_rows_of_a_group_are_drawn_together() -> None:
    songs = np.random.default_rng(0).normal(0, 1, 12)
    clips, names = np.repeat(songs, 10), np.repeat(np.arange(12), 10)
    grouped = bootstrap(np.mean, clips, seed=0, groups=(names,))
    assert grouped == pytest.approx(bootstrap(np.mean, songs, seed=0))
    low, high = bootstrap(np.mean, clips, seed=0)
    assert grouped[1] - grouped[0] == pytest.approx(math.sqrt(10) * (high - low), rel=0.1)


def test_groups_may_be_of_any_size_and_order() -> None:
    values, names = np.array([1.0, 5.0, 1.0, 1.0, 5.0]), ["a", "b", "a", "a", "b"]
    drawn = resampled(lambda rows: (len(rows), rows.mean()), values, seed=0, groups=(names,), draws=200)
    assert {tuple(row) for row in drawn} == {(6, 1), (4, 5), (5, 2.6)}


@pytest.mark.parametrize(("values", "names"), [([3.0], None), ([3.0, 4.0], ["one", "one"])])
def test_nothing_is_known_from_one_row_or_group(values: list[float], names: list[str] | None) -> None:
    found = estimate(np.mean, values, seed=0, groups=(names,))
    assert found.value == np.mean(values)
    assert found.interval is None


def test_draws_without_a_figure_are_left_out() -> None:
    def inverse(rows: np.ndarray) -> float:
        return 1 / rows.sum() if rows.any() else math.nan

    low, high = bootstrap(inverse, [1.0, 0.0, 1.0], seed=0)
    assert (low, high) == (1 / 3, 1)
    assert bootstrap(lambda rows: math.nan, [1.0, 2.0], seed=0) is None


@pytest.mark.parametrize(("rows", "groups"), [([], ()), ([1, 2], (["a"],)), ([1, 2], (None, None))])
def test_samples_must_make_sense(rows: list[float], groups: tuple[object, ...]) -> None:
    with pytest.raises(ValueError, match=r"without rows|label for each|argument"):
        bootstrap(np.mean, rows, seed=0, groups=groups)


def test_pairs_tell_more_than_means() -> None:
    rng = np.random.default_rng(0)
    before = rng.normal(0, 5, 40)
    after = before + rng.normal(0.5, 0.5, 40)
    found = paired_difference(before, after, seed=0)
    assert found.value == pytest.approx((after - before).mean())
    assert 0 < found.interval[0] < found.value < found.interval[1] < 1
    low, high = bootstrap(lambda a, b: b.mean() - a.mean(), before, after, seed=0)
    assert low < 0 < high
    with pytest.raises(ValueError, match="pairs"):
        paired_difference(before, after[1:], seed=0)


def test_wilsons_interval_of_a_share() -> None:
    assert binomial_interval(8, 10) == pytest.approx((0.490, 0.943), abs=1e-3)
    assert binomial_interval(0, 10) == pytest.approx((0.0, 0.278), abs=1e-3)
    assert binomial_interval(0, 0) == (0, 1)
    for successes, trials in ((3, 2), (-1, 4)):
        with pytest.raises(ValueError, match="must"):
            binomial_interval(successes, trials)


# Distances of sets


def brute_kernel(a: np.ndarray, b: np.ndarray) -> float:
    apart = [float(np.linalg.norm(x - y)) for x, y in itertools.combinations(a, 2)]
    sigma = np.median(apart)
    k = lambda x, y: math.exp(-(np.linalg.norm(x - y) ** 2) / (2 * sigma**2))  # noqa: E731
    within = [np.mean([k(x, y) for x, y in itertools.permutations(rows, 2)]) for rows in (a, b)]
    return 100 * (sum(within) - 2 * np.mean([k(x, y) for x in a for y in b]))


def test_kernel_distance_by_hand() -> None:
    a, b = normal(9, 5, 0), normal(7, 5, 1, mean=1.5) + 100
    assert kernel_distance(a, b) == pytest.approx(brute_kernel(a, b))
    assert kernel_distance(a + 40, b + 40) == pytest.approx(kernel_distance(a, b))
    assert kernel_distance(3 * a, 3 * b) == pytest.approx(
        kernel_distance(a, b)
    )  # the bandwidth goes with the reference


@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_kernel_distance_of_gaussians_is_right_for_few_clips(shift: float) -> None:
    """The mean of the kernel over N(0, I) and N(m, I) is (σ²/(σ²+2))^(P/2) exp(-m²/(2(σ²+2)))."""
    sigma, dimensions = 2.0, 4
    alike = (sigma**2 / (sigma**2 + 2)) ** (dimensions / 2)
    truth = 100 * 2 * alike * (1 - math.exp(-(shift**2) / (2 * (sigma**2 + 2))))
    found = [kernel_distance(normal(8, 4, 2 * n), normal(6, 4, 2 * n + 1, shift), sigma) for n in range(400)]
    assert np.mean(found) == pytest.approx(truth, abs=4 * np.std(found) / 20)
    assert np.std(found) / 20 < 0.8


def test_kernel_distance_needs_clips_that_differ() -> None:
    with pytest.raises(ValueError, match="two clips"):
        kernel_distance(normal(5, 2, 0), normal(1, 2, 1))
    with pytest.raises(ValueError, match="all the same"):
        kernel_distance(np.ones((3, 2)), normal(5, 2, 0))


# Style


def brute_style(clips: np.ndarray, reference: np.ndarray, names: list[str]) -> float:
    d = lambda x, y: float(np.linalg.norm(x - y))  # noqa: E731
    apart = np.mean([d(x, y) for x in clips for y in reference])
    own = np.mean([d(x, y) for x, y in itertools.combinations(clips, 2)])
    named = list(zip(reference, names, strict=True))
    spread = np.mean([d(x, y) for (x, a), (y, b) in itertools.combinations(named, 2) if a != b])
    return (2 * apart - own) / spread - 1


@pytest.mark.parametrize("names", [list("abcdefgh"), list("aabbbcdd")])
def test_style_distance_by_hand(names: list[str]) -> None:
    clips, reference = normal(6, 3, 0, mean=1), normal(8, 3, 1)
    found = style_distance(clips, reference, reference_songs=names)
    assert found == pytest.approx(brute_style(clips, reference, names))
    assert style_distance(5 * clips, 5 * reference, reference_songs=names) == pytest.approx(found)


@pytest.mark.parametrize("shift", [0.0, 1.0, 3.0])
def test_style_distance_of_gaussians(shift: float) -> None:
    """|X - Y| of N(0, 1) and N(m, 1) is a folded normal; of N(0, 1) and itself its mean is 2/√π."""
    spread = 2 / math.sqrt(math.pi)
    apart = stats.foldnorm.mean(shift / math.sqrt(2), scale=math.sqrt(2))
    found = [style_distance(normal(8, 1, 2 * n, mean=shift), normal(10, 1, 2 * n + 1)) for n in range(300)]
    # the divisor is an estimate too: the ratio is right but for some hundredths
    assert np.mean(found) == pytest.approx(2 * apart / spread - 2, abs=0.05 + 0.08 * shift)


def test_style_distance_sees_progress_from_far_away_where_a_kernel_does_not() -> None:
    songs = normal(30, 4, 0)
    far, nearer = normal(30, 4, 1, mean=40) * [1, 3, 3, 3], normal(30, 4, 2, mean=20)
    assert style_distance(nearer, songs) < 0.6 * style_distance(far, songs)
    assert kernel_distance(songs, nearer) > kernel_distance(songs, far)


def test_clips_of_one_song_do_not_make_a_set_narrower() -> None:
    songs = normal(40, 6, 0)
    names = np.repeat(np.arange(40), 3)
    clips = songs[names] + 0.01 * normal(120, 6, 1)
    reference = normal(60, 6, 2)
    assert style_distance(clips, reference, clip_songs=names) == pytest.approx(
        style_distance(songs, reference), abs=0.01
    )
    assert style_distance(clips, reference) > style_distance(songs, reference) + 0.01


def test_changes_have_the_distances_and_their_intervals() -> None:
    songs, tuned = normal(24, 4, 0), normal(20, 4, 1, mean=0.3)
    base = tuned + 1.5
    prompts, names = np.repeat(np.arange(5), 4), np.repeat(np.arange(12), 2)
    style = style_change(base, tuned, songs, 0, prompts=prompts, reference_songs=names)
    kernel = kernel_change(base, tuned, songs, 0, prompts=prompts, reference_songs=names)
    for clips, side in ((base, "base"), (tuned, "tuned")):
        expected = style_distance(clips, songs, clip_songs=prompts, reference_songs=names)
        assert getattr(style, side).value == pytest.approx(expected)
        assert getattr(kernel, side).value == pytest.approx(kernel_distance(songs, clips))
    for found in (style, kernel):
        assert found.change is not None
        assert found.change[1] < 0  # nearer, surely
        for one in (found.base, found.tuned):
            assert one.interval is not None
            assert one.interval[0] < one.value < one.interval[1]
    same = style_change(base, base, songs, 0)
    assert same.change == (0, 0)
    assert style_change(base, tuned, songs, 3) == style_change(base, tuned, songs, 3)


@pytest.mark.parametrize("change", [style_change, kernel_change])
def test_intervals_of_a_distance_hold_what_it_is(change: Callable[..., Change]) -> None:
    """Over many samples, nearly as often as they should: the truth is the mean over all of them."""
    found = [
        change(normal(20, 2, 3 * n, 1.0), normal(20, 2, 3 * n + 1), normal(20, 2, 3 * n + 2), 0) for n in range(20)
    ]
    truth = np.mean([one.base.value for one in found])
    held = [one.base.interval is not None and one.base.interval[0] <= truth <= one.base.interval[1] for one in found]
    assert np.mean(held) >= 0.8


def test_style_distance_needs_two_songs() -> None:
    rows = normal(4, 2, 0)
    for arguments in ((rows[:1], rows, None), (rows, rows[:1], None), (rows, rows, ["one"] * 4), (rows, rows, ["a"])):
        with pytest.raises(ValueError, match="two songs"):
            style_distance(arguments[0], arguments[1], reference_songs=arguments[2])


@pytest.mark.parametrize(("tuned", "closed"), [(5.0, 0), (1.0, 1), (3.0, 0.5), (7.0, -0.5), (0.0, 1.25)])
def test_share_of_the_gap(tuned: float, closed: float) -> None:
    assert gap_closed(5.0, tuned, 1.0) == pytest.approx(closed)


def test_no_gap_can_be_closed_where_there_is_none() -> None:
    assert gap_closed(1.0, 0.5, 1.0) is None
    songs = normal(20, 3, 0)
    assert style_gap(songs, songs, songs + 9, songs, seed=0).closed is None


def style_sets(seed: int, tuned: float) -> dict[str, np.ndarray]:
    means = {"base": 8.0, "tuned": tuned, "goal": 0.0, "reference": 0.0}
    return {name: normal(24, 4, 10 * seed + n, mean=mean) for n, (name, mean) in enumerate(means.items())}


def test_style_gap_adds_up() -> None:
    sets = style_sets(0, tuned=2.0)
    found = style_gap(**sets, seed=0)
    for name in ("base", "tuned", "goal"):
        one = getattr(found, name)
        assert one.value == pytest.approx(style_distance(sets[name], sets["reference"]))
        assert one.interval[0] < one.value < one.interval[1]
    assert found.closed.value == gap_closed(found.base.value, found.tuned.value, found.goal.value)
    assert found.closed.interval[0] < found.closed.value < found.closed.interval[1]
    assert 0.6 < found.closed.value < 1
    assert found.change[0] < found.tuned.value - found.base.value < found.change[1] < 0
    assert style_gap(**sets, seed=0) == found


def test_a_model_that_did_not_change_closed_nothing() -> None:
    sets = style_sets(0, tuned=0.0)
    found = style_gap(**(sets | {"tuned": sets["base"]}), seed=0)
    assert found.change == (0, 0)
    assert (found.closed.value, found.closed.interval) == (0, (0, 0))


def test_a_model_that_plays_the_style_closed_the_gap() -> None:
    """Clips that are drawn twice must not make sets seem narrower, and the songs out of reach."""
    found = [style_gap(**style_sets(seed, tuned=0.0), seed=0) for seed in range(6)]
    assert np.mean([one.closed.value for one in found]) == pytest.approx(1, abs=0.02)
    assert sum(one.closed.interval[0] < 1 < one.closed.interval[1] for one in found) >= 4
    assert sum(one.goal.interval[0] < 0 < one.goal.interval[1] for one in found) >= 4


def test_songs_are_drawn_as_a_whole() -> None:
    sets = style_sets(0, tuned=2.0)
    names = np.repeat(np.arange(24), 4)
    sets["goal"] = sets["goal"][names] + 1e-3 * normal(96, 4, 99)
    loose, whole = style_gap(**sets, seed=0), style_gap(**sets, seed=0, goal_songs=names)
    assert np.diff(whole.goal.interval) > 1.3 * np.diff(loose.goal.interval)
    alike = sets | {name: sets[name][names] + 1e-3 * normal(96, 4, 98) for name in ("base", "tuned")}
    one, many = style_gap(**sets, seed=0), style_gap(**alike, seed=0, prompts=names)
    assert many.tuned.value == pytest.approx(one.tuned.value, abs=0.01)
    assert many.tuned.interval == pytest.approx(one.tuned.interval, abs=0.02)


def test_base_and_tuned_clips_are_pairs() -> None:
    sets = style_sets(0, tuned=2.0)
    with pytest.raises(ValueError, match="paired"):
        style_gap(**(sets | {"tuned": sets["tuned"][1:]}), seed=0)


# Words


def test_tag_divergence_is_relative_entropy() -> None:
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(5), 6), rng.dirichlet(np.ones(5), 6)
    assert tag_divergence(p, q) == pytest.approx(special.rel_entr(p, q).sum(axis=1), rel=1e-3)
    assert tag_divergence(p, p) == pytest.approx(np.zeros(6), abs=1e-4)


def test_tag_divergence_of_certainties() -> None:
    sure, other, half = np.eye(2)[:1], np.eye(2)[1:], np.full((1, 2), 0.5)
    assert tag_divergence(sure, half) == pytest.approx([math.log(2)], abs=1e-5)
    assert tag_divergence(sure, other) == pytest.approx([math.log(1e6)])  # audiocraft's floor
    audiocraft = torch.nn.functional.kl_div((torch.tensor(half) + 1e-6).log(), torch.tensor(sure), reduction="none")
    assert tag_divergence(sure, half) == pytest.approx(audiocraft.sum(-1).numpy())


@pytest.mark.parametrize("q", [np.ones((2, 2)) / 2, np.ones((1, 3)), np.array([[1.5, -0.5, 0.0]])])
def test_tags_must_be_distributions(q: np.ndarray) -> None:
    with pytest.raises(ValueError, match="tags"):
        tag_divergence(np.ones((1, 3)) / 3, q)


def tags(rng: np.random.Generator, prompts: int, sharpness: float = 1.0) -> np.ndarray:
    """`[4 P, 6]`, probabilities; takes of a prompt are alike."""
    logits = rng.standard_normal((prompts, 1, 6)) + 0.5 * rng.standard_normal((prompts, 4, 6))
    return special.softmax(sharpness * (logits + np.arange(6) / 3), axis=-1).reshape(-1, 6)


def test_few_clips_of_the_songs_do_not_differ_from_the_songs() -> None:
    """The divergence of means of few clips is above 0 by itself; the jackknife takes most of that away."""
    songs, prompts = tags(np.random.default_rng(0), 2000), np.repeat(np.arange(5), 4)
    plain, corrected = [], []
    for seed in range(1, 200):
        clips = tags(np.random.default_rng(seed), 5)
        plain.append(tag_divergence(songs.mean(axis=0)[None], clips.mean(axis=0)[None])[0])
        corrected.append(mean_tag_divergence(songs, clips, clips, prompts).base.value)
    assert np.mean(plain) > 0.04
    assert abs(np.mean(corrected)) < np.mean(plain) / 4


def test_the_change_of_the_divergence_is_tested_by_prompts() -> None:
    songs, prompts = tags(np.random.default_rng(0), 2000), np.repeat(np.arange(5), 4)
    truth = mean_tag_divergence(
        songs, *(tags(np.random.default_rng(1), 20_000, s) for s in (1.0, 0.5)), np.arange(80_000) // 8000
    )
    hits = 0
    for seed in range(200):
        before, after = (tags(np.random.default_rng(seed + 2), 5, sharpness) for sharpness in (1.0, 0.5))
        found = mean_tag_divergence(songs, before, after, prompts)
        assert found.change.value == pytest.approx(found.tuned.value - found.base.value)
        hits += found.change.interval[0] <= truth.change.value <= found.change.interval[1]
    assert hits >= 180
    same = mean_tag_divergence(songs, before, before, prompts)
    assert same.change.value == 0
    assert mean_tag_divergence(songs, before, after, np.zeros(20)).change.interval is None
    with pytest.raises(ValueError, match="pairs"):
        mean_tag_divergence(songs, before, after[1:], prompts)


@pytest.mark.parametrize(
    ("prompt", "phrase", "rest"),
    [
        ("zxpunk", "zxpunk", ""),
        ("zxpunk, slow and quiet, 80 bpm in a minor", "zxpunk", "slow and quiet, 80 bpm in a minor"),
        ("Zxpunk rock at 188 bpm", "zxpunk rock", "at 188 bpm"),
        ("a song, zxpunk, loud", "zxpunk", "a song, loud"),
        ("punkish, loud", "punk", "punkish, loud"),
        ("C++ (live), loud", "C++ (live)", "loud"),
        ("a calm piano", "", "a calm piano"),
    ],
)
def test_a_prompt_without_the_key_phrase(prompt: str, phrase: str, rest: str) -> None:
    assert without_key_phrase(prompt, phrase) == rest


def test_text_audio_score_is_the_cosine() -> None:
    sounds, texts = np.array([[1.0, 0], [0, 2], [3, 0]]), np.array([[5.0, 0], [1, 0], [-1, 0]])
    assert text_audio_score(sounds, texts) == pytest.approx([1, 0, -1])
    with pytest.raises(ValueError, match="text"):
        text_audio_score(sounds, texts[:2])


# Variety


def test_diversity_of_unit_vectors_is_that_of_cosines() -> None:
    rows = unit(normal(9, 5, 0))
    cosines = [x @ y for x, y in itertools.combinations(rows, 2)]
    assert diversity(rows) == pytest.approx(1 - np.mean(cosines))
    assert diversity(np.repeat(rows[:1], 4, axis=0)) == pytest.approx(0)


def test_diversity_has_no_origin_and_takes_two_clips() -> None:
    rows = 3 * normal(9, 5, 0)
    assert diversity(rows + 50) == pytest.approx(diversity(rows))
    assert diversity(2 * rows) == pytest.approx(4 * diversity(rows))
    with pytest.raises(ValueError, match="two clips"):
        diversity(rows[:1])


def test_collapse_is_measured_by_the_songs() -> None:
    songs, clips = normal(20, 6, 0), normal(12, 6, 1)
    assert not is_collapsed(clips, songs)
    assert not is_collapsed(0.35 * clips + 7, songs)
    assert is_collapsed(0.28 * clips + 7, songs)
    names = np.repeat(np.arange(20), 2)
    assert not is_collapsed(0.35 * clips, songs[names] + 0.01, names)
    with pytest.raises(ValueError, match="two songs"):
        is_collapsed(clips, songs[:1])


def neutral(seed: int, prompts: int = 6, seeds: int = 5) -> np.ndarray:
    """`[P, S, D]`: prompts lie far apart, seeds around them."""
    rng = np.random.default_rng(seed)
    return 5 * rng.standard_normal((prompts, 1, 8)) + rng.standard_normal((prompts, seeds, 8))


def test_nothing_drifts_where_nothing_changed() -> None:
    before = neutral(0)
    assert drift(before, before.copy(), seed=0).value == pytest.approx(1)


def test_drift_by_hand() -> None:
    """Every clip is moved by 4, which adds 4²/2 to each distance across seeds."""
    before = neutral(0, seeds=6)
    after = before.copy()
    after[..., 0] += 4
    found = drift(before, after, seed=0)
    spread = np.mean([diversity(rows) for rows in before])
    assert found.value == pytest.approx(1 + 8 / spread)
    assert found.interval[0] < found.value < found.interval[1]
    assert drift(2 * before, 2 * after, seed=0).value == pytest.approx(found.value)


def test_drift_of_one_prompt_has_no_interval() -> None:
    before = neutral(0)
    assert drift(before[:1], before[1:2], seed=0).interval is None


@pytest.mark.parametrize("shapes", [((3, 1, 4), (3, 1, 4)), ((3, 2, 4), (3, 3, 4)), ((6, 4), (6, 4))])
def test_drift_needs_pairs_and_seeds(shapes: tuple[tuple[int, ...], ...]) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="drift needs"):
        drift(*(rng.standard_normal(shape) for shape in shapes), seed=0)
    with pytest.raises(ValueError, match="can't be measured"):
        drift(np.ones((3, 2, 4)), np.zeros((3, 2, 4)), seed=0)


# Adherence


@pytest.mark.parametrize(
    ("prompt", "bpm", "key"),
    [
        ("punk at 188 bpm in e minor with overdriven guitar", 188, "E minor"),
        ("120 BPM", 120, None),
        ("a slow blues in C# minor", None, "C# minor"),
        ("F major", None, "F major"),
        ("genre: rock. bpm: 118. key: Bb major", 118, "A# major"),
        ("tempo: 92.5, key: c♯ minor", 92.5, "C# minor"),
        ("house at a tempo of about 124, in the key of a minor", 124, "A minor"),
        ("118 beats per minute, E-flat major", 118, "D# major"),
        ("a 99bpm waltz in g sharp min", 99, "G# minor"),
        ("118,5 bpm, A minor, guitar and bass", 118.5, "A minor"),
        ("folk in a minor, 75 bpm", 75, "A minor"),
        ("ballad at 75 bpm in a minor with piano", 75, "A minor"),
        ("tempo 118 bpm, in Cb major", 118, "B major"),
        ("in A minor key", None, "A minor"),
        ("bb minor", None, "A# minor"),
        ("a minor hit", None, None),
        ("A major label debut in a minor key", None, None),
        ("a 12-bar blues with 2 guitars, mid tempo 80s pop", None, None),
        ("from 90 bpm to 140 bpm, first C major, then C minor", None, None),
        ("C major, C major at 100 bpm, 100 bpm", 100, "C major"),
        ("120-130 bpm", None, None),
        ("1188 bpm", None, None),
        ("", None, None),
    ],
)
def test_what_a_prompt_asks_for(prompt: str, bpm: float | None, key: str | None) -> None:
    assert asked_of(prompt) == Asked(bpm, key)


def test_examples_in_the_docstrings() -> None:
    assert doctest.testmod(adherence_module).attempted > 0
    assert doctest.testmod(adherence_module).failed == 0


@pytest.mark.parametrize("key", [f"{tonic} {mode}" for tonic in TONICS for mode in ("major", "minor")])
def test_captions_that_are_written_here_are_understood(key: str) -> None:
    detected = ClipFacts(
        tempo=118, key=key, genres=["punk rock"], instruments=["guitar", "bass"], moods=["dark"], vocals=True
    )
    written = captions(detected, instance_prompt="my band", own=None, seed=0, variants=24)
    assert len(written) == 24
    requested = [asked_of(caption) for caption in written]
    assert {one.bpm for one in requested} <= {118, None}
    assert {one.key for one in requested} <= {key, None}
    for caption, one in zip(written, requested, strict=True):
        assert (one.bpm is None) == ("118" not in caption)
        assert (one.key is None) == (key not in caption)


def test_captions_of_the_built_in_songs_are_understood() -> None:
    folder = files("musicgen_dreamboothing.assets") / "songs"
    texts = [path.read_text() for path in folder.iterdir() if path.name.endswith(".txt")]
    assert len(texts) >= 20
    for text in texts:
        requested = asked_of(text)
        assert requested.bpm in (150, 167, 188)
        assert (requested.key is None) == (not (" major" in text or " minor" in text))


@pytest.mark.parametrize(
    ("detected", "multiple"),
    [(120, 1), (124, 1), (60, 0.5), (240, 2), (40, 1 / 3), (360, 3), (126, None), (80, None), (180, None)],
)
def test_multiples_of_a_tempo(detected: float, multiple: float | None) -> None:
    assert tempo_multiple(detected, 120) == multiple


def test_tempo_adherence_hears_the_clip() -> None:
    wave = music(12.0, RATE, seed=3, bpm=120.0)
    right, half, wrong = (tempo_adherence(requested, wave, RATE) for requested in (120.0, 240.0, 97.0))
    assert right.detected == pytest.approx(120, rel=0.02)
    assert right.multiple == 1
    assert half.multiple == 0.5
    assert wrong.multiple is None
    silence = tempo_adherence(120.0, np.zeros((1, 12 * RATE), np.float32), RATE)
    assert (silence.detected, silence.multiple, silence.is_long_enough) == (None, None, True)
    assert not tempo_adherence(120.0, wave[:, : 4 * RATE], RATE).is_long_enough


@pytest.mark.parametrize(
    ("detected", "scores", "note"),
    [
        (120, {TEMPO: 1, TEMPO_LEVEL: 0}, "requested 120, detected 120"),
        (60, {TEMPO: 0, TEMPO_LEVEL: 1}, "requested 120, detected 60 (half the requested tempo)"),
        (243, {TEMPO: 0, TEMPO_LEVEL: 1}, "requested 120, detected 243 (double the requested tempo)"),
        (97, {TEMPO: 0, TEMPO_LEVEL: 0}, "requested 120, detected 97"),
    ],
)
def test_another_metrical_level_is_neither_right_nor_wrong(
    detected: float, scores: dict[str, float], note: str
) -> None:
    found = TempoAdherence(120, detected, tempo_multiple(detected, 120))
    assert found.scores == scores
    assert found.note == note


def clip(tempo: float | None, is_long_enough: bool = True) -> Adherence:
    """A clip of a prompt that asks for 120 bpm."""
    multiple = None if tempo is None else tempo_multiple(tempo, 120)
    return Adherence(TempoAdherence(120, tempo, multiple, is_long_enough), None)


def test_what_cannot_be_measured_is_not_wrong() -> None:
    """The same music at 12 s has its tempo and key; at 4 s and 2 s there is no score, for there is no measurement."""
    wave = music(12.0, RATE, seed=3, bpm=120.0)
    long, short, shortest = (
        [adherence("120 bpm in c major", wave[:, : seconds * RATE], RATE)] * 8 for seconds in (12, 4, 2)
    )
    assert compare(TEMPO, long, long).base == [1] * 8
    for clips, score in ((short, TEMPO), (short, TEMPO_LEVEL), (shortest, KEY), (shortest, CHROMA)):
        found = compare(score, clips, clips)
        assert (found.rows, found.base, found.tuned) == ([], [], [])
        assert found.reason == f"it takes clips of {3 if score in (KEY, CHROMA) else 5} s"
    assert len(compare(KEY, short, short).rows) == 8
    assert short[0].notes["tempo"] == "requested 120, detected none (too short)"


def test_a_pulse_that_one_model_lost_counts_and_is_told() -> None:
    base = [clip(120), clip(120), clip(None), clip(None), clip(60), clip(120, False), Adherence(None, None)]
    tuned = [clip(120), clip(None), clip(120), clip(None), clip(90), clip(120), Adherence(None, None)]
    found = compare(TEMPO, base, tuned)
    assert found.rows == [0, 1, 2, 4]
    assert found.base == [1, 1, 0, 0]
    assert found.tuned == [1, 0, 1, 0]
    assert (found.requested, found.long_enough, found.base_missing, found.tuned_missing) == (6, 5, 2, 2)
    assert found.reason == ""
    assert found.note == (
        "4 of 6 clips could be measured. No pulse was found in 2 of 5 clips of the base model and in 2 of the "
        "fine-tuned one."
    )
    assert compare(TEMPO_LEVEL, base, tuned).base == [0, 0, 0, 1]


def test_why_nothing_can_be_compared() -> None:
    assert compare(TEMPO, [Adherence(None, None)], [Adherence(None, None)]).reason == "no prompt asks for one"
    assert compare(TEMPO, [clip(None)] * 3, [clip(None)] * 3).reason == "no pulse was found in any of 3 clips"
    key = Adherence(None, KeyAdherence("C major", None, 0.0, 7 / 12))
    assert compare(KEY, [key], [key]).reason == "no key was found in any of 1 clips"


def test_scores_by_chance() -> None:
    """Of tempi that are spread evenly over octaves from 60 to 190 bpm, and of all keys."""
    tempi = np.geomspace(60, 190, 20_001)
    assert np.mean(np.abs(tempi / 110 - 1) <= 0.04) == pytest.approx(CHANCE[TEMPO], abs=0.001)
    keys = [f"{tonic} {mode}" for tonic in TONICS for mode in ("major", "minor")]
    assert np.mean([key_score(key, "D minor") for key in keys]) == pytest.approx(CHANCE[KEY])
    classes = np.random.default_rng(0).random(12)
    shares = [scale_share(np.roll(classes, shift), "D minor") for shift in range(12)]
    assert np.mean(shares) == pytest.approx(CHANCE[CHROMA])


def test_key_scores_are_those_of_mir_eval() -> None:
    """It accepts a fifth upwards only; MIREX's evaluation, and ours, also one downwards."""
    keys = [f"{tonic} {mode}" for tonic in TONICS for mode in ("major", "minor")]
    score = mir_eval.key.weighted_score
    for requested in keys:
        for key in keys:
            assert key_score(key, requested) == max(score(requested, key), score(key, requested)), (key, requested)


def notes(pitches: list[tuple[int, ...]], partials: int = 4, seconds: float = 0.5) -> np.ndarray:
    """`[1, S]`: chords of MIDI pitches, one after the other, each tone with overtones."""
    time = np.arange(int(seconds * RATE)) / RATE
    hertz = [[440 * 2 ** ((pitch - 69) / 12) for pitch in chord] for chord in pitches]
    sounds = [
        sum(np.sin(2 * np.pi * n * tone * time) / n**1.5 for tone in chord for n in range(1, partials + 1))
        for chord in hertz
    ]
    return (0.1 * np.concatenate(sounds))[None].astype(np.float32)


CADENCE = [(48, 64, 67), (53, 65, 69), (55, 62, 71), (48, 60, 64)]


@pytest.mark.parametrize("steps", [0, 5, 9])
def test_key_adherence_hears_the_clip(steps: int) -> None:
    wave = notes([tuple(pitch + steps for pitch in chord) for chord in CADENCE * 4])
    found = key_adherence(f"{TONICS[steps]} major", wave, RATE)
    assert found.detected == f"{TONICS[steps]} major"
    assert found.score == 1
    assert key_adherence(f"{TONICS[(steps + 5) % 12]} major", wave, RATE).score == 0.5
    silence = key_adherence("C major", np.zeros_like(wave), RATE)
    assert (silence.detected, silence.score) == (None, 0)
    assert silence.in_scale == pytest.approx(7 / 12)


def test_notes_of_a_key() -> None:
    scale = np.isin(np.arange(12), [0, 2, 4, 5, 7, 9, 11]).astype(float)
    assert scale_share(scale, "C major") == pytest.approx(1)
    assert scale_share(scale, "A minor") == pytest.approx(1)
    assert scale_share(scale, "G major") == pytest.approx(6 / 7)
    assert scale_share(scale, "F# major") == pytest.approx(2 / 7)


@pytest.mark.parametrize("steps", [0, 7])
def test_chroma_adherence_hears_the_notes(steps: int) -> None:
    """The subdominant is another key, but of its notes only one is foreign; those a tritone away share two."""
    tonic, subdominant, tritone = (f"{TONICS[(steps + shift) % 12]} major" for shift in (0, 5, 6))
    wave = notes([tuple(pitch + steps for pitch in chord) for chord in CADENCE * 4])
    shares = [key_adherence(key, wave, RATE).in_scale for key in (tonic, subdominant, tritone)]
    assert shares[0] > 0.9
    assert shares[0] > shares[1] > 0.7
    assert shares[2] < 0.4


def test_what_a_page_says_of_a_clip() -> None:
    wave = notes(CADENCE * 4)
    assert adherence("some music", wave, RATE).notes == {}
    found = adherence("loud, 188 bpm in c major", wave, RATE)
    assert found.notes.keys() == {"tempo", "key"}
    assert found.notes["tempo"].startswith("requested 188, detected ")
    assert found.notes["key"].startswith("requested C major, detected C major; ")


# Cross-entropy


def sums(clips: int, seed: int, level: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Sums and counts `[N, K]` of four codebooks, the later ones harder."""
    rng = np.random.default_rng(seed)
    count = rng.integers(200, 400, (clips, 1)) - np.arange(4)
    return count * (level + np.arange(4) + 0.2 * rng.standard_normal((clips, 1))), count


def test_cross_entropy_is_the_trainers() -> None:
    nll, count = sums(12, 0)
    expected = codebook_metrics(torch.tensor(nll.sum(0)), torch.tensor(count.sum(0)))
    found = cross_entropy(nll, count, seed=0)
    assert found.mean.value == pytest.approx(expected["loss"])
    assert perplexity(found.mean).value == pytest.approx(expected["ppl"])
    for number, one in enumerate(found.codebooks, start=1):
        assert one.value == pytest.approx(expected[f"ce_q{number}"])
        assert perplexity(one).value == pytest.approx(expected[f"ppl_q{number}"])
        assert one.interval[0] < one.value < one.interval[1]
        assert perplexity(one).interval == pytest.approx(np.exp(one.interval))
    assert cross_entropy(nll, count, seed=0) == found


def test_a_small_gain_on_each_clip_is_seen() -> None:
    base, count = sums(12, 0)
    tuned = base - count * 0.05
    before, after = cross_entropy(base, count, seed=0), cross_entropy(tuned, count, seed=0)
    assert after.mean.interval[1] > before.mean.interval[0]  # they overlap
    change = cross_entropy_change(base, tuned, count, seed=0)
    assert len(change.codebooks) == 4
    assert change.mean.value == pytest.approx(after.mean.value - before.mean.value)
    for one in (*change.codebooks, change.mean):
        assert (one.value, *one.interval) == pytest.approx((-0.05, -0.05, -0.05))
    assert perplexity(change.mean).value == pytest.approx(math.exp(-0.05))


def test_songs_count_rather_than_clips() -> None:
    nll, count = sums(6, 0)
    names = np.repeat(np.arange(6), 8)
    by_clips = cross_entropy(nll[names], count[names], seed=0).mean.interval
    by_songs = cross_entropy(nll[names], count[names], seed=0, songs=names).mean.interval
    assert np.diff(by_songs) > 2 * np.diff(by_clips)
    assert by_songs == pytest.approx(cross_entropy(nll, count, seed=0).mean.interval)


def test_cross_entropy_of_one_clip_and_of_none() -> None:
    nll, count = sums(1, 0)
    found = cross_entropy(nll, count, seed=0)
    assert found.mean.interval is None
    assert perplexity(found.codebooks[0]).interval is None
    for wrong in (count[:, :3], count[:0]):
        with pytest.raises(ValueError, match="sums and counts"):
            cross_entropy(nll[: len(wrong)], wrong, seed=0)
