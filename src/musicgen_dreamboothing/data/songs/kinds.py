"""Kinds of files: which are songs, and why one that may hold music is not read."""

from __future__ import annotations

import os
import stat
import zipfile
from pathlib import Path

from musicgen_dreamboothing.audio import AUDIO_SUFFIXES


def _suffixes(text: str) -> frozenset[str]:
    return frozenset(f".{suffix}" for suffix in text.split())


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
    "archive (unpack it)": _suffixes("rar 7z tar tgz tbz2 txz cab iso nrg"),
}
_REASONS = {suffix: reason for reason, suffixes in UNREAD.items() for suffix in suffixes}
ARCHIVE, NOT_FETCHED, NO_FILE = "archive (unpack it)", "not downloaded yet (git lfs pull)", "pipe, socket or device"
LOCKED, HIDDEN, PACKED = "no permission to read", "hidden file", "shortcut, or packed or encrypted song"
WRAPPED = _suffixes("lnk gz bz2 xz zst gpg age enc tmp bak old")  # behind the suffix of a song
PLAYLISTS = _suffixes("m3u m3u8 pls wpl xspf asx")
_LFS_POINTER = b"version https://git-lfs"

# First bytes of audio files, by which one without a usual suffix is recognised.
_STARTS = (b"fLaC", b"OggS", b"ID3", b"wvpk", b"MAC ", b"TTA1", b"caff", b"#!AMR", b".snd", b"ADIF")
_FRAMES = frozenset({0xFA, 0xFB, 0xF2, 0xF3, 0xFC, 0xFD, 0xF1, 0xF9})  # behind 0xFF: of mp3, mp2 and raw AAC


def is_song(path: Path) -> bool:
    """Whether a file is audio by its suffix, or by its first bytes where the suffix says nothing."""
    return path.suffix.lower() in AUDIO_SUFFIXES or (_says_nothing(path.suffix) and _begins_as_audio(_head(path)))


def may_be_music(name: str) -> bool:
    """Whether a file of this name, which can't be looked into, is worth naming."""
    suffix = Path(name).suffix.lower()
    return not suffix or suffix in AUDIO_SUFFIXES or suffix in _REASONS


def why_not_read(path: Path, mode: int, *, is_hidden: bool) -> str | None:
    """The reason why a file that may be music is not read; None for songs and for what is no music."""
    suffix = path.suffix.lower()
    if not stat.S_ISREG(mode):  # a pipe must not be opened: nobody may ever write to it
        return NO_FILE if suffix in AUDIO_SUFFIXES else None
    if is_hidden:
        is_noise = path.name.startswith("._")  # what macOS writes beside songs on other disks
        return _REASONS.get(suffix) or (HIDDEN if suffix in AUDIO_SUFFIXES and not is_noise else None)
    if suffix in _REASONS:
        return _REASONS[suffix]
    if suffix in WRAPPED and Path(path.stem).suffix.lower() in AUDIO_SUFFIXES:
        return PACKED
    if suffix == ".zip" and _holds_music(path):
        return ARCHIVE
    if suffix not in AUDIO_SUFFIXES:
        return None
    if not os.access(path, os.R_OK):
        return LOCKED
    return NOT_FETCHED if _head(path).startswith(_LFS_POINTER) else None


def _says_nothing(suffix: str) -> bool:
    """Whether a suffix is none of a kind of file: `song`, `01. Intro`, `song.wav.1`, `song.bwf`."""
    return suffix.lower() not in (*_REASONS, ".zip", *WRAPPED, *PLAYLISTS)


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
