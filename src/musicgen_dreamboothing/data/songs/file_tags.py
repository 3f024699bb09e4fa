"""Tags of a song's file: genre, tempo, key and comment. Title, artist and album are never returned.

Read by mutagen from ID3 (mp3, wav, aiff), Vorbis comments (FLAC, Ogg, Opus), MP4, APE and ASF (wma).
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mutagen
from mutagen.id3 import TCON

GENRE = ("tcon", "genre", "©gen", "wm/genre")
BPM = ("tbpm", "bpm", "tempo", "tmpo", "wm/beatsperminute", "----:com.apple.itunes:bpm", "txxx:bpm")
KEY = ("tkey", "initialkey", "initial key", "key", "wm/initialkey", "----:com.apple.itunes:initialkey")
COMMENT = ("comm", "comm:id3v1 comment", "comment", "description", "©cmt")
NAMES = (
    *("tit2", "tpe1", "tpe2", "talb", "title", "artist", "albumartist", "album", "author"),
    *("©nam", "©art", "aart", "©alb", "wm/albumtitle"),
)

SLOWEST, FASTEST = 30, 300  # bpm
LONGEST_COMMENT = 300  # letters
NO_GENRE = frozenset(
    {"other", "unknown", "unknown genre", "misc", "miscellaneous", "none", "genre", "default", "music"}
)
JUNK = re.compile(  # what shops, rippers and encoders leave
    r"https?:|www\.|\.(com|net|org|io|co)\b|@|\b(encod|ripp|convert|download|upload|purchas)(ed|er|ing)?\b|copyright|©"
    r"|\b(lame|lavf|lavc|itunes|youtube|soundcloud|bandcamp|exact audio copy|cddb|track \d+|vbr|cbr|kbps|khz)\b"
    r"|\benergy\b \d|[0-9a-f]{8}",
    re.IGNORECASE,
)
NOTES = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")


@dataclass(frozen=True)
class FileTags:
    """A file's own tags; None where there is none, or an implausible one."""

    genre: str | None = None  # one or several, with commas
    bpm: float | None = None
    key: str | None = None  # with its mode, such as `F# minor`
    comment: str | None = None  # on one line


def file_tags(source: Path | bytes) -> FileTags:
    """Reads a song's tags from its path or its bytes; a file that is broken or has none gives none."""
    fields = {name: list(_texts(value)) for name, value in _raw_tags(source)}
    names = {text.casefold() for text in _all(fields, NAMES) if len(text) > 2}
    comments = (parse_comment(text) for text in _all(fields, COMMENT))
    return FileTags(
        genre=parse_genre(_all(fields, GENRE)),
        bpm=next(filter(None, map(parse_bpm, _all(fields, BPM))), None),
        key=next(filter(None, map(parse_key, _all(fields, KEY))), None),
        comment=next((text for text in comments if text and not any(name in text.casefold() for name in names)), None),
    )


def _raw_tags(source: Path | bytes) -> Iterator[tuple[str, Any]]:
    """Names as the format has them, in small letters, with whatever mutagen makes of their values."""
    try:
        file = mutagen.File(io.BytesIO(source) if isinstance(source, bytes) else source)
    except Exception:  # its own MutagenError, but malformed headers also bring KeyError, struct.error and others
        return
    for name, value in dict(file.tags or {}).items() if file is not None else ():
        name = str(name).lower()
        if name.startswith("comm:"):  # comm:what it is for:language
            name = name.rpartition(":")[0].rstrip(":")
        yield name, value


def _texts(value: Any) -> Iterator[str]:
    """A tag's values as text, whatever the format wraps them in."""
    if isinstance(value, TCON):
        yield from value.genres  # numbers of ID3v1 are names here
    elif isinstance(value, bytes):
        yield value.decode("utf-8", errors="replace")
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
    else:
        yield from str(value).split("\0")  # ID3 and APE put several values into one text


def _all(fields: dict[str, list[str]], names: tuple[str, ...]) -> list[str]:
    """The values under the first names that have some, on one line each."""
    return list(filter(None, (" ".join(text.split()) for name in names for text in fields.get(name, []))))


def parse_genre(texts: list[str]) -> str | None:
    """
    >>> parse_genre(["Punk; Garage Rock", "Other", "17", "punk"])
    'Punk, Garage Rock'
    """
    parts = [part.strip(" .()") for text in texts for part in re.split(r"[,;|]| / ", text)]
    genres: dict[str, str] = {}
    for part in filter(_is_genre, parts):
        genres.setdefault(part.lower(), part)
    return ", ".join(genres.values()) or None


def _is_genre(text: str) -> bool:
    return (
        text.lower() not in NO_GENRE and 1 < len(text) <= 40 and any(map(str.isalpha, text)) and not JUNK.search(text)
    )


def parse_bpm(text: str) -> float | None:
    """
    >>> parse_bpm("118,5"), parse_bpm("118 BPM"), parse_bpm("0"), parse_bpm("9999"), parse_bpm("fast")
    (118.5, 118.0, None, None, None)
    """
    number = re.fullmatch(r"(\d{1,4}(?:[.,]\d+)?)\s*(?:bpm)?", text.strip(), re.IGNORECASE)
    bpm = float(number[1].replace(",", ".")) if number else 0.0
    return bpm if SLOWEST <= bpm <= FASTEST else None


def parse_key(text: str) -> str | None:
    """A key in letters, or of the Camelot or the Open Key wheel, with its mode; a letter alone is major, as ID3 has it.

    >>> [parse_key(text) for text in ("Am", "F#min", "Bb", "C sharp minor", "8A", "1d", "o", "H", "13A")]
    ['A minor', 'F# minor', 'Bb major', 'C# minor', 'A minor', 'C major', None, None, None]
    """
    letters = re.fullmatch(r"([a-gA-G])\s*(#|♯|b|♭|(?i:sharp|flat))?\s*(M|m|(?i:maj|min|major|minor))?", text.strip())
    if letters and (letters[3] or letters[1].isupper()):
        sign = "" if letters[2] is None else "#" if letters[2].lower() in ("#", "♯", "sharp") else "b"
        is_minor = letters[3] == "m" or (letters[3] or "").lower() in ("min", "minor")
        return f"{letters[1].upper()}{sign} {'minor' if is_minor else 'major'}"
    wheel = re.fullmatch(r"0?([1-9]|1[0-2])([ABabmd])", text.strip())
    return _key_on_wheel(int(wheel[1]), wheel[2].lower()) if wheel else None


def _key_on_wheel(hour: int, mode: str) -> str:
    """Fifths go round a clock: C major and A minor are 8B and 8A (Camelot) or 1d and 1m (Open Key)."""
    fifths = hour - (8 if mode in "ab" else 1)
    is_minor = mode in "am"
    return f"{NOTES[(fifths * 7 + (9 if is_minor else 0)) % 12]} {'minor' if is_minor else 'major'}"


def parse_comment(text: str) -> str | None:
    """A comment that a person wrote, not a shop, a ripper or an encoder.

    >>> parse_comment("slow jam with two guitars"), parse_comment("Encoded by LAME 3.100"), parse_comment("8A - 118")
    ('slow jam with two guitars', None, None)
    """
    words = re.findall(r"[^\W\d_]{2,}", text)
    return text if len(text) <= LONGEST_COMMENT and len(words) >= 2 and not JUNK.search(text) else None
