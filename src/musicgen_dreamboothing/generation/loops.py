"""Loops: an exact number of bars whose end leads into their start.

Codes that are repeated three times and decoded together have a middle that fits to itself without a click: the decoder
sees the same frames on both sides of each join. So what remains is to find a stretch of music that may be repeated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from musicgen_dreamboothing.audio import Wave
from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.generation.generator import Generator

Array = NDArray[np.float64]

BEATS = 4  # of a bar
BANDS, LOWEST_BIN = 32, 3  # of windows of four frames: 37.5 Hz at 50 frames a second
FRAMES_AT_ONCE = 256  # their spectra take 10 MB
FLOOR = 1e-3  # of the loudest band: what is 30 dB softer counts as silence


@dataclass(frozen=True)
class LoopLength:
    """The length of a loop in codec frames.

    Attributes:
        frames: of the loop, a whole number.
        beat: frames of a beat, rounded.
        bpm: the tempo that this length gives.
    """

    frames: int
    beat: int
    bpm: float

    @classmethod
    def of(cls, bars: int, bpm: float, frame_rate: float, longest: float) -> LoopLength:
        """The nearest whole number of frames.

        Raises:
            UserError: the loop and what it is chosen from are longer than `longest` seconds.
        """
        beats = bars * BEATS
        frames = round(beats * 60 / bpm * frame_rate)
        length = cls(frames, max(1, round(60 / bpm * frame_rate)), beats * 60 * frame_rate / frames)
        if length.searched / frame_rate > longest:
            raise UserError(f"{bars} bars at {bpm:g} bpm are too long for a loop; take fewer bars or a faster --bpm")
        return length

    @property
    def searched(self) -> int:
        """Frames of music in which the loop is looked for: twice its length, and a beat at both ends."""
        return 2 * self.frames + 2 * self.beat


@dataclass(frozen=True, eq=False)
class Loop:
    """A loop that was cut out of music.

    Attributes:
        codes: `[K, T]`.
        join: distance of the music around both ends of the loop, in units of the mean distance of any two moments that
            far apart; 0 if they are the same.
    """

    codes: torch.Tensor
    join: float


def best_loop(codes: torch.Tensor, wave: Wave, length: LoopLength) -> Loop:
    """The stretch of some music whose surroundings are most alike at both ends.

    Args:
        codes: of the music `[K, T]`.
        wave: its sound `[C, T * hop length]`.
        length: of the loop.
    """
    bands = _bands(wave, codes.shape[-1])
    distances = np.abs(bands[: len(bands) - length.frames] - bands[length.frames :]).mean(axis=1)
    window = np.full(2 * length.beat, 1 / (2 * length.beat))
    joins = np.convolve(distances, window, mode="valid")  # number n is that of a loop from frame n + beat on
    start = int(joins.argmin()) + length.beat
    mean = float(distances.mean())
    return Loop(codes[:, start : start + length.frames], float(joins.min()) / mean if mean else 0.0)


def _bands(wave: Wave, frames: int) -> Array:
    """Log energy in bands of a third of an octave and so `[frames, BANDS * C]`, of windows of four frames each."""
    hop = wave.shape[1] // frames
    padded = np.pad(wave.astype(np.float64), ((0, 0), (2 * hop, 2 * hop)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, 4 * hop, axis=1)[:, : frames * hop : hop]
    edges = np.unique(np.geomspace(LOWEST_BIN, 2 * hop, BANDS + 1).astype(int))
    parts = []
    for first in range(0, frames, FRAMES_AT_ONCE):
        spectra = np.fft.rfft(windows[:, first : first + FRAMES_AT_ONCE] * np.hanning(4 * hop), axis=-1)
        parts.append(np.add.reduceat(np.abs(spectra) ** 2, edges[:-1], axis=-1))
    summed = np.concatenate(parts, axis=1)  # [C, frames, bands]
    levels = np.log10(summed + FLOOR * (summed.max() or 1.0))
    return np.concatenate(list(levels), axis=-1)


def loop_wave(generator: Generator, loop: Loop) -> Wave:
    """The sound of a loop `[C, T * hop length]`: the middle of three copies that are decoded together."""
    samples = loop.codes.shape[-1] * generator.checkpoint.hop_length
    return generator.decode(loop.codes.repeat(1, 3))[:, samples : 2 * samples]
