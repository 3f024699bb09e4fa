"""The layers of a decoding step as functions: weights with the same input joined, adapters beside them.

Modules of other kinds, such as DoRA beside a quantised weight, are called as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft.tuners.lora import Embedding as LoraEmbedding
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.nn import functional

from musicgen_dreamboothing.model.adapter import computing_layer
from musicgen_dreamboothing.model.quantized import Int8Linear

Layer = Callable[[torch.Tensor], torch.Tensor]
ResidualLayer = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
TRANSPOSED_ROWS = range(8, 65)  # batch sizes for which a CPU multiplies transposed in fp32
TILE = 16  # rows of a bf16 product on a CPU: it reads the weights for 2 rows in the time that it takes for 16


def has_tiles(x: torch.Tensor) -> bool:
    """Whether matrix products of a step have `TILE` rows each."""
    return x.device.type == "cpu" and x.dtype == torch.bfloat16


def joined_linear(modules: Sequence[nn.Module], dtype: torch.dtype) -> Layer:
    """`[..., in]` in `dtype` -> the outputs of all layers, concatenated.

    Plain weights become views of a joint one, so that none is in memory twice.
    """
    layers = [computing_layer(module) for module in modules]
    if any(isinstance(layer, LoraLayer) for layer in layers):
        return _with_adapters(layers, dtype)
    if all(type(layer) is Int8Linear for layer in layers):
        return Int8Linear.joined(layers)  # type: ignore[arg-type]
    if all(_is_plain(layer) for layer in layers):
        return _matmul(_joined_weight(layers))
    return layers[0] if len(layers) == 1 else lambda x: torch.cat([layer(x) for layer in layers], dim=-1)


def residual_linear(module: nn.Module, dtype: torch.dtype) -> ResidualLayer:
    """`h + layer(x)`; plain weights multiply and add in one operation."""
    layer: Any = computing_layer(module)
    if _is_plain(layer):
        return _residual_matmul(layer.weight.detach())
    if isinstance(layer, LoraLayer) and _is_simple(layer):
        add_base, (down, up) = residual_linear(layer.get_base_layer(), dtype), _low_rank([layer], dtype)
        return lambda hidden, x: up(add_base(hidden, x), down(x))
    return lambda hidden, x: hidden + layer(x)


def summed_embedding(tables: Sequence[nn.Module]) -> Layer:
    """The sum of K embeddings, `[B, K]` -> `[B, D]`, from one joint table."""
    layers = [computing_layer(table) for table in tables]
    if all(type(layer) is nn.Embedding for layer in layers):
        weight = _joined_weight(layers)
    elif all(isinstance(layer, LoraEmbedding) and _is_simple(layer) for layer in layers):
        weight = torch.cat([_adapted_table(layer) for layer in layers])
    else:
        return lambda codes: torch.stack([layer(codes[:, k]) for k, layer in enumerate(layers)]).sum(0)
    first_rows = torch.arange(0, len(weight), len(weight) // len(layers), device=weight.device)
    return lambda codes: functional.embedding(codes + first_rows, weight).sum(1)


def layer_norm(norm: Any) -> Layer:
    """A layer normalisation without the overhead of its module, which in a tiny model is half of its time."""
    shape, weight, bias, eps = norm.normalized_shape, norm.weight.detach(), norm.bias.detach(), norm.eps
    return lambda x: torch.layer_norm(x, shape, weight, bias, eps)


def _with_adapters(layers: list[Any], dtype: torch.dtype) -> Layer:
    """Layers of which some have active adapters beside them."""
    adapted = [layer for layer in layers if isinstance(layer, LoraLayer)]
    if len(adapted) < len(layers) or not all(_is_simple(layer) for layer in layers):
        return layers[0] if len(layers) == 1 else lambda x: torch.cat([layer(x) for layer in layers], dim=-1)
    base, (down, up) = joined_linear([layer.get_base_layer() for layer in layers], dtype), _low_rank(layers, dtype)
    return lambda x: up(base(x), down(x))


def _is_plain(layer: nn.Module) -> bool:
    return type(layer) is nn.Linear and layer.bias is None


def _is_simple(layer: Any) -> bool:
    """Whether an adapter adds s·B·A·x, and nothing else."""
    active = layer.active_adapters
    if len(active) != 1 or active[0] not in layer.scaling or layer.lora_variant.get(active[0]) is not None:
        return False
    return active[0] not in layer.lora_B or layer.lora_B[active[0]].bias is None


def _low_rank(layers: Sequence[Any], dtype: torch.dtype) -> tuple[Layer, ResidualLayer]:
    """`x -> Ax` and `h, y -> h + sBy` of adapters with one input, as two products: B of each in its block."""
    (adapter,) = layers[0].active_adapters
    down = torch.cat([layer.lora_A[adapter].weight.detach() for layer in layers])
    blocks = [layer.lora_B[adapter].weight.detach() * layer.scaling[adapter] for layer in layers]
    return _matmul(down.to(dtype)), _residual_matmul(torch.block_diag(*blocks).to(dtype))


@torch.no_grad()
def _adapted_table(layer: Any) -> torch.Tensor:
    """The weight of an embedding with the update of its adapter."""
    weight = layer.get_base_layer().weight
    (adapter,) = layer.active_adapters
    return (weight.float() + layer.get_delta_weight(adapter).float()).to(weight.dtype)


def _matmul(weight: torch.Tensor) -> Layer:
    """`x @ weight.T`, with the weight on the left where that is faster."""
    transposed = weight.t()

    def times(x: torch.Tensor) -> torch.Tensor:
        if x.ndim == 2 and len(x) > TILE and has_tiles(x):
            return torch.cat([torch.mm(tile, transposed) for tile in x.split(TILE)])
        if _is_transposed(x):
            return (weight @ x.mT).mT
        return torch.mm(x, transposed) if x.ndim == 2 else functional.linear(x, weight)

    return times


def _residual_matmul(weight: torch.Tensor) -> ResidualLayer:
    """`h + x @ weight.T`."""
    transposed = weight.t()

    def plus(hidden: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        if x.ndim == 2 and len(x) > TILE and has_tiles(x):
            tiles = zip(hidden.split(TILE), x.split(TILE), strict=True)
            return torch.cat([torch.addmm(sums, tile, transposed) for sums, tile in tiles])
        if _is_transposed(x):
            return torch.addmm(hidden.mT, weight, x.mT).mT
        if x.ndim == 2:
            return torch.addmm(hidden, x, transposed)
        return torch.addmm(hidden.flatten(0, -2), x.flatten(0, -2), transposed).view(hidden.shape)

    return plus


def _is_transposed(x: torch.Tensor) -> bool:
    """Whether the weight stands on the left of the product.

    For `TRANSPOSED_ROWS` a CPU then takes 50 to 90 % of the time in fp32, otherwise longer (benchmarks/products.py).
    """
    return x.ndim == 2 and x.device.type == "cpu" and x.dtype == torch.float32 and len(x) in TRANSPOSED_ROWS


def _joined_weight(modules: Sequence[Any]) -> torch.Tensor:
    if len(modules) == 1:
        return modules[0].weight.detach()
    weight = torch.cat([module.weight.detach() for module in modules])
    rows = [len(module.weight) for module in modules]
    for module, part in zip(modules, weight.split(rows), strict=True):
        module.weight.data = part
    return weight
