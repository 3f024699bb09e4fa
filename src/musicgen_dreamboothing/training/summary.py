"""What a run logs about its data and its result, and the summary in `run.json`."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Any

from transformers import IntervalStrategy

from musicgen_dreamboothing.arguments import PATIENCE, TrainArguments
from musicgen_dreamboothing.console import best_effort, log, plural
from musicgen_dreamboothing.data.tokens.tables import Tables
from musicgen_dreamboothing.device import peak_memory, peak_reserved_memory
from musicgen_dreamboothing.model.checkpoint import Checkpoint
from musicgen_dreamboothing.model.delay import SIDES
from musicgen_dreamboothing.training.trainer import CodebookTrainer


def last_evaluation(trainer: CodebookTrainer) -> dict[str, float]:
    """The evaluation of the weights that are saved, from the log; made now where the strategy left none."""
    if not trainer.eval_dataset:  # none, or no clips: the distance to the songs needs none
        return {}
    state = trainer.state
    has_best = trainer.args.load_best_model_at_end and state.best_model_checkpoint is not None
    step = state.best_global_step if has_best else state.global_step
    evaluations = [line for line in state.log_history if "eval_loss" in line and line["step"] == step]
    logs = evaluations[-1] if evaluations else trainer.evaluate()
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
    first_update: int,
) -> dict[str, Any]:
    """The summary of `run.json`; seconds and speed are those of the updates since the run last went on."""
    gigabytes, kind = peak_memory(trainer.args.device)
    first = [line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line and line["step"] == 0]
    audio_seconds = trainer.audio_seconds(checkpoint)
    return {
        "kept": _best_weights(trainer),
        "updates": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "train_loss": metrics.get("train_loss"),
        "went_on_from": first_update,  # seconds and speed are those of the updates behind it
        "seconds": round(seconds, 1),
        "audio_seconds": round(audio_seconds, 1),
        "x_real_time": round(audio_seconds / seconds, 2),
        "peak_gb": round(gigabytes, 2),
        "peak_of": kind,
        "reserved_gb": round(peak_reserved_memory(trainer.args.device), 2),
        "loss_before": first[0] if first else None,
        "clips": len(tables.train),
    }


def _best_weights(trainer: CodebookTrainer) -> str:
    """Which weights are saved, and why; empty if they are the last ones."""
    state, name = trainer.state, trainer.args.metric_for_best_model
    if not trainer.args.load_best_model_at_end or state.best_metric is None or not math.isfinite(state.best_metric):
        return ""
    key = name if str(name).startswith("eval_") else f"eval_{name}"
    epochs = {line["step"]: line["epoch"] for line in state.log_history if key in line and line["step"] > 0}
    which = "highest" if trainer.args.greater_is_better else "lowest"
    early = "" if state.global_step >= state.max_steps else f"; stopped early, at update {state.global_step}"
    return (
        f"the weights of epoch {epochs.get(state.best_global_step, 0.0):g} "
        f"(update {state.best_global_step} of {state.max_steps}) were saved: "
        f"{key} {state.best_metric:.4f} was the {which} of {plural(len(epochs), 'evaluation')}{early}"
    )


def log_data(tables: Tables, options: TrainArguments) -> None:
    """The clips that are trained on and held out."""
    minutes = sum(tables.train["seconds"]) / 60
    log(f"Training on {plural(len(tables.train), 'clip')}, {minutes:.1f} minutes")
    for songs in tables.split.copies:
        log(f"note: the same recording, held out or trained on together: {' = '.join(songs)}")
    if tables.split.left_out:
        names = ", ".join(tables.split.left_out)
        log(f"note: not trained on, since the evaluation split has the same recording: {names}")
    if held := tables.held_out_songs:
        names = ", ".join(held[:3]) + (", …" if len(held) > 3 else "")
        log(f"Evaluating on {plural(len(tables.held_out), 'clip')} of {plural(len(held), 'held-out song')}: {names}")
    elif options.eval_strategy != IntervalStrategy.NO and options.eval_fraction > 0:
        log("note: there are too few songs to hold one out; add songs, or give --eval_split_name")
    if not len(tables.held_out) and not options.measures_style:
        for name in ("metric_for_best_model", "early_stopping_patience"):
            if getattr(options, name):
                log(f"note: --{name} has no effect without held-out songs: the last weights are saved")


def log_stopping(stops_by_default: bool, metric: str | None) -> None:
    """Early stopping that was not asked for."""
    if stops_by_default:
        log(
            f"Early stopping: the training ends after {PATIENCE} epochs in a row without a lower {metric or 'loss'}, "
            "and the best weights are saved (--early_stopping_patience 0 switches it off)"
        )


def log_summary(
    folder: Path, summary: dict[str, Any], metrics: dict[str, float], notice: str, prompt: str | None
) -> None:
    """The end of a run: time, memory, held-out loss, where it is saved, and the command to listen to it.

    Args:
        folder: of the run.
        summary: of `summary_of`.
        metrics: of the last evaluation.
        notice: on the licence of the base.
        prompt: to listen with.
    """
    reserved = f" ({summary['reserved_gb']:.2f} GB reserved)" if summary["reserved_gb"] else ""
    log(
        f"{plural(summary['updates'] - summary['went_on_from'], 'update')} in {summary['seconds']:.0f} s, "
        f"{summary['x_real_time']:.1f}x real time, peak {summary['peak_of']} {summary['peak_gb']:.2f} GB{reserved}"
    )
    if metrics:
        before = summary["loss_before"]
        sides = [f"{side} {metrics[key]:.4f}" for side in SIDES if (key := f"eval_ce_{side}") in metrics]
        log(
            f"Held-out loss {'' if before is None else f'{before:.4f} before, '}{metrics['eval_loss']:.4f} after"
            + (f" ({', '.join(sides)})" if sides else "")
        )
    if summary["kept"]:
        log(summary["kept"])
    log(f"Saved in {folder}")
    log(notice)
    words = shlex.join(["generate", str(folder), prompt or "your prompt", "--output_dir", str(folder / "generated")])
    log(f"Listen:  musicgen-dreamboothing {words}")
