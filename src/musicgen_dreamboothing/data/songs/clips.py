"""Songs to clips: `clips/*.flac`, and `songs.jsonl`, with one line for each song that is done.

A killed run continues behind the last line of `songs.jsonl`. Users edit `clips/metadata.jsonl`, which lists the clips.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path, PurePath
from typing import Any

from accelerate import PartialState

from musicgen_dreamboothing.console import UserError, first_names, plural
from musicgen_dreamboothing.data.layout import CLIPS, METADATA, SONGS
from musicgen_dreamboothing.data.songs.cutting import Cutting, SongRecord, cut_named
from musicgen_dreamboothing.data.songs.names import comparable, without_suffix
from musicgen_dreamboothing.data.songs.song import EVAL, Song
from musicgen_dreamboothing.data.songs.song_audio import INVALID
from musicgen_dreamboothing.data.songs.textfiles import caption_of, numbered_json_lines
from musicgen_dreamboothing.files import write_json_lines, write_text
from musicgen_dreamboothing.workers import in_processes, in_threads

JOURNALS = "songs-*.jsonl"  # of the other processes, while they cut
AUDIBLY_SOFT = 0.5  # LU
STEM_BYTES = 120  # file systems allow names of 255 bytes, encrypted ones of 143
# Words in file names that the audiofolder loader reads as splits, and then ignores all other files.
SPLIT_WORD = re.compile(r"(?<![^-._ \d])(train(ing)?|validation|valid|val|dev|test(ing)?|eval(uation)?)(?=[-._ \d]|$)")
DATASET_CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: "*"
---
Clips of songs with captions. Edit the `text` in `metadata.jsonl`, or delete a line to leave a clip out,
then run the same command again: only what changed is done again.
"""


def cut_songs(
    folder: Path, songs: list[Song], cutting: Cutting, workers: int, *, keep_others: bool = False
) -> tuple[list[SongRecord], int]:
    """Cuts the songs that are new or changed; returns the records of all, in order, and how many had to be cut.

    Recorded songs that are not among `songs` are dropped with their clips, or stay, in their old places, with
    `keep_others`: `songs` then are a part of a dataset. Each song is recorded as soon as its clips are written. Under
    `accelerate launch` the processes share the songs, and each has its own journal until the end.
    """
    state, clips = PartialState(), folder / CLIPS
    before = read_records(folder)
    done = {record.source: record for record in before}
    names = {song.name for song in songs}
    others = [record for record in before if keep_others and record.source not in names]
    stems = _stems(songs, done, others)
    todo = [song for song in songs if song.name not in done or not done[song.name].is_done(song, cutting)]
    state.wait_for_everyone()  # all have read before one of them writes
    clips.mkdir(parents=True, exist_ok=True)
    if state.is_main_process:
        _close_journals(folder, before)
    state.wait_for_everyone()
    _cut_share(folder, todo[state.process_index :: state.num_processes], stems, cutting, workers)
    state.wait_for_everyone()
    done = {record.source: record for record in read_records(folder)}
    splits = {record.source: record.split for record in before if keep_others}
    splits |= {song.name: song.split for song in songs}
    records = [replace(done[name], split=split) for name, split in splits.items()]
    state.wait_for_everyone()
    if state.is_main_process:
        write_text(clips / "README.md", DATASET_CARD)
        _close_journals(folder, records)
        _delete_strays(clips, before, set(stems.values()), records)
    return records, len(todo)


def _close_journals(folder: Path, records: list[SongRecord]) -> None:
    """Writes all records into one file, and deletes the journals of the other processes."""
    write_json_lines(folder / SONGS, map(asdict, records))
    for journal in folder.glob(JOURNALS):
        journal.unlink()


