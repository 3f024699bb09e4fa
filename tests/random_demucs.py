"""Small random demucs models, saved as demucs saves its own."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demucs.demucs import Demucs
from demucs.hdemucs import HDemucs
from demucs.htdemucs import HTDemucs
from demucs.states import get_state, save_with_checksum
from safetensors.torch import save_file

STEMS = ("drums", "bass", "other", "vocals")
RATE = 8000  # Hz; a small model hears as much of a second as a big one
SIZES: dict[type, dict[str, Any]] = {
    HTDemucs: {"channels": 8, "nfft": 512, "depth": 2, "t_layers": 2, "t_heads": 2, "segment": Fraction(1, 2)},
    HDemucs: {"channels": 4, "depth": 6, "segment": 1},
    Demucs: {"channels": 8, "depth": 3, "segment": 1},
}


def random_demucs(kind: type = HTDemucs, *, seed: int = 0, sources: tuple[str, ...] = STEMS, **options: Any) -> Any:
    """A model in evaluation mode. Its last layers are made stronger, so that its stems are as loud as its input."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(list(sources), **{"samplerate": RATE, **SIZES[kind], **options})
    for name, weight in model.named_parameters():
        if name.startswith(("decoder.1.conv_tr", "tdecoder.1.conv_tr")):
            weight.data *= 20
    model.load_state_dict({name: value.half().float() for name, value in model.state_dict().items()})
    return model.eval()


def save_safetensors(model: Any, path: Path, **metadata: str) -> Path:
    """As `tools/export_hf.py` of demucs writes the models that demucs has on the Hub: half precision, and the class
    with its arguments in the metadata."""
    args, kwargs = model._init_args_kwargs
    named = {"klass": f"{type(model).__module__}.{type(model).__qualname__}", "args": json.dumps(args)}
    named["kwargs"] = json.dumps(kwargs, default=_fraction)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: value.contiguous() for name, value in get_state(model, None, half=True).items()}
    save_file(state, path, metadata=named | metadata)
    return path


def _fraction(value: Fraction) -> dict[str, Any]:
    return {"_type": "fraction", "numerator": value.numerator, "denominator": value.denominator}


def save_pickle(model: Any, path: Path, **extra: Any) -> Path:
    """As `demucs.states.serialize_model` packs a model (which needs omegaconf) and `save_with_checksum` saves it."""
    args, kwargs = model._init_args_kwargs
    package = {"klass": type(model), "args": args, "kwargs": kwargs, "state": get_state(model, None, half=True)}
    package |= {"training_args": {"optim": {"lr": 3e-4}}, "metrics": {"nsdr": np.float64(9.0)}} | extra
    save_with_checksum(package, path)
    return next(path.parent.glob(f"{path.stem}-*{path.suffix}"))
