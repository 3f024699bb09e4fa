"""Tracks of an album in one file: by a cue sheet beside it or inside it, or by its chapters."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import mutagen
from av.container import InputContainer

from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.data.songs.names import NameIndex, printable
from musicgen_dreamboothing.data.songs.scan import Listing
from musicgen_dreamboothing.data.songs.textfiles import read_text

CUE = ".cue"
CUE_FRAMES = 75  # to a second
CHAPTERED = frozenset({".m4a", ".m4b", ".mp4", ".m4v", ".mov", ".mka", ".mkv", ".webm"})  # always looked into
TAGGED = frozenset({".flac", ".ogg", ".oga", ".opus"})  # where their first bytes name chapters or a cue sheet
HEAD_BYTES = 1 << 16
TITLE_LETTERS = 60
TOLERANCE = 0.1  # seconds by which chapters may overlap, or a file be shorter than it states


@dataclass(frozen=True)
class Track:
    """A part of a file: its number and title, and where it begins and ends, in seconds; None is the end of the file."""

    label: str
    start: float
    end: float | None


@dataclass
class Tracks:
    """Tracks by file, and one line for each cue sheet and list of chapters that could not be used."""

    by_file: dict[Path, list[Track]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def find_tracks(listing: Listing) -> Tracks:
    """The tracks of all files of a listing; a file without a usable list of tracks is one song."""
    tracks = Tracks()
    for path in _cue_sheets(listing):
        _take_cue_sheet(path, listing, tracks)
    for song in listing.songs:
        if song not in tracks.by_file:
            _take_inner_tracks(song, listing, tracks)
    return tracks


# --- cue sheets


def _cue_sheets(listing: Listing) -> list[Path]:
    """The cue sheets of a listing; where one song was asked for, those that name it."""
    sheets = [
        folder / name
        for folder, names in sorted(listing.files.items())
        for name in sorted(names)
        if name.lower().endswith(CUE) and not name.startswith("._")
    ]
    if not listing.is_single_song:
        return sheets
    (song,) = listing.songs
    return [path for path in sheets if _names_song(path, song, listing.files[song.parent])]


def _names_song(path: Path, song: Path, names: Iterable[str]) -> bool:
    """Whether a cue sheet names a song among files; a broken sheet does so if it has the song's name."""
    try:
        files = re.findall(r"(?im)^\s*FILE\s+(.*)$", _cue_text(path))
    except (UserError, OSError):
        files = []
    index, own = NameIndex(map(printable, names)), printable(song.name)
    matches = map(index.find, map(_file_name, files) if files else [f"{printable(path.stem)}{song.suffix}"])
    return any(match is not None and match[0] == own for match in matches)


@dataclass(frozen=True)
class _Index:
    """INDEX 01 of a track: the file that it lies in, and where."""

    file: str
    number: int
    title: str
    start: float


def _take_cue_sheet(path: Path, listing: Listing, tracks: Tracks) -> None:
    """Adds the tracks of a cue sheet; files that hold a single one of them stay what they are."""
    by_file = defaultdict[str, list[_Index]](list)
    try:
        for index in parse_cue_sheet(_cue_text(path)):
            by_file[index.file].append(index)
        if not by_file:
            raise ValueError("names no track with an INDEX 01")
        albums = {name: indexes for name, indexes in by_file.items() if len(indexes) > 1}
        below = [song for song in listing.songs if song.is_relative_to(path.parent)] if albums else []
        songs = {printable(song.relative_to(path.parent).as_posix()): song for song in below}
        names = NameIndex(songs)
        for name, indexes in albums.items():
            if match := names.find(name):
                _add_album(songs[match[0]], indexes, tracks)
            elif not listing.is_single_song:
                raise ValueError(f"names {name!r}, which is not among the songs")
    except (ValueError, UserError, OSError) as error:
        tracks.faults.append(f"{listing.name(path)}: {error}")


