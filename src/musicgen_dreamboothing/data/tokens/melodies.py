"""Melodies of clips: the pitch class of each chroma frame, computed once for each passage and each single clip.

`tokens/melody-<hash>` has a row for each sequence of sounds, keyed by the bytes of their files and their lengths; the
hash is of the rules. A piece that runs from one clip into the next one takes its melody from their passage, where
frames near the end of a clip know what follows; a clip that is taken as it is has its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import PartialState

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.arguments import DataArguments
from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.data.layout import CLIPS, METADATA, TOKENS
from musicgen_dreamboothing.data.songs.song import MELODY_FILE, STEMS_FILE
from musicgen_dreamboothing.data.tokens.arrow_tables import append_rows, read_rows
from musicgen_dreamboothing.data.tokens.passages import find_passages
from musicgen_dreamboothing.data.tokens.split import MELODY, Row
from musicgen_dreamboothing.files import digest
from musicgen_dreamboothing.model.checkpoint import EXAMPLES, Checkpoint
from musicgen_dreamboothing.model.chroma import HOP, N_FFT, SAMPLING_RATE, chroma_of_pieces, common_frames, fitted
from musicgen_dreamboothing.workers import in_threads

VERSION = 1  # of the rules in this file: another number has all melodies computed again
PART_MELODIES = 256  # melodies are written after so many: what a kill can cost

MELODY_FEATURES = datasets.Features(
    {"key": datasets.Value("string"), "classes": datasets.List(datasets.Value("uint8"))}  # [T]
)

NONE, SELF, PAIRED = "none", "self", "paired"  # where the melody of a clip comes from

Sound = tuple[str, int]  # digest of a file, and its length in codec frames
Array = np.ndarray


@dataclass(frozen=True)
class MelodySource:
    """Which sound has the melody of a clip.

    Attributes:
        mode: `SELF`, the clip or stems of it, or `PAIRED`, another recording of the same length.
        stems: with `SELF`: whether stems are used where there are some.
    """

    mode: str
    stems: bool = True


def melody_source(options: DataArguments, checkpoint: Checkpoint) -> MelodySource | None:
    """The source that `--melody` and `--melody_stems` choose for a base; None where it gets no melodies.

    Raises:
        UserError: the base takes none.
    """
    mode, stems = options.melody, options.melody_stems
    if mode == "auto" and checkpoint.is_melody:
        other = options.conditional_audio_column_name  # old files name the songs' own column for their own melodies
        mode = SELF if other in (None, options.target_audio_column_name or "audio") else PAIRED
    if mode in ("auto", NONE):
        return None
    if not checkpoint.is_melody:
        raise UserError(
            f"--melody {mode} needs a melody checkpoint, and {checkpoint.name} is none; choose one with "
            f"--model_name_or_path {EXAMPLES[-1]}, or --melody none"
        )
    return MelodySource(mode, stems != "false")


class Melodies:
    """The melodies of a prepared folder: `[T]` uint8 of a clip or a passage, and of a part of it."""

    def __init__(self, table: datasets.Dataset, checkpoint: Checkpoint) -> None:
        self._table = table.with_format("numpy")
        self._row_of = {key: row for row, key in enumerate(table["key"])}
        self._rate = frame_rate_of(checkpoint)
        self.length = int(checkpoint.config.chroma_length)

    @property
    def grid(self) -> int:
        """Codec frames after which a frame of codes and one of chroma begin together."""
        return common_frames(self._rate)

    def part(self, sounds: Sequence[Sound], begin: int, end: int) -> Array:
        """The classes `[T]` of the codec frames from `begin` to `end` of sounds that follow each other.

        Raises:
            UserError: they are not stored.
        """
        row = self._row_of.get(melody_key(sounds))
        if row is None:
            raise UserError("a melody is not in the tokens any more; run the training, or `prepare`, again")
        first = round(begin * self._chroma_frames)
        count = 1 + int((end - begin) * self._chroma_frames)
        return np.asarray(self._table[row]["classes"], np.uint8)[first : first + count]

    def prefix(self, sounds: Sequence[Sound], begin: int, end: int) -> torch.Tensor:
        """As `part`, int64 and as long as a model's prefix `[C]`: repeated or cut."""
        return fitted(torch.from_numpy(self.part(sounds, begin, end)).long(), self.length)

    @property
    def _chroma_frames(self) -> Fraction:
        """In a codec frame."""
        return SAMPLING_RATE / self._rate / HOP


def frame_rate_of(checkpoint: Checkpoint) -> Fraction:
    """Codec frames per second, exactly."""
    return Fraction(checkpoint.sampling_rate, checkpoint.hop_length)


def melody_key(sounds: Iterable[Sound]) -> str:
    """What a melody depends on, in one line."""
    return hashlib.blake2b(json.dumps(list(sounds)).encode(), digest_size=16).hexdigest()


