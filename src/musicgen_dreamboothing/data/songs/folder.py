"""Songs of a folder on disk."""

from __future__ import annotations

from pathlib import Path

from musicgen_dreamboothing.audio import AUDIO_SUFFIXES
from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.data.layout import CLIPS, SONGS
from musicgen_dreamboothing.data.songs.sidecars import caption_beside, captions_of_metadata
from musicgen_dreamboothing.data.songs.song import EVAL, TRAIN, Collection, Columns, Song


def holds_songs(folder: Path) -> bool:
    """Whether there is at least one audio file in a folder or below it."""
    return bool(_audio_files(folder))


def songs_of_folder(folder: Path, columns: Columns) -> Collection:
    """The songs in a folder and below it, with the captions that stand beside them.

    Raises:
        UserError: there is no audio file, or none in the sub-folder that is to be held out.
    """
    files = _audio_files(folder)
    if not files:
        known = ", ".join(sorted(suffix.lstrip(".") for suffix in AUDIO_SUFFIXES))
        raise UserError(f"no audio files in {folder}; songs may be {known}")
    captions = captions_of_metadata(folder, columns.text)
    songs = [_song_of_listed_file(path, folder, captions, columns) for path in files]
    if columns.eval_split and all(song.split == TRAIN for song in songs):
        raise UserError(f"no songs in {folder / columns.eval_split}; --eval_split_name takes a sub-folder of {folder}")
    return Collection(songs)


def _audio_files(folder: Path) -> list[Path]:
    """In the order of their names, our own clips and the side files of macOS left out."""
    there = [path for path in folder.rglob("*") if path.is_file() and not _is_our_clip(path, folder)]
    there = [path for path in there if not path.name.startswith("._")]  # what macOS writes beside songs on other disks
    return sorted(path for path in there if path.suffix.lower() in AUDIO_SUFFIXES)


def _is_our_clip(path: Path, folder: Path) -> bool:
    """Whether an earlier `prepare` cut this file: people put their output folders among their songs."""
    return path.parent.name == CLIPS and path.parent != folder and (path.parent.parent / SONGS).exists()


def _song_of_listed_file(path: Path, folder: Path, captions: dict[str, str], columns: Columns) -> Song:
    name = path.relative_to(folder).as_posix()
    is_eval = columns.eval_split is not None and name.startswith(f"{columns.eval_split}/")
    return song_of_file(path, name, caption_beside(path) or captions.get(name), EVAL if is_eval else TRAIN)


def song_of_file(path: Path, name: str, caption: str | None, split: str) -> Song:
    """One file as a song; its fingerprint is its size and the time of its last change."""
    status, place = path.stat(), path.absolute()  # processes that read it may stand in another folder
    return Song(name, lambda: place, caption, split, f"{status.st_size}-{status.st_mtime_ns}")