def _add_album(song: Path, indexes: list[_Index], tracks: Tracks) -> None:
    starts = [index.start for index in indexes]
    for (before, after), index in zip(pairwise(starts), indexes[1:], strict=False):
        if after <= before:
            raise ValueError(f"track {index.number} begins at {after:.1f} s, not behind the track before it")
    seconds = _seconds(song, starts[-1])
    if seconds is not None and starts[-1] >= seconds:
        raise ValueError(
            f"track {indexes[-1].number} begins at {starts[-1]:.1f} s, but {printable(song.name)} lasts {seconds:.1f} s"
        )
    album = _without_gaps([Track(_label(index.number, index.title), index.start, None) for index in indexes])
    known = tracks.by_file.setdefault(song, album)
    if [track.start for track in known] != [track.start for track in album]:
        raise ValueError(f"another cue sheet has other tracks for {printable(song.name)} and is used")


def _without_gaps(tracks: list[Track]) -> list[Track]:
    """The tracks extended to cover the file: from its start, each to the start of the next, the last to its end."""
    starts = [0.0, *(track.start for track in tracks[1:])]
    ends = [*starts[1:], None]
    return [Track(track.label, start, end) for track, start, end in zip(tracks, starts, ends, strict=True)]


def _cue_text(path: Path) -> str:
    """The text of a cue sheet. Old ones are in any code page, but what matters of them, the times, is ASCII."""
    try:
        return read_text(path)
    except UserError:
        content = path.read_bytes()
        if b"\0" in content:
            raise
        return _with_newlines(content.decode("utf-8", errors="surrogateescape"))


def _with_newlines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse_cue_sheet(text: str) -> list[_Index]:
    """INDEX 01 of each audio track of a cue sheet, in its order. Raises ValueError where one is broken or missing."""
    indexes: list[_Index] = []
    file, title, number, is_open = "", "", 0, False

    def close() -> None:
        if is_open:
            raise ValueError(f"track {number} has no INDEX 01")

    for line in text.split("\n"):
        command, _, rest = line.strip().partition(" ")
        command, rest = command.upper(), rest.strip()
        if command == "FILE":
            file = _file_name(rest)
        elif command == "TRACK":
            close()
            digits, _, kind = rest.partition(" ")
            number, title, is_open = int(digits) if digits.isdecimal() else number + 1, "", "AUDIO" in kind.upper()
        elif command == "TITLE":
            title = _quoted(rest)
        elif command == "INDEX" and is_open and re.match(r"0*1\s", rest):
            indexes.append(_Index(file, number, title, _cue_seconds(rest.split()[1:], number)))
            is_open = False
    close()
    return indexes


def _file_name(text: str) -> str:
    """The name in what stands behind FILE, without the type of the file."""
    text = text.strip()
    return _quoted(text if text.endswith('"') else text.rpartition(" ")[0])


def _quoted(text: str) -> str:
    match = re.fullmatch(r'\s*"(.*)"\s*', text)
    return match[1] if match else text.strip()


def _cue_seconds(words: list[str], track: int) -> float:
    """`mm:ss:ff` in seconds."""
    match = re.fullmatch(r"(\d+):(\d\d?):(\d\d?)", words[0]) if words else None
    if match is None or int(match[2]) >= 60 or int(match[3]) >= CUE_FRAMES:
        raise ValueError(f"track {track} has the INDEX 01 {' '.join(words)!r}, which is not minutes:seconds:frames")
    return int(match[1]) * 60 + int(match[2]) + int(match[3]) / CUE_FRAMES


def _label(number: int, title: str) -> str:
    """`02 Title`, with nothing that means another folder."""
    text = " ".join(re.sub(r"[/\\]", "_", title).split())
    is_known = not any("\udc80" <= letter <= "\udcff" for letter in text)  # else: an unknown code page
    return f"{number:02d} {printable(text[:TITLE_LETTERS])}".strip() if is_known else f"{number:02d}"


# --- inside the file


