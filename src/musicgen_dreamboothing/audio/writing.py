"""Writes waves to files, atomically."""

from __future__ import annotations

import io
import os
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import numpy as np
import soundfile

from musicgen_dreamboothing.audio.waves import AudioError, AudioWriteError, Wave, error_text, label_of

_ENCODINGS = {".flac": ("FLAC", "PCM_16"), ".ogg": ("OGG", "VORBIS"), ".wav": ("WAV", "PCM_16")}
WRITTEN_SUFFIXES: frozenset[str] = frozenset(_ENCODINGS)

_WRITE_SAMPLES = 16_384  # libsndfile keeps a whole Vorbis write on the C stack: long ones crash the process


def write(path: Path, wave: Wave, rate: int) -> None:
    """Writes `[C, S]` at `rate` Hz as .wav or .flac (16 bit) or .ogg (Vorbis), atomically.

    Samples beyond full scale are clipped. Equal waves give equal bytes, but for .ogg with its random stream number.

    Raises:
        AudioError: another suffix, NaN or infinite samples, or a rate that the format cannot hold.
        AudioWriteError: the file system refuses the file (full, read-only, missing folder).
    """
    label = label_of(path)
    if path.suffix.lower() not in _ENCODINGS:
        raise AudioError(f"{label}: cannot write {path.suffix or 'no suffix'}, only {', '.join(sorted(_ENCODINGS))}")
    if wave.ndim != 2:
        raise AudioError(f"{label}: a wave is [channels, samples], not of shape {list(wave.shape)}")
    if not np.isfinite(wave).all():
        raise AudioError(f"{label}: holds NaN or infinite samples")
    file_format, subtype = _ENCODINGS[path.suffix.lower()]
    try:
        encoded = _encoded(wave, rate, file_format, subtype)
    except soundfile.SoundFileError as error:
        raise AudioError(f"{label}: cannot hold this sound at {rate} Hz ({error_text(error)})") from error
    _put(path, encoded, label)


def _encoded(wave: Wave, rate: int, file_format: str, subtype: str) -> bytes:
    """The bytes of the file. Encoded in memory, since libsndfile hides errors of the file system."""
    memory = io.BytesIO()
    with soundfile.SoundFile(memory, "w", rate, len(wave), subtype, format=file_format) as file:
        for start in range(0, wave.shape[1], _WRITE_SAMPLES):
            file.write(np.clip(wave[:, start : start + _WRITE_SAMPLES], -1.0, 1.0).T)
    return memory.getvalue()


def _put(path: Path, content: bytes, label: str) -> None:
    """Writes under another name in the same folder, then renames."""
    temporary = path.with_name(f".{uuid4().hex}.part")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        raise AudioWriteError(f"{label}: cannot be written ({error_text(error)})") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
