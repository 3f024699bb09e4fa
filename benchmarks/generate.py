"""A step of generation of ours against transformers' `generate`, and many prompts at once against one by one.

    python benchmarks/generate.py                       # small with random weights, and the built-in tiny checkpoint
    python benchmarks/generate.py --size small --seconds 2

A step makes one frame of all codebooks, under guidance 3. Every variant loads its model by itself, on a CPU in a
process of its own; the codec is left out. Where a step is short its time is mostly Python's, where it is long the
weights'.

transformers              `generate` of its own class, in fp32; on a GPU in bf16
transformers, 8 at once   the same with eight prompts, padded; on a GPU, else if asked for
ours                      our engine in `--dtype`
ours, int8                the same with 8-bit weights
ours, 8 at once           eight prompts in one batch

The eight prompts have several lengths; their speed counts clips.

One should see a table of milliseconds a step with their ratios to transformers' own. transformers may be timed over
shorter clips (`--transformers_seconds`), for a step is what is compared; the table says how long the clips were.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _common

from musicgen_dreamboothing.cli import ask_for_huge_pages

THEIRS, THEIR_EIGHT = "transformers", "transformers, 8 at once"
OURS, INT8, EIGHT = "ours", "ours, int8", "ours, 8 at once"
VARIANTS = (THEIRS, THEIR_EIGHT, OURS, INT8, EIGHT)
ON_A_CPU = (THEIRS, OURS, INT8, EIGHT)
COLUMNS = ("variant", "dtype", "clip s", "ms/step", "speed", "x real time", "peak GB")
WRITE = "checkpoint"
BUILT_IN = "built-in"
SIZES = (BUILT_IN, *_common.SIZES)
PROMPTS = (
    "reggae at 75 bpm in a minor with organ, bass and drums",
    "folk song at 92 bpm in g major with acoustic guitar",
    "techno at 132 bpm with synth lead",
    "ballad at 66 bpm in c major with piano, strings and soft drums",
    "punk at 188 bpm in e minor with overdriven guitar, picked bass and loud drums",
    "house track at 124 bpm with synth stabs",
    "soft piano etude in c major",
    "techno at 140 bpm with drum machine",
)
GUIDANCE = 3.0
LONG_ENOUGH = 3.0  # seconds that are timed: steps of the tiny checkpoint take a few milliseconds


def main() -> None:
    _common.play(_options(), _compare, _work)


def _work(options: argparse.Namespace) -> dict[str, Any] | None:
    if options.variant == WRITE:
        return _write(options.case_size, Path(options.checkpoint))
    ask_for_huge_pages()
    return _common.unless_memory_ends(_measured, options)


def _options() -> argparse.Namespace:
    parser = _common.options(__doc__)
    parser.add_argument("--size", nargs="*", choices=SIZES, default=["small", BUILT_IN], help="checkpoints")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a clip")
    parser.add_argument("--transformers_seconds", type=float, help="the same for transformers; default as ours")
    parser.add_argument("--rounds", type=int, default=1, help="how often the variants take turns")
    parser.add_argument("--dtype", default="auto", help="precision of ours: auto, float32, bfloat16 or float16")
    parser.add_argument("--only", nargs="*", choices=VARIANTS, help="variants to run")
    _common.add_checkpoints(parser)
    parser.add_argument("--case_size", help=argparse.SUPPRESS)
    return parser.parse_args()


def _compare(options: argparse.Namespace) -> None:
    about = _common.run_variant(__file__, _common.PROBE)
    only = options.only or (VARIANTS if about["kind"] == "cuda" else ON_A_CPU)
    order = [variant for _ in range(options.rounds) for variant in only]
    for size in options.size:
        with _common.checkpoint_folder(options, size) as folder:
            extra = ("--checkpoint", str(folder), "--case_size", size)
            _, *told = _common.run_variants(__file__, about, [WRITE, *order], *extra)
        runs = [{"variant": variant} | run for variant, run in zip(order, told, strict=True)]
        rows = _rows(runs)
        case = f"{size}, {options.seconds:g} s, {options.dtype}"
        _common.show(f"generation on {about['device']}: {case}", rows)
        path = _common.keep(about, "generate", case, {"rounds": options.rounds, "rows": rows, "runs": runs})
        print(f"kept in {path.parent.name}/{path.name}")


def _rows(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The best of each variant's runs, and the ratio to the first one's; no figures where memory ended."""
    rows: list[dict[str, Any]] = []
    for variant in dict.fromkeys(run["variant"] for run in runs):
        rows.append(_row(variant, [run for run in runs if run["variant"] == variant], rows[0] if rows else None))
    return rows


