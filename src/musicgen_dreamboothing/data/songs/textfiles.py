"""Text files that people write or edit: captions and metadata tables. Errors name the file and the line."""

from __future__ import annotations

import codecs
import json
import math
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from musicgen_dreamboothing.console import UserError

# UTF-32 first: its little-endian mark begins with that of UTF-16.
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: Path) -> str:
    """The text of a file: UTF-8, or what its byte order mark says (Notepad and Excel also write UTF-16).

    Line ends are `\\n`. Raises UserError where the file cannot be read, or is not such text.
    """
    try:
        return decode_text(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror})") from error


def decode_text(content: bytes, name: str) -> str:
    """The same of the bytes of a file; `name` stands for it in errors."""
    encoding = next((name for mark, name in BYTE_ORDER_MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        kind = encoding.removesuffix("-sig").upper()
        raise UserError(f"{name} is not {kind} text (byte {error.start}); save it as UTF-8 and run again") from error
    if "\0" in text:  # UTF-16 without a mark, or no text at all
        raise UserError(f"{name} is not UTF-8 text (it holds zero bytes); save it as UTF-8 and run again")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def caption_of(value: Any, labels: Sequence[str] | None = None) -> str | None:
    """The caption in a text file, a cell of a table or a value of a JSON file, on one line; None where it is empty.

    Args:
        value: text, or a list of texts, which are joined with commas; None and NaN are empty. Else a ValueError.
        labels: texts that a number stands for, where the values are classes.
    """
    try:
        return _caption(value, labels) or None
    except TypeError as error:
        text = json.dumps(value, default=str)
        raise ValueError(f"the caption must be text or a list of texts, not {text}") from error


def _caption(value: Any, labels: Sequence[str] | None) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):  # pandas writes NaN for a missing text
        return ""
    if isinstance(value, str):
        printable = "".join(" " if unicodedata.category(letter) == "Cc" else letter for letter in encodable(value))
        return " ".join(printable.split())
    if isinstance(value, list | tuple):
        return ", ".join(filter(None, (_caption(item, labels) for item in value)))
    if labels and isinstance(value, int) and not isinstance(value, bool):
        return labels[value] if 0 <= value < len(labels) else ""  # datasets writes -1 for "no label"
    raise TypeError(type(value).__name__)


def encodable(text: str) -> str:
    """The text with a question mark for each half of a surrogate pair, which JSON may hold but UTF-8 not."""
    return text.encode("utf-8", errors="replace").decode()


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; an error names the line, for people edit these files."""
    return [row for _, row in numbered_json_lines(path)]


def numbered_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The same with the number of each line, from 1."""
    for number, line in numbered_lines(path):
        try:
            yield number, json_object(line)
        except ValueError as error:
            raise UserError(f"{path} line {number} {error}; correct the line and run again") from error


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not empty, each with its number from 1; only `\\n` ends one, for captions may hold U+2028."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            yield number, line


def json_object(line: str) -> dict[str, Any]:
    """One line of a JSON-lines file. Raises ValueError with what is wrong with it."""
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"is not JSON ({getattr(error, 'msg', error)})") from error
    if not isinstance(row, dict):
        raise ValueError('must be an object such as {"file_name": ..., "text": ...}')
    if "\\ud" in line.lower():
        row = json.loads(encodable(json.dumps(row, ensure_ascii=False)))
    return row
