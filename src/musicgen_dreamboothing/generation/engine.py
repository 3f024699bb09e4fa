"""One decoding step at a time, over key and value buffers of fixed size.

transformers' `generate` copies all keys and values at each step and projects the text again. Here everything that does
not change is computed once, a step writes its keys and values in place, and layers with the same input are one matrix
product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from musicgen_dreamboothing.generation.products import (
    TILE,
    Layer,
    has_tiles,
    joined_linear,
    layer_norm,
    residual_linear,
    summed_embedding,
)
from musicgen_dreamboothing.model.language_model import Conditioning, MelodyLM, TextLM
from musicgen_dreamboothing.model.seams import position_rows

ALIGNED = 16  # positions; kernels of GPUs copy a mask whose rows are not multiples of it, in each layer of each step


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
        self.layers = [_Layer(layer, self.dtype) for layer in decoder.layers]
        self.norm = layer_norm(decoder.layer_norm)
        self.heads = joined_linear(list(model.decoder.lm_heads), self.dtype)
        self._table = decoder.embed_positions

    def positions(self, number: int) -> torch.Tensor:
        """The first rows `[number, D]` of the table of positions."""
        return position_rows(self._table, number)


class _Layer:
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
        self.cross = _Cross(layer, dtype) if "encoder_attn" in dict(layer.named_children()) else None

    def feed_forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """`[..., D]` -> the same shape, added to the input."""
        wide = self.widen(self.last_norm(hidden))
        # Transposed, so that torch does not call oneDNN, whose start takes longer than computing a few rows.
        return self.add_narrowed(hidden, self.activate(wide.mT).mT)


class _Cross:
    """Cross-attention of a layer of the text family."""

    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        attention = layer.encoder_attn
        self.norm = layer_norm(layer.encoder_attn_layer_norm)
        self.query = joined_linear([attention.q_proj], dtype)
        self.key = joined_linear([attention.k_proj], dtype)
        self.value = joined_linear([attention.v_proj], dtype)
        self.add = residual_linear(attention.out_proj, dtype)


class Decoder:
    """The decoder on one batch: its keys and values, and the step that adds to them.

    A clip must not depend on the other clips of its batch, but the last digit of a matrix product or of attention
    depends on the number of rows and on padding. So on a CPU rows attend in groups of equal caption length, without
    padding, what is computed once is computed row by row, and bf16 products always have `TILE` rows. In fp32, and on a
    GPU, where groups would cost more than the step itself, clips are the same up to rounding.

    Args:
        stack: the model.
        conditioning: of each row; under guidance captions first, then the null condition.
        steps: their maximum number.
        static_cache: attend to all of the buffer under a mask, in one group, so that every step has the same shapes and
            can be captured; otherwise to the filled part only, which is less work.
    """

    def __init__(self, stack: Stack, conditioning: Conditioning, steps: int, *, static_cache: bool) -> None:
        self._stack, self._rows = stack, len(conditioning.states)
        states, is_melody = conditioning.states, isinstance(stack.model, MelodyLM)
        self._unused = -self._rows % TILE if has_tiles(states) else 0  # rows that fill the last tile
        grouped = is_melody and states.device.type == "cpu" and not static_cache
        groups = _by_length(conditioning) if grouped else [(None, conditioning)]
        self._caches = [
            _Cache(stack, part, rows, steps, is_melody=is_melody, static_cache=static_cache) for rows, part in groups
        ]

    def logits(self, codes: torch.Tensor, step: int | torch.Tensor) -> torch.Tensor:
        """Float32 logits `[R, K, V]` of the next codes, in the order of the R rows of the conditioning.

        Args:
            codes: of the last step `[B, K]`; each clip has R / B rows with the same codes.
            step: its number, from 0; with a static cache a tensor `[1]` on the device.
        """
        hidden = self._stack.embed(codes)
        if len(codes) < self._rows:
            hidden = torch.cat([hidden] * (self._rows // len(codes)))
        if self._unused:
            hidden = functional.pad(hidden, (0, 0, 0, self._unused))
        for cache in self._caches:
            cache.set_step(step)
        hidden = hidden + self._by_group(hidden, lambda cache, rows: cache.position_embedding().expand(len(rows), -1))
        for number, layer in enumerate(self._stack.layers):
            hidden = self._layer(number, layer, hidden)
        logits = self._stack.heads(self._stack.norm(hidden))[: self._rows]
        return logits.view(self._rows, self._stack.codebooks, -1).float()

    def _layer(self, number: int, layer: _Layer, hidden: torch.Tensor) -> torch.Tensor:
        """`[R, D]` -> `[R, D]`, its key and value written to the buffers."""
        # Contiguous: attention copies other queries, which costs a third of a step.
        joint = layer.query_key_value(layer.norm(hidden)).contiguous().view(len(hidden), 3, *layer.shape)
        hidden = layer.add_own(hidden, self._by_group(joint, lambda cache, rows: cache.attend(number, rows)))
        if layer.cross is not None:
            query = layer.cross.query(layer.cross.norm(hidden)).contiguous().view(len(hidden), *layer.shape)[:, :, None]
            attended = self._by_group(query, lambda cache, rows: cache.cross_attend(number, rows))
            hidden = layer.cross.add(hidden, attended)
        return layer.feed_forward(hidden)

    def _by_group(self, values: torch.Tensor, compute: Callable[[_Cache, torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Applies `compute` to each group's rows of `values` `[R, ...]`: `[R, D]` in the order of the rows."""
        if len(self._caches) == 1 and not self._unused:
            return compute(self._caches[0], values)
        rows_of = [slice(self._rows) if cache.rows is None else cache.rows for cache in self._caches]
        parts = [compute(cache, values[rows]) for cache, rows in zip(self._caches, rows_of, strict=True)]
        gathered = parts[0].new_zeros(len(values), parts[0].shape[-1])
        for rows, part in zip(rows_of, parts, strict=True):
            gathered[rows] = part
        return gathered


