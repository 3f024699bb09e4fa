"""Copies of training clips are found and flagged by their codes, other songs of the style are not."""

from __future__ import annotations

import numpy as np
import pytest

from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.evaluation.metrics.code_index import CODES, CodeIndex
from musicgen_dreamboothing.evaluation.metrics.copies import (
    SINGLE_SONG,
    TrainingClip,
    best_of_others,
    copy_threshold,
    crops_of,
    least_strength,
)
from musicgen_dreamboothing.evaluation.result import Likeness

FRAMES = 50  # a second
SIZE = 512  # of a codebook
CLIP_SECONDS = 10.0


def played(seconds: float, seed: int, codebooks: int = 4) -> np.ndarray:
    """Codes of unrelated music: a few are common, as in any style."""
    common = 1 / np.sqrt(np.arange(1, SIZE + 1))
    rng = np.random.default_rng([seed, 99])
    return rng.choice(SIZE, (codebooks, round(seconds * FRAMES)), p=common / common.sum())


def training(songs: int = 8, codebooks: int = 4) -> tuple[list[np.ndarray], list[TrainingClip]]:
    """Two clips of each song, one after the other."""
    codes = [played(CLIP_SECONDS, seed, codebooks) for seed in range(2 * songs)]
    names = [TrainingClip(f"song {n // 2}", CLIP_SECONDS * (n % 2), f"clip-{n}.flac") for n in range(2 * songs)]
    return codes, names


def flipped(codes: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.where(rng.random(codes.shape) < share, rng.integers(0, SIZE, codes.shape), codes)


def in_other_music(codes: np.ndarray, at: float, seconds: float = 10.0) -> np.ndarray:
    other = played(seconds, 1000, len(codes))
    other[:, round(at * FRAMES) : round(at * FRAMES) + codes.shape[1]] = codes
    return other


def likeness(index: CodeIndex, codes: np.ndarray) -> Likeness:
    """The likeness of codes that have one."""
    match = index.nearest(codes)
    assert match.likeness is not None
    return match.likeness


def is_copy(index: CodeIndex, codes: np.ndarray) -> bool:
    match = index.nearest(codes)
    assert not match.unchecked
    return match.likeness is not None and match.likeness.is_copy


@pytest.fixture(scope="module")
def index() -> CodeIndex:
    return CodeIndex(*training(), FRAMES)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5])
@pytest.mark.parametrize("number", [0, 9, 15])
def test_a_training_clip_is_found_even_if_codes_are_wrong(index: CodeIndex, number: int, share: float) -> None:
    found = likeness(index, flipped(training()[0][number], share))
    assert (found.clip_file, found.song, found.by) == (f"clip-{number}.flac", f"song {number // 2}", CODES)
    assert found.at == pytest.approx(found.clip_at)
    assert found.song_at == pytest.approx(found.clip_at + CLIP_SECONDS * (number % 2))
    assert found.seconds == pytest.approx(CLIP_SECONDS, abs=0.2)
    assert found.score == pytest.approx(1 - share, abs=0.05)
    assert found.is_copy


@pytest.mark.parametrize(("at", "clip_at"), [(0.0, 5.0), (3.3, 1.5), (4.0, 0.0), (3.98, 6.0)])
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_a_riff_of_four_seconds_is_found_in_eight_seconds_of_other_music(
    index: CodeIndex, at: float, clip_at: float, share: float
) -> None:
    begin = round(clip_at * FRAMES)
    excerpt = training()[0][5][:, begin : begin + 4 * FRAMES]
    found = likeness(index, in_other_music(flipped(excerpt, share), at, 8.0))
    assert (found.clip_file, found.is_copy) == ("clip-5.flac", True)
    assert found.at == pytest.approx(at, abs=0.15)
    assert found.clip_at == pytest.approx(clip_at, abs=0.15)
    assert found.clip_at - found.at == pytest.approx(clip_at - at)
    assert found.seconds == pytest.approx(4, abs=0.3)
    assert found.strength == pytest.approx(4 if not share else 3.5, abs=0.6)


