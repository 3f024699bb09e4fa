"""Decodes, resamples and writes audio.

A wave is a float32 array `[C, S]`: C channels (1 or 2) of S samples, full scale at -1 and 1.
"""

from __future__ import annotations

from musicgen_dreamboothing.audio.reading import AUDIO_SUFFIXES, MAX_AMPLITUDE, decode, stream
from musicgen_dreamboothing.audio.waves import (
    AudioError,
    AudioWriteError,
    Wave,
    blocks,
    is_silent,
    resample,
    to_channels,
)
from musicgen_dreamboothing.audio.writing import WRITTEN_SUFFIXES, write, write_pieces

__all__ = [
    "AUDIO_SUFFIXES",
    "MAX_AMPLITUDE",
    "WRITTEN_SUFFIXES",
    "AudioError",
    "AudioWriteError",
    "Wave",
    "blocks",
    "decode",
    "is_silent",
    "resample",
    "stream",
    "to_channels",
    "write",
    "write_pieces",
]