def _by_length(conditioning: Conditioning) -> list[tuple[torch.Tensor | None, Conditioning]]:
    """Groups of rows with equally long captions: their numbers, and their conditioning without padding."""
    lengths = conditioning.lengths.tolist()
    padding = {length: conditioning.mask.shape[1] - length for length in dict.fromkeys(lengths)}
    groups: list[tuple[torch.Tensor | None, Conditioning]] = []
    for length, padded in padding.items():
        rows = torch.tensor([row for row, other in enumerate(lengths) if other == length])
        states = conditioning.states[rows, : conditioning.states.shape[1] - padded]
        part = Conditioning(states, conditioning.mask[rows, :length], conditioning.lengths[rows])
        groups.append((rows if len(padding) > 1 else None, part))
    return groups


class _Cache:
    """Keys and values of a group of rows: of the text, and of the codes so far.

    The codes of all rows have the same places in the buffers. In the melody family the prefix is aligned to the right:
    a row with a shorter caption starts some places later, and counts its positions from there.

    Args:
        stack: the model.
        conditioning: of these rows.
        rows: their numbers in the batch; None for all.
        steps: their maximum number.
        is_melody: whether chroma and text come before the codes.
        static_cache: attend to all of the buffer under a mask.
    """

    def __init__(
        self,
        stack: Stack,
        conditioning: Conditioning,
        rows: torch.Tensor | None,
        steps: int,
        *,
        is_melody: bool,
        static_cache: bool,
    ) -> None:
        self._stack, self._static, self.rows = stack, static_cache, rows
        states = conditioning.states
        self._prefix = states.shape[1] if is_melody else 0
        capacity = self._prefix + steps
        if static_cache:
            capacity += -capacity % ALIGNED
        heads, width = stack.layers[0].shape
        shape = (len(states), 2, heads, capacity, width)
        self._keys_values = [states.new_zeros(shape) for _ in stack.layers]  # keys and values of each layer
        self._position_table = stack.positions(capacity).to(states)
        self._all_positions = torch.arange(capacity, device=states.device)
        self._position: int | torch.Tensor = 0
        self._mask: torch.Tensor | None = None
        self._starts: torch.Tensor | None = None  # the first place of each row [R], where they differ
        self._texts: list[_Text] = []
        if is_melody:
            starts = conditioning.mask.shape[1] - conditioning.lengths
            self._starts = starts if bool(starts.any()) else None
            for part in _row_groups(len(states), states.device):
                self._fill_prefix(states, part)
        else:
            self._texts = _texts(stack, conditioning, grouped=states.device.type == "cpu" and not static_cache)

    def set_step(self, step: int | torch.Tensor) -> None:
        """Sets the step, from 0; with a static cache a tensor `[1]` on the device."""
        self._position = step + self._prefix
        self._mask = self._mask_of(self._position)

    def position_embedding(self) -> torch.Tensor:
        """`[1, D]`, or `[R, D]` where rows start at different places."""
        place = self._position
        if self._starts is not None:
            return self._position_table.index_select(0, place - self._starts)
        return self._position_table[[place]] if isinstance(place, int) else self._position_table.index_select(0, place)

    def _mask_of(self, place: int | torch.Tensor) -> torch.Tensor | None:
        """An additive mask for the codes at a place; None for all that is filled."""
        if self._starts is None and not self._static:
            return None
        places = self._all_positions if self._static else self._all_positions[: place + 1]
        attended = (places <= place)[None]
        if self._starts is not None:
            attended = attended & (places >= self._starts[:, None])
        return _additive_mask(attended[:, None, None], self._position_table.dtype)

    def attend(self, number: int, joint: torch.Tensor) -> torch.Tensor:
        """Writes keys and values of a layer and attends to all up to them: `[R, 3, H, W]` -> `[R, D]`."""
        keys_values: torch.Tensor = self._keys_values[number]
        if isinstance(self._position, int):
            keys_values.select(3, self._position).copy_(joint[:, 1:])
            keys_values = keys_values.narrow(3, 0, self._position + 1)
        else:
            keys_values.index_copy_(3, self._position, joint[:, 1:, :, None])
        keys, values = keys_values.unbind(1)
        attended = functional.scaled_dot_product_attention(joint[:, 0, :, None], keys, values, attn_mask=self._mask)
        return attended.reshape(len(joint), -1)

    def cross_attend(self, number: int, query: torch.Tensor) -> torch.Tensor:
        """`[R, H, 1, W]` -> `[R, D]`."""
        if self._texts and self._texts[0].rows is None:
            return self._texts[0].attend(number, query)
        attended = query.new_zeros(len(query), query.shape[1] * query.shape[3])
        for text in self._texts:
            attended[text.rows] = text.attend(number, query[text.rows])
        return attended

    def _fill_prefix(self, states: torch.Tensor, rows: slice) -> None:
        """Passes chroma and text, which come before the codes, through all layers once."""
        hidden, mask = states[rows] + self._position_table[: self._prefix], None
        if self._starts is not None:
            hidden, mask = self._right_aligned(states[rows], self._starts[rows])
        for number, layer in enumerate(self._stack.layers):
            joint = layer.query_key_value(layer.norm(hidden)).unflatten(-1, (3, *layer.shape))  # [B, S, 3, H, W]
            query, key, value = joint.permute(2, 0, 3, 1, 4)
            self._keys_values[number][rows, 0, :, : self._prefix] = key
            self._keys_values[number][rows, 1, :, : self._prefix] = value
            attended = functional.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, is_causal=mask is None
            )
            hidden = layer.feed_forward(layer.add_own(hidden, attended.transpose(1, 2).reshape(hidden.shape)))

    def _right_aligned(self, states: torch.Tensor, starts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The prefix with its padding moved from the end to the start, and its additive mask."""
        places = self._all_positions[: self._prefix]
        own = (places - starts[:, None]) % self._prefix  # the position of each row without padding before it
        hidden = states.gather(1, own[..., None].expand_as(states)) + self._position_table[own]
        attended = (places >= starts[:, None])[:, None] & (places <= places[:, None])
        # padding attends to itself: a row without any place would give NaN
        attended = attended | torch.eye(self._prefix, dtype=torch.bool, device=states.device)
        return hidden, _additive_mask(attended[:, None], states.dtype)


class _Text(NamedTuple):
    """The text of some rows (None: of all): keys and values of each layer `[R, H, L, W]`, and its padding mask."""

    rows: slice | torch.Tensor | None
    keys_and_values: list[tuple[torch.Tensor, torch.Tensor]]
    mask: torch.Tensor | None

    def attend(self, number: int, query: torch.Tensor) -> torch.Tensor:
        """`[R, H, 1, W]` -> `[R, D]`, in a layer."""
        keys, values = self.keys_and_values[number]
        attended = functional.scaled_dot_product_attention(query, keys, values, attn_mask=self.mask)
        return attended.reshape(len(query), -1)


def _texts(stack: Stack, conditioning: Conditioning, *, grouped: bool) -> list[_Text]:
    """One padded and masked text for all rows, or one for each caption length, without padding.

    Groups leave out the null condition, whose states and attention output are zero.
    """
    states, mask = conditioning.states, conditioning.mask
    if not grouped:
        padding = None if bool(mask.all()) else _additive_mask(mask[:, None, None].bool(), states.dtype)
        return [_Text(None, [_cross_keys_and_values(layer, states) for layer in stack.layers], padding)]
    groups: dict[int, list[int]] = {}
    for row, length in enumerate(mask.sum(-1).tolist()):
        if bool(states[row].any()):
            groups.setdefault(length, []).append(row)
    texts = []
    for length, numbers in groups.items():
        is_run = numbers == list(range(numbers[0], numbers[-1] + 1))
        rows = slice(numbers[0], numbers[-1] + 1) if is_run else torch.tensor(numbers)
        own = states[rows, :length]
        texts.append(_Text(rows, [_cross_keys_and_values(layer, own) for layer in stack.layers], None))
    return texts


def _row_groups(rows: int, device: torch.device) -> list[slice]:
    """On a CPU rows one by one, so that shapes do not depend on the batch; elsewhere all at once."""
    return [slice(row, row + 1) for row in range(rows)] if device.type == "cpu" else [slice(rows)]


def _additive_mask(attended: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A mask that attention adds to its scores: 0 for what is attended to, else -inf."""
    return torch.zeros_like(attended, dtype=dtype).masked_fill(~attended, -torch.inf)


def _cross_keys_and_values(layer: _Layer, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the text `[B, L, D]`: twice `[B, H, L, W]`."""
    cross: Any = layer.cross
    parts = [states[rows] for rows in _row_groups(len(states), states.device)]
    key, value = (
        torch.cat([projection(part) for part in parts]).unflatten(-1, layer.shape).transpose(1, 2).contiguous()
        for projection in (cross.key, cross.value)
    )
    return key, value
