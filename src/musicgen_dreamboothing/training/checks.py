"""What can be known to fail of a training's options, before anything is loaded."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from transformers.integrations import get_reporting_integration_callbacks

from musicgen_dreamboothing.arguments import TrainArguments, check_values, note_unused
from musicgen_dreamboothing.console import UserError, say
from musicgen_dreamboothing.data.layout import is_prepared
from musicgen_dreamboothing.data.prepare import check_durations
from musicgen_dreamboothing.model.adapter import SPLITTING, check_settings
from musicgen_dreamboothing.model.device import check_device
from musicgen_dreamboothing.model.quantized import base_quantization
from musicgen_dreamboothing.training.checkpoints import last_checkpoint
from musicgen_dreamboothing.training.model import lora_settings
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
        raise UserError("say which songs: train --dataset_name SONGS --instance_prompt WORD --output_dir DIR")
    check_durations(options)
    if options.resume_from_checkpoint:
        _check_resumption(options)
    check_settings(lora_settings(options))
    _check_quantization(options)
    check_prior(options)
    _check_samples(options)
    _check_trackers(options.report_to)
    note_unused(options, _prepared_folder(options))
    options.enable_jit_checkpoint = False  # it would save in the middle of an update, on a signal that is handled here
    if options.n_gpu > 1:
        say(f"{options.n_gpu} GPUs are here and one is used; `accelerate launch` uses all of them")
        options._n_gpu = 1  # torch's DataParallel, which Trainer would use, splits neither captions nor losses rightly


def _check_resumption(options: TrainArguments) -> None:
    asked, folder = str(options.resume_from_checkpoint), Path(str(options.output_dir))
    last = last_checkpoint(folder)
    if asked.lower() != "true" and Path(asked).resolve() not in {path.resolve() for path in (folder, last) if path}:
        raise UserError(
            f"--resume_from_checkpoint {asked} is not supported: a run resumes from the last checkpoint in its "
            "--output_dir, and --restart true discards it"
        )
    say("--resume_from_checkpoint is not needed: the same command goes on from its last checkpoint")


def _prepared_folder(options: TrainArguments) -> str:
    """The folder that is trained on, if its songs are cut already; a plan reads no songs."""
    folder = Path(str(options.dataset_name or "")).expanduser()
    return str(folder) if not options.plan and is_prepared(folder) else ""


def _check_quantization(options: TrainArguments) -> None:
    base_quantization(options.quantization, torch.float32)
    if options.quantization == "none":
        return
    if not options.use_lora:
        raise UserError(f"--quantization {options.quantization} freezes the base, which --use_lora false would train")
    if SPLITTING.fullmatch(options.lora_init):
        raise UserError(
            f"--lora_init {options.lora_init} changes the base, which --quantization has rounded; choose one"
        )


def _check_samples(options: TrainArguments) -> None:
    if options.sample_prompts:
        read_prompts(options.sample_prompts)


def _check_trackers(trackers: list[str]) -> None:
    try:
        get_reporting_integration_callbacks(trackers)
    except ValueError as error:
        raise UserError(f"--report_to: {error}") from error
    for tracker in trackers:
        if tracker in ("wandb", "tensorboard", "trackio") and importlib.util.find_spec(tracker) is None:
            raise UserError(f"--report_to {tracker} needs: pip install 'musicgen-dreamboothing[{tracker}]'")
