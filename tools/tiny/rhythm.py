"""Tempo and pulse of a wave `[S]` at `rate` Hz, for the model card of the built-in checkpoint."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from musicgen_dreamboothing.evaluation.metrics.signal import (
    ENVELOPE_HZ,
    autocorrelation,
    beat_lags,
    mel_db,
    onset_envelope,
)

Array = NDArray[np.float64]

FINE_TEMPI = 480  # on a log grid: 0.4 % apart
USUAL_BPM, SPREAD_OCTAVES = 120.0, 1.0  # the prior of Ellis (2007), "Beat tracking by dynamic programming", section 3.2
GAP_STEPS = 5  # two onsets closer than this are one


def tempo(wave: NDArray[np.float32], rate: int) -> float:
    """Beats per minute, between 40 and 240, or NaN where there are no onsets.

    The tempo after whose half beat, beat, two beats and four the onsets repeat: autocorrelation summed over these lags,
    times a log-normal prior around 120 bpm (Ellis 2007, section 3.2).
    """
    lags = beat_lags(FINE_TEMPI)
    bpm = 60 * ENVELOPE_HZ / lags
    envelope = np.convolve(onset_envelope(mel_db(wave, rate)), np.hanning(5) / 2, mode="same")
    comb = sum(autocorrelation(envelope, beats * lags) for beats in (0.5, 1, 2, 4))
    score = comb * np.exp(-0.5 * (np.log2(bpm / USUAL_BPM) / SPREAD_OCTAVES) ** 2)
    return float(bpm[score.argmax()]) if score.max() > 0 else math.nan


def tempo_matches(bpm: float, asked: float, tolerance: float = 0.08) -> bool:
    """Whether a tempo is the asked one, its half or its double, within a share ("Accuracy 2" without thirds of Gouyon
    et al. 2006). NaN matches nothing.
    """
    return any(abs(bpm / (asked * octave) - 1) <= tolerance for octave in (0.5, 1.0, 2.0))


def pulse(wave: NDArray[np.float32], rate: int, seed: int, copies: int = 100) -> float:
    """How regular the onsets are: the share of shuffled copies that are less regular, 0 to 1.

    Copies have onsets of the same strengths at random places. The strength of a pulse is the best autocorrelation at
    any beat of 40 to 240 bpm. Steady music has 1; fewer than four onsets have 0.
    """
    envelope = onset_envelope(mel_db(wave, rate))
    places = _peaks(envelope)
    if len(places) < 4:
        return 0.0
    strengths = envelope[places]
    own = _periodicity(places, strengths, len(envelope))
    rng = np.random.default_rng(seed)
    others = [_periodicity(*_scattered(strengths, len(envelope), rng), len(envelope)) for _ in range(copies)]
    return float(np.mean(own > np.array(others)))


def _peaks(envelope: Array) -> NDArray[np.int64]:
    """Steps that are the highest of their neighbourhood and above the envelope's mean `[N]`."""
    padded = np.pad(envelope, GAP_STEPS - 1, constant_values=-1.0)
    highest = np.lib.stride_tricks.sliding_window_view(padded, 2 * GAP_STEPS - 1).max(axis=1)
    threshold = max(0.5, float(envelope.mean() + 0.5 * envelope.std()))  # dB
    places = np.flatnonzero((envelope == highest) & (envelope > threshold))
    return places[np.diff(places, prepend=-GAP_STEPS) >= GAP_STEPS]


def _scattered(strengths: Array, steps: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], Array]:
    """The same onsets in another order at random places of `steps`, at least a gap apart."""
    number = len(strengths)
    free = max(steps - (number - 1) * GAP_STEPS, 1)
    places = np.sort(rng.integers(free, size=number)) + GAP_STEPS * np.arange(number)
    return places, rng.permutation(strengths)


def _periodicity(places: NDArray[np.int64], strengths: Array, steps: int) -> float:
    """The best autocorrelation of onsets, blurred by some 20 ms, at any beat."""
    train = np.zeros(steps)
    train[places[places < steps]] = strengths[places < steps]
    blurred = np.convolve(train, np.hanning(7), mode="same")
    return float(autocorrelation(blurred, beat_lags(FINE_TEMPI // 2)).max())
