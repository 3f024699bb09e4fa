"""Figures of sound that need no trained network: what a clip sounds like, its tempo, whether it has a pulse.

A wave is float32 `[S]`, mono, full scale at -1 and 1, at `rate` Hz. Everything here is a pure function of numpy
arrays; this room knows nothing of models, captions or files.
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
FINE_TEMPI = 480  # on a log grid: 0.4 % apart
USUAL_BPM, SPREAD_OCTAVES = 120.0, 1.0  # the prior of Ellis (2007), "Beat tracking by dynamic programming", section 3.2
GAP_STEPS = 5  # two onsets closer than this are one


def mel_db(wave: NDArray[np.float32], rate: int) -> Array:
    """Power in 64 mel bands from 40 Hz to 8 kHz (or half the rate), in dB, `[T, BANDS]` at 100 Hz.

    A sine at full scale is near 0 dB, how near depends on the rate; nothing lies below -60 dB. Windows of 32 ms
    (Hann) lie wholly inside the wave; one that is shorter than a window is filled up with silence.
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


def onset_envelope(wave: NDArray[np.float32], rate: int) -> Array:
    """How much louder the bands get, in dB, `[T]` at 100 Hz: the mean over bands of positive log-mel flux.

    After Böck & Widmer (2013), "Maximum filter vibrato suppression for onset detection", section 2, without their
    filter. What sounds at the very start has no onset, for nothing is known of the time before.
    """
    return _rises(mel_db(wave, rate))


def _rises(bands: Array) -> Array:
    """`[T, BANDS]` -> `[T]`."""
    before = np.concatenate([np.repeat(bands[:1], RISE_STEPS, axis=0), bands[:-RISE_STEPS]])[: len(bands)]
    return np.clip(bands - before, 0, None).mean(axis=1)


def _autocorrelation(envelope: Array, lags: Array) -> Array:
    """Autocorrelation of `[T]` at lags in steps, fractions interpolated; 1 at lag 0, and 0 everywhere if it is flat.

    Each lag is divided by the steps it overlaps: long lags are not weaker for being long.
    """
    centred = envelope - envelope.mean()
    steps = len(centred)
    spectrum = np.fft.rfft(centred, 2 * steps)
    full = np.fft.irfft(np.abs(spectrum) ** 2)[:steps] / np.arange(steps, 0, -1)
    if full[0] < 1e-9:
        return np.zeros(len(lags))
    return np.interp(lags, np.arange(steps), full / full[0], right=0.0)


def _tempo_grid(number: int) -> Array:
    """Tempi in bpm `[number]`, equal ratios apart."""
    return np.geomspace(SLOWEST_BPM, FASTEST_BPM, number)


def _lags(bpm: Array) -> Array:
    """The length of a beat in steps of the envelope."""
    return 60 * ENVELOPE_HZ / bpm


def embed(wave: NDArray[np.float32], rate: int) -> Array:
    """One vector `[2 * 64 + 24]` that tells styles apart: timbre, its movement, and rhythm.

    For each mel band its mean and its standard deviation over time in dB, then the autocorrelation of the onset
    envelope at beats of 40 to 240 bpm. It stands in for CLAP's embeddings where no network may be had: it hears
    instruments, loudness and rhythm, but neither harmony nor melody nor anything beyond statistics of the clip.
    Its parts have different units, so compare vectors in a `Space` only.
    """
    bands = mel_db(wave, rate)
    envelope = np.convolve(_rises(bands), np.hanning(7) / 3, mode="same")  # a beat is as wide as the grid is coarse
    rhythm = _autocorrelation(envelope, _lags(_tempo_grid(RHYTHM_LAGS)))
    return np.concatenate([bands.mean(axis=0), bands.std(axis=0), rhythm])


