"""Distances between a wave and its copy from a codec. Waves are float32 `[C, S]`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from musicgen_dreamboothing.analysis.spectrum import spectra
from musicgen_dreamboothing.audio import Wave

BANDS, WINDOW, STEP = 64, 1024, 256
LOWEST_HZ, FLOOR_DB = 40.0, -60.0
LEAST = 1e-10  # ratio of powers: 100 dB stand for any better copy, -100 for silence


def si_sdr(made: Wave, true: Wave) -> float:
    """Scale-invariant signal-to-distortion ratio in dB, mean over channels (Le Roux et al. 2019, eq. 4)."""
    return float(np.mean([_si_sdr(*sides) for sides in zip(made, true, strict=True)]))


def _si_sdr(made: NDArray[np.float32], true: NDArray[np.float32]) -> float:
    centred, reference = made - made.mean(dtype=np.float64), true - true.mean(dtype=np.float64)
    power = max(reference @ reference, LEAST)
    target = (centred @ reference) / power * reference
    noise = centred - target
    return float(10 * np.log10(max(target @ target / max(noise @ noise, LEAST * power), LEAST)))


def mel_distance(made: Wave, true: Wave, rate: int) -> float:
    """Mean absolute difference in dB of 64 mel bands from 40 Hz to half the rate, mean over channels.

    A sine at full scale is near 0 dB; levels below -60 dB do not count.
    """
    sides = zip(made, true, strict=True)
    return float(np.mean([np.abs(_mel_db(one, rate) - _mel_db(other, rate)).mean() for one, other in sides]))


def _mel_db(side: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    """`[S]` -> `[T, BANDS]`."""
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(WINDOW // 2 + 1, BANDS, LOWEST_HZ, rate / 2, rate, norm=None, mel_scale="htk")
    power = np.concatenate([block**2 for block in spectra(side, WINDOW, STEP)])
    return 10 * np.log10(power @ filters.astype(np.float32) + np.float32(10 ** (FLOOR_DB / 10)))
