"""The decoder stack, one frame at a time, over K/V buffers of fixed size.

transformers' `generate` copies all keys and values at each step, projects the text again and walks through
layers of Python. Here everything that doesn't change is computed once, a step writes its keys and values in place, and
products of the same input are one product. Modules that are not plain (adapters at work) compute as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from musicgen_dreamboothing.generation.products import (
    TILE,
    Product,
    added_product,
    embedded,
    has_tiles,
    normalised,
    product,
)
from musicgen_dreamboothing.model.language_model import Conditioning, MelodyLM, TextLM
from musicgen_dreamboothing.model.seams import position_rows

ALIGNED = 16  # places; GPUs' kernels copy a mask whose rows don't begin at such a place, in each layer of each step


class Stack:
    """A model as a step of decoding reads it. The model's own modules go on working: plain ones share their weights.

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
        self.embed = embedded(list(decoder.embed_tokens))
        self.layers = [_Layer(layer, self.dtype) for layer in decoder.layers]
        self.norm = normalised(decoder.layer_norm)
        self.heads = product(list(model.decoder.lm_heads), self.dtype)
        self._table = decoder.embed_positions

    def positions(self, number: int) -> torch.Tensor:
        """The first rows `[number, D]` of the table of positions, which grows as transformers lets it grow."""
        return position_rows(self._table, number)


class _Layer:
    """One layer of transformers' class: its normalisations and products."""

    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        own = layer.self_attn
        self.shape = (own.num_heads, own.head_dim)
        self.norm = normalised(layer.self_attn_layer_norm)
        self.query_key_value = product([own.q_proj, own.k_proj, own.v_proj], dtype)
        self.add_own = added_product(own.out_proj, dtype)
        self.last_norm = normalised(layer.final_layer_norm)
        self.widen = product([layer.fc1], dtype)
        self.activate: Product = layer.activation_fn
        self.add_narrowed = added_product(layer.fc2, dtype)
        self.cross = _Cross(layer, dtype) if "encoder_attn" in dict(layer.named_children()) else None

    def feed_forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """`[..., D]` -> the same shape, added to what came in."""
        wide = self.widen(self.last_norm(hidden))
        # Turned over, as oneDNN takes only contiguous activations: for a few rows it starts longer than torch computes.
        return self.add_narrowed(hidden, self.activate(wide.mT).mT)


class _Cross:
    """What attends to the text in a layer of the text family."""

    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        attention = layer.encoder_attn
        self.norm = normalised(layer.encoder_attn_layer_norm)
        self.query = product([attention.q_proj], dtype)
        self.key = product([attention.k_proj], dtype)
        self.value = product([attention.v_proj], dtype)
        self.add = added_product(attention.out_proj, dtype)


