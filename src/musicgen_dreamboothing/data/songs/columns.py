"""Columns of a dataset: which hold songs and captions, and what is in their cells.

Cells are read from Arrow without `datasets`, which would decode them.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import soundfile

from musicgen_dreamboothing.console import UserError, first_names, plural
from musicgen_dreamboothing.data.songs.names import comparable
from musicgen_dreamboothing.data.songs.sidecars import CAPTION_NAMES
from musicgen_dreamboothing.data.songs.song import MELODY_FILE

MELODY_NAMES = (MELODY_FILE, "melody")  # `datasets` calls a column `melody` that an audiofolder calls the other way
NO_AUDIO = "without audio"
NO_WAVE = "whose audio array is not [S], [C, S] or [S, C]"
INT16_SCALE, INT32_SCALE = 2.0**15, 2.0**31  # full scale of integer samples
HIGHEST_RATE = 2**31 - 1  # Hz, that a WAV file can state


class UnusableCellError(ValueError):
    """A row without usable audio: `reason` completes "3 rows ...", `detail` is the value at fault."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason, self.detail = reason, detail


class RowNotes:
    """Rows and files that can't be used, by the reason."""

    def __init__(self) -> None:
        self._rows: defaultdict[tuple[str, str], list[str]] = defaultdict(list)

    def add(self, reason: str, row: str, *, noun: str = "row") -> None:
        """`reason` completes the count and the noun: "3 rows without audio"."""
        self._rows[noun, reason].append(row)

    def lines(self) -> list[str]:
        """
        >>> notes = RowNotes()
        >>> for row in range(6):
        ...     notes.add("without audio", f"train/{row}")
        >>> notes.lines()
        ['6 rows without audio: train/0, train/1, train/2, train/3 and 2 more']
        """
        return [
            f"{plural(len(rows), noun)} {reason}: {first_names(rows)}" for (noun, reason), rows in self._rows.items()
        ]


# --- which columns


def declared_features(schema: pa.Schema) -> Mapping[str, Any]:
    """The types that `datasets` stored for the columns, as plain JSON: types that this version lacks are there too."""
    stored = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    return (stored.get("info") or {}).get("features") or {}


def audio_column(schema: pa.Schema, chosen: str | None, name: str) -> str:
    """The column with the songs: the chosen one, the only Audio column, or one called `audio`.

    Raises:
        UserError: there is no such column, it cannot hold audio, or several can.
    """
    columns = _audio_columns(schema)
    if chosen is not None:
        column = existing_column(chosen, schema.names, name)
        if not holds_audio(schema.field(column).type):
            raise UserError(
                f"column {chosen!r} of {name} holds {schema.field(column).type}, not audio; "
                f"choose another --target_audio_column_name: {', '.join(columns or schema.names)}"
            )
        return column
    if len(columns) == 1:
        return columns[0]
    if (usual := find_column(schema.names, ["audio"])) is not None and holds_audio(schema.field(usual).type):
        return usual
    raise UserError(
        f"which column of {name} holds the songs? Say it with --target_audio_column_name; "
        f"it has {', '.join(columns or schema.names)}"
    )


def may_hold_songs(schema: pa.Schema, chosen: str | None) -> bool:
    """Whether a table has a column for `audio_column` to return or to choose from."""
    usual = find_column(schema.names, [chosen or "audio"])
    is_usual = usual is not None and holds_audio(schema.field(usual).type)
    return is_usual or (chosen is None and bool(_audio_columns(schema)))


def _audio_columns(schema: pa.Schema) -> list[str]:
    """Columns that are declared as Audio; else those with samples and a sampling rate, which nothing else has."""
    features = declared_features(schema)
    declared = [name for name in schema.names if _type_name(features.get(name)) == "Audio"]
    return declared or [field.name for field in schema if {"array", "sampling_rate"} <= _field_names(field.type)]


def text_column(names: Iterable[str], chosen: str | None, name: str) -> str | None:
    """The column with the captions: the chosen one, which must exist, or the first that has a usual name."""
    columns = list(names)
    return find_column(columns, CAPTION_NAMES) if chosen is None else existing_column(chosen, columns, name)


def melody_column(schema: pa.Schema, chosen: str | None, audio: str, name: str) -> str | None:
    """The column with other recordings of the songs: the chosen one, or one of a usual name; None without one.

    Raises:
        UserError: the chosen one does not exist, or cannot hold audio.
    """
    if chosen is None:
        usual = find_column(schema.names, MELODY_NAMES)
        return usual if usual not in (None, audio) and holds_audio(schema.field(usual).type) else None
    column = existing_column(chosen, schema.names, name)
    if not holds_audio(schema.field(column).type):
        raise UserError(
            f"column {chosen!r} of {name} holds {schema.field(column).type}, not audio; choose another "
            "--conditional_audio_column_name, or none with --melody self"
        )
    return None if column == audio else column


