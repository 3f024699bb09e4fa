"""Captions in text and JSON files beside songs."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePath
from typing import Any

from musicgen_dreamboothing.console import UserError, first_names, plural
from musicgen_dreamboothing.data.songs.names import comparable, printable
from musicgen_dreamboothing.data.songs.textfiles import caption_of, read_text

METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.tsv", "metadata.parquet")
CAPTION_NAMES = ("text", "caption", "description", "prompt")  # in `song.json`, and columns of tables

# In order of precedence, each behind `song` or `song.wav`: what is called a caption, then text, which some sets use for
# lyrics beside `song.caption.txt`, then JSON.
TEXT_ENDINGS = (".caption.txt", ".caption", "_caption.txt", ".prompt.txt", "_prompt.txt", ".txt")
JSON_ENDING, CAPTION = ".json", ".caption"
TEXTS = (".txt", CAPTION)
SECTION = r"intro|verse|strophe|couplet|куплет|pre-?chorus|chorus|refrain|припев|hook|drop|bridge|break|solo|outro|coda"
LYRICS = re.compile(
    rf"\[\s*({SECTION}|instrumental|estribillo)\b[^\]\n]*\]"  # [Verse 1]
    r"|^\s*\[\d+:\d\d"  # [00:12.34], of .lrc files
    r"|^#(TITLE|ARTIST|BPM|GAP):",  # UltraStar
    re.IGNORECASE | re.MULTILINE,
)
HEADINGS = re.compile(rf"^\W*({SECTION})\s*\d*\W*$", re.IGNORECASE | re.MULTILINE)  # two lines such as `Chorus:`
MANY_LINES, MANY_WORDS = 8, 60  # of a text that may be lyrics


@dataclass
class CaptionFiles:
    """Reads captions from text and JSON files, and lists the files that are not used."""

    faults: list[str] = field(default_factory=list)  # one line for each file that can't be read
    lyrics: list[str] = field(default_factory=list)  # files with lyrics, which are not used
    long: list[str] = field(default_factory=list)  # files that are used, but may hold lyrics

    def caption(self, read: Callable[[], str], path: str, keys: Sequence[str] = CAPTION_NAMES) -> str | None:
        """The caption in a file.

        Args:
            read: gives the text of the file.
            path: its suffix tells JSON from text, and messages name it.
            keys: under which a JSON file may have it, in any case; the first that has one counts.
        """
        try:
            if path.lower().endswith(JSON_ENDING):
                return _caption_in_json(read(), path, keys)
            return self._caption_in_text(read(), printable(PurePath(path).name))
        except (UserError, ValueError) as error:
            self.faults.append(str(error))
            return None

    def _caption_in_text(self, text: str, name: str) -> str | None:
        if is_lyrics(text):
            self.lyrics.append(name)
            return None
        lines, words = [line for line in text.split("\n") if line.strip()], text.split()
        if len(lines) >= MANY_LINES and len(words) >= MANY_WORDS:
            self.long.append(name)
        return caption_of(text)

    def notes(self) -> list[str]:
        """What was not used, in lines."""
        faults, lyrics, long = (list(dict.fromkeys(lines)) for lines in (self.faults, self.lyrics, self.long))
        lines = []
        if faults:
            lines += [f"{plural(len(faults), 'caption file')} not used:", *(f"  {fault}" for fault in faults)]
        if lyrics:
            lines.append(f"{plural(len(lyrics), 'text file')} with lyrics not used as captions: {first_names(lyrics)}")
        if long:
            lines.append(
                f"note: {plural(len(long), 'caption')} of many lines; if these are lyrics, rename song.txt to "
                f"song.lyrics.txt: {first_names(long)}"
            )
        return lines


def _caption_in_json(text: str, path: str, keys: Sequence[str]) -> str | None:
    """The caption among what other trainers and players write beside a song; None without one."""
    try:
        values = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        reason = f"{error.msg}, line {error.lineno}" if isinstance(error, json.JSONDecodeError) else "nested too deep"
        raise ValueError(f"{path} is not JSON ({reason})") from error
    if isinstance(values, str):
        return caption_of(values)
    named: dict[str, Any] = (
        {str(key).casefold(): value for key, value in values.items()} if isinstance(values, dict) else {}
    )
    try:
        return next(filter(None, (caption_of(named.get(key.casefold())) for key in keys)), None)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


@dataclass
class Sidecars:
    """Finds captions beside songs, and lists the files that are not used."""

    files: dict[Path, set[str]]  # names of all files by folder
    _captions: CaptionFiles = field(default_factory=CaptionFiles)
    _comparable: dict[Path, dict[str, str]] = field(default_factory=dict)
    _read: set[Path] = field(default_factory=set)
    _stems: defaultdict[Path, set[str]] = field(default_factory=lambda: defaultdict(set))  # of songs, by folder

    def caption(self, song: Path) -> str | None:
        """The caption beside a song, on one line; the first file that has one counts."""
        captions = (self._captions.caption(partial(read_text, path), str(path)) for path in self._candidates(song))
        return next(filter(None, captions), None)

    def _candidates(self, song: Path) -> list[Path]:
        """Files beside a song, by exact name first, else by one that differs in case or Unicode form."""
        folder = song.parent
        names = self.files.get(folder, set())
        if folder not in self._comparable:
            self._comparable[folder] = {comparable(name): name for name in sorted(names, reverse=True)}
        alike = self._comparable[folder]
        requested = [stem + ending for ending in (*TEXT_ENDINGS, JSON_ENDING) for stem in (song.name, song.stem)]
        existing = [name if name in names else alike.get(comparable(name)) for name in requested]
        candidates = [folder / name for name in existing if name is not None]
        self._read.update(candidates)
        self._stems[folder].update({comparable(song.stem), comparable(song.name)})
        return candidates

    def notes(self) -> list[str]:
        """What was not used, in lines."""
        lines = self._captions.notes()
        if unknown := sorted(self._unknown()):
            lines.append(
                f"{plural(len(unknown), 'text file')} beside songs not used; captions are called song.txt, "
                f"song.wav.txt, song.caption or song.caption.txt: {first_names(unknown)}"
            )
        return lines

    def _unknown(self) -> Iterator[str]:
        """Texts that seem to belong to a song, or to be captions, but have another name."""
        for folder, stems in self._stems.items():
            for name in self.files.get(folder, set()):
                lower = comparable(name)
                if folder / name in self._read or not lower.endswith(TEXTS) or "lyric" in lower or lower[0] == ".":
                    continue
                of_song = any(lower[: match.start()] in stems for match in re.finditer(r"[._-]", lower))
                if of_song or lower.endswith(CAPTION):
                    yield printable(name)


def is_lyrics(text: str) -> bool:
    """Whether a text has the marks of lyrics, such as `[Chorus]`.

    >>> is_lyrics("[Verse 1]\\nla la"), is_lyrics("Verse:\\nla\\nChorus:\\nlo"), is_lyrics("a verse, then a chorus")
    (True, True, False)
    """
    return bool(LYRICS.search(text)) or len(HEADINGS.findall(text)) > 1
