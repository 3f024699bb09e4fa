"""A training step of ours against the published recipe: time and peak memory.

    python benchmarks/train_step.py                        # small, one clip of 30 s; on a GPU melody too
    python benchmarks/train_step.py --size small --seconds 10 --steps 1

Random weights of the real shapes cost what the real ones cost, and nothing is downloaded. The
checkpoint is written in fp32, as the published ones are, to a temporary folder or to `--checkpoints`,
and every variant loads it anew: on a CPU in a process of its own, on a GPU with memory emptied. The
variants take turns, `--rounds` times.

published                transformers' model and loss with T5 in the forward pass, PEFT as it comes, all
                         dropouts as published, gradient checkpointing; fp32, on a GPU with fp16 autocast
ours                     cached text states, our loss, our adapter defaults, the base in `--dtype`
ours, light              the same with `--recompute light`: normalisations and activations are made again
ours, recompute          the same with `--recompute full`: all of each layer is
ours, nf4                the same on a base in 4 bits, with full recomputation
ours, nf4, no recompute  and without

One should see a table of seconds a step and peak memory with their ratios to the published recipe: the
process's peak on a CPU, the allocator's on a GPU, loading included. A variant that memory does not hold
has no figures.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import _common

from musicgen_dreamboothing.cli import ask_for_huge_pages

PUBLISHED, OURS, LIGHT, RECOMPUTE = "published", "ours", "ours, light", "ours, recompute"
NF4, NF4_PLAIN = "ours, nf4", "ours, nf4, no recompute"
VARIANTS = (PUBLISHED, NF4, NF4_PLAIN, RECOMPUTE, LIGHT, OURS)
WRITE = "checkpoint"
COLUMNS = ("variant", "dtype", "s/step", "speed", "peak GB", "memory", "loaded GB")
CAPTION_TOKENS = 24


def main() -> None:
    _common.play(_options(), _compare, _work)


def _work(options: argparse.Namespace) -> dict[str, Any] | None:
    if options.variant == WRITE:
        from _shapes import write_checkpoint

        return write_checkpoint(options.case_size, Path(options.checkpoint))
    if options.variant != PUBLISHED:
        ask_for_huge_pages()  # as our commands do before torch is there
    return _common.unless_memory_ends(_measured, options)


def _options() -> argparse.Namespace:
    parser = _common.options(__doc__)
    parser.add_argument("--size", nargs="*", choices=_common.SIZES, help="default: small; on a GPU small and melody")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of a clip")
    parser.add_argument("--clips", type=int, help="clips in a step; default 1, of melody models 2")
    parser.add_argument("--steps", type=int, default=2, help="timed steps in each round")
    parser.add_argument("--rounds", type=int, default=1, help="how often the variants take turns")
    parser.add_argument("--warmup", type=int, default=1, help="steps before the timed ones")
    parser.add_argument("--dtype", default="auto", help="precision of our base: auto, float32, bfloat16 or float16")
    parser.add_argument("--only", nargs="*", choices=VARIANTS, default=VARIANTS, help="variants to run")
    _common.add_checkpoints(parser)
    parser.add_argument("--case_size", help=argparse.SUPPRESS)
    return parser.parse_args()


def _compare(options: argparse.Namespace) -> None:
    about = _common.run_variant(__file__, _common.PROBE)
    order = [variant for _ in range(options.rounds) for variant in _possible(options.only)]
    for size in options.size or (["small", "melody"] if about["kind"] == "cuda" else ["small"]):
        with _common.checkpoint_folder(options, size) as folder:
            extra = ("--checkpoint", str(folder), "--case_size", size)
            _, *told = _common.run_variants(__file__, about, [WRITE, *order], *extra)
        runs = [{"variant": variant} | run for variant, run in zip(order, told, strict=True)]
        rows = _rows(runs)
        case = f"{size}, {clips_of(size, options)} x {options.seconds:g} s, {options.dtype}"
        _common.show(f"training step on {about['device']}: {case}", rows)
        settings = {"steps": options.steps, "rounds": options.rounds, "warmup": options.warmup}
        path = _common.keep(about, "train_step", case, settings | {"rows": rows, "runs": runs})
        print(f"kept in {path.parent.name}/{path.name}")


def clips_of(size: str, options: argparse.Namespace) -> int:
    return options.clips or (2 if size.startswith("melody") else 1)


def _possible(variants: Sequence[str]) -> list[str]:
    """Those whose libraries are there."""
    if importlib.util.find_spec("bitsandbytes") is None and {NF4, NF4_PLAIN} & set(variants):
        print("left out: nf4, which needs pip install 'musicgen-dreamboothing[quantization]'")
        return [variant for variant in variants if variant not in (NF4, NF4_PLAIN)]
    return list(variants)


def _rows(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Medians of each variant, and their ratios to the first one; no figures where memory ended."""
    rows: list[dict[str, Any]] = []
    for variant in dict.fromkeys(run["variant"] for run in runs):
        rows.append(_row(variant, [run for run in runs if run["variant"] == variant], rows[0] if rows else None))
    return rows


