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
from musicgen_dreamboothing.evaluation.metrics.prompts import (
    mean_tag_divergence,
    tag_divergence,
    text_audio_score,
    without_key_phrase,
)
from musicgen_dreamboothing.evaluation.metrics.statistics import (
    Estimate,
    Jackknife,
    binomial_interval,
    grouped_difference,
    mean_of_groups,
)
from musicgen_dreamboothing.evaluation.metrics.variety import (
    diversity,
    diversity_ratio,
    drift,
    is_collapsed,
    variety_within,
)

RATE = 16_000


def normal(number: int, dimensions: int, seed: int, mean: float = 0.0) -> np.ndarray:
    """`[N, D]`, the mean of the first coordinate moved."""
    rows = np.random.default_rng(seed).standard_normal((number, dimensions))
    rows[:, 0] += mean
    return rows


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


# Statistics


def test_the_interval_of_a_mean_is_students() -> None:
    """By both ways: the jackknife of a mean has the usual variance."""
    values = np.random.default_rng(0).normal(3, 1, 8)
    low, high = stats.t.interval(0.95, 7, values.mean(), stats.sem(values))
    by_jackknife = Jackknife.of(lambda rows: values[rows].mean(), 8).estimate([1])
    for found in (mean_of_groups(values), by_jackknife):
        assert found.value == pytest.approx(values.mean())
        assert found.interval == pytest.approx((low, high))


def test_takes_of_a_prompt_count_as_one() -> None:
    prompts = np.random.default_rng(0).normal(0, 1, 6)
    values, names = np.repeat(prompts, [1, 2, 3, 4, 5, 6]), np.repeat(list("abcdef"), [1, 2, 3, 4, 5, 6])
    order = np.random.default_rng(1).permutation(len(values))
    grouped = mean_of_groups(values[order], names[order])
    assert grouped.interval == pytest.approx(mean_of_groups(prompts).interval)
    assert np.diff(grouped.interval or ()) > np.diff(mean_of_groups(values).interval or ())
    after = values + 0.1
    change = grouped_difference(values, after, names)
    assert (change.value, *(change.interval or ())) == pytest.approx((0.1, 0.1, 0.1))


def test_nothing_is_known_from_one_group() -> None:
    assert mean_of_groups([1.0, 2.0], ["a", "a"]).interval is None
    assert Jackknife.of(lambda rows: len(rows), 2).estimate([1]).interval is None


@pytest.mark.parametrize(("values", "names"), [([], None), ([1.0, 2.0], ["a"])])
def test_a_mean_needs_a_group_for_each_value(values: list[float], names: list[str] | None) -> None:
    with pytest.raises(ValueError, match="a group for each"):
        mean_of_groups(values, names)
    with pytest.raises(ValueError, match="as many values before as after"):
        grouped_difference([*values, 1.0], values)


def test_the_freedom_of_two_sets_is_welchs() -> None:
    a, b = np.random.default_rng(0).normal(0, 1, 5), np.random.default_rng(1).normal(0, 3, 9)
    found = Jackknife.of(lambda first, second: b[second].mean() - a[first].mean(), 5, 9).estimate([1])
    expected = stats.ttest_ind(b, a, equal_var=False).confidence_interval(0.95)
    assert found.interval == pytest.approx((expected.low, expected.high))


def test_fiellers_interval_of_a_ratio() -> None:
    """All r for which the mean of above - r below may be 0; none where below may be 0 itself."""
    rng = np.random.default_rng(0)
    below = rng.normal(5, 1, 9)
    above = 0.4 * below + rng.normal(0, 0.5, 9)
    known = Jackknife.of(lambda rows: [above[rows].mean(), below[rows].mean()], 9)
    ratio = known.ratio([1, 0], [0, 1])
    assert ratio is not None
    assert ratio.interval is not None
    for end in ratio.interval:
        assert abs(stats.ttest_1samp(above - end * below, 0).statistic) == pytest.approx(stats.t.ppf(0.975, 8))
    noisy = rng.normal(0.1, 1, 9)
    assert Jackknife.of(lambda rows: [above[rows].mean(), noisy[rows].mean()], 9).ratio([1, 0], [0, 1]) is None