def _row(variant: str, runs: list[dict[str, Any]], first: dict[str, Any] | None) -> dict[str, Any]:
    if any("failed" in run for run in runs):
        return dict.fromkeys(COLUMNS) | {"variant": variant, "ms/step": _common.NO_MEMORY}
    step = min(run["ms"] for run in runs)
    clips, seconds = runs[0]["clips"], runs[0]["seconds"]
    speed = clips if first is None else None if first["dtype"] is None else clips * first["ms/step"] / step
    heard = clips * seconds / min(run["took"] for run in runs)
    peak = max(run["peak_gb"] for run in runs)
    figures = (variant, runs[0]["dtype"], seconds, step, speed, heard, peak)
    return dict(zip(COLUMNS, figures, strict=True))


def _write(size: str, folder: Path) -> None:
    """A checkpoint with a tokenizer beside it; the built-in one is linked."""
    from _shapes import ASSETS, write_checkpoint

    if size != BUILT_IN:
        write_checkpoint(size, folder)
    elif not folder.exists():
        folder.symlink_to(ASSETS / "musicgen-tiny")


def _measured(options: argparse.Namespace) -> dict[str, Any]:
    """The mean time of a step in the fastest clip, behind a short one that warms up."""
    import torch

    from musicgen_dreamboothing.device import parse_dtype, peak_memory, synchronize

    device = _common.torch_device(options.device)
    theirs = options.variant in (THEIRS, THEIR_EIGHT)
    prompts = PROMPTS if options.variant in (THEIR_EIGHT, EIGHT) else PROMPTS[:1]
    length = options.transformers_seconds or options.seconds if theirs else options.seconds
    dtype = parse_dtype("auto" if device.type == "cuda" else "float32", device) if theirs else None
    make = _theirs(options.checkpoint, device, dtype, prompts) if theirs else _ours(options, device, prompts)
    make(0.2)
    took, steps = [], 0
    while not took or sum(took) < LONG_ENOUGH:
        synchronize(device)
        started = time.perf_counter()
        steps = make(length)
        synchronize(device)
        took.append(time.perf_counter() - started)
    seconds = min(took)  # what else the machine does only adds to it
    peak, _ = peak_memory(device)
    return {
        "dtype": str(dtype or parse_dtype(options.dtype, device))[6:],
        "ms": 1000 * seconds / steps,
        "took": seconds,
        "seconds": length,
        "clips": len(prompts),
        "peak_gb": peak,
        "threads": torch.get_num_threads(),
    }


def _theirs(folder: str, device: Any, dtype: Any, prompts: tuple[str, ...]) -> Callable[[float], int]:
    """Makes clips of so many seconds, and tells how many steps that takes."""
    import torch
    from transformers import AutoModelForTextToWaveform, AutoTokenizer

    model = AutoModelForTextToWaveform.from_pretrained(folder, dtype=dtype).to(device).eval()
    rate = model.config.audio_encoder.sampling_rate / model.config.audio_encoder.hop_length
    silence = type("Decoded", (), {"audio_values": torch.zeros(len(prompts), 1, 1, device=device)})
    model.audio_encoder.decode = lambda *codes, **options: silence  # the codec is not what is measured
    text = AutoTokenizer.from_pretrained(folder)(list(prompts), padding=True, return_tensors="pt").to(device)

    def make(seconds: float) -> int:
        steps = round(seconds * rate) + 3
        model.generate(
            input_ids=text["input_ids"],
            attention_mask=text["attention_mask"],
            do_sample=True,
            guidance_scale=GUIDANCE,
            max_new_tokens=steps,
        )
        return steps

    return make


def _ours(options: argparse.Namespace, device: Any, prompts: tuple[str, ...]) -> Callable[[float], int]:
    """The same; states of the text are made by the first call."""
    from musicgen_dreamboothing import Generator
    from musicgen_dreamboothing.generation.guidance import Sampling

    quantization = "int8" if options.variant == INT8 else "none"
    generator = Generator(options.checkpoint, device=device, dtype=options.dtype, quantization=quantization)
    wanted, sampling = [(prompt, 0) for prompt in prompts], Sampling(GUIDANCE)

    def make(seconds: float) -> int:
        drawn = generator.codes(wanted, seconds=seconds, sampling=sampling, batch_size=len(wanted), progress=False)
        *_, (_, codes) = drawn
        return codes.shape[-1] + max(generator.checkpoint.delay)

    return make


if __name__ == "__main__":
    main()
