"""Loudness of a wave, and the gain to a target. Waves are float32 `[C, S]`, full scale at -1 and 1."""

from __future__ import annotations

import math

import numpy as np

from musicgen_dreamboothing.audio import Wave, is_silent

BLOCK_SECONDS = 0.4  # of BS.1770-4: nothing shorter has a loudness
CEILING_DB = -1.0  # dBFS: how high gain may bring a peak, so that lossy copies don't clip


def loudness(wave: Wave, rate: int) -> float:
    """Integrated loudness in LUFS (ITU-R BS.1770-4); -inf below its gate of -70 LUFS, and for less than 0.4 s."""
    import pyloudnorm

    if wave.shape[-1] < math.ceil(BLOCK_SECONDS * rate) or not wave.any():
        return -math.inf
    return float(pyloudnorm.Meter(rate).integrated_loudness(wave.T.astype(np.float64)))


def peak(wave: Wave) -> float:
    """The largest sample of `[C, S]`, linear; 0 for a wave without samples."""
    return float(np.abs(wave).max(initial=0.0))


def gain_to(lufs: float, highest: float, target: float) -> float:
    """The factor from loudness `lufs` and peak `highest` (linear) to `target` LUFS, or to a peak of -1 dBFS if smaller.

    1 for a wave without loudness.
    """
    if not math.isfinite(lufs) or highest <= 0:
        return 1.0
    return float(min(10 ** ((target - lufs) / 20), 10 ** (CEILING_DB / 20) / highest))


def normalised(wave: Wave, rate: int, target: float) -> Wave:
    """`[C, S]` at `target` LUFS, or as near as its peaks allow (see `gain_to`)."""
    return wave * np.float32(gain_to(loudness(wave, rate), peak(wave), target))


def levelled(wave: Wave, rate: int, target: float) -> Wave:
    """`[C, S]` at exactly `target` LUFS, whatever its peaks then are: for analysis, not for playing.

    The gain depends on nothing but the shape of the wave: it is measured at a peak of 1, so that the gate of -70 LUFS
    is relative, and a wave of less than 0.4 s is repeated for the measurement. Silence, and what has no loudness at
    all, stays as it is.
    """
    if is_silent(wave):
        return wave
    highest = peak(wave)
    repeats = math.ceil(BLOCK_SECONDS * rate / wave.shape[-1])
    lufs = loudness(np.tile(wave / highest, repeats), rate)
    return wave * np.float32(10 ** ((target - lufs) / 20) / highest) if math.isfinite(lufs) else wave
