"""One song, as every stage knows it. Light enough for processes that only listen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

TRAIN, EVAL = "train", "eval"


@dataclass(frozen=True)
class Song:
    """One song, not decoded yet.

    Attributes:
        name: its path in the folder or its place in the dataset; unique, and what is held out together.
        read: gives its path, or the bytes of the file.
        caption: its own description, if it has one.
        split: `train` or `eval`.
        fingerprint: changes whenever the sound does.
    """

    name: str
    read: Callable[[], Path | bytes]
    caption: str | None
    split: str
    fingerprint: str
