"""The decoder stack, one frame at a time, over K/V buffers of fixed size.

transformers' `generate` copies all keys and values at each step, projects the text again and walks through
layers of Python. Here everything that doesn't change is computed once, a step writes its key and value in place,
and the modules that compute are the model's own, so that adapters and quantised weights work as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from musicgen_dreamboothing.model.language_model import Conditioning, MelodyLM, TextLM


class Decoder:
    """Keys and values of one batch, and the step that adds to them.

    Args:
        model: either family.
        conditioning: of each row; under guidance captions first, then the null condition.
        steps: the most that will be made.
        whole: attend to the whole buffer under a mask, so that every step has the same shapes and can be captured;
            otherwise to what is filled, which is less work.
    """

    def __init__(self, model: TextLM | MelodyLM, conditioning: Conditioning, steps: int, *, whole: bool) -> None:
        stack = model.decoder.model.decoder
        self._stack, self._heads, self._whole = stack, model.decoder.lm_heads, whole
        states = conditioning.states
        is_melody = isinstance(model, MelodyLM)
        self._prefix = states.shape[1] if is_melody else 0
        capacity = self._prefix + steps
        attention = stack.layers[0].self_attn
        self._shape = (attention.num_heads, attention.head_dim)
        shape = (len(states), attention.num_heads, capacity, attention.head_dim)
        self._keys = [states.new_zeros(shape) for _ in stack.layers]
        self._values = [states.new_zeros(shape) for _ in stack.layers]
        self._positions = _positions(stack, capacity).to(states)
        self._places = torch.arange(capacity, device=states.device)
        self._cross: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._cross_mask: torch.Tensor | None = None
        if is_melody:
            self._fill_prefix(states)
        else:
            self._cross = [self._keys_and_values(layer.encoder_attn, states) for layer in stack.layers]
            self._cross_mask = None if bool(conditioning.mask.all()) else conditioning.mask[:, None, None].bool()

    def logits(self, codes: torch.Tensor, step: int | torch.Tensor) -> torch.Tensor:
        """Float32 logits `[B, K, V]` of the codes that follow.

        Args:
            codes: of the last step `[B, K]`.
            step: its number, from 0; where the whole buffer is attended to, a tensor `[1]` on the device.
        """
        embedded = sum(table(codes[:, k]) for k, table in enumerate(self._stack.embed_tokens))
        place = step + self._prefix
        if self._whole:
            row: Any = self._positions.index_select(0, place)  # type: ignore[arg-type]
            mask = (self._places <= place)[None, None, None]
        else:
            row, mask = self._positions[place], None
        hidden = (embedded + row)[:, None]
        for number, layer in enumerate(self._stack.layers):
            hidden = self._layer(number, layer, hidden, place, mask)
        hidden = self._stack.layer_norm(hidden)[:, 0]
        return torch.stack([head(hidden) for head in self._heads], dim=1).float()

    def _layer(
        self, number: int, layer: Any, hidden: torch.Tensor, place: int | torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """`[B, 1, D]` -> `[B, 1, D]`, its key and value written to the buffers."""
        normal = layer.self_attn_layer_norm(hidden)
        key, value = self._keys_and_values(layer.self_attn, normal)
        keys, values = self._keys[number], self._values[number]
        if self._whole:
            keys.index_copy_(2, place, key)  # type: ignore[arg-type]
            values.index_copy_(2, place, value)  # type: ignore[arg-type]
        else:
            keys[:, :, place] = key[:, :, 0]
            values[:, :, place] = value[:, :, 0]
            keys, values = keys[:, :, : place + 1], values[:, :, : place + 1]
        hidden = hidden + self._attend(layer.self_attn, normal, keys, values, mask)
        if self._cross:
            normal = layer.encoder_attn_layer_norm(hidden)
            hidden = hidden + self._attend(layer.encoder_attn, normal, *self._cross[number], self._cross_mask)
        return hidden + _feed_forward(layer, hidden)

    def _keys_and_values(self, attention: Any, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`[B, S, D]` -> twice `[B, H, S, D / H]`."""
        return self._split(attention.k_proj(states)), self._split(attention.v_proj(states))

    def _split(self, projected: torch.Tensor) -> torch.Tensor:
        return projected.view(*projected.shape[:2], *self._shape).transpose(1, 2)

    def _attend(
        self, attention: Any, hidden: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        query = self._split(attention.q_proj(hidden))
        found = functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        return attention.out_proj(found.transpose(1, 2).reshape(hidden.shape))

    def _fill_prefix(self, states: torch.Tensor) -> None:
        """Chroma and text stand before the codes in the melody family: they go through the stack once."""
        hidden = states + self._positions[: self._prefix]
        for number, layer in enumerate(self._stack.layers):
            normal = layer.self_attn_layer_norm(hidden)
            key, value = self._keys_and_values(layer.self_attn, normal)
            self._keys[number][:, :, : self._prefix] = key
            self._values[number][:, :, : self._prefix] = value
            query = self._split(layer.self_attn.q_proj(normal))
            found = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
            hidden = hidden + layer.self_attn.out_proj(found.transpose(1, 2).reshape(hidden.shape))
            hidden = hidden + _feed_forward(layer, hidden)


def _feed_forward(layer: Any, hidden: torch.Tensor) -> torch.Tensor:
    return layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(hidden))))


def _positions(stack: Any, number: int) -> torch.Tensor:
    """The first rows `[number, D]` of the table of positions, which grows as transformers lets it grow."""
    table = stack.embed_positions
    if number > len(table.weights):
        table.make_weights(number, table.embedding_dim)
    return table.weights[:number]