@pytest.mark.parametrize("seed", range(100, 104))
def test_another_song_has_no_likeness(index: CodeIndex, seed: int) -> None:
    assert index.nearest(played(CLIP_SECONDS, seed)) == (None, "")


def test_a_likeness_of_less_than_two_seconds_is_not_listed(index: CodeIndex) -> None:
    assert index.nearest(in_other_music(training()[0][5][:, : round(1.8 * FRAMES)], 3)) == (None, "")


def test_stereo_has_twice_the_codebooks() -> None:
    codes, clips = training(songs=3, codebooks=8)
    found = likeness(CodeIndex(codes, clips, FRAMES), flipped(codes[4], 0.3))
    assert (found.clip_file, found.is_copy) == ("clip-4.flac", True)


# What songs share


def songs_with_a_loop(recordings: int = 8, copies: int = 1) -> tuple[list[np.ndarray], list[TrainingClip], np.ndarray]:
    """Songs of 30 s that share a loop of 12 s, each at another place; each song is there `copies` times."""
    loop, codes, clips = played(12.0, 500), [], []
    for number in range(recordings):
        song = played(30.0, 600 + number)
        start = round(FRAMES * (0.5 + 2 * number % 17))
        song[:, start : start + loop.shape[1]] = loop
        for copy in range(copies):
            codes.append(song)
            clips.append(TrainingClip(f"{number}, {copy}", 0.0, f"{number}-{copy}.flac", f"{number}"))
    return codes, clips, loop


@pytest.mark.parametrize("copies", [1, 2], ids=["once", "album and single"])
def test_a_copy_is_flagged_where_songs_share_a_loop_longer_than_it(copies: int) -> None:
    codes, clips, loop = songs_with_a_loop(copies=copies)
    index = CodeIndex(codes, clips, FRAMES)
    assert index.threshold(10 * FRAMES).strength == least_strength(8)
    for number in (0, 3, 7):
        song, start = codes[number * copies], round(FRAMES * (0.5 + 2 * number % 17))
        begin = start + loop.shape[1] if start < 9 * FRAMES else start - 10 * FRAMES
        begin = min(max(begin, 0), song.shape[1] - 10 * FRAMES)
        found = likeness(index, song[:, begin : begin + 10 * FRAMES])
        assert found.is_copy
        assert clips[number * copies].recording == found.song.split(",")[0]
        assert found.strength > 7


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_the_loop_that_songs_share_is_no_copy(share: float) -> None:
    codes, clips, loop = songs_with_a_loop()
    index = CodeIndex(codes, clips, FRAMES)
    assert not is_copy(index, flipped(loop[:, : 10 * FRAMES], share))
    assert not is_copy(index, in_other_music(flipped(loop[:, : 5 * FRAMES], share), 2.0))
    alone = CodeIndex([codes[0], *(played(30.0, 900 + number) for number in range(7))], clips, FRAMES)
    assert is_copy(alone, loop[:, : 10 * FRAMES])  # of one song only


def test_a_loop_of_two_songs_among_others_does_not_hide_copies() -> None:
    codes, clips = training(songs=6)
    for number in (2, 3):
        codes[number][:, :200] = codes[0][:, :200]
    index = CodeIndex(codes, clips, FRAMES)
    assert not is_copy(index, in_other_music(codes[0][:, :200], 2.0))
    assert is_copy(index, codes[0])
    assert is_copy(index, flipped(codes[5], 0.3))


def test_songs_that_are_one_recording_are_one_song() -> None:
    """Without knowing it nothing of them could be told; with it, their copies are as clear as those of one song."""
    codes, clips = training(songs=1)
    twice = [*clips, *(TrainingClip("remaster", clip.start, f"again-{clip.file}") for clip in clips)]
    assert CodeIndex([*codes, *codes], twice, FRAMES).nearest(codes[0]).unchecked
    known = [TrainingClip(clip.song, clip.start, clip.file, "song 0") for clip in twice]
    assert is_copy(CodeIndex([*codes, *codes], known, FRAMES), codes[0])