def _cut_share(folder: Path, songs: list[Song], stems: dict[str, str], cutting: Cutting, workers: int) -> None:
    """Cuts the songs of this process: in worker processes where they are analysed, in threads where only decoded."""
    state = PartialState()
    work = partial(cut_named, folder=(folder / CLIPS).absolute(), cutting=cutting)
    pairs = [(song, stems[song.name]) for song in songs]
    run = in_processes if cutting.listens else in_threads
    path = folder / (SONGS if state.is_main_process else JOURNALS.replace("*", str(state.process_index)))
    with path.open("a", encoding="utf-8", errors="backslashreplace") as journal:  # what JSON writes for such letters
        for record in run(work, pairs, workers, unit="song", doing="cutting", show=state.is_main_process):
            journal.write(json.dumps(asdict(record), ensure_ascii=False) + "\n")
            journal.flush()


def read_records(folder: Path) -> list[SongRecord]:
    """The journals; the last line of each may be incomplete after a kill and is then left out."""
    paths = [path for path in (folder / SONGS, *sorted(folder.glob(JOURNALS))) if path.exists()]
    lines = [line for path in paths for line in path.read_text(encoding="utf-8").split("\n")]
    records = {}
    for line in lines:
        try:
            record = SongRecord(**json.loads(line))
        except (json.JSONDecodeError, TypeError):
            continue
        records[record.source] = record
    return list(records.values())


def _stems(songs: list[Song], done: dict[str, SongRecord], others: list[SongRecord]) -> dict[str, str]:
    """A flat, legal and unique file stem for every song; a song that has clips keeps the stem of theirs."""
    stems = {song.name: done[song.name].stem for song in songs if song.name in done and done[song.name].clips}
    used = [*stems.values(), *(record.stem for record in others if record.clips)]
    taken = set(map(comparable, used))  # some file systems ignore case
    for song in songs:
        if song.name not in stems:
            stem = _free_stem(song.name, taken)
            stems[song.name] = stem
            taken.add(comparable(stem))
    return stems


def _free_stem(name: str, taken: set[str]) -> str:
    stem = _legal(without_suffix(name).replace("/", "__"))
    if comparable(stem) in taken:
        stem = _legal(name.replace("/", "__"))
    while comparable(stem) in taken:
        stem += "_"
    return stem


def _legal(name: str) -> str:
    """Without what some system forbids in names, not hidden, not too long, and without the name of a split."""
    legal = re.sub(r'[<>:"|?*\\/#\s\0-\x1f]+', "_", unicodedata.normalize("NFC", name)).lstrip(".-")
    legal = SPLIT_WORD.sub(lambda match: match[0].capitalize(), legal)
    return legal.encode()[:STEM_BYTES].decode(errors="ignore") or "song"


def _delete_strays(clips: Path, before: list[SongRecord], stems: set[str], records: list[SongRecord]) -> None:
    """Removes our clips of songs that are gone or were cut again, and what a killed run left.

    Ours are those in the records; a killed run leaves numbered clips that neither records nor metadata list. All other
    files belong to the user and stay.
    """
    current = {name for record in records for name in record.files}
    ours = {name for record in before for name in record.files}
    metadata = clips / METADATA
    listed = {row.get("file_name") for row in listed_clips(clips.parent)} if metadata.exists() else set()
    for path in clips.glob("*.flac"):
        stem, _, number = path.stem.removesuffix(".melody").rpartition("-")
        left_over = stem in stems and re.fullmatch(r"\d{3,}", number) and path.name not in listed
        if path.name not in current and (path.name in ours or left_over):
            path.unlink()


def listed_clips(folder: Path) -> list[dict[str, Any]]:
    """The lines of `metadata.jsonl`, which people edit, with the names that their files have on this disk.

    A line without a file name has no `file_name`.

    Raises:
        UserError: a line is not a JSON object, has a caption that is not text, or names a file outside the folder of
            clips, which a copy of the folder, or a dataset on the Hub, would lack.
    """
    clips, rows = folder / CLIPS, metadata_rows(folder / CLIPS / METADATA)
    missing = [row for row in rows if "file_name" in row and not os.path.isfile(clips / row["file_name"])]
    if missing:  # file names in a zip file from a Mac have another Unicode form than those in the metadata
        files = {comparable(path.relative_to(clips).as_posix()): path for path in clips.rglob("*") if path.is_file()}
        for row in missing:
            if path := files.get(comparable(row["file_name"].replace("\\", "/"))):
                row["file_name"] = path.relative_to(clips).as_posix()
    return rows


