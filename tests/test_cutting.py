"""Songs to clips: ends trimmed, one gain for a song, cut by the clock or on bars, whatever the samples are like."""

from __future__ import annotations

import io
import itertools
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import SAMPLING_RATE, tone_song
from made_music import music

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.analysis import defects
from musicgen_dreamboothing.analysis.key import Key
from musicgen_dreamboothing.analysis.loudness import loudness, peak
from musicgen_dreamboothing.analysis.rhythm import Rhythm
from musicgen_dreamboothing.audio import Wave
from musicgen_dreamboothing.data.songs import cutting as cuttings
from musicgen_dreamboothing.data.songs import song_audio
from musicgen_dreamboothing.data.songs.clips import summary_lines
from musicgen_dreamboothing.data.songs.cutting import Cutting, SongRecord, cut_song
from musicgen_dreamboothing.data.songs.song import TRAIN, Song
from musicgen_dreamboothing.data.songs.song_audio import slices

RATE, HOP = SAMPLING_RATE, 320


def float_song(wave: np.ndarray, rate: int = RATE, **fields: Any) -> Song:
    """A song that is the bytes of a float WAV file."""
    memory = io.BytesIO()
    soundfile.write(memory, wave.T, rate, format="WAV", subtype="DOUBLE" if wave.dtype == np.float64 else "FLOAT")
    return Song("song.wav", memory.getvalue, None, TRAIN, "1", **fields)


def cut_float(wave: np.ndarray, folder: Path, rate: int = RATE, **options: Any) -> tuple[SongRecord, list[Wave]]:
    """The record of a float song, and its clips."""
    return cut_of(float_song(wave, rate), folder, **options)


def cut_of(song: Song, folder: Path, **options: Any) -> tuple[SongRecord, list[Wave]]:
    usual: dict[str, Any] = {"max_seconds": 2, "min_seconds": 1}
    record = cut_song(song, "song", folder, Cutting(RATE, HOP, **usual | options))
    return record, [audio.decode(folder / clip["file_name"], RATE) for clip in record.clips]


def song_of(wave: np.ndarray, folder: Path, name: str = "song") -> Song:
    path = folder / f"{name}.flac"
    audio.write(path, wave, RATE)
    return Song(path.name, lambda: path, None, TRAIN, "1")


def cut(wave: np.ndarray, folder: Path, **options: Any) -> tuple[SongRecord, list[Wave]]:
    """The record of a song of 16 bits, and its clips."""
    return cut_of(song_of(wave, folder), folder, **options)


def silent(seconds: float) -> np.ndarray:
    return np.zeros((1, int(seconds * RATE)), np.float32)


