"""Training longer: the same command with more `--num_train_epochs` or `--max_steps` goes on from the last checkpoint.

The optimizer's state is kept. The learning rate is that of the longer run from the next update on, as if it had been
planned so from the beginning. To go on with the old schedule would train with a rate of zero, as linear and cosine
schedules have ended there; a fresh warm-up would move the weights at the peak rate once more. So the rate jumps once,
to where the longer schedule is at that update: for twice the epochs of a linear schedule to half of its peak.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME

from musicgen_dreamboothing.arguments import TrainArguments
from musicgen_dreamboothing.console import UserError, log
from musicgen_dreamboothing.data.run_record import RunRecord
from musicgen_dreamboothing.model.seams import set_last_rates
from musicgen_dreamboothing.training.checkpoints import last_checkpoint, step_of

EPOCHS, UPDATES = LENGTHS = ("num_train_epochs", "max_steps")  # options; the second one wins where it is positive


def length_of(options: Mapping[str, Any]) -> tuple[str, float]:
    """The option that decides how long a run is, and its value."""
    name = UPDATES if options[UPDATES] > 0 else EPOCHS
    return name, float(options[name])


def is_done(record: RunRecord, options: TrainArguments, folder: Path) -> bool:
    """Whether a run is finished and no longer one was asked for.

    Raises:
        UserError: it is longer already, or it cannot go on since its checkpoints are gone.
    """
    if length_of(record.options) == length_of(vars(options)):
        return record.finished
    name, length = length_of(vars(options))
    checkpoint = last_checkpoint(folder)
    done = max(_trained(checkpoint)[name], _trained_until_end(record)[name])
    if length < done - 1e-6:
        raise UserError(
            f"{folder} holds a run that is longer already: {done:g} are done, and --{name} is {length:g}; "
            "choose more, another --output_dir, or discard that run with --restart true"
        )
    if record.finished and length > done + 1e-6 and checkpoint is None:
        start = "--init_adapter" if record.options.get("use_lora", True) else "--model_name_or_path"
        raise UserError(
            f"{folder} holds a finished run without checkpoints (--save_strategy no), which cannot be trained longer; "
            f"begin a new run from its weights: {start} {folder} with another --output_dir"
        )
    if record.finished and length <= done + 1e-6:
        return True
    last = int(_trained_until_end(record)[UPDATES])
    if checkpoint is not None and (first := step_of(checkpoint) + 1) <= last:  # --save_total_limit 1 keeps the best one
        log(f"the checkpoint of update {last} is gone: updates {first} to {last} are trained again")
    return False


def _trained(checkpoint: Path | None) -> dict[str, float]:
    """Epochs and updates at a checkpoint."""
    if checkpoint is None:
        return dict.fromkeys(LENGTHS, 0.0)
    state = json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    return {EPOCHS: float(state["epoch"] or 0), UPDATES: float(state["global_step"])}


def _trained_until_end(record: RunRecord) -> dict[str, float]:
    """The same of a finished run, whose last checkpoint may be an earlier one."""
    return {EPOCHS: float(record.summary.get("epochs") or 0), UPDATES: float(record.summary.get("updates") or 0)}


def planned_updates(checkpoint: Path) -> int:
    """Updates that the run had when it wrote a checkpoint."""
    return int(json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))["max_steps"])


class LongerSchedule(TrainerCallback):
    """Moves the learning rate to the schedule of a run with another number of updates than it was planned for.

    Args:
        planned: updates that the run had so far.
        samples: folder of the samples. Those of later updates than the checkpoint's were made on the old schedule.
    """

    def __init__(self, planned: int, samples: Path) -> None:
        self._planned, self._samples = planned, samples

    def on_train_begin(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, lr_scheduler: Any = None, **kwargs: Any
    ) -> None:
        if state.max_steps == self._planned:
            return
        before = optimizer.param_groups[0]["lr"]
        if isinstance(lr_scheduler, LambdaLR):  # others go by the evaluations alone
            _recompute_rates(optimizer, lr_scheduler)
        after = optimizer.param_groups[0]["lr"]
        log(
            f"{state.max_steps} updates instead of {self._planned}: from update {state.global_step + 1} on the learning"
            f" rate follows the {args.lr_scheduler_type.value} schedule of {state.max_steps} updates ({before:.2e} -> "
            f"{after:.2e})"
        )
        if state.is_world_process_zero:
            for folder in self._samples.glob("step_*"):
                if int(folder.name.removeprefix("step_")) > state.global_step:
                    shutil.rmtree(folder)


def _recompute_rates(optimizer: Any, scheduler: LambdaLR) -> None:
    """A scheduler that was loaded knows its step; the rates in the optimizer's state are those of the old one."""
    rates = [
        base * factor(scheduler.last_epoch)
        for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    ]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    set_last_rates(scheduler, rates)