def metadata_rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metadata.jsonl`, without file names that are empty or no text."""
    rows = []
    for number, row in numbered_json_lines(path):
        name = row.get("file_name")
        if not isinstance(name, str) or not name.strip():
            row.pop("file_name", None)
        elif PurePath(name).is_absolute() or ".." in PurePath(name).parts:
            raise UserError(
                f"{path} line {number}: {name!r} is outside of {path.parent}; copy it there and name the copy"
            )
        try:
            if not isinstance(row.get("text"), str):
                row |= {"text": caption_of(row["text"])} if "text" in row else {}
            if "variants" in row and not isinstance(row["variants"], list | None):
                raise ValueError("variants must be a list of texts")
        except ValueError as error:
            raise UserError(f"{path} line {number}: {error}; correct the line and run again") from error
        rows.append(row)
    return rows


def summary_lines(records: list[SongRecord]) -> list[str]:
    """What happened to the songs, in lines: all that is left out is named and counted."""
    clips = [clip for record in records for clip in record.clips]
    minutes = sum(clip["seconds"] for clip in clips) / 60
    used = sum(bool(record.clips) for record in records)
    lines = [f"{plural(len(clips), 'clip')} from {plural(used, 'song')}, {minutes:.1f} minutes"]
    if count := sum(record.split == EVAL for record in records):
        lines.append(f"{plural(count, 'song')} of them for evaluation")
    skipped = [record.skipped for record in records if record.skipped]
    if skipped:
        lines.append(f"{plural(len(skipped), 'song')} skipped:")
        lines += [f"  {reason}" for reason in skipped]
    if silent := sum(record.silent for record in records):
        lines.append(f"{plural(silent, 'clip')} left out: mostly silent")
    lines += _level_lines(records)
    lines += [record.note for record in records if record.note and record.clips]
    if melodies := [record for record in records if record.melody and record.clips]:
        lines.append(f"{plural(len(melodies), 'song')} whose melody does not fit:")
        lines += [f"  {record.source}: the recording with its melody is {record.melody}" for record in melodies]
    damaged = [record.damage for record in records if record.damage and not record.skipped]
    if damaged:
        lines.append(f"{plural(len(damaged), 'song')} damaged, the rest of each is used:")
        lines += [f"  {reason}" for reason in damaged]
    return lines


def _level_lines(records: list[SongRecord]) -> list[str]:
    """One line each on invalid samples, on DC offsets and on songs whose peaks forbid more gain."""

    def named(some: list[SongRecord]) -> str:
        return first_names([record.source for record in some])

    lines = []
    broken = [record for record in records if record.invalid and record.clips]
    if clips := sum(record.invalid for record in broken):
        lines.append(f"{plural(clips, 'clip')} left out: {INVALID} ({named(broken)})")
    if offset := [record for record in records if record.offset and record.clips]:
        lines.append(f"DC offset removed from {plural(len(offset), 'song')}: {named(offset)}")
    soft = [record for record in records if record.soft_by > AUDIBLY_SOFT and record.loudness is not None]
    if soft := sorted(soft, key=lambda record: -record.soft_by):
        target = (soft[0].loudness or 0.0) + soft[0].soft_by
        stay, whose = ("stays", "its") if len(soft) == 1 else ("stay", "their")
        lines.append(
            f"{plural(len(soft), 'song')} {stay} below {target:g} LUFS because of {whose} peaks: {named(soft)}"
        )
    return lines
