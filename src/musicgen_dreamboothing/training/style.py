"""The distance of a model in training to its songs, for `--metric_for_best_model style`.

It is the `style_distance` of the report: the same prompts, takes, seeds, excerpts of songs and embedding. With fewer
takes it ranked the checkpoints of the demo otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from accelerate import PartialState

from musicgen_dreamboothing.arguments import EvaluateArguments, TrainArguments
from musicgen_dreamboothing.console import UserError, log
from musicgen_dreamboothing.data.captions.captions import key_phrase
from musicgen_dreamboothing.data.tokens.tables import Tables
from musicgen_dreamboothing.device import is_out_of_memory, release_memory
from musicgen_dreamboothing.evaluation.metrics.embedding import load_embedder
from musicgen_dreamboothing.evaluation.metrics.statistics import TooFewError
from musicgen_dreamboothing.evaluation.metrics.style import style_distance
from musicgen_dreamboothing.evaluation.plan import style_prompts
from musicgen_dreamboothing.evaluation.references import Excerpts, decode_songs, excerpt_spans
from musicgen_dreamboothing.generation.requests import GeneratedClip
from musicgen_dreamboothing.model.checkpoint import Checkpoint, load_codec
from musicgen_dreamboothing.model.codec import decode_clip
from musicgen_dreamboothing.training.samples import Sampler

WORST = float("inf")  # never the best evaluation, nor better than another one


def style_meter(
    options: TrainArguments, checkpoint: Checkpoint, tables: Tables, sampler: Sampler
) -> Callable[[Any], float]:
    """Gives a function of the model: the style distance of a few clips to the songs.

    Prompts, seeds and songs are the same at every call; the model is left as it was. The embedder stays on the CPU,
    where a training on a GPU leaves room for it. Only the main process measures, and only there anything is loaded.

    Raises:
        UserError: there is only one excerpt of the songs.
    """
    if not PartialState().is_main_process:
        return lambda model: WORST
    report = EvaluateArguments()
    prompts = style_prompts(key_phrase(options.instance_prompt, options.class_prompt), tables)
    seconds = min(options.sample_seconds, report.seconds, max(tables.train["seconds"]))
    distance = _distance_to_songs(options, _songs(options, checkpoint, tables, seconds))

    def measure(model: Any) -> float:
        try:
            return distance(sampler.make(model, prompts, report.variations, seconds, report.seed))
        except (UserError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                raise
            reason = error if isinstance(error, UserError) else "no memory to play; try a shorter --sample_seconds"
            log(f"the distance to your songs was not measured, which counts as no better: {reason}")
            release_memory()
            return WORST

    return measure


def _songs(options: TrainArguments, checkpoint: Checkpoint, tables: Tables, seconds: float) -> Excerpts:
    """The report's excerpts of all songs, those that are trained on and those that are held out."""
    report = EvaluateArguments()
    decode = partial(decode_clip, load_codec(checkpoint, options.device), checkpoint=checkpoint)
    sets = []
    for clips in (tables.train, tables.held_out):
        spans = excerpt_spans(checkpoint, clips, seconds=seconds, most=report.song_excerpts, seed=report.seed)
        sets.append(decode_songs(decode, checkpoint, clips, spans)[0])
    return Excerpts([wave for one in sets for wave in one.waves], [song for one in sets for song in one.songs])


def _distance_to_songs(options: TrainArguments, songs: Excerpts) -> Callable[[Sequence[GeneratedClip]], float]:
    release_memory()  # the codec's
    embedder = load_embedder(
        options.embedder or options.clap_model_name_or_path,
        is_chosen=options.embedder is not None,
        cache_dir=options.cache_dir,
        token=options.token,
        trust_remote_code=options.trust_remote_code,
        device=torch.device("cpu"),
    )
    reference = embedder.embed(songs.waves)
    try:
        style_distance(reference, reference, song_names=songs.songs)
    except TooFewError as error:
        raise UserError(
            f"--metric_for_best_model style can't be measured: {error}; add songs, or choose the metric loss"
        ) from error

    def distance(clips: Sequence[GeneratedClip]) -> float:
        vectors = embedder.embed([(clip.wave, clip.sampling_rate) for clip in clips])
        return style_distance(vectors, reference, clip_groups=[clip.prompt for clip in clips], song_names=songs.songs)

    return distance
