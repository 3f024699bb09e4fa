"""Computes a prefix that all clips of a batch share only once.

Attention is causal, so the states of a prefix do not depend on what follows: without dropout they are the same for each
clip. All layers but attention work on each position alone; there the batch is one row of the prefix and the rest of
each clip. In attention the clips are a batch again, and all of them attend to the prefix's keys and values, where their
gradients add up as over copies of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.musicgen_melody.modeling_musicgen_melody import (
    MusicgenMelodyAttention,
    eager_attention_forward,
)

from musicgen_dreamboothing.model import seams


def share_prefix(decoder: Any) -> None:
    """Prepares the layers of a melody decoder for `decode_shared`; otherwise they work as before."""
    for layer in decoder.layers:
        seams.replace_class(layer.self_attn, _PrefixAttention)


def decode_shared(decoder: Any, sequence: torch.Tensor, prefix: int) -> torch.Tensor:
    """Decodes clips with a common prefix.

    Args:
        decoder: of `share_prefix`.
        sequence: embedded inputs `[B, P + S, D]`; the first P are the same in every row, and gradients reach those of
            the first row only.
        prefix: their number P.

    Returns:
        Hidden states without the prefix `[B, S, D]`.
    """
    clips, length, width = sequence.shape
    placed = sequence + decoder.embed_positions(sequence)
    row = torch.cat([placed[:1, :prefix], placed[:, prefix:].reshape(1, -1, width)], dim=1)
    mask = _mask_of_clips(length, prefix, row)
    for layer in decoder.layers:
        row = layer(row, attention_mask=mask, clips=clips, prefix=prefix)[0]
    return decoder.layer_norm(row[:, prefix:]).view(clips, -1, width)


def _mask_of_clips(length: int, prefix: int, row: torch.Tensor) -> torch.Tensor | None:
    """A lower-right causal mask `[S, P + S]` for flash attention.

    None elsewhere: the kernels of other devices are fast only with as many queries as keys.
    """
    if row.is_cuda:
        return seams.causal_lower_right(length - prefix, length)
    return row.new_empty(0) if row.is_meta else None  # the estimate is for flash attention


class _PrefixAttention(MusicgenMelodyAttention):
    """transformers' attention, and in `decode_shared` that of a row of P positions of a prefix and S of each clip."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, clips: int = 0, prefix: int = 0, **options: Any) -> Any:
        if not clips:
            return super().forward(hidden_states, *args, **options)
        return self._of_row(hidden_states, options["attention_mask"], clips, prefix), None

    def _of_row(self, row: torch.Tensor, mask: torch.Tensor | None, clips: int, prefix: int) -> torch.Tensor:
        """`[1, P + B * S, D]` -> the same shape."""
        (query, queries), (key, keys), (value, values) = (
            self._parts(projection, row, clips, prefix) for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        keys, values = _joined(key, keys), _joined(value, values)
        if mask is None:
            attended = self._attend(_joined(query, queries), keys, values, None)
            first, rest = attended.split([prefix, attended.shape[1] - prefix], dim=1)
            first = first[:1]
        else:
            # clones of the prefix's keys and values: attention would save those of the entire row
            first = self._attend(query, key.clone(), value.clone(), None)
            rest = self._attend(queries, keys, values, mask)
        # Projected separately: their concatenation would be saved as well.
        return torch.cat([self.out_proj(part.reshape(1, -1, self.embed_dim)) for part in (first, rest)], dim=1)

    def _parts(
        self, projection: nn.Module, row: torch.Tensor, clips: int, prefix: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`[1, P, H, D]` and `[B, S, H, D]`."""
        first, rest = projection(row).split([prefix, row.shape[1] - prefix], dim=1)
        heads = (self.num_heads, self.head_dim)
        return first.view(1, prefix, *heads), rest.view(clips, -1, *heads)

    def _attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """`[B, S, H, D]` each -> the same shape, by the attention of the configuration."""
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(seams.attention_of(self.config), eager_attention_forward)
        heads = (states.transpose(1, 2) for states in (query, key, value))
        return attend(self, *heads, mask, scaling=self.scaling)[0]


def _joined(first: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
    return torch.cat([first.expand(len(rest), -1, -1, -1), rest], dim=1)
