"""Files that are whole or not there: written under another name and renamed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np


def write_text(path: Path, text: str) -> None:
    """Writes a text file in one move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        # Names of files may hold bytes that are no UTF-8: this is how JSON writes what Python makes of them.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_array(path: Path, values: np.ndarray) -> None:
    """Writes an array as .npy in one move."""
    temporary = _temporary(path)
    try:
        with temporary.open("wb") as file:
            np.save(file, values)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    """A name beside the file that no other process writes to."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def write_json(path: Path, value: Any) -> None:
    """Writes a value as readable JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_json_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes one JSON object a line."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def digest(path: Path) -> str:
    """A short hash of a file's bytes; several stages ask for it in one run, and a file is read once while it stays."""
    status = path.stat()
    return _digest(path.absolute(), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=100_000)
def _digest(path: Path, size: int, changed: int) -> str:
    found = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()
