"""Songs to clips: `clips/*.flac` with `clips/metadata.jsonl`, and `songs.jsonl`, which remembers what was done.

`metadata.jsonl` belongs to the person: a changed caption stays, a deleted line stays away.
`songs.jsonl` belongs to us: one line for each song that is done, so that a killed run goes on behind it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.console import plural
from musicgen_dreamboothing.data.captions import with_instance_prompt
from musicgen_dreamboothing.data.files import write_json_lines, write_text
from musicgen_dreamboothing.data.sources import CLIPS, EVAL, SONGS, TRAIN, Song, read_json_lines

METADATA = "metadata.jsonl"
WRITTEN = "captions.json"  # captions as we wrote them, to tell a person's edits from ours
STEM_BYTES = 120  # file systems take names of 255 bytes, encrypted ones of 143
# The audiofolder loader takes these words in file names for splits, and would leave out all other files.
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


@dataclass(frozen=True)
class Cutting:
    """How songs are cut.

    Attributes:
        rate: of the clips, in Hz: that of the codec.
        hop_length: clips last whole codec frames.
        max_seconds: length of a clip.
        min_seconds: a shorter rest is left out.
    """

    rate: int
    hop_length: int
    max_seconds: float
    min_seconds: float

    @property
    def samples(self) -> int:
        """Length of a whole clip, a multiple of the hop length."""
        return max(1, int(self.max_seconds * self.rate) // self.hop_length) * self.hop_length

    @property
    def signature(self) -> str:
        """Changes whenever songs must be cut again."""
        return f"{self.max_seconds:g}s/{self.min_seconds:g}s@{self.rate}/{self.hop_length}"


@dataclass
class SongRecord:
    """One line of `songs.jsonl`."""

    source: str
    fingerprint: str
    cutting: str
    split: str = TRAIN
    clips: list[dict[str, Any]] = field(default_factory=list)  # file_name, start, seconds, text as it was written
    skipped: str | None = None  # why the song gave no clip
    damage: str | None = None  # what of it could not be decoded
    rest: float = 0.0  # seconds left out at the end

    @property
    def stem(self) -> str:
        """What the names of its clips begin with."""
        return str(self.clips[0]["file_name"]).rpartition("-")[0]

    def is_done(self, song: Song, cutting: Cutting) -> bool:
        return (self.fingerprint, self.cutting) == (song.fingerprint, cutting.signature)


def cut_songs(folder: Path, songs: list[Song], cutting: Cutting, workers: int) -> list[SongRecord]:
    """Cuts the songs that are new or changed, and returns the records of all, in order.

    Each song is on record as soon as its clips are written, so that a killed run loses one song at most.
    """
    clips = folder / CLIPS
    clips.mkdir(parents=True, exist_ok=True)
    write_text(clips / "README.md", DATASET_CARD)
    before = read_records(folder)
    done = {record.source: record for record in before}
    stems = _stems(songs, done)
    todo = [song for song in songs if song.name not in done or not done[song.name].is_done(song, cutting)]
    with (folder / SONGS).open("a", encoding="utf-8") as journal:
        for record in _in_parallel(lambda song: cut_song(song, stems[song.name], clips, cutting), todo, workers):
            done[record.source] = record
            journal.write(json.dumps(asdict(record), ensure_ascii=False) + "\n")
            journal.flush()
    records = [replace(done[song.name], split=song.split) for song in songs]
    write_json_lines(folder / SONGS, map(asdict, records))
    _delete_strays(clips, before, set(stems.values()), records)
    return records


def read_records(folder: Path) -> list[SongRecord]:
    """The journal; its last line may be torn by a kill and is then left out."""
    path = folder / SONGS
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    records = {}
    for line in lines:
        try:
            record = SongRecord(**json.loads(line))
        except (json.JSONDecodeError, TypeError):
            continue
        records[record.source] = record
    return list(records.values())


def _in_parallel(work: Callable[[Song], SongRecord], songs: list[Song], workers: int) -> Iterator[SongRecord]:
    """Results in the order of the songs, under a progress bar; Ctrl-C drops what has not begun."""
    pool = ThreadPoolExecutor(max(1, workers))
    try:
        yield from tqdm(pool.map(work, songs), total=len(songs), unit="song", desc="cutting", disable=not songs)
    finally:
        pool.shutdown(cancel_futures=True)


def _stems(songs: list[Song], done: dict[str, SongRecord]) -> dict[str, str]:
    """A flat, legal and unique file stem for every song; a song that has clips keeps the stem of theirs."""
    known = {song.name: done[song.name].stem for song in songs if song.name in done and done[song.name].clips}
    stems, taken = dict(known), {stem.lower() for stem in known.values()}  # some file systems know no capitals
    for song in songs:
        if song.name not in known:
            stem = _free_stem(Path(song.name), taken)
            stems[song.name] = stem
            taken.add(stem.lower())
    return stems


def _free_stem(path: Path, taken: set[str]) -> str:
    stem = _legal("__".join([*path.parts[:-1], path.stem]))
    if stem.lower() in taken:
        stem = _legal("__".join(path.parts))
    while stem.lower() in taken:
        stem += "_"
    return stem


def _legal(name: str) -> str:
    """Without what some system forbids in names, not hidden, not too long, and no word that names a split."""
    legal = re.sub(r'[<>:"|?*\\/\s\0-\x1f]+', "_", name).lstrip(".")
    legal = SPLIT_WORD.sub(lambda word: word[0].capitalize(), legal)
    return legal.encode()[:STEM_BYTES].decode(errors="ignore") or "song"


def cut_song(song: Song, stem: str, folder: Path, cutting: Cutting) -> SongRecord:
    """Decodes one song and writes its clips; what is wrong with the song is put on record, not raised."""
    record = SongRecord(song.name, song.fingerprint, cutting.signature, song.split)
    try:
        _write_clips(song, stem, folder, cutting, record)
    except audio.AudioWriteError:
        raise  # a full disk is no fault of the song
    except audio.AudioError as error:
        _unlink(folder, record)
        record.skipped = str(error)
    return record


def _write_clips(song: Song, stem: str, folder: Path, cutting: Cutting, record: SongRecord) -> None:
    damages: list[str] = []
    waves = audio.stream(song.read(), cutting.rate, name=song.name, on_damage=damages.append)
    loud, position = False, 0
    for number, wave in enumerate(audio.blocks(waves, cutting.samples)):
        seconds = wave.shape[1] / cutting.rate
        if seconds < cutting.min_seconds and wave.shape[1] < cutting.samples:
            record.rest = seconds
            break
        file_name = f"{stem}-{number:03d}.flac"
        wave = _pad(wave, cutting.hop_length)
        audio.write(folder / file_name, wave, cutting.rate)
        loud = loud or not audio.is_silent(wave)
        start, length = position / cutting.rate, wave.shape[1] / cutting.rate
        record.clips.append({"file_name": file_name, "start": round(start, 3), "seconds": round(length, 3)})
        position += wave.shape[1]
    record.damage = damages[0] if damages else None
    if not record.clips:
        record.skipped = f"{song.name}: lasts {record.rest:.1f} s, less than the {cutting.min_seconds:g} s of a clip"
    elif not loud:
        _unlink(folder, record)
        record.skipped = f"{song.name}: is silent"


def _pad(wave: audio.Wave, hop_length: int) -> audio.Wave:
    """Lengthens `[C, S]` by silence to whole codec frames, less than one frame."""
    return np.pad(wave, ((0, 0), (0, -wave.shape[1] % hop_length)))


def _unlink(folder: Path, record: SongRecord) -> None:
    for clip in record.clips:
        (folder / clip["file_name"]).unlink(missing_ok=True)
    record.clips = []


def _delete_strays(clips: Path, before: list[SongRecord], stems: set[str], records: list[SongRecord]) -> None:
    """Removes our clips of songs that are gone or were cut anew, and what a killed run left; not a person's own."""
    kept = {clip["file_name"] for record in records for clip in record.clips}
    stems = stems | {record.stem for record in before if record.clips}
    for path in clips.glob("*.flac"):
        if path.stem.rpartition("-")[0] in stems and path.name not in kept:
            path.unlink()