def label_names(feature: Any) -> list[str] | None:
    """The names behind the numbers of a ClassLabel column, or of a column of lists of them."""
    while isinstance(feature, list) or _type_name(feature) in ("List", "LargeList", "Sequence"):
        feature = feature[0] if isinstance(feature, list) else feature.get("feature")
    return list(feature["names"]) if _type_name(feature) == "ClassLabel" else None


def _type_name(feature: Any) -> str | None:
    return feature.get("_type") if isinstance(feature, dict) else None


def existing_column(column: str, columns: Iterable[str], name: str) -> str:
    """The column as it is written in the table. Raises UserError where it is not one of the columns."""
    columns = list(columns)
    existing = find_column(columns, [column])
    if existing is None:
        raise UserError(f"no column {column!r} in {name}; it has {', '.join(columns)}")
    return existing


def find_column(columns: Iterable[str], requested: Iterable[str]) -> str | None:
    """The first of the requested columns that exists: as it is written, else in any case, with `_` for spaces or `-`.

    >>> find_column(["File Name", "Caption"], ["text", "caption"]), find_column(["TEXT", "text"], ["text"])
    ('Caption', 'text')
    """
    columns = list(columns)
    normal = {_normal(column): column for column in reversed(columns)}
    matches = (name if name in columns else normal.get(_normal(name)) for name in requested)
    return next((match for match in matches if match is not None), None)


def _normal(column: str) -> str:
    return comparable(column.strip()).replace(" ", "_").replace("-", "_")


# --- what is in a cell


def holds_audio(kind: pa.DataType) -> bool:
    """Whether cells of this type can hold audio: files as bytes or paths, or arrays with their sampling rate."""
    kind = _plain_type(kind)
    names = _field_names(kind)
    return bool(names & {"bytes", "path"}) or {"array", "sampling_rate"} <= names or _is_text(kind) or _is_binary(kind)


def audio_of_cell(cell: pa.Scalar, folders: Sequence[Path]) -> Path | bytes:
    """The audio of a cell as the path or the bytes of a file; an array becomes a WAV file of 32-bit floats.

    Args:
        cell: of a type for which `holds_audio` is true.
        folders: against which relative paths are resolved, in this order.

    Raises:
        UnusableCellError: it is null, its file is missing, or its array is not audio.
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
    """Changes with the audio, and not with other columns, the place on disk or the order of rows.

    Bytes are hashed (1 GB/s, a small part of what decoding costs). Errors are those of `audio_of_cell`.
    """
    content = _content(cell, folders)
    if isinstance(content, Path):
        return fingerprint_of_file(content)
    if isinstance(content, pa.Buffer):
        return fingerprint_of_bytes(content)
    wave, rate = content
    return f"{fingerprint_of_bytes(wave)}-{wave.shape[1]}x{rate}"


def fingerprint_of_file(path: Path) -> str:
    """The size of a file and the time of its last change."""
    status = path.stat()
    return f"{status.st_size}-{status.st_mtime_ns}"


def fingerprint_of_bytes(data: Any) -> str:
    """A short hash of anything with the buffer protocol."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def values_of_text(column: pa.ChunkedArray) -> list[Any]:
    """A text column as Python values; what is not text, such as audio or broken UTF-8, becomes an object."""
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
    array, rate = None, None
    if _is_text(cell.type):
        data, path = None, cell
    elif _is_binary(cell.type):
        data, path = cell, None
    else:
        data, path, array, rate = (_plain(cell.get(name)) for name in ("bytes", "path", "array", "sampling_rate"))
    if data is not None and len(data.as_buffer()):
        return data.as_buffer()
    if array is not None:
        return _samples(array.values), _rate(rate)
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
    raise UnusableCellError("whose audio file is missing", path)


def _rate(rate: pa.Scalar | None) -> int:
    value = None if rate is None else rate.as_py()
    if not isinstance(value, int | float) or not value > 0:
        raise UnusableCellError("whose audio array has no sampling rate")
    if not 1 <= value <= HIGHEST_RATE:
        raise UnusableCellError("whose sampling rate is impossible", f"{value} Hz")
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
    if wave.shape[0] < wave.shape[1]:  # audio has more samples than channels
        wave = wave.T
    if wave.dtype.kind in "iu":
        wave = wave / (INT16_SCALE if np.abs(wave).max() <= INT16_SCALE else INT32_SCALE)
    return np.ascontiguousarray(wave, dtype=np.float32)


def _array(values: pa.Array) -> np.ndarray:
    """An array of the shape of nested lists. Raises ValueError where lists side by side have different lengths."""
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


def _field_names(kind: pa.DataType) -> set[str]:
    """Of a struct; of other types none."""
    return {field.name for field in kind} if pa.types.is_struct(kind) else set()


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))
