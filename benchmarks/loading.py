"""Host memory and time of loading a model to play: the base, and an adapter on it, merged or beside quantised weights.

    python benchmarks/loading.py                     # musicgen-small in real shapes, random weights
    python benchmarks/loading.py --size melody

Each variant loads in a process of its own. One should see for each the bytes of the model as it plays, the peak of the
process above what it had before it loaded (on a GPU: of host memory), their quotient in bytes a weight, and seconds.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path
from typing import Any

import _common

VARIANTS = {  # quantisation, and whether an adapter is loaded
    "base": ("none", False),
    "adapter": ("none", True),
    "adapter, int8": ("int8", True),
    "adapter, nf4": ("nf4", True),
}
WRITE = "checkpoint"
UNIT = 1 if sys.platform == "darwin" else 1024  # of `ru_maxrss`


def main() -> None:
    _common.play(_options(), _compare, _work)


def _options() -> argparse.Namespace:
    parser = _common.options(__doc__)
    _common.add_checkpoints(parser)
    parser.add_argument("--size", default="small", choices=_common.SIZES)
    parser.add_argument("--dtype", default="bfloat16")
    return parser.parse_args()


def _compare(options: argparse.Namespace) -> None:
    about = _common.run_variant(__file__, _common.PROBE)
    with _common.checkpoint_folder(options, options.size) as folder:
        _common.run_variant(__file__, WRITE, "--checkpoint", str(folder))
        rows = [
            {"loaded": name, **_common.run_variant(__file__, name, "--checkpoint", str(folder))} for name in VARIANTS
        ]
    case = f"{options.size}, {options.dtype}"
    _common.show(f"loading on {about['device']}: {case}", rows)
    path = _common.keep(about, "loading", case, {"rows": rows})
    print(f"kept in {path.parent.name}/{path.name}")


def _work(options: argparse.Namespace) -> dict[str, Any]:
    folder = Path(options.checkpoint)
    return _write(options, folder) if options.variant == WRITE else _load(options, folder)


def _write(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A checkpoint with random weights, and an adapter with random updates on it."""
    import torch
    from _shapes import write_checkpoint

    from musicgen_dreamboothing.hub import Source
    from musicgen_dreamboothing.model.adapter import LoraSettings, add_adapter, save_adapter
    from musicgen_dreamboothing.model.checkpoint import load_checkpoint
    from musicgen_dreamboothing.model.loading import load_language_model

    write_checkpoint(options.size, folder)
    checkpoint = load_checkpoint(Source(str(folder)))
    model = add_adapter(load_language_model(checkpoint, torch.bfloat16, torch.device("cpu")), LoraSettings())
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name or "lora_embedding_A" in name:
                weight.normal_(std=1e-3)
    _adapter(folder).mkdir(exist_ok=True)
    save_adapter(model, _adapter(folder))
    return {}


def _adapter(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}-adapter")


def _load(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    import torch

    from musicgen_dreamboothing.hub import Source
    from musicgen_dreamboothing.model.adapter import read_adapter
    from musicgen_dreamboothing.model.checkpoint import load_checkpoint
    from musicgen_dreamboothing.model.loading import load_for_generation
    from musicgen_dreamboothing.model.quantized import base_quantization

    quantization, with_adapter = VARIANTS[options.variant]
    checkpoint, dtype = load_checkpoint(Source(str(folder))), getattr(torch, options.dtype)
    base_quantization(quantization, dtype)
    if quantization == "nf4":
        import bitsandbytes  # noqa: F401 - its import is not what is measured
    device = _common.torch_device(options.device)
    before, started = _peak(), time.perf_counter()
    adapter = read_adapter(str(_adapter(folder))) if with_adapter else None
    model, _ = load_for_generation(checkpoint, dtype, device, adapter=adapter, quantization=quantization)
    seconds, peak = time.perf_counter() - started, _peak() - before
    parts = [*model.parameters(), *model.buffers()]
    numbers = sum(weight.numel() for weight in empty_sizes(checkpoint))
    return {
        "model GB": sum(part.nbytes for part in parts) / 1e9,
        "peak GB": peak / 1e9,
        "peak bytes/weight": peak / numbers,
        "seconds": seconds,
    }


def empty_sizes(checkpoint: Any) -> list[Any]:
    """The weights of the base without their content."""
    from musicgen_dreamboothing.model.language_model import empty_language_model

    return list(empty_language_model(checkpoint, with_text_encoder=False).parameters())


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT


if __name__ == "__main__":
    main()
