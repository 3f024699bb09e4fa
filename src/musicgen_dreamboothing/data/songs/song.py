"""One song, as every stage knows it. Imports little, for worker processes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

TRAIN, EVAL = "train", "eval"
# Columns of the metadata: the file beside a clip that has its melody; another recording, or stems of the clip's own.
MELODY_FILE, STEMS_FILE = "melody_file_name", "stems_file_name"


@dataclass(frozen=True)
class Song:
    """One song, not decoded yet."""

    name: str  # its path in the folder or its place in the dataset; unique
    read: Callable[[], Path | bytes]  # its path, or the bytes of the file
    caption: str | None
    split: str  # `TRAIN` or `EVAL`
    fingerprint: str  # changes whenever the audio does
    original: Callable[[], Path | bytes] | None = None  # the file with its tags, where `read` gives stems of it
    damage: str | None = None  # what could not be decoded of the original
    offset: float = 0.0  # the largest DC offset that was removed from the original, as a share of its peak
    start: float = 0.0  # seconds in the file: tracks of a cue sheet share one file
    end: float | None = None  # seconds; None is the end of the file
    melody: Song | None = None  # what has its melody, second by second, if that is not the song itself
    melody_column: str = MELODY_FILE  # of the metadata, which names the clips that are cut from it


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
    melody: str | None = None
    with_melodies: bool = False  # whether other recordings have the melodies of songs


@dataclass(frozen=True)
class Collection:
    """Songs in a fixed order, and one line for each kind of thing that is not used."""

    songs: list[Song]
    notes: list[str] = field(default_factory=list)