def test_silence_is_like_any_silence() -> None:
    codes, clips = training()
    for clip in codes[::2]:
        clip[:, 100:400] = 7
    index = CodeIndex(codes, clips, FRAMES)
    assert index.threshold(500).strength == least_strength(8)
    assert index.nearest(in_other_music(np.full((4, 300), 7), 1.0)) == (None, "")


def test_of_two_alignments_the_better_one_wins() -> None:
    """A song whose loop comes again with other notes in the last codebook."""
    codes, clips = training()
    loop = codes[4][:, :250]
    codes[4] = np.concatenate([np.concatenate([loop[:3], played(5.0, 800)[3:]]), loop], axis=1)
    found = likeness(CodeIndex(codes, clips, FRAMES), loop)
    assert (found.clip_file, found.clip_at, found.score) == ("clip-4.flac", pytest.approx(5.0, abs=0.1), 1.0)


def test_scores_are_compared_with_those_of_other_recordings() -> None:
    scores = np.array([[0.9, 0.2], [0.8, 0.1], [0.5, 0.7], [-1.0, 0.3]])
    others = best_of_others(scores, np.array([3, 3, 1, 2]))
    np.testing.assert_array_equal(others, [[0.5, 0.7], [0.5, 0.7], [0.9, 0.3], [0.9, 0.7]])
    np.testing.assert_array_equal(best_of_others(scores[:2], np.array([3, 3])), np.zeros((2, 2)))


# What can be told


def test_with_a_single_song_five_seconds_are_a_copy() -> None:
    codes, clips = training(songs=1)
    index = CodeIndex(codes, clips, FRAMES)
    assert is_copy(index, flipped(codes[1], 0.3))
    assert not is_copy(index, in_other_music(codes[1][:, : round(4.5 * FRAMES)], 3.0))
    assert not is_copy(index, played(CLIP_SECONDS, 100))
    assert index.nearest(codes[0][:, : 2 * FRAMES]).unchecked == SINGLE_SONG


@pytest.mark.parametrize("frames", [1, 2, 30, 125])
def test_whether_a_short_clip_is_a_copy_can_not_be_told(index: CodeIndex, frames: int) -> None:
    match = index.nearest(training()[0][2][:, :frames])
    assert match.unchecked == f"clips of {frames / FRAMES:.3g} s are too short to tell a copy from a riff"
    assert match.likeness is None or not match.likeness.is_copy