class Decoder:
    """The decoder at work on one batch: its keys and values, and the step that adds to them.

    A clip must not depend on the clips it is batched with, but the last digit of a product or of attention depends on
    the number of rows and on padding. On a CPU rows therefore attend in groups of equal caption length, without
    padding, what is computed once is computed row by row, and bf16 products always have `TILE` rows. In fp32, and on a
    GPU, where groups would cost more than the step itself, clips are the same up to rounding.

    Args:
        stack: the model.
        conditioning: of each row; under guidance captions first, then the null condition.
        steps: the most that will be made.
        whole: one group that attends to its whole buffer under a mask, so that every step has the same shapes and can
            be captured; otherwise to what is filled, which is less work.
    """

    def __init__(self, stack: Stack, conditioning: Conditioning, steps: int, *, whole: bool) -> None:
        self._stack, self._rows = stack, len(conditioning.states)
        states, is_melody = conditioning.states, isinstance(stack.model, MelodyLM)
        self._unused = -self._rows % TILE if has_tiles(states) else 0  # rows that fill the last tile
        grouped = is_melody and states.device.type == "cpu" and not whole
        groups = _by_length(conditioning) if grouped else [(None, conditioning)]
        self._caches = [_Cache(stack, part, rows, steps, is_melody=is_melody, whole=whole) for rows, part in groups]

    def logits(self, codes: torch.Tensor, step: int | torch.Tensor) -> torch.Tensor:
        """Float32 logits `[R, K, V]` of the codes that follow, in the order of the R rows of the conditioning.

        Args:
            codes: of the last step `[B, K]`; each clip stands for R / B rows, which have the same codes.
            step: its number, from 0; where the whole buffer is attended to, a tensor `[1]` on the device.
        """
        hidden = self._stack.embed(codes)
        if len(codes) < self._rows:
            hidden = torch.cat([hidden] * (self._rows // len(codes)))
        if self._unused:
            hidden = functional.pad(hidden, (0, 0, 0, self._unused))
        for cache in self._caches:
            cache.begin(step)
        hidden = hidden + self._gathered(hidden, lambda cache, rows: cache.position().expand(len(rows), -1))
        for number, layer in enumerate(self._stack.layers):
            hidden = self._layer(number, layer, hidden)
        logits = self._stack.heads(self._stack.norm(hidden))[: self._rows]
        return logits.view(self._rows, self._stack.codebooks, -1).float()

    def _layer(self, number: int, layer: _Layer, hidden: torch.Tensor) -> torch.Tensor:
        """`[R, D]` -> `[R, D]`, its key and value written to the buffers."""
        # Rows in a row: attention takes queries of another order apart, which costs a third of a step.
        joint = layer.query_key_value(layer.norm(hidden)).contiguous().view(len(hidden), 3, *layer.shape)
        hidden = layer.add_own(hidden, self._gathered(joint, lambda cache, rows: cache.attend(number, rows)))
        if layer.cross is not None:
            query = layer.cross.query(layer.cross.norm(hidden)).contiguous().view(len(hidden), *layer.shape)[:, :, None]
            attended = self._gathered(query, lambda cache, rows: cache.attend_to_text(number, rows))
            hidden = layer.cross.add(hidden, attended)
        return layer.feed_forward(hidden)

    def _gathered(self, values: torch.Tensor, compute: Callable[[_Cache, torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """What each group of rows computes of its rows of `values` `[R, ...]`, in the order of the rows: `[R, D]`."""
        if len(self._caches) == 1 and not self._unused:
            return compute(self._caches[0], values)
        rows_of = [slice(self._rows) if cache.rows is None else cache.rows for cache in self._caches]
        parts = [compute(cache, values[rows]) for cache, rows in zip(self._caches, rows_of, strict=True)]
        gathered = parts[0].new_zeros(len(values), parts[0].shape[-1])
        for rows, part in zip(rows_of, parts, strict=True):
            gathered[rows] = part
        return gathered


def _by_length(conditioning: Conditioning) -> list[tuple[torch.Tensor | None, Conditioning]]:
    """Rows of the melody family with equally long captions, by number, with their conditioning without padding."""
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
    """Keys and values of rows that attend alike: of the text, and of what was decoded so far.

    The codes of all rows stand at the same places of the buffers. In the melody family what stands before them ends
    there, too: a shorter caption begins some places later, and each row counts its positions from its own beginning.

    Args:
        stack: the model.
        conditioning: of these rows.
        rows: their numbers in the batch; None for all of it.
        steps: the most that will be made.
        is_melody: whether chroma and text stand before the codes.
        whole: attend to the whole buffer under a mask.
    """

    def __init__(
        self,
        stack: Stack,
        conditioning: Conditioning,
        rows: torch.Tensor | None,
        steps: int,
        *,
        is_melody: bool,
        whole: bool,
    ) -> None:
        self._stack, self._whole, self.rows = stack, whole, rows
        states = conditioning.states
        self._prefix = states.shape[1] if is_melody else 0
        capacity = self._prefix + steps
        if whole:
            capacity += -capacity % ALIGNED
        heads, width = stack.layers[0].shape
        shape = (len(states), 2, heads, capacity, width)
        self._filled = [states.new_zeros(shape) for _ in stack.layers]  # keys and values of each layer
        self._positions = stack.positions(capacity).to(states)
        self._places = torch.arange(capacity, device=states.device)
        self._place: int | torch.Tensor = 0
        self._mask: torch.Tensor | None = None
        self._begins: torch.Tensor | None = None  # the first place of each row [R], where they differ
        self._texts: list[_Text] = []
        if is_melody:
            begins = conditioning.mask.shape[1] - conditioning.lengths
            self._begins = begins if bool(begins.any()) else None
            for part in _rows_at_once(len(states), states.device):
                self._fill_prefix(states, part)
        else:
            self._texts = _texts(stack, conditioning, grouped=states.device.type == "cpu" and not whole)

    def begin(self, step: int | torch.Tensor) -> None:
        """Turns to a step, from 0; where the whole buffer is attended to it is a tensor `[1]` on the device."""
        self._place = step + self._prefix
        self._mask = self._mask_of(self._place)

    def position(self) -> torch.Tensor:
        """What the place of the step adds to its codes, `[1, D]` or `[R, D]`."""
        place = self._place
        if self._begins is not None:
            return self._positions.index_select(0, place - self._begins)
        return self._positions[[place]] if isinstance(place, int) else self._positions.index_select(0, place)

    def _mask_of(self, place: int | torch.Tensor) -> torch.Tensor | None:
        """What the codes at a place may attend to, to be added to scores; None for all that is filled."""
        if self._begins is None and not self._whole:
            return None
        places = self._places if self._whole else self._places[: place + 1]
        attended = (places <= place)[None]
        if self._begins is not None:
            attended = attended & (places >= self._begins[:, None])
        return _added(attended[:, None, None], self._positions.dtype)

    def attend(self, number: int, joint: torch.Tensor) -> torch.Tensor:
        """Writes keys and values of a layer and attends to all so far: `[R, 3, H, W]` -> `[R, D]`."""
        filled: torch.Tensor = self._filled[number]
        if isinstance(self._place, int):
            filled.select(3, self._place).copy_(joint[:, 1:])
            filled = filled.narrow(3, 0, self._place + 1)
        else:
            filled.index_copy_(3, self._place, joint[:, 1:, :, None])
        keys, values = filled.unbind(1)
        attended = functional.scaled_dot_product_attention(joint[:, 0, :, None], keys, values, attn_mask=self._mask)
        return attended.reshape(len(joint), -1)

    def attend_to_text(self, number: int, query: torch.Tensor) -> torch.Tensor:
        """`[R, H, 1, W]` -> `[R, D]`."""
        if self._texts and self._texts[0].rows is None:
            return self._texts[0].attend(number, query)
        attended = query.new_zeros(len(query), query.shape[1] * query.shape[3])
        for text in self._texts:
            attended[text.rows] = text.attend(number, query[text.rows])
        return attended

    def _fill_prefix(self, states: torch.Tensor, rows: slice) -> None:
        """Chroma and text stand before the codes in the melody family: they go through the stack once."""
        hidden, mask = states[rows] + self._positions[: self._prefix], None
        if self._begins is not None:
            hidden, mask = self._aligned(states[rows], self._begins[rows])
        for number, layer in enumerate(self._stack.layers):
            joint = layer.query_key_value(layer.norm(hidden)).unflatten(-1, (3, *layer.shape))  # [B, S, 3, H, W]
            query, key, value = joint.permute(2, 0, 3, 1, 4)
            self._filled[number][rows, 0, :, : self._prefix] = key
            self._filled[number][rows, 1, :, : self._prefix] = value
            attended = functional.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, is_causal=mask is None
            )
            hidden = layer.feed_forward(layer.add_own(hidden, attended.transpose(1, 2).reshape(hidden.shape)))

    def _aligned(self, states: torch.Tensor, begins: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The prefix with its padding moved from the end to the beginning, and what may be attended to in it."""
        places = self._places[: self._prefix]
        own = (places - begins[:, None]) % self._prefix  # the place of each row without padding before it
        hidden = states.gather(1, own[..., None].expand_as(states)) + self._positions[own]
        attended = (places >= begins[:, None])[:, None] & (places <= places[:, None])
        # padding attends to itself, which gives no NaN
        attended = attended | torch.eye(self._prefix, dtype=torch.bool, device=states.device)
        return hidden, _added(attended[:, None], states.dtype)


class _Text(NamedTuple):
    """The text that some rows attend to: keys and values of each layer `[R, H, L, W]`, and what is padding.

    `rows` is None for all rows.
    """

    rows: slice | torch.Tensor | None
    keys_and_values: list[tuple[torch.Tensor, torch.Tensor]]
    mask: torch.Tensor | None

    def attend(self, number: int, query: torch.Tensor) -> torch.Tensor:
        """`[R, H, 1, W]` -> `[R, D]` in the layer of this number."""
        keys, values = self.keys_and_values[number]
        attended = functional.scaled_dot_product_attention(query, keys, values, attn_mask=self.mask)
        return attended.reshape(len(query), -1)


def _texts(stack: Stack, conditioning: Conditioning, *, grouped: bool) -> list[_Text]:
    """One padded and masked text for all rows, or one for each length of captions, without padding.

    In groups the null condition is left out: its states are zero, and so is what attention makes of them.
    """
    states, mask = conditioning.states, conditioning.mask
    if not grouped:
        padding = None if bool(mask.all()) else _added(mask[:, None, None].bool(), states.dtype)
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


def _rows_at_once(rows: int, device: torch.device) -> list[slice]:
    """Rows that are computed together where shapes must not depend on the batch: on a CPU one by one."""
    return [slice(row, row + 1) for row in range(rows)] if device.type == "cpu" else [slice(rows)]


def _added(attended: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A mask as attention adds it to its scores: 0 for what is attended to, else -inf."""
    return torch.zeros_like(attended, dtype=dtype).masked_fill(~attended, -torch.inf)


def _cross_keys_and_values(layer: _Layer, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the text `[B, L, D]`: twice `[B, H, L, W]`."""
    cross: Any = layer.cross
    parts = [states[rows] for rows in _rows_at_once(len(states), states.device)]
    key, value = (
        torch.cat([product(part) for part in parts]).unflatten(-1, layer.shape).transpose(1, 2).contiguous()
        for product in (cross.key, cross.value)
    )
    return key, value
