"""Short-time spectra, in blocks: memory does not grow with the length of a song but by what is kept of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from musicgen_dreamboothing.audio import Wave, resample, to_channels

Array = NDArray[np.float32]

_BLOCK = 512  # frames


def mono_at(wave: Wave, rate: int, wanted: int) -> Array:
    """`[C, S]` at `rate` Hz -> `[S']` at `wanted` Hz, its peak at 1: how loud a song is must not matter."""
    mono = resample(to_channels(wave, 1), rate, wanted)[0]
    return mono / max(float(np.abs(mono).max(initial=0.0)), 1e-9)


def spectra(mono: Array, size: int, hop: int) -> Iterator[Array]:
    """Magnitudes `[n, size // 2 + 1]` of Hann windows centred on every `hop`-th sample, a full-scale sine near 1."""
    window = np.hanning(size + 1)[:-1].astype(np.float32)
    window /= window.sum() / 2
    padded = np.pad(mono, (size // 2, size // 2))
    frames = sliding_window_view(padded, size)[::hop]
    for begin in range(0, len(frames), _BLOCK):
        yield np.abs(np.fft.rfft(frames[begin : begin + _BLOCK] * window)).astype(np.float32, copy=False)
