"""Kinds of files: which are songs, which may hold music and are not read, which this program made itself."""

from __future__ import annotations

import json
import os
import re
import stat
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from musicgen_dreamboothing.audio import AUDIO_SUFFIXES
from musicgen_dreamboothing.data.layout import CLIPS, GENERATED, METADATA, SONGS, TOKENS


def _suffixes(text: str) -> frozenset[str]:
    return frozenset(f".{suffix}" for suffix in text.split())


ARCHIVE = "archive (unpack it)"
# Pictures, texts and the like are no music and are not mentioned. These are, with the next step where there is one.
UNREAD = {
    "protected against copying (DRM)": _suffixes("m4p aa aax aaxc wax wvx"),
    "no sound but notes, or a format that is not read (convert to wav or flac)": _suffixes(
        "mid midi kar rmi mod xm it s3m mptm nsf nsfe spc vgm vgz gbs sid ay ym sap hes kss psf usf adx vqf tak shn la"
        " ofr mpc dsf dff dst sacd ra ram rm rmvb dts dtshd thd mlp oma aa3 acd wve voc 8svx iff"
    ),
    "project of a music program (export its sound)": _suffixes(
        "als flp logicx band aup aup3 rpp ptx cpr sesx mmpz ardour"
    ),
    "unfinished download": _suffixes("part partial crdownload download opdownload filepart !qb !ut bc!"),
    "not downloaded yet (iCloud)": _suffixes("icloud"),
    ARCHIVE: _suffixes("rar 7z tar tgz tbz2 txz cab iso nrg"),
}
_REASONS = {suffix: reason for reason, suffixes in UNREAD.items() for suffix in suffixes}
WRAPPED = _suffixes("lnk gz bz2 xz zst gpg age enc tmp bak old")  # behind the suffix of a song
PLAYLISTS = _suffixes("m3u m3u8 pls wpl xspf asx")
_LFS_POINTER = b"version https://git-lfs"

# First bytes of audio files, by which one without a usual suffix is recognised.
_STARTS = (b"fLaC", b"OggS", b"ID3", b"wvpk", b"MAC ", b"TTA1", b"caff", b"#!AMR", b".snd", b"ADIF")
_FRAMES = frozenset({0xFA, 0xFB, 0xF2, 0xF3, 0xFC, 0xFD, 0xF1, 0xF9})  # behind 0xFF: of mp3, mp2 and raw AAC


# What this program makes: runs, samples, evaluations, prepared folders, generated clips.
RUN = "run.json"
# Files that a folder of ours holds, with keys that tell them from other programs' files of the same name.
RECORDS = {
    RUN: ("options", "base_model"),
    "report.json": ("verdict", "figures"),  # an evaluation
    "made.json": ("weights", "sampling"),  # the clips of an evaluation
    "samples.json": ("prompts", "sampling"),  # the samples of a training step
}
DEMO_CLIPS = ("made_with", "files")  # in the `made.json` of a demo
TOKENS_INFO = "info.json"  # in `tokens/`
CLIP_FILE = re.compile(r".+-\d{3,}(\.melody)?\.flac")  # in `clips/`, which has no metadata yet when a run is killed
OF_RUN = re.compile(r"samples|evaluation|checkpoint-\d+")  # folders beside `run.json`
OF_WANDB = re.compile(r"(offline-)?run-\d")  # folders in `wandb/`, which keeps copies of samples
STEMS = "stems"
STEM_FILE = re.compile(r"[0-9a-f]{24}\.flac")  # in `stems/`


def is_song(path: Path) -> bool:
    """Whether a file is audio by its suffix, or by its first bytes where the suffix is not of a known kind."""
    suffix = path.suffix.lower()  # unknown ones: of `song`, `01. Intro`, `song.wav.1`, `song.bwf`
    is_known = suffix in (*_REASONS, ".zip", *WRAPPED, *PLAYLISTS)
    return suffix in AUDIO_SUFFIXES or (not is_known and _begins_as_audio(_head(path)))


def may_be_music(name: str) -> bool:
    """Whether a file of this name, which can't be looked into, is worth naming."""
    suffix = Path(name).suffix.lower()
    return not suffix or suffix in AUDIO_SUFFIXES or suffix in _REASONS


