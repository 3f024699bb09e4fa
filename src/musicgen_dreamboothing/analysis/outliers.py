"""Samples far above full scale and far above the rest of a song: errors of some tool, alone or in short bursts.

A float file may be on any scale, so no fixed amplitude decides, but the peaks of steps of 5 ms: a drum hit decays over
several steps, whose peaks lie between those of the hit and of the music; next to an error there are none.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from musicgen_dreamboothing.audio import Wave

STEP_SECONDS = 0.005
FULL_SCALE_LIMIT = 2.0  # a smaller sample is never an outlier: mixes that are not mastered pass full scale, too
SILENCE = 10 ** (-60 / 20)  # peak: -60 dBFS, as `audio.is_silent`

GAP = 4.0  # 12 dB between two consecutive peaks in ascending order
GAP_SHARE, GAP_STEPS = 0.01, 25  # at most so many steps are above the gap: 1 %, or 125 ms of a short song
BURST_STEPS = 25  # longer runs above the gap than 125 ms are sound

ISOLATED = 10.0  # 20 dB above what is 10 to 15 ms before and behind: outliers of many different amplitudes
NEAR, FAR = 2, 3  # these 10 to 15 ms, in steps: a sample in the middle of a burst of 10 ms is alone, too
USUAL_QUANTILE = 0.99  # peaks that come more often than once in two seconds are dry percussion

ABSURD_RATIO, ABSURD_QUANTILE = 100.0, 0.95  # 40 dB above what 95 % of the song stay below, however long it lasts
ABSURD_LEAST = 64.0  # float files may pass full scale by 30 dB and more


class Outliers:
    """Collects the peaks of a song, block by block, to find the amplitude above which samples are errors."""

    def __init__(self) -> None:
        self._peaks: list[NDArray[np.float32]] = []

    def add(self, wave: Wave, rate: int) -> None:
        """Adds the next samples `[C, n]` at `rate` Hz, which must be that of the file: a resampler spreads errors."""
        step = max(1, round(STEP_SECONDS * rate))
        if wave.shape[1]:
            self._peaks.append(np.maximum.reduceat(np.abs(wave).max(axis=0), np.arange(0, wave.shape[1], step)))

    @property
    def limit(self) -> float:
        """The largest peak of the song that is no outlier; infinite without outliers."""
        peaks = np.concatenate(self._peaks) if self._peaks else np.zeros(1, np.float32)
        if peaks.max() <= FULL_SCALE_LIMIT:
            return math.inf
        ascending = np.sort(peaks)
        limit, gap = _loudest_sound(peaks), _below_gap(ascending)
        if gap < limit and _longest_run(peaks > gap) <= BURST_STEPS:
            limit = gap
        limit = min(limit, _absurd(peaks))
        if limit >= ascending[-1]:
            return math.inf
        return float(peaks[peaks <= limit].max(initial=0.0)) or limit


def _below_gap(ascending: NDArray[np.float32]) -> float:
    """The peak below the lowest gap, among the few largest ones; infinite without a gap, and above silence."""
    count = max(int(GAP_SHARE * len(ascending)), min(GAP_STEPS, len(ascending) // 10))
    if not count:
        return math.inf
    above, below = ascending[-count:], ascending[-count - 1 : -1]
    gaps = np.flatnonzero((above > FULL_SCALE_LIMIT) & (above > GAP * below) & (below >= SILENCE))
    return float(below[gaps[0]]) if len(gaps) else math.inf


def _absurd(peaks: NDArray[np.float32]) -> float:
    """From which amplitude even long parts are errors; infinite where nearly all of the song is silent."""
    usual = float(np.quantile(peaks, ABSURD_QUANTILE))
    return max(ABSURD_LEAST, ABSURD_RATIO * usual) if usual >= SILENCE else math.inf


def _longest_run(flags: NDArray[np.bool_]) -> int:
    """The longest run of flags."""
    places = np.flatnonzero(~np.pad(flags, 1))
    return int(np.diff(places).max()) - 1


def _loudest_sound(peaks: NDArray[np.float32]) -> float:
    """The largest peak that is not isolated, or that comes often, at least the limit of full scale."""
    padded = np.pad(peaks, FAR)
    places = [FAR + side * distance for distance in range(NEAR, FAR + 1) for side in (-1, 1)]
    around = np.max([padded[place : place + len(peaks)] for place in places], axis=0)
    lasting = peaks[peaks <= ISOLATED * around]
    usual = float(np.quantile(peaks, USUAL_QUANTILE))
    return max(FULL_SCALE_LIMIT, usual, float(lasting.max(initial=0.0)))
