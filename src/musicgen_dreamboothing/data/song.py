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
        original: gives the file as it came, with its tags, where `read` gives but stems of it.
        damage: what could not be decoded of that file.
    """

    name: str
    read: Callable[[], Path | bytes]
    caption: str | None
    split: str
    fingerprint: str
    original: Callable[[], Path | bytes] | None = None
    damage: str | None = None
