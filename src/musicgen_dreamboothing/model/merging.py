"""Merges an adapter into the weights of its base, one matrix after the other, in fp32.

Small updates vanish when they are added to 16-bit weights: of an update of rms 1e-5 to weights of std 0.03 bf16 keeps
a fifth. So each matrix is read from the checkpoint's file, PEFT computes and adds the update in fp32, and the sum is
rounded once. Besides the model there is only one such matrix in memory.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from peft import PeftModel
from peft.tuners.lora import Embedding as LoraEmbedding
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from musicgen_dreamboothing.model import seams
from musicgen_dreamboothing.model.adapter import SavedAdapter, as_saved, attach_adapter, count_active
from musicgen_dreamboothing.model.checkpoint import Checkpoint
from musicgen_dreamboothing.model.language_model import empty_language_model
from musicgen_dreamboothing.model.weight_files import open_weights

PREFIX = "base_model.model."  # which PEFT puts before the names of the base's modules


class Merger:
    """An adapter that can be merged into the weights of its base as they are read.

    Attributes:
        active_layers: see `adapter.count_active`.

    Raises:
        UserError: the adapter does not fit the base.
    """

    def __init__(self, checkpoint: Checkpoint, saved: SavedAdapter) -> None:
        base = empty_language_model(checkpoint, with_text_encoder=saved.trains_text_encoder)
        model = attach_adapter(base, saved, low_cpu_mem_usage=True).eval()  # the base has no weights
        self.active_layers = count_active(model)
        self._layers = {
            f"{name.removeprefix(PREFIX)}.weight": layer
            for name, layer in model.named_modules()
            if isinstance(layer, BaseTunerLayer)
        }
        self._lock = threading.Lock()  # transformers reads weights in several threads

    @property
    def names(self) -> Collection[str]:
        """Names of the weights that the adapter changes."""
        return self._layers.keys()

    def wrap(self, weights: dict[str, Any]) -> dict[str, Any]:
        """The weights of `weight_files.open_weights`, merged when they are indexed."""
        return weights | {name: LazilyMerged(self, name, weights[name]) for name in self._layers if name in weights}

    def low_rank(self, name: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The update ΔW = B·A as B `[out, r]`, scaled, and A `[r, in]`; None for what is no product of two matrices."""
        layer = self._layers[name]
        if not isinstance(layer, LoraLinear | LoraEmbedding) or layer.lora_variant or layer.fan_in_fan_out:
            return None
        (adapter,) = layer.active_adapters
        if isinstance(layer, LoraEmbedding):  # its rows are the inputs
            return layer.lora_embedding_A[adapter].T * layer.scaling[adapter], layer.lora_embedding_B[adapter].T
        return layer.lora_B[adapter].weight * layer.scaling[adapter], layer.lora_A[adapter].weight

    @torch.no_grad()
    def merged(self, name: str, entry: Any) -> torch.Tensor:
        """W + ΔW in fp32 on the CPU, `[out, in]`; `entry[...]` is W."""
        with self._lock:
            layer = self._layers[name]
            base = layer.get_base_layer()
            weight = entry[...].to(torch.float32, copy=True)
            placeholder, base.weight = base.weight, nn.Parameter(weight, requires_grad=False)
            try:
                layer.merge()
                return base.weight.data
            finally:
                base.weight = placeholder
                seams.forget_merge(layer)


class Merges(Protocol):
    """What merges one weight: a `Merger`, or a `Mixer` of several."""

    active_layers: tuple[int, int]

    def wrap(self, weights: dict[str, Any]) -> dict[str, Any]: ...

    def merged(self, name: str, entry: Any) -> torch.Tensor: ...


class LazilyMerged:
    """One adapted weight, merged when it is indexed, as slices of `safetensors` are read then."""

    def __init__(self, merger: Merges, name: str, entry: Any) -> None:
        self._merger, self._name, self._entry = merger, name, entry

    def __getitem__(self, place: Any) -> torch.Tensor:
        return self._merger.merged(self._name, self._entry)[place]


@contextmanager
def merged_in_place(model: PeftModel, checkpoint: Checkpoint) -> Iterator[nn.Module]:
    """The base of a model in training with its adapter merged; afterwards the base has exactly its old weights.

    The merged weights equal those that `generate` loads. The old ones are read from the checkpoint again; PiSSA and
    OLoRA change the base, so there they are copied to the host's memory. On a quantised base the adapter stays beside
    the weights, as in `generate`.

    Args:
        model: an adapter of `adapter.add_adapter` on a base of `load_language_model`.
        checkpoint: that base.
    """
    layers = {
        f"{name.removeprefix(PREFIX)}.weight": layer.get_base_layer()
        for name, layer in model.named_modules()
        if isinstance(layer, BaseTunerLayer)
    }
    if any(map(seams.is_bitsandbytes, layers.values())):
        yield model.get_base_model()
        return
    merger = Merger(checkpoint, as_saved(model))
    weights = open_weights(
        checkpoint.name, checkpoint.source.arguments(), lambda name: name if name in layers else None, convert=True
    )
    changed_base = layers if model.initial_adapter is not None else {}
    copies = {name: layer.weight.detach().to("cpu", copy=True) for name, layer in changed_base.items()}
    merged: list[str] = []
    try:
        for name, layer in layers.items():
            merged.append(name)
            layer.weight.data.copy_(merger.merged(name, weights[name]))
        with model.disable_adapter():
            yield model.get_base_model()
    finally:
        for name in merged:
            layers[name].weight.data.copy_(copies[name] if copies else weights[name][...])
