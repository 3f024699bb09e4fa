"""Which columns of a dataset hold the songs and their captions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.data.songs.cells import holds_audio
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
        if not holds_audio(schema.field(existing_column(chosen, schema.names, name)).type):
            raise UserError(
                f"column {chosen!r} of {name} holds {schema.field(chosen).type}, not audio; "
                f"choose another --target_audio_column_name: {', '.join(_audio_columns(schema) or schema.names)}"
            )
        return chosen
    columns = _audio_columns(schema)
    if len(columns) == 1:
        return columns[0]
    if "audio" in schema.names and holds_audio(schema.field("audio").type):
        return "audio"
    raise UserError(
        f"which column of {name} holds the songs? Say it with --target_audio_column_name; "
        f"it has {', '.join(columns or schema.names)}"
    )


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
    return next((usual for usual in CAPTION_NAMES if usual in columns), None)


def label_names(feature: Any) -> list[str] | None:
    """The names behind the numbers of a ClassLabel column, or of a column of lists of them."""
    while isinstance(feature, list) or _type_name(feature) in ("List", "LargeList", "Sequence"):
        feature = feature[0] if isinstance(feature, list) else feature.get("feature")
    return list(feature["names"]) if _type_name(feature) == "ClassLabel" else None


def _type_name(feature: Any) -> str | None:
    return feature.get("_type") if isinstance(feature, dict) else None


def existing_column(column: str, columns: Iterable[str], name: str) -> str:
    """The column itself.

    Raises:
        UserError: it is not one of the columns.
    """
    if column not in columns:
        raise UserError(f"no column {column!r} in {name}; it has {', '.join(columns)}")
    return column
