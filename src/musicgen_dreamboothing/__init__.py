"""Teach Meta's MusicGen your own music: from a folder of songs to a LoRA adapter and new music.

    from musicgen_dreamboothing import Generator, evaluate, prepare, train

The public functions take the options of the command line as keywords (`train(dataset_name="songs", ...)`), return
dataclasses, and raise `UserError` where the user can correct something. They are loaded on first use, so that
importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from musicgen_dreamboothing.console import UserError, quiet_loggers

if TYPE_CHECKING:
    from musicgen_dreamboothing.api import (
        doctor,
        evaluate,
        export,
        extract,
        generate,
        import_checkpoint,
        merge,
        prepare,
        push,
        train,
        warm_start,
    )
    from musicgen_dreamboothing.generation.generator import Generator
    from musicgen_dreamboothing.generation.requests import GenerationRequest

__version__ = "0.1.0"
__all__ = [
    "GenerationRequest",
    "Generator",
    "UserError",
    "doctor",
    "evaluate",
    "export",
    "extract",
    "generate",
    "import_checkpoint",
    "merge",
    "prepare",
    "push",
    "train",
    "warm_start",
]

MODULES = {"Generator": "generation.generator", "GenerationRequest": "generation.requests"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
    module = MODULES.get(name, "api")
    with quiet_loggers("bitsandbytes"):  # peft imports it, and it logs which kernels it lacks
        return getattr(importlib.import_module(f"{__name__}.{module}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