def test_songs_that_are_too_alike_are_no_measure() -> None:
    """Two pairs of ten songs have most codes in common everywhere, as two takes of a tune, but are not verbatim."""
    codes = [flipped(played(10.0, number // 2 if number < 4 else number), 0.15, number) for number in range(10)]
    clips = [TrainingClip(str(number), 0.0, f"{number}.flac") for number in range(10)]
    match = CodeIndex(codes, clips, FRAMES).nearest(codes[5][:, : 8 * FRAMES])
    assert match.unchecked == "the songs are too alike to recognise a copy in clips of 8 s"
    assert match.likeness is not None
    assert not match.likeness.is_copy


def test_the_threshold_is_that_of_crops_as_long_as_the_query() -> None:
    crops = crops_of([90, 30, 65, 29], np.array([0, 1, 0, 1]), 30)
    assert [(crop.clip, crop.begin, crop.length) for crop in crops] == [
        *((0, begin, 30) for begin in (0, 15, 30, 45, 60)),
        (1, 0, 30),
        *((2, begin, 30) for begin in (0, 17, 35)),
    ]
    many = crops_of([1000] * 50, np.arange(50) // 2, 10)
    assert len(many) == 64
    assert {crop.clip // 2 for crop in many} == set(range(25))  # spread over the recordings
    assert crops_of([20, 10], np.array([0, 1]), 30)[0].length == 20


def test_a_threshold_allows_one_report_in_twenty_a_false_alarm() -> None:
    """Where strengths have the distribution that is fitted; that of few is not known exactly."""
    rng = np.random.default_rng(0)
    reports = rng.gumbel(3.0, 0.5, (400, 64 + 72))
    limits = np.array([copy_threshold(strengths, 72) for strengths in reports[:, :64]])
    assert (reports[:, 64:].max(axis=1) >= limits).mean() < 0.5  # capped at a multiple of the highest
    assert copy_threshold(np.full(10, 0.1)) == pytest.approx(0.1)
    assert copy_threshold(np.linspace(2, 4, 64), 7200) == pytest.approx(5)


def test_the_same_clips_give_the_same_answers_in_order() -> None:
    codes, clips = training()
    queries = [flipped(codes[number], 0.3) for number in (3, 0, 11)]
    first, again = (CodeIndex(codes, clips, FRAMES).search(queries) for _ in range(2))
    assert first == again
    assert [match.likeness and match.likeness.clip_file for match in first] == [
        "clip-3.flac",
        "clip-0.flac",
        "clip-11.flac",
    ]


def test_nothing_in_common_is_no_likeness(index: CodeIndex) -> None:
    assert index.nearest(np.full((4, 500), SIZE + 5)) == (None, "")


def test_without_training_clips_there_is_nothing_to_compare_with() -> None:
    with pytest.raises(UserError, match="no training clips"):
        CodeIndex([], [], FRAMES)


def test_codes_of_another_checkpoint_are_an_error(index: CodeIndex) -> None:
    with pytest.raises(UserError, match=r"codes of shape \[8, 50\].* of 4 codebooks"):
        index.nearest(played(1.0, 0, codebooks=8))
    codes, clips = training(songs=1)
    with pytest.raises(UserError, match="different numbers of codebooks"):
        CodeIndex([codes[0], played(1.0, 0, codebooks=8)], clips, FRAMES)


def test_every_clip_has_a_name() -> None:
    codes, clips = training(songs=1)
    with pytest.raises(ValueError, match="2 training clips, but names for 1"):
        CodeIndex(codes, clips[:1], FRAMES)


# False alarms


def structured_song(style: int, seed: int, seconds: float = 30.0) -> np.ndarray:
    """Bars of 2 s in an order with repetitions: four of its own, and some that all songs of the style have."""
    rng = np.random.default_rng([style, seed])
    own = [played(2.0, 10_000 * style + 100 * seed + bar) for bar in range(4)]
    common = [played(2.0, 10_000 * style + 9_990 + bar) for bar in range(6)]
    bars = [common[rng.integers(6)] if rng.random() < 0.3 else own[rng.integers(4)] for _ in range(int(seconds // 2))]
    return flipped(np.concatenate(bars, axis=1), 0.15, seed)


def flagged_of(style: int, songs: int, queries: int) -> tuple[int, int]:
    """How many of so many clips of new songs are flagged; and of copies with 15 % of their codes changed."""
    codes = [structured_song(style, seed) for seed in range(songs)]
    clips = [TrainingClip(str(number), 0.0, f"{number}.flac") for number in range(songs)]
    index = CodeIndex(codes, clips, FRAMES, 2 * queries)
    start = np.random.default_rng(style).integers(0, 22 * FRAMES, queries)
    new = [structured_song(style, 50 + n)[:, at : at + 8 * FRAMES] for n, at in enumerate(start)]
    copied = [flipped(codes[n % songs], 0.15, n)[:, at : at + 8 * FRAMES] for n, at in enumerate(start[:6])]
    return sum(is_copy(index, query) for query in new), sum(is_copy(index, query) for query in copied)


@pytest.mark.parametrize(
    ("reports", "songs"),
    [(2, 10), pytest.param(60, 3, marks=pytest.mark.slow), pytest.param(60, 14, marks=pytest.mark.slow)],
)
def test_new_songs_of_the_style_raise_an_alarm_in_one_report_of_twenty(reports: int, songs: int) -> None:
    """36 clips of 8 s; at most 1 report in 20 may have a false alarm, and copies are still flagged."""
    results = [flagged_of(style, songs, 36) for style in range(1, reports + 1)]
    assert sum(new > 0 for new, _ in results) <= reports / 20
    assert sum(copied for _, copied in results) >= 0.8 * 6 * reports
