"""The token tables of a prepared folder: what is trained on, and which songs are held out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pyarrow.compute as pc

from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.data.layout import TOKENS
from musicgen_dreamboothing.data.songs.song import EVAL
from musicgen_dreamboothing.data.text_states import CAPTIONS
from musicgen_dreamboothing.data.tokens import CODES

MIN_SONGS_TO_SPLIT = 3  # of fewer songs none is held out: too much would be lost


@dataclass(frozen=True)
class Tables:
    """The token tables.

    Attributes:
        train: clips to train on.
        held_out: clips held out.
        captions: text states of all captions, if they are cached.
        copies: songs that are one recording, in groups.
        left_out: songs that are not trained on, as the evaluation split has the same recording.
    """

    train: datasets.Dataset
    held_out: datasets.Dataset
    captions: datasets.Dataset | None
    copies: tuple[tuple[str, ...], ...] = ()
    left_out: tuple[str, ...] = ()

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
    chosen by a hash of seed and name: another order of the songs changes nothing. Songs that are the same recording
    are on one side: they are held out together, and what is in an evaluation split is not trained on.

    Raises:
        UserError: nothing is left to train on.
    """
    clips = datasets.load_from_disk(str(folder / TOKENS / CODES))
    captions = datasets.load_from_disk(str(folder / TOKENS / CAPTIONS)) if text_states else None
    # A folder of an earlier version has no recordings: evaluation, which prepares nothing, goes by songs as it did.
    sources = clips["source"]
    recordings = clips["recording" if "recording" in clips.column_names else "source"]
    songs = _songs_of_recordings(sources, recordings)
    held_out = [split == EVAL for split in clips["split"]]
    if any(held_out):
        kept_out = {recording for recording, is_held_out in zip(recordings, held_out, strict=True) if is_held_out}
    else:
        kept_out = _held_out(songs, eval_fraction, seed)
        held_out = [recording in kept_out for recording in recordings]
    trained = [recording not in kept_out for recording in recordings]
    if not any(trained):
        raise UserError(f"{folder} has no clip to train on: all {len(clips)} are for evaluation")
    return Tables(
        clips.select(np.flatnonzero(trained)),
        clips.select(np.flatnonzero(held_out)),
        captions,
        tuple(tuple(sorted(names)) for names in songs.values() if len(names) > 1),
        tuple(sorted({sources[row] for row in np.flatnonzero(~np.array(trained) & ~np.array(held_out))})),
    )


def _songs_of_recordings(sources: list[str], recordings: list[str]) -> dict[str, set[str]]:
    """The songs that are each recording; of most there is one."""
    songs: dict[str, set[str]] = {}
    for source, recording in zip(sources, recordings, strict=True):
        songs.setdefault(recording, set()).add(source)
    return songs


def _held_out(songs: dict[str, set[str]], fraction: float, seed: int) -> set[str]:
    """A share of the recordings: those with the fewest songs first, for all copies of one are held out together."""
    if fraction <= 0 or len(songs) < MIN_SONGS_TO_SPLIT:
        return set()

    def drawn(recording: str) -> str:
        return hashlib.sha256(f"{seed} {recording}".encode(errors="backslashreplace")).hexdigest()

    ordered = sorted(songs, key=lambda recording: (len(songs[recording]), drawn(recording)))
    return set(ordered[: max(1, round(fraction * len(songs)))])
