"""How a batch is split so that a step fits into memory: clips at once, what is recomputed, accumulation steps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate.utils import gather_object

from musicgen_dreamboothing.arguments import KL, POLICIES, TrainArguments
from musicgen_dreamboothing.console import UserError, log, plural
from musicgen_dreamboothing.data.tokens.melodies import melody_source
from musicgen_dreamboothing.device import free_memory, parse_dtype
from musicgen_dreamboothing.model.checkpoint import Checkpoint
from musicgen_dreamboothing.model.footprint import CAPTION_TOKENS, Estimator, Footprint, Step
from musicgen_dreamboothing.model.footprint_cache import cache_file
from musicgen_dreamboothing.training.model import lora_settings

RESERVE = 0.1  # of the memory stays free: allocators leave holes, and the estimate may err
CONTEXT = {"cuda": 0.6e9, "mps": 0.6e9, "cpu": 0.45e9}  # of a process with its libraries, before it loads a model
# Steps of codes that keep a device busy; more at once costs memory and gains nothing.
ENOUGH_STEPS = {"cuda": 25_000, "mps": 6000, "cpu": 1500}
UNITS = {"": 1e9, "GB": 1e9, "GIB": 2.0**30, "MB": 1e6, "MIB": 2.0**20}


@dataclass(frozen=True)
class Plan:
    """How an update is computed.

    Attributes:
        policy: what is recomputed: none, light or full.
        clips: at once, on each device.
        accumulation: micro-batches that make an update.
        footprint: the estimate for it.
        fits: whether it is below the memory that was given.
    """

    policy: str
    clips: int
    accumulation: int
    footprint: Footprint
    fits: bool


def parse_memory(text: str) -> int:
    """Bytes of `8GB`, `8 GiB`, `8000MB` or `8`."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None or float(match[1]) <= 0:
        raise UserError(f"--memory {text!r} is no size; write 8GB, 7.5GiB or 8000MB")
    return int(float(match[1]) * unit)


