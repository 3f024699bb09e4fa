"""Decoded samples of any format and layout as waves `[1 or 2, n]`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from musicgen_dreamboothing.audio.waves import Wave

_LEFT = frozenset({"FL", "BL", "FLC", "SL", "TFL", "TBL", "DL", "WL", "SDL", "TSL", "BFL", "SSL", "TTL"})
_RIGHT = frozenset({"FR", "BR", "FRC", "SR", "TFR", "TBR", "DR", "WR", "SDR", "TSR", "BFR", "SSR", "TTR"})


def to_wave(samples: NDArray[Any], names: list[str]) -> Wave:
    """`[C, n]` of any sample format -> `[1 or 2, n]`; `names` are libav's for the channels, "" where unknown."""
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is found later, and reported
        wave = _to_float(samples)
        return wave if len(wave) <= 2 else _down_mix(wave, names)


def _to_float(samples: NDArray[Any]) -> Wave:
    """Integer samples brought to [-1, 1); float ones as they are, beyond full scale too."""
    if samples.dtype == np.uint8:
        return samples.astype(np.float32) / np.float32(128) - np.float32(1)
    if samples.dtype.kind == "i":
        return samples.astype(np.float32) / np.float32(2 ** (8 * samples.itemsize - 1))
    return samples.astype(np.float32)


def _down_mix(wave: Wave, names: list[str]) -> Wave:
    """`[C > 2, n]` -> `[2, n]` after ITU-R BS.775, with libav's channel names (FL, FC, LFE, SR...).

    Front channels count 1 on their side, all others 1/sqrt(2) on theirs, or on both where they are in the middle or
    have no known place; LFE is left out. Each side is divided by its sum, so that nothing can clip.
    """
    weights = np.array([_sides(name) for name in names]).T  # [2, C]
    weights /= np.maximum(1.0, weights.sum(axis=1, keepdims=True))
    return weights.astype(np.float32) @ wave


def _sides(name: str) -> tuple[float, float]:
    """The weights of one channel in left and right."""
    if name.startswith("LFE"):
        return 0.0, 0.0
    weight = 1.0 if name in ("FL", "FR") else 0.5**0.5
    left, right = name in _LEFT, name in _RIGHT
    return (0.0 if right else weight), (0.0 if left else weight)
