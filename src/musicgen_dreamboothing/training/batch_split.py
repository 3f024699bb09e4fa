"""How the clips of an update are split into micro-batches, accumulation steps and processes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from musicgen_dreamboothing.arguments import TrainArguments
from musicgen_dreamboothing.console import UserError, log, plural
from musicgen_dreamboothing.data.run_record import read_record
from musicgen_dreamboothing.data.tokens.tables import Tables
from musicgen_dreamboothing.model.checkpoint import Checkpoint
from musicgen_dreamboothing.training.checkpoints import last_checkpoint
from musicgen_dreamboothing.training.model import lora_settings
from musicgen_dreamboothing.training.plan import plan_of

SIZES, PROCESSES = ("per_device_train_batch_size", "gradient_accumulation_steps"), "processes"


def settle_split(options: TrainArguments, checkpoint: Checkpoint, tables: Sequence[Tables]) -> dict[str, Any]:
    """Settles batch size, accumulation and recomputation in the options, and returns what `run.json` says of them.

    A run that goes on keeps its split; a new one is split as memory allows, where that is left to us.

    Raises:
        UserError: the run can't go on with this number of processes.
    """
    earlier = _earlier_split(options)
    if earlier:
        for name in SIZES:
            setattr(options, name, earlier[name])
        if options.recompute == "auto":
            options.recompute = earlier["recompute"]
        _share(options, earlier.get(PROCESSES) or options.world_size)  # older records do not say how many
    elif options.recompute == "auto" or options.memory is not None:
        longest = max(max(table.train["seconds"]) for table in tables)  # own songs of the class may be longer
        caption = max(table.longest_caption or 0 for table in tables) or None
        plan = plan_of(options, checkpoint, lora_settings(options), longest, caption)
        options.per_device_train_batch_size, options.gradient_accumulation_steps = plan.clips, plan.accumulation
        options.recompute = plan.policy
    return {name: getattr(options, name) for name in (*SIZES, "recompute")} | {PROCESSES: options.world_size}


def _earlier_split(options: TrainArguments) -> dict[str, Any]:
    """Of the run that goes on; without a checkpoint it begins anew, perhaps since memory ran out."""
    folder = Path(str(options.output_dir))
    record = read_record(folder) if last_checkpoint(folder) is not None else None
    return record.split if record is not None else {}


def _share(options: TrainArguments, before: int) -> None:
    """Shares the clips of an update among the processes that there are now."""
    now, (clips, times) = options.world_size, (getattr(options, name) for name in SIZES)
    if now == before:
        return
    shared = shared_among(now, clips=clips, times=times, before=before, drop_last=options.dataloader_drop_last)
    if shared is None:
        cure = f"accelerate launch --num_processes {before}" if before > 1 else "without accelerate launch"
        raise UserError(
            f"the run in {options.output_dir} began with {_processes(before)}, and its updates of "
            f"{plural(clips * times * before, 'clip')} can't be shared evenly by {now}; start it with {before} "
            f"again ({cure}), or discard it with --restart true"
        )
    options.per_device_train_batch_size, options.gradient_accumulation_steps = shared
    log(
        f"the run began with {_processes(before)}, now {now}: each update keeps its "
        f"{plural(clips * times * before, 'clip')}, as {shared[0]} at once, {shared[1]} times, on each process"
    )


def shared_among(now: int, *, clips: int, times: int, before: int, drop_last: bool) -> tuple[int, int] | None:
    """Clips at once and accumulation steps that give each update the clips it would have had; None where none do.

    Args:
        now: processes that share an update.
        clips: at once on each of the processes before.
        times: accumulation steps before.
        before: processes before.
        drop_last: whether an epoch ends with its last round of all processes that is full: then its size must stay.
    """
    total, together = clips * times * before, clips * before
    for size in range(together if drop_last else clips, 0, -1):
        if total % (size * now) == 0 and (not drop_last or size * now == together):
            return size, total // (size * now)
    return None


def _processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count} processes"
