"""The one way to load the language model: in training, for its samples, for `generate` and `evaluate`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.device import return_freed_memory
from musicgen_dreamboothing.model.adapter import SavedAdapter, compute_in_base_precision, count_active
from musicgen_dreamboothing.model.building import build_model
from musicgen_dreamboothing.model.checkpoint import Checkpoint
from musicgen_dreamboothing.model.language_model import MelodyLM, TextLM, empty_language_model, language_model_of
from musicgen_dreamboothing.model.merging import Merger, put_on
from musicgen_dreamboothing.model.quantized import LAYERS, base_quantization, keep_trainable, to_int8
from musicgen_dreamboothing.model.weight_files import open_weights


def load_language_model(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
    *,
    with_text_encoder: bool = False,
    quantization: str = "none",
    merger: Merger | None = None,
    left_out: Mapping[str, torch.Size] = {},
) -> TextLM | MelodyLM:
    """Loads the language model and, if asked for, the text encoder, which stays in fp32; the codec never.

    Weights are read, converted and put on the device one by one: host memory above the model stays at one matrix.

    Args:
        checkpoint: the base.
        dtype: of the weights, or of the arithmetic on quantised ones.
        device: where they go.
        with_text_encoder: whether the text encoder is loaded.
        quantization: `none`, `nf4` or `int8` (`quantized.base_quantization`); such a base is frozen: it takes adapters,
            and trains none of its own weights.
        merger: an adapter that is added to the weights on their way.
        left_out: weights by name and size that are not read; they are zeros which take no memory.
    """
    model_class, absent = language_model_of(checkpoint, with_text_encoder=with_text_encoder)
    options: dict[str, Any] = dict(absent)
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
    quantization: str = "none",
) -> tuple[TextLM | MelodyLM, tuple[int, int] | None]:
    """The language model with an adapter: merged into it, or beside its weights where these are quantised.

    Args:
        checkpoint: the base.
        dtype: of weights and arithmetic.
        device: where it will play.
        adapter: trained on this base.
        quantization: `none`, `nf4` or `int8`. On NVIDIA's and AMD's GPUs `int8` is bitsandbytes', as in training;
            elsewhere torch's kernel, which is the fast one on a CPU.

    Returns:
        The model, and adapted layers that are active and in all.

    Raises:
        UserError: the adapter does not fit, or changes nothing; bitsandbytes is missing.
    """
    return_freed_memory()  # or what is freed on the way would stay with the process
    rounds = quantization == "int8" and device.type != "cuda"  # by torch's kernel, which knows nothing of DoRA
    beside = adapter is not None and quantization != "none" and not (rounds and adapter.config.use_dora)
    merger = Merger(checkpoint, adapter) if adapter is not None and not beside else None
    matrices = _layer_matrices(checkpoint) if rounds else {}
    model = load_language_model(
        checkpoint,
        dtype,
        device,
        with_text_encoder=adapter is not None and adapter.trains_text_encoder,
        quantization="none" if rounds else quantization,
        merger=merger,
        left_out=matrices,
    )
    active = merger.active_layers if merger is not None else None
    if adapter is not None and beside:
        active = _put_beside(model, adapter)
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
    model: Any, checkpoint: Checkpoint, names: Collection[str], dtype: torch.dtype, merger: Merger | None
) -> None:
    """Reads the matrices of the layers one by one and rounds each to 8 bits."""
    weights = open_weights(
        checkpoint.name, checkpoint.source.arguments(), lambda name: name if name in names else None, convert=True
    )
    weights = weights if merger is None else merger.wrap(weights)
    to_int8(model, lambda name: weights[name][...].to(model.device, dtype))


def _put_beside(model: nn.Module, adapter: SavedAdapter) -> tuple[int, int]:
    """Puts an adapter beside the weights of a model, whose modules are replaced in place by PEFT's."""
    wrapped = put_on(model, adapter).eval()
    compute_in_base_precision(wrapped)
    return count_active(wrapped)