def make_plan(
    estimator: Estimator, *, update_clips: int, sizes: Sequence[int], memory: int, policies: Sequence[str] = POLICIES
) -> Plan:
    """The fastest way to compute a batch in the memory there is.

    Args:
        estimator: knows the model and its kind of step.
        update_clips: clips in an update, on each device.
        sizes: numbers of clips at once that may be chosen, the most first.
        memory: bytes for the model and its step.
        policies: those that may be chosen, the fastest first.

    Returns:
        The first policy under which some size fits, with the first such size. Where nothing fits, the last of both.
    """
    budget = memory * (1 - RESERVE)
    for policy in policies:
        for clips in sizes:
            footprint = estimator.footprint(policy, clips)
            if footprint.total <= budget:
                return Plan(policy, clips, update_clips // clips, footprint, fits=True)
    policy, clips = policies[-1], sizes[-1]
    return Plan(policy, clips, update_clips // clips, estimator.footprint(policy, clips), fits=False)


def sizes_of(options: TrainArguments, device: str, steps: int) -> list[int]:
    """Numbers of clips at once that make the same update, the most first.

    Of several processes, and where the rest of an epoch is dropped, the number decides which clips are in an update.
    """
    size, times = options.per_device_train_batch_size, options.gradient_accumulation_steps
    if options.recompute != "auto" or options.world_size > 1 or options.dataloader_drop_last:
        return [size]
    most = max(1, ENOUGH_STEPS[device] // steps)
    return [clips for clips in range(min(size * times, most), 0, -1) if size * times % clips == 0]


def policies_of(options: TrainArguments, device: str) -> tuple[str, ...]:
    """What may be recomputed. `light` knows no copies that autocast makes, and compiled layers do what it does.

    Only a full fine-tune is autocast (`trainer.CodebookTrainer`).
    """
    if options.recompute != "auto":
        return (options.recompute,)
    if device == "mps":  # its attention keeps all of its scores, which no estimate here knows
        return ("full",)
    autocast = not options.use_lora and (options.fp16 or options.bf16)
    without_light = options.compiler is not None or autocast
    return tuple(policy for policy in POLICIES if not (policy == "light" and without_light))


def plan_step(
    options: TrainArguments,
    checkpoint: Checkpoint,
    longest_clip: float | None = None,
    longest_caption: int | None = None,
) -> Plan:
    """Decides how the batch of these options is split, and logs the estimate, before anything is loaded.

    `--plan --memory 8GB` without a GPU plans for a GPU elsewhere.

    Args:
        options: of the training.
        checkpoint: the base.
        longest_clip: in seconds; None takes that of the options.
        longest_caption: in tokens of the text encoder.
    """
    here = options.device
    plans_for_gpu = options.plan and options.memory is not None and here.type == "cpu"
    device = "cuda" if plans_for_gpu else here.type
    memory = parse_memory(options.memory) if options.memory is not None else _free_everywhere(options)
    dtype = torch.bfloat16 if plans_for_gpu and options.dtype == "auto" else parse_dtype(options.dtype, here)
    seconds = options.crop_seconds or longest_clip or options.max_duration_in_seconds
    step = Step(
        round(seconds * checkpoint.frame_rate) + (max(checkpoint.delay) if options.random_crop else 0),
        dtype if options.use_lora else torch.float32,
        options.quantization,
        lora_settings(options) if options.use_lora else None,
        not options.freeze_text_encoder,
        longest_caption or CAPTION_TOKENS,
        options.with_prior_preservation,
        options.with_prior_preservation and options.prior == KL,
        melody_source(options, checkpoint) is not None,
        shared=options.world_size > 1,
    )
    estimator = Estimator(checkpoint, step, cache_file(checkpoint, step))
    rows = 2 if step.with_prior else 1
    sizes, policies = sizes_of(options, device, rows * step.frames), policies_of(options, device)
    clips = options.per_device_train_batch_size * options.gradient_accumulation_steps
    free = int(memory - CONTEXT[device])
    plan = make_plan(estimator, update_clips=clips, sizes=sizes, memory=free, policies=policies)
    _log_plan(plan, checkpoint, step, memory, CONTEXT[device])
    if options.plan:
        _log_alternatives(estimator, sizes, policies, CONTEXT[device])
    if not plan.fits:
        fixes = ["shorter crops (--crop_seconds 15)", "a smaller --model_name_or_path"]
        if step.quantization == "none" and step.lora is not None:
            fixes.insert(0, "a base in 4 bits (--quantization nf4)")
        log(f"warning: this exceeds the memory; try {', '.join(fixes[:-1])} or {fixes[-1]}")
    return plan


def _free_everywhere(options: TrainArguments) -> int:
    """Bytes that every process may take, so that all of them plan the same.

    What is free comes on top of what a process has taken already.
    """
    device = options.device
    sharing = options.world_size if device.type == "cpu" else 1
    return min(gather_object([free_memory(device) // sharing])) + int(CONTEXT[device.type])


def _log_plan(plan: Plan, checkpoint: Checkpoint, step: Step, memory: int, context: float) -> None:
    """The estimate, part by part."""
    also = " with class clips" if step.with_prior else ""
    stored = str(step.dtype)[6:] if step.quantization == "none" else step.quantization
    rows = {
        f"weights of the base, {stored}": plan.footprint.base,
        "what is trained, its gradients and AdamW": plan.footprint.trained,
        f"kept for the backward pass, {plural(plan.clips, 'clip')}{also}": plan.footprint.kept,
        "scratch at the peak": plan.footprint.scratch,
        "process and libraries": context,
    }
    log(f"memory of a training step of {checkpoint.name}, {step.frames / checkpoint.frame_rate:.1f} s a clip:")
    for name, size in rows.items():
        log(f"  {name:46}{size / 1e9:6.2f} GB")
    log(f"  {'in all':46}{(plan.footprint.total + context) / 1e9:6.2f} GB of {memory / 1e9:.2f} GB")
    clips = plan.clips * plan.accumulation
    split = f"{plan.clips} at once" + (f", {plan.accumulation} times" if plan.accumulation > 1 else "")
    log(f"{plural(clips, 'clip')} an update: {split}; recompute {plan.policy}")


def _log_alternatives(estimator: Estimator, sizes: Sequence[int], policies: Sequence[str], context: float) -> None:
    """What other ways would take."""
    log("GB in all:" + "".join(f"{plural(clips, 'clip'):>10}" for clips in sizes[::-1]))
    for policy in policies:
        totals = [(estimator.footprint(policy, clips).total + context) / 1e9 for clips in sizes[::-1]]
        log(f"{policy:10}" + "".join(f"{gigabytes:10.2f}" for gigabytes in totals))
