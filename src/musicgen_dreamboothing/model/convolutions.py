"""The convolutions of EnCodec in the channels-last order, which is the fastest on a CPU."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional
from transformers.models.encodec.modeling_encodec import EncodecConv1d, EncodecConvTranspose1d, EncodecResnetBlock

from musicgen_dreamboothing.model.seams import pad_wave


class ChannelsLast:
    """Computes the output of an encoder's or a decoder's layers, up to rounding.

    torch's `conv1d` takes channels first only, so oneDNN reorders the input and output of each layer. An image of
    height 1 may have its channels last, and all layers stay in that order. Padding is one copy instead of torch's slow
    reflection, and activations are computed in place.

    Args:
        layers: convolutions, ELUs and residual blocks of transformers' `EncodecEncoder` or `EncodecDecoder`; their
            weights are read now.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self._layers = layers
        parts = [part for layer in layers for part in layer.modules()]
        self._kernels: dict[nn.Module, torch.Tensor]
        self._kernels = {one: _kernel(one) for one in parts if isinstance(one, nn.Conv1d)}
        self._kernels |= {one: _transposed_kernel(one) for one in parts if isinstance(one, nn.ConvTranspose1d)}

    def __call__(self, wave: torch.Tensor) -> torch.Tensor:
        """`[1, C, S]` -> `[1, D, T]`."""
        # [S, C], as between all layers; a copy, as activations are computed in place
        hidden = wave[0].t().clone(memory_format=torch.contiguous_format)
        for layer in self._layers:
            hidden = self._computed(layer, hidden)
        return hidden.t()[None]

    def _computed(self, layer: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        if isinstance(layer, EncodecConv1d):
            return self._convolved(layer.conv, _padded(layer, hidden))
        if isinstance(layer, EncodecConvTranspose1d):
            return _trimmed(layer, self._upsampled(layer.conv, hidden))
        if isinstance(layer, nn.ELU):
            return functional.elu(hidden, layer.alpha, inplace=True)
        assert isinstance(layer, EncodecResnetBlock), layer
        first, *others = layer.block
        output = first(hidden)  # not in place: the shortcut needs the input
        for other in others:
            output = self._computed(other, output)
        shortcut = layer.shortcut
        return output.add_(self._computed(shortcut, hidden) if isinstance(shortcut, EncodecConv1d) else hidden)

    def _convolved(self, conv: nn.Conv1d, hidden: torch.Tensor) -> torch.Tensor:
        kernel = self._kernels[conv]
        if kernel.dim() == 2:
            return functional.linear(hidden, kernel, conv.bias)
        image = hidden.t()[None, :, None]  # [1, C, 1, S], without a copy
        stride, dilation = (1, *conv.stride), (1, *conv.dilation)
        return functional.conv2d(image, kernel, conv.bias, stride, dilation=dilation)[0, :, 0].t()

    def _upsampled(self, conv: nn.ConvTranspose1d, hidden: torch.Tensor) -> torch.Tensor:
        """`[S, C]` -> `[(S - 1) * stride + width, D]`: matrix products, added up where their results overlap."""
        blocks, stride = self._kernels[conv], conv.stride[0]
        bias = hidden.new_zeros(conv.out_channels) if conv.bias is None else conv.bias
        output = bias.repeat(len(hidden) + len(blocks) - 1, stride)
        for number, block in enumerate(blocks):
            output[number : number + len(hidden)].addmm_(hidden, block)
        total = (len(hidden) - 1) * stride + conv.kernel_size[0]
        return output.view(-1, conv.out_channels)[:total]


def _kernel(conv: nn.Conv1d) -> torch.Tensor:
    """`[D, C, 1, width]` with the channels last, or `[D, C]` of a kernel of width 1."""
    if conv.kernel_size == conv.stride == (1,):
        return conv.weight[:, :, 0]
    return conv.weight[:, :, None].contiguous(memory_format=torch.channels_last)


def _padded(layer: EncodecConv1d, hidden: torch.Tensor) -> torch.Tensor:
    """`[S, C]` with the padding of `EncodecConv1d.forward`."""
    conv = layer.conv
    total = (conv.kernel_size[0] - 1) * conv.dilation[0] + 1 - conv.stride[0]
    right = 0 if layer.causal else total // 2
    left = total - right
    right += -len(hidden) % conv.stride[0]
    if left == right == 0:
        return hidden
    if layer.pad_mode == "reflect" and len(hidden) > max(left, right):
        return torch.cat([hidden[1 : left + 1].flip(0), hidden, hidden[len(hidden) - 1 - right : -1].flip(0)])
    return pad_wave(layer, hidden.t()[None], left, right)[0].t().contiguous()


def _transposed_kernel(conv: nn.ConvTranspose1d) -> torch.Tensor:
    """`[width / stride, C, stride * D]`, the last block filled up with zeros."""
    stride = conv.stride[0]
    weight = functional.pad(conv.weight, (0, -conv.kernel_size[0] % stride))  # [C, D, width]
    return weight.unflatten(2, (-1, stride)).permute(2, 0, 3, 1).flatten(2).contiguous()


def _trimmed(layer: EncodecConvTranspose1d, hidden: torch.Tensor) -> torch.Tensor:
    """`[S, D]` without the ends that `EncodecConvTranspose1d.forward` cuts off."""
    excess = layer.conv.kernel_size[0] - layer.conv.stride[0]
    right = math.ceil(excess * layer.trim_right_ratio) if layer.causal else excess // 2
    return hidden[excess - right : len(hidden) - right]
