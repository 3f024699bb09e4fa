"""Defects of a recording: clipping, silence, DC offset, phase, missing treble; and the limits from which they are one.

Waves are float32 `[C, S]`, full scale at -1 and 1.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from musicgen_dreamboothing.analysis.spectrum import spectra
from musicgen_dreamboothing.audio import Wave

Channels = Literal["mono", "stereo", "twin", "left only", "right only", "inverted", "out of phase"]

SOUND_CHANNELS: tuple[Channels, ...] = ("mono", "stereo", "twin")  # nothing is lost in mono

CLIPPED_SHARE = 1e-3  # of all samples: one in a thousand can be heard
FLAT_RUN = 3  # samples at the ceiling in a row
FLAT = 1e-4  # of the ceiling: how far samples of a flat run may lie below it
CORNER = 4.0  # steps into a plateau are so many times larger than steps on it; round tops have about 2
LEVELS = 50  # of the histogram in which a blurred ceiling is sought
LOWEST_CEILING = 0.6  # of the peak: resampling makes clipped waves overshoot, but not further

SILENT_SHARE = 0.5  # of the time
SILENT_DB = -70.0  # dBFS, RMS: quieter is silence whatever else there is
QUIETER_DB = -50.0  # below the loudest moment: its pauses
SILENCE_SECONDS = 0.1

OFFSET = 0.01  # of full scale

DEAD_DB = -40.0  # one side below the other
TWIN_DB = -60.0  # difference of two sides below their sum
INVERTED, OUT_OF_PHASE = -0.9, -0.2  # correlation of left and right

NARROW_SHARE = 0.85  # of half the rate
CLIFF_DB = 25.0
LOWEST_CLIFF = 1000.0  # Hz
CLIFF_WIDTH = 0.03  # of its frequency
SHELF = 1.2  # ratio of the frequencies between which the level before a cliff is measured
SIZE, EDGE_STEP = 2048, 4  # samples of a spectrum; bins between places where a cliff is sought
TOP_SHARE = 0.95  # of half the rate, where every resampler has its own cliff


def clipping(wave: Wave) -> float:
    """The share of samples on plateaus at the wave's own ceiling, whatever its level.

    A ceiling is flat, or, if clipped music was resampled or coded, a level where samples accumulate between steep
    edges. Positive and negative samples of each channel have their own. Square waves count as clipping, too.
    """
    sides = [side * sign for side in wave for sign in (1, -1)]
    return float(sum(max(_flat(side), _piled(side)) for side in sides) / max(len(wave), 1))


def _flat(side: NDArray[np.float32]) -> float:
    return _plateau(side, float(side.max(initial=0.0)) * (1 - FLAT))


def _piled(side: NDArray[np.float32]) -> float:
    """The share on a blurred ceiling: a level with more samples than just below it."""
    highest = float(side.max(initial=0.0))
    if highest <= 0:
        return 0.0
    counts, _ = np.histogram(side, bins=LEVELS, range=(0, highest))
    three = np.convolve(counts, np.ones(3), mode="valid")  # of levels i, i + 1, i + 2
    lowest = int(LOWEST_CEILING * LEVELS)
    rises = three[lowest:] / (three[lowest - 5 : -5] + FLAT * len(side))
    best = int(rises.argmax())
    return _plateau(side, (lowest + best) / LEVELS * highest) if rises[best] > 1 else 0.0


def _plateau(side: NDArray[np.float32], level: float) -> float:
    """The share of samples in runs above a level; 0 if the wave gets there by a curve and not by a corner."""
    if level <= 0:
        return 0.0
    edges = np.flatnonzero(np.diff(side >= level, prepend=False, append=False)).reshape(-1, 2)
    starts, ends = edges[edges[:, 1] - edges[:, 0] >= FLAT_RUN].T
    if not len(starts):
        return 0.0
    way = np.cumsum(np.abs(np.diff(side, prepend=0.0)))
    inside = (way[ends - 1] - way[starts]).sum() / (ends - starts - 1).sum()
    entering = np.abs(side[starts] - side[np.maximum(starts - 1, 0)]).mean()
    return float((ends - starts).sum() / len(side)) if entering > CORNER * inside else 0.0


def silence(wave: Wave, rate: int) -> float:
    """The share of time, in steps of 0.1 s, below -70 dBFS or 50 dB below the loudest step; 1 without samples."""
    size = max(1, round(SILENCE_SECONDS * rate))
    steps = wave.shape[1] // size
    measured = wave[:, : steps * size] if steps else wave
    if not measured.size:
        return 1.0
    power = np.square(measured, dtype=np.float64).reshape(len(wave), max(steps, 1), -1).mean(axis=(0, 2))
    limit = max(10 ** (SILENT_DB / 10), 10 ** (QUIETER_DB / 10) * power.max())
    return float((power < limit).mean())


def offset(wave: Wave) -> float:
    """The largest absolute mean of a channel, as a share of full scale."""
    return float(np.abs(wave.mean(axis=1, dtype=np.float64)).max(initial=0.0)) if wave.size else 0.0


def channels(wave: Wave) -> Channels:
    """How the channels are related: `twin` equal, `left only` the right one is silent, `inverted` they cancel in mono,
    `out of phase` they cancel in part."""
    if len(wave) == 1:
        return "mono"
    left, right = wave.astype(np.float64)
    power_left, power_right = left @ left, right @ right
    if np.square(left - right).sum() <= 10 ** (TWIN_DB / 10) * np.square(left + right).sum():
        return "twin"
    if min(power_left, power_right) <= 10 ** (DEAD_DB / 10) * max(power_left, power_right):
        return "left only" if power_left > power_right else "right only"
    correlation = left @ right / np.sqrt(power_left * power_right)
    if correlation < OUT_OF_PHASE:
        return "inverted" if correlation < INVERTED else "out of phase"
    return "stereo"


def bandwidth(wave: Wave, rate: int) -> float:
    """The frequency in Hz above which coders and converters have cut the spectrum; half the rate if they have not.

    Everything above the cut is 25 dB below the band before it; dark sounds have a slope instead.
    """
    db = _spectrum(wave)
    edges = range(math.ceil(LOWEST_CLIFF * SIZE / rate), len(db) - 1, EDGE_STEP)
    depths = np.array([_depth(db, edge) for edge in edges])
    if not len(depths) or depths.max() < CLIFF_DB:
        return rate / 2
    edge = edges[int(depths.argmax())] * rate / SIZE
    return edge if edge < TOP_SHARE * rate / 2 else rate / 2


def _spectrum(wave: Wave) -> NDArray[np.float64]:
    """The mean power of all channels in dB `[SIZE // 2 + 1]`."""
    power, frames = np.zeros(SIZE // 2 + 1), 0
    for block in (block for side in wave for block in spectra(side, SIZE, SIZE)):
        power += np.square(block, dtype=np.float64).sum(axis=0)
        frames += len(block)
    return 10 * np.log10(power / max(frames, 1) + 1e-16)


def _depth(db: NDArray[np.float64], edge: int) -> float:
    """The fall of the spectrum at a bin in dB: from the median before it to the maximum behind it."""
    behind = db[math.floor(edge * (1 + CLIFF_WIDTH)) + 1 :]
    return float(np.median(db[math.ceil(edge / SHELF) : edge]) - behind.max()) if len(behind) else 0.0
