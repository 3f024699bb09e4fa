"""Songs in tar files, such as WebDataset shards: `song.mp3` with `song.txt` or `song.json` beside it.

Nothing is unpacked: a song is read from its place in the tar file.
"""

from __future__ import annotations

import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath

from musicgen_dreamboothing.audio import AUDIO_SUFFIXES, AudioError
from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.data.songs.columns import (
    NO_AUDIO,
    RowNotes,
    existing_column,
    find_column,
    fingerprint_of_bytes,
)
from musicgen_dreamboothing.data.songs.melody_files import SIDECAR, is_melody_file, paired
from musicgen_dreamboothing.data.songs.names import comparable, printable, unused
from musicgen_dreamboothing.data.songs.sidecars import CAPTION_NAMES, JSON_ENDING, TEXT_ENDINGS, CaptionFiles
from musicgen_dreamboothing.data.songs.song import Collection, Columns, Song
from musicgen_dreamboothing.data.songs.textfiles import decode_text

CAPTION_ENDINGS = (*TEXT_ENDINGS, ".text", JSON_ENDING)  # in order of precedence
MOST_TEXT_BYTES = 1 << 20  # a longer text or JSON file is no caption


@dataclass(frozen=True)
class Member:
    """A file in a tar file: its name, and where its bytes begin and how many there are."""

    archive: Path
    name: str
    offset: int
    size: int

    def read(self) -> bytes:
        """Raises `AudioError` where the tar file is gone."""
        try:
            with self.archive.open("rb") as file:
                file.seek(self.offset)
                return file.read(self.size)
        except OSError as error:
            raise AudioError(f"{self.label} can't be read ({error.strerror})") from error

    def text(self) -> str:
        """Raises UserError where it is no text."""
        return decode_text(self.read(), self.label)

    @property
    def label(self) -> str:
        """How messages name it."""
        return printable(f"{self.archive.name}/{self.name}")


Sample = Mapping[str, Member]  # by field: `mp3`, `drums.wav`, `json`, ...


def count_samples(archive: Path) -> int:
    """How many samples of a tar file have audio; 0 where it cannot be read."""
    try:
        return sum(bool(_audio_fields(sample)) for sample in _samples(archive, None).values())
    except (tarfile.TarError, OSError):
        return 0


def songs_of_archives(
    archives: Iterable[Path], split: str, role: str, columns: Columns, root: Path, name: str
) -> Collection:
    """The songs in the tar files of one split, named by their paths below the folder of the dataset, `root`.

    Raises:
        UserError: samples hold several audio files and none was chosen, or not the chosen one.
    """
    notes, captions, taken = RowNotes(), CaptionFiles(), set[str]()
    samples = list[tuple[str, Sample]]()
    for archive in archives:
        try:
            of_archive = _samples(archive, columns.audio)
        except (tarfile.TarError, OSError) as error:
            notes.add("can't be read as a tar file", f"{archive.name} ({error})", noun="file")
            continue
        samples += [(f"{split}/{_place(archive, root)}/{key}", sample) for key, sample in of_archive.items()]
    chosen = None
    if columns.audio is not None and samples:
        fields = dict.fromkeys(chain.from_iterable(sample for _, sample in samples))
        chosen = existing_column(columns.audio, fields, name)
    songs = []
    for key, sample in samples:
        field = _audio_field(sample, chosen, name)
        if field is None:
            notes.add(NO_AUDIO, printable(key))
            continue
        song_name, read = unused(printable(f"{key}.{field}"), taken), sample[field].read
        caption = _caption(sample, field, columns.text, captions)
        song = Song(song_name, read, caption, role, fingerprint_of_bytes(read()))
        songs.append(_with_melody(song, sample, columns) if columns.with_melodies else song)
    return Collection(songs, [*notes.lines(), *captions.notes()])


def _with_melody(song: Song, sample: Sample, columns: Columns) -> Song:
    """A song with the recording in its sample that has its melody; as it is where there is none."""
    field = next(filter(_is_melody, sample), None) if columns.melody is None else find_column(sample, [columns.melody])
    if field is None or (read := sample[field].read) == song.read:
        return song
    return paired(song, Song(sample[field].label, read, None, song.split, fingerprint_of_bytes(read())))


def _place(archive: Path, root: Path) -> str:
    """The path of a tar file below the folder of the dataset, without its suffix."""
    place = Path(os.path.relpath(archive, root))
    return (Path(archive.name) if ".." in place.parts else place).with_suffix("").as_posix()


