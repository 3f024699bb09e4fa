"""The output of a training: one progress bar, and one line for each update."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ProgressCallback

from musicgen_dreamboothing.console import log
from musicgen_dreamboothing.model.delay import SIDES

EXTRAS = {"instance_loss": "songs", "prior_loss": "class", "eval_style": "distance to your songs"}


class BarAndLines(ProgressCallback):
    """transformers' progress bar, with lines that can be read instead of dictionaries."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self.training_bar is not None and (line := line_of(logs or {})):
            with self.training_bar.external_write_mode():
                log(line)


class Lines(TrainerCallback):
    """The lines alone, for logs that are kept in files."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if line := line_of(logs or {}):
            log(line)


def line_of(logs: dict[str, Any]) -> str:
    """One line for the logs of a training step or an evaluation; empty for anything else."""
    prefix = "eval_" if "eval_loss" in logs else ""
    if f"{prefix}loss" not in logs and "eval_style" not in logs:
        return ""
    parts = [f"epoch {float(logs.get('epoch', 0)):.2f}"]
    if f"{prefix}loss" in logs:
        parts += [
            "held-out" if prefix else "training",
            f"loss {float(logs[prefix + 'loss']):.4f}",
            f"({_codebooks(logs, prefix)})",
        ]
    for key, name in EXTRAS.items():
        if key in logs:
            parts.append(f"{name} {float(logs[key]):.4f}")
    if "learning_rate" in logs:
        parts.append(f"lr {float(logs['learning_rate']):.2e}")
    return "  ".join(parts)


def _codebooks(logs: dict[str, Any], prefix: str) -> str:
    """The losses of the codebooks, those of a stereo model by side."""
    values = [f"{float(value):.3f}" for key, value in logs.items() if key.startswith(f"{prefix}ce_q")]
    if f"{prefix}ce_{SIDES[0]}" not in logs:
        return f"codebooks {' '.join(values)}"
    return ", ".join(f"{side} {' '.join(values[number :: len(SIDES)])}" for number, side in enumerate(SIDES))