def _take_inner_tracks(song: Path, listing: Listing, tracks: Tracks) -> None:
    """Adds the tracks of a cue sheet or of chapters inside a file."""
    try:
        hint = _hint(song)
        if hint == "cue":
            indexes = [index for text in _inner_cue_sheet(song) for index in parse_cue_sheet(text)]
            if len(indexes) > 1:
                _add_album(song, indexes, tracks)
        elif hint == "chapters":
            chapters = _chapters(song)
            if len(chapters) > 1:
                tracks.by_file[song] = _without_gaps(chapters)
    except ValueError as error:
        tracks.faults.append(f"{listing.name(song)}: {error}")


def _hint(song: Path) -> str:
    """Whether a file may have `chapters` or a `cue` sheet inside: most songs need not be opened for it."""
    suffix = song.suffix.lower()
    if suffix in CHAPTERED:
        return "chapters"
    if suffix not in TAGGED and suffix != ".mp3":
        return ""
    try:
        with song.open("rb") as file:
            head = file.read(HEAD_BYTES)
            if head[:3] == b"ID3":
                size = sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
                head += file.read(max(0, size - len(head)))
                return "chapters" if b"CHAP" in head else ""
    except OSError:
        return ""
    small = head.lower()
    return "cue" if b"cuesheet=" in small else "chapters" if b"chapter00" in small else ""


def _inner_cue_sheet(song: Path) -> list[str]:
    try:
        file: Any = mutagen.File(song)
        return [_with_newlines(str(text)) for text in (file.tags or {}).get("cuesheet", [])]
    except Exception:  # mutagen's own errors, but malformed headers also bring KeyError, struct.error and others
        return []


def _chapters(song: Path) -> list[Track]:
    """The chapters of a file; none where it can't be opened: decoding reports why.

    Raises:
        ValueError: they overlap, or lie behind the end.
    """
    stored, seconds = _opened(song) or ([], None)
    chapters = [
        Track(
            _label(number, str(chapter["metadata"].get("title", ""))),
            max(0.0, float(chapter["start"] * chapter["time_base"])),
            float(chapter["end"] * chapter["time_base"]),
        )
        for number, chapter in enumerate(sorted(stored, key=lambda one: one["start"] * one["time_base"]), start=1)
    ]
    for before, after in pairwise(chapters):
        if before.end is not None and after.start < before.end - TOLERANCE:
            raise ValueError(f"chapters {before.label!r} and {after.label!r} overlap")
    if len(chapters) > 1 and seconds is not None and (last := chapters[-1]).start >= seconds:
        raise ValueError(f"chapter {last.label!r} begins at {last.start:.1f} s, but it lasts {seconds:.1f} s")
    if any(track.end is not None and track.end <= track.start for track in chapters):
        raise ValueError("a chapter ends where it begins")
    return chapters


@contextmanager
def _container(song: Path) -> Iterator[InputContainer]:
    options = {"protocol_whitelist": "none"}  # a playlist posing as music must not open anything else
    with song.open("rb") as file, av.open(file, "r", metadata_errors="replace", container_options=options) as container:
        yield container


def _opened(song: Path) -> tuple[list[Any], float | None] | None:
    """The chapters of a file and its stated length in seconds; None where it can't be opened."""
    try:
        with _container(song) as container:
            length = container.duration / av.time_base if container.duration else None
            return [chapter for chapter in container.chapters() if chapter["time_base"]], length
    except (av.FFmpegError, OSError, ValueError):
        return None


def _seconds(song: Path, at_least: float) -> float | None:
    """The length of a file, or None where it can't be opened; packets are counted where the header states too little.

    The header of an mp3 often gives only an estimate.
    """
    opened = _opened(song)
    if opened is None or opened[1] is None or opened[1] > at_least:
        return opened[1] if opened else None
    try:
        with _container(song) as container:
            track = container.streams.audio[0]
            return float(sum(packet.duration or 0 for packet in container.demux(track)) * (track.time_base or 0))
    except (av.FFmpegError, OSError, ValueError, IndexError):
        return None