def _row(variant: str, runs: list[dict[str, Any]], first: dict[str, Any] | None) -> dict[str, Any]:
    if any("failed" in run for run in runs):
        return dict.fromkeys(COLUMNS) | {"variant": variant, "s/step": _common.NO_MEMORY}
    seconds = statistics.median(second for run in runs for second in run["seconds"])
    gigabytes = statistics.median(run["peak_gb"] for run in runs)
    loaded = statistics.median(run["loaded_gb"] for run in runs)
    speed, memory = 1.0, 1.0
    if first is not None:
        failed = first["peak GB"] is None
        speed, memory = (None, None) if failed else (first["s/step"] / seconds, gigabytes / first["peak GB"])
    figures = (variant, runs[0]["dtype"], seconds, speed, gigabytes, memory, loaded)
    return dict(zip(COLUMNS, figures, strict=True))


def _measured(options: argparse.Namespace) -> dict[str, Any]:
    """Loads the model, takes the steps and tells their seconds and the peak."""
    import torch

    from musicgen_dreamboothing.device import parse_dtype, peak_memory

    warnings.filterwarnings("ignore", category=FutureWarning)  # names that older transformers 5 know
    torch.manual_seed(0)
    device = _common.torch_device(options.device)
    published = options.variant == PUBLISHED
    dtype = torch.float32 if published else parse_dtype(options.dtype, device)
    frames = round(options.seconds * 50)
    build = published_step if published else our_step
    step = build(Path(options.checkpoint), dtype, device, (clips_of(options.case_size, options), frames), options)
    loaded, _ = peak_memory(device)
    seconds, cpu_seconds, losses = [], [], []
    for _ in range(options.warmup + options.steps):
        started, cpu_started = time.perf_counter(), time.process_time()
        losses.append(float(step()))
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
        cpu_seconds.append(time.process_time() - cpu_started)
    peak, kind = peak_memory(device)
    return {
        "dtype": "float16 autocast" if published and device.type == "cuda" else str(dtype)[6:],
        "seconds": seconds[options.warmup :],
        "cpu_seconds": cpu_seconds[options.warmup :],
        "loaded_gb": loaded,
        "peak_gb": peak,
        "peak_of": kind,
        "losses": losses,
    }


