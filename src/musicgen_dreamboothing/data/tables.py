"""The token tables of a prepared folder: what is trained on, and which songs are held out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow.compute as pc

from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.data.songs.song import EVAL
from musicgen_dreamboothing.data.tokens import CAPTIONS, CODES, TOKENS

MIN_SONGS_TO_SPLIT = 3  # of fewer songs none is held out: too much would be lost


@dataclass(frozen=True)
class Tables:
    """The token tables: clips to train on, clips held out, and the text states of all captions, if they are cached."""

    train: datasets.Dataset
    held_out: datasets.Dataset
    captions: datasets.Dataset | None

    @property
    def fingerprint(self) -> str:
        """Changes with every clip and every caption."""
        found = hashlib.sha256()
        for table in (self.train, self.held_out):
            for digest, caption, others in zip(table["digest"], table["text"], table["variants"], strict=True):
                found.update("\n".join([f"{digest} {caption}", *others, ""]).encode())
        return found.hexdigest()[:16]

    @property
    def longest_caption(self) -> int | None:
        """In tokens of the text encoder, which need not be looked at for it; None where no states are cached."""
        if self.captions is None or not len(self.captions):
            return None
        return int(pc.max(pc.list_value_length(self.captions.data.column("states"))).as_py())

    @property
    def held_out_songs(self) -> list[str]:
        return sorted(set(self.held_out["source"]))


def load_tables(folder: Path, *, eval_fraction: float, seed: int, text_states: bool = True) -> Tables:
    """Reads a prepared folder and holds out songs, never single clips of a song.

    An explicit evaluation split wins. Else `eval_fraction` of the songs are held out, at least one,
    chosen by a hash of seed and name: another order of the songs changes nothing.

    Raises:
        UserError: nothing is left to train on.
    """
    clips = datasets.load_from_disk(str(folder / TOKENS / CODES))
    captions = datasets.load_from_disk(str(folder / TOKENS / CAPTIONS)) if text_states else None
    in_eval_split = [split == EVAL for split in clips["split"]]
    if any(in_eval_split):
        held_out = in_eval_split
    else:
        songs = _held_out_songs(set(clips["source"]), eval_fraction, seed)
        held_out = [source in songs for source in clips["source"]]
    if all(held_out):
        raise UserError(f"{folder} has no clip to train on: all {len(clips)} are for evaluation")
    rows = range(len(clips))
    return Tables(
        clips.select([row for row in rows if not held_out[row]]),
        clips.select([row for row in rows if held_out[row]]),
        captions,
    )


def _held_out_songs(songs: set[str], fraction: float, seed: int) -> set[str]:
    if fraction <= 0 or len(songs) < MIN_SONGS_TO_SPLIT:
        return set()
    ordered = sorted(
        songs, key=lambda song: hashlib.sha256(f"{seed} {song}".encode(errors="backslashreplace")).hexdigest()
    )
    return set(ordered[: max(1, round(fraction * len(songs)))])