def melodies_folder(folder: Path, checkpoint: Checkpoint) -> Path:
    """The folder with the melodies of clips that last whole frames of this checkpoint's codec."""
    rules = [VERSION, N_FFT, HOP, SAMPLING_RATE, str(frame_rate_of(checkpoint))]
    return folder / TOKENS / f"melody-{hashlib.blake2b(json.dumps(rules).encode(), digest_size=8).hexdigest()}"


def read_melodies(folder: Path, checkpoint: Checkpoint) -> Melodies:
    """The melodies that a prepared folder has."""
    return Melodies(read_rows(melodies_folder(folder, checkpoint), MELODY_FEATURES), checkpoint)


def with_melodies(folder: Path, rows: Sequence[Row], source: MelodySource) -> list[Row]:
    """The rows with `melody_file` and `melody`: the file in `clips/` that has a clip's melody, and its digest.

    Both are empty where a clip has none of the kind that is asked for.

    Raises:
        UserError: no clip has one.
    """
    files = [_melody_file(folder, row, source) for row in rows]
    if not any(files):
        raise UserError(
            f"--melody paired: no clip in {folder / CLIPS} has another recording for its melody. Put song.melody.wav "
            f"beside song.wav and prepare the songs again, or name files in a column {MELODY_FILE} of "
            f"{folder / CLIPS / METADATA}"
        )
    return [
        {**row, MELODY: digest(folder / CLIPS / file) if file else "", "melody_file": file}
        for row, file in zip(rows, files, strict=True)
    ]


def _melody_file(folder: Path, row: Row, source: MelodySource) -> str:
    """Of one clip; empty where there is none."""
    if source.mode == PAIRED:
        named = row.get(MELODY_FILE) or ""
        return named if named and (folder / CLIPS / named).is_file() else ""
    stems = row.get(STEMS_FILE) or ""
    has_stems = source.stems and stems and (folder / CLIPS / stems).is_file()
    return str(stems if has_stems else row["file_name"])


def sounds_of(rows: Sequence[Mapping[str, Any]], frame_rate: float) -> list[list[Sound]]:
    """All that may be asked for: the sounds of each passage, and of each clip alone.

    Args:
        rows: clips with `melody`, the digest of the sound that has their melody, `source`, `start` and `seconds`.
        frame_rate: codec frames per second.
    """
    places = find_passages(rows, frame_rate)
    passages = {id(passage): passage for passage, _, _ in places}.values()
    together = [[(rows[row][MELODY], length) for row, _, length in passage.clips] for passage in passages]
    alone = [[(row[MELODY], length)] for row, (_, _, length) in zip(rows, places, strict=True)]
    complete = [sounds for sounds in [*together, *alone] if all(one for one, _ in sounds)]
    return list({melody_key(sounds): sounds for sounds in complete}.values())


def add_melodies(folder: Path, rows: Sequence[Mapping[str, Any]], checkpoint: Checkpoint, workers: int = 1) -> int:
    """Computes the melodies that are missing, each process its share; returns their number in all.

    Args:
        folder: the prepared folder.
        rows: clips with `melody` and `melody_file`, the digest and the name of the sound that has their melody, and
            `source`, `start` and `seconds`.
        checkpoint: the base, of which the frame rate is used.
        workers: threads.

    Raises:
        UserError: a sound cannot be decoded.
    """
    state, table = PartialState(), melodies_folder(folder, checkpoint)
    known = set(read_rows(table, MELODY_FEATURES)["key"])
    missing = [one for one in sounds_of(rows, checkpoint.frame_rate) if melody_key(one) not in known]
    state.wait_for_everyone()  # all have read before one of them writes
    paths = {row[MELODY]: folder / CLIPS / row["melody_file"] for row in rows}
    share = missing[state.process_index :: state.num_processes]
    for first in range(0, len(share), PART_MELODIES):
        part = share[first : first + PART_MELODIES]
        work = partial(_melody, paths=paths, rate=frame_rate_of(checkpoint))
        melodies = in_threads(work, part, workers, unit="melody", doing="melodies", show=state.is_main_process)
        made = [{"key": melody_key(one), "classes": classes} for one, classes in zip(part, melodies, strict=True)]
        append_rows(table, made, MELODY_FEATURES, state.process_index)
    state.wait_for_everyone()
    return len(missing)


def _melody(sounds: Sequence[Sound], paths: Mapping[str, Path], rate: Fraction) -> Array:
    """The classes `[T]` of sounds that follow each other."""
    return chroma_of_pieces(_waves(sounds, paths, rate)).numpy()


def _waves(sounds: Sequence[Sound], paths: Mapping[str, Path], rate: Fraction) -> Iterator[torch.Tensor]:
    """Mono waves `[S]` at 32 kHz, each padded with silence, or cut, to its codec frames."""
    frames = samples = 0
    for name, length in sounds:
        frames += length
        size = round(frames * SAMPLING_RATE / rate) - samples
        samples += size
        try:
            wave = audio.to_channels(audio.decode(paths[name], SAMPLING_RATE), 1)[0, :size]
        except audio.AudioError as error:
            raise UserError(f"no melody: {error}") from error
        yield torch.from_numpy(np.pad(wave, (0, size - len(wave))))
