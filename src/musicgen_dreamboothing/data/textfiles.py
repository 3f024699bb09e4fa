"""Text files that people write or edit: captions, metadata tables. Every error names the file and the line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from musicgen_dreamboothing.console import UserError

TEXT = "utf-8-sig"  # Notepad and Excel put a byte order mark in front


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        UserError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding=TEXT)
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8 and run again") from error


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; an error names the line, for people edit these files."""
    return [row for _, row in numbered_json_lines(path)]


def numbered_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The same with the number of each line, from 1."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):  # splitlines() splits captions, too
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path} line {number} is not JSON ({error.msg}); mend the line and run again") from error
        if not isinstance(row, dict):
            raise UserError(f'{path} line {number} must be an object such as {{"file_name": ..., "text": ...}}')
        yield number, row
