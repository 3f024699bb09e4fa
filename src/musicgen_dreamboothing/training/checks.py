"""Checks of a training's options, before anything is loaded."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import torch
from torch import nn
from transformers import get_scheduler
from transformers.integrations import get_reporting_integration_callbacks

from musicgen_dreamboothing.arguments import TrainArguments, check_values, note_unused
from musicgen_dreamboothing.arguments.train import PRODIGY
from musicgen_dreamboothing.console import UserError, log, one_line
from musicgen_dreamboothing.data.layout import is_prepared
from musicgen_dreamboothing.data.prepare import check_durations
from musicgen_dreamboothing.device import check_device
from musicgen_dreamboothing.model.adapter import LYCORIS, SPLITTING, check_settings
from musicgen_dreamboothing.model.checkpoint import Checkpoint
from musicgen_dreamboothing.model.delay import sides_of
from musicgen_dreamboothing.model.quantized import base_quantization
from musicgen_dreamboothing.training.checkpoints import last_checkpoint
from musicgen_dreamboothing.training.model import lora_settings
from musicgen_dreamboothing.training.optimizers import install_hint, optimizer_name, optimizer_of
from musicgen_dreamboothing.training.prior import check_prior
from musicgen_dreamboothing.training.samples import read_prompts


def check_options(options: TrainArguments) -> None:
    """Checks the options of a training, and names those that have no effect.

    Raises:
        UserError: options that are wrong, or don't go together.
    """
    check_values(options)
    check_device(options.device)
    if not options.dataset_name and not options.plan:
        raise UserError("give the songs: train --dataset_name SONGS --instance_prompt WORD --output_dir DIR")
    check_durations(options)
    if options.resume_from_checkpoint:
        _check_resumption(options)
    check_settings(lora_settings(options))
    _check_quantization(options)
    if options.init_adapter and options.adapter_type in LYCORIS:
        raise UserError(f"--init_adapter takes LoRA adapters; leave out --adapter_type {options.adapter_type}")
    check_prior(options)
    _check_samples(options)
    _check_trackers(options.report_to)
    _check_optimizer(options)
    _check_compiler(options)
    note_unused(options, _prepared_folder(options))
    if options.n_gpu > 1:
        log(f"note: one of {options.n_gpu} GPUs is used; `accelerate launch` uses all of them")


def check_metric(options: TrainArguments, checkpoint: Checkpoint) -> None:
    """Refuses a metric of a codebook or side that the base does not have.

    Raises:
        UserError: names the codebooks that there are.
    """
    side = re.search(r"_(left|right)$", str(options.metric_for_best_model))
    if side and not sides_of(checkpoint.audio_channels):
        raise UserError(f"--metric_for_best_model {options.metric_for_best_model}: {checkpoint.name} is mono")
    number = re.search(r"_q(\d+)$", str(options.metric_for_best_model))
    if number and not 1 <= int(number[1]) <= checkpoint.codebooks:
        raise UserError(
            f"--metric_for_best_model {options.metric_for_best_model}: {checkpoint.name} has codebooks 1 to "
            f"{checkpoint.codebooks}"
        )


def _check_resumption(options: TrainArguments) -> None:
    given, folder = str(options.resume_from_checkpoint), Path(str(options.output_dir))
    last = last_checkpoint(folder)
    if given.lower() != "true" and Path(given).resolve() not in {path.resolve() for path in (folder, last) if path}:
        raise UserError(
            f"--resume_from_checkpoint {given} is not supported: a run resumes from the last checkpoint in its "
            "--output_dir, and --restart true discards it"
        )
    log("--resume_from_checkpoint is not needed: the same command goes on from its last checkpoint")


def _prepared_folder(options: TrainArguments) -> str:
    """The folder that is trained on, if no songs are cut, neither its own nor those of the class; a plan cuts none."""
    folder = Path(str(options.dataset_name or "")).expanduser()
    cuts_class = options.with_prior_preservation and options.class_data_dir
    return str(folder) if is_prepared(folder) and not cuts_class and not options.plan else ""


def _check_quantization(options: TrainArguments) -> None:
    base_quantization(options.quantization, torch.float32)
    if options.quantization == "none":
        return
    if not options.use_lora:
        raise UserError(f"--quantization {options.quantization} freezes the base, which --use_lora false would train")
    if options.adapter_type in LYCORIS:
        raise UserError(
            f"--quantization {options.quantization} takes LoRA adapters; "
            f"leave out --adapter_type {options.adapter_type}"
        )
    if SPLITTING.fullmatch(options.lora_init):
        raise UserError(
            f"--lora_init {options.lora_init} changes the base, which --quantization has rounded; choose one"
        )


def _check_samples(options: TrainArguments) -> None:
    if options.sample_prompts:
        read_prompts(options.sample_prompts)


def _check_optimizer(options: TrainArguments) -> None:
    """Makes optimizer and schedule for a weight that nobody trains: their errors would come after the preparation."""
    if optimizer_name(options) == PRODIGY and options.loraplus_lr_ratio != 1:
        raise UserError("--optim prodigy finds one rate for all weights; leave out --loraplus_lr_ratio")
    try:
        optimizer_class, settings = optimizer_of(options, nn.Identity())
        optimizer = optimizer_class([nn.Parameter(torch.zeros(1, device=options.device))], **settings)
        kwargs = options.lr_scheduler_kwargs
        get_scheduler(options.lr_scheduler_type, optimizer, 1, 2, scheduler_specific_kwargs=kwargs)
    except UserError:
        raise
    except Exception as error:  # each of transformers' optimizers and schedules has its own
        raise UserError(
            f"--optim {optimizer_name(options)} with --optim_args {options.optim_args}, or "
            f"--lr_scheduler_type {getattr(options.lr_scheduler_type, 'value', options.lr_scheduler_type)} with "
            f"--lr_scheduler_kwargs {options.lr_scheduler_kwargs}, is invalid: {one_line(str(error))}"
            f"{install_hint(optimizer_name(options))}"
        ) from error


def _check_compiler(options: TrainArguments) -> None:
    if options.compiler is None:
        return
    backend, backends = options.compiler["backend"], torch.compiler.list_backends(exclude_tags=())
    if backend not in backends:
        raise UserError(f"--torch_compile_backend {backend!r} is unknown; it takes {', '.join(backends)}")


def _check_trackers(trackers: list[str]) -> None:
    try:
        get_reporting_integration_callbacks(trackers)
    except ValueError as error:
        raise UserError(f"--report_to: {error}") from error
    for tracker in trackers:
        if tracker in ("wandb", "tensorboard", "trackio") and importlib.util.find_spec(tracker) is None:
            raise UserError(f"--report_to {tracker} needs: pip install 'musicgen-dreamboothing[{tracker}]'")
