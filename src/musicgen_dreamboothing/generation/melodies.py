"""Melodies that music follows: read from files, and as each window takes them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.console import UserError, log
from musicgen_dreamboothing.generation.requests import Classes
from musicgen_dreamboothing.model.chroma import HOP, NULL_CLASS, SAMPLING_RATE, chroma_of_pieces


def read_melody(path: Path, start: float = 0.0, seconds: float | None = None) -> Classes:
    """Chroma classes `[T]` of a sound file, 7.8125 a second, from `start` on, for so many seconds or to its end.

    Raises:
        UserError: no such file.
        AudioError: it can't be decoded, or ends before `start`.
    """
    if not path.is_file():
        raise UserError(f"no file at {path} with a melody; --melody takes audio files")
    end = None if seconds is None else start + seconds
    waves = audio.stream(path, SAMPLING_RATE, start=start, end=end, on_damage=log)
    classes = chroma_of_pieces(torch.from_numpy(audio.to_channels(wave, 1)[0]) for wave in waves).numpy()
    if is_null(classes):
        log(f"note: the strongest note of {path} is a C throughout, or it is silent; for the model that is no melody")
    return classes


def is_null(classes: Classes) -> bool:
    """Whether a melody is the one that stands for none."""
    return bool((classes == NULL_CLASS).all())


def melody_window(classes: Classes | None, first: int, frame_rate: float, length: int) -> torch.Tensor:
    """The melody from a codec frame on, `[length]` int64: it repeats without end, by whole chroma frames.

    Up to 30 s this is audiocraft's repetition; beyond, audiocraft repeats samples, with a period that is up to a frame
    shorter.

    Args:
        classes: of the melody `[T]`; None for the null melody.
        first: codec frames from the melody's start, which may be negative.
        frame_rate: codec frames per second.
        length: chroma frames of the model's prefix.
    """
    if classes is None:
        return torch.full((length,), NULL_CLASS, dtype=torch.long)
    start = round(first * Fraction(SAMPLING_RATE, HOP) / Fraction(frame_rate))
    return torch.from_numpy(classes[(start + np.arange(length)) % len(classes)].astype(np.int64))
