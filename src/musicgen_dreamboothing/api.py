"""The Python API: each verb of the command line as a function with typed keyword options.

Nothing is printed: lines of progress go to the logger `musicgen_dreamboothing` at level INFO, and progress bars are
shown where that level is enabled.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from musicgen_dreamboothing.arguments import (
    DoctorArguments,
    EvaluateArguments,
    ExportArguments,
    ExtractArguments,
    GenerateArguments,
    ImportArguments,
    MergeArguments,
    PrepareArguments,
    PushArguments,
    TrainArguments,
    WarmStartArguments,
)
from musicgen_dreamboothing.data.doctor import checkup
from musicgen_dreamboothing.data.prepare import prepare as run_prepare
from musicgen_dreamboothing.evaluation.evaluate import evaluate as run_evaluate
from musicgen_dreamboothing.generation.generate import generate as run_generate
from musicgen_dreamboothing.sharing.export import export as run_export
from musicgen_dreamboothing.sharing.extract import extract as run_extract
from musicgen_dreamboothing.sharing.import_checkpoint import import_checkpoint as run_import
from musicgen_dreamboothing.sharing.merge import merge as run_merge
from musicgen_dreamboothing.training.push import push as run_push
from musicgen_dreamboothing.training.train import train as run_train
from musicgen_dreamboothing.training.warm_start import warm_start as run_warm_start

Options = ParamSpec("Options")
Arguments = TypeVar("Arguments")
Result = TypeVar("Result")


def _with_keywords(
    arguments: Callable[Options, Arguments], run: Callable[[Arguments], Result]
) -> Callable[Options, Result]:
    """A function that takes the fields of a dataclass of options as arguments, with its docstring and signature."""

    @functools.wraps(run)
    def call(*args: Options.args, **kwargs: Options.kwargs) -> Result:
        return run(arguments(*args, **kwargs))

    parameters = inspect.signature(arguments).parameters.values()
    call.__signature__ = inspect.Signature(list(parameters))  # type: ignore[attr-defined]  # read by help() and editors
    return call


prepare = _with_keywords(PrepareArguments, run_prepare)
doctor = _with_keywords(DoctorArguments, checkup.doctor)
train = _with_keywords(TrainArguments, run_train)
generate = _with_keywords(GenerateArguments, run_generate)
evaluate = _with_keywords(EvaluateArguments, run_evaluate)
merge = _with_keywords(MergeArguments, run_merge)
warm_start = _with_keywords(WarmStartArguments, run_warm_start)
export = _with_keywords(ExportArguments, run_export)
import_checkpoint = _with_keywords(ImportArguments, run_import)
extract = _with_keywords(ExtractArguments, run_extract)
push = _with_keywords(PushArguments, run_push)
