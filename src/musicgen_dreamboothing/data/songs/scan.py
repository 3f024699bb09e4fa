"""Walks a folder of songs: which files are songs, and what was passed over and why."""

from __future__ import annotations

import os
import re
import stat
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from musicgen_dreamboothing.console import plural
from musicgen_dreamboothing.data.songs.kinds import PLAYLISTS, is_song, may_be_music, why_not_read
from musicgen_dreamboothing.data.songs.names import printable
from musicgen_dreamboothing.data.songs.products import generated_files, is_product, is_product_of_parent, stem_files

SYSTEM_FOLDERS = frozenset(  # of Windows, network drives, macOS and recovery tools; hidden ones begin with a dot
    {"$recycle.bin", "recycler", "recycled", "system volume information", "msocache", "found.000", "lost.dir"}
    | {"lost+found", "@eadir", "#recycle", "@recycle", "#snapshot", "@recently-snapshot", "__macosx", "__pycache__"}
    | {"network trash folder", "temporary items", "thevolumesettingsfolder", "node_modules"}
)
NAMED = 4  # files of one kind that a line names; the others are counted


@dataclass
class Listing:
    """What is in a folder of songs and below it.

    Attributes:
        root: the folder.
        songs: audio files, in the order of their names.
        files: the names of all files of each folder that was read.
        products: folders and files that this program made.
        hidden: hidden folders and those that systems make.
        linked: links to what is read anyway.
        locked: folders that are not read, each with the reason.
        unread: files that may be music, by the reason why they are not read.
        is_single_song: whether one file was asked for; what cue sheets and tables say of others is of no interest.
    """

    root: Path
    songs: list[Path] = field(default_factory=list)
    files: dict[Path, set[str]] = field(default_factory=dict)
    products: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    linked: list[str] = field(default_factory=list)
    locked: list[str] = field(default_factory=list)
    unread: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    is_single_song: bool = False

    def name(self, path: Path) -> str:
        """How a line names a file or folder."""
        return printable(path.relative_to(self.root).as_posix())

    def notes(self) -> list[str]:
        """One line for each kind of thing that was passed over."""
        lines = []
        if self.products:
            lines.append(f"Passed over what this program made: {first_names(self.products)}")
        if self.hidden:
            lines.append(
                f"Passed over {plural(len(self.hidden), 'hidden or system folder')}: {first_names(self.hidden)}"
            )
        if self.linked:
            lines.append(
                f"Passed over {plural(len(self.linked), 'link')} to what is read anyway: {first_names(self.linked)}"
            )
        if self.locked:
            lines.append(f"{plural(len(self.locked), 'folder')} not read: {first_names(self.locked)}")
        if self.unread:
            count = sum(map(len, self.unread.values()))
            lines.append(f"{plural(count, 'file')} not read:")
            lines += [f"  {reason}: {first_names(names)}" for reason, names in sorted(self.unread.items())]
        return lines


def first_names(names: list[str], most: int = NAMED) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def scan(root: Path) -> Listing:
    """Lists a folder and what is below it; links are followed, and each real folder and file is read once."""
    return _Scan(root).run()


