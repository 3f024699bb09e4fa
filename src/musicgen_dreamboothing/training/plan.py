"""How a batch is split so that a step fits into memory: clips at once, what is recomputed, accumulation steps."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from musicgen_dreamboothing.arguments import POLICIES, TrainArguments
from musicgen_dreamboothing.console import UserError, plural, say
from musicgen_dreamboothing.model.adapter import LoraSettings
from musicgen_dreamboothing.model.checkpoint import Checkpoint
from musicgen_dreamboothing.model.device import DTYPES, free_memory, parse_dtype
from musicgen_dreamboothing.model.footprint import Estimator, Footprint, Step

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
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = UNITS.get(found[2].upper()) if found else None
    if found is None or unit is None or float(found[1]) <= 0:
        raise UserError(f"--memory {text!r} is no size; write 8GB, 7.5GiB or 8000MB")
    return int(float(found[1]) * unit)


def make_plan(
    estimator: Estimator, *, wanted: int, most: int, memory: int, policies: tuple[str, ...] = POLICIES
) -> Plan:
    """The fastest way to compute a batch in the memory there is.

    Args:
        estimator: knows the model and its kind of step.
        wanted: clips in an update, on each device.
        most: clips at once that are of use.
        memory: bytes for the model and its step.
        policies: those that may be chosen.

    Returns:
        The first policy, from none to full, under which one clip fits, with as many clips as fit and are of use. Where
        nothing fits, one clip and full recomputation.
    """
    budget = memory * (1 - RESERVE)
    for policy in policies:
        for clips in _divisors(wanted, most):
            found = estimator.footprint(policy, clips)
            if found.total <= budget:
                return Plan(policy, clips, wanted // clips, found, fits=True)
    return Plan(policies[-1], 1, wanted, estimator.footprint(policies[-1], 1), fits=False)


def _divisors(number: int, at_most: int) -> Iterator[int]:
    """From the largest to 1."""
    return (clips for clips in range(min(number, at_most), 0, -1) if number % clips == 0)


def planned_step(options: TrainArguments, checkpoint: Checkpoint, lora: LoraSettings, device: torch.device) -> Step:
    """The step that these options ask for. With `--memory` and no GPU here, that of a GPU with bf16."""
    imagined = options.memory is not None and device.type == "cpu"
    if imagined and options.dtype == "auto":
        dtype = torch.bfloat16
    else:
        dtype = DTYPES[options.dtype] if options.dtype in DTYPES else parse_dtype(options.dtype, device)
    seconds = options.crop_seconds or options.max_duration_in_seconds
    frames = round(seconds * checkpoint.frame_rate) + (max(checkpoint.delay) if options.random_crop else 0)
    return Step(
        frames,
        dtype if options.use_lora else torch.float32,
        options.quantization,
        lora if options.use_lora else None,
        not options.freeze_text_encoder,
    )


def plan_of(options: TrainArguments, checkpoint: Checkpoint, lora: LoraSettings) -> Plan:
    """Settles and tells how the batch of these options is split, before anything is loaded."""
    here = options.device
    device = "cuda" if options.memory is not None and here.type == "cpu" else here.type
    # What is free comes on top of what this process has taken already.
    memory = parse_memory(options.memory) if options.memory is not None else free_memory(here) + int(CONTEXT[device])
    step = planned_step(options, checkpoint, lora, here)
    estimator = Estimator(checkpoint, step)
    wanted = options.per_device_train_batch_size * options.gradient_accumulation_steps
    policies: tuple[str, ...] = POLICIES if options.recompute == "auto" else (options.recompute,)
    if options.compiler is not None:  # compiled layers make again what is cheap by themselves
        policies = tuple(policy for policy in policies if policy != "light")
    most = max(1, ENOUGH_STEPS[device] // step.frames)
    if options.world_size > 1:  # larger micro-batches would leave some processes without any at the end of an epoch
        most = min(most, options.per_device_train_batch_size)
    free = int(memory - CONTEXT[device])
    plan = make_plan(estimator, wanted=wanted, most=most, memory=free, policies=policies)
    _tell(plan, checkpoint, step, memory, CONTEXT[device])
    if options.plan:
        _tell_others(estimator, wanted, policies, CONTEXT[device])
    if not plan.fits:
        cures = ["shorter pieces (--crop_seconds 15)", "a smaller --model_name_or_path"]
        if step.quantization == "none" and step.lora is not None:
            cures.insert(0, "a base in 4 bits (--quantization nf4)")
        say(f"that is more than there is; try {', '.join(cures[:-1])} or {cures[-1]}")
    return plan


def _tell(plan: Plan, checkpoint: Checkpoint, step: Step, memory: int, context: float) -> None:
    """The estimate, part by part."""
    stored = str(step.dtype)[6:] if step.quantization == "none" else step.quantization
    rows = {
        f"weights of the base, {stored}": plan.footprint.base,
        "what is trained, its gradients and AdamW": plan.footprint.trained,
        f"kept for the backward pass, {plural(plan.clips, 'clip')}": plan.footprint.kept,
        "scratch at the peak": plan.footprint.scratch,
        "process and libraries": context,
    }
    say(f"memory of a training step of {checkpoint.name}, {step.frames / checkpoint.frame_rate:.1f} s a clip:")
    for name, size in rows.items():
        say(f"  {name:46}{size / 1e9:6.2f} GB")
    say(f"  {'in all':46}{(plan.footprint.total + context) / 1e9:6.2f} GB of {memory / 1e9:.2f} GB")
    wanted = plan.clips * plan.accumulation
    split = f"{plan.clips} at once" + (f", {plan.accumulation} times" if plan.accumulation > 1 else "")
    say(f"{plural(wanted, 'clip')} an update: {split}; recompute {plan.policy}")


def _tell_others(estimator: Estimator, wanted: int, policies: tuple[str, ...], context: float) -> None:
    """What other ways would take."""
    counts = [clips for clips in (1, 2, 4, 8, 16) if clips <= wanted]
    say("GB in all:" + "".join(f"{plural(clips, 'clip'):>10}" for clips in counts))
    for policy in policies:
        sizes = [(estimator.footprint(policy, clips).total + context) / 1e9 for clips in counts]
        say(f"{policy:10}" + "".join(f"{size:10.2f}" for size in sizes))
