"""Everything that an evaluation compares: clips of both models, excerpts of songs, losses, and their embeddings."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import datasets
import numpy as np
from numpy.typing import NDArray

from musicgen_dreamboothing.arguments import EvaluateArguments
from musicgen_dreamboothing.data.run_record import RunRecord
from musicgen_dreamboothing.data.tokens.tables import Tables
from musicgen_dreamboothing.device import parse_device, release_memory
from musicgen_dreamboothing.evaluation.clips import ClipPlan, EvaluatedClip, generate_clips, load_clips
from musicgen_dreamboothing.evaluation.melodies import (
    MelodyClips,
    asked_melodies,
    generate_melody_clips,
    melodies_of_run,
)
from musicgen_dreamboothing.evaluation.metrics.adherence import Adherence, adherence
from musicgen_dreamboothing.evaluation.metrics.embedding import Embedder, load_embedder
from musicgen_dreamboothing.evaluation.references import (
    Excerpts,
    Spans,
    Spectrogram,
    clip_losses,
    decode_songs,
    excerpt_spans,
    searched_rows,
)
from musicgen_dreamboothing.generation.generator import Generator
from musicgen_dreamboothing.hub import weights_fingerprint
from musicgen_dreamboothing.model.checkpoint import Checkpoint
from musicgen_dreamboothing.model.delay import sides_of

Array = NDArray[np.float64]

BASE, TUNED, MELODY = "base", "tuned", "melody"  # folders of clips


@dataclass(frozen=True)
class Losses:
    """Sums of base and fine-tuned model and the number of steps, all `[N, K]`, and the song of each held-out clip.

    The codebooks of `sides` are interleaved; mono has none.
    """

    base: Array
    tuned: Array
    count: Array
    songs: list[str]
    sides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Vectors:
    """Embeddings of clips and songs, `[N, D]`; `held_out` is None where no song was held out."""

    base: Array
    tuned: Array
    songs: Array
    held_out: Array | None

    @property
    def all_songs(self) -> Array:
        """Of training and held-out songs."""
        return self.songs if self.held_out is None else np.concatenate([self.songs, self.held_out])


@dataclass(frozen=True)
class EvaluationData:
    """What the figures are computed from.

    Attributes:
        base, tuned: clips of the same prompts and seeds in one order.
        songs, held_out: excerpts of the songs, of the same length, through the codec.
        losses: on held-out songs; None where none were held out.
        embedder: of all sounds.
        key_phrase: that style prompts may begin with; empty without one.
        melodies: clips that were asked to follow a melody; None for a base that takes none.
        spectra: of the training clips that are searched for copies by sound, by their row.
    """

    base: list[EvaluatedClip]
    tuned: list[EvaluatedClip]
    songs: Excerpts
    held_out: Excerpts | None
    losses: Losses | None
    embedder: Embedder
    key_phrase: str = ""
    melodies: MelodyClips | None = None
    spectra: dict[int, Spectrogram] = field(default_factory=dict)

    @property
    def song_names(self) -> list[str]:
        """The song of each row of `vectors.all_songs`."""
        return [*self.songs.songs, *(self.held_out.songs if self.held_out else [])]

    def rows(self, kind: str) -> list[int]:
        """Indices of the clips of one kind."""
        return [row for row, clip in enumerate(self.base) if clip.kind == kind]

    def by_prompt(self, kind: str) -> list[list[int]]:
        """Indices of each prompt's clips."""
        groups: dict[str, list[int]] = {}
        for row in self.rows(kind):
            groups.setdefault(self.base[row].prompt, []).append(row)
        return list(groups.values())

    @cached_property
    def vectors(self) -> Vectors:
        """Embeddings of all sounds."""
        embed = self.embedder.embed
        base, tuned = (embed([(clip.wave, clip.rate) for clip in clips]) for clips in (self.base, self.tuned))
        held_out = embed(self.held_out.waves) if self.held_out is not None else None
        return Vectors(base, tuned, embed(self.songs.waves), held_out)

    @cached_property
    def adherence(self) -> tuple[list[Adherence], list[Adherence]]:
        """For each clip of base and fine-tuned model: does it have the tempo and key of its prompt?"""
        base, tuned = (
            [adherence(clip.prompt, clip.wave, clip.rate) for clip in clips] for clips in (self.base, self.tuned)
        )
        return base, tuned


