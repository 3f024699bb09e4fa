"""Weights in 4 and 8 bits: of a frozen base for training an adapter, and of layers for decoding.

bitsandbytes quantises the base while it is loaded. Decoding on a CPU has torch's int8 kernel, as the time of a step of
a single clip is the time to read its weights.
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
# These layers are sensitive to rounding, and a hundredth of the weights.
UNQUANTIZED_MODULES = ("decoder.lm_heads", "enc_to_dec_proj", "audio_enc_to_dec_proj", "text_encoder")
LAYERS = "decoder.model.decoder.layers."  # prefix of the decoder's layers
BLOCK = 256  # rows that are rounded at once, so that there is no fp32 copy of a weight


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
    """Prepares a base that bitsandbytes has quantised for training an adapter.

    On CPUs with bf16 units `Linear4bit.forward` repacks 4-bit weights in the first evaluation for a kernel without a
    backward pass: from then on no gradient would pass the base, silently. Layers of 8 bits save their inputs for the
    gradients of weights that are frozen here.
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
            output: torch.Tensor = _FrozenProduct.apply(x, self.state, super().forward)
            return output

    return FrozenLinear8bitLt


class _FrozenProduct(torch.autograd.Function):
    """bitsandbytes' `MatMul8bitLt` and `MatMul8bitFp` (LLM.int8(), Dettmers et al. 2022) without a saved input.

    They save the layer's input where no hook for saved tensors sees it, so recomputation would not free it, and a step
    would take several times the planned memory. The gradient of the input needs only the weight.
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
    """A linear layer with int8 weights and one scale per output: symmetric, rounded to nearest.

    Activations are not quantised; on a CPU they are cast to bf16, for which torch's kernel is fast.
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
        """A layer with a weight `[out, in]`, rounded."""
        largest = weight.abs().amax(dim=1).float()
        scale = torch.where(largest > 0, largest / 127, 1.0)
        if weight.device.type == "cpu":
            scale = scale.to(torch.bfloat16)  # as the kernel uses it: rounding by another scale would shift entire rows
        rounded = torch.empty_like(weight, dtype=torch.int8)
        for first in range(0, len(weight), BLOCK):
            rows = slice(first, first + BLOCK)
            rounded[rows] = (weight[rows].float() / scale[rows, None].float()).round().clamp(-127, 127).to(torch.int8)
        return cls(rounded, scale, bias)

    @classmethod
    def joined(cls, linears: Sequence[Int8Linear]) -> Int8Linear:
        """Layers without biases as one, outputs concatenated; their weights become views of the joint one."""
        joint = cls(torch.cat([linear.weight for linear in linears]), torch.cat([linear.scale for linear in linears]))
        rows = [len(linear.weight) for linear in linears]
        for linear, weight in zip(linears, joint.weight.split(rows), strict=True):
            linear.weight = weight
        return joint

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., in]` -> `[..., out]` in the precision of x."""
        if x.device.type == "cpu":
            flat = x.reshape(-1, x.shape[-1]).to(torch.bfloat16).contiguous()
            output = seams.int8_product(flat, self.weight, self.scale).to(x.dtype)
            output = output.view(*x.shape[:-1], -1)
        else:
            weight = self.weight.to(x.dtype) * self.scale.to(x.dtype)[:, None]  # unscaled, sums would overflow fp16
            output = functional.linear(x, weight)
        return output if self.bias is None else output + self.bias


def to_int8(model: nn.Module, read: Callable[[str], torch.Tensor]) -> None:
    """Replaces the linear layers in the decoder's layers by `Int8Linear`; adapters stay as they are.

    Args:
        model: the language model.
        read: returns a weight `[out, in]` by its name in the checkpoint.
    """
    parents = [
        (path, module)
        for path, module in model.named_modules()
        if path.startswith(LAYERS)
        and not isinstance(module, nn.Linear | nn.ModuleDict)  # PEFT has adapters in a ModuleDict
    ]
    for path, module in parents:
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                weight = read(f"{path}.{name}.weight".replace(".base_layer.", "."))
                setattr(module, name, Int8Linear.of(weight, child.bias))
