"""What can be known to fail of a training's options, before anything is loaded."""

from __future__ import annotations

import dataclasses
import importlib.util

import torch
from transformers.integrations import get_reporting_integration_callbacks

from musicgen_dreamboothing.arguments import TrainArguments
from musicgen_dreamboothing.console import UserError, say
from musicgen_dreamboothing.model.adapter import SPLITTING, check_settings
from musicgen_dreamboothing.model.device import check_device, parse_dtype
from musicgen_dreamboothing.model.quantized import base_quantization
from musicgen_dreamboothing.training.model import lora_settings
from musicgen_dreamboothing.training.prior import check_prior
from musicgen_dreamboothing.training.samples import read_prompts

POSITIVE = (
    *("lora_r", "crop_seconds", "max_train_samples", "max_eval_samples", "sample_seconds", "early_stopping_patience"),
    *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
)
UNSUPPORTED = {
    "label_smoothing_factor": "the loss of the codebooks is computed here",
    "neftune_noise_alpha": "the loss of the codebooks is computed here",
    "auto_find_batch_size": "--recompute auto splits the batch as memory allows",
    "batch_eval_metrics": "held-out clips are summed up over all batches",
    "hub_revision": "a run is pushed to the repository's main branch",
}
# transformers' options that its Trainer reads for other models, or leaves to scripts
IDLE = (
    *("predict_with_generate", "generation_max_length", "generation_num_beams", "generation_config"),
    *("sortish_sampler", "do_predict", "include_for_metrics", "train_sampling_strategy", "length_column_name"),
    *("prediction_loss_only", "hub_strategy", "hub_always_push"),
)


def check_options(options: TrainArguments) -> None:
    """Says what has no part in a training.

    Raises:
        UserError: options that are wrong, or don't go together.
    """
    check_device(options.device)
    if not options.dataset_name and not options.plan:
        raise UserError("say which songs: train --dataset_name SONGS --instance_prompt WORD --output_dir DIR")
    for name in POSITIVE:
        if (value := getattr(options, name)) is not None and value <= 0:
            raise UserError(f"--{name} {value} must be more than 0")
    for name in UNSUPPORTED:
        if getattr(options, name):
            raise UserError(f"--{name} is not supported: {UNSUPPORTED[name]}")
    if not 0 <= options.caption_dropout <= 1:
        raise UserError(f"--caption_dropout {options.caption_dropout} must lie between 0 and 1")
    defaults = {entry.name: entry.default for entry in dataclasses.fields(options)}
    for name in IDLE:
        if getattr(options, name, None) and getattr(options, name) != defaults[name]:
            say(f"--{name} has no part in this training")
    if options.resume_from_checkpoint:
        say("--resume_from_checkpoint is not needed: the same command goes on from its last checkpoint")
    parse_dtype(options.dtype, options.device)
    check_settings(lora_settings(options))
    _check_quantization(options)
    check_prior(options)
    _check_samples(options)
    _check_trackers(options.report_to)
    if options.n_gpu > 1:
        say(f"{options.n_gpu} GPUs are here and one is used; `accelerate launch` uses all of them")
        options._n_gpu = 1  # torch's DataParallel, which Trainer would use, splits neither captions nor losses rightly


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
    if options.final_report not in ("auto", "true", "false"):
        raise UserError(f"--final_report {options.final_report!r} is unknown; it takes auto, true or false")
    if options.sample_steps < 0:
        raise UserError(f"--sample_steps {options.sample_steps} must not be negative; 0 plays before and after only")
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
