"""A step of generation of ours against transformers' `generate`, and many prompts at once against one by one.

    python benchmarks/generate.py                       # small with random weights, and the built-in tiny checkpoint
    python benchmarks/generate.py --size small --seconds 2

A step makes one frame of all codebooks, under guidance 3. Every variant runs in a process of its own and loads its
model by itself; the codec is left out. Where a step is short its time is mostly Python's, where it is long the
weights'.

transformers        `generate` of its own class, in fp32; on a GPU in bf16
ours                our engine in `--dtype`
ours, int8          the same with 8-bit weights
ours, 8 at once     eight prompts in one batch; its speed counts clips

One should see a table of milliseconds a step with their ratios to transformers' own.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import _common

from musicgen_dreamboothing.cli import ask_for_huge_pages

THEIRS, OURS, INT8, EIGHT = "transformers", "ours", "ours, int8", "ours, 8 at once"
VARIANTS = (THEIRS, OURS, INT8, EIGHT)
WRITE = "checkpoint"
BUILT_IN = "built-in"
SIZES = (BUILT_IN, "tiny", "small", "medium", "large", "melody", "melody-large")
PROMPT = "reggae at 75 bpm in a minor with organ, bass and drums"
GUIDANCE = 3.0


def main() -> None:
    _common.play(_options(), _compare, _work)


def _work(options: argparse.Namespace) -> dict[str, Any] | None:
    return _write(options.case_size, Path(options.checkpoint)) if options.variant == WRITE else _measured(options)


def _options() -> argparse.Namespace:
    parser = _common.options(__doc__)
    parser.add_argument("--size", nargs="*", choices=SIZES, default=["small", BUILT_IN], help="checkpoints")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a clip")
    parser.add_argument("--rounds", type=int, default=1, help="how often the variants take turns")
    parser.add_argument("--dtype", default="auto", help="precision of ours: auto, float32, bfloat16 or float16")
    parser.add_argument("--only", nargs="*", choices=VARIANTS, default=VARIANTS, help="variants to run")
    parser.add_argument("--checkpoint", help=argparse.SUPPRESS)
    parser.add_argument("--case_size", help=argparse.SUPPRESS)
    return parser.parse_args()


def _compare(options: argparse.Namespace) -> None:
    about = _common.run_variant(__file__, _common.PROBE)
    for size in options.size:
        with tempfile.TemporaryDirectory() as folder:
            extra = ("--checkpoint", folder, "--case_size", size)
            _common.run_variant(__file__, WRITE, *extra)
            order = [variant for _ in range(options.rounds) for variant in options.only]
            runs = [{"variant": name} | _common.run_variant(__file__, name, *extra) for name in order]
        rows = _rows(runs)
        case = f"{size}, {options.seconds:g} s, {options.dtype}"
        _common.show(f"generation on {about['device']}: {case}", rows)
        path = _common.keep(about, "generate", case, {"rounds": options.rounds, "rows": rows, "runs": runs})
        print(f"kept in {path.parent.name}/{path.name}")


def _rows(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Medians of each variant, and their ratios to the first one."""
    rows: list[dict[str, Any]] = []
    for variant in dict.fromkeys(run["variant"] for run in runs):
        mine = [run for run in runs if run["variant"] == variant]
        step = statistics.median(run["ms"] for run in mine)
        clips = mine[0]["clips"]
        first = rows[0]["ms/step"] if rows else step
        rows.append(
            {
                "variant": variant,
                "dtype": mine[0]["dtype"],
                "ms/step": step,
                "speed": clips * first / step,
                "x real time": statistics.median(clips * run["seconds"] / run["took"] for run in mine),
                "peak GB": statistics.median(run["peak_gb"] for run in mine),
            }
        )
    return rows


def _write(size: str, folder: Path) -> None:
    """A checkpoint with a tokenizer beside it; the built-in one is linked."""
    from _shapes import write_checkpoint

    from musicgen_dreamboothing.builtin.recipe import ASSETS

    built_in = ASSETS / "musicgen-tiny"
    if size != BUILT_IN:
        write_checkpoint(size, folder)
    for path in built_in.iterdir():
        if size == BUILT_IN or path.name.startswith("tokenizer"):
            (folder / path.name).symlink_to(path)


def _measured(options: argparse.Namespace) -> dict[str, Any]:
    """The mean time of a step, behind a short clip that warms up."""
    ask_for_huge_pages()
    import torch

    from musicgen_dreamboothing.model.device import parse_dtype, peak_memory, synchronize

    device = _common.torch_device(options.device)
    theirs = options.variant == THEIRS
    dtype = parse_dtype("auto" if device.type == "cuda" else "float32", device) if theirs else None
    clips = 8 if options.variant == EIGHT else 1
    make = _theirs(Path(options.checkpoint), device, dtype) if theirs else _ours(options, device, clips)
    make(0.2)
    took, steps = [], 0
    for _ in range(1 if options.seconds > 2 else 3):
        started = time.perf_counter()
        steps = make(options.seconds)
        synchronize(device)
        took.append(time.perf_counter() - started)
    seconds = statistics.median(took)
    peak, _ = peak_memory(device)
    shown = str(dtype)[6:] if dtype else str(parse_dtype(options.dtype, device))[6:]
    return {
        "dtype": shown,
        "ms": 1000 * seconds / steps,
        "took": seconds,
        "seconds": options.seconds,
        "clips": clips,
        "peak_gb": peak,
        "threads": torch.get_num_threads(),
    }


def _theirs(folder: Path, device: Any, dtype: Any) -> Any:
    import torch
    from transformers import AutoModelForTextToWaveform

    model = AutoModelForTextToWaveform.from_pretrained(folder, dtype=dtype).to(device).eval()
    rate = model.config.audio_encoder.sampling_rate / model.config.audio_encoder.hop_length
    silence = type("Decoded", (), {"audio_values": torch.zeros(1, 1, 1, device=device)})
    model.audio_encoder.decode = lambda *codes, **options: silence  # the codec is not what is measured
    ids = torch.arange(3, 15, device=device)[None]

    def make(seconds: float) -> int:
        steps = round(seconds * rate) + 3
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            guidance_scale=GUIDANCE,
            max_new_tokens=steps,
        )
        return steps

    return make


def _ours(options: argparse.Namespace, device: Any, clips: int) -> Any:
    import torch

    from musicgen_dreamboothing import Generator
    from musicgen_dreamboothing.generation.decoding import Sampling

    quantization = "int8" if options.variant == INT8 else "none"
    generator = Generator(options.checkpoint, device=device, dtype=options.dtype, quantization=quantization)
    width = generator.checkpoint.config.text_encoder.hidden_size
    states = torch.randn(1, 12, width).expand(clips, -1, -1)
    mask = torch.ones(clips, 12, dtype=torch.long)

    def make(seconds: float) -> int:
        frames = round(seconds * generator.checkpoint.frame_rate)
        stream = generator._code_stream(states, mask, frames, list(range(clips)), Sampling(GUIDANCE))
        stream.finish()
        return stream.steps

    return make


if __name__ == "__main__":
    main()