class _Scan:
    """One walk: real folders first, so that a song has the name of its own place and not that of a link to it."""

    def __init__(self, root: Path) -> None:
        self.listing = Listing(root)
        self.folders, self.links = [root], list[Path]()
        self.seen = set[tuple[int, int]]()
        self.linked_songs = list[tuple[Path, tuple[int, int]]]()
        self.song_files = set[tuple[int, int]]()
        self.playlists = list[Path]()

    def run(self) -> Listing:
        while self.folders or self.links:
            self._read(self.folders.pop() if self.folders else self.links.pop(0))
        for path, identity in sorted(self.linked_songs):
            if identity in self.song_files:
                self.listing.linked.append(self.listing.name(path))
            else:
                self.song_files.add(identity)
                self.listing.songs.append(path)
        self.listing.songs.sort()
        beside = {song.parent for song in self.listing.songs}
        for path in self.playlists:
            if path.parent not in beside:
                self.listing.unread["playlist without its songs"].append(self.listing.name(path))
        for names in (self.listing.products, self.listing.hidden, self.listing.linked, self.listing.locked):
            names.sort()
        for names in self.listing.unread.values():
            names.sort()
        return self.listing

    def _read(self, folder: Path) -> None:
        try:
            status = folder.stat()
            identity = status.st_dev, status.st_ino
            if identity in self.seen:
                self.listing.linked.append(self.listing.name(folder))
                return
            if self._leads_back(folder):
                self.listing.locked.append(f"{self.listing.name(folder)} (a link to a folder around this one)")
                return
            self.seen.add(identity)
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            self.listing.locked.append(f"{self.listing.name(folder)} ({error.strerror})")
            return
        names = {entry.name for entry in entries}
        is_root = folder == self.listing.root
        if not is_root and is_product(folder, names):
            self.listing.products.append(self.listing.name(folder))
            return
        self._take(folder, entries, names)

    def _leads_back(self, folder: Path) -> bool:
        """Whether a link leads to a folder that the root is in."""
        return (
            folder.is_symlink()
            and folder != self.listing.root
            and self.listing.root.resolve().is_relative_to(folder.resolve())
        )

    def _take(self, folder: Path, entries: list[os.DirEntry[str]], names: set[str]) -> None:
        self.listing.files[folder] = names
        generated, count = generated_files(folder) & names, 0
        generated |= stem_files(folder, names) if folder != self.listing.root else set()
        for entry in entries:
            path = folder / entry.name
            try:
                mode = entry.stat().st_mode
            except OSError as error:
                self._take_broken(entry, error)
                continue
            if stat.S_ISDIR(mode):
                self._take_folder(path, entry, names)
            elif entry.name in generated:
                count += 1
            else:
                self._take_file(path, entry, mode)
        if count:
            place = "" if folder == self.listing.root else f" in {self.listing.name(folder)}"
            self.listing.products.append(f"{plural(count, 'generated clip')}{place}")

    def _take_folder(self, path: Path, entry: os.DirEntry[str], siblings: set[str]) -> None:
        if is_hidden(entry.name) or entry.name.lower() in SYSTEM_FOLDERS:
            self.listing.hidden.append(self.listing.name(path))
        elif is_product_of_parent(path, siblings):
            made = path if path.parent == self.listing.root else path.parent  # one name for all of a prepared folder
            if (name := self.listing.name(made)) not in self.listing.products:
                self.listing.products.append(name)
        else:
            (self.links if entry.is_symlink() else self.folders).append(path)

    def _take_file(self, path: Path, entry: os.DirEntry[str], mode: int) -> None:
        name = self.listing.name(path)
        reason = why_not_read(path, mode, is_hidden=is_hidden(entry.name))
        if reason:
            self.listing.unread[reason].append(name)
        elif path.suffix.lower() in PLAYLISTS:
            self.playlists.append(path)
        elif stat.S_ISREG(mode) and not is_hidden(entry.name) and is_song(path):
            status = entry.stat()
            identity = status.st_dev, status.st_ino
            if entry.is_symlink():
                self.linked_songs.append((path, identity))
            else:
                self.song_files.add(identity)
                self.listing.songs.append(path)

    def _take_broken(self, entry: os.DirEntry[str], error: OSError) -> None:
        """A link to nothing, or a file in a folder whose entries may be listed but not opened."""
        name = self.listing.name(Path(entry.path))
        if is_hidden(entry.name) or not may_be_music(entry.name):
            return
        if entry.is_symlink():
            self.listing.unread["links to nothing"].append(name)
        else:
            self.listing.unread[f"can't be opened ({error.strerror})"].append(name)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is meant to be out of sight; `...And Justice for All` is not."""
    return bool(re.match(r"\.(?!\.)", name))
