"""Songs without some of their stems, such as the vocals: separated once, and kept in `stems/` for every later run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from accelerate import PartialState
from tqdm.auto import tqdm

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.console import say
from musicgen_dreamboothing.data.song import Song
from musicgen_dreamboothing.model.separator import Separator, parse_stems

STEMS = "stems"
SUFFIX = ".flac"


def keep_stems(
    folder: Path,
    songs: list[Song],
    stems: Sequence[str],
    *,
    model: str,
    batch_size: int = 0,
    cache_dir: str | None = None,
) -> list[Song]:
    """The same songs, of which only some stems are heard.

    Under `accelerate launch` the processes share the songs. A song that can't be decoded stays as it is: cutting will
    say why.

    Args:
        folder: the prepared folder.
        songs: what to separate.
        stems: what to keep, as the separator names them.
        model: of demucs: a published name, or a folder.
        batch_size: segments at once; 0 chooses by the device.
        cache_dir: where downloads from the Hub are kept.

    Raises:
        UserError: demucs or the model can't be had, or it has no such stem.
    """
    state = PartialState()
    separator = Separator(model, device=state.device, batch_size=batch_size, cache_dir=cache_dir)
    kept = parse_stems(stems, separator.stems)
    if kept == separator.stems:
        return songs
    paths = [folder / STEMS / f"{_key(song, separator.signature, kept)}{SUFFIX}" for song in songs]
    (folder / STEMS).mkdir(parents=True, exist_ok=True)
    missing = [(song, path) for song, path in zip(songs, paths, strict=True) if not path.exists()]
    state.wait_for_everyone()  # all have looked before one of them writes
    share = missing[state.process_index :: state.num_processes]
    with tqdm(total=len(share), unit="song", desc="separating", disable=not (share and state.is_main_process)) as bar:
        for song, path in share:
            _separate(song, path, separator, kept, bar)
    state.wait_for_everyone()
    if state.is_main_process:
        for path in set((folder / STEMS).glob(f"*{SUFFIX}")) - set(paths):
            path.unlink()
    return [_kept_song(song, path) if path.exists() else song for song, path in zip(songs, paths, strict=True)]


def _separate(song: Song, path: Path, separator: Separator, stems: Sequence[str], bar: tqdm) -> None:
    """Writes the kept stems of one song; the bar moves by what is done of it."""
    before = bar.n
    try:
        wave = audio.decode(song.read(), separator.rate, name=song.name, on_damage=say)
    except audio.AudioError:
        bar.update(1)
        return

    def tell(share: float) -> None:
        bar.update(before + share - bar.n)

    audio.write(path, separator.keep(wave, separator.rate, stems, tell), separator.rate)
    bar.update(before + 1 - bar.n)


def _key(song: Song, signature: str, stems: Sequence[str]) -> str:
    """A file name that changes whenever the sound would."""
    said = "\0".join([song.name, song.fingerprint, signature, *stems])
    return hashlib.blake2b(said.encode(), digest_size=12).hexdigest()


def _kept_song(song: Song, path: Path) -> Song:
    place = path.absolute()
    return replace(song, read=lambda: place, fingerprint=path.stem)
