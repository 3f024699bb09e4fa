"""The layers of a model as functions for decoding, with the parts that do not change joined."""

from __future__ import annotations

from typing import Any

import torch

from musicgen_dreamboothing.generation.products import (
    Layer,
    joined_linear,
    layer_norm,
    residual_linear,
    summed_embedding,
)
from musicgen_dreamboothing.model.language_model import MelodyLM, TextLM
from musicgen_dreamboothing.model.seams import position_rows


class Stack:
    """The layers of a model as functions for decoding. The model's own modules still work: they share the weights.

    Args:
        model: either family.

    Attributes:
        dtype: of the arithmetic.
        embed: codes `[B, K]` -> `[B, D]`, the sum over codebooks.
        heads: `[B, D]` -> logits `[B, K * V]`.
    """

    def __init__(self, model: TextLM | MelodyLM) -> None:
        decoder = model.decoder.model.decoder
        self.model, self.codebooks = model, len(model.decoder.lm_heads)
        self.dtype: torch.dtype = decoder.layer_norm.weight.dtype  # of the arithmetic; weights may be quantised
        self.embed = summed_embedding(list(decoder.embed_tokens))
        self.layers = [DecoderLayer(layer, self.dtype) for layer in decoder.layers]
        self.norm = layer_norm(decoder.layer_norm)
        self.heads = joined_linear(list(model.decoder.lm_heads), self.dtype)
        self._table = decoder.embed_positions

    def positions(self, number: int) -> torch.Tensor:
        """The first rows `[number, D]` of the table of positions."""
        return position_rows(self._table, number)


class DecoderLayer:
    """The parts of one layer of transformers' decoder."""

    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        own = layer.self_attn
        self.shape = (own.num_heads, own.head_dim)
        self.norm = layer_norm(layer.self_attn_layer_norm)
        self.query_key_value = joined_linear([own.q_proj, own.k_proj, own.v_proj], dtype)
        self.add_own = residual_linear(own.out_proj, dtype)
        self.last_norm = layer_norm(layer.final_layer_norm)
        self.widen = joined_linear([layer.fc1], dtype)
        self.activate: Layer = layer.activation_fn
        self.add_narrowed = residual_linear(layer.fc2, dtype)
        self.cross = CrossAttention(layer, dtype) if "encoder_attn" in dict(layer.named_children()) else None

    def feed_forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """`[..., D]` -> the same shape, added to the input."""
        wide = self.widen(self.last_norm(hidden))
        # Transposed, so that torch does not call oneDNN, whose start takes longer than computing a few rows.
        return self.add_narrowed(hidden, self.activate(wide.mT).mT)


class CrossAttention:
    """Cross-attention of a layer of the text family."""

    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        attention = layer.encoder_attn
        self.norm = layer_norm(layer.encoder_attn_layer_norm)
        self.query = joined_linear([attention.q_proj], dtype)
        self.key = joined_linear([attention.k_proj], dtype)
        self.value = joined_linear([attention.v_proj], dtype)
        self.add = residual_linear(attention.out_proj, dtype)
