"""The Trainer of a run from its settings: model, datasets, collator and callbacks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from transformers import EarlyStoppingCallback, IntervalStrategy, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from musicgen_dreamboothing.console import is_verbose
from musicgen_dreamboothing.generation.guidance import Sampling
from musicgen_dreamboothing.model.checkpoint import load_tokenizer
from musicgen_dreamboothing.model.text import tokenize
from musicgen_dreamboothing.training.collator import Collator
from musicgen_dreamboothing.training.dataset import ClipDataset, Drawing, PairedDataset
from musicgen_dreamboothing.training.model import trainable_model
from musicgen_dreamboothing.training.progress import BarAndLines, Lines
from musicgen_dreamboothing.training.samples import FOLDER as SAMPLES
from musicgen_dreamboothing.training.samples import Sampler, add_samples, sample_prompts_of
from musicgen_dreamboothing.training.settings import Settings
from musicgen_dreamboothing.training.trackers import guard_trackers
from musicgen_dreamboothing.training.trainer import CodebookTrainer


def make_trainer(settings: Settings) -> CodebookTrainer:
    """Loads the model and makes its Trainer, with samples, style distance and early stopping where asked for."""
    options, tables, checkpoint = settings.options, settings.tables, settings.checkpoint
    held_out = None
    if settings.evaluates:
        held_out = ClipDataset(tables.held_out, tables.captions, checkpoint, Drawing(), tables.melodies)
    trainer = CodebookTrainer(
        trainable_model(settings),
        settings.trainer_arguments(),
        data_collator=_collator(settings),
        train_dataset=_train_set(settings),
        eval_dataset=held_out,
    )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    guard_trackers(trainer.callback_handler.callbacks)
    trainer.add_callback(Lines if options.disable_tqdm or not is_verbose() else BarAndLines)
    if held_out is not None and options.eval_strategy != IntervalStrategy.EPOCH:
        trainer.add_callback(_EvaluateAtEnd)
    _add_samples(trainer, settings)
    if settings.patience:
        trainer.add_callback(EarlyStoppingCallback(settings.patience))
    return trainer


def _train_set(settings: Settings) -> Any:
    """Crops of the songs, each with one of the class where there is prior preservation."""
    options, tables, checkpoint = settings.options, settings.tables, settings.checkpoint
    frames = round(options.crop_seconds * checkpoint.frame_rate) if options.crop_seconds else None
    seed = options.seed if options.data_seed is None else options.data_seed
    drawing = Drawing(
        frames,
        options.random_crop,
        vary_captions=True,
        caption_dropout=options.caption_dropout,
        seed=seed,
        continuation_fraction=options.continuation_fraction,
    )
    with_dropout = replace(
        drawing,
        word_dropout=options.word_dropout,
        key_phrase=settings.key_phrase,
        melody_dropout=options.melody_dropout,
    )
    songs = ClipDataset(tables.train, tables.captions, checkpoint, with_dropout, tables.melodies)
    if settings.prior is None:
        return songs
    return PairedDataset(songs, ClipDataset(settings.prior.train, settings.prior.captions, checkpoint, drawing))


def _collator(settings: Settings) -> Collator:
    pad = settings.checkpoint.pad_token_id
    if settings.options.freeze_text_encoder:
        return Collator(pad)
    tokenizer = load_tokenizer(settings.checkpoint)
    return Collator(pad, lambda captions: tokenize(tokenizer, captions))


def _add_samples(trainer: CodebookTrainer, settings: Settings) -> None:
    """Samples during the training, and the distance of such clips to the songs as a metric."""
    options = settings.options
    prompts = sample_prompts_of(
        options.sample_prompts,
        add_audio_samples_to_wandb=options.add_audio_samples_to_wandb,
        num_samples_to_generate=options.num_samples_to_generate,
        full_generation_sample_text=options.full_generation_sample_text,
        report_to=options.report_to,
        held_out_captions=list(settings.tables.held_out["text"]),
    )
    sampling, folder = Sampling(options.guidance_scale), settings.folder / SAMPLES
    seconds, seed = options.sample_seconds, options.seed
    sampler = Sampler(settings.checkpoint, prompts, seconds, seed, folder, sampling, trainer.stop)
    if prompts:
        add_samples(trainer, sampler, every=options.sample_steps, at_start=options.sample_at_start)
    if options.measures_style:
        from musicgen_dreamboothing.training.style import style_meter

        trainer.style_of = style_meter(options, settings.checkpoint, settings.tables, sampler)


class _EvaluateAtEnd(TrainerCallback):
    """Evaluates after the last update: afterwards trackers would show it as a run of its own."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_evaluate = True
