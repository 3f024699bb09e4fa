"""`train`: songs or tokens in, a fine-tuned model out."""

from __future__ import annotations

import copy
import shutil
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import EarlyStoppingCallback, IntervalStrategy, TrainerCallback, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from musicgen_dreamboothing.arguments import TrainArguments
from musicgen_dreamboothing.console import UserError, log, plural, quiet_libraries
from musicgen_dreamboothing.data.captions.captions import key_phrase
from musicgen_dreamboothing.data.layout import is_prepared
from musicgen_dreamboothing.data.prepare import Prepared, checkpoint_of, prepare_songs, refresh
from musicgen_dreamboothing.data.run_record import RunRecord, read_record
from musicgen_dreamboothing.data.tokens.tables import Tables, load_tables
from musicgen_dreamboothing.device import (
    release_memory,
    reset_peak_memory,
    return_freed_memory,
)
from musicgen_dreamboothing.files import folder_lock
from musicgen_dreamboothing.generation.decoding import Sampling
from musicgen_dreamboothing.model.adapter import SavedAdapter
from musicgen_dreamboothing.model.checkpoint import Checkpoint, load_tokenizer
from musicgen_dreamboothing.model.text import tokenize
from musicgen_dreamboothing.sharing.licence import licence_notice, licence_of
from musicgen_dreamboothing.sharing.repository import Repository
from musicgen_dreamboothing.sharing.runs import open_repository, upload
from musicgen_dreamboothing.signals import Stopped, signal_number, sigterm_interrupts
from musicgen_dreamboothing.training.batch_split import settle_split
from musicgen_dreamboothing.training.checkpoints import (
    checkpoints_after,
    discard_checkpoints,
    last_checkpoint,
    step_of,
)
from musicgen_dreamboothing.training.checks import check_metric, check_options
from musicgen_dreamboothing.training.collator import Collator
from musicgen_dreamboothing.training.dataset import ClipDataset, Drawing, PairedDataset
from musicgen_dreamboothing.training.final_report import final_report
from musicgen_dreamboothing.training.initial_adapter import check_base, record_of, settle_initial_adapter
from musicgen_dreamboothing.training.longer import LongerSchedule, is_done, planned_updates
from musicgen_dreamboothing.training.model import check_key_word, lora_settings, trainable_model
from musicgen_dreamboothing.training.plan import plan_of
from musicgen_dreamboothing.training.prior import prior_tables
from musicgen_dreamboothing.training.progress import BarAndLines, Lines
from musicgen_dreamboothing.training.record import (
    base_of_run,
    check_same_base,
    check_same_data,
    check_same_run,
    discard_record,
    telling_options,
)
from musicgen_dreamboothing.training.samples import FOLDER as SAMPLES
from musicgen_dreamboothing.training.samples import (
    SampleCallback,
    Sampler,
    add_samples,
    sample_prompts_of,
)
from musicgen_dreamboothing.training.saving import discard_result, save_run
from musicgen_dreamboothing.training.summary import final_evaluation, summary_of, tell
from musicgen_dreamboothing.training.trackers import guard_trackers
from musicgen_dreamboothing.training.trainer import CodebookTrainer


@dataclass(frozen=True)
class TrainResult:
    """A finished run.

    Attributes:
        folder: holds the adapter (or the model), processor, card and `run.json`.
        metrics: the last evaluation on held-out songs, empty where none were held out.
        summary: runtime, speed and peak memory, as in `run.json`.
    """

    folder: Path
    metrics: dict[str, float]
    summary: dict[str, Any]


@quiet_libraries()
def train(options: TrainArguments) -> TrainResult | None:
    """Fine-tunes a base checkpoint; the same call again continues a run that was cut short.

    With `plan` it only says how much memory a step takes, and returns None. Ctrl-C and SIGTERM finish the update at
    hand and save a checkpoint first; in other threads than the main one there is no such thing.

    Raises:
        UserError: anything that a person can mend, before hours are spent where possible.
        Stopped: a KeyboardInterrupt that says where the run stands.
    """
    with sigterm_interrupts():
        return _train(copy.copy(options))  # what is settled in them is not the caller's business


