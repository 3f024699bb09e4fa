"""Waves: float32 arrays `[C, S]`, their blocks, channels and rates, and the errors of this package."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import soxr
from numpy.typing import NDArray

Wave = NDArray[np.float32]


class AudioError(ValueError):
    """A file that cannot be read or written as audio; the message is one line that names the file."""


class AudioWriteError(AudioError):
    """The file system refuses a file."""


def label_of(source: Path | str | bytes, name: str | None = None) -> str:
    """The file in messages, on one printable line."""
    label = name or ("audio bytes" if isinstance(source, bytes) else str(source))
    return label if label.isprintable() else repr(label)


def error_text(error: Exception) -> str:
    """The text of an error on one line, without the number and file name that libav and the system add."""
    text = getattr(error, "strerror", None) or getattr(error, "error_string", None) or str(error)
    return " ".join(text.split()).rstrip(".") or type(error).__name__


def blocks(pieces: Iterable[Wave], size: int) -> Iterator[Wave]:
    """Re-cuts waves `[C, n]` of any lengths into blocks `[C, size]`; the last one is shorter where they do not fit.

    Holds no more than one block and the piece it is cutting. Raises ValueError where `size` is below 1.
    """
    if size < 1:
        raise ValueError(f"a block holds at least 1 sample, not {size}")
    parts, missing = list[Wave](), size
    for piece in pieces:
        while piece.shape[-1] >= missing:
            yield np.concatenate([*parts, piece[:, :missing]], axis=-1)
            piece, parts, missing = piece[:, missing:], [], size
        if piece.shape[-1]:
            parts.append(piece)
            missing -= piece.shape[-1]
    if parts:
        yield np.concatenate(parts, axis=-1)


def to_channels(wave: Wave, channels: int) -> Wave:
    """`[1 or 2, S]` -> `[channels, S]`: mono is the mean of both sides, stereo is mono twice.

    Raises ValueError for any other number of channels, in or out.
    """
    if len(wave) == channels:
        return wave
    if (len(wave), channels) == (2, 1):
        mono: Wave = wave.mean(axis=0, keepdims=True, dtype=np.float32)
        return mono
    if (len(wave), channels) == (1, 2):
        return np.repeat(wave, 2, axis=0)
    raise ValueError(f"{len(wave)} channels cannot become {channels}: only 1 and 2 convert into each other")


def is_silent(wave: Wave, threshold_db: float = -60.0) -> bool:
    """Whether the peak of `[C, S]` stays below `threshold_db` dBFS; a wave without samples is silent."""
    return float(np.abs(wave).max(initial=0.0)) < 10 ** (threshold_db / 20)


def resample(wave: Wave, rate_in: int, rate_out: int) -> Wave:
    """`[C, S]` at `rate_in` Hz -> `[C, S * rate_out / rate_in]` at `rate_out` Hz; the same array where they agree."""
    if rate_in == rate_out:
        return wave
    return _channels_first(soxr.resample(np.ascontiguousarray(wave.T), rate_in, rate_out, quality="HQ"))


def resampled(waves: Iterable[Wave], rate_in: int, rate_out: int) -> Iterator[Wave]:
    """One continuous sound `[C, n]` piece by piece from `rate_in` to `rate_out` Hz, without seams."""
    if rate_in == rate_out:
        yield from waves
        return
    resampler = None
    for wave in waves:
        resampler = resampler or soxr.ResampleStream(rate_in, rate_out, len(wave), quality="HQ")
        yield from _if_any(resampler.resample_chunk(np.ascontiguousarray(wave.T)))
    if resampler:
        yield from _if_any(resampler.resample_chunk(np.empty((0, len(wave)), np.float32), last=True))


def _if_any(frames: NDArray[np.float32]) -> Iterator[Wave]:
    """soxr returns `[0, C]` while its filter fills."""
    if len(frames):
        yield _channels_first(frames)


def _channels_first(frames: NDArray[np.float32]) -> Wave:
    return np.ascontiguousarray(frames.T)
