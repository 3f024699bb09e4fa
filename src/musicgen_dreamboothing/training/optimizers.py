"""Optimizers: those of transformers by their names, Prodigy beside them, and weights that are averages."""

from __future__ import annotations

import ast
import importlib.util
from typing import Any

from torch import nn
from transformers import Trainer, TrainerCallback

from musicgen_dreamboothing.arguments import TrainArguments
from musicgen_dreamboothing.arguments.train import PRODIGY
from musicgen_dreamboothing.console import UserError

SCHEDULE_FREE = "schedule_free"
# Packages of optimizers, by how these are named; bitsandbytes is an extra of this package.
PACKAGES = {
    SCHEDULE_FREE: "schedulefree",
    "adamw_torch_8bit": "torchao",
    "adamw_torch_4bit": "torchao",
    "lomo": "lomo-optim",
    "adalomo": "lomo-optim",
    "grokadamw": "grokadamw",
    "apollo": "apollo-torch",
    "galore": "galore-torch",
    "stable_adamw": "torch-optimi",
}
BITSANDBYTES = ("8bit", "paged", "bnb")


def optimizer_name(options: TrainArguments) -> str:
    """The value of `--optim`."""
    return str(getattr(options.optim, "value", options.optim))


def install_hint(optimizer: str) -> str:
    """How to install the package that an optimizer needs and that may be missing; empty where none is known."""
    package = next((package for start, package in PACKAGES.items() if optimizer.startswith(start)), "")
    if not package and any(part in optimizer for part in BITSANDBYTES):
        missing = importlib.util.find_spec("bitsandbytes") is None
        return "; install it: pip install 'musicgen-dreamboothing[quantization]'" if missing else ""
    return f"; install it: pip install {package}" if package else ""


def optimizer_of(options: TrainArguments, model: nn.Module | None = None) -> tuple[Any, dict[str, Any]]:
    """Class and arguments of the optimizer that the options name.

    Raises:
        UserError: Prodigy is not installed.
    """
    if optimizer_name(options) != PRODIGY:
        return Trainer.get_optimizer_cls_and_kwargs(options, model)
    if importlib.util.find_spec("prodigyopt") is None:
        raise UserError("--optim prodigy needs a package of its own: pip install prodigyopt")
    from prodigyopt import Prodigy

    settings: dict[str, Any] = {
        "lr": options.learning_rate,
        "betas": (options.adam_beta1, options.adam_beta2),
        "eps": options.adam_epsilon,
    }
    given = [part.split("=", 1) for part in (options.optim_args or "").replace(" ", "").split(",") if part]
    return Prodigy, settings | {name: ast.literal_eval(value) for name, value in given}


class AverageWeights(TrainerCallback):
    """Leaves the averaged weights of a schedule-free optimizer in the model between two updates.

    These are what the optimizer learns (Defazio et al. 2024), so they are evaluated, played and saved; the next
    training step puts those for the gradient in their place.
    """

    def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        optimizer.eval()
