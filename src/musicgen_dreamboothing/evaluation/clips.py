"""Clips of the same prompts and seeds by the base and the fine-tuned model, as files that are generated once."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.audio import Wave
from musicgen_dreamboothing.console import log, plural
from musicgen_dreamboothing.files import write_array, write_json
from musicgen_dreamboothing.generation.generator import Generator
from musicgen_dreamboothing.generation.guidance import Sampling
from musicgen_dreamboothing.generation.requests import GenerationRequest

NOTE, MAX_SLUG = "made.json", 32


@dataclass(frozen=True)
class EvaluatedClip:
    """A generated clip: its file, its codes `[K, T]`, and its wave `[C, S]` at `rate`."""

    prompt: str
    kind: str
    variation: int
    file: Path
    codes: NDArray[np.int64]
    wave: Wave
    rate: int


@dataclass(frozen=True)
class ClipPlan:
    """What both models generate.

    Attributes:
        prompts: each with its kind, `style` or `neutral`.
        variations: clips of each.
        seconds: length of a clip.
        seed: fixes a clip together with its prompt and variation.
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


def generate_clips(
    generator: Generator, folder: Path, plan: ClipPlan, weights: str | None, batch_size: int | None
) -> None:
    """As `generate_files`, for the clips of a plan."""
    requests = {_name(*clip): GenerationRequest(*clip) for clip in plan.clips}
    generate_files(generator, folder, requests, plan, weights, batch_size)


def generate_files(
    generator: Generator,
    folder: Path,
    requests: Mapping[str, GenerationRequest],
    plan: ClipPlan,
    weights: str | None,
    batch_size: int | None,
    **others: Any,
) -> None:
    """Generates the clips that `folder` lacks: a sound file and its codes for each.

    Args:
        generator: of one of the models.
        folder: for the files.
        requests: what to generate, by the names of sound files.
        plan: length, seed and sampling.
        weights: a fingerprint of the model; clips of other weights or settings are deleted.
        batch_size: clips generated at once; None for as many as memory holds.
        others: JSON values that the clips depend on besides.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made_with: dict[str, Any] = {
        "weights": weights,
        "seconds": plan.seconds,
        "seed": plan.seed,
        "sampling": asdict(plan.sampling),
        "dtype": str(generator.dtype),
        "quantization": generator.quantization,
        **others,
    }
    note = folder / NOTE
    if not note.is_file() or json.loads(note.read_text(encoding="utf-8")) != made_with:
        for path in (*folder.glob("*.wav"), *folder.glob("*.npy")):
            path.unlink()
        write_json(note, made_with)
    names = {id(request): name for name, request in requests.items() if not _is_complete(folder / name)}
    missing = [request for request in requests.values() if id(request) in names]
    if not missing:
        return
    log(f"{folder.name}: {plural(len(missing), 'clip')} of {plan.seconds:g} s")
    generated = generator.codes(
        missing, seconds=plan.seconds, seed=plan.seed, sampling=plan.sampling, batch_size=batch_size
    )
    for request, codes in generated:
        path = folder / names[id(request)]
        audio.write(path, generator.decode(codes), generator.checkpoint.sampling_rate)
        write_array(path.with_suffix(".npy"), codes.numpy().astype(np.uint16))


def load_waves(folder: Path, names: Sequence[str], rate: int) -> list[Wave]:
    """Sound files that `generate_files` wrote, at `rate` Hz."""
    return [audio.decode(folder / name, rate) for name in names]


def load_clips(folder: Path, plan: ClipPlan, rate: int) -> list[EvaluatedClip]:
    """The clips that `generate_clips` wrote, in the order of the plan, at `rate` Hz."""
    clips = []
    for prompt, kind in plan.prompts:
        for variation in range(plan.variations):
            path = folder / _name(prompt, variation)
            codes = np.asarray(np.load(path.with_suffix(".npy")), np.int64)
            clips.append(EvaluatedClip(prompt, kind, variation, path, codes, audio.decode(path, rate), rate))
    return clips


def _name(prompt: str, variation: int) -> str:
    """The prompt's words and its checksum, as two prompts may begin alike."""
    slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:MAX_SLUG].strip("-")
    return f"{slug}-{zlib.crc32(prompt.encode()):08x}_{variation}.wav"


def _is_complete(path: Path) -> bool:
    """Whether both the sound and its codes, which are written last, are there."""
    return path.is_file() and path.with_suffix(".npy").is_file()
