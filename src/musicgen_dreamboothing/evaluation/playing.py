"""The same prompts and seeds on the base and on the fine-tuned model, as files that are not made a second time."""

from __future__ import annotations

import json
import re
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.audio import Wave
from musicgen_dreamboothing.console import log, plural
from musicgen_dreamboothing.files import write_array, write_json
from musicgen_dreamboothing.generation.decoding import Sampling
from musicgen_dreamboothing.generation.generator import Generator

NOTE, MAX_SLUG = "made.json", 32


@dataclass(frozen=True)
class Played:
    """A generated clip: its file, its codes `[K, T]`, and its wave `[C, S]` at `rate`."""

    prompt: str
    kind: str
    variation: int
    file: Path
    codes: NDArray[np.int64]
    wave: Wave
    rate: int


@dataclass(frozen=True)
class Playlist:
    """What is played, the same on both models.

    Attributes:
        prompts: each with its kind, `style` or `neutral`.
        variations: clips of each.
        seconds: length of a clip.
        seed: with prompt and variation it fixes a clip.
        sampling: guidance, temperature, top-k and top-p.
    """

    prompts: tuple[tuple[str, str], ...]
    variations: int
    seconds: float
    seed: int
    sampling: Sampling = Sampling()

    @property
    def clips(self) -> list[tuple[str, int]]:
        """Prompt and variation of each clip, in order."""
        return [(prompt, variation) for prompt, _ in self.prompts for variation in range(self.variations)]


def play(generator: Generator, folder: Path, playlist: Playlist, weights: str | None, batch_size: int | None) -> None:
    """Makes the clips that `folder` lacks: a sound file and its codes for each, whole or not there.

    Args:
        weights: a fingerprint of the model; clips of other weights, or made in another way, are thrown away.
        batch_size: clips made at once; None makes as many as memory holds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made_with: dict[str, Any] = {
        "weights": weights,
        "seconds": playlist.seconds,
        "seed": playlist.seed,
        "sampling": asdict(playlist.sampling),
        "dtype": str(generator.dtype),
        "quantization": generator.quantization,
    }
    note = folder / NOTE
    if not note.is_file() or json.loads(note.read_text(encoding="utf-8")) != made_with:
        for path in (*folder.glob("*.wav"), *folder.glob("*.npy")):
            path.unlink()
        write_json(note, made_with)
    missing = [clip for clip in playlist.clips if not _is_there(folder, *clip)]
    if not missing:
        return
    log(f"{folder.name}: {plural(len(missing), 'clip')} of {playlist.seconds:g} s")
    drawn = generator.codes(
        missing, seconds=playlist.seconds, seed=playlist.seed, sampling=playlist.sampling, batch_size=batch_size
    )
    for (prompt, variation), codes in drawn:
        path = folder / _name(prompt, variation)
        audio.write(path, generator.decode(codes), generator.checkpoint.sampling_rate)
        write_array(path.with_suffix(".npy"), codes.numpy().astype(np.uint16))


def listen(folder: Path, playlist: Playlist, rate: int) -> list[Played]:
    """The clips that `play` made, in the order of the list, at `rate` Hz."""
    kinds = dict(playlist.prompts)
    paths = {clip: folder / _name(*clip) for clip in playlist.clips}
    return [
        Played(prompt, kinds[prompt], number, path, _codes(path), audio.decode(path, rate), rate)
        for (prompt, number), path in paths.items()
    ]


def _codes(path: Path) -> NDArray[np.int64]:
    return np.asarray(np.load(path.with_suffix(".npy")), np.int64)


def _name(prompt: str, variation: int) -> str:
    """The prompt's words, and its checksum where words alone would be those of another."""
    slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:MAX_SLUG].strip("-")
    return f"{slug}-{zlib.crc32(prompt.encode()):08x}_{variation}.wav"


def _is_there(folder: Path, prompt: str, variation: int) -> bool:
    """The codes are written last, and either file may have been deleted."""
    path = folder / _name(prompt, variation)
    return path.is_file() and path.with_suffix(".npy").is_file()