def collect_data(
    options: EvaluateArguments, record: RunRecord, folder: Path, prepared: Path, tables: Tables, plan: ClipPlan
) -> EvaluationData:
    """Generates and loads all that is compared. One model is loaded at a time."""
    base = _generator(options, *base_of(options, record), None)
    checkpoint, has_held_out = base.checkpoint, len(tables.held_out) > 0
    generate_clips(base, folder / BASE, plan, checkpoint.identity, options.batch_size)
    melodies = melodies_of_run(record, prepared, checkpoint)
    losses_before = clip_losses(base, tables.held_out, BASE, melodies) if has_held_out else None
    asked = asked_melodies(tables, melodies, checkpoint, base.decode, plan.seconds) if checkpoint.is_melody else []
    melody_base = generate_melody_clips(
        base, folder / MELODY / BASE, asked, plan, checkpoint.identity, options.batch_size
    )
    searched = searched_rows(tables.train, base.device.type)
    (songs, spectra), (held_out, _) = (
        decode_songs(base.decode, checkpoint, clips, _spans(options, checkpoint, clips, plan), rows)
        for clips, rows in ((tables.train, searched), (tables.held_out, []))
    )
    del base
    release_memory()
    tuned = _generator(options, options.run, None, options.base_model)
    weights = weights_fingerprint(Path(options.run))
    generate_clips(tuned, folder / TUNED, plan, weights, options.batch_size)
    melody_tuned = generate_melody_clips(tuned, folder / MELODY / TUNED, asked, plan, weights, options.batch_size)
    losses = None
    if losses_before is not None:
        nll, count = clip_losses(tuned, tables.held_out, "fine-tuned model", melodies)
        sides = sides_of(checkpoint.audio_channels)
        losses = Losses(losses_before[0], nll, count, list(tables.held_out["source"]), sides)
    del tuned
    release_memory()
    embedder = load_embedder(
        options.embedder or options.clap_model_name_or_path,
        is_chosen=options.embedder is not None,
        cache_dir=options.cache_dir,
        token=options.token,
        trust_remote_code=options.trust_remote_code,
        device=parse_device(options.device),
    )
    before, after = (load_clips(folder / side, plan, checkpoint.sampling_rate) for side in (BASE, TUNED))
    return EvaluationData(
        base=before,
        tuned=after,
        songs=songs,
        held_out=held_out if has_held_out else None,
        losses=losses,
        embedder=embedder,
        key_phrase=record.key_phrase,
        melodies=MelodyClips(asked, melody_base, melody_tuned) if asked else None,
        spectra=dict(zip(searched, spectra, strict=True)),
    )


def _spans(options: EvaluateArguments, checkpoint: Checkpoint, clips: datasets.Dataset, plan: ClipPlan) -> Spans:
    return excerpt_spans(checkpoint, clips, seconds=plan.seconds, most=options.song_excerpts, seed=options.seed)


def base_of(options: EvaluateArguments, record: RunRecord) -> tuple[str, str | None]:
    """Name and revision of the run's base; on the Hub the commit that it was trained on."""
    if options.base_model:
        return options.base_model, None
    return record.base_model, None if Path(record.base_model).is_dir() else record.base_revision


def _generator(options: EvaluateArguments, model: str, revision: str | None, base: str | None) -> Generator:
    return Generator(
        model,
        base_model=base,
        revision=revision,
        cache_dir=options.cache_dir,
        token=options.token,
        device=options.device,
        dtype=options.dtype,
        quantization=options.quantization,
    )
