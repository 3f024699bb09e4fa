"""Every defect is found in sound that was made to have it, and not in sound that has not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import soxr
from made_music import as_mp3, low_passed, music

from musicgen_dreamboothing.analysis import defects
from musicgen_dreamboothing.audio import Wave

RATE = 32_000
TIMES = np.arange(4 * RATE) / RATE


def tone(hertz: float, amplitude: float = 0.9) -> Wave:
    return (amplitude * np.sin(2 * np.pi * hertz * TIMES)[None]).astype(np.float32)


def in_16_bit(wave: Wave) -> Wave:
    """As it comes back from a FLAC file."""
    return (np.round(np.clip(wave, -1, 1) * 32767) / 32767).astype(np.float32)


def resampled(wave: Wave, rate_in: int, rate_out: int) -> Wave:
    return np.ascontiguousarray(soxr.resample(wave.T, rate_in, rate_out).T)


def bass_and_drums(rate: int, seconds: float = 4.0) -> Wave:
    """Loud low notes under soft noise: what is clipped in real mixes."""
    times = np.arange(int(seconds * rate)) / rate
    rng = np.random.default_rng(0)
    notes = sum(np.sin(2 * np.pi * hertz * times) / n for n, hertz in enumerate((55.0, 82.5, 139.0, 311.0), start=1))
    swell = 0.6 + 0.4 * np.sin(2 * np.pi * 0.7 * times)
    hiss = low_passed(rng.standard_normal((1, len(times))).astype(np.float32), rate, 4000)
    return (0.4 * (swell * notes + 0.2 * hiss)).astype(np.float32)


CLIPPED: dict[str, Callable[[], Wave]] = {
    "music": lambda: np.clip(8 * music(4, RATE, channels=2), -1, 1),
    "on one side only": lambda: np.minimum(bass_and_drums(RATE), 0.4),
    "turned down, 16 bit": lambda: in_16_bit(0.2 * np.clip(3 * bass_and_drums(RATE), -1, 1)),
    "with an offset": lambda: 0.5 * np.clip(3 * bass_and_drums(RATE), -1, 1) + np.float32(0.2),
    "a sine": lambda: np.clip(tone(50, 1.2), -1, 1),
    "resampled": lambda: in_16_bit(0.6 * resampled(np.clip(3 * bass_and_drums(44_100), -1, 1), 44_100, RATE)),
    "one channel": lambda: np.concatenate([np.clip(3 * bass_and_drums(RATE), -1, 1), bass_and_drums(RATE)]),
}
WHOLE: dict[str, Callable[[], Wave]] = {
    "music": lambda: music(4, RATE, channels=2),
    "music at full scale": lambda: in_16_bit(2 * music(4, RATE, 1)),
    "loud bass": lambda: in_16_bit(bass_and_drums(RATE) / np.abs(bass_and_drums(RATE)).max()),
    "resampled": lambda: in_16_bit(resampled(bass_and_drums(44_100), 44_100, RATE)),
    "a low sine": lambda: in_16_bit(tone(40)),
    "a sine": lambda: in_16_bit(tone(440)),
    "a triangle": lambda: (np.abs(4 * ((110 * TIMES) % 1) - 2)[None] - 1).astype(np.float32),
    "noise": lambda: (0.2 * np.random.default_rng(0).standard_normal((1, 6 * RATE))).astype(np.float32),
    "silence": lambda: np.zeros((2, RATE), np.float32),
    "nothing": lambda: np.zeros((1, 0), np.float32),
}


@pytest.mark.parametrize("name", CLIPPED)
def test_clipping_is_detected(name: str) -> None:
    assert defects.clipping(CLIPPED[name]()) > defects.CLIPPED_SHARE


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_not_clipped(name: str) -> None:
    assert defects.clipping(WHOLE[name]()) == 0


@pytest.mark.parametrize("gain", [2.0, 4.0])
def test_about_how_much_is_clipped(gain: float) -> None:
    loud = gain * bass_and_drums(RATE)
    share = float((np.abs(loud) >= 1).mean())
    assert defects.clipping(in_16_bit(0.3 * np.clip(loud, -1, 1))) == pytest.approx(share, rel=0.35)


@pytest.mark.parametrize("level", [1.0, 0.1])
def test_silence_is_a_share_of_the_time(level: float) -> None:
    half = np.pad(level * music(4, RATE), ((0, 0), (0, 4 * RATE)))
    assert defects.silence(half, RATE) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(("hiss_db", "alone"), [(-66, 0), (-80, 1)])
def test_a_hiss_after_the_music_is_silence(hiss_db: float, alone: int) -> None:
    hiss = np.random.default_rng(0).standard_normal((1, 6 * RATE)).astype(np.float32) * np.float32(10 ** (hiss_db / 20))
    assert defects.silence(np.concatenate([2 * music(2, RATE), hiss], axis=1), RATE) == pytest.approx(0.75, abs=0.03)
    assert defects.silence(hiss, RATE) == alone


@pytest.mark.parametrize("wave", [np.zeros((2, 5 * RATE), np.float32), np.zeros((1, 0), np.float32)])
def test_nothing_is_silence(wave: Wave) -> None:
    assert defects.silence(wave, RATE) == 1


@pytest.mark.parametrize("level", [1.0, 0.05])
def test_music_is_no_silence(level: float) -> None:
    assert defects.silence(level * music(4, RATE, channels=2), RATE) == 0


def test_less_than_a_step_is_measured_too() -> None:
    assert defects.silence(tone(30)[:, : RATE // 20], RATE) == 0


def test_an_offset_is_measured_on_the_worse_side() -> None:
    wave = 0.5 * music(4, RATE, channels=2)
    assert defects.offset(wave) < defects.OFFSET
    wave[1] -= 0.05
    assert defects.offset(wave) == pytest.approx(0.05, abs=2e-3)
    assert defects.offset(np.zeros((1, 0), np.float32)) == 0


def sides(left: Wave, right: Wave) -> Wave:
    return np.concatenate([left, right])


def one() -> Wave:
    return music(4, RATE, 0)


def other() -> Wave:
    return music(4, RATE, 5)


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (one, "mono"),
        (lambda: music(4, RATE, channels=2), "stereo"),
        (lambda: sides(one(), other()), "stereo"),
        (lambda: sides(one(), 0.8 * one()), "stereo"),  # the same, but to the left
        (lambda: sides(one(), one()), "twin"),
        (lambda: np.zeros((2, RATE), np.float32), "twin"),
        (lambda: np.zeros((2, 0), np.float32), "twin"),
        (lambda: sides(one(), 0 * one()), "left only"),
        (lambda: sides(1e-3 * other(), one()), "right only"),
        (lambda: sides(one(), -one()), "inverted"),
        (lambda: sides(one(), -0.7 * one() + 0.1 * other()), "inverted"),
        (lambda: sides(one(), other() - 0.7 * one()), "out of phase"),
    ],
)
def test_channels(make: Callable[[], Wave], found: str) -> None:
    assert defects.channels(make()) == found


def slope(wave: Wave, hertz: float, poles: int) -> Wave:
    """Darkens a wave by 6 dB an octave and pole above `hertz`, as no coder does."""
    spectrum = np.fft.rfft(wave)
    frequencies = np.fft.rfftfreq(wave.shape[1], 1 / RATE)
    return np.fft.irfft(spectrum / (1 + (frequencies / hertz) ** 2) ** (poles / 2), wave.shape[1]).astype(np.float32)


@pytest.mark.parametrize("hertz", [2000, 4000, 8000, 11_025])
@pytest.mark.parametrize("level", [1.0, 0.02])
def test_a_converter_leaves_a_cliff(hertz: float, level: float) -> None:
    narrow = in_16_bit(level * low_passed(music(4, RATE, 1, channels=2), RATE, hertz))
    assert defects.bandwidth(narrow, RATE) == pytest.approx(hertz, rel=0.06)


@pytest.mark.parametrize(
    ("kbits", "least", "most"), [(64, 10_000, 12_500), (96, 14_500, 17_000), (128, 15_500, 18_000)]
)
def test_an_mp3_leaves_a_cliff(kbits: int, least: float, most: float) -> None:
    found = defects.bandwidth(as_mp3(music(4, 44_100, 1, channels=2), 44_100, kbits), 44_100)
    assert least < found < most < defects.NARROW_SHARE * 22_050


@pytest.mark.parametrize("poles", [1, 2, 4, 8])
@pytest.mark.parametrize("hertz", [300, 2000])
def test_dark_music_is_not_narrow(hertz: float, poles: int) -> None:
    assert defects.bandwidth(slope(music(4, RATE), hertz, poles), RATE) == RATE / 2


@pytest.mark.parametrize(
    "make",
    [
        lambda: music(4, RATE, channels=2),
        lambda: resampled(music(4, 44_100), 44_100, RATE),
        lambda: as_mp3(music(4, RATE, channels=2), RATE, 320),
        lambda: tone(440),
        lambda: 0.2 * (tone(220) + tone(440) + tone(880) + tone(2900)),
        lambda: np.zeros((1, RATE), np.float32),
        lambda: np.zeros((1, 0), np.float32),
    ],
)
def test_full_music_and_lone_tones_have_no_cliff(make: Callable[[], Wave]) -> None:
    assert defects.bandwidth(make(), RATE) == RATE / 2