def _samples(archive: Path, chosen: str | None) -> dict[str, dict[str, Member]]:
    """The files of a tar file by sample and field.

    WebDataset cuts a name at the first dot behind the folders. Where that throws songs with dots in their titles
    together, as `Vol. 1.wav` and `Vol. 2.wav`, names are cut at the suffix.
    """
    members = list(_members(archive))
    samples = _grouped(members, lambda name: name.partition("."))
    fields = set(chain.from_iterable(samples.values()))
    if (chosen is None or find_column(fields, [chosen]) is None) and _cuts_titles(samples):
        return _grouped(members, _cut_at_suffix)
    return samples


def _cut_at_suffix(name: str) -> tuple[str, str, str]:
    """`Vol. 1` and `wav`, or `melody.wav`."""
    match = SIDECAR.fullmatch(name)
    return (match[1], ".", f"melody{match[2]}") if match and is_melody_file(name) else name.rpartition(".")


def _members(archive: Path) -> Iterator[Member]:
    with tarfile.open(archive, "r:") as tar:
        for info in tar:
            if info.isfile() and not PurePosixPath(info.name).name.startswith("."):
                yield Member(archive.absolute(), info.name, info.offset_data, info.size)


def _grouped(members: Iterable[Member], cut: Callable[[str], tuple[str, str, str]]) -> dict[str, dict[str, Member]]:
    samples: dict[str, dict[str, Member]] = {}
    for member in members:
        path = PurePosixPath(member.name)
        key, _, field = cut(path.name)
        samples.setdefault(str(path.parent / key), {})[field] = member
    return samples


def _cuts_titles(samples: Mapping[str, Sample]) -> bool:
    """Whether what stands behind the first dot are titles and no fields, such as `vocals.wav` and `drums.wav`.

    Fields hold no spaces, and are the same in other samples or stand beside one without a second dot, as `a.json`.
    """
    several = [sample for sample in samples.values() if len(_audio_fields(sample)) > 1]
    uses = Counter(chain.from_iterable(samples.values()))
    fields = [field for sample in several for field in sample]
    if any(" " in field for field in fields):
        return True
    return bool(several) and all("." in field and uses[field] == 1 for field in fields)


def _audio_fields(sample: Sample) -> list[str]:
    suffixes = {field: f".{field.rpartition('.')[2].lower()}" for field in sample if not _is_melody(field)}
    return [field for field, suffix in suffixes.items() if suffix in AUDIO_SUFFIXES]


def _is_melody(field: str) -> bool:
    """Whether a field is `melody.wav`, of `song.melody.wav`, which is never a song."""
    return is_melody_file(f"song.{field}")


def _audio_field(sample: Sample, chosen: str | None, name: str) -> str | None:
    if chosen is not None:
        return chosen if chosen in sample else None
    fields = _audio_fields(sample)
    if len(fields) > 1:
        raise UserError(
            f"samples of {name} hold several sounds; choose one with --target_audio_column_name: "
            f"{printable(', '.join(fields))}"
        )
    return fields[0] if fields else None


def _caption(sample: Sample, audio: str, chosen: str | None, captions: CaptionFiles) -> str | None:
    """The caption in a text file of the sample, or in its JSON file under the chosen or a usual name."""
    for field in _caption_fields(sample, audio, chosen):
        member = sample[field]
        if member.size > MOST_TEXT_BYTES:
            captions.faults.append(f"{member.label} is too long for a caption")
        elif caption := captions.caption(member.text, member.label, (chosen,) if chosen else CAPTION_NAMES):
            return caption
    return None


def _caption_fields(sample: Sample, audio: str, chosen: str | None) -> list[str]:
    """Those that may hold the caption, as files beside a song may: of `vocals.wav`, `vocals.txt` before `txt`."""
    if chosen and (field := find_column(sample, [chosen])) is not None:
        return [field]
    present = {comparable(field): field for field in reversed(list(sample))}
    title = audio.rpartition(".")[0]
    stems = dict.fromkeys((f".{audio}", f".{title}" if title else "", ""))
    endings = (JSON_ENDING,) if chosen else CAPTION_ENDINGS
    names = (comparable(f"{stem}{ending}".removeprefix(".")) for ending in endings for stem in stems)
    return list(dict.fromkeys(present[name] for name in names if name in present))
