"""Short-time spectra in blocks, so that memory does not grow with the length of a song."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy import fft

from musicgen_dreamboothing.audio import Wave, resample, to_channels

Array = NDArray[np.float32]

_BLOCK = 2**19  # samples


def mono_at(wave: Wave, rate: int, target_rate: int) -> Array:
    """`[C, S]` at `rate` Hz -> `[S']` at `target_rate` Hz with a peak of 1."""
    mono = resample(to_channels(wave, 1), rate, target_rate)[0]
    return mono / max(float(np.abs(mono).max(initial=0.0)), 1e-9)


def spectra(mono: Array, size: int, hop: int) -> Iterator[Array]:
    """Magnitudes `[n, size // 2 + 1]` of Hann windows centred on every `hop`-th sample, a full-scale sine near 1."""
    window = np.hanning(size + 1)[:-1].astype(np.float32)
    window /= window.sum() / 2
    frames_at_once = max(1, _BLOCK // size)
    frames = len(mono) // hop + 1
    for begin in range(0, frames, frames_at_once):
        count = min(frames_at_once, frames - begin)
        first = begin * hop - size // 2
        last = first + (count - 1) * hop + size
        inside = mono[max(first, 0) : last]
        block = np.pad(inside, (max(-first, 0), max(last - max(first, 0) - len(inside), 0)))
        windows = sliding_window_view(block, size)[::hop]
        yield np.abs(fft.rfft(windows * window)).astype(np.float32, copy=False)
