"""The one way to load the language model: in training, for its samples, for `generate` and `evaluate`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from peft import LoraConfig

from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.device import return_freed_memory
from musicgen_dreamboothing.model.adapter import SavedAdapter, attach_adapter, compute_in_base_precision, count_active
from musicgen_dreamboothing.model.building import build_model
from musicgen_dreamboothing.model.checkpoint import Checkpoint
from musicgen_dreamboothing.model.language_model import MelodyLM, TextLM, empty_language_model, language_model_of
from musicgen_dreamboothing.model.merging import Merger, Merges
from musicgen_dreamboothing.model.mixing import Mixer
from musicgen_dreamboothing.model.quantized import LAYERS, base_quantization, keep_trainable, to_int8
from musicgen_dreamboothing.model.weight_files import open_weights


def load_language_model(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
    *,
    with_text_encoder: bool = False,
    quantization: str = "none",
    merger: Merges | None = None,
    left_out: Mapping[str, torch.Size] = {},
) -> TextLM | MelodyLM:
    """Loads the language model and, if asked for, the text encoder, which stays in fp32; the codec never.

    Weights are read, converted and moved one by one, so that host memory holds the model and one matrix at most.

    Args:
        checkpoint: the base.
        dtype: of the weights, or of the arithmetic on quantised ones.
        device: where they go.
        quantization: `none`, `nf4` or `int8` (`quantized.base_quantization`), which can be trained by an adapter only.
        merger: of one or more adapters to merge into the weights.
        left_out: names and sizes of weights that are not read; they are zeros that take no memory.
    """
    model_class, placeholders = language_model_of(checkpoint, with_text_encoder=with_text_encoder)
    options: dict[str, Any] = dict(placeholders)
    bits_and_bytes = base_quantization(quantization, dtype)
    if bits_and_bytes is not None:  # it is quantised where it will stay
        options |= {"quantization_config": bits_and_bytes, "device_map": {"": device}}
    elif device.type != "cpu":
        options["device_map"] = {"": device}
    omitted = ("audio_encoder.",) if with_text_encoder else ("audio_encoder.", "text_encoder.")
    weights = open_weights(
        checkpoint.name,
        checkpoint.source.arguments(),
        lambda name: None if name.startswith(omitted) else name,
        convert=bits_and_bytes is not None or merger is not None or dtype != torch.float32,
    )
    if merger is not None:
        weights = merger.wrap(weights)
    zero = torch.zeros((), dtype=dtype)
    weights |= {name: zero.expand(size) for name, size in left_out.items()}
    model = build_model(model_class, checkpoint.config, weights, checkpoint.name, dtype=dtype, **options)
    if bits_and_bytes is not None:
        keep_trainable(model)
    return model.eval()


def load_for_generation(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
    *,
    adapter: SavedAdapter | None = None,
    mixer: Mixer | None = None,
    quantization: str = "none",
) -> tuple[TextLM | MelodyLM, tuple[int, int] | None]:
    """The language model with an adapter: merged into it, or beside its weights where these are quantised.

    A mixer of several adapters, or of one with a strength, needs weights that are not quantised.

    On GPUs of NVIDIA and AMD `int8` is that of bitsandbytes, as in training; elsewhere torch's kernel, which is fast on
    a CPU and does not know DoRA.

    Returns:
        The model, and `count_active` of the adapter or of all adapters.

    Raises:
        UserError: the adapter does not fit, or changes nothing; bitsandbytes is missing, or cannot take a mixer.
    """
    return_freed_memory()  # otherwise the process keeps what is freed while loading
    rounds = quantization == "int8" and device.type != "cuda"
    beside = adapter is not None and quantization != "none" and not (rounds and not adapter.is_plain_lora)
    if adapter is not None and beside and not isinstance(adapter.config, LoraConfig):
        raise UserError(
            f"--quantization {quantization} takes LoRA adapters beside its weights, and {adapter.name} is none; "
            "merge it first"
        )
    if mixer is not None and quantization != "none":
        raise UserError(
            f"--quantization {quantization} has one adapter, at full strength, beside its weights; merge yours first: "
            "musicgen-dreamboothing merge MODEL ADAPTER:STRENGTH --output_dir MERGED, then generate MERGED "
            f"--quantization {quantization}"
        )
    merger: Merges | None = mixer
    if adapter is not None and not beside:
        merger = Merger(checkpoint, adapter)
    matrices = _layer_matrices(checkpoint) if rounds else {}
    model = load_language_model(
        checkpoint,
        dtype,
        device,
        with_text_encoder=any(part is not None and part.trains_text_encoder for part in (adapter, mixer)),
        quantization="none" if rounds else quantization,
        merger=merger,
        left_out=matrices,
    )
    active = merger.active_layers if merger is not None else None
    if adapter is not None and beside:  # PEFT replaces the modules of the model in place
        wrapped = attach_adapter(model, adapter).eval()
        compute_in_base_precision(wrapped)
        active = count_active(wrapped)
    if adapter is not None and active is not None and not active[0]:
        raise UserError(f"the adapter {adapter.name} changes nothing: all its updates are zero. Was it trained?")
    if rounds:
        _round_layers(model, checkpoint, matrices, dtype, merger)
    return model, active


def _layer_matrices(checkpoint: Checkpoint) -> dict[str, torch.Size]:
    """Names and sizes of the matrices in the decoder's layers."""
    weights = empty_language_model(checkpoint, with_text_encoder=False).named_parameters()
    return {name: weight.shape for name, weight in weights if name.startswith(LAYERS) and weight.dim() == 2}


def _round_layers(
    model: Any, checkpoint: Checkpoint, names: Collection[str], dtype: torch.dtype, merger: Merges | None
) -> None:
    """Reads the matrices of the layers one by one and rounds each to 8 bits."""
    weights = open_weights(
        checkpoint.name, checkpoint.source.arguments(), lambda name: name if name in names else None, convert=True
    )
    weights = weights if merger is None else merger.wrap(weights)
    to_int8(model, lambda name: weights[name][...].to(model.device, dtype))
