"""Which columns of a dataset hold the songs and their captions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.data.songs.cells import holds_audio
from musicgen_dreamboothing.data.songs.names import comparable
from musicgen_dreamboothing.data.songs.sidecars import CAPTION_NAMES


def declared_features(schema: pa.Schema) -> Mapping[str, Any]:
    """What `datasets` noted of each column's type, as plain JSON: types that it does not know yet are there too."""
    noted = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    return (noted.get("info") or {}).get("features") or {}


def audio_column(schema: pa.Schema, chosen: str | None, name: str) -> str:
    """The column with the songs: the chosen one, the only Audio column, or one called `audio`.

    Raises:
        UserError: there is no such column, it cannot hold audio, or several can.
    """
    if chosen is not None:
        column = existing_column(chosen, schema.names, name)
        if not holds_audio(schema.field(column).type):
            raise UserError(
                f"column {chosen!r} of {name} holds {schema.field(column).type}, not audio; "
                f"choose another --target_audio_column_name: {', '.join(_audio_columns(schema) or schema.names)}"
            )
        return column
    columns = _audio_columns(schema)
    if len(columns) == 1:
        return columns[0]
    if (usual := find_column(schema.names, ["audio"])) is not None and holds_audio(schema.field(usual).type):
        return usual
    raise UserError(
        f"which column of {name} holds the songs? Say it with --target_audio_column_name; "
        f"it has {', '.join(columns or schema.names)}"
    )


def may_hold_songs(schema: pa.Schema, chosen: str | None) -> bool:
    """Whether a table has a column for `audio_column` to take or to choose from."""
    usual = find_column(schema.names, [chosen or "audio"])
    is_usual = usual is not None and holds_audio(schema.field(usual).type)
    return is_usual or (chosen is None and bool(_audio_columns(schema)))


def _audio_columns(schema: pa.Schema) -> list[str]:
    """Columns that are declared as Audio; else those with samples and a sampling rate, which nothing else has."""
    features = declared_features(schema)
    declared = [name for name in schema.names if _type_name(features.get(name)) == "Audio"]
    return declared or [field.name for field in schema if _holds_samples(field.type)]


def _holds_samples(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and {"array", "sampling_rate"} <= {field.name for field in kind}


def text_column(names: Iterable[str], chosen: str | None, name: str) -> str | None:
    """The column with the captions: the chosen one, or the first that has a usual name.

    Raises:
        UserError: there is no such column.
    """
    columns = list(names)
    if chosen is not None:
        return existing_column(chosen, columns, name)
    return find_column(columns, CAPTION_NAMES)


def label_names(feature: Any) -> list[str] | None:
    """The names behind the numbers of a ClassLabel column, or of a column of lists of them."""
    while isinstance(feature, list) or _type_name(feature) in ("List", "LargeList", "Sequence"):
        feature = feature[0] if isinstance(feature, list) else feature.get("feature")
    return list(feature["names"]) if _type_name(feature) == "ClassLabel" else None


def _type_name(feature: Any) -> str | None:
    return feature.get("_type") if isinstance(feature, dict) else None


def existing_column(column: str, columns: Iterable[str], name: str) -> str:
    """The column as it is written there.

    Raises:
        UserError: it is not one of the columns.
    """
    columns = list(columns)
    found = find_column(columns, [column])
    if found is None:
        raise UserError(f"no column {column!r} in {name}; it has {', '.join(columns)}")
    return found


def find_column(columns: Iterable[str], requested: Iterable[str]) -> str | None:
    """The first of the requested columns that is there: as it is written, else in any case, with `_` for spaces or `-`.

    >>> find_column(["File Name", "Caption"], ["text", "caption"]), find_column(["TEXT", "text"], ["text"])
    ('Caption', 'text')
    """
    columns = list(columns)
    normal = {_normal(column): column for column in reversed(columns)}
    matches = (name if name in columns else normal.get(_normal(name)) for name in requested)
    return next((match for match in matches if match is not None), None)


def _normal(column: str) -> str:
    return comparable(column.strip()).replace(" ", "_").replace("-", "_")
