"""The key of a song from its tuning, its pitch classes and its chords.

Pitch classes alone confuse a key with its dominant or relative key; chords distinguish these better, but need triads.
So both are used, of spectral peaks, which drums do not have.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from musicgen_dreamboothing.analysis.spectrum import mono_at, spectra
from musicgen_dreamboothing.audio import Wave, is_silent

Array = NDArray[np.float64]

TONICS = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
MODES = ("major", "minor")

RATE = 11_025  # Hz
WINDOW, HOP = 8192, 2048  # samples: 1.3 Hz fine, for semitones in the bass; 5.4 frames a second
LOWEST_HZ, HIGHEST_HZ = 50.0, 2200.0
FAINTEST = 1e-4  # a peak, beside the loudest of the song
SHORTEST_SECONDS = 3.0
MIN_TUNED = 0.05  # how well peaks agree on one tuning, 0..1: noise and drums do not
SURE = 0.8

# Of each semitone above the tonic: Albrecht & Shanahan (2013), "The use of large corpora to train a new type of
# key-finding algorithm"; better here than Krumhansl & Kessler's, Temperley's (two) and Faraldo's (two).
PROFILES = (
    (0.238, 0.006, 0.111, 0.006, 0.137, 0.094, 0.016, 0.214, 0.009, 0.080, 0.008, 0.081),
    (0.220, 0.006, 0.104, 0.123, 0.019, 0.103, 0.012, 0.214, 0.062, 0.022, 0.061, 0.052),
)
# The share of time that popular songs spend on major and minor triads, by the semitones of their root above the tonic:
# round figures of our own. Triads that are not named get `RARE`.
CHORDS = (
    {"major": {0: 0.33, 5: 0.2, 7: 0.2, 10: 0.03, 8: 0.015}, "minor": {9: 0.1, 2: 0.07, 4: 0.03}},
    {"major": {8: 0.14, 10: 0.14, 3: 0.09, 7: 0.08, 5: 0.02}, "minor": {0: 0.35, 5: 0.12, 7: 0.05}},
)
RARE = 0.008
FLAT = 0.2  # deviations as small as this make no key: a triad's are 1.5
CHORD_WEIGHT = 0.5
CHORD_CONTRAST = 16.0
CHORD_FRAMES = 5  # of a chord: a second
CERTAINTY = 8.0  # turns a lead of the best key into its probability; fitted on the pieces of benchmarks/listening.py
CERTAIN_SECONDS = 24.0  # their length; shorter pieces have fewer chords


@dataclass(frozen=True)
class Key:
    """A key."""

    tonic: str
    mode: str
    confidence: float  # probability
    cents: float  # tuning above A = 440 Hz
    classes: tuple[float, ...] = ()  # shares of the twelve pitch classes, from C up

    @property
    def name(self) -> str:
        """Such as `A minor`."""
        return f"{self.tonic} {self.mode}"

    @property
    def is_sure(self) -> bool:
        """Whether it is probable enough to be used."""
        return self.confidence >= SURE


def find_key(wave: Wave, rate: int) -> Key | None:
    """The key of `[C, S]` at `rate` Hz; None if it is not tonal: silence, noise, drums, less than 3 s."""
    if is_silent(wave) or wave.shape[1] < SHORTEST_SECONDS * rate:
        return None
    frame, hertz, strength = _peaks(mono_at(wave, rate, RATE))
    pitch = 69 + 12 * np.log2(hertz / 440)
    pull = np.sum(strength * np.exp(2j * np.pi * pitch)) / max(strength.sum(), 1e-9)
    if abs(pull) < MIN_TUNED:
        return None
    tuning = float(np.angle(pull) / (2 * np.pi))  # semitones
    chroma = _chroma(frame, pitch - tuning, strength)
    scores = _scores(chroma)
    certainty = CERTAINTY * min(1.0, np.sqrt(wave.shape[1] / rate / CERTAIN_SECONDS))
    chances = np.exp(certainty * (scores - scores.max()))
    best = int(scores.argmax())
    confidence = float(1 / chances.sum())
    classes = chroma.sum(axis=0) / max(float(chroma.sum()), 1e-12)
    return Key(TONICS[best % 12], MODES[best // 12], confidence, 100 * tuning, tuple(classes.tolist()))


def _peaks(mono: NDArray[np.float32]) -> tuple[NDArray[np.intp], Array, Array]:
    """Frame, frequency in Hz and strength of every peak of the spectra, between bins by a parabola through the logs."""
    first, last = (round(hertz * WINDOW / RATE) for hertz in (LOWEST_HZ, HIGHEST_HZ))
    magnitudes = np.concatenate([block[:, first - 1 : last + 1] for block in spectra(mono, WINDOW, HOP)])
    before, here, after = magnitudes[:, :-2], magnitudes[:, 1:-1], magnitudes[:, 2:]
    frame, place = np.nonzero((here > before) & (here >= after) & (here > FAINTEST * magnitudes.max()))
    left, top, right = (np.log(side[frame, place] + 1e-12).astype(float) for side in (before, here, after))
    shift = (left - right) / (2 * (left - 2 * top + right) - 1e-12)
    return frame, (first + place + shift) * RATE / WINDOW, here[frame, place].astype(float)


def _chroma(frame: NDArray[np.intp], pitch: Array, strength: Array) -> Array:
    """Pitch classes over time `[T, 12]`; frames have equal weight, except almost silent ones."""
    nearest = np.round(pitch)
    chroma = np.zeros((frame.max() + 1, 12))
    in_tune = np.cos(np.pi * (pitch - nearest)) ** 2
    np.add.at(chroma, (frame, nearest.astype(int) % 12), strength * in_tune)
    loudest = chroma.max(axis=1, keepdims=True)
    return chroma / (loudest + 0.05 * np.median(loudest) + 1e-12)


def _scores(chroma: Array) -> Array:
    """Scores of the keys `[24]`, C major to B major and C minor to B minor."""
    by_pitches = _unit(chroma.mean(axis=0), FLAT) @ _unit(_transposed(np.array(PROFILES)[:, None])[:, 0]).T
    return by_pitches + CHORD_WEIGHT * _chords(chroma) @ np.log(_chord_profiles()).T


def _chords(chroma: Array) -> Array:
    """The share of time on each triad `[24]`, in the order of keys: the mean of their probabilities."""
    half = CHORD_FRAMES // 2
    padded = np.pad(chroma, ((half, half), (0, 0)), mode="edge")
    held = sum(padded[shift : shift + len(chroma)] for shift in range(CHORD_FRAMES))
    triads = np.zeros((2, 1, 12))
    triads[0, 0, [0, 4, 7]] = triads[1, 0, [0, 3, 7]] = 1
    fits = CHORD_CONTRAST * _unit(np.asarray(held) / CHORD_FRAMES, FLAT) @ _unit(_transposed(triads)[:, 0]).T
    chances = np.exp(fits - fits.max(axis=1, keepdims=True))
    return (chances / chances.sum(axis=1, keepdims=True)).mean(axis=0)


def _chord_profiles() -> Array:
    """`[24 keys, 24 triads]`."""
    table = np.full((2, 2, 12), RARE)
    for mode, shares in enumerate(CHORDS):
        for kind, name in enumerate(MODES):
            table[mode, kind, list(shares[name])] = list(shares[name].values())
    return _transposed(table).reshape(24, 24)


def _transposed(profiles: Array) -> Array:
    """`[2, R, 12]` above the tonic -> `[24, R, 12]` above C, for the twelve tonics of either mode."""
    return np.array([np.roll(profile, tonic, axis=-1) for profile in profiles for tonic in range(12)])


def _unit(rows: Array, flat: float = 0.0) -> Array:
    """Rows without their mean and of length 1, so that products are correlations; `flat` shortens flat ones."""
    centred = rows - rows.mean(axis=-1, keepdims=True)
    return centred / (np.linalg.norm(centred, axis=-1, keepdims=True) + flat + 1e-12)
