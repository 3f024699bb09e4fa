"""The captions of a batch, as cross-attention reads them in every step."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.nn import functional

from musicgen_dreamboothing.generation.layers import DecoderLayer, Stack
from musicgen_dreamboothing.model.language_model import Conditioning

MOST_POSITIONS = 16_384  # of all rows, which a GPU passes through the layers at once


class Text(NamedTuple):
    """The text of some rows (None: of all): keys and values of each layer `[R, H, L, W]`, and its padding mask."""

    rows: slice | torch.Tensor | None
    keys_and_values: list[tuple[torch.Tensor, torch.Tensor]]
    mask: torch.Tensor | None

    def attend(self, number: int, query: torch.Tensor) -> torch.Tensor:
        """`[R, H, 1, W]` -> `[R, D]`, in a layer."""
        keys, values = self.keys_and_values[number]
        attended = functional.scaled_dot_product_attention(query, keys, values, attn_mask=self.mask)
        return attended.reshape(len(query), -1)

    def attended(self, number: int, query: torch.Tensor, rows: list[int]) -> torch.Tensor:
        """`[r, H, P, W]` of some of its rows -> the same shape, in a layer."""
        keys, values = self.keys_and_values[number]
        mask = None if self.mask is None else self.mask[rows]
        return functional.scaled_dot_product_attention(query, keys[rows], values[rows], attn_mask=mask)


def texts_of(stack: Stack, conditioning: Conditioning, *, grouped: bool) -> list[Text]:
    """One padded and masked text for all rows, or one for each caption length, without padding.

    Groups leave out the null condition, whose states and attention output are zero.
    """
    states, mask = conditioning.states, conditioning.mask
    if not grouped:
        padding = None if bool(mask.all()) else additive_mask(mask[:, None, None].bool(), states.dtype)
        return [Text(None, [_cross_keys_and_values(layer, states) for layer in stack.layers], padding)]
    groups: dict[int, list[int]] = {}
    for row, length in enumerate(mask.sum(-1).tolist()):
        if bool(states[row].any()):
            groups.setdefault(length, []).append(row)
    texts = []
    for length, numbers in groups.items():
        is_run = numbers == list(range(numbers[0], numbers[-1] + 1))
        rows = slice(numbers[0], numbers[-1] + 1) if is_run else torch.tensor(numbers)
        own = states[rows, :length]
        texts.append(Text(rows, [_cross_keys_and_values(layer, own) for layer in stack.layers], None))
    return texts


def row_groups(rows: int, device: torch.device, positions: int = 1) -> list[slice]:
    """On a CPU rows one by one, so that shapes do not depend on the batch; elsewhere as many as `MOST_POSITIONS`."""
    size = 1 if device.type == "cpu" else max(1, MOST_POSITIONS // positions)
    return [slice(first, min(first + size, rows)) for first in range(0, rows, size)]


def additive_mask(attended: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A mask that attention adds to its scores: 0 for what is attended to, else -inf."""
    return torch.zeros_like(attended, dtype=dtype).masked_fill(~attended, -torch.inf)


def _cross_keys_and_values(layer: DecoderLayer, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the text `[B, L, D]`: twice `[B, H, L, W]`."""
    cross: Any = layer.cross
    parts = [states[rows] for rows in row_groups(len(states), states.device)]
    key, value = (
        torch.cat([projection(part) for part in parts]).unflatten(-1, layer.shape).transpose(1, 2).contiguous()
        for projection in (cross.key, cross.value)
    )
    return key, value
