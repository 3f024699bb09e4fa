"""What the benchmarks share: variants in processes of their own, medians, a table, and results as JSON.

The process that a person starts never imports torch: Linux counts the memory of a parent into the
peak of its children. On a GPU one process runs all variants: there the peak can be reset between them,
and half of their time would be imports.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
LIBRARIES = ("torch", "transformers", "peft")
SIZES = ("tiny", "melody-tiny", "small", "medium", "large", "melody", "melody-large")  # of _shapes.py
PROBE = "machine"  # the variant that every benchmark has: tells about the machine and measures nothing
ON_THE_CPU = ("--device", "cpu")  # for the probe of a benchmark that computes nothing elsewhere
NO_MEMORY = "out of memory"  # stands where the figures of a variant would


def options(about: str | None) -> argparse.ArgumentParser:
    """A parser with what all benchmarks take; `about` is the benchmark's docstring."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--variant", nargs="+", help=argparse.SUPPRESS)  # what a child process is to measure
    return parser


def add_checkpoints(parser: argparse.ArgumentParser) -> None:
    """The option that `checkpoint_folder` reads."""
    parser.add_argument("--checkpoints", help="folder where checkpoints are kept for the next benchmark")
    parser.add_argument("--checkpoint", help=argparse.SUPPRESS)


@contextlib.contextmanager
def checkpoint_folder(options: argparse.Namespace, size: str) -> Iterator[Path]:
    """Where the checkpoint of a size is written, or already stands; without `--checkpoints` it goes at the end."""
    if options.checkpoints is not None:
        Path(options.checkpoints).mkdir(parents=True, exist_ok=True)
        yield Path(options.checkpoints) / size
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / size


def play(options: argparse.Namespace, compare: Callable[[Any], None], work: Callable[[Any], Any] | None = None) -> None:
    """The part of a process: that of a person compares, a child does its variants and tells what `work` returns.

    What a child says besides goes to stderr, for its last line on stdout is the answer.
    """
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # for our commands too, which choose by themselves
    if options.variant is None:
        compare(options)
        return
    with contextlib.redirect_stdout(sys.stderr):
        found = [_worked(argparse.Namespace(**vars(options) | {"variant": one}), work) for one in options.variant]
    print(json.dumps(found), flush=True)


def _worked(options: argparse.Namespace, work: Callable[[Any], Any] | None) -> dict[str, Any]:
    return machine(options.device) if options.variant == PROBE or work is None else work(options) or {}


def torch_device(name: str) -> Any:
    """The device of `--device`."""
    import torch

    from musicgen_dreamboothing.device import best_device

    return best_device() if name == "auto" else torch.device(name)


def run_variants(script: str, about: Mapping[str, Any], variants: Sequence[str], *extra: str) -> list[dict[str, Any]]:
    """What each variant tells: on a GPU from one process, elsewhere from a process for each."""
    if about["kind"] == "cuda":
        return _run(script, variants, *extra)
    return [run_variant(script, variant, *extra) for variant in variants]


def run_variant(script: str, variant: str, *extra: str) -> dict[str, Any]:
    """Runs a benchmark once more for one variant, in its own process, and returns what that tells."""
    return _run(script, [variant], *extra)[0]


def _run(script: str, variants: Sequence[str], *extra: str) -> list[dict[str, Any]]:
    command = [sys.executable, script, *sys.argv[1:], "--variant", *variants, *extra]
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=os.environ | quiet)
    if done.returncode:
        raise SystemExit(f"{Path(script).name}: {', '.join(variants)} failed with exit code {done.returncode}")
    told: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return told


def unless_memory_ends(measure: Callable[[Any], dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """What `measure` tells, on a GPU with memory as a new process would find it; or that it did not suffice."""
    from musicgen_dreamboothing.device import is_out_of_memory, release_memory, reset_peak_memory

    release_memory()  # what the variant before has left
    reset_peak_memory()
    try:
        return measure(options)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    return {"failed": NO_MEMORY}


def rounded(values: Any) -> Any:
    """The same with four significant digits: more would be noise."""
    if isinstance(values, Mapping):
        return {key: rounded(value) for key, value in values.items()}
    if isinstance(values, list):
        return [rounded(value) for value in values]
    return float(f"{values:.4g}") if isinstance(values, float) else values


def machine(device_name: str) -> dict[str, Any]:
    """What a result depends on besides the code."""
    import torch

    device = torch_device(device_name)
    features = torch.cpu.get_capabilities()
    about = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "kind": device.type,
        "cpu": cpu_name(),
        "cpu_has_bf16_units": bool(features.get("avx512_bf16") or features.get("amx_bf16")),
        "threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
    }
    return about | {library: version(library) for library in LIBRARIES}


def cpu_name() -> str:
    """The name on the chip, as far as the system knows it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def slug(about: Mapping[str, Any]) -> str:
    """File name of a device's results: `nvidia-h200`, `intel-xeon-processor-2.50ghz-2-threads`."""
    name = about["device"] if about["kind"] == "cuda" else f"{about['device']} {about['threads']} threads"
    name = re.sub(r"\((R|TM|C)\)|@", " ", name, flags=re.IGNORECASE)
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def keep(about: Mapping[str, Any], benchmark: str, case: str, result: Mapping[str, Any]) -> Path:
    """Writes a result to the file of its device, beside those that stand there, in one move."""
    path = RESULTS / f"{slug(about)}.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    stamp = {"date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "machine": dict(about)}
    results.setdefault(benchmark, {})[case] = rounded(stamp | dict(result))
    path.parent.mkdir(exist_ok=True)
    scratch = path.with_suffix(".new")
    scratch.write_text(json.dumps(results, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(scratch, path)
    return path


def show(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints rows as a table under the names of their columns."""
    columns = list(rows[0])
    cells = [columns, *[[_text(row[column]) for column in columns] for row in rows]]
    widths = [max(len(line[place]) for line in cells) for place in range(len(columns))]
    print(f"\n{title}")
    for line in cells:
        first, *rest = (f"{cell:{'<' if place == 0 else '>'}{widths[place]}}" for place, cell in enumerate(line))
        print("  ".join([first, *rest]).rstrip())


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.2f}"
    return "–" if value is None else str(value)
