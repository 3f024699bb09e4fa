"""Captions that people keep beside their songs: text files, JSON files and metadata tables."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.data.textfiles import TEXT, read_json_lines, read_text

METADATA_FILES = ("metadata.jsonl", "metadata.csv")
CAPTION_NAMES = ("text", "caption", "description", "prompt")  # in `song.json`


def caption_beside(song: Path) -> str | None:
    """The caption in `song.txt` or `song.json`, on one line."""
    path, data = song.with_suffix(".txt"), song.with_suffix(".json")
    text = path.read_text(encoding=TEXT, errors="replace") if path.is_file() else ""
    if not text.strip() and data.is_file():
        text = _caption_of_json(data)
    return " ".join(text.split()) or None


def _caption_of_json(path: Path) -> str:
    """The caption among what other trainers and players keep beside a song; a file without one says nothing."""
    try:
        values = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON ({error.msg}, line {error.lineno}); mend it and run again") from error
    if isinstance(values, str):
        return values
    found = (values.get(name) for name in CAPTION_NAMES) if isinstance(values, dict) else iter(())
    return next((text for text in found if isinstance(text, str) and text.strip()), "")


def captions_of_metadata(folder: Path, column: str | None) -> dict[str, str]:
    """Captions by file name, from the metadata files of an audiofolder; each speaks of what is beside and below it."""
    captions = {}
    for path in sorted(path for name in METADATA_FILES for path in folder.rglob(name)):
        place = path.parent.relative_to(folder)
        for row in _metadata_rows(path, column):
            if caption := row.get(column or "text"):
                captions[(place / str(row["file_name"])).as_posix()] = str(caption)
    return captions


def _metadata_rows(path: Path, column: str | None) -> list[dict[str, Any]]:
    if path.suffix == ".csv":
        rows: list[dict[str, Any]] = list(csv.DictReader(io.StringIO(read_text(path), newline="")))
    else:
        rows = read_json_lines(path)
    for wanted in filter(None, ("file_name", column)):
        if rows and wanted not in rows[0]:
            raise UserError(f"no column {wanted!r} in {path}; it has {', '.join(rows[0])}")
    return [row for row in rows if row.get("file_name")]
