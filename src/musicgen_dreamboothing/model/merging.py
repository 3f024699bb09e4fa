"""Adds an adapter to the weights of its base, one matrix after the other, in fp32.

Small updates vanish where they are added to 16-bit weights: of an update of rms 1e-5 to weights of std 0.03 bf16 keeps
a fifth. So each matrix is read from the checkpoint's file, the update is added in fp32, and the sum is rounded once.
Besides the model there is never more than one such matrix in memory. PEFT computes the updates, of whatever kind.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils import set_peft_model_state_dict
from torch import nn

from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.model import seams
from musicgen_dreamboothing.model.adapter import PLAIN_INITIALISATIONS, SavedAdapter, as_saved, count_active
from musicgen_dreamboothing.model.checkpoint import Checkpoint
from musicgen_dreamboothing.model.language_model import empty_language_model
from musicgen_dreamboothing.model.weight_files import open_weights

PREFIX = "base_model.model."  # which PEFT puts before the names of the base's modules


class Merger:
    """An adapter, ready to be added to its base.

    Args:
        checkpoint: the base.
        saved: the adapter.

    Attributes:
        active_layers: adapted layers that change something, and adapted layers in all.

    Raises:
        UserError: the adapter does not fit the base.
    """

    def __init__(self, checkpoint: Checkpoint, saved: SavedAdapter) -> None:
        base = empty_language_model(checkpoint, with_text_encoder=saved.trains_text_encoder)
        model = put_on(base, saved, low_cpu_mem_usage=True).eval()  # the base has no weights
        self.active_layers = count_active(model)
        self._layers = {
            f"{name.removeprefix(PREFIX)}.weight": layer
            for name, layer in model.named_modules()
            if isinstance(layer, LoraLayer)
        }
        self._lock = threading.Lock()  # transformers reads weights in several threads

    @property
    def names(self) -> list[str]:
        """Names of the weights that the adapter changes, as parameters of the base."""
        return list(self._layers)

    def wrap(self, weights: dict[str, Any]) -> dict[str, Any]:
        """The same weights, read when they are indexed, with the updates added to those that are adapted.

        Args:
            weights: as `weight_files.open_weights` gives them.
        """
        return weights | {name: _Merged(self, name, weights[name]) for name in self._layers if name in weights}

    @torch.no_grad()
    def merged(self, name: str, entry: Any) -> torch.Tensor:
        """W + ΔW in fp32 on the CPU, `[out, in]`.

        Args:
            name: of the weight.
            entry: what gives the weight of the base when it is indexed.
        """
        with self._lock:
            layer = self._layers[name]
            base = layer.get_base_layer()
            weight = entry[...].to(torch.float32, copy=True)
            absent, base.weight = base.weight, nn.Parameter(weight, requires_grad=False)
            try:
                layer.merge()
                return base.weight.data
            finally:
                base.weight = absent
                seams.forget_merge(layer)


class _Merged:
    """One adapted weight, merged when it is indexed, as `safetensors` slices are read."""

    def __init__(self, merger: Merger, name: str, entry: Any) -> None:
        self._merger, self._name, self._entry = merger, name, entry

    def __getitem__(self, place: Any) -> torch.Tensor:
        return self._merger.merged(self._name, self._entry)[place]


def put_on(model: nn.Module, saved: SavedAdapter, **options: Any) -> PeftModel:
    """A model with a saved adapter beside its weights.

    Args:
        model: the base.
        saved: the adapter.
        options: for `PeftModel` and its loading of weights.

    Raises:
        UserError: names or sizes of the adapter's weights are not those that its configuration asks of this base.
    """
    if saved.config.init_lora_weights not in PLAIN_INITIALISATIONS:
        raise UserError(
            f"the adapter {saved.name} belongs to a base that {saved.config.init_lora_weights} has changed, as a "
            "checkpoint of an unfinished training does; play the finished run, which holds it for the untouched base"
        )
    misfit = UserError(
        f"the adapter {saved.name} does not fit {getattr(model, 'name_or_path', 'its base')}: its weights have other "
        "names or sizes. It names its base in adapter_config.json; give that one with --base_model"
    )
    try:
        wrapped = PeftModel(model, saved.config, **options)
        places = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
        # Adapters made elsewhere may hold copies of embeddings too; the base has those itself.
        own = {name: weight for name, weight in saved.weights.items() if "lora_" in name}
        if {name: weight.shape for name, weight in own.items()} != {key: w.shape for key, w in places.items()}:
            raise misfit
        set_peft_model_state_dict(wrapped, own, **options)
    except (RuntimeError, ValueError) as error:
        raise misfit from error
    return wrapped


@contextmanager
def merged_in_place(model: PeftModel, checkpoint: Checkpoint) -> Iterator[nn.Module]:
    """The base of a model in training with the adapter in its weights; then the base as it was, bit by bit.

    The weights are those that `loading.load_language_model` makes of the saved adapter. Afterwards they are read again
    from the checkpoint. PiSSA and OLoRA change the base: there a copy is kept in the host's memory meanwhile.
    A quantised base can't take updates: there the adapter computes beside it, as it does when it is played.

    Args:
        model: an adapter of `adapter.add_adapter` on a base of `load_language_model`.
        checkpoint: that base.
    """
    layers = {
        f"{name.removeprefix(PREFIX)}.weight": layer.get_base_layer()
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
    }
    if any(map(seams.is_bitsandbytes, layers.values())):
        yield model.get_base_model()
        return
    merger = Merger(checkpoint, as_saved(model))
    weights = open_weights(
        checkpoint.name, checkpoint.source.arguments(), lambda name: name if name in layers else None, convert=True
    )
    changes_base = model.initial_adapter is not None
    kept = {name: layer.weight.detach().to("cpu", copy=True) for name, layer in layers.items() if changes_base}
    changed: list[str] = []
    try:
        for name, layer in layers.items():
            changed.append(name)
            layer.weight.data.copy_(merger.merged(name, weights[name]))
        with model.disable_adapter():
            yield model.get_base_model()
    finally:
        for name in changed:
            layers[name].weight.data.copy_(kept[name] if kept else weights[name][...])