def _train(options: TrainArguments) -> TrainResult | None:
    check_options(options)
    if not options.use_lora:
        log(f"full fine-tune: learning rate {options.learning_rate:g}, weight decay {options.weight_decay:g}")
    initial = settle_initial_adapter(options)
    checkpoint = _base(options, initial)
    check_metric(options, checkpoint)
    if options.plan:
        plan_of(options, checkpoint, lora_settings(options))
        return None
    repository = _open_repository(options, checkpoint)
    folder = Path(str(options.output_dir))
    folder.mkdir(parents=True, exist_ok=True)
    with folder_lock(folder):
        finished, checkpoint = _settle_earlier_run(folder, options, checkpoint)
        result = finished or _run(options, checkpoint, folder, initial)
        release_memory()
        try:
            if repository is not None:  # in the main process
                log(f"uploaded to {upload(folder, repository)}")
            if finished is None:
                final_report(folder, options)
        except KeyboardInterrupt as error:
            raise _stopped_behind(folder, signal_number(error)) from None
    return result


def _stopped_behind(folder: Path, number: int) -> Stopped:
    return Stopped(f"stopped; the run is finished and saved in {folder}", number)


def _base(options: TrainArguments, initial: SavedAdapter | None) -> Checkpoint:
    """The base, which an adapter to begin from has to fit."""
    if initial is None:
        return checkpoint_of(options)
    try:
        checkpoint = checkpoint_of(options)
    except UserError as error:
        if options.model_name_or_path != initial.config.base_model_name_or_path:
            raise
        raise UserError(f"{error}. The adapter {initial.name} names this base; --model_name_or_path wins") from error
    check_base(initial, checkpoint, options)
    return checkpoint


def _run(options: TrainArguments, checkpoint: Checkpoint, folder: Path, initial: SavedAdapter | None) -> TrainResult:
    songs = _prepared_songs(options, checkpoint)
    prepared = songs.folder
    tables = load_tables(
        prepared,
        songs.rows,
        checkpoint,
        eval_fraction=options.eval_fraction,
        seed=options.seed,
        limits=(options.max_train_samples, options.max_eval_samples),
        text_states=options.freeze_text_encoder,
        key_phrase=key_phrase(options.instance_prompt, options.class_prompt),
        word_dropout=options.word_dropout,
    )
    _announce(tables, options)
    prior = _prior(options, checkpoint, prepared, tables)
    set_seed(options.seed)
    return_freed_memory()
    reset_peak_memory()
    asked = copy.copy(options)
    split = settle_split(options, checkpoint, [tables] if prior is None else [tables, prior])
    trainer = _trainer(options, checkpoint, tables, prior, prepared, initial)
    _play_along(trainer, asked, checkpoint, tables, folder)
    data = tables.fingerprint + (prior.fingerprint if prior is not None else "")
    record = RunRecord(
        telling_options(asked), checkpoint.name, checkpoint.identity, data, split, str(prepared.resolve())
    )
    record.clips = tables.split.to_json()
    resume = last_checkpoint(folder)
    for path in checkpoints_after(folder, resume):
        log(f"{path} is not complete; it is passed over")
    if initial is not None:
        record.init_adapter = record_of(trainer.model, initial, folder if resume else None)
    if resume is not None:
        check_same_data(folder, record)
        log(f"continuing from {resume}")
        options.eval_on_start = False  # the log has that evaluation
        trainer.add_callback(LongerSchedule(planned_updates(resume), folder / SAMPLES))
    PartialState().wait_for_everyone()  # all have read the earlier record
    if trainer.is_world_process_zero():
        record.write(folder)
    with trainer.stop.deferred():
        started = time.perf_counter()
        outcome = trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        metrics = final_evaluation(trainer)
        playing = sum(one.seconds for one in trainer.callback_handler.callbacks if isinstance(one, SampleCallback))
        seconds, begun_at = time.perf_counter() - started - playing, step_of(resume) if resume else 0
        summary = summary_of(trainer, outcome.metrics, tables, checkpoint, seconds, begun_at)
        licence = licence_of(checkpoint)
        save_run(trainer, folder, checkpoint, tables, asked, metrics, licence)
        if trainer.is_world_process_zero():
            record.finished, record.summary, record.log = True, summary | metrics, trainer.state.log_history
            record.write(folder)
            tell(folder, summary, metrics, licence_notice(checkpoint.name, licence), options)
        PartialState().wait_for_everyone()
        number = trainer.agreed_signal()
    if number:
        raise _stopped_behind(folder, number)
    return TrainResult(folder, metrics, summary)


