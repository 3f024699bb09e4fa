"""Names of files: printable ones for songs, and which file a table or a cue sheet means."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from musicgen_dreamboothing.audio import AUDIO_SUFFIXES

JOINERS = "\u200c\u200d"  # invisible, but part of emoji and of words in some scripts
ESCAPED = ("Cc", "Cf", "Cs", "Zl", "Zp")  # categories: control, format, surrogate, line and paragraph separator


def printable(name: str) -> str:
    r"""A file name as text that can be printed, encoded and written on one line.

    >>> printable("caf\udce9.wav"), printable("two\nlines.wav")
    ('caf\\xe9.wav', 'two\\nlines.wav')
    """
    text = os.fsencode(name).decode("utf-8", errors="backslashreplace")
    return "".join(_escaped(letter) for letter in text) if not text.isprintable() else text


def _escaped(letter: str) -> str:
    is_safe = letter in JOINERS or unicodedata.category(letter) not in ESCAPED
    return letter if is_safe else letter.encode("unicode_escape").decode()


def unique_names(paths: Iterable[Path], root: Path) -> dict[Path, str]:
    """A printable name for each path, relative to the root, with `/`; no two are equal."""
    taken = set[str]()
    return {path: unused(printable(path.relative_to(root).as_posix()), taken) for path in paths}


def unused(name: str, taken: set[str]) -> str:
    """The name, with a number behind it where it is taken; from now on it is."""
    free, number = name, 1
    while free in taken:
        number += 1
        free = f"{name} ({number})"
    taken.add(free)
    return free


def comparable(name: str) -> str:
    """Equal for names that differ only in case or Unicode form: macOS writes `ü` as two characters."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def without_suffix(name: str) -> str:
    """The name without the suffix of an audio file; other dots belong to the title, as in `01. Intro`."""
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and f".{suffix.lower()}" in AUDIO_SUFFIXES else name


class NameIndex:
    """Finds the file for a path in a table, which often was written on another system.

    The exact path is preferred. Otherwise case, Unicode form, back-slashes, leading folders that only one side has and,
    last, the suffix are ignored, and the file must be the only match.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = set(names)
        self._paths = [defaultdict[str, set[str]](set) for _ in range(2)]  # names by their forms: with suffix, without
        self._tails = [defaultdict[str, set[str]](set) for _ in range(2)]
        for name in self.names:
            for level, form in enumerate(_forms(name)):
                self._paths[level][form].add(name)
                for tail in _tails(form):
                    self._tails[level][tail].add(name)

    def find(self, name: str) -> tuple[str, int] | None:
        """The one name that matches, and its distance (0: it is the same text); None without one."""
        path = os.path.normpath(name.strip().replace("\\", "/")).lstrip("/")
        for exact in (name, path):
            if exact in self.names:
                return exact, 0
        if ".." in path.split("/"):
            return None
        for level, form in enumerate(_forms(path)):
            candidates = [self._paths[level].get(tail, set()) for tail in _tails(form)]
            candidates.append(self._tails[level].get(form, set()))
            for distance, names in enumerate(candidates, start=1):
                if len(names) == 1:
                    return next(iter(names)), distance + 1000 * level
        return None


def _forms(name: str) -> tuple[str, str]:
    """What is compared: the path, and the path without suffix."""
    return comparable(name), comparable(without_suffix(name))


def _tails(path: str) -> Iterator[str]:
    """`a/b/c`, `b/c`, `c`."""
    parts = PurePosixPath(path).parts
    for start in range(len(parts)):
        yield "/".join(parts[start:])
