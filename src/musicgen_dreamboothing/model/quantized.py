"""Weights of 4 and 8 bits: of a frozen base that an adapter is trained on, and of layers that decode.

The base is quantised by bitsandbytes while it is loaded. Decoding has kernels of torch's own, for a step of a single
clip takes as long as its weights take to read.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import BitsAndBytesConfig

from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.model import seams

QUANTIZATIONS = ("none", "nf4", "int8")
# Codes of a codebook stand close together in what these layers see, and they are a hundredth of the weights.
UNQUANTIZED_MODULES = ("decoder.lm_heads", "enc_to_dec_proj", "audio_enc_to_dec_proj", "text_encoder")
LAYERS = "decoder.model.decoder.layers."  # what the names of the decoder's layers begin with
BLOCK = 256  # rows that are rounded at once, so that no second copy of a weight is made in fp32


def base_quantization(name: str, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """How bitsandbytes stores the linear layers of a frozen base; None for `none`.

    `nf4` is QLoRA's 4-bit type with its own scales quantised (Dettmers et al. 2023), `int8` is LLM.int8() with outliers
    in 16 bits (Dettmers et al. 2022). Heads, embeddings and projections keep `dtype`.

    Raises:
        UserError: an unknown name, or bitsandbytes is missing.
    """
    if name not in QUANTIZATIONS:
        raise UserError(f"--quantization {name!r} is unknown; it takes {', '.join(QUANTIZATIONS)}")
    if name == "none":
        return None
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(f"--quantization {name} needs: pip install 'musicgen-dreamboothing[quantization]'")
    if name == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(UNQUANTIZED_MODULES))
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(UNQUANTIZED_MODULES),
    )


def keep_trainable(model: nn.Module) -> None:
    """Lets gradients pass a base that bitsandbytes has quantised, and nothing be kept for them but its weights.

    On CPUs with bf16 units it lays 4-bit weights out anew in the first evaluation (`Linear4bit.forward`), for a kernel
    without a backward pass. A model that is trained further then gets no gradient through its base, and no word of it.
    Its layers of 8 bits keep their inputs, for gradients of weights that are frozen here.
    """
    for module in model.modules():
        seams.keep_4bit_layout(module)
        if type(module).__name__ == "Linear8bitLt":
            seams.replace_class(module, _frozen_linear())


@functools.cache
def _frozen_linear() -> type[nn.Module]:
    """bitsandbytes' int8 layer for a base that is not trained."""
    from bitsandbytes.nn.modules import Linear8bitLt

    class FrozenLinear8bitLt(Linear8bitLt):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = _FrozenProduct.apply(x, self.state, super().forward)
            return found

    return FrozenLinear8bitLt


class _FrozenProduct(torch.autograd.Function):
    """The product of bitsandbytes' `MatMul8bitLt` and `MatMul8bitFp` (LLM.int8(), Dettmers et al. 2022), both ways.

    They hold the layer's input in a place that no hook for saved tensors sees. Recomputation would drop nothing of it,
    and a step take several times the memory that is planned. The gradient of the input needs the weight alone.
    """

    @staticmethod
    def forward(context: Any, x: torch.Tensor, state: Any, product: Callable[[torch.Tensor], torch.Tensor]) -> Any:
        context.state, context.dtype = state, x.dtype
        return product(x)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        weight = seams.int8_weight(context.state, context.dtype)
        return torch.matmul(gradient.to(context.dtype), weight), None, None


class Int8Linear(nn.Module):
    """A linear layer with int8 weights, one scale for each output: symmetric, rounded to nearest.

    Activations stay as they are. On a CPU they pass torch's kernel in bf16, which is the one that is fast.
    """

    weight: torch.Tensor
    scale: torch.Tensor

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.bias = bias

    @classmethod
    def of(cls, weight: torch.Tensor, bias: nn.Parameter | None = None) -> Int8Linear:
        """A layer whose weight `[out, in]` is this one, rounded."""
        largest = weight.abs().amax(dim=1).float()
        scale = torch.where(largest > 0, largest / 127, 1.0)
        if weight.device.type == "cpu":
            scale = scale.to(torch.bfloat16)  # the kernel's; to divide by another one would shift whole rows
        rounded = torch.empty_like(weight, dtype=torch.int8)
        for first in range(0, len(weight), BLOCK):
            rows = slice(first, first + BLOCK)
            rounded[rows] = (weight[rows].float() / scale[rows, None].float()).round().clamp(-127, 127).to(torch.int8)
        return cls(rounded, scale, bias)

    @classmethod
    def joined(cls, linears: Sequence[Int8Linear]) -> Int8Linear:
        """Layers without biases with their outputs side by side; their weights become views of the joint one."""
        joint = cls(torch.cat([linear.weight for linear in linears]), torch.cat([linear.scale for linear in linears]))
        rows = [len(linear.weight) for linear in linears]
        for linear, weight in zip(linears, joint.weight.split(rows), strict=True):
            linear.weight = weight
        return joint

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., in]` -> `[..., out]` in the precision of x."""
        if x.device.type == "cpu":
            flat = x.reshape(-1, x.shape[-1]).to(torch.bfloat16).contiguous()
            found = seams.int8_product(flat, self.weight, self.scale).to(x.dtype)
            found = found.view(*x.shape[:-1], -1)
        else:
            weight = self.weight.to(x.dtype) * self.scale.to(x.dtype)[:, None]  # unscaled, sums would overflow fp16
            found = functional.linear(x, weight)
        return found if self.bias is None else found + self.bias


def to_int8(model: nn.Module, read: Callable[[str], torch.Tensor]) -> None:
    """Puts layers with 8-bit weights in the place of the linear layers of a decoder's layers.

    Embeddings, heads and projections stay as they are, and so do adapters, which PEFT keeps in a `ModuleDict`.

    Args:
        model: the language model, whose linear layers may have adapters beside them.
        read: gives a weight `[out, in]` by its name in the checkpoint.
    """
    parents = [
        (path, module)
        for path, module in model.named_modules()
        if path.startswith(LAYERS) and not isinstance(module, nn.Linear | nn.ModuleDict)
    ]
    for path, module in parents:
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                weight = read(f"{path}.{name}.weight".replace(".base_layer.", "."))
                setattr(module, name, Int8Linear.of(weight, child.bias))