def _open_repository(options: TrainArguments, checkpoint: Checkpoint) -> Repository | None:
    """The Hub repository to push to, made now. The Trainer itself must not push: it would upload the songs."""
    if not options.push_to_hub:
        return None
    options.push_to_hub = False
    name, repository = options.hub_model_id or Path(str(options.output_dir)).resolve().name, None
    if PartialState().is_main_process:
        token = options.hub_token or options.token
        repository = open_repository(name, token=token, private=options.hub_private_repo)
        name = repository.name
        if options.use_lora and checkpoint.is_local:
            log(f"note: the adapter will name its base {checkpoint.name}, which is a folder here and nowhere else")
    options.hub_model_id = name  # with its owner, for the card
    return repository


def _settle_earlier_run(
    folder: Path, options: TrainArguments, checkpoint: Checkpoint
) -> tuple[TrainResult | None, Checkpoint]:
    """Discards, continues or hands back what an earlier run left in the folder, and gives the base as it began with."""
    earlier = read_record(folder)
    if options.restart:
        if PartialState().is_main_process:
            discard_record(folder)  # first: a record without the rest would be taken for the run
            discard_checkpoints(folder)
            shutil.rmtree(folder / SAMPLES, ignore_errors=True)
            if earlier is not None:
                discard_result(folder, is_adapter=bool(earlier.options.get("use_lora", True)))
        PartialState().wait_for_everyone()
        return None, checkpoint
    if earlier is None:
        if checkpoints_after(folder, None):
            raise UserError(f"{folder} holds checkpoints of something else; choose another --output_dir")
        return None, checkpoint
    check_same_run(earlier, options, folder)
    check_same_base(earlier, checkpoint, folder)
    if not is_done(earlier, options, folder):
        return None, base_of_run(earlier, checkpoint, folder)
    log(f"{folder} holds this run already, finished; --restart true trains it anew")
    metrics = {key: value for key, value in earlier.summary.items() if key.startswith("eval_")}
    return TrainResult(folder, metrics, earlier.summary), checkpoint


def _prepared_songs(options: TrainArguments, checkpoint: Checkpoint) -> Prepared:
    """The prepared folder, brought up to date."""
    songs = Path(str(options.dataset_name)).expanduser()
    prepared = songs if is_prepared(songs) else Path(options.prepared_dir or f"{options.output_dir}/data")
    if prepared == songs:
        return refresh(prepared, options, checkpoint, text_states=options.freeze_text_encoder)
    return prepare_songs(
        str(options.dataset_name), prepared, options, checkpoint, text_states=options.freeze_text_encoder
    )


def _announce(tables: Tables, options: TrainArguments) -> None:
    minutes = sum(tables.train["seconds"]) / 60
    log(f"training on {plural(len(tables.train), 'clip')}, {minutes:.1f} minutes")
    for songs in tables.split.copies:
        log(f"the same recording, held out or trained on together: {' = '.join(songs)}")
    if tables.split.left_out:
        log(f"not trained on, as the evaluation split has the same recording: {', '.join(tables.split.left_out)}")
    if held := tables.held_out_songs:
        names = ", ".join(held[:3]) + (", …" if len(held) > 3 else "")
        log(f"evaluating on {plural(len(tables.held_out), 'clip')} of {plural(len(held), 'song')} held out: {names}")
    elif options.eval_strategy != IntervalStrategy.NO and options.eval_fraction > 0:
        log("no song is held out: there are too few; --eval_split_name or a folder of more songs allows evaluation")
    if not len(tables.held_out):
        for name in ("metric_for_best_model", "early_stopping_patience"):
            if getattr(options, name) is not None:
                log(f"--{name} has no part in this training: without held-out songs, the last weights are kept")


