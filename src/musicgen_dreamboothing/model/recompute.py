"""What the backward pass computes again instead of keeping: nothing, what is cheap, or everything.

`light` is for outputs of normalisations and of the activation function. They are a third of what a step keeps, for
every adapter needs its layer's input, and cost next to nothing to make again (as in "Reducing Activation Recomputation
in Large Transformer Models", Korthikanti et al. 2022, where attention is what is cheap). `full` keeps each layer's
input alone and is transformers' own gradient checkpointing.
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
    """How to make an output again; a copy that is still in use somewhere is taken instead."""

    module: nn.Module
    given: torch.Tensor
    autocast: bool
    made: weakref.ref[torch.Tensor]

    def output(self) -> torch.Tensor:
        made = self.made()
        if made is None:
            precision = torch.autocast(self.given.device.type) if self.autocast else nullcontext()
            with torch.no_grad(), precision:
                made = type(self.module).forward(self.module, self.given)  # its hooks have nothing to do here
            self.made = weakref.ref(made)
        return made


@dataclass(frozen=True)
class _Packed:
    """Stands for a tensor in the graph: a recipe, and how its output was looked at."""

    recipe: _Recipe
    size: torch.Size
    stride: tuple[int, ...]


class LightRecompute:
    """Keeps the inputs of normalisations and activation functions of a stack, and not their outputs.

    Args:
        stack: its modules are watched in `kept_small`, nowhere else.
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
        """The tensor itself unless it is an output that was remembered, or a view of all of it."""
        recipe = self._recipes.get(_storage(tensor)) if self._recipes else None
        made = recipe.made() if recipe is not None else None
        if recipe is None or made is None or tensor.numel() != made.numel() or not tensor.is_contiguous():
            return tensor.detach()  # an output that its own operation keeps would hold itself in a circle
        return _Packed(recipe, tensor.shape, tensor.stride())

    def _unpack(self, packed: Any) -> torch.Tensor:
        if not isinstance(packed, _Packed):
            return packed
        return packed.recipe.output().as_strided(packed.size, packed.stride)


def use_full_recompute(model: Any) -> None:
    """transformers' gradient checkpointing of every layer, in the place of light recomputation."""
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model  # PEFT's wrapper has no such part
    whole.light = None
    # transformers 5.23 has given it another name
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _storage(tensor: torch.Tensor) -> int:
    """What tensors that share memory have in common; a recipe's weak reference tells whether it still is the same."""
    return storage_id(tensor)