def test_wilsons_interval_of_a_share() -> None:
    assert binomial_interval(8, 10) == pytest.approx((0.490, 0.943), abs=1e-3)
    assert binomial_interval(0, 10) == pytest.approx((0.0, 0.278), abs=1e-3)
    assert binomial_interval(0, 0) == (0, 1)
    for successes, trials in ((3, 2), (-1, 4)):
        with pytest.raises(ValueError, match="must"):
            binomial_interval(successes, trials)


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


def test_diversity_is_the_mean_distance() -> None:
    rows = normal(9, 5, 0)
    distances = [np.linalg.norm(x - y) for x, y in itertools.combinations(rows, 2)]
    assert diversity(rows) == pytest.approx(np.mean(distances))
    assert diversity(np.repeat(rows[:1], 4, axis=0)) == pytest.approx(0)


def test_diversity_has_no_origin_and_takes_two_clips() -> None:
    rows = 3 * normal(9, 5, 0)
    assert diversity(rows + 50) == pytest.approx(diversity(rows))
    assert diversity(2 * rows) == pytest.approx(2 * diversity(rows))
    with pytest.raises(ValueError, match="two clips"):
        diversity(rows[:1])


@pytest.mark.parametrize(("scale", "collapsed"), [(1.0, False), (0.35, False), (0.28, True), (0.0, True)])
def test_collapse_is_measured_by_the_base(scale: float, collapsed: bool) -> None:
    clips = normal(12, 6, 1)
    assert is_collapsed(scale * clips + 7, diversity(clips)) == collapsed


def test_variety_within_songs() -> None:
    rows = np.array([[0.0], [1.0], [10.0], [13.0], [99.0]])
    assert variety_within(rows, list("aabbc")) == pytest.approx(2)  # 1 and 3; of the last song there is one excerpt
    assert variety_within(rows, list("abcde")) == math.inf


def test_nothing_collapses_where_nothing_varied() -> None:
    assert not is_collapsed(np.ones((4, 3)), 0.0)


def neutral(seed: int, prompts: int = 6, seeds: int = 5, spread: float = 5.0) -> np.ndarray:
    """`[P, V, D]`: prompts lie far apart, takes around them."""
    rng = np.random.default_rng(seed)
    return spread * rng.standard_normal((prompts, 1, 8)) + rng.standard_normal((prompts, seeds, 8))


@pytest.mark.parametrize("across", [False, True])
def test_variety_by_hand(across: bool) -> None:
    before, after = neutral(0), neutral(1)
    found = diversity_ratio(before, after, across=across)
    if across:
        expected = diversity(after.reshape(-1, 8)) / diversity(before.reshape(-1, 8))
    else:
        expected = sum(map(diversity, after)) / sum(map(diversity, before))
    assert found.value == pytest.approx(expected)
    assert found.interval is not None
    assert found.interval[0] < found.value < found.interval[1]
    assert diversity_ratio(before, before, across=across).value == pytest.approx(1)
    assert diversity_ratio(before, 0.5 * before + 7, across=across).value == pytest.approx(0.5)


@pytest.mark.parametrize("across", [False, True])
def test_all_clips_alike_are_the_worst_score(across: bool) -> None:
    before = neutral(0)
    found = diversity_ratio(before, np.ones_like(before), across=across)
    assert (found.value, found.interval) == (0, (0, 0))


def test_prompts_that_give_the_same_music_are_not_varied() -> None:
    """Their takes differ as before."""
    before = neutral(0)
    after = np.repeat(before[:1], 6, axis=0)
    assert diversity_ratio(before, after).value == pytest.approx(1, abs=0.3)
    found = diversity_ratio(before, after, across=True)
    assert found.value < 0.3
    assert found.interval is not None
    assert found.interval[1] < 0.5


@pytest.mark.parametrize("measure", [drift, diversity_ratio])
def test_few_prompts_have_no_interval(measure: Callable[..., Estimate]) -> None:
    before, after = neutral(0, prompts=2), neutral(1, prompts=2)
    assert measure(before, after).interval is None


