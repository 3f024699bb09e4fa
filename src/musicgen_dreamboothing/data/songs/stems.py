"""Songs without some of their stems, such as the vocals: separated once and stored in `stems/`."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from accelerate import PartialState

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.audio import Wave
from musicgen_dreamboothing.console import plural, progress_bar
from musicgen_dreamboothing.data.songs.kinds import STEM_FILE, STEMS
from musicgen_dreamboothing.data.songs.melody_files import paired
from musicgen_dreamboothing.data.songs.song import MELODY_FILE, STEMS_FILE, Song
from musicgen_dreamboothing.data.songs.song_audio import INVALID, SongAudio
from musicgen_dreamboothing.files import write_text
from musicgen_dreamboothing.pretrained.separator import Separator, parse_stems, signature

SOUND, DAMAGE, OFFSET, UNFINISHED = ".flac", ".txt", ".offset", ".part"  # files of one song
MELODY_STEMS = ("vocals", "other")  # what Meta took melodies from (Copet et al. 2023, section 3.1)
PROBE_RATE = 44_100  # Hz; any would do
BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} songs [{elapsed}<{remaining}]"


def keep_stems(
    folder: Path,
    songs: list[Song],
    stems: Sequence[str],
    *,
    model: str,
    batch_size: int = 0,
    cache_dir: str | None = None,
    keep_others: bool = False,
) -> list[Song]:
    """The same songs, with only some of their stems.

    The model is loaded only where a song has to be separated, and no song is in memory as a whole. Under `accelerate
    launch` the processes share the songs. A song that can't be decoded stays as it is: cutting reports why.

    Args:
        folder: the prepared folder.
        songs: what to separate.
        stems: what to keep, as the separator names them.
        model: of demucs: a published name, or a folder.
        batch_size: segments at once; 0 chooses by the device.
        cache_dir: where downloads from the Hub are kept.
        keep_others: keeps the stems of other songs too: `songs` are a part of a dataset.
    """
    state, made_by = PartialState(), signature(model, cache_dir=cache_dir)
    paths = [folder / STEMS / f"{_key(song, made_by, stems)}{SOUND}" for song in songs]
    (folder / STEMS).mkdir(parents=True, exist_ok=True)
    missing = [(song, path) for song, path in zip(songs, paths, strict=True) if not path.exists()]
    state.wait_for_everyone()  # all have looked before one of them writes
    share = [(song, path) for song, path in missing[state.process_index :: state.num_processes] if _is_readable(song)]
    if share:
        _separate_all(share, stems, Separator(model, device=state.device, batch_size=batch_size, cache_dir=cache_dir))
    state.wait_for_everyone()
    if not keep_others:
        delete_other_stems(folder, {path.stem for path in paths})
    return [_separated_song(song, path) if path.exists() else song for song, path in zip(songs, paths, strict=True)]


def with_melody_stems(
    folder: Path, songs: list[Song], mixes: list[Song], kept: Sequence[str] | None, **separation: Any
) -> list[Song]:
    """The songs with stems for their melodies: of the recording that has the melody already, or else of their mix.

    Args:
        folder: the prepared folder.
        songs: what clips are cut from.
        mixes: the same songs as they were before `keep_stems`.
        kept: their stems after it; None for all. A melody has none that the songs lack.
        separation: model, batch_size and cache_dir, as of `keep_stems`.
    """
    stems = [stem for stem in MELODY_STEMS if kept is None or stem in kept]
    has_other = any(song.melody is not None for song in songs)
    if not has_other and (not stems or set(stems) == set(kept or ())):
        return songs  # they are their own melodies
    sources = [song.melody or mix for song, mix in zip(songs, mixes, strict=True)]
    separated = keep_stems(folder, sources, MELODY_STEMS if has_other else stems, keep_others=True, **separation)
    return [
        replace(paired(song, melody), melody_column=MELODY_FILE if song.melody is not None else STEMS_FILE)
        for song, melody in zip(songs, separated, strict=True)
    ]


def _is_readable(song: Song) -> bool:
    """Whether decoding begins well: the model is not loaded for a broken song, whose stems are missing at every run."""
    part: dict[str, Any] = {"start": song.start, "end": song.end, "block_seconds": 1.0}
    try:
        next(audio.stream(song.read(), PROBE_RATE, on_invalid=lambda *span: None, **part))
    except audio.AudioError:
        return False
    return True


def _separate_all(share: list[tuple[Song, Path]], stems: Sequence[str], separator: Separator) -> None:
    chosen = parse_stems(stems, separator.stems)
    if chosen == separator.stems:  # all: songs stay as they are
        return
    quiet = not PartialState().is_main_process
    with progress_bar(total=len(share), desc="separating", bar_format=BAR, disable=quiet) as bar:
        for song, path in share:
            _separate(song, path, separator, chosen, bar)


def _separate(song: Song, path: Path, separator: Separator, stems: Sequence[str], bar: Any) -> None:
    """Writes the chosen stems of one song."""
    before = bar.n

    def show_progress(share: float) -> None:
        bar.update(before + share - bar.n)

    temporary = path.with_suffix(UNFINISHED)
    try:
        sound = SongAudio(song, separator.rate)
        _write(temporary, separator.keep(partial(_within_full_scale, sound), stems, show_progress), separator.rate)
        damage = [sound.damage] if sound.damage else []
        if sound.invalid:
            damage.append(f"{song.name}: silence at {plural(len(sound.invalid), 'place')} with {INVALID}")
        if damage:
            write_text(path.with_suffix(DAMAGE), "; ".join(damage))
        if offset := sound.levels.offset_share:  # stems are made without it
            write_text(path.with_suffix(OFFSET), str(offset))
        temporary.replace(path)
    except audio.AudioError as error:
        if isinstance(error, audio.AudioWriteError):  # a full disk; cutting reports what is wrong with the song
            raise
    finally:
        temporary.unlink(missing_ok=True)
    show_progress(1.0)


def _within_full_scale(sound: SongAudio) -> Iterator[Wave]:
    """The mix; that of a float file on another scale, which 16 bits could not hold, with a peak of 1."""
    return (wave / np.float32(sound.levels.full_scale) for wave in sound.waves())


def _write(path: Path, blocks: Iterator[Wave], rate: int) -> None:
    """As `audio.write`, block by block."""
    first = next(blocks)  # before there is a file: here decoding begins
    try:
        with path.open("wb", buffering=0) as file:  # with a buffer, a seek could fail for what was written before
            output = _CheckedFile(file)
            with soundfile.SoundFile(output, "w", rate, len(first), "PCM_16", format="FLAC") as flac:
                for block in chain([first], blocks):
                    flac.write(np.clip(block, -1, 1).T)
                    output.check()
            output.check()
    except OSError as error:
        raise audio.AudioWriteError(f"{path}: cannot be written ({error.strerror})") from error


class _CheckedFile:
    """A file to write to. It stores errors of the system until `check`, as libsndfile would hide them."""

    def __init__(self, file: io.FileIO) -> None:
        self._file, self._error = file, list[OSError]()
        self.seek, self.tell = file.seek, file.tell

    def write(self, content: bytes) -> int:
        rest = memoryview(content)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._error.append(error)
        return len(content)

    def check(self) -> None:
        if self._error:
            raise self._error[0]


def stems_in_use(songs: list[Song]) -> set[str]:
    """Names of the files in `stems/` that songs, and what has their melodies, are read from."""
    return {
        Path(str(one.read())).stem for song in songs for one in (song, song.melody) if one is not None and one.original
    }


def delete_other_stems(folder: Path, current: set[str]) -> None:
    """Deletes files of songs that are gone or were separated again, and what a killed run left; others stay.

    Only the main process does.
    """
    if not PartialState().is_main_process or not (folder / STEMS).is_dir():
        return
    for path in (folder / STEMS).iterdir():
        is_ours = path.suffix in (SOUND, DAMAGE, OFFSET, UNFINISHED) and STEM_FILE.fullmatch(f"{path.stem}{SOUND}")
        if is_ours and (path.suffix == UNFINISHED or path.stem not in current):
            path.unlink()


def _key(song: Song, made_by: str, stems: Sequence[str]) -> str:
    """A file name that changes with the audio; the fingerprint of a track includes its start and end."""
    parts = "\0".join([song.name, song.fingerprint, made_by, *sorted(set(stems))])
    return hashlib.blake2b(parts.encode(), digest_size=12).hexdigest()


def _separated_song(song: Song, path: Path) -> Song:
    place, damage, offset = path.absolute(), path.with_suffix(DAMAGE), path.with_suffix(OFFSET)
    return replace(
        song,
        read=lambda: place,
        fingerprint=path.stem,
        start=0.0,
        end=None,
        original=song.read,
        damage=damage.read_text(encoding="utf-8") if damage.exists() else None,
        offset=float(offset.read_text(encoding="utf-8")) if offset.exists() else 0.0,
    )
