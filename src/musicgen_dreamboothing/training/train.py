"""`train`: songs or tokens in, a fine-tuned model out."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import set_seed

from musicgen_dreamboothing.arguments import TrainArguments
from musicgen_dreamboothing.console import UserError, log, quiet_libraries
from musicgen_dreamboothing.data.prepare import checkpoint_of
from musicgen_dreamboothing.data.run_record import RunRecord, read_record
from musicgen_dreamboothing.data.tokens.melodies import NONE, melody_source
from musicgen_dreamboothing.device import release_memory, reset_peak_memory
from musicgen_dreamboothing.files import folder_lock
from musicgen_dreamboothing.model.adapter import SavedAdapter
from musicgen_dreamboothing.model.checkpoint import Checkpoint
from musicgen_dreamboothing.model.stereo import read_origin
from musicgen_dreamboothing.sharing.licence import licence_notice, licence_of
from musicgen_dreamboothing.sharing.repository import Repository
from musicgen_dreamboothing.sharing.runs import open_repository, upload
from musicgen_dreamboothing.signals import Stopped, signal_number, sigterm_interrupts
from musicgen_dreamboothing.training.checkpoints import checkpoints_after, discard_checkpoints, step_of
from musicgen_dreamboothing.training.checks import check_metric, check_options
from musicgen_dreamboothing.training.final_report import final_report
from musicgen_dreamboothing.training.initial_adapter import check_base, record_of, settle_initial_adapter
from musicgen_dreamboothing.training.longer import LongerSchedule, is_done, planned_updates
from musicgen_dreamboothing.training.plan import plan_step
from musicgen_dreamboothing.training.record import (
    base_of_run,
    check_same_base,
    check_same_data,
    check_same_run,
    discard_record,
)
from musicgen_dreamboothing.training.samples import FOLDER as SAMPLES
from musicgen_dreamboothing.training.samples import SampleCallback
from musicgen_dreamboothing.training.saving import discard_result, save_run
from musicgen_dreamboothing.training.settings import Settings, resolve_settings, with_values
from musicgen_dreamboothing.training.setup import make_trainer
from musicgen_dreamboothing.training.summary import final_evaluation, log_summary, summary_of
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
    """Fine-tunes a base checkpoint; the same call again continues a run that was stopped.

    With `plan` it only logs how much memory a step takes, and returns None. Ctrl-C and SIGTERM finish the current
    update and save a checkpoint first, except in threads other than the main one.

    Raises:
        UserError: anything that a user can correct, before hours are spent where possible.
        Stopped: a KeyboardInterrupt with the state of the run.
    """
    with sigterm_interrupts():
        return _train(options)


def _train(options: TrainArguments) -> TrainResult | None:
    check_options(options)
    if not options.use_lora:
        log(f"Full fine-tune: learning rate {options.learning_rate:g}, weight decay {options.weight_decay:g}")
    initial, values = settle_initial_adapter(options)
    options = with_values(options, **values)
    checkpoint = _load_base(options, initial)
    check_metric(options, checkpoint)
    melody = melody_source(options, checkpoint)
    options = with_values(options, melody=NONE if melody is None else melody.mode)
    if options.plan:
        plan_step(options, checkpoint)
        return None
    repository = _open_repository(options, checkpoint)
    if repository is not None:
        options = with_values(options, hub_model_id=repository.name)  # with its owner, for the card
    folder = Path(str(options.output_dir))
    folder.mkdir(parents=True, exist_ok=True)
    with folder_lock(folder):
        finished, checkpoint = _settle_earlier_run(folder, options, checkpoint)
        result = finished or _run(resolve_settings(options, checkpoint, initial))
        release_memory()
        try:
            if repository is not None:
                log(f"Uploaded to {upload(folder, repository)}")
            if finished is None:
                final_report(folder, options)
        except KeyboardInterrupt as error:
            raise _stopped_after_saving(folder, signal_number(error)) from None
    return result


def _stopped_after_saving(folder: Path, number: int) -> Stopped:
    return Stopped(f"stopped; the run is finished and saved in {folder}", number)


def _load_base(options: TrainArguments, initial: SavedAdapter | None) -> Checkpoint:
    """The base, which an initial adapter has to fit."""
    try:
        checkpoint = checkpoint_of(options)
    except UserError as error:
        if initial is None or options.model_name_or_path != initial.config.base_model_name_or_path:
            raise
        raise UserError(f"{error}. The adapter {initial.name} names this base; --model_name_or_path wins") from error
    if initial is not None:
        check_base(initial, checkpoint, options)
    return checkpoint


def _open_repository(options: TrainArguments, checkpoint: Checkpoint) -> Repository | None:
    """The Hub repository to push to, made now: its errors must not come after hours. Only in the main process."""
    if not options.push_to_hub or not PartialState().is_main_process:
        return None
    name = options.hub_model_id or Path(str(options.output_dir)).resolve().name
    repository = open_repository(name, token=options.hub_token or options.token, private=options.hub_private_repo)
    if options.use_lora and checkpoint.is_local:
        log(f"note: the adapter will name its base {checkpoint.name}, a folder that exists only on this machine")
        if (origin := read_origin(Path(checkpoint.name))) is not None:
            log(
                f"note: others get that base by `warm-start {origin.base} --variant {origin.variant}`, as the card says"
            )
    return repository


def _settle_earlier_run(
    folder: Path, options: TrainArguments, checkpoint: Checkpoint
) -> tuple[TrainResult | None, Checkpoint]:
    """Discards, continues or returns an earlier run in the folder; the base is the one that it began with."""
    earlier = read_record(folder)
    if options.restart:
        _discard_run(folder, earlier)
        return None, checkpoint
    if earlier is None:
        if checkpoints_after(folder, None):
            raise UserError(f"{folder} holds checkpoints of something else; choose another --output_dir")
        return None, checkpoint
    check_same_run(earlier, options, folder)
    check_same_base(earlier, checkpoint, folder)
    if not is_done(earlier, options, folder):
        return None, base_of_run(earlier, checkpoint, folder)
    log(f"{folder} already holds this run, finished; --restart true trains it again")
    metrics = {key: value for key, value in earlier.summary.items() if key.startswith("eval_")}
    return TrainResult(folder, metrics, earlier.summary), checkpoint


def _discard_run(folder: Path, earlier: RunRecord | None) -> None:
    if PartialState().is_main_process:
        discard_record(folder)  # first: a record without the rest would be taken for the run
        discard_checkpoints(folder)
        shutil.rmtree(folder / SAMPLES, ignore_errors=True)
        if earlier is not None:
            discard_result(folder, is_adapter=bool(earlier.options.get("use_lora", True)))
    PartialState().wait_for_everyone()


def _run(settings: Settings) -> TrainResult:
    folder, checkpoint, resume = settings.folder, settings.checkpoint, settings.resume
    set_seed(settings.options.seed)
    reset_peak_memory()
    trainer = make_trainer(settings)
    record = _begin(trainer, settings)
    with trainer.stop.deferred():
        started = time.perf_counter()
        outcome = trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        metrics = final_evaluation(trainer)
        seconds = time.perf_counter() - started - _seconds_of_samples(trainer)
        first_update = step_of(resume) if resume else 0
        summary = summary_of(trainer, outcome.metrics, settings.tables, checkpoint, seconds, first_update)
        licence = licence_of(checkpoint)
        save_run(trainer, settings, metrics, licence)
        if trainer.is_world_process_zero():
            record.finished, record.summary, record.log = True, summary | metrics, trainer.state.log_history
            record.write(folder)
            notice = licence_notice(checkpoint.name, licence)
            log_summary(folder, summary, metrics, notice, settings.options.instance_prompt)
        PartialState().wait_for_everyone()
        number = trainer.agreed_signal()
    if number:
        raise _stopped_after_saving(folder, number)
    return TrainResult(folder, metrics, summary)


def _begin(trainer: CodebookTrainer, settings: Settings) -> RunRecord:
    """Writes the record of the run, after checks against the run that it continues."""
    folder, resume, record = settings.folder, settings.resume, settings.record()
    for path in checkpoints_after(folder, resume):
        log(f"note: {path} is incomplete and not used")
    if settings.initial is not None:
        record.init_adapter = record_of(trainer.model, settings.initial, folder if resume else None)
    if resume is not None:
        check_same_data(folder, record)
        log(f"Resuming from {resume}")
        trainer.add_callback(LongerSchedule(planned_updates(resume), folder / SAMPLES))
    PartialState().wait_for_everyone()  # all have read the earlier record
    if trainer.is_world_process_zero():
        record.write(folder)
    return record


def _seconds_of_samples(trainer: CodebookTrainer) -> float:
    return sum(one.seconds for one in trainer.callback_handler.callbacks if isinstance(one, SampleCallback))
