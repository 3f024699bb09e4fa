"""Copies of training clips are found and flagged by sound, transposed, faster or slower; other songs are not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import soxr
import torch
from conftest import read_checkpoint, tone_song
from made_music import music

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.demo.recipe import ASSETS
from musicgen_dreamboothing.evaluation.metrics import semitones
from musicgen_dreamboothing.evaluation.metrics.code_index import CodeIndex
from musicgen_dreamboothing.evaluation.metrics.copies import SINGLE_SONG, TrainingClip, least_strength
from musicgen_dreamboothing.evaluation.metrics.sound_index import SOUND, SoundIndex
from musicgen_dreamboothing.evaluation.result import Likeness
from musicgen_dreamboothing.model import codec
from musicgen_dreamboothing.model.checkpoint import load_codec

RATE, CODEC_RATE = 8000, 16_000
SONGS, SONG_SECONDS = 8, 16.0
Array = np.ndarray


def song(seed: int, seconds: float = SONG_SECONDS) -> Array:
    return music(seconds, RATE, seed)


def cut(wave: Array, at: float, seconds: float) -> Array:
    return wave[:, round(at * RATE) : round((at + seconds) * RATE)]


def names(count: int) -> list[TrainingClip]:
    return [TrainingClip(f"song {number}", 5.0, f"{number}.flac") for number in range(count)]


def index_of(waves: list[Array], clips: list[TrainingClip] | None = None) -> SoundIndex:
    return SoundIndex([semitones.spectrogram(wave, RATE) for wave in waves], clips or names(len(waves)))


@pytest.fixture(scope="module")
def index() -> SoundIndex:
    return index_of([song(seed) for seed in range(SONGS)])


def likeness(index: SoundIndex, wave: Array) -> Likeness:
    match = index.nearest(wave, RATE)
    assert match.likeness is not None
    return match.likeness


def is_copy(index: SoundIndex, wave: Array) -> bool:
    match = index.nearest(wave, RATE)
    assert not match.unchecked
    return match.likeness is not None and match.likeness.is_copy


def resampled(wave: Array, speed: float) -> Array:
    """Faster and higher, as a tape."""
    return np.ascontiguousarray(soxr.resample(wave.T, RATE * speed, RATE).T, np.float32)


def stretched(wave: Array, speed: float) -> Array:
    """Faster at the same pitch, by a phase vocoder."""
    size, hop = 2048, 512
    hann, padded = np.hanning(size), np.pad(wave[0], (size // 2, size))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]
    spectra, expected = np.fft.rfft(frames * hann), 2 * np.pi * hop * np.arange(size // 2 + 1) / size
    moments = np.arange(0, len(spectra) - 1, speed)
    phase, made = np.angle(spectra[0]), np.zeros(len(moments) * hop + size)
    for number, moment in enumerate(moments):
        before, after = spectra[int(moment)], spectra[int(moment) + 1]
        share = moment % 1
        level = (1 - share) * np.abs(before) + share * np.abs(after)
        made[number * hop : number * hop + size] += hann * np.fft.irfft(level * np.exp(1j * phase))
        turned = np.angle(after) - np.angle(before) - expected
        phase = phase + expected + turned - 2 * np.pi * np.round(turned / (2 * np.pi))
    return (made[None, size // 2 :] / 1.5).astype(np.float32)


def transposed(wave: Array, steps: int) -> Array:
    """Higher by semitones at the same speed."""
    ratio = 2 ** (steps / 12)
    return resampled(stretched(wave, 1 / ratio), ratio)


def noisy(wave: Array) -> Array:
    """At half the level, noise 30 dB below, and half a frame of the codec late: its codes say nothing any more."""
    noise = wave.std() * 10 ** (-30 / 20) * np.random.default_rng(0).standard_normal(wave.shape)
    return (0.5 * (wave + noise)).astype(np.float32)[:, RATE // 50 :]


CHANGES: dict[str, Callable[[Array], Array]] = {
    "noisy": noisy,
    **{f"{steps:+d} semitones": lambda wave, steps=steps: transposed(wave, steps) for steps in (-2, -1, 1, 2)},
    **{f"tape at {speed}": lambda wave, speed=speed: resampled(wave, speed) for speed in (0.95, 1.05)},
    **{f"stretched by {speed}": lambda wave, speed=speed: stretched(wave, speed) for speed in (0.95, 1.05)},
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("number", [2, 7])
def test_a_copy_that_was_changed_is_flagged(index: SoundIndex, change: str, number: int) -> None:
    found = likeness(index, cut(CHANGES[change](cut(song(number), 4.0, 10.0)), 0, 8.0))
    assert (found.song, found.by, found.is_copy) == (f"song {number}", SOUND, True)
    assert found.clip_at - found.at == pytest.approx(4.0, abs=0.3)
    assert found.song_at == pytest.approx(found.clip_at + 5.0)
    assert found.seconds > 6
    assert found.score > 0.85


def test_a_copy_in_other_music_is_found_at_its_place(index: SoundIndex) -> None:
    mixed = np.concatenate([cut(song(90), 0, 2.0), cut(song(4), 3.0, 6.0), cut(song(91), 0, 2.0)], axis=1)
    found = likeness(index, mixed)
    assert (found.song, found.is_copy) == ("song 4", True)
    assert found.at == pytest.approx(2.0, abs=1.1)
    assert found.clip_at - found.at == pytest.approx(1.0, abs=0.1)
    assert found.seconds == pytest.approx(6, abs=2.1)


def test_gain_changes_nothing(index: SoundIndex) -> None:
    found = [likeness(index, gain * cut(song(4), 3.0, 8.0)) for gain in (0.01, 1.0)]
    assert found[0].strength == pytest.approx(found[1].strength, abs=1e-3)


# What songs share


def with_loop(wave: Array, at: float, loop: Array) -> Array:
    start = round(at * RATE)
    return np.concatenate([wave[:, :start], loop, wave[:, start + loop.shape[1] :]], axis=1)


def test_a_copy_is_flagged_where_songs_share_a_loop_and_the_loop_is_none() -> None:
    loop = cut(song(77), 0, 12.0)
    waves = [with_loop(song(seed, 26.0), 0.37 + 1.9 * seed, loop) for seed in range(7)]
    index = index_of(waves)
    assert is_copy(index, cut(waves[0], 14.0, 10.0))
    assert is_copy(index, cut(waves[6], 1.5, 10.0))
    assert not is_copy(index, cut(loop, 1.0, 10.0))


def test_album_and_single_are_one_song() -> None:
    waves = [song(seed) for seed in range(5)]
    clips = [TrainingClip(f"{seed}, {copy}", 0.0, "", str(seed)) for copy in range(2) for seed in range(5)]
    assert is_copy(index_of(waves * 2, clips), cut(waves[3], 3.3, 8.0))
    strangers = index_of(waves * 2)  # every song is shared by two
    match = strangers.nearest(cut(waves[3], 3.3, 8.0), RATE)
    assert match.unchecked
    assert match.likeness is None or not match.likeness.is_copy


# What can't be told


def test_with_a_single_song_nothing_is_told() -> None:
    clips = [TrainingClip("song", start, f"{start}.flac") for start in (0.0, 10.0)]
    match = index_of([cut(song(0), start, 10.0) for start in (0.0, 10.0)], clips).nearest(cut(song(0), 1.0, 8.0), RATE)
    assert match.unchecked == SINGLE_SONG
    assert match.likeness is not None
    assert not match.likeness.is_copy


@pytest.mark.parametrize("seconds", [0.01, 1.0, 3.0])
def test_a_short_clip_is_compared_without_a_verdict(index: SoundIndex, seconds: float) -> None:
    match = index.nearest(cut(song(0), 1.0, seconds), RATE)
    assert "too short to tell a copy from a riff" in match.unchecked
    assert match.likeness is None or not match.likeness.is_copy


def test_silence_is_no_copy(index: SoundIndex) -> None:
    assert not is_copy(index, np.zeros((1, 8 * RATE), np.float32))


def test_without_training_clips_there_is_nothing_to_compare_with() -> None:
    with pytest.raises(UserError, match="no training clips"):
        SoundIndex([], [])


def test_clips_that_fill_several_blocks_are_compared(index: SoundIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = index.nearest(cut(song(6), 2.0, 8.0), RATE)
    monkeypatch.setattr("musicgen_dreamboothing.evaluation.metrics.sound_index.BLOCK", 100)
    assert index.nearest(cut(song(6), 2.0, 8.0), RATE) == at_once
    assert at_once.likeness is not None
    assert at_once.likeness.song == "song 6"


# The spectrogram


def test_a_transposition_is_a_shift_of_the_bands() -> None:
    time = np.arange(2 * RATE) / RATE
    low, high = (
        semitones.spectrogram(np.sin(2 * np.pi * 440 * ratio * time)[None].astype(np.float32), RATE)
        for ratio in (1, 2 ** (2 / 12))
    )
    assert low.shape == (41, semitones.BANDS + 2 * semitones.MOST_SEMITONES)
    assert high.mean(axis=0).argmax() - low.mean(axis=0).argmax() == 2
    alike = [
        semitones.windows(semitones.shapes(high, semitones.Variant(steps, 1.0)), np.array([0]))[0]
        @ semitones.windows(semitones.shapes(low), np.array([0]))[0]
        for steps in (0, 2)
    ]
    assert alike[1] > alike[0]


def test_another_speed_is_another_number_of_steps() -> None:
    spectra = np.arange(101.0, dtype=np.float32)[:, None] * np.ones((1, 64), np.float32)
    slow = semitones.shapes(spectra, semitones.Variant(0, 1.05))
    assert len(slow) == 106
    same = semitones.shapes(spectra)
    np.testing.assert_allclose(slow[[0, 21, 105]], same[[0, 20, 100]], rtol=1e-5)


# False alarms


def flagged_of(seed: int, songs: int, new: int) -> int:
    """How many of so many clips of 8 s of new songs are flagged."""
    waves = [song(1000 * seed + number) for number in range(songs)]
    index = SoundIndex([semitones.spectrogram(wave, RATE) for wave in waves], names(songs), 72)
    return sum(is_copy(index, cut(song(1000 * seed + 500 + n // 2), 8 * (n % 2), 8.0)) for n in range(new))


@pytest.mark.parametrize(
    ("reports", "songs", "new"),
    [(1, 5, 8), *(pytest.param(20, songs, 36, marks=pytest.mark.slow) for songs in (4, 14))],
)
def test_new_songs_raise_an_alarm_in_one_report_of_twenty(reports: int, songs: int, new: int) -> None:
    assert sum(flagged_of(seed, songs, new) > 0 for seed in range(1, reports + 1)) <= reports / 20


@dataclass(frozen=True)
class Punk:
    """The built-in songs, as the built-in codec plays them: codes `[K, T]` at 25 Hz and waves."""

    codes: list[Array]
    waves: list[Array]


# Songs that share a verse note by note, in one key or its relative: tools/tiny composes from four progressions a key.
SAME_VERSE = {3: 1, 14: 1, 11: 2, 12: 4, 18: 5, 10: 6, 23: 6, 13: 7, 19: 9, 22: 21}


@pytest.fixture(scope="module")
def punk() -> Punk:
    checkpoint = read_checkpoint(ASSETS / "musicgen-tiny")
    model = load_codec(checkpoint, torch.device("cpu"))
    punk = Punk([], [])
    for path in sorted(ASSETS.glob("songs/**/*.ogg"), key=lambda path: path.name):
        wave = audio.decode(path, CODEC_RATE)[:, : 16 * CODEC_RATE]
        codes = codec.encode(model, torch.from_numpy(wave.copy())[None], checkpoint)
        punk.codes.append(codes[0].numpy())
        punk.waves.append(codec.decode(model, codes, checkpoint)[0].numpy())
    return punk


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 20))])
def test_built_in_songs_are_no_copies_of_each_other(punk: Punk, seed: int) -> None:
    """Eight groups are trained on, the others are generated clips; made by few rules, all of them share bars."""
    groups = sorted({SAME_VERSE.get(number, number) for number in range(1, 25)})
    known = set(np.random.default_rng(seed).permutation(groups)[:8].tolist())
    rows = [n for n in range(24) if SAME_VERSE.get(n + 1, n + 1) in known]
    clips = [TrainingClip(str(n), 8.0 * half, f"{n}-{half}") for n in rows for half in (0, 1)]
    halves = [(n, half) for n in range(24) for half in (0, 1)]
    by_codes = CodeIndex([punk.codes[n][:, 200 * h : 200 * h + 200] for n, h in halves if n in rows], clips, 25)
    by_sound = SoundIndex(
        [
            semitones.spectrogram(punk.waves[n][:, 8 * h * CODEC_RATE : 8 * (h + 1) * CODEC_RATE], CODEC_RATE)
            for n, h in halves
            if n in rows
        ],
        clips,
    )
    assert least_strength(24) <= by_codes.threshold(200).strength <= 4
    new = [(n, half) for n, half in halves if n not in rows]
    matches = by_codes.search([punk.codes[n][:, 200 * h : 200 * h + 200] for n, h in new])
    matches += by_sound.search(
        [(punk.waves[n][:, 8 * h * CODEC_RATE : 8 * (h + 1) * CODEC_RATE], CODEC_RATE) for n, h in new]
    )
    assert not any(match.likeness is not None and match.likeness.is_copy for match in matches)
    copied = by_codes.search([punk.codes[n][:, 200 * h : 200 * h + 200] for n, h in halves if n in rows])
    assert np.mean([match.likeness is not None and match.likeness.is_copy for match in copied]) > 0.7


def test_a_clip_of_tones_is_compared() -> None:
    index = index_of([tone_song(8.0, number, rate=RATE) for number in range(6)])
    assert likeness(index, tone_song(8.0, 3, rate=RATE)).song == "song 3"
