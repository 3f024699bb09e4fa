"""Writes waves to files, atomically."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

import numpy as np
import soundfile

from musicgen_dreamboothing.audio.waves import AudioError, AudioWriteError, Wave, error_text, label_of

_ENCODINGS = {".flac": ("FLAC", "PCM_16"), ".ogg": ("OGG", "VORBIS"), ".wav": ("WAV", "PCM_16")}
WRITTEN_SUFFIXES: frozenset[str] = frozenset(_ENCODINGS)

_WRITE_SAMPLES = 16_384  # libsndfile keeps a whole Vorbis write on the C stack: long ones crash the process


def write(path: Path, wave: Wave, rate: int, *, loop: tuple[int, int] | None = None) -> None:
    """Writes `[C, S]` at `rate` Hz as .wav or .flac (16 bit) or .ogg (Vorbis), atomically.

    Samples beyond full scale are clipped. Equal waves give equal bytes, but for .ogg with its random stream number.

    Args:
        path: its suffix says the format.
        wave: `[C, S]`.
        rate: Hz.
        loop: the first and the last sample of a loop that samplers repeat; for .wav only.

    Raises:
        AudioError: another suffix, NaN or infinite samples, or a rate that the format cannot hold.
        AudioWriteError: the file system refuses the file (full, read-only, missing folder).
    """
    if wave.ndim != 2:
        raise AudioError(f"{label_of(path)}: a wave is [channels, samples], not of shape {list(wave.shape)}")
    write_pieces(path, [wave], rate, len(wave), loop=loop)


def write_pieces(
    path: Path, pieces: Iterable[Wave], rate: int, channels: int, *, loop: tuple[int, int] | None = None
) -> None:
    """As `write`, of one sound in pieces `[channels, n]`, of which only one is in memory."""
    label, suffix = label_of(path), path.suffix.lower()
    if suffix not in _ENCODINGS:
        raise AudioError(f"{label}: cannot write {path.suffix or 'no suffix'}, only {', '.join(sorted(_ENCODINGS))}")
    if loop is not None and suffix != ".wav":
        raise AudioError(f"{label}: only .wav has loop points")
    temporary = path.with_name(f".{uuid4().hex}.part")
    try:
        with temporary.open("w+b") as file:
            _encode(file, pieces, rate, channels, label, *_ENCODINGS[suffix])
            if loop is not None:
                _append_loop(file, rate, *loop)
        os.replace(temporary, path)
    except soundfile.SoundFileError as error:
        raise AudioError(f"{label}: cannot hold this sound at {rate} Hz ({error_text(error)})") from error
    except OSError as error:
        raise AudioWriteError(f"{label}: cannot be written ({error_text(error)})") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _encode(
    file: BinaryIO, pieces: Iterable[Wave], rate: int, channels: int, label: str, file_format: str, subtype: str
) -> None:
    sink = _Sink(file)
    with soundfile.SoundFile(sink, "w", rate, channels, subtype, format=file_format) as encoder:
        for piece in pieces:
            if not np.isfinite(piece).all():
                raise AudioError(f"{label}: holds NaN or infinite samples")
            for start in range(0, piece.shape[1], _WRITE_SAMPLES):
                encoder.write(np.clip(piece[:, start : start + _WRITE_SAMPLES], -1.0, 1.0).T)
                sink.check()
    sink.check()
    file.flush()


class _Sink:
    """A file for libsndfile, which ignores errors of the file system; `check` raises the first one."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._error: OSError | None = None

    def check(self) -> None:
        if self._error is not None:
            raise self._error

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self._error = self._error or error
            return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return self._file.seek(offset, whence)  # it writes what is buffered
        except OSError as error:
            self._error = self._error or error
            return offset

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)


def _append_loop(file: BinaryIO, rate: int, first: int, last: int) -> None:
    """A `smpl` chunk with one endless forward loop between two samples, both played (RIFF MCI, 1994)."""
    middle_c, nanoseconds = 60, round(1e9 / rate)
    fields = [0, 0, nanoseconds, middle_c, 0, 0, 0, 1, 0, *(0, 0, first, last, 0, 0)]
    end = file.seek(0, os.SEEK_END)
    file.write(b"\0" * (end % 2) + struct.pack("<4sI15I", b"smpl", 4 * len(fields), *fields))
    end = file.tell()
    file.seek(4)
    file.write(struct.pack("<I", end - 8))