@pytest.mark.parametrize(("before", "behind"), [(0.0, 2.5), (0.5, 0.0), (3.0, 2.5)])
def test_silence_at_both_ends_goes(before: float, behind: float, tmp_path: Path) -> None:
    tone = tone_song(5.0, 1)
    record, waves = cut(np.concatenate([silent(before), tone, silent(behind)], axis=1), tmp_path)
    assert [clip["start"] for clip in record.clips] == pytest.approx([before, before + 2, before + 4], abs=0.021)
    joined = np.concatenate(waves, axis=1)
    assert abs(joined.shape[1] - tone.shape[1]) <= 0.021 * RATE
    assert not audio.is_silent(joined[:, : RATE // 50])


def test_clips_without_much_to_hear_are_left_out_and_counted(tmp_path: Path) -> None:
    wave = np.concatenate([tone_song(2.0, 1), silent(4.0), tone_song(0.5, 2), silent(1.5), tone_song(2.0, 3)], axis=1)
    record, waves = cut(wave, tmp_path)
    assert [clip["start"] for clip in record.clips] == [0.0, 8.0]
    assert [clip["file_name"] for clip in record.clips] == ["song-000.flac", "song-001.flac"]
    assert (record.silent, len(waves), record.skipped) == (3, 2, None)


def test_a_song_of_silence_is_skipped(tmp_path: Path) -> None:
    record, waves = cut(silent(5.0), tmp_path)
    assert (record.skipped, waves) == ("song.flac: is silent", [])


@pytest.mark.parametrize("gain", [0.05, 1.0])
def test_songs_come_to_one_loudness(gain: float, tmp_path: Path) -> None:
    song = music(8.0, RATE) * np.float32(gain)
    _, waves = cut(song, tmp_path, max_seconds=8, loudness=-20.0)
    assert loudness(waves[0], RATE) == pytest.approx(-20.0, abs=0.3)
    _, untouched = cut(song, tmp_path, max_seconds=8)
    assert np.abs(untouched[0] - song[:, : untouched[0].shape[1]]).max() < 2**-14


def test_peaks_are_not_squeezed(tmp_path: Path) -> None:
    """A quiet song with one loud hit stays quieter than wanted."""
    song = 0.02 * music(8.0, RATE)
    song[:, RATE] = 0.6
    _, (wave,) = cut(song, tmp_path, max_seconds=8, loudness=-14.0)
    assert peak(wave) == pytest.approx(10 ** (-1 / 20), abs=1e-3)
    assert loudness(wave, RATE) < -20
    rhythm_of_song = song[:, : wave.shape[1]]
    assert np.abs(wave - rhythm_of_song * peak(wave) / 0.6).max() < 1e-4


@pytest.mark.parametrize(
    ("bars", "most", "expected"),
    [
        (4, 30, [(0.3, 8), (8.3, 8), (16.3, 8), (24.3, 6)]),
        (8, 9, [(0.3, 8), (8.3, 8), (16.3, 8), (24.3, 6)]),  # eight bars don't fit, four do
        (1, 30, [(0.3 + 2 * bar, 2) for bar in range(15)]),
    ],
)
def test_clips_begin_on_downbeats_and_last_whole_bars(
    bars: int, most: float, expected: list[tuple[float, float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """15 bars of 2 s behind a pickup; the last ones, too few for a clip, are a shorter one."""
    beats = tuple(0.3 + beat / 2 for beat in range(60))
    rhythm_of_song = Rhythm(120.0, 0.9, beats, beats[::4], 4)
    monkeypatch.setattr(cuttings, "find_rhythm", lambda wave, rate: rhythm_of_song)
    record, waves = cut(tone_song(31.0, 1), tmp_path, max_seconds=most, min_seconds=5, bars=bars)
    spans_of_clips = [(clip["start"], wave.shape[1] / RATE) for clip, wave in zip(record.clips, waves, strict=True)]
    assert spans_of_clips == [pytest.approx(span, abs=0.021) for span in expected]
    assert (record.beats, record.downbeats) == (list(beats), list(beats[::4]))
    assert record.rest == pytest.approx(1.0, abs=0.05)


def test_bars_of_real_audio(tmp_path: Path) -> None:
    """Of real sound: whole bars at the song's tempo, in whatever beat they begin."""
    record, waves = cut(music(40.0, RATE, bpm=120), tmp_path, max_seconds=30, bars=4)
    assert record.note is None
    assert [wave.shape[1] / RATE for wave in waves[:-1]] == pytest.approx([8.0] * (len(waves) - 1), abs=0.1)
    away = np.array([clip["start"] for clip in record.clips]) * 2
    assert np.abs(away - away.round()).max() < 0.16


def test_a_song_without_a_beat_is_cut_by_the_clock_with_a_note(tmp_path: Path) -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal((1, 12 * RATE)).astype(np.float32)
    record, waves = cut(noise, tmp_path, bars=2)
    assert [len(wave[0]) / RATE for wave in waves] == [2.0] * 6
    assert record.note == "song.flac: no clear bars, so it is cut by the clock"


@pytest.mark.parametrize(("confidence", "tempo", "key"), [(0.9, 120.0, "A minor"), (0.5, None, None)])
def test_what_is_unsure_is_not_said(
    confidence: float, tempo: float | None, key: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beats = tuple(beat / 2 for beat in range(20))
    monkeypatch.setattr(cuttings, "find_rhythm", lambda wave, rate: Rhythm(120.0, confidence, beats, beats[::4], 4))
    monkeypatch.setattr(cuttings, "find_key", lambda wave, rate: Key("A", "minor", confidence, 0.0))
    record, _ = cut(tone_song(8.0, 1), tmp_path, max_seconds=4, listen=True)
    assert [(clip["tempo"], clip["key"]) for clip in record.clips] == [(tempo, key)] * 2


# One gain for a song


@pytest.mark.parametrize(("cache_bytes", "listen"), [(0, True), (0, False), (song_audio.CACHE_BYTES, True)])
def test_a_long_song_is_cut_as_a_short_one(
    cache_bytes: int, listen: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its loud part, its soft part and its fade-out get one gain, whatever is decoded or analysed at once."""
    song = music(16.0, RATE, channels=2).copy()
    song[:, 8 * RATE :] *= np.linspace(0.3, 0.02, 8 * RATE, dtype=np.float32)
    monkeypatch.setattr(song_audio, "CACHE_BYTES", cache_bytes)
    monkeypatch.setattr(cuttings, "SECTION_SECONDS", 5.0)
    monkeypatch.setattr(cuttings, "find_rhythm", lambda wave, rate: Rhythm(60.0, 0.9, (0.5, 1.5), (0.5,), 4))
    record, waves = cut(song, tmp_path, loudness=-30.0, listen=listen)
    assert len(waves) == 8
    joined = np.concatenate(waves, axis=1)
    song = song[:, : joined.shape[1]]  # without the silence at its end
    gain = peak(joined) / peak(song)
    assert np.abs(joined - gain * song).max() < 2**-13
    assert loudness(joined, RATE) == pytest.approx(-30.0, abs=0.1)
    assert record.loudness == -30.0
    assert record.downbeats == ([0.5, 4.5, 8.5, 12.5] if listen else [])  # in seconds of the song


def test_a_stereo_song_of_four_minutes_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[float] = []

    def stream(*source: Any, **options: Any) -> Iterator[Wave]:
        for second in range(0, 240, 10):
            decoded.append(second)
            yield np.full((2, 320_000), 0.1, np.float32)

    monkeypatch.setattr(audio, "stream", stream)
    sound = song_audio.SongAudio(Song("song", bytes, None, TRAIN, "1"), 32_000)
    assert sum(wave.shape[1] for wave in sound.waves()) == 240 * 32_000
    assert len(decoded) == 24


def test_sections_are_equal_and_hold_whole_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[float] = []
    monkeypatch.setattr(cuttings, "SECTION_SECONDS", 9.0)
    monkeypatch.setattr(cuttings, "find_rhythm", lambda wave, rate: lengths.append(wave.shape[1] / rate))
    cut(tone_song(17.0, 1), tmp_path, listen=True)
    assert lengths == [10.0, 7.0]  # not 8, 8 and 1: nine clips are five and four


def test_songs_that_their_peaks_keep_soft_are_counted_and_named(tmp_path: Path) -> None:
    song = 0.02 * music(8.0, RATE)
    song[:, RATE] = 0.6
    soft, _ = cut(song, tmp_path, loudness=-14.0)
    assert soft.soft_by > 10
    usual, _ = cut(music(8.0, RATE), tmp_path, loudness=-30.0)
    assert usual.soft_by == 0
    assert summary_lines([soft, usual])[1:] == ["1 song stays below -14 LUFS because of its peaks: song.flac"]
    five = [SongRecord(f"{number}.ogg", "", "", loudness=-16.0 - number, soft_by=2.0 + number) for number in range(5)]
    (line,) = summary_lines(five)[1:]
    assert line == "5 songs stay below -14 LUFS because of their peaks: 4.ogg, 3.ogg, 2.ogg, 1.ogg and 1 more"


# DC offset


def sides(seconds: float) -> np.ndarray:
    """Offsets of left and right `[2, 1]` or, for a drift, `[2, S]`."""
    times = np.arange(int(seconds * RATE)) / RATE
    return 0.1 * np.sin(2 * np.pi * 0.05 * times + np.array([[0.0], [1.0]])).astype(np.float32)


@pytest.mark.parametrize(
    ("moved", "level"),
    [
        (np.float32(0.05), 0.5),
        (np.float32(-0.3), 0.02),
        (np.array([[0.2], [0]], np.float32), 0.5),
        ("drift", 0.5),
        ("drift", 0.02),
    ],
)
def test_an_offset_is_taken_out_and_the_music_stays(moved: Any, level: float, tmp_path: Path) -> None:
    song = np.float32(level) * music(12.0, RATE, channels=2)
    offset = sides(12.0) if isinstance(moved, str) else moved
    record, waves = cut_float(song + offset, tmp_path)
    joined = np.concatenate(waves, axis=1)
    residue = np.abs(joined - song[:, : joined.shape[1]])
    assert residue.max() < 0.012  # a drift of half a turn in ten seconds is not followed to the ends
    assert residue[:, RATE:-RATE].max() < 0.005
    assert all(defects.offset(wave) < defects.OFFSET / 4 for wave in waves)
    assert record.offset > 0.05
    assert summary_lines([record])[1:] == ["DC offset removed from 1 song: song.wav"]


def test_silence_with_an_offset_is_silence(tmp_path: Path) -> None:
    song = np.concatenate([silent(2.0), tone_song(4.0, 1), silent(3.0)], axis=1)
    record, _ = cut_float(song + np.float32(0.1), tmp_path)
    assert [clip["start"] for clip in record.clips] == pytest.approx([2.0, 4.0], abs=0.021)


@pytest.mark.parametrize("make", [lambda: music(12.0, RATE, channels=2), lambda: tone_song(10.0, 3, 2)])
def test_music_without_an_offset_is_not_touched(make: Any, tmp_path: Path) -> None:
    song = make()
    record, waves = cut_float(song, tmp_path)
    assert record.offset == 0
    joined = np.concatenate(waves, axis=1)
    np.testing.assert_allclose(joined, song[:, : joined.shape[1]], atol=2**-14)


# Samples that are no sound


@pytest.mark.parametrize("rate", [RATE, 44_100])
def test_a_stray_sample_costs_its_clip_only(rate: int, tmp_path: Path) -> None:
    song = np.float64(0.5) * music(8.0, rate, channels=2)
    clean, expected = cut_float(song, tmp_path, rate, loudness=-20.0)
    assert clean.invalid == 0
    del expected[2]
    values = (np.nan, np.inf, -np.inf, 1e29, -1e29, 1e300, 32768.0, 200.0, 50.0, -10.0, 3.0)
    for value in values if rate == RATE else (np.nan, -1e29, 3.0):
        song[1, 5 * rate] = value
        record, waves = cut_float(song, tmp_path, rate, loudness=-20.0)
        assert [clip["start"] for clip in record.clips] == [0, 2, 6]
        assert (record.invalid, record.skipped) == (1, None)
        for wave, other in zip(waves, expected, strict=True):
            np.testing.assert_allclose(wave, other, atol=1e-3)  # its loudness is measured without a click
    (line,) = summary_lines([record])[1:]
    assert line == "1 clip left out: samples that are NaN, infinite or far beyond the rest of the song (song.wav)"


OUTLIERS: dict[str, Any] = {
    "one": lambda rng, rate: {3 * rate: 5.0},
    "the first sample": lambda rng, rate: {0: 3.0, 19 * rate: -50.0},
    "many amplitudes": lambda rng, rate: {place: rng.uniform(2.5, 60) for place in rng.integers(0, 20 * rate, 15)},
    "noise of 1 ms": lambda rng, rate: burst(rng, rate // 1000, rate),
    "noise of 20 ms": lambda rng, rate: burst(rng, rate // 50, rate),
    "noise of 0.1 s": lambda rng, rate: burst(rng, rate // 10, rate),
    "a constant burst": lambda rng, rate: dict.fromkeys(range(7 * rate, 7 * rate + rate // 20), 8.0),
    "0.2 s of 1e6": lambda rng, rate: dict.fromkeys(range(7 * rate, 7 * rate + rate // 5), 1e6),
    "two scales": lambda rng, rate: {4 * rate: 4.0, 11 * rate: 1e9},
}


def burst(rng: np.random.Generator, samples: int, rate: int) -> dict[int, float]:
    return {7 * rate + place: value for place, value in enumerate(50 * rng.standard_normal(samples))}


@pytest.mark.parametrize(
    ("kind", "rate", "scale"),
    [(kind, (RATE, 48_000)[n % 2], (1.0, 0.1)[n // 2 % 2]) for n, kind in enumerate([*OUTLIERS, *list(OUTLIERS)[:5]])],
)
def test_outliers_change_neither_gain_nor_ends(kind: str, rate: int, scale: float, tmp_path: Path) -> None:
    """The soft end stays, and all clips without an outlier are those of the song without outliers."""
    song = np.float32(scale) * music(20.0, rate).copy()
    song[:, 16 * rate :] *= np.float32(0.01 / scale)
    _, expected = cut_float(song, tmp_path, rate, loudness=-20.0)
    places = OUTLIERS[kind](np.random.default_rng(0), rate)
    song[0, list(places)] = list(places.values())
    record, waves = cut_float(song, tmp_path, rate, loudness=-20.0)
    hurt = {place // (2 * rate) for place in places}
    assert record.invalid == len(hurt)
    assert [clip["start"] // 2 for clip in record.clips] == [number for number in range(10) if number not in hurt]
    for wave, clip in zip(waves, record.clips, strict=True):
        other = expected[int(clip["start"] // 2)]
        np.testing.assert_allclose(wave, other, atol=1e-2)  # a burst is 0.1 s less of the song


@pytest.mark.parametrize(
    ("decay", "scale", "level"),
    [
        *((0.006, 1.0, 0.3), (0.006, 2.0**15, 0.05), (0.03, 40.0, 0.3), (0.03, 1.0, 0.05)),
        *((0.2, 1.0, 0.05), (0.2, 40.0, 0.05), (0.2, 2.0**15, 0.3)),
    ],
)
def test_a_drum_hit_is_no_outlier(decay: float, scale: float, level: float, tmp_path: Path) -> None:
    """One hit in a soft song, on any scale."""
    song, samples = np.float32(level) * music(12.0, RATE), RATE
    noise = np.random.default_rng(0).standard_normal(samples) * np.exp(-np.arange(samples) / (decay * RATE))
    song[0, 5 * RATE : 6 * RATE] += (0.9 * noise / np.abs(noise).max()).astype(np.float32)
    record, waves = cut_float(np.float32(scale) * song, tmp_path)
    assert (record.invalid, len(waves)) == (0, 6)
    assert peak(waves[2]) == pytest.approx(1.0 if scale > 1 else peak(song), rel=1e-3)


def test_a_song_of_one_clip_with_a_stray_sample_is_named_for_it(tmp_path: Path) -> None:
    song = tone_song(2.0, 1)
    song[0, 1000] = 1e29
    record, _ = cut_float(song, tmp_path, loudness=-14.0)
    assert record.skipped == f"song.wav: every clip that is not silent holds {song_audio.INVALID}"


@pytest.mark.parametrize(
    ("scale", "target"), [(2.0**15, -20.0), (2.0**31, None), (40.0, None), (1.4, None), (0.01, -20.0), (0.01, None)]
)
def test_the_scale_of_a_float_file_does_not_matter(scale: float, target: float | None, tmp_path: Path) -> None:
    song = np.concatenate([silent(1.0), 0.7 * music(8.0, RATE), silent(1.0)], axis=1)
    record, waves = cut_float(np.float32(scale) * song, tmp_path, loudness=target)
    assert (record.invalid, len(waves)) == (0, 4)
    assert record.clips[0]["start"] == pytest.approx(1.0, abs=0.1)
    joined = np.concatenate(waves, axis=1)
    if target is not None:
        assert loudness(joined, RATE) == pytest.approx(target, abs=0.5)  # of the song, with what is trimmed
    elif scale > 2:
        assert peak(joined) == pytest.approx(1.0, abs=1e-3)
    else:
        assert peak(joined) == pytest.approx(min(1.0, scale * peak(song)), abs=1e-3)


# Tracks of one file


@pytest.mark.parametrize(("rate", "border"), [(RATE, 2.512345), (44_100, 2.51)])
def test_tracks_of_a_file_are_cut_to_the_sample(rate: int, border: float, tmp_path: Path) -> None:
    """Together they are the file: no sample is in two tracks, none is missing."""
    complete = tone_song(9.0, 5, 2, rate)
    borders = [0.0, border, 6.04, None]
    parts = []
    for start, end in itertools.pairwise(borders):
        song = float_song(complete, rate, start=start, end=end)
        record, waves = cut_of(song, tmp_path, max_seconds=4, min_seconds=0.1)
        assert (record.clips[0]["start"], record.damage) == (0, None)
        length = round(((9.0 if end is None else end) - start) * RATE)
        parts.append(np.concatenate(waves, axis=1)[:, :length])
    joined = np.concatenate(parts, axis=1)
    expected = audio.resample(complete, rate, RATE)
    assert abs(joined.shape[1] - expected.shape[1]) <= 2
    inner = [slice(place + 200, place + RATE) for place in (0, round(border * RATE), round(6.04 * RATE))]
    for place in inner if rate != RATE else [slice(0, None)]:  # resamplers begin and end softly
        np.testing.assert_allclose(joined[:, place], expected[:, place], atol=2e-3 if rate != RATE else 2**-14)


def test_a_track_that_lacks_something_is_reported_and_others_are_not(tmp_path: Path) -> None:
    path = tmp_path / "album.flac"
    audio.write(path, tone_song(12.0, 1), RATE)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    def damage(start: float, end: float | None) -> str | None:
        return cut_of(Song("album.flac #1", lambda: path, None, TRAIN, "1", start=start, end=end), tmp_path)[0].damage

    assert damage(0.0, 4.0) is None
    assert "4.0 s" not in (damage(4.0, 8.0) or "nothing")
    assert damage(4.0, None) is not None
    record, _ = cut_of(Song("album.flac #3", lambda: path, None, TRAIN, "1", start=10.0), tmp_path)
    assert "before its track begins at 10.0 s" in (record.skipped or "")


# Odd songs


@pytest.mark.parametrize(("samples", "reason"), [(1, "lasts 0.0 s"), (999, "lasts 0.1 s"), (0, "holds no samples")])
def test_songs_of_next_to_nothing_are_skipped(samples: int, reason: str, tmp_path: Path) -> None:
    record, _ = cut_float(np.full((1, samples), 0.5, np.float32), tmp_path, loudness=-14.0, listen=True)
    assert reason in (record.skipped or "")


def test_a_song_of_invalid_samples_is_named_for_them(tmp_path: Path) -> None:
    record, _ = cut_float(np.full((2, 5 * RATE), np.nan), tmp_path, loudness=-14.0)
    assert record.skipped == f"song.wav: is silent but for {song_audio.INVALID}"


@pytest.mark.parametrize(
    ("rate", "channels", "samples"), [(8_000, 1, 16_001), (192_000, 2, 400_001), (11_025, 1, 33_333)]
)
def test_rates_and_odd_lengths(rate: int, channels: int, samples: int, tmp_path: Path) -> None:
    song = tone_song(samples / rate + 1, 1, channels, rate)[:, :samples]
    record, waves = cut_float(song, tmp_path, rate, loudness=-20.0)
    assert loudness(np.concatenate(waves, axis=1), RATE) == pytest.approx(-20.0, abs=0.2)
    assert (record.skipped, record.damage) == (None, None)


def test_memory_does_not_grow_with_the_song(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(song_audio, "CACHE_BYTES", 2**19)
    peaks = []
    for seconds in (30.0, 120.0):
        song = song_of(tone_song(seconds, 1), tmp_path)
        tracemalloc.start()
        cut_song(song, "song", tmp_path, Cutting(RATE, HOP, 2, 1, loudness=-20.0))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


@pytest.mark.parametrize("size", [1, 7, 100])
def test_slices_may_overlap_and_leave_gaps(size: int) -> None:
    complete = np.arange(200, dtype=np.float32).reshape(2, 100)
    spans = [(3, 10), (10, 12), (11, 30), (50, 99), (99, 100)]
    pieces = np.split(complete, range(size, 100, size), axis=1)
    for (start, end), wave in zip(spans, slices(iter(pieces), spans), strict=True):
        np.testing.assert_array_equal(wave, complete[:, start:end])
    assert list(slices(iter(pieces), [])) == []
