"""Songs of a folder on disk."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from musicgen_dreamboothing.audio import AUDIO_SUFFIXES
from musicgen_dreamboothing.console import UserError, plural
from musicgen_dreamboothing.data.layout import CLIPS, GENERATED
from musicgen_dreamboothing.data.layout import is_prepared as is_prepared
from musicgen_dreamboothing.data.songs.names import unique_names, unused
from musicgen_dreamboothing.data.songs.scan import Listing, scan
from musicgen_dreamboothing.data.songs.sidecars import Sidecars
from musicgen_dreamboothing.data.songs.song import EVAL, TRAIN, Collection, Columns, Song
from musicgen_dreamboothing.data.songs.tables import captions_of_tables
from musicgen_dreamboothing.data.songs.tracks import CUE, Track, Tracks, find_tracks


def songs_of_folder(folder: Path, columns: Columns) -> Collection:
    """The songs in a folder and below it, with the captions that stand beside them.

    Raises:
        UserError: there is no audio file, or none in the sub-folder that is to be held out.
    """
    return songs_of_listing(scan(folder), columns)


def songs_of_listing(listing: Listing, columns: Columns) -> Collection:
    """The same for a folder that was walked already."""
    if not listing.songs:
        raise UserError(_why_no_songs(listing))
    collection = _collect(listing, find_tracks(listing), columns)
    if columns.eval_split and all(song.split == TRAIN for song in collection.songs):
        folder = listing.root / columns.eval_split
        raise UserError(f"no songs in {folder}; --eval_split_name takes a sub-folder of {listing.root}")
    return Collection(collection.songs, [*listing.notes(), *collection.notes])


def songs_of_file(path: Path, columns: Columns) -> Collection:
    """The song in one file, or its tracks; of a cue sheet, the tracks of its files."""
    listing = Listing(path.parent)
    try:
        names = {name for name in os.listdir(path.parent) if not (path.parent / name).is_dir()}
    except OSError:
        names = {path.name}
    listing.files[path.parent] = names
    if path.suffix.lower() == CUE:
        listing.songs = sorted(song for song in scan(path.parent).songs)
        listing.files[path.parent] = {name for name in names if not name.lower().endswith(CUE)} | {path.name}
        tracks = find_tracks(listing)
        listing.songs = [song for song in listing.songs if song in tracks.by_file]
        if not listing.songs:
            raise UserError("; ".join(tracks.faults) or f"{path} names no file with several tracks")
        return _collect(listing, tracks, columns)
    listing.songs, listing.is_single_song = [path], True
    return _collect(listing, find_tracks(listing), columns)


def _why_no_songs(listing: Listing) -> str:
    known = ", ".join(sorted(suffix.lstrip(".") for suffix in AUDIO_SUFFIXES))
    text = f"no audio files in {listing.root}; songs may be {known}"
    if is_prepared(listing.root):
        return (
            f"no songs in {listing.root}, which is a prepared folder: train takes it as it is; to cut its clips again, "
            f"give {listing.root / CLIPS} and another --output_dir"
        )
    notes = [line.strip() for line in listing.notes()]
    if any("generated clip" in name for name in listing.products):
        notes.append(f"delete {GENERATED} to use generated clips as songs")
    return " - ".join([text, *notes])


def _collect(listing: Listing, tracks: Tracks, columns: Columns) -> Collection:
    """The songs of a listing: whole files, or the tracks of those that hold several."""
    names = unique_names(listing.songs, listing.root)
    songs = {path: _songs_of_file(path, names, tracks, columns) for path in listing.songs}
    every_name = [*names.values(), *(song.name for group in songs.values() for song in group)]
    tables = captions_of_tables(listing, every_name, columns.text)
    sidecars = Sidecars(listing.files)
    captioned = []
    for path, group in songs.items():
        of_file = sidecars.caption(path) or tables.by_name.get(names[path])
        captioned += [
            replace(song, caption=of_file if song.name == names[path] else tables.by_name.get(song.name) or of_file)
            for song in group
        ]
    return Collection(captioned, [*_track_notes(tracks), *tables.notes, *sidecars.notes()])


def _songs_of_file(path: Path, names: dict[Path, str], tracks: Tracks, columns: Columns) -> list[Song]:
    name = names[path]
    is_eval = columns.eval_split is not None and name.startswith(f"{columns.eval_split}/")
    whole = song_of_file(path, name, None, EVAL if is_eval else TRAIN)
    if path not in tracks.by_file:
        return [whole]
    taken = set(names.values())
    return [_song_of_track(whole, track, taken) for track in tracks.by_file[path]]


def _song_of_track(whole: Song, track: Track, taken: set[str]) -> Song:
    return replace(
        whole,
        name=unused(f"{whole.name}#{track.label}", taken),
        fingerprint=f"{whole.fingerprint}-{track.start:.3f}-{track.end or 0:.3f}",
        start=track.start,
        end=track.end,
    )


def _track_notes(tracks: Tracks) -> list[str]:
    lines = []
    if tracks.by_file:
        count = sum(map(len, tracks.by_file.values()))
        lines.append(f"{plural(count, 'track')} in {plural(len(tracks.by_file), 'file')}, each used as a song")
    if tracks.faults:
        lines += [f"{plural(len(tracks.faults), 'list')} of tracks not used:", *(f"  {line}" for line in tracks.faults)]
    return lines


def song_of_file(path: Path, name: str, caption: str | None, split: str) -> Song:
    """One file as a song; its fingerprint is its size and the time of its last change."""
    status, place = path.stat(), path.absolute()  # processes that read it may stand in another folder
    return Song(name, lambda: place, caption, split, f"{status.st_size}-{status.st_mtime_ns}")
