"""Where songs come from: a folder, one file, a dataset on the Hub or one saved on disk."""

from __future__ import annotations

from pathlib import Path

from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.data.songs.dataset import (
    holds_tables,
    is_saved_dataset,
    is_table,
    songs_of_saved_dataset,
    songs_of_table_file,
    songs_of_tables,
)
from musicgen_dreamboothing.data.songs.folder import is_prepared, songs_of_file, songs_of_listing
from musicgen_dreamboothing.data.songs.hub import songs_of_hub
from musicgen_dreamboothing.data.songs.scan import scan
from musicgen_dreamboothing.data.songs.song import Collection, Columns


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
        return _songs_of_folder(path, columns, cache_dir)
    if _looks_like_path(where):
        raise UserError(f"no such folder: {path}; give a folder of songs, a saved dataset or a Hub dataset id")
    return songs_of_hub(where, columns, token, cache_dir)


def _looks_like_path(where: str) -> bool:
    return where.startswith((".", "/", "~", "\\")) or where.count("/") > 1 or "\\" in where or where.endswith("/")


def _songs_of_folder(folder: Path, columns: Columns, cache_dir: str | None) -> Collection:
    if is_saved_dataset(folder):
        return songs_of_saved_dataset(folder, columns)
    listing = scan(folder)
    if not listing.songs and not is_prepared(folder) and holds_tables(folder):
        return songs_of_tables(folder, columns, cache_dir)
    return songs_of_listing(listing, columns)
