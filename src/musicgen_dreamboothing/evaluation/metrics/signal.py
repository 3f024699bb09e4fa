"""Sound embeddings without a trained network: statistics of the mel spectrogram and of its onsets.

A wave is float32 `[S]`, mono, full scale at -1 and 1, at `rate` Hz.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers.audio_utils import mel_filter_bank

Array = NDArray[np.float64]

BANDS = 64
FLOOR_DB = -60.0  # below full scale
LOWEST_HZ, HIGHEST_HZ = 40.0, 8000.0
WINDOW_SECONDS = 0.032
ENVELOPE_HZ = 100  # steps of spectrogram and onset envelope
RISE_STEPS = 2  # an attack is compared with what sounded this long before
SLOWEST_BPM, FASTEST_BPM = 40.0, 240.0
RHYTHM_LAGS = 24


def mel_db(wave: NDArray[np.float32], rate: int) -> Array:
    """Power in 64 mel bands from 40 Hz to 8 kHz (or half the rate), in dB, `[T, BANDS]` at 100 Hz.

    A sine at full scale is near 0 dB; -60 dB is the floor. Hann windows of 32 ms lie inside the wave; a shorter wave
    is padded with silence.
    """
    window = round(WINDOW_SECONDS * rate)
    padded = np.pad(np.asarray(wave, np.float64), (0, max(0, window - len(wave))))
    steps = int((len(padded) - window) * ENVELOPE_HZ / rate) + 1
    starts = np.round(np.arange(steps) * rate / ENVELOPE_HZ).astype(int)
    hann = np.hanning(window + 1)[:-1]
    size = 2 ** math.ceil(math.log2(2 * window))  # twice as fine as the window, for the narrow lowest bands
    spectrum = np.fft.rfft(padded[starts[:, None] + np.arange(window)] * hann, size)
    power = np.abs(spectrum) ** 2 / (hann.sum() / 2) ** 2
    highest = min(HIGHEST_HZ, rate / 2)
    filters = mel_filter_bank(size // 2 + 1, BANDS, LOWEST_HZ, highest, rate, norm=None, mel_scale="htk")
    return 10 * np.log10(power @ filters + 10 ** (FLOOR_DB / 10))


def onset_envelope(bands: Array) -> Array:
    """How much louder the bands of `mel_db` `[T, BANDS]` get, in dB, `[T]`: the mean of positive log-mel flux.

    After Böck & Widmer (2013), "Maximum filter vibrato suppression for onset detection", section 2, without their
    filter. A sound that starts at step 0 has no onset.
    """
    before = np.concatenate([np.repeat(bands[:1], RISE_STEPS, axis=0), bands[:-RISE_STEPS]])[: len(bands)]
    return np.clip(bands - before, 0, None).mean(axis=1)


def autocorrelation(envelope: Array, lags: Array) -> Array:
    """Autocorrelation of `[T]` at lags in steps, fractions interpolated; 1 at lag 0, and 0 everywhere if it is flat.

    Each lag is divided by the number of steps that overlap, so that long lags are not weaker for being long.
    """
    centred = envelope - envelope.mean()
    steps = len(centred)
    spectrum = np.fft.rfft(centred, 2 * steps)
    full = np.fft.irfft(np.abs(spectrum) ** 2)[:steps] / np.arange(steps, 0, -1)
    if full[0] < 1e-9:
        return np.zeros(len(lags))
    return np.interp(lags, np.arange(steps), full / full[0], right=0.0)


def beat_lags(number: int) -> Array:
    """Lengths of a beat in steps of the envelope, for `number` tempi of 40 to 240 bpm at equal ratios."""
    return 60 * ENVELOPE_HZ / np.geomspace(SLOWEST_BPM, FASTEST_BPM, number)


def embed(wave: NDArray[np.float32], rate: int) -> Array:
    """One vector `[2 * 64 + 24]` of timbre, its movement, and rhythm; a fallback for CLAP, blind to harmony and melody.

    For each mel band its mean and its standard deviation over time in dB, then the autocorrelation of the onset
    envelope at beats of 40 to 240 bpm. Its parts have different units, so compare vectors in a `Space` only.
    """
    bands = mel_db(wave, rate)
    envelope = np.convolve(
        onset_envelope(bands), np.hanning(7) / 3, mode="same"
    )  # a beat is as wide as the grid is coarse
    rhythm = autocorrelation(envelope, beat_lags(RHYTHM_LAGS))
    return np.concatenate([bands.mean(axis=0), bands.std(axis=0), rhythm])


@dataclass(frozen=True)
class Space:
    """Where embeddings are compared: standardised by reference clips and projected on their principal components.

    Distances in different spaces have different units: fit one, on real music, and use it for all that is compared.

    Attributes:
        centre: mean of the reference embeddings `[D]`.
        scale: their standard deviations `[D]`.
        components: orthonormal directions `[P, D]`, the widest first.
    """

    centre: Array
    scale: Array
    components: Array

    @classmethod
    def fit(cls, reference: Array, dimensions: int = 12) -> Space:
        """The space of reference embeddings `[N, D]`; of `dimensions`, or as many as N clips span."""
        centre, scale = reference.mean(axis=0), reference.std(axis=0) + 1e-6
        _, _, components = np.linalg.svd((reference - centre) / scale, full_matrices=False)
        return cls(centre, scale, components[: min(dimensions, len(reference) - 1)])

    def project(self, embeddings: Array) -> Array:
        """`[N, D]` -> `[N, P]`."""
        return (embeddings - self.centre) / self.scale @ self.components.T
