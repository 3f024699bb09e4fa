"""The token tables of a run: clips with their codes, and the text states of captions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import datasets

from musicgen_dreamboothing.console import UserError, first_names, log, plural
from musicgen_dreamboothing.data.tokens.arrow_tables import join_rows
from musicgen_dreamboothing.data.tokens.melodies import (
    Melodies,
    MelodySource,
    add_melodies,
    read_melodies,
    with_melodies,
)
from musicgen_dreamboothing.data.tokens.split import MELODY, Row, Split, split_songs
from musicgen_dreamboothing.data.tokens.store import captions_of, codes_name, read_codes, recordings_of
from musicgen_dreamboothing.data.tokens.text_states import read_states
from musicgen_dreamboothing.files import folder_lock
from musicgen_dreamboothing.model.checkpoint import Checkpoint

ROW_FEATURES = datasets.Features(
    {
        **dict.fromkeys(("file_name", "source", "text", MELODY), datasets.Value("string")),
        **dict.fromkeys(("start", "seconds"), datasets.Value("float64")),
        "variants": datasets.List(datasets.Value("string")),  # other captions of the clip
    }
)


@dataclass(frozen=True)
class Tables:
    """Clips to train on and clips held out, text states of all captions if they are cached, and the split.

    The split is empty for generated clips of the class.
    """

    train: datasets.Dataset
    held_out: datasets.Dataset
    captions: datasets.Dataset | None = None
    split: Split = field(default_factory=Split)
    melodies: Melodies | None = None  # of runs that are trained with melodies

    @property
    def fingerprint(self) -> str:
        """Changes with every clip and every caption."""
        hasher = hashlib.sha256()
        for table in (self.train, self.held_out):
            for digest, caption, others in zip(table["digest"], table["text"], table["variants"], strict=True):
                hasher.update("\n".join([f"{digest} {caption}", *others, ""]).encode())
            if self.melodies is not None:
                hasher.update("\n".join(table[MELODY]).encode())
        return hasher.hexdigest()[:16]

    @property
    def longest_caption(self) -> int | None:
        """In tokens of the text encoder; None if no states are cached."""
        return max(self.captions["length"], default=None) if self.captions is not None else None

    @property
    def held_out_songs(self) -> list[str]:
        return sorted(set(self.held_out["source"]))


def load_tables(
    folder: Path,
    rows: Sequence[Row],
    checkpoint: Checkpoint,
    *,
    eval_fraction: float,
    seed: int,
    limits: tuple[int | None, int | None] = (None, None),
    text_states: bool = True,
    key_phrase: str = "",
    word_dropout: float = 0.0,
    melody: MelodySource | None = None,
    workers: int = 1,
) -> Tables:
    """Splits the clips of a prepared folder with `split_songs`, and reads their tokens.

    Args:
        folder: the prepared folder.
        rows: its clips, from `clip_rows`.
        checkpoint: the base whose codec and text encoder are used.
        eval_fraction: share of the songs that is held out.
        seed: of the split.
        limits: largest number of clips to train on, and to hold out.
        text_states: whether to read the text states of all captions.
        key_phrase, word_dropout: of the run; see `captions_of`.
        melody: which sounds have the melodies; None for a run without.
        workers: threads that compute the melodies of passages that only this run has.

    Raises:
        UserError: nothing is left to train on.
    """
    name = codes_name(checkpoint)
    table, row_of = read_codes(folder, name)
    if any(row["digest"] not in row_of for row in rows):
        raise UserError(f"clips of {folder} are not encoded; run the same command again")
    frames = table["frames"][:]
    rows = [row | {"seconds": frames[row_of[row["digest"]]] / checkpoint.frame_rate} for row in rows]
    if melody is not None:
        rows = with_melodies(folder, rows, melody)
    recordings = recordings_of(folder, rows, table, row_of)
    split = split_songs(rows, recordings, name, eval_fraction=eval_fraction, seed=seed)
    if not split.train:
        raise UserError(f"{folder} has no clip to train on: all {len(rows)} are for evaluation")
    split = split.limited(*limits)
    texts = captions_of([*split.train, *split.held_out], key_phrase, word_dropout)
    captions = read_states(folder, texts, checkpoint) if text_states else None
    melodies = None
    if melody is not None:
        used = [*split.train, *split.held_out]
        with folder_lock(folder, wait=True):  # a limit on samples makes passages that `prepare` does not know
            add_melodies(folder, used, checkpoint, workers)
        melodies = read_melodies(folder, checkpoint)
    return Tables(*_clips_of(split, table, row_of), captions, split, melodies)


def tables_of_split(folder: Path, split: Split) -> Tables:
    """The clips of an earlier run, without text states; those without codes are left out with a note.

    Raises:
        UserError: no clip that was trained on is left.
    """
    table, row_of = read_codes(folder, split.codes)
    for rows, what in ((split.train, "trained on"), (split.held_out, "held out")):
        if gone := [row for row in rows if row["digest"] not in row_of]:
            songs = list(dict.fromkeys(row["source"] for row in gone))
            log(
                f"note: left out {plural(len(gone), 'clip')} of {len(rows)} {what}, "
                f"as {folder} has no codes of them any more: {first_names(songs)}"
            )
    train, held_out = _clips_of(split, table, row_of)
    if not len(train):
        raise UserError(
            f"{folder} has no codes of the clips that this run was trained on. Fix: prepare the same songs there "
            "again, or give another folder with --data DIR"
        )
    return Tables(train, held_out, split=split)


def _clips_of(
    split: Split, table: datasets.Dataset, row_of: dict[str, int]
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Training and held-out clips with their codes."""
    codes = table.remove_columns("fingerprint")

    def joined(rows: Sequence[Row]) -> datasets.Dataset:
        rows = [row for row in rows if row["digest"] in row_of]
        values = [{name: row.get(name, "") for name in ROW_FEATURES} for row in rows]
        return join_rows(codes, [row_of[row["digest"]] for row in rows], values, ROW_FEATURES)

    return joined(split.train), joined(split.held_out)
