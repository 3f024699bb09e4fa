"""What the search for copies by sound compares: windows of a spectrogram in semitones, blind to level and colour.

A transposition is a shift of the bands, another speed another number of steps between them.
"""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.audio import Wave

Floats = NDArray[np.float32]

RATE, SIZE = 8000, 2048  # Hz, samples of a spectrum: 0.26 s
STEPS_HZ = 20  # spectra a second
LOWEST_HZ = 98.0  # of the lowest band that is compared: below it SIZE resolves no semitones
BANDS, MOST_SEMITONES = 60, 2  # that are compared, up to 3 kHz, and by which a copy may be transposed
RANGE_DB = 40.0  # below the mean level of a sound's loud moments, where its floor is
WINDOW_SECONDS = 3.0  # as in Barnett et al. 2024, "Exploring musical roots", https://arxiv.org/abs/2401.14542
WINDOW = round(WINDOW_SECONDS * STEPS_HZ)  # steps
BLOCK = 256  # spectra that are computed at once
SHAPES, MOVEMENTS = 20, 9  # coefficients of a window over frequency and over time


class Variant(NamedTuple):
    """How a copy differs from its song: `semitones` higher and `speed` times as fast."""

    semitones: int
    speed: float


SPEEDS = (0.95, 1.0, 1.05)
UNCHANGED = Variant(0, 1.0)
VARIANTS = [Variant(*pair) for pair in product(range(-MOST_SEMITONES, MOST_SEMITONES + 1), SPEEDS)]


def spectrogram(wave: Wave, rate: int) -> Floats:
    """`[C, S]` -> `[T, BANDS + 2 * MOST_SEMITONES]`, in dB, one band for each semitone, at `STEPS_HZ`.

    Levels are relative to the sound's own, so that gain changes nothing.
    """
    mono = np.pad(audio.resample(audio.to_channels(wave, 1), rate, RATE)[0], SIZE // 2)
    frames = np.lib.stride_tricks.sliding_window_view(mono, SIZE)[:: RATE // STEPS_HZ]
    hann, bands = np.hanning(SIZE).astype(np.float32), _bands()
    blocks = [np.abs(fft.rfft(frames[at : at + BLOCK] * hann)) ** 2 @ bands for at in range(0, len(frames), BLOCK)]
    power = np.concatenate(blocks).astype(np.float32)
    loud = max(float(np.quantile(power.mean(axis=1), 0.95)), 1e-10)
    padded = np.pad(10 * np.log10(power / loud + 10 ** (-RANGE_DB / 10)), ((1, 1), (0, 0)), mode="edge")
    return (0.25 * padded[:-2] + 0.5 * padded[1:-1] + 0.25 * padded[2:]).astype(np.float32)


@cache
def _bands() -> Floats:
    """Triangular filters a semitone apart, `[F, BANDS + 2 * MOST_SEMITONES]`, each with a sum of 1."""
    hertz = fft.rfftfreq(SIZE, 1 / RATE)
    semitones = 12 * np.log2(np.maximum(hertz, 1.0) / LOWEST_HZ)[:, None]
    distance = np.abs(semitones - np.arange(-MOST_SEMITONES, BANDS + MOST_SEMITONES))
    filters = np.maximum(0, 1 - distance)
    filters[distance.argmin(axis=0), np.arange(filters.shape[1])] += 1e-6  # where none lies within
    return (filters / filters.sum(axis=0)).astype(np.float32)


def shapes(spectra: Floats, variant: Variant = UNCHANGED) -> Floats:
    """A spectrogram as if transposed and slowed down by `variant`: coefficients over frequency, `[T, SHAPES]`."""
    low = MOST_SEMITONES + variant.semitones
    moments = np.arange(round((len(spectra) - 1) * variant.speed) + 1) / variant.speed
    before = np.minimum(moments.astype(int), len(spectra) - 1)
    after, share = np.minimum(before + 1, len(spectra) - 1), (moments - before).astype(np.float32)[:, None]
    coefficients = spectra[:, low : low + BANDS] @ _cosines(BANDS, SHAPES)
    return coefficients[before] * (1 - share) + coefficients[after] * share


def windows(coefficients: Floats, starts: NDArray[np.int64]) -> Floats:
    """Windows of `shapes` that begin at these steps, as vectors of length 1, `[W, SHAPES * MOVEMENTS]`.

    Coefficients of a cosine transform over time; the mean over time, a sound's colour, is left out.
    """
    missing = max(0, int(starts[-1]) + WINDOW - len(coefficients))
    padded = np.pad(coefficients, ((0, missing), (0, 0)), mode="edge")
    pieces = np.lib.stride_tricks.sliding_window_view(padded, WINDOW, axis=0)[starts]  # [W, SHAPES, WINDOW]
    rows = (pieces @ _cosines(WINDOW, MOVEMENTS + 1)[:, 1:]).reshape(len(starts), -1)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


@cache
def _cosines(length: int, number: int) -> Floats:
    """The first vectors of the orthonormal discrete cosine transform (DCT-II), `[length, number]`."""
    cosines = np.cos(np.pi * (np.arange(length)[:, None] + 0.5) * np.arange(number) / length)
    return (cosines * np.sqrt(np.where(np.arange(number) == 0, 1, 2) / length)).astype(np.float32)
