"""The split into training and held-out clips: chosen once, and stored in `run.json`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.data.songs.song import EVAL

MIN_SONGS_TO_SPLIT = 3  # of fewer songs none is held out
COLUMNS = ("digest", "file_name", "source", "start", "seconds", "text", "variants")
MELODY = "melody"  # a column of runs that are trained with melodies: the digest of the sound that has the clip's

Row = dict[str, Any]


@dataclass(frozen=True)
class Split:
    """The clips of a run, with its captions."""

    codes: str = ""  # the folder in `tokens/` with their codes
    train: Sequence[Row] = ()  # clips to train on, as rows with `COLUMNS`
    held_out: Sequence[Row] = ()  # clips held out
    copies: tuple[tuple[str, ...], ...] = ()  # groups of songs that are one recording
    left_out: tuple[str, ...] = ()  # songs that are not trained on, as the evaluation split has the same recording

    def limited(self, train: int | None, held_out: int | None) -> Split:
        """The first clips only; None or 0 means all."""
        return replace(self, train=self.train[: train or None], held_out=self.held_out[: held_out or None])

    def to_json(self) -> dict[str, Any]:
        """For `run.json`; a clip is a list of values in the order of `columns`."""
        has_melodies = any(row.get(MELODY) for row in [*self.train, *self.held_out])
        columns = [*COLUMNS, *((MELODY,) if has_melodies else ())]
        train, held_out = ([[row[name] for name in columns] for row in rows] for rows in (self.train, self.held_out))
        return {"codes": self.codes, "columns": columns, "train": train, "held_out": held_out}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Split:
        """From `to_json`.

        Raises:
            UserError: the values are damaged.
        """
        try:
            train, held_out = (
                [dict(zip(values["columns"], clip, strict=True)) for clip in values[name]]
                for name in ("train", "held_out")
            )
            if any(set(COLUMNS) - row.keys() for row in [*train, *held_out]):
                raise ValueError("a column is missing")
            return cls(str(values["codes"]), train, held_out)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"the list of clips in run.json is damaged ({error}); train the run again") from error


def split_songs(
    rows: Sequence[Row], recordings: Mapping[str, str], codes: str, *, eval_fraction: float, seed: int
) -> Split:
    """Holds out songs, never single clips of a song.

    If there is an explicit evaluation split, it is held out. Otherwise `eval_fraction` of the songs are, at least one,
    chosen by a hash of seed and name. Songs that are the same recording are on one side of the split.

    Args:
        rows: all clips, with `COLUMNS` and `split`.
        recordings: the recording of each song.
        codes: the folder in `tokens/` with the codes.
        eval_fraction: share of the songs, from 0 to 1.
        seed: of the choice.
    """
    songs: dict[str, set[str]] = {}
    for row in rows:
        songs.setdefault(recordings[row["source"]], set()).add(row["source"])
    held_out = [row for row in rows if row["split"] == EVAL]
    if held_out:
        not_trained = {recordings[row["source"]] for row in held_out}
    else:
        not_trained = _held_out(songs, eval_fraction, seed)
        held_out = [row for row in rows if recordings[row["source"]] in not_trained]
    train = [row for row in rows if recordings[row["source"]] not in not_trained]
    used = {row["source"] for row in [*train, *held_out]}
    return Split(
        codes,
        train,
        held_out,
        copies=tuple(tuple(sorted(names)) for names in songs.values() if len(names) > 1),
        left_out=tuple(sorted({row["source"] for row in rows} - used)),
    )


def _held_out(songs: Mapping[str, set[str]], fraction: float, seed: int) -> set[str]:
    """A share of the recordings; those with the fewest songs first, as all copies of one are held out together."""
    if fraction <= 0 or len(songs) < MIN_SONGS_TO_SPLIT:
        return set()

    def rank(recording: str) -> str:
        return hashlib.sha256(f"{seed} {recording}".encode(errors="backslashreplace")).hexdigest()

    ordered = sorted(songs, key=lambda recording: (len(songs[recording]), rank(recording)))
    return set(ordered[: max(1, round(fraction * len(songs)))])
