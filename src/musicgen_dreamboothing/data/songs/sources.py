"""Where songs are found: in a folder, one file, a dataset saved on disk or on the Hub."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from musicgen_dreamboothing.audio import AUDIO_SUFFIXES
from musicgen_dreamboothing.console import UserError, first_names, plural
from musicgen_dreamboothing.data.layout import CLIPS, GENERATED, is_prepared
from musicgen_dreamboothing.data.songs.columns import fingerprint_of_file
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
from musicgen_dreamboothing.data.songs.hub import Download, download
from musicgen_dreamboothing.data.songs.melody_files import MelodyFiles, with_melody
from musicgen_dreamboothing.data.songs.names import unique_names, unused
from musicgen_dreamboothing.data.songs.scan import Listing, scan
from musicgen_dreamboothing.data.songs.sidecars import Sidecars
from musicgen_dreamboothing.data.songs.song import EVAL, TRAIN, Collection, Columns, Song
from musicgen_dreamboothing.data.songs.tables import captions_of_tables
from musicgen_dreamboothing.data.songs.tracks import CUE, Tracks, find_tracks


def find_songs(where: str, columns: Columns, *, token: str | None = None, cache_dir: str | None = None) -> Collection:
    """The songs at a path or Hub id, in a fixed order.

    Raises:
        UserError: nothing is there, or it has no such column or split, or holds no audio.
    """
    path = Path(where).expanduser()
    if path.is_file() and is_table(path.name):
        return songs_of_table_file(path, columns, cache_dir)
    if path.is_file():
        return _songs_of_file(path, columns)
    if path.is_dir():
        return _songs_of_folder(Download(path), columns, cache_dir, str(path))
    if where.startswith((".", "/", "~", "\\")) or where.count("/") > 1 or "\\" in where or where.endswith("/"):
        raise UserError(f"no such folder: {path}; give a folder of songs, a saved dataset or a Hub dataset id")
    return _songs_of_folder(download(where, columns, token, cache_dir), columns, cache_dir, where)


def _songs_of_folder(source: Download, columns: Columns, cache_dir: str | None, name: str) -> Collection:
    """The songs of a folder, or of a repository in the cache: tables that hold songs are preferred to audio files.

    Tables or audio files that are not read are named.
    """
    folder, listing = source.folder, scan(source.folder)
    tables = tables_of(listing)
    if source.splits is not None:
        collection = songs_of_splits(source.splits, columns, Place(name, (folder,), cache_dir))
    elif is_saved_dataset(folder):
        collection = songs_of_saved_dataset(folder, columns, name)
    elif tables and (not listing.songs or hold_songs(tables, columns)):
        collection = songs_of_tables(folder, tables, columns, cache_dir, name)
    else:
        collection = _songs_of_listing(listing, columns)
        others = [listing.name(table) for table in tables if table.suffix != ".tar"]  # tar files are in its notes
        return Collection(collection.songs, [*collection.notes, *_unread("table", [*others, *source.archives])])
    used = {song.fingerprint for song in collection.songs}  # rows that name a file have its fingerprint
    others = [listing.name(path) for path in listing.songs if fingerprint_of_file(path) not in used]
    return Collection(collection.songs, [*collection.notes, *_unread("audio file", others)])


def _unread(noun: str, names: list[str]) -> list[str]:
    source = "tables" if noun == "audio file" else "audio files"
    note = f"{plural(len(names), noun)} not read, for the songs come from {source}: {first_names(names)}"
    return [note] if names else []


def _songs_of_listing(listing: Listing, columns: Columns) -> Collection:
    if not listing.songs:
        raise UserError(_why_no_songs(listing))
    collection = _collect(listing, find_tracks(listing), columns)
    if columns.eval_split and all(song.split == TRAIN for song in collection.songs):
        folder = listing.root / columns.eval_split
        raise UserError(f"no songs in {folder}; --eval_split_name takes a sub-folder of {listing.root}")
    return Collection(collection.songs, [*listing.notes(), *collection.notes])


def _songs_of_file(path: Path, columns: Columns) -> Collection:
    """The song in one file, or its tracks; of a cue sheet, the tracks of its files."""
    try:
        names = {name for name in os.listdir(path.parent) if not (path.parent / name).is_dir()}
    except OSError:
        names = {path.name}
    listing = Listing(path.parent, [path], {path.parent: names}, is_single_song=True)
    if path.suffix.lower() != CUE:
        return _collect(listing, find_tracks(listing), columns)
    others = {name for name in names if not name.lower().endswith(CUE)}
    listing = Listing(path.parent, scan(path.parent).songs, {path.parent: others | {path.name}})
    tracks = find_tracks(listing)
    listing.songs = [song for song in listing.songs if song in tracks.by_file]
    if not listing.songs:
        raise UserError("; ".join(tracks.faults) or f"{path} names no file with several tracks")
    return _collect(listing, tracks, columns)


def _why_no_songs(listing: Listing) -> str:
    if is_prepared(listing.root):
        return (
            f"no songs in {listing.root}, which is a prepared folder: train takes it as it is; to cut its clips again, "
            f"give {listing.root / CLIPS} and another --output_dir"
        )
    suffixes = ", ".join(sorted(suffix.lstrip(".") for suffix in AUDIO_SUFFIXES))
    lines = [f"no audio files in {listing.root}; songs may be {suffixes}", *map(str.strip, listing.notes())]
    if any("generated clip" in name for name in listing.products):
        lines.append(f"delete {GENERATED} to use generated clips as songs")
    return " - ".join(lines)


def _collect(listing: Listing, tracks: Tracks, columns: Columns) -> Collection:
    """The songs of a listing, with their captions: files, or the tracks of those that hold several."""
    names = unique_names(listing.songs, listing.root)
    songs = {path: _songs_in(path, names, tracks, columns) for path in listing.songs}
    every_name = [*names.values(), *(song.name for group in songs.values() for song in group)]
    tables = captions_of_tables(listing, every_name, columns.text, columns.melody)
    sidecars, melodies = Sidecars(listing.files), MelodyFiles(listing.files)
    captioned, others = list[Song](), {melody.resolve() for melody in tables.melodies.values()}
    for path, group in songs.items():
        if path.resolve() in others:  # it has the melody of a song, and is none itself
            continue
        of_file = sidecars.caption(path) or tables.by_name.get(names[path])
        melody = melodies.of(path) or tables.melodies.get(names[path])
        for song in group:
            text = of_file if song.name == names[path] else tables.by_name.get(song.name) or of_file
            song = replace(song, caption=text)
            captioned.append(with_melody(song, melody) if melody and columns.with_melodies else song)
    notes = [] if listing.is_single_song else melodies.notes()
    return Collection(captioned, [*_track_notes(tracks), *tables.notes, *sidecars.notes(), *notes])


def _songs_in(path: Path, names: dict[Path, str], tracks: Tracks, columns: Columns) -> list[Song]:
    """The song of a file, or its tracks."""
    name, place = names[path], path.absolute()  # processes that read it may have another working directory
    is_eval = columns.eval_split is not None and name.startswith(f"{columns.eval_split}/")
    song = Song(name, lambda: place, None, EVAL if is_eval else TRAIN, fingerprint_of_file(path))
    taken = set(names.values())
    return [
        replace(
            song,
            name=unused(f"{name}#{track.label}", taken),
            fingerprint=f"{song.fingerprint}-{track.start:.3f}-{track.end or 0:.3f}",
            start=track.start,
            end=track.end,
        )
        for track in tracks.by_file.get(path, [])
    ] or [song]


def _track_notes(tracks: Tracks) -> list[str]:
    lines = []
    if tracks.by_file:
        count = sum(map(len, tracks.by_file.values()))
        lines.append(f"{plural(count, 'track')} in {plural(len(tracks.by_file), 'file')}, each used as a song")
    if tracks.faults:
        lines += [f"{plural(len(tracks.faults), 'list')} of tracks not used:", *(f"  {line}" for line in tracks.faults)]
    return lines
