"""Loudness, against the figures that BS.1770 gives for sines, and the gain that never clips."""

from __future__ import annotations

import math

import numpy as np
import pytest
from made_music import music

from musicgen_dreamboothing.analysis.levels import Levels
from musicgen_dreamboothing.analysis.loudness import CEILING_DB, gain_to, loudness, normalised, peak
from musicgen_dreamboothing.audio import Wave

RATE = 32_000


def sine(amplitude: float, seconds: float = 3.0, rate: int = RATE, channels: int = 1) -> Wave:
    """Of 997 Hz, the standard's test tone."""
    times = np.arange(round(seconds * rate)) / rate
    return np.repeat(amplitude * np.sin(2 * np.pi * 997 * times)[None], channels, axis=0).astype(np.float32)


@pytest.mark.parametrize("rate", [16_000, 32_000, 44_100, 48_000])
@pytest.mark.parametrize(("channels", "lufs"), [(1, -3.01), (2, 0.0)])
def test_the_standards_sine(rate: int, channels: int, lufs: float) -> None:
    assert loudness(sine(1.0, rate=rate, channels=channels), rate) == pytest.approx(lufs, abs=0.1)


def test_half_the_amplitude_is_six_decibels_less() -> None:
    wave = music(5, RATE, channels=2)
    assert loudness(wave / 2, RATE) == pytest.approx(loudness(wave, RATE) - 6.02, abs=0.01)


def test_pauses_do_not_count() -> None:
    wave = sine(0.5)
    assert loudness(np.pad(wave, ((0, 0), (0, 10 * RATE))), RATE) == pytest.approx(loudness(wave, RATE), abs=0.4)


@pytest.mark.parametrize(
    "wave",
    [
        np.zeros((2, 3 * RATE), np.float32),
        np.zeros((1, 0), np.float32),
        sine(1e-5),  # below the standard's gate
        sine(0.5, seconds=0.3),  # shorter than a block
    ],
)
def test_nothing_to_measure(wave: Wave) -> None:
    assert loudness(wave, RATE) == -math.inf
    assert gain_to(loudness(wave, RATE), peak(wave), -14) == 1
    np.testing.assert_array_equal(normalised(wave, RATE, -14), wave)


@pytest.mark.parametrize("level", [0.01, 0.1, 0.5])
def test_a_wave_is_brought_to_the_target(level: float) -> None:
    wave = level * music(5, RATE, channels=2)
    assert loudness(normalised(wave, RATE, -30), RATE) == pytest.approx(-30, abs=0.05)


def test_a_peak_stops_the_gain_and_the_wave_keeps_its_form() -> None:
    wave = 0.02 * music(5, RATE, channels=2)
    wave[0, 1000] = 0.4
    louder = normalised(wave, RATE, -10)
    assert peak(louder) == pytest.approx(10 ** (CEILING_DB / 20), rel=1e-5)
    assert loudness(louder, RATE) < -10
    np.testing.assert_allclose(louder * peak(wave), wave * peak(louder), atol=1e-6)


def test_too_loud_is_turned_down() -> None:
    assert gain_to(-8.0, 1.0, -14.0) == pytest.approx(10 ** (-6 / 20))
    assert gain_to(-14.0, 1.4, -14.0) * 1.4 == pytest.approx(10 ** (CEILING_DB / 20))


# The same figures of a song that comes block by block


def pieces(wave: Wave, size: int) -> list[Wave]:
    return [wave[:, place : place + size] for place in range(0, wave.shape[1], size)]


@pytest.mark.parametrize("rate", [8_000, 11_025, 32_000, 44_100])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("seconds", [0.4, 0.73, 3.0, 25.01])
def test_loudness_does_not_depend_on_blocks(rate: int, channels: int, seconds: float) -> None:
    """With a fade, a pause and a soft end, so that both gates are at work."""
    size = round(seconds * rate) + 1
    wave = np.tile(0.3 * music(5, rate, channels=channels), 6)[:, :size]
    wave[:, size // 2 : 2 * size // 3] = 0
    wave[:, 3 * size // 4 :] *= np.linspace(0.5, 1e-4, size - 3 * size // 4, dtype=np.float32)
    levels = Levels(pieces(wave, 7919), rate)
    # one block alone hears that the filters are not at rest at the first sample, as an offset requires
    assert levels.loudness == pytest.approx(loudness(wave, rate), abs=0.05 if seconds > 0.4 else 0.1)
    assert levels.peak == pytest.approx(peak(wave), abs=1e-6)
    assert levels.samples == wave.shape[1]


@pytest.mark.parametrize("size", [1, 999, 16_000, 10**6])
def test_levels_do_not_depend_on_the_blocks(size: int) -> None:
    wave = music(3, 16_000, channels=2)[:, :29_001] + np.float32(0.1)
    levels, other = Levels(pieces(wave, size), 16_000), Levels([wave], 16_000)
    assert (levels.loudness, levels.peak, levels.begin, levels.end) == pytest.approx(
        (other.loudness, other.peak, other.begin, other.end)
    )
    np.testing.assert_allclose(levels.offset, other.offset)


@pytest.mark.parametrize("level", [1.0, 0.01])
def test_an_offset_is_no_loudness(level: float) -> None:
    wave = np.float32(level) * music(4, RATE, channels=2)
    levels = Levels([wave + np.float32(0.5)], RATE)
    assert levels.loudness == pytest.approx(loudness(wave, RATE), abs=0.05)
    assert levels.peak == pytest.approx(peak(wave), rel=0.05)
    assert levels.offset_share == pytest.approx(0.5 / peak(wave), rel=0.1)


@pytest.mark.parametrize("wave", [np.zeros((2, RATE), np.float32), sine(1e-5), sine(0.5, seconds=0.3)])
def test_levels_of_nothing_to_measure(wave: Wave) -> None:
    assert Levels([wave], RATE).loudness == -math.inf