def published_step(
    folder: Path, dtype: Any, device: Any, shape: tuple[int, int], options: argparse.Namespace
) -> Callable[[], Any]:
    """The recipe as published, of public functions only: what a person without this package would write."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForTextToWaveform

    model = AutoModelForTextToWaveform.from_pretrained(folder, dtype=dtype).to(device)
    model.freeze_audio_encoder()
    model.freeze_text_encoder()
    heads = [f"lm_heads.{codebook}" for codebook in range(4)] + [f"embed_tokens.{codebook}" for codebook in range(4)]
    layers = ["enc_to_dec_proj", "audio_enc_to_dec_proj", "k_proj", "v_proj", "q_proj", "out_proj", "fc1", "fc2"]
    model.enable_input_require_grads()
    model = get_peft_model(
        model, LoraConfig(r=16, lora_alpha=16, target_modules=layers + heads, lora_dropout=0.05, bias="none")
    )
    model.gradient_checkpointing_enable()
    model.train()
    clips, frames = shape
    labels = torch.full(
        (clips, frames + 4, 4), model.config.decoder.pad_token_id
    )  # a step behind the delays, as published
    for codebook in range(4):
        labels[:, codebook : codebook + frames, codebook] = torch.randint(2048, (clips, frames))
    batch = {
        "input_ids": torch.randint(3, 32_000, (clips, CAPTION_TOKENS)),
        "attention_mask": torch.ones(clips, CAPTION_TOKENS, dtype=torch.long),
        "labels": labels,
    }
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    on_gpu = device.type == "cuda"

    def loss() -> Any:
        with torch.autocast(device.type, torch.float16, enabled=on_gpu):
            return model(**batch).loss

    return _step(model, loss, torch.amp.GradScaler(device.type, enabled=on_gpu))


def our_step(
    folder: Path, dtype: Any, device: Any, shape: tuple[int, int], options: argparse.Namespace
) -> Callable[[], Any]:
    """What `train` does with a batch of the collator."""
    import torch

    from musicgen_dreamboothing.device import return_freed_memory
    from musicgen_dreamboothing.hub import Source
    from musicgen_dreamboothing.model.adapter import LoraSettings, add_adapter
    from musicgen_dreamboothing.model.checkpoint import load_checkpoint
    from musicgen_dreamboothing.model.delay import training_steps
    from musicgen_dreamboothing.model.loading import load_language_model
    from musicgen_dreamboothing.model.recompute import use_full_recompute

    return_freed_memory()  # as `train` does before it loads anything
    checkpoint = load_checkpoint(Source(str(folder)))
    quantization = "nf4" if options.variant in (NF4, NF4_PLAIN) else "none"
    base = load_language_model(checkpoint, dtype, device, quantization=quantization)
    if options.variant == LIGHT:
        base.use_light_recompute()
    model = add_adapter(base, LoraSettings())
    if options.variant in (RECOMPUTE, NF4):
        use_full_recompute(model)
    model.train()
    clips, frames = shape
    drawn = torch.randint(checkpoint.codebook_size, (clips, checkpoint.codebooks, frames))
    pieces = [training_steps(codes, checkpoint.delay, checkpoint.start_token_id) for codes in drawn]
    batch = {
        "codes": torch.stack([codes for codes, _ in pieces]),
        "labels": torch.stack([labels for _, labels in pieces]),
        "text_states": torch.randn(clips, CAPTION_TOKENS, checkpoint.config.text_encoder.hidden_size),
        "text_mask": torch.ones(clips, CAPTION_TOKENS, dtype=torch.long),
        "keep_caption": torch.ones(clips, dtype=torch.bool),
    }
    batch = {name: tensor.to(device) for name, tensor in batch.items()}

    def loss() -> Any:
        outputs = model(**batch)
        return (outputs.nll.sum(0) / outputs.count.sum(0)).mean()

    return _step(model, loss, torch.amp.GradScaler(device.type, enabled=dtype == torch.float16))


def _step(model: Any, loss: Callable[[], Any], scaler: Any) -> Callable[[], Any]:
    """Forward, backward, clipping and update, as transformers' Trainer does them."""
    import torch

    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=2e-4, betas=(0.9, 0.99), weight_decay=0.1, fused=True)

    def step() -> Any:
        value = loss()
        scaler.scale(value).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        return value.detach()

    return step


if __name__ == "__main__":
    main()
