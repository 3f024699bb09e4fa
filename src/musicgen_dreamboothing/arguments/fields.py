"""How an option is declared: its default and its help."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def option(default: Any, text: str) -> Any:
    """A field with its default and its line in `--help`."""
    return field(default=default, metadata={"help": text})