def why_not_read(path: Path, mode: int, *, is_hidden: bool) -> str | None:
    """The reason why a file that may be music is not read; None for songs and for what is no music."""
    suffix = path.suffix.lower()
    if not stat.S_ISREG(mode):  # opening a pipe may block for ever
        return "pipe, socket or device" if suffix in AUDIO_SUFFIXES else None
    if is_hidden:
        is_noise = path.name.startswith("._")  # what macOS writes beside songs on other disks
        return _REASONS.get(suffix) or ("hidden file" if suffix in AUDIO_SUFFIXES and not is_noise else None)
    if suffix in _REASONS:
        return _REASONS[suffix]
    if suffix in WRAPPED and Path(path.stem).suffix.lower() in AUDIO_SUFFIXES:
        return "shortcut, or packed or encrypted song"
    if suffix == ".zip" and _holds_music(path):
        return ARCHIVE
    if suffix not in AUDIO_SUFFIXES:
        return None
    if not os.access(path, os.R_OK):
        return "no permission to read"
    return "not downloaded yet (git lfs pull)" if _head(path).startswith(_LFS_POINTER) else None


def _head(path: Path) -> bytes:
    """The first bytes of a file; none where it can't be opened."""
    try:
        with path.open("rb", buffering=0) as file:
            return file.read(24)
    except OSError:
        return b""


def _begins_as_audio(head: bytes) -> bool:
    if head[:4] in (b"RIFF", b"RF64", b"RIFX"):
        return head[8:12] == b"WAVE"
    if head[:4] == b"FORM":
        return head[8:12] in (b"AIFF", b"AIFC")
    if head[4:8] == b"ftyp":
        return head[8:11] in (b"M4A", b"M4B")
    return head.startswith(_STARTS) or (head[:1] == b"\xff" and head[1:2] != b"" and head[1] in _FRAMES)


def _holds_music(archive: Path) -> bool:
    """Whether a zip file has a song in its table of contents; one that can't be read may."""
    try:
        with zipfile.ZipFile(archive) as file:
            return any(Path(name).suffix.lower() in AUDIO_SUFFIXES for name in file.namelist())
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return True


# --- what this program made


def is_product(folder: Path, names: set[str]) -> bool:
    """Whether this program made a folder, by the names of what is in it.

    A folder with songs beside `run.json` is not: people use folders of songs as output folders, too.
    """
    if folder.name == "wandb" and any(map(OF_WANDB.match, names)):
        return True
    sounds = _sounds(names)
    if folder.name == STEMS and _all_match(STEM_FILE, sounds):
        return True
    records = [record for record in RECORDS if record in names and _is_ours(folder / record)]
    return bool(records) and not (records == [RUN] and sounds)


def is_product_of_parent(folder: Path, siblings: set[str]) -> bool:
    """Whether this program made a folder, by the files beside it and, in a prepared folder, in it."""
    if SONGS in siblings and folder.name in (CLIPS, TOKENS) and _is_part_of_prepared(folder):
        return True
    return RUN in siblings and bool(OF_RUN.fullmatch(folder.name)) and _is_ours(folder.parent / RUN)


def _is_part_of_prepared(folder: Path) -> bool:
    """By its content: users may have a folder of songs with such a name."""
    try:
        names = set(os.listdir(folder))
    except OSError:
        return False
    if folder.name == TOKENS:
        return TOKENS_INFO in names
    return METADATA in names or _all_match(CLIP_FILE, _sounds(names))


def _sounds(names: Iterable[str]) -> set[str]:
    return {name for name in names if Path(name).suffix.lower() in AUDIO_SUFFIXES}


def _all_match(pattern: re.Pattern[str], names: set[str]) -> bool:
    return bool(names) and all(map(pattern.fullmatch, names))


def stem_files(folder: Path, names: set[str]) -> set[str]:
    """Names of the separated songs in a folder that may hold songs as well."""
    return {name for name in names if STEM_FILE.fullmatch(name)} if folder.name == STEMS else set()


def generated_files(folder: Path) -> set[str]:
    """Names of the clips that `generate` wrote into a folder, which may hold songs as well."""
    try:
        lines = (folder / GENERATED).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    rows = (_parsed(line) for line in lines)  # a kill may leave half a line
    return {str(row["file_name"]) for row in rows if isinstance(row, dict) and "file_name" in row}


def _is_ours(record: Path) -> bool:
    try:
        values = _parsed(record.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return False
    keys_of_kinds = [RECORDS[record.name], *([DEMO_CLIPS] if record.name == "made.json" else [])]
    return isinstance(values, dict) and any(set(keys) <= set(values) for keys in keys_of_kinds)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return None
