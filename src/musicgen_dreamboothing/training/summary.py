"""The end of a run: what it took, what it brought, which weights were kept."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Any

from musicgen_dreamboothing.arguments import TrainArguments
from musicgen_dreamboothing.console import best_effort, log, plural
from musicgen_dreamboothing.data.tokens.tables import Tables
from musicgen_dreamboothing.device import peak_memory, peak_reserved_memory
from musicgen_dreamboothing.model.checkpoint import Checkpoint
from musicgen_dreamboothing.training.trainer import CodebookTrainer


def last_evaluation(trainer: CodebookTrainer) -> dict[str, float]:
    """The newest evaluation in the log; made now where the strategy left none at the end."""
    if trainer.eval_dataset is None:
        return {}
    evaluations = [line for line in trainer.state.log_history if "eval_loss" in line]
    is_last = bool(evaluations) and evaluations[-1]["step"] == trainer.state.global_step
    if is_last and not trainer.args.load_best_model_at_end:
        logs = evaluations[-1]
    else:
        logs = trainer.evaluate()
    return {key: float(value) for key, value in logs.items() if key.startswith(("eval_loss", "eval_ppl", "eval_ce"))}


def final_evaluation(trainer: CodebookTrainer) -> dict[str, float]:
    """`last_evaluation`, without which one process can save; several have to evaluate together."""
    if trainer.accelerator.num_processes > 1:
        return last_evaluation(trainer)
    with best_effort("the held-out songs were not evaluated at the end"):
        return last_evaluation(trainer)
    return {}


def summary_of(
    trainer: CodebookTrainer,
    metrics: dict[str, float],
    tables: Tables,
    checkpoint: Checkpoint,
    seconds: float,
    went_on_from: int,
) -> dict[str, Any]:
    """The summary of `run.json`; seconds and speed are those of the updates since the run last went on."""
    gigabytes, kind = peak_memory(trainer.args.device)
    first = [line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line and line["step"] == 0]
    heard = trainer.audio_seconds(checkpoint)
    return {
        "kept": _kept(trainer),
        "updates": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "train_loss": metrics.get("train_loss"),
        "went_on_from": went_on_from,  # seconds and speed are those of the updates behind it
        "seconds": round(seconds, 1),
        "audio_seconds": round(heard, 1),
        "x_real_time": round(heard / seconds, 2),
        "peak_gb": round(gigabytes, 2),
        "peak_of": kind,
        "reserved_gb": round(peak_reserved_memory(trainer.args.device), 2),
        "loss_before": first[0] if first else None,
        "clips": len(tables.train),
    }


def _kept(trainer: CodebookTrainer) -> str:
    """Which weights were kept, and why; empty where they are the last ones."""
    state, name = trainer.state, trainer.args.metric_for_best_model
    if not trainer.args.load_best_model_at_end or state.best_metric is None or not math.isfinite(state.best_metric):
        return ""
    key = name if str(name).startswith("eval_") else f"eval_{name}"
    epochs = {line["step"]: line["epoch"] for line in state.log_history if key in line and line["step"] > 0}
    which = "highest" if trainer.args.greater_is_better else "lowest"
    early = "" if state.global_step >= state.max_steps else f"; stopped early, at update {state.global_step}"
    return (
        f"the weights of epoch {epochs.get(state.best_global_step, 0.0):g} "
        f"(update {state.best_global_step} of {state.max_steps}) were kept: "
        f"{key} {state.best_metric:.4f} was the {which} of {plural(len(epochs), 'evaluation')}{early}"
    )


def tell(
    folder: Path,
    summary: dict[str, Any],
    metrics: dict[str, float],
    notice: str,
    options: TrainArguments,
) -> None:
    """The end of a run in a few lines: what it took, what it brought, where it is, what comes next."""
    reserved = f" ({summary['reserved_gb']:.2f} GB reserved)" if summary["reserved_gb"] else ""
    log(
        f"{plural(summary['updates'] - summary['went_on_from'], 'update')} in {summary['seconds']:.0f} s, "
        f"{summary['x_real_time']:.1f}x real time, peak {summary['peak_of']} {summary['peak_gb']:.2f} GB{reserved}"
    )
    if metrics:
        before = summary["loss_before"]
        log(f"held-out loss {'' if before is None else f'{before:.4f} before, '}{metrics['eval_loss']:.4f} after")
    if summary["kept"]:
        log(summary["kept"])
    log(f"saved in {folder}")
    log(notice)
    prompt = options.instance_prompt or "your prompt"
    words = shlex.join(["generate", str(folder), prompt, "--output_dir", str(folder / "generated")])
    log(f"listen:  musicgen-dreamboothing {words}")
