"""Walks a folder: which files are songs, and what is not read and why."""

from __future__ import annotations

import os
import re
import stat
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from musicgen_dreamboothing.console import first_names, plural
from musicgen_dreamboothing.data.songs.kinds import (
    PLAYLISTS,
    generated_files,
    is_product,
    is_product_of_parent,
    is_song,
    may_be_music,
    stem_files,
    why_not_read,
)
from musicgen_dreamboothing.data.songs.melody_files import is_melody_file
from musicgen_dreamboothing.data.songs.names import printable

SYSTEM_FOLDERS = frozenset(  # of Windows, network drives, macOS and recovery tools; hidden ones begin with a dot
    {"$recycle.bin", "recycler", "recycled", "system volume information", "msocache", "found.000", "lost.dir"}
    | {"lost+found", "@eadir", "#recycle", "@recycle", "#snapshot", "@recently-snapshot", "__macosx", "__pycache__"}
    | {"network trash folder", "temporary items", "thevolumesettingsfolder", "node_modules"}
)
NAMED = 4  # files that a line names; the others are counted


@dataclass
class Listing:
    """What is in a folder of songs and below it."""

    root: Path
    songs: list[Path] = field(default_factory=list)  # audio files, in the order of their names
    files: dict[Path, set[str]] = field(default_factory=dict)  # the names of all files of each folder
    is_single_song: bool = False  # one file was asked for: what cue sheets and tables list besides is not noted
    products: list[str] = field(default_factory=list)  # folders and files that this program made
    hidden: list[str] = field(default_factory=list)  # hidden folders and those of the system
    linked: list[str] = field(default_factory=list)  # links to what is read anyway
    locked: list[str] = field(default_factory=list)  # folders that are not read, each with the reason
    unread: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # files, by the reason

    def name(self, path: Path) -> str:
        """A file or folder in messages."""
        return printable(path.relative_to(self.root).as_posix())

    def notes(self) -> list[str]:
        """One line for each kind of thing that is not read."""
        counted = (
            (self.products, "Skipped output of this program"),
            (self.hidden, f"Skipped {plural(len(self.hidden), 'hidden or system folder')}"),
            (self.linked, f"Skipped {plural(len(self.linked), 'link')} to what is read anyway"),
            (self.locked, f"{plural(len(self.locked), 'folder')} not read"),
        )
        lines = [f"{text}: {first_names(sorted(names))}" for names, text in counted if names]
        if self.unread:
            lines.append(f"{plural(sum(map(len, self.unread.values())), 'file')} not read:")
            lines += [f"  {reason}: {first_names(sorted(names))}" for reason, names in sorted(self.unread.items())]
        return lines


def scan(root: Path) -> Listing:
    """Lists a folder and what is below it; links are followed, and each real folder and file is read once."""
    return _Scan(root).run()


class _Scan:
    """One walk: real folders first, so that a song has the name of its own place and not that of a link to it."""

    def __init__(self, root: Path) -> None:
        self.listing = Listing(root)
        self.folders, self.links = [root], list[Path]()
        self.seen = set[tuple[int, int]]()  # device and inode of folders
        self.song_files = set[tuple[int, int]]()
        self.linked_songs = list[tuple[Path, tuple[int, int]]]()
        self.playlists = list[Path]()

    def run(self) -> Listing:
        listing = self.listing
        while self.folders or self.links:
            folder = self.folders.pop() if self.folders else self.links.pop(0)
            try:
                self._read(folder)
            except OSError as error:
                listing.locked.append(f"{listing.name(folder)} ({error.strerror})")
        for path, identity in sorted(self.linked_songs):
            if identity in self.song_files:
                listing.linked.append(listing.name(path))
            else:
                self.song_files.add(identity)
                listing.songs.append(path)
        listing.songs.sort()
        folders = {song.parent for song in listing.songs}
        for path in self.playlists:
            if path.parent not in folders:
                listing.unread["playlist without its songs"].append(listing.name(path))
        return listing

    def _read(self, folder: Path) -> None:
        root, name = self.listing.root, self.listing.name(folder)
        identity = _identity(folder.stat())
        if identity in self.seen:
            self.listing.linked.append(name)
            return
        if folder != root and folder.is_symlink() and root.resolve().is_relative_to(folder.resolve()):
            self.listing.locked.append(f"{name} (a link to a folder around this one)")
            return
        self.seen.add(identity)
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        names = {entry.name for entry in entries}
        if folder != root and is_product(folder, names):
            self.listing.products.append(name)
        else:
            self._add_entries(folder, entries, names)

    def _add_entries(self, folder: Path, entries: list[os.DirEntry[str]], names: set[str]) -> None:
        self.listing.files[folder] = names
        generated, count = generated_files(folder) & names, 0
        generated |= stem_files(folder, names) if folder != self.listing.root else set()
        for entry in entries:
            path = folder / entry.name
            try:
                status = entry.stat()
            except OSError as error:  # a link to nothing, or a folder that may be listed but not entered
                if not is_hidden(entry.name) and may_be_music(entry.name):
                    reason = "links to nothing" if entry.is_symlink() else f"can't be opened ({error.strerror})"
                    self.listing.unread[reason].append(self.listing.name(path))
                continue
            if stat.S_ISDIR(status.st_mode):
                self._add_folder(path, entry, names)
            elif entry.name in generated:
                count += 1
            else:
                self._add_file(path, status, is_link=entry.is_symlink())
        if count:
            place = "" if folder == self.listing.root else f" in {self.listing.name(folder)}"
            self.listing.products.append(f"{plural(count, 'generated clip')}{place}")

    def _add_folder(self, path: Path, entry: os.DirEntry[str], siblings: set[str]) -> None:
        if is_hidden(entry.name) or entry.name.lower() in SYSTEM_FOLDERS:
            self.listing.hidden.append(self.listing.name(path))
        elif is_product_of_parent(path, siblings):
            made = path if path.parent == self.listing.root else path.parent  # one name for all of a prepared folder
            if (name := self.listing.name(made)) not in self.listing.products:
                self.listing.products.append(name)
        else:
            (self.links if entry.is_symlink() else self.folders).append(path)

    def _add_file(self, path: Path, status: os.stat_result, *, is_link: bool) -> None:
        hidden = is_hidden(path.name)
        if reason := why_not_read(path, status.st_mode, is_hidden=hidden):
            self.listing.unread[reason].append(self.listing.name(path))
        elif path.suffix.lower() in PLAYLISTS:
            self.playlists.append(path)
        elif stat.S_ISREG(status.st_mode) and not hidden and not is_melody_file(path.name) and is_song(path):
            if is_link:
                self.linked_songs.append((path, _identity(status)))
            else:
                self.song_files.add(_identity(status))
                self.listing.songs.append(path)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def is_hidden(name: str) -> bool:
    """Whether a file or folder is meant to be out of sight; `...And Justice for All` is not."""
    return bool(re.match(r"\.(?!\.)", name))
