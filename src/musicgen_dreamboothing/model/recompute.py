"""Which activations the backward pass recomputes: `none`, `light` or `full`.

`light` recomputes the outputs of normalisations and of the activation function. They are a third of the saved
activations, as every adapter needs its layer's input, and cheap to compute (compare "Reducing Activation Recomputation
in Large Transformer Models", Korthikanti et al. 2022). `full` saves only each layer's input and is transformers'
gradient checkpointing.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from musicgen_dreamboothing.model.seams import storage_id


@dataclass
class _Recipe:
    """How to recompute an output, unless a copy of it is still alive."""

    module: nn.Module
    given: torch.Tensor
    autocast: bool
    output_ref: weakref.ref[torch.Tensor]

    def output(self) -> torch.Tensor:
        made = self.output_ref()
        if made is None:
            precision = torch.autocast(self.given.device.type) if self.autocast else nullcontext()
            with torch.no_grad(), precision:
                made = type(self.module).forward(self.module, self.given)  # without its hooks
            self.output_ref = weakref.ref(made)
        return made


@dataclass(frozen=True)
class _Packed:
    """Takes the place of a saved tensor: the recipe of its storage, its size and stride."""

    recipe: _Recipe
    size: torch.Size
    stride: tuple[int, ...]


class LightRecompute:
    """Saves the inputs of a stack's normalisations and activation functions instead of their outputs.

    It has an effect inside `kept_small` only.
    """

    def __init__(self, stack: nn.Module) -> None:
        self._recipes: dict[int, _Recipe] | None = None
        for module in stack.modules():
            if isinstance(module, nn.LayerNorm) or type(module).__module__ == "transformers.activations":
                module.register_forward_hook(self._remember)

    @contextmanager
    def kept_small(self) -> Iterator[None]:
        """Around a forward pass."""
        self._recipes = {}
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack):
                yield
        finally:
            self._recipes = None

    def _remember(self, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if self._recipes is not None and torch.is_grad_enabled():
            device = output.device.type
            autocast = device != "meta" and torch.is_autocast_enabled(device)
            self._recipes[_storage(output)] = _Recipe(module, inputs[0].detach(), autocast, weakref.ref(output))

    def _pack(self, tensor: torch.Tensor) -> Any:
        """The tensor itself, or a recipe if it is a view of a complete recorded output."""
        recipe = self._recipes.get(_storage(tensor)) if self._recipes else None
        made = recipe.output_ref() if recipe is not None else None
        if recipe is None or made is None or tensor.numel() != made.numel() or not tensor.is_contiguous():
            return tensor.detach()  # an output that is saved by its own operation would be a reference cycle
        return _Packed(recipe, tensor.shape, tensor.stride())

    def _unpack(self, packed: Any) -> torch.Tensor:
        if not isinstance(packed, _Packed):
            return packed
        return packed.recipe.output().as_strided(packed.size, packed.stride)


def use_full_recompute(model: Any) -> None:
    """Switches from light recomputation to transformers' gradient checkpointing of every layer."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    base.light = None
    # the name before transformers 5.23 is the second one
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _storage(tensor: torch.Tensor) -> int:
    """A key for recipes; their weak references tell whether the storage still exists."""
    return storage_id(tensor)
