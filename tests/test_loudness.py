"""Loudness, against the figures that BS.1770 gives for sines, and the gain that never clips."""

from __future__ import annotations

import math

import numpy as np
import pytest
from made_music import music

from musicgen_dreamboothing.audio import Wave
from musicgen_dreamboothing.listening.loudness import CEILING_DB, gain_to, loudness, normalised, peak

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
