"""One song, as every stage knows it. Light enough for processes that only listen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
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
        offset: the largest DC offset that was removed from that file, as a share of its peak.
        start: where it begins in the file, in seconds: tracks of a cue sheet share one file.
        end: where it ends there; None is the end of the file.
    """

    name: str
    read: Callable[[], Path | bytes]
    caption: str | None
    split: str
    fingerprint: str
    original: Callable[[], Path | bytes] | None = None
    damage: str | None = None
    offset: float = 0.0
    start: float = 0.0
    end: float | None = None


@dataclass(frozen=True)
class Columns:
    """Which columns and splits of a dataset to read; None takes the usual ones.

    Files of a Hub dataset beyond `max_train_songs` and `max_eval_songs` are not downloaded.
    """

    audio: str | None = None
    text: str | None = None
    config: str | None = None
    train_split: str = "train"
    eval_split: str | None = None
    max_train_songs: int | None = None
    max_eval_songs: int | None = None


@dataclass(frozen=True)
class Collection:
    """Songs in a fixed order, and one line for each kind of thing that was passed over or could not be used."""

    songs: list[Song]
    notes: list[str] = field(default_factory=list)
