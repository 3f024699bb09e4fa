"""Sound embeddings without a trained network: statistics of the mel spectrogram and of its onsets.

A wave is float32 `[S]`, mono, full scale at -1 and 1, at `rate` Hz.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from transformers.audio_utils import mel_filter_bank

Array = NDArray[np.float64]

BANDS = 64
FLOOR_DB = -60.0  # below full scale
LOWEST_HZ, HIGHEST_HZ = 40.0, 8000.0
WINDOW_SECONDS = 0.032
ENVELOPE_HZ = 100  # steps of spectrogram and onset envelope
RISE_STEPS = 2  # an attack is compared with what sounded this long before
SLOWEST_BPM, FASTEST_BPM = 40.0, 240.0

# How far apart two sounds are that differ by one unit in one of the three parts of `embed`.
LEVEL_DB = 4.0  # RMS over bands; pieces of different styles differ by so much in their mean spectra
REPETITION = 0.25  # RMS over tempi of the smoothed autocorrelation, which is at most 1
RHYTHM_TEMPI, FASTEST_EIGHTHS = 45, 480.0
TEMPO_WIDTH = 0.12  # standard deviation of the smoothing, as a share of a tempo


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
    spectrum = fft.rfft(padded[starts[:, None] + np.arange(window)] * hann, size)
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
    spectrum = fft.rfft(centred, 2 * steps)
    full = fft.irfft(np.abs(spectrum) ** 2)[:steps] / np.arange(steps, 0, -1)
    if full[0] < 1e-9:
        return np.zeros(len(lags))
    return np.interp(lags, np.arange(steps), full / full[0], right=0.0)


def beat_lags(number: int, fastest: float = FASTEST_BPM) -> Array:
    """Lengths of a beat in steps of the envelope, for `number` tempi from 40 bpm to the fastest at equal ratios."""
    return 60 * ENVELOPE_HZ / np.geomspace(SLOWEST_BPM, fastest, number)


def rhythm(envelope: Array) -> Array:
    """How much the onsets `[T]` repeat at 45 tempi from 40 to 480 a minute (eighths of 240 bpm), `[45]`, at most 1.

    The autocorrelation, smoothed by a Gaussian over the logarithm of the tempo: songs of a style differ by some per
    cent in tempo, where peaks that do not overlap would be as far apart as any two.
    """
    logarithms = np.log(beat_lags(4 * RHYTHM_TEMPI, FASTEST_EIGHTHS))
    centres = np.linspace(logarithms[0], logarithms[-1], RHYTHM_TEMPI)
    weights = np.exp(-0.5 * ((centres[:, None] - logarithms) / TEMPO_WIDTH) ** 2)
    return weights / weights.sum(axis=1, keepdims=True) @ autocorrelation(envelope, np.exp(logarithms))


def embed(wave: NDArray[np.float32], rate: int) -> Array:
    """One vector `[64 + 64 + 45]` of timbre, its movement, and rhythm; blind to harmony and melody, and to text.

    For each mel band its mean and its standard deviation over time, then the `rhythm` of the onsets, each part as an
    RMS in units of `LEVEL_DB` or `REPETITION`, so that a Euclidean distance means the same for all sounds.

    Nothing is fitted to songs. A space fitted to the training songs treats held-out songs of the same style otherwise;
    it divides by what hardly varies, such as bands without sound; and figures of two runs have different units. It was
    no better either: of the built-in songs, played 25 % slower, the style distance was 0.4 with 12 principal components
    and 3.0 here, where single songs are up to 1.4 and 1.6 from the others.

    Sounds should have one loudness: a gain moves all bands.
    """
    bands = mel_db(wave, rate)
    onsets = np.convolve(onset_envelope(bands), np.hanning(7) / 3, mode="same")
    parts = (bands.mean(axis=0) / LEVEL_DB, bands.std(axis=0) / LEVEL_DB, rhythm(onsets) / REPETITION)
    return np.concatenate([part / math.sqrt(len(part)) for part in parts])


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
        centre, scale = reference.mean(axis=0), np.maximum(reference.std(axis=0), 1e-6)
        _, _, components = np.linalg.svd((reference - centre) / scale, full_matrices=False)
        return cls(centre, scale, components[: min(dimensions, len(reference) - 1)])

    def project(self, embeddings: Array) -> Array:
        """`[N, D]` -> `[N, P]`."""
        return (embeddings - self.centre) / self.scale @ self.components.T
