"""Clips that both models generate with melodies of songs: does the fine-tuned model still follow them?"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from musicgen_dreamboothing.audio import Wave
from musicgen_dreamboothing.data.run_record import RunRecord
from musicgen_dreamboothing.data.tokens.melodies import NONE, Melodies, read_melodies
from musicgen_dreamboothing.data.tokens.split import MELODY
from musicgen_dreamboothing.data.tokens.tables import Tables
from musicgen_dreamboothing.evaluation.clips import ClipPlan, generate_files, load_waves
from musicgen_dreamboothing.evaluation.references import spread_over_songs
from musicgen_dreamboothing.generation.generator import Generator
from musicgen_dreamboothing.generation.requests import GenerationRequest
from musicgen_dreamboothing.model.checkpoint import Checkpoint
from musicgen_dreamboothing.model.chroma import chroma_classes

MELODIES = 8  # of as many songs as there are

Classes = NDArray[np.uint8]
Decode = Callable[[torch.Tensor], Wave]  # codes [K, T] to a wave [C, S]


@dataclass(frozen=True)
class AskedMelody:
    """A melody `[T]` with the caption and the name of its song."""

    caption: str
    song: str
    classes: Classes


@dataclass(frozen=True)
class MelodyClips:
    """Pitch classes of the clips of both models, and the melody of each, in one order."""

    asked: list[AskedMelody]
    base: list[Classes]
    tuned: list[Classes]


def melodies_of_run(record: RunRecord, prepared: Path, checkpoint: Checkpoint) -> Melodies | None:
    """The melodies that a run was trained with; None for one without."""
    if record.options.get("melody", NONE) == NONE:
        return None
    return read_melodies(prepared, checkpoint)


def asked_melodies(
    tables: Tables,
    melodies: Melodies | None,
    checkpoint: Checkpoint,
    decode: Decode,
    seconds: float,
    most: int = MELODIES,
) -> list[AskedMelody]:
    """Melodies of held-out songs, or of those that were trained on where fewer than two were held out.

    Args:
        tables: clips of the run.
        melodies: that it was trained with; without, they are those of the clips as the codec decodes them.
        checkpoint: the base.
        decode: codes to a wave.
        seconds: length of a melody, at most.
        most: number of melodies, which are spread over the songs.
    """
    clips = tables.held_out if len(set(tables.held_out["source"])) > 1 else tables.train
    frames = max(1, round(seconds * checkpoint.frame_rate))
    chosen = spread_over_songs(list(range(len(clips))), list(clips["source"]), most)
    asked = []
    for row in (clips[number] for number in chosen):
        codes = np.asarray(row["codes"], np.int64)
        if melodies is not None and row[MELODY]:
            classes = melodies.part([(row[MELODY], codes.shape[1])], 0, min(frames, codes.shape[1]))
        elif melodies is not None:
            continue  # the run knew none of this clip
        else:
            wave = torch.from_numpy(decode(torch.from_numpy(codes[:, :frames])))
            classes = chroma_classes(wave, checkpoint.sampling_rate).numpy()
        asked.append(AskedMelody(str(row["text"]), str(row["source"]), classes))
    return asked


def generate_melody_clips(
    generator: Generator,
    folder: Path,
    asked: Sequence[AskedMelody],
    plan: ClipPlan,
    weights: str | None,
    batch_size: int | None,
) -> list[Classes]:
    """The pitch classes of a clip for each melody; a second call generates none again.

    Args:
        generator: of one of the models.
        folder: for the clips.
        asked: the melodies.
        plan: length, seed and sampling.
        weights: a fingerprint of the model.
        batch_size: clips at once; None for as many as memory holds.
    """
    if not asked:
        return []
    requests = {
        f"{number:02d}.wav": GenerationRequest(one.caption, number, melody=one.classes)
        for number, one in enumerate(asked)
    }
    hasher = hashlib.sha256()
    for one in asked:
        hasher.update(one.caption.encode() + one.classes.tobytes())
    generate_files(generator, folder, requests, plan, weights, batch_size, melodies=hasher.hexdigest()[:16])
    waves = load_waves(folder, list(requests), generator.checkpoint.sampling_rate)
    return [chroma_classes(torch.from_numpy(wave), generator.checkpoint.sampling_rate).numpy() for wave in waves]
