"""Levels of a song, measured in one pass: loudness, peak, DC offset, silence at both ends.

A table of a few numbers for each 20 ms is stored: 7 MB for 40 minutes of stereo.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from musicgen_dreamboothing.audio import Wave, blocks

Array = NDArray[np.float64]

STEP_SECONDS = 0.02
STEPS_PER_HOP, HOPS_PER_BLOCK = 5, 4  # of BS.1770-4: blocks of 0.4 s, one every 0.1 s
ABSOLUTE_GATE, RELATIVE_GATE = -70.0, -10.0  # LUFS, and LU below the mean of what passes the first
SILENCE = 10 ** (-60 / 20)  # peak: -60 dBFS, as `audio.is_silent`
FULL_SCALE_LIMIT = 2.0  # peaks of decoded MP3 files pass full scale, but not by 6 dB

OFFSET_SECONDS = 1.0  # an offset is the mean over so much to both sides
OFFSET_SHARE = 0.003  # of the peak (-50 dB), RMS: music without an offset stays below


class Levels:
    """The levels of one song.

    Attributes:
        rate: Hz.
        step: samples of a step.
        samples: of the song.
        offset: the DC offset `[C, steps]`, smoothed over two seconds; zeros where it is negligible.
        peak: the largest sample, linear, without the offset.
        full_scale: 1, or the peak of a float file on another scale, such as that of integers.
        begin: the first sample of the first step with sound.
        end: the sample behind the last one; `begin` if all is silent.
    """

    def __init__(self, waves: Iterable[Wave], rate: int) -> None:
        """Measures the blocks `[C, n]` of a song at `rate` Hz."""
        self.rate, self.step, self.samples = rate, max(1, round(STEP_SECONDS * rate)), 0
        rows: list[Array] = []
        weighting = _Weighting(rate)
        for wave in blocks(waves, 500 * self.step):
            self.samples += wave.shape[1]
            rows.append(_rows(wave, weighting(wave), self.step))
        self._sum, self._high, self._low, self._energy = np.concatenate(rows, axis=2)  # [C, steps] each
        self.offset = self._offset()
        self._highest = np.maximum(self._high - self.offset, self.offset - self._low).max(axis=0)
        self.peak = float(self._highest.max())
        self.full_scale = self.peak if self.peak > FULL_SCALE_LIMIT else 1.0
        loud = np.flatnonzero(self._highest >= SILENCE * self.full_scale)
        self.begin = int(loud[0]) * self.step if len(loud) else 0
        self.end = min((int(loud[-1]) + 1) * self.step, self.samples) if len(loud) else 0

    @property
    def loudness(self) -> float:
        """Integrated loudness in LUFS (ITU-R BS.1770-4); -inf below the gate, and for less than 0.4 s."""
        size, hop = HOPS_PER_BLOCK * STEPS_PER_HOP, STEPS_PER_HOP
        energy = self._energy.sum(axis=0)
        if self.samples < math.ceil(size * STEP_SECONDS * self.rate):
            return -math.inf
        count = max(1, round((self.samples / self.step - size) / hop) + 1)
        sums = np.concatenate([[0.0], np.cumsum(energy)])
        first = np.arange(count) * hop
        power = (sums[np.minimum(first + size, len(energy))] - sums[first]) / (size * self.step)
        power = power[power > _power(ABSOLUTE_GATE)]
        if not len(power):
            return -math.inf
        power = power[power > power.mean() * 10 ** (RELATIVE_GATE / 10)]
        return float(_lufs(power.mean()))

    @property
    def offset_share(self) -> float:
        """The largest offset as a share of the peak."""
        return float(np.abs(self.offset).max()) / self.peak if self.peak else 0.0

    def centred(self, wave: Wave, first: int) -> Wave:
        """`[C, n]` of the song, which begins at its sample `first`, without the offset."""
        if not self.offset.any():
            return wave
        places = (np.arange(self.offset.shape[1]) + 0.5) * self.step
        here = np.arange(first, first + wave.shape[1])
        return wave - np.array([np.interp(here, places, side) for side in self.offset], np.float32)

    def _offset(self) -> Array:
        """A weighted mean over a second to both sides; its removal is a high-pass at 0.5 Hz without delay."""
        reach = round(OFFSET_SECONDS / STEP_SECONDS)
        window = np.concatenate([np.arange(1, reach + 1), np.arange(reach - 1, 0, -1)]).astype(float)
        counts = np.full(self._sum.shape[1], float(self.step))
        counts[-1] = self.samples - self.step * (len(counts) - 1)
        weights = _smooth(counts, window)
        offset = np.array([_smooth(side, window) / weights for side in self._sum])
        highest = max(float(self._high.max()), -float(self._low.min()))
        rms = math.sqrt(np.square(offset).mean(axis=1).max())
        is_offset = rms > OFFSET_SHARE * highest and self.samples > OFFSET_SECONDS * self.rate
        return offset if is_offset else np.zeros_like(offset)


class _Weighting:
    """K-weighting of a song, block by block, by pyloudnorm's filters."""

    def __init__(self, rate: int) -> None:
        from pyloudnorm import IIRfilter

        shelf = IIRfilter(4.0, math.sqrt(0.5), 1500.0, rate, "high_shelf")
        high_pass = IIRfilter(0.0, 0.5, 38.0, rate, "high_pass")
        self._filters = [(stage.passband_gain, stage.b, stage.a) for stage in (shelf, high_pass)]
        self._states: list[Array] = []

    def __call__(self, wave: Wave) -> Array:
        """`[C, n]` -> `[C, n]`; filters start settled on the first sample, so that an offset is no step."""
        from scipy.signal import lfilter, lfilter_zi  # takes a second to import, and trainings measure no levels

        weighted: Array = wave.astype(np.float64)
        is_first, before = not self._states, self._states
        self._states = []
        for number, (gain, b, a) in enumerate(self._filters):
            state = lfilter_zi(b, a) * weighted[:, :1] if is_first else before[number]
            filtered, state = lfilter(b, a, weighted, zi=state)
            self._states.append(state)
            weighted = gain * filtered
        return weighted


def _rows(wave: Wave, weighted: Array, step: int) -> Array:
    """Sum, highest and lowest sample and weighted energy `[4, C, steps]` of a wave, whose last step may be shorter."""
    places = np.arange(0, wave.shape[1], step)
    return np.array(
        [
            np.add.reduceat(wave.astype(np.float64), places, axis=1),
            np.maximum.reduceat(wave, places, axis=1),
            np.minimum.reduceat(wave, places, axis=1),
            np.add.reduceat(np.square(weighted), places, axis=1),
        ]
    )


def _smooth(values: Array, window: Array) -> Array:
    """Sums under a window that is centred on each value, with zeros beyond the ends."""
    half = len(window) // 2
    return np.convolve(values, window, mode="full")[half : half + len(values)]


def _lufs(power: float) -> float:
    return -0.691 + 10 * math.log10(power)


def _power(lufs: float) -> float:
    return float(10 ** ((lufs + 0.691) / 10))
