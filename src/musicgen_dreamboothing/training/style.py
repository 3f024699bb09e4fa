"""The distance of a model in training to its songs, for `--metric_for_best_model style`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from accelerate import PartialState

from musicgen_dreamboothing.arguments import TrainArguments
from musicgen_dreamboothing.console import UserError, log
from musicgen_dreamboothing.data.captions.captions import key_phrase
from musicgen_dreamboothing.data.tokens.tables import Tables
from musicgen_dreamboothing.device import is_out_of_memory, release_memory
from musicgen_dreamboothing.evaluation.metrics.embedding import Sounds, load_embedder
from musicgen_dreamboothing.evaluation.metrics.statistics import TooFewError
from musicgen_dreamboothing.evaluation.metrics.style import style_distance
from musicgen_dreamboothing.evaluation.references import Excerpts, excerpts
from musicgen_dreamboothing.model.checkpoint import Checkpoint, load_codec
from musicgen_dreamboothing.model.codec import decode_clip
from musicgen_dreamboothing.training.samples import Sampler

CLIPS, EXCERPTS = 8, 32
WORST = float("inf")  # never the best evaluation, nor better than another one


def _songs(options: TrainArguments, checkpoint: Checkpoint, tables: Tables, seconds: float) -> Excerpts:
    loaded = load_codec(checkpoint, options.device)
    decode = partial(decode_clip, loaded, checkpoint=checkpoint)
    return excerpts(decode, checkpoint, tables.train, seconds=seconds, most=EXCERPTS, seed=options.seed)


def style_meter(
    options: TrainArguments, checkpoint: Checkpoint, tables: Tables, sampler: Sampler
) -> Callable[[Any], float]:
    """Gives a function of the model: the style distance of a few clips of the key-word to the songs.

    Prompts, seeds and songs are the same at every call; the model is left as it was. The embedder stays on the CPU,
    where a training on a GPU leaves room for it. Only the main process measures, and only there anything is loaded.

    Raises:
        UserError: there is no key-word to play.
    """
    phrase = key_phrase(options.instance_prompt, options.class_prompt)
    prompts = sampler.prompts or ([phrase] if phrase else [])
    if not prompts:
        raise UserError("--metric_for_best_model style plays the key-word: give --instance_prompt or --sample_prompts")
    if not PartialState().is_main_process:
        return lambda model: WORST
    seconds = min(options.sample_seconds, max(tables.train["seconds"]))
    distance = _distance_to_songs(options, checkpoint, tables, seconds)

    def measure(model: Any) -> float:
        try:
            clips = sampler.make(model, prompts, -(-CLIPS // len(prompts)), seconds)
            return distance([(clip.wave, clip.sampling_rate) for clip in clips])
        except (UserError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                raise
            reason = error if isinstance(error, UserError) else "no memory to play; try a shorter --sample_seconds"
            log(f"the distance to your songs was not measured, which counts as no better: {reason}")
            release_memory()
            return WORST

    return measure


def _distance_to_songs(
    options: TrainArguments, checkpoint: Checkpoint, tables: Tables, seconds: float
) -> Callable[[Sounds], float]:
    songs = _songs(options, checkpoint, tables, seconds)
    release_memory()  # the codec's
    embedder = load_embedder(
        options.embedder or options.clap_model_name_or_path,
        songs.waves,
        is_chosen=options.embedder is not None,
        cache_dir=options.cache_dir,
        token=options.token,
        trust_remote_code=options.trust_remote_code,
        device=torch.device("cpu"),
    )
    reference = embedder.embed(songs.waves)
    names = songs.songs if len(set(songs.songs)) > 1 else None
    try:
        style_distance(reference, reference, song_names=names)
    except TooFewError as error:
        raise UserError(f"--metric_for_best_model style needs more songs: {error}") from error
    return lambda waves: style_distance(embedder.embed(waves), reference, song_names=names)
