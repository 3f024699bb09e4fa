"""What a cell of a dataset holds, read from Arrow without `datasets`, which would decode it: sounds and captions."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import soundfile

NO_AUDIO = "without audio"
NO_FILE = "whose audio file is missing"
NO_RATE = "whose audio array has no sampling rate"
WRONG_RATE = "whose sampling rate is none of sound"
NO_WAVE = "whose audio array is not [S], [C, S] or [S, C]"
INT16_SCALE, INT32_SCALE = 2.0**15, 2.0**31  # full scale of integer samples
HIGHEST_RATE = 2**31 - 1  # that a WAV file can state, in Hz


class UnusableCellError(ValueError):
    """A row without a usable sound: `reason` completes "3 rows ...", `detail` names what was expected."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


def holds_audio(kind: pa.DataType) -> bool:
    """Whether cells of this type can hold a sound: files as bytes or paths, or arrays with their sampling rate."""
    kind = _plain_type(kind)
    if pa.types.is_struct(kind):
        names = {field.name for field in kind}
        return bool(names & {"bytes", "path"}) or {"array", "sampling_rate"} <= names
    return _is_text(kind) or _is_binary(kind)


def audio_of_cell(cell: pa.Scalar, folders: Sequence[Path]) -> Path | bytes:
    """The sound of a cell as the path or the bytes of a file; an array becomes a WAV file of 32-bit floats.

    Args:
        cell: of a type for which `holds_audio` is true.
        folders: against which relative paths are resolved, in this order.

    Raises:
        UnusableCellError: it is null, its file is missing, or its array is no sound.
    """
    content = _content(cell, folders)
    if isinstance(content, Path):
        return content
    if isinstance(content, pa.Buffer):
        return bytes(content)
    wave, rate = content
    file = io.BytesIO()
    soundfile.write(file, wave, rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


def fingerprint_of_cell(cell: pa.Scalar, folders: Sequence[Path]) -> str:
    """Changes whenever the sound does, and only then: not with other columns, the place on disk or the order of rows.

    Bytes are hashed (1 GB/s, a small part of what decoding them takes); a file on disk is known by its size and the
    time of its last change, as songs of a folder are.

    Raises:
        UnusableCellError: as `audio_of_cell`.
    """
    content = _content(cell, folders)
    if isinstance(content, Path):
        status = content.stat()
        return f"{status.st_size}-{status.st_mtime_ns}"
    if isinstance(content, pa.Buffer):
        return fingerprint_of_bytes(content)
    wave, rate = content
    return f"{fingerprint_of_bytes(np.ascontiguousarray(wave))}-{wave.shape[1]}x{rate}"


def fingerprint_of_bytes(data: Any) -> str:
    """A short hash of anything with the buffer protocol."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def values_of_text(column: pa.ChunkedArray) -> list[Any]:
    """A text column as Python values; what is no text, such as sounds or broken UTF-8, stands as an object."""
    kind = _plain_type(column.type)
    if (pa.types.is_nested(kind) and not _is_list(kind)) or _is_binary(kind) or isinstance(kind, pa.BaseExtensionType):
        return [object() if valid else None for valid in column.is_valid().to_pylist()]
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        return [_value(cell) for chunk in column.chunks for cell in chunk]


def _value(cell: pa.Scalar) -> Any:
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        return object()


def _content(cell: pa.Scalar, folders: Sequence[Path]) -> Path | pa.Buffer | tuple[np.ndarray, int]:
    """A file on disk, the bytes of one, or samples `[S, C]` with their rate in Hz."""
    cell = _plain(cell)
    if cell is None:
        raise UnusableCellError(NO_AUDIO)
    if _is_text(cell.type):
        return _existing_file(cell, folders)
    if _is_binary(cell.type):
        if not len(cell.as_buffer()):
            raise UnusableCellError(NO_AUDIO)
        return cell.as_buffer()
    data, path, array = (_plain(cell.get(name)) for name in ("bytes", "path", "array"))
    if data is not None and len(data.as_buffer()):
        return data.as_buffer()
    if array is not None:
        return _samples(array.values), _rate(_plain(cell.get("sampling_rate")))
    if path is not None:
        return _existing_file(path, folders)
    raise UnusableCellError(NO_AUDIO)


def _plain(cell: pa.Scalar | None) -> pa.Scalar | None:
    """Without the wrapping of extension and dictionary types; None for a null."""
    while isinstance(cell, pa.ExtensionScalar | pa.DictionaryScalar):
        cell = cell.value
    return cell if cell is not None and cell.is_valid else None


def _existing_file(cell: pa.Scalar, folders: Sequence[Path]) -> Path:
    path = bytes(cell.as_buffer()).decode(errors="backslashreplace")
    if not path.strip():
        raise UnusableCellError(NO_AUDIO)
    for name in (path, path.replace("\\", "/")):
        for folder in folders:
            if os.path.isfile(folder / name):  # False for names too long for the system; absolute ones stay as they are
                return (folder / name).absolute()
    raise UnusableCellError(NO_FILE, path)


def _rate(rate: pa.Scalar | None) -> int:
    value = None if rate is None else rate.as_py()
    if not isinstance(value, int | float) or not value > 0:
        raise UnusableCellError(NO_RATE)
    if not 1 <= value <= HIGHEST_RATE:
        raise UnusableCellError(WRONG_RATE, f"{value} Hz")
    return round(value)


def _samples(values: pa.Array) -> np.ndarray:
    """float32 `[S, C]` of nested lists `[S]`, `[C, S]` or `[S, C]`; integers are scaled to full scale 1."""
    try:
        wave = np.atleast_1d(_array(values).squeeze())
    except (ValueError, pa.ArrowInvalid) as error:  # lists of different lengths
        raise UnusableCellError(NO_WAVE) from error
    if wave.ndim > 2 or not wave.size or wave.dtype.kind not in "iuf":
        raise UnusableCellError(NO_WAVE if wave.size else NO_AUDIO)
    if wave.ndim == 1:
        wave = wave[:, None]
    if wave.shape[0] < wave.shape[1]:  # a sound has more samples than channels
        wave = wave.T
    if wave.dtype.kind in "iu":
        wave = wave / (INT16_SCALE if np.abs(wave).max() <= INT16_SCALE else INT32_SCALE)
    return np.ascontiguousarray(wave, dtype=np.float32)


def _array(values: pa.Array) -> np.ndarray:
    """An array of the shape of nested lists.

    Raises:
        ValueError: lists that stand side by side have different lengths.
    """
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    if not _is_list(values.type):
        return values.to_numpy(zero_copy_only=False)
    if len(pc.unique(pc.list_value_length(values))) > 1:
        raise ValueError("lists of different lengths")
    return _array(values.flatten()).reshape(len(values), len(values.flatten()) // max(1, len(values)), -1)


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if isinstance(kind, pa.DictionaryType):
        return kind.value_type
    return kind.storage_type if isinstance(kind, pa.ExtensionType) else kind


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))
