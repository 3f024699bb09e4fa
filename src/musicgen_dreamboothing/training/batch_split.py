"""How the clips of an update are split into micro-batches, accumulation steps and processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musicgen_dreamboothing.arguments import TrainArguments
from musicgen_dreamboothing.console import UserError, log, plural
from musicgen_dreamboothing.data.run_record import read_record
from musicgen_dreamboothing.data.tokens.tables import Tables
from musicgen_dreamboothing.model.checkpoint import Checkpoint
from musicgen_dreamboothing.training.plan import plan_step


@dataclass(frozen=True)
class BatchSplit:
    """How an update is computed; `run.json` has the same names."""

    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    recompute: str
    processes: int


def settle_split(
    options: TrainArguments, checkpoint: Checkpoint, tables: Sequence[Tables], resume: Path | None
) -> BatchSplit:
    """The split of the run that `resume` is a checkpoint of, or the one of the options, or the fastest that fits.

    Raises:
        UserError: the run cannot be resumed with this number of processes.
    """
    processes = options.world_size
    size, steps, recompute = options.per_device_train_batch_size, options.gradient_accumulation_steps, options.recompute
    if resume is not None and (record := read_record(resume.parent)) is not None and (earlier := record.split):
        size, steps = _share(options, earlier)
        recompute = earlier["recompute"] if recompute == "auto" else recompute
    elif recompute == "auto" or options.memory is not None:
        longest = max(max(table.train["seconds"]) for table in tables)  # songs of the class may be longer
        caption = max(table.longest_caption or 0 for table in tables) or None
        plan = plan_step(options, checkpoint, longest, caption)
        size, steps, recompute = plan.clips, plan.accumulation, plan.policy
    return BatchSplit(size, steps, recompute, processes)


def _share(options: TrainArguments, earlier: dict[str, Any]) -> tuple[int, int]:
    """Clips at once and accumulation steps with which today's processes compute the same updates."""
    clips, times = earlier["per_device_train_batch_size"], earlier["gradient_accumulation_steps"]
    now = options.world_size
    before = earlier.get("processes") or now  # missing in records of earlier versions
    if now == before:
        return clips, times
    shared = shared_among(now, clips=clips, times=times, before=before, drop_last=options.dataloader_drop_last)
    if shared is None:
        command = f"accelerate launch --num_processes {before}" if before > 1 else "without accelerate launch"
        raise UserError(
            f"the run in {options.output_dir} began with {_processes(before)}, and its updates of "
            f"{plural(clips * times * before, 'clip')} can't be shared evenly by {now}; start it with {before} "
            f"again ({command}), or discard it with --restart true"
        )
    log(
        f"The run began with {_processes(before)}, now {now}: each update keeps its "
        f"{plural(clips * times * before, 'clip')}, as {shared[0]} at once, {shared[1]} times, on each process"
    )
    return shared


def shared_among(now: int, *, clips: int, times: int, before: int, drop_last: bool) -> tuple[int, int] | None:
    """Clips at once and accumulation steps that keep the clips of each update; None where there are none.

    Args:
        now: processes that share an update.
        clips: at once on each of the processes before.
        times: accumulation steps before.
        before: processes before.
        drop_last: whether the last round of an epoch is dropped unless all processes fill it: then its size must stay.
    """
    total, together = clips * times * before, clips * before
    for size in range(together if drop_last else clips, 0, -1):
        if total % (size * now) == 0 and (not drop_last or size * now == together):
            return size, total // (size * now)
    return None


def _processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count} processes"
