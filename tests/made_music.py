"""Music made of formulas, for tests of what listens: drums, bass and chords over a breath of noise."""

from __future__ import annotations

import io
from functools import cache

import av
import numpy as np
import soxr
from numpy.typing import NDArray

from musicgen_dreamboothing import audio

Array = NDArray[np.float64]


@cache
def music(seconds: float, rate: int, seed: int = 0, *, bpm: float = 120.0, channels: int = 1) -> NDArray[np.float32]:
    """A piece `[C, S]` with a peak of 0.5 and something in all bands; another seed is another piece.

    It is made once and can't be changed, only copied.
    """
    rng = np.random.default_rng(seed)
    samples, beat = int(seconds * rate), 60 / bpm
    scale = 55 * 2 ** (rng.integers(12) / 12) * 2 ** (np.array([0, 2, 3, 5, 7, 8, 10]) / 12)
    sides = np.zeros((channels, samples))
    for step in range(int(seconds / beat * 2)):
        start = int(step * beat / 2 * rate)
        if step % 2 == 0:
            _add(sides, start, _note(rng.choice(scale), 0.9 * beat, rate, partials=12) * 0.5)
        if step % 8 == 0:
            degree = rng.integers(7)
            for third in (0, 2, 4):
                pitch = scale[(degree + third) % 7] * 4
                _add(sides, start, _note(pitch, 3.6 * beat, rate, partials=20) * 0.2, rng.uniform(0.3, 1, channels))
        loud = (0.8, 0.15, 0.5, 0.15)[step % 4] * rng.uniform(0.7, 1)
        _add(sides, start, _hit(rng, rate, 0.18 if step % 4 == 0 else 0.06) * loud, rng.uniform(0.6, 1, channels))
    sides += 1e-3 * rng.standard_normal(sides.shape)
    wave = (0.5 * sides / np.abs(sides).max()).astype(np.float32)
    wave.flags.writeable = False
    return wave


def _add(sides: Array, start: int, sound: Array, weights: Array | float = 1.0) -> None:
    room = sides.shape[1] - start
    sides[:, start : start + len(sound)] += np.reshape(weights, (-1, 1)) * sound[:room]


def _note(hertz: float, seconds: float, rate: int, partials: int) -> Array:
    """A plucked string."""
    time = np.arange(int(seconds * rate)) / rate
    number = np.arange(1, partials + 1)
    number = number[number * hertz < rate / 2]
    waves = np.sin(2 * np.pi * hertz * number[:, None] * time) / number[:, None]
    return (waves * np.exp(-time * 2 * number[:, None] ** 0.5)).sum(axis=0)


def _hit(rng: np.random.Generator, rate: int, seconds: float) -> Array:
    """A drum: noise that dies away."""
    time = np.arange(int(5 * seconds * rate)) / rate
    return rng.standard_normal(len(time)) * np.exp(-time / seconds)


def low_passed(wave: NDArray[np.float32], rate: int, hertz: float) -> NDArray[np.float32]:
    """As a converter does it that goes through another rate and back."""
    low = soxr.resample(wave.T, rate, 2 * hertz, quality="HQ")
    back = soxr.resample(low, 2 * hertz, rate, quality="HQ").T
    return np.ascontiguousarray(back[:, : wave.shape[1]])


def as_mp3(wave: NDArray[np.float32], rate: int, kbits: int) -> NDArray[np.float32]:
    """`[2, S]` through an mp3 file."""
    memory = io.BytesIO()
    with av.open(memory, "w", format="mp3") as file:
        track = file.add_stream("libmp3lame", rate=rate, layout="stereo", bit_rate=1000 * kbits)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave.T).reshape(1, -1), format="flt", layout="stereo")
        frame.sample_rate = rate
        file.mux(track.encode(frame))
        file.mux(track.encode(None))
    return audio.decode(memory.getvalue(), rate)
