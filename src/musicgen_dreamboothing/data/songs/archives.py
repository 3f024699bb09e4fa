"""Songs in tar files, such as WebDataset shards: `song.mp3` with `song.txt` or `song.json` beside it.

Nothing is unpacked: a song is read from its place in the tar file.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath

from musicgen_dreamboothing.audio import AUDIO_SUFFIXES
from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.data.songs.cells import NO_AUDIO, caption_of_value, fingerprint_of_bytes
from musicgen_dreamboothing.data.songs.columns import existing_column
from musicgen_dreamboothing.data.songs.notes import RowNotes
from musicgen_dreamboothing.data.songs.sidecars import CAPTION_NAMES
from musicgen_dreamboothing.data.songs.song import Collection, Columns, Song

TEXT_FIELDS = ("txt", "text", "caption")
DATA_FIELD = "json"
MOST_TEXT_BYTES = 1 << 20  # a longer text or JSON file is no caption


@dataclass(frozen=True)
class Member:
    """A file in a tar file: its name there, where its bytes begin and how many there are."""

    archive: Path
    name: str
    offset: int
    size: int

    def read(self) -> bytes:
        with self.archive.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


Sample = Mapping[str, Member]  # by field: `mp3`, `drums.wav`, `json`, ...


def count_samples(archive: Path) -> int:
    """How many samples of a tar file have audio; 0 where it cannot be read."""
    try:
        return sum(bool(_audio_fields(sample)) for sample in _samples(archive).values())
    except (tarfile.TarError, OSError):
        return 0


def songs_of_archives(archives: Iterable[Path], split: str, role: str, columns: Columns, name: str) -> Collection:
    """The songs in the tar files of one split.

    Raises:
        UserError: samples hold several sounds and none was chosen, or not the chosen one.
    """
    notes = RowNotes()
    samples: dict[str, Sample] = {}
    for archive in archives:
        try:
            samples |= {f"{split}/{archive.stem}/{key}": sample for key, sample in _samples(archive).items()}
        except (tarfile.TarError, OSError) as error:
            notes.add("can't be read as a tar file", f"{archive.name} ({error})", noun="file")
    if columns.audio is not None and samples:
        existing_column(columns.audio, dict.fromkeys(chain.from_iterable(samples.values())), name)
    songs = []
    for key, sample in samples.items():
        field = _audio_field(sample, columns.audio, name)
        if field is None:
            notes.add(NO_AUDIO, key)
            continue
        caption = _caption(sample, columns.text, key, notes)
        data = sample[field]
        songs.append(Song(f"{key}.{field}", data.read, caption, role, fingerprint_of_bytes(data.read())))
    return Collection(songs, notes.lines())


def _samples(archive: Path) -> dict[str, dict[str, Member]]:
    """The files of a tar file by sample and field: WebDataset cuts a name at the first dot behind the folders."""
    samples: dict[str, dict[str, Member]] = {}
    with tarfile.open(archive, "r:") as tar:
        for info in tar:
            path = PurePosixPath(info.name)
            if info.isfile() and not path.name.startswith("."):
                key, _, field = path.name.partition(".")
                member = Member(archive.absolute(), info.name, info.offset_data, info.size)
                samples.setdefault(str(path.parent / key), {})[field] = member
    return samples


def _audio_fields(sample: Sample) -> list[str]:
    return [field for field in sample if f".{field.rpartition('.')[2].lower()}" in AUDIO_SUFFIXES]


def _audio_field(sample: Sample, chosen: str | None, name: str) -> str | None:
    if chosen is not None:
        return chosen if chosen in sample else None
    fields = _audio_fields(sample)
    if len(fields) > 1:
        raise UserError(
            f"samples of {name} hold several sounds; choose one with --target_audio_column_name: {', '.join(fields)}"
        )
    return fields[0] if fields else None


def _caption(sample: Sample, chosen: str | None, key: str, notes: RowNotes) -> str | None:
    """The caption in a text file of the sample, or in its JSON file under the chosen or a usual name."""
    texts = [field for field in sample if (field == chosen if chosen else field.rpartition(".")[2] in TEXT_FIELDS)]
    try:
        if texts:
            return caption_of_value(_text(sample[texts[0]]))
        values = json.loads(_text(sample[DATA_FIELD])) if DATA_FIELD in sample else None
        if not isinstance(values, dict):
            return caption_of_value(values)
        names = (chosen,) if chosen else CAPTION_NAMES
        return next(filter(None, (caption_of_value(values.get(name)) for name in names)), None)
    except (TypeError, ValueError):  # JSON and UTF-8 errors are ValueErrors
        notes.add_no_text(key)
        return None


def _text(member: Member) -> str:
    if member.size > MOST_TEXT_BYTES:
        raise ValueError(f"{member.name} is too long for a caption")
    return member.read().decode("utf-8-sig")