def _prior(options: TrainArguments, checkpoint: Checkpoint, prepared: Path, tables: Tables) -> Tables | None:
    """Clips of the class, where they are asked for."""
    if not options.with_prior_preservation:
        return None
    return prior_tables(options, checkpoint, prepared, options.crop_seconds or max(tables.train["seconds"]))


def _trainer(
    options: TrainArguments,
    checkpoint: Checkpoint,
    tables: Tables,
    prior: Tables | None,
    prepared: Path,
    initial: SavedAdapter | None,
) -> CodebookTrainer:
    check = partial(check_key_word, options=options, checkpoint=checkpoint, tables=tables, prepared=prepared)
    model = trainable_model(options, checkpoint, check, initial)
    frames = round(options.crop_seconds * checkpoint.frame_rate) if options.crop_seconds else None
    seed = options.seed if options.data_seed is None else options.data_seed
    drawing = Drawing(frames, options.random_crop, True, options.caption_dropout, seed)
    phrase = key_phrase(options.instance_prompt, options.class_prompt)
    thinning = replace(drawing, word_dropout=options.word_dropout, key_phrase=phrase)
    train_set: Any = ClipDataset(tables.train, tables.captions, checkpoint, thinning)
    if prior is not None:
        train_set = PairedDataset(train_set, ClipDataset(prior.train, prior.captions, checkpoint, drawing))
    eval_set = ClipDataset(tables.held_out, tables.captions, checkpoint, Drawing()) if len(tables.held_out) else None
    if eval_set is None:
        options.eval_strategy, options.eval_on_start, options.load_best_model_at_end = IntervalStrategy.NO, False, False
    options.label_names = ["labels"]
    trainer = CodebookTrainer(
        model,
        options,
        data_collator=_collator(options, checkpoint),
        train_dataset=train_set,
        eval_dataset=eval_set,
    )
    for plain in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(plain)
    guard_trackers(trainer.callback_handler.callbacks)
    trainer.add_callback(Lines if options.disable_tqdm else BarAndLines)
    if eval_set is not None and options.eval_strategy != IntervalStrategy.EPOCH:
        trainer.add_callback(_EvaluateAtEnd)
    return trainer


def _play_along(
    trainer: CodebookTrainer, options: TrainArguments, checkpoint: Checkpoint, tables: Tables, folder: Path
) -> None:
    """Samples while it learns, the distance to the songs, and an end where nothing gets better."""
    prompts = sample_prompts_of(
        options.sample_prompts,
        add_audio_samples_to_wandb=options.add_audio_samples_to_wandb,
        num_samples_to_generate=options.num_samples_to_generate,
        full_generation_sample_text=options.full_generation_sample_text,
        report_to=options.report_to,
        held_out_captions=list(tables.held_out["text"]),
    )
    sampling = Sampling(options.guidance_scale)
    where = folder / SAMPLES
    sampler = Sampler(checkpoint, prompts, options.sample_seconds, options.seed, where, sampling, trainer.stop)
    if prompts:
        add_samples(trainer, sampler, every=options.sample_steps, at_start=options.sample_at_start)
    if options.metric_for_best_model in ("style", "eval_style") and trainer.eval_dataset is not None:
        from musicgen_dreamboothing.training.style import style_meter

        trainer.style_of = style_meter(options, checkpoint, tables, sampler)
    if options.early_stopping_patience is not None and trainer.eval_dataset is not None:
        trainer.add_callback(EarlyStoppingCallback(options.early_stopping_patience))


class _EvaluateAtEnd(TrainerCallback):
    """Evaluates after the last update: afterwards trackers would show it as a run of its own."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_evaluate = True


def _collator(options: TrainArguments, checkpoint: Checkpoint) -> Collator:
    if options.freeze_text_encoder:
        return Collator(checkpoint.pad_token_id)
    tokenizer = load_tokenizer(checkpoint)
    return Collator(checkpoint.pad_token_id, lambda captions: tokenize(tokenizer, captions))
