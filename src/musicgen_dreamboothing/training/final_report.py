"""The comparison of a finished run with its base, `--final_report`."""

from __future__ import annotations

import shlex
from dataclasses import fields, replace
from pathlib import Path

from accelerate import PartialState

from musicgen_dreamboothing.arguments import EvaluateArguments, TrainArguments
from musicgen_dreamboothing.console import log, reason_of
from musicgen_dreamboothing.device import best_device


def final_report(folder: Path, options: TrainArguments) -> None:
    """Compares the run with its base, where that is asked for; `auto` is for GPUs, on a CPU it takes long.

    The run is finished and saved: whatever goes wrong here is one line, with the command that repeats it.
    """
    asked = _report_options(folder, options)
    command = _command(asked)
    is_asked_for = options.final_report == "true" or (options.final_report == "auto" and options.device.type == "cuda")
    if is_asked_for and PartialState().is_main_process:
        from musicgen_dreamboothing.evaluation.evaluate import evaluate
        from musicgen_dreamboothing.evaluation.metrics.embedding import NONE, is_cached

        try:
            model = asked.embedder or asked.clap_model_name_or_path
            if options.final_report == "auto" and not is_cached(model, options.cache_dir):
                name = asked.embedder or "CLAP (0.8 GB)"
                log(f"the report does without {name}, which is not downloaded unasked; with it: {command}")
                asked = replace(asked, embedder=NONE)
            evaluate(asked)
        except Exception as error:
            log(f"the run is finished and saved, but its report failed ({reason_of(error)}); to repeat it: {command}")
    elif options.final_report == "auto":
        log(f"Evaluate:  {command}")


def _report_options(folder: Path, options: TrainArguments) -> EvaluateArguments:
    return EvaluateArguments(
        run=str(folder),
        embedder=options.embedder,
        trust_remote_code=options.trust_remote_code and options.embedder is not None,
        clap_model_name_or_path=options.clap_model_name_or_path,
        quantization=options.quantization,
        device="cpu" if options.device.type == "cpu" else str(options.device),  # a rank's would be cpu:0
        cache_dir=options.cache_dir,
        token=options.token,
    )


def _command(asked: EvaluateArguments) -> str:
    """The command of a report, without a token, and without the device that it would choose by itself."""
    usual = {entry.name: entry.default for entry in fields(asked)} | {"device": str(best_device())}
    names = ("embedder", "trust_remote_code", "clap_model_name_or_path", "quantization", "device", "cache_dir")
    given = {name: value for name in names if (value := getattr(asked, name)) != usual[name]}
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    return f"musicgen-dreamboothing {shlex.join(['evaluate', asked.run, *words])}"
