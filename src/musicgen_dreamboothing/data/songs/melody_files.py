"""Other recordings that have the melodies of songs: `song.melody.wav` beside `song.wav`, with any suffix of audio."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from musicgen_dreamboothing.audio import AUDIO_SUFFIXES
from musicgen_dreamboothing.console import first_names, plural
from musicgen_dreamboothing.data.songs.columns import fingerprint_of_file
from musicgen_dreamboothing.data.songs.names import comparable, printable
from musicgen_dreamboothing.data.songs.song import Song

SIDECAR = re.compile(r"(.+)\.melody(\.[^.]+)", re.IGNORECASE)


def is_melody_file(name: str) -> bool:
    """Whether a file has the melody of a song, by its name: it is never a song itself.

    >>> is_melody_file("song.melody.wav"), is_melody_file("my melody.wav"), is_melody_file("song.melody.txt")
    (True, False, False)
    """
    match = SIDECAR.fullmatch(name)
    return match is not None and match[2].lower() in AUDIO_SUFFIXES


@dataclass
class MelodyFiles:
    """Finds the melody files beside songs, and lists those without a song."""

    files: dict[Path, set[str]]  # names of all files by folder
    _used: set[Path] = field(default_factory=set)
    _by_song: dict[Path, dict[str, str]] = field(default_factory=dict)  # by folder: comparable stem of a song -> file

    def of(self, song: Path) -> Path | None:
        """The melody file beside a song, by its name with or without suffix; None without one."""
        folder = song.parent
        if folder not in self._by_song:
            names = sorted(filter(is_melody_file, self.files.get(folder, set())), reverse=True)
            stems = ((match[1], name) for name in names if (match := SIDECAR.fullmatch(name)))
            self._by_song[folder] = {comparable(stem): name for stem, name in stems}
        alike = self._by_song[folder]
        name = alike.get(comparable(song.name)) or alike.get(comparable(song.stem))
        if name is None:
            return None
        self._used.add(folder / name)
        return folder / name

    def notes(self) -> list[str]:
        """One line on melody files without a song."""
        present = (folder / name for folder, names in self.files.items() for name in names if is_melody_file(name))
        if unused := sorted(printable(path.name) for path in present if path not in self._used):
            return [f"{plural(len(unused), 'melody file')} without a song of the same name: {first_names(unused)}"]
        return []


def with_melody(song: Song, melody: Path) -> Song:
    """A song whose melody another file has, from the same second to the same second."""
    place = melody.absolute()
    return paired(
        song,
        replace(
            song,
            name=printable(melody.name),
            read=lambda: place,
            caption=None,
            fingerprint=fingerprint_of_file(melody),
            original=None,
        ),
    )


def paired(song: Song, melody: Song) -> Song:
    """A song with the recording that has its melody, with which its fingerprint changes."""
    return replace(song, melody=melody, fingerprint=f"{song.fingerprint}+{melody.fingerprint}")
