"""Teach Meta's MusicGen your own music: from a folder of songs to a LoRA adapter and new music.

The public functions are loaded on first use, so that importing the package costs nothing:
`prepare`, `train`, `generate`, `doctor` and `evaluate`, each with its arguments, and `Generator`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from musicgen_dreamboothing.console import quiet_loggers

if TYPE_CHECKING:
    from musicgen_dreamboothing.arguments import (
        DemoArguments,
        DoctorArguments,
        EvaluateArguments,
        GenerateArguments,
        PrepareArguments,
        TrainArguments,
    )
    from musicgen_dreamboothing.data.doctor.checkup import doctor
    from musicgen_dreamboothing.data.prepare import prepare
    from musicgen_dreamboothing.evaluation.evaluate import evaluate
    from musicgen_dreamboothing.generation.generate import generate
    from musicgen_dreamboothing.generation.generator import Generator
    from musicgen_dreamboothing.training.train import train

__version__ = "0.1.0"
__all__ = [
    "DemoArguments",
    "DoctorArguments",
    "EvaluateArguments",
    "GenerateArguments",
    "Generator",
    "PrepareArguments",
    "TrainArguments",
    "doctor",
    "evaluate",
    "generate",
    "prepare",
    "train",
]

_HOMES = {
    "DemoArguments": "arguments",
    "DoctorArguments": "arguments",
    "EvaluateArguments": "arguments",
    "GenerateArguments": "arguments",
    "PrepareArguments": "arguments",
    "TrainArguments": "arguments",
    "Generator": "generation.generator",
    "doctor": "data.doctor.checkup",
    "evaluate": "evaluation.evaluate",
    "generate": "generation.generate",
    "prepare": "data.prepare",
    "train": "training.train",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
    with quiet_loggers("bitsandbytes"):  # peft imports it, and it says which kernels it lacks
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