def update_metadata(folder: Path, songs: list[Song], records: list[SongRecord], instance_prompt: str | None) -> None:
    """Brings `metadata.jsonl` up to date without touching what a person changed there.

    A caption that differs from the one we wrote is the person's and stays. A clip that we listed
    before and that is missing now was deleted by the person and stays away; a clip that the person
    added stays. Without the file all begins anew.
    """
    path = folder / CLIPS / METADATA
    listed = read_json_lines(path) if path.exists() else []
    present = {row["file_name"]: row for row in listed if "file_name" in row}
    written = _written_captions(folder) if path.exists() else {}
    rows, fresh = [], {}
    for song, record in zip(songs, records, strict=True):
        caption = with_instance_prompt(instance_prompt, song.caption)
        for clip in record.clips:
            name = clip["file_name"]
            fresh[name] = caption
            if name in written and name not in present:
                continue
            own = present.get(name, {}).get("text")
            is_edited = own is not None and own != written.get(name)
            rows.append(_row(clip, record, str(own) if is_edited else caption, instance_prompt, present.get(name, {})))
    added = [row for name, row in present.items() if name not in written and name not in fresh]
    write_json_lines(path, [*rows, *(row for row in added if (folder / CLIPS / row["file_name"]).is_file())])
    write_text(folder / WRITTEN, json.dumps(fresh, ensure_ascii=False))


def _written_captions(folder: Path) -> dict[str, str]:
    path = folder / WRITTEN
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _row(
    clip: dict[str, Any], record: SongRecord, text: str, instance_prompt: str | None, present: dict[str, Any]
) -> dict[str, Any]:
    """One line of the metadata; columns that a person added are kept."""
    ours = {
        "file_name": clip["file_name"],
        "text": text,
        "instance_prompt": instance_prompt,
        "source": record.source,
        "split": record.split,
        "start": clip["start"],
        "seconds": clip["seconds"],
    }
    return ours | {key: value for key, value in present.items() if key not in ours}


def describe(records: list[SongRecord]) -> list[str]:
    """What happened to the songs, in lines: nothing is left out without being named and counted."""
    clips = [clip for record in records for clip in record.clips]
    minutes = sum(clip["seconds"] for clip in clips) / 60
    used = sum(bool(record.clips) for record in records)
    lines = [f"{plural(len(clips), 'clip')} from {plural(used, 'song')}, {minutes:.1f} minutes"]
    if held := sum(record.split == EVAL for record in records):
        lines.append(f"{plural(held, 'song')} of them for evaluation")
    skipped = [record.skipped for record in records if record.skipped]
    if skipped:
        lines.append(f"{plural(len(skipped), 'song')} skipped:")
        lines += [f"  {reason}" for reason in skipped]
    damaged = [record.damage for record in records if record.damage and not record.skipped]
    if damaged:
        lines.append(f"{plural(len(damaged), 'song')} damaged, the rest of each is used:")
        lines += [f"  {reason}" for reason in damaged]
    return lines