@pytest.mark.parametrize("measure", [drift, diversity_ratio])
@pytest.mark.parametrize("shapes", [((3, 1, 4), (3, 1, 4)), ((3, 2, 4), (3, 3, 4)), ((6, 4), (6, 4))])
def test_clips_are_paired_and_have_takes(measure: Callable[..., Estimate], shapes: tuple[tuple[int, ...], ...]) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="takes >= 2"):
        measure(*(rng.standard_normal(shape) for shape in shapes))
    for base in (np.ones((3, 2, 4)), np.zeros((3, 2, 4)), np.full((3, 2, 4), 0.1) + 1e-12 * neutral(0, 3, 2)[..., :4]):
        with pytest.raises(ValueError, match="takes of the base"):
            measure(base, rng.standard_normal((3, 2, 4)))


def test_nothing_drifts_where_nothing_changed() -> None:
    before = neutral(0)
    found = drift(before, before.copy())
    assert found.value == pytest.approx(0, abs=1e-9)
    assert found.interval == pytest.approx((0, 0), abs=1e-9)


def test_drift_by_hand() -> None:
    before, after = neutral(0, prompts=3, seeds=3), neutral(1, prompts=3, seeds=3)
    d = lambda x, y: float(np.linalg.norm(x - y))  # noqa: E731
    others = list(itertools.permutations(range(3), 2))
    energies, own = [], []
    for a, b in zip(before, after, strict=True):
        across, tuned, base = (np.mean([d(x[i], y[j]) for i, j in others]) for x, y in ((a, b), (b, b), (a, a)))
        energies.append(2 * across - tuned - base)
        own.append(base)
    found = drift(before, after)
    assert found.value == pytest.approx(np.mean(energies) / np.mean(own) / (math.sqrt(2) - 1))
    assert drift(2 * before + 3, 2 * after + 3).value == pytest.approx(found.value)


@pytest.mark.parametrize("spread", [0.0, 5.0])
def test_one_sound_is_a_large_drift(spread: float) -> None:
    """16 clips of 4 prompts that become one: the least is 1, where that sound is the mean of all that was."""
    found = [drift(neutral(seed, 4, 4, spread), np.zeros((4, 4, 8))) for seed in range(50)]
    least, most = (0.9, 1.1) if spread == 0 else (10, 40)
    assert least < np.mean([one.value for one in found]) < most
    assert np.mean([one.interval is not None and one.interval[0] > 0 for one in found]) > 0.9


def test_drift_of_one_sound_for_each_prompt() -> None:
    found = [drift(before, np.repeat(before.mean(axis=1, keepdims=True), 64, axis=1)) for before in [neutral(0, 9, 64)]]
    assert found[0].value == pytest.approx(1, abs=0.05)


def test_clips_that_moved_drift_more_the_farther_they_are() -> None:
    before = neutral(0)
    rng = np.random.default_rng(1)
    others = before.mean(axis=1, keepdims=True) + rng.standard_normal(before.shape)
    values = [drift(before, others + shift).value for shift in (0, 1, 2, 4)]
    assert abs(values[0]) < 0.5
    assert values == sorted(values)
    assert values[-1] > 3


@pytest.mark.parametrize(("prompts", "takes"), [(4, 4), (8, 3)])
@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (2.0, 1.0), (0.0, 0.3)])
def test_intervals_of_drift_hold_the_truth(prompts: int, takes: int, shift: float, scale: float) -> None:
    """The truth is the value of many prompts; nominal is 0.95."""

    def sample(seed: int, number: int) -> Estimate:
        rng = np.random.default_rng(seed)
        size = np.exp(0.3 * rng.standard_normal((number, 1, 1)))  # prompts vary in how different their takes are
        base, tuned = (size * rng.standard_normal((number, takes, 6)) for _ in range(2))
        direction = rng.standard_normal((number, 1, 6))
        return drift(base, scale * tuned + shift * direction / np.linalg.norm(direction, axis=-1, keepdims=True))

    truth = sample(0, 1000).value
    found = [sample(1 + seed, prompts).interval for seed in range(100)]
    assert np.mean([one is not None and one[0] <= truth <= one[1] for one in found]) >= 0.88


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