@dataclass(frozen=True)
class Space:
    """Where embeddings are compared: standardised by reference clips and projected on their principal components.

    A Gaussian in 152 dimensions cannot be estimated from a few dozen clips; in about 12 it can. Distances in
    different spaces have different units: fit one, on real music, and use it for everything that is compared.

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


def tempo(wave: NDArray[np.float32], rate: int) -> float:
    """Beats per minute, between 40 and 240, or NaN where nothing begins.

    The tempo after whose half beat, beat, two beats and four the onsets repeat: autocorrelation summed over these lags,
    times a log-normal prior around 120 bpm (Ellis 2007, section 3.2). So it hears music in 2/4 and 4/4; the half beat
    keeps it from taking three eighths for a beat. Which octave is meant remains a guess.
    """
    bpm = _tempo_grid(FINE_TEMPI)
    envelope = np.convolve(onset_envelope(wave, rate), np.hanning(5) / 2, mode="same")
    comb = sum(_autocorrelation(envelope, beats * _lags(bpm)) for beats in (0.5, 1, 2, 4))
    score = comb * np.exp(-0.5 * (np.log2(bpm / USUAL_BPM) / SPREAD_OCTAVES) ** 2)
    return float(bpm[score.argmax()]) if score.max() > 0 else math.nan


def tempo_matches(bpm: float, wanted: float, tolerance: float = 0.08) -> bool:
    """Whether a tempo is the wanted one, its half or its double, give or take a share: "Accuracy 2" of Gouyon et al.
    (2006) without its thirds, where 8 % is the usual tolerance of "Accuracy 1". NaN matches nothing.
    """
    return any(abs(bpm / (wanted * octave) - 1) <= tolerance for octave in (0.5, 1.0, 2.0))


def pulse(wave: NDArray[np.float32], rate: int, seed: int, copies: int = 100) -> float:
    """How regular the onsets are: the share of shuffled copies that are less so, 0 to 1.

    Of the onsets only place and strength are kept. Copies have as many, as strong ones, at random places that are no
    closer than onsets can be told apart. The strength of a pulse is the best autocorrelation at any beat of 40 to
    240 bpm. Steady music has 1, onsets at random places are as likely above any copy as below it, and a wave of fewer
    than four onsets has 0.
    """
    envelope = onset_envelope(wave, rate)
    places = _peaks(envelope)
    if len(places) < 4:
        return 0.0
    strengths = envelope[places]
    own = _periodicity(places, strengths, len(envelope))
    rng = np.random.default_rng(seed)
    others = [_periodicity(*_scattered(strengths, len(envelope), rng), len(envelope)) for _ in range(copies)]
    return float(np.mean(own > np.array(others)))


def _peaks(envelope: Array) -> NDArray[np.int64]:
    """Steps that are the highest of their neighbourhood and stand out from the whole `[N]`."""
    padded = np.pad(envelope, GAP_STEPS - 1, constant_values=-1.0)
    highest = np.lib.stride_tricks.sliding_window_view(padded, 2 * GAP_STEPS - 1).max(axis=1)
    threshold = max(0.5, float(envelope.mean() + 0.5 * envelope.std()))  # dB
    places = np.flatnonzero((envelope == highest) & (envelope > threshold))
    return places[np.diff(places, prepend=-GAP_STEPS) >= GAP_STEPS]


def _scattered(strengths: Array, steps: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], Array]:
    """The same onsets in another order at random places of `steps`, at least a gap apart."""
    number = len(strengths)
    room = max(steps - (number - 1) * GAP_STEPS, 1)
    places = np.sort(rng.integers(room, size=number)) + GAP_STEPS * np.arange(number)
    return places, rng.permutation(strengths)


def _periodicity(places: NDArray[np.int64], strengths: Array, steps: int) -> float:
    """The best autocorrelation of onsets, blurred by some 20 ms, at any beat."""
    train = np.zeros(steps)
    train[places[places < steps]] = strengths[places < steps]
    blurred = np.convolve(train, np.hanning(7), mode="same")
    return float(_autocorrelation(blurred, _lags(_tempo_grid(FINE_TEMPI // 2))).max())
