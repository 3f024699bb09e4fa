"""Where songs come from: a folder, one file, a dataset on the Hub or one saved on disk."""

from __future__ import annotations

from pathlib import Path

from musicgen_dreamboothing.console import UserError, plural
from musicgen_dreamboothing.data.songs.dataset import (
    Place,
    hold_songs,
    is_saved_dataset,
    is_table,
    songs_of_saved_dataset,
    songs_of_splits,
    songs_of_table_file,
    songs_of_tables,
    tables_of,
)
from musicgen_dreamboothing.data.songs.folder import song_of_file, songs_of_file, songs_of_listing
from musicgen_dreamboothing.data.songs.hub import Download, download
from musicgen_dreamboothing.data.songs.scan import Listing, first_names, scan
from musicgen_dreamboothing.data.songs.song import TRAIN, Collection, Columns


def find_songs(where: str, columns: Columns, *, token: str | None = None, cache_dir: str | None = None) -> Collection:
    """The songs at a path or Hub id, in a fixed order.

    Raises:
        UserError: nothing is there, or it has no such column or split, or holds no audio.
    """
    path = Path(where).expanduser()
    if path.is_file() and is_table(path.name):
        return songs_of_table_file(path, columns, cache_dir)
    if path.is_file():
        return songs_of_file(path, columns)
    if path.is_dir():
        return _songs_of_folder(Download(path), columns, cache_dir, str(path))
    if _looks_like_path(where):
        raise UserError(f"no such folder: {path}; give a folder of songs, a saved dataset or a Hub dataset id")
    return _songs_of_folder(download(where, columns, token, cache_dir), columns, cache_dir, where)


def _looks_like_path(where: str) -> bool:
    return where.startswith((".", "/", "~", "\\")) or where.count("/") > 1 or "\\" in where or where.endswith("/")


def _songs_of_folder(source: Download, columns: Columns, cache_dir: str | None, name: str) -> Collection:
    """The songs of a folder or of a repository in the cache, by the same rule: tables that hold songs go before files.

    What is not read, tables or audio files, is named.
    """
    folder, listing = source.folder, scan(source.folder)
    tables = tables_of(listing)
    if source.splits is not None:
        found = songs_of_splits(source.splits, columns, Place(name, (folder,), cache_dir))
    elif is_saved_dataset(folder):
        found = songs_of_saved_dataset(folder, columns, name)
    elif tables and (not listing.songs or hold_songs(tables, columns)):
        found = songs_of_tables(folder, tables, columns, cache_dir, name)
    else:
        found = songs_of_listing(listing, columns)
        unread = [listing.name(table) for table in tables if table.suffix != ".tar"]  # tar files are in its notes
        return Collection(found.songs, [*found.notes, *_unread("table", [*unread, *source.archives])])
    return Collection(found.songs, [*found.notes, *_unread("audio file", _not_in_tables(listing, found))])


def _not_in_tables(listing: Listing, found: Collection) -> list[str]:
    """Audio files that no row of a table names; rows of files have the fingerprints of these."""
    used = {song.fingerprint for song in found.songs}
    return [listing.name(path) for path in listing.songs if song_of_file(path, "", None, TRAIN).fingerprint not in used]


def _unread(noun: str, names: list[str]) -> list[str]:
    source = "tables" if noun == "audio file" else "audio files"
    return (
        [f"{plural(len(names), noun)} not read, for the songs come from {source}: {first_names(names)}"]
        if names
        else []
    )
