"""Keys and values of a batch over buffers of fixed size, and the passes that fill them."""

from __future__ import annotations

import torch
from torch.nn import functional

from musicgen_dreamboothing.generation.cross_attention import Text, additive_mask, row_groups, texts_of
from musicgen_dreamboothing.generation.layers import Stack
from musicgen_dreamboothing.model.language_model import Conditioning

ALIGNED = 16  # positions; kernels of GPUs copy a mask whose rows are not multiples of it, in each layer of each step


class Cache:
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
        self._texts: list[Text] = []
        if is_melody:
            starts = conditioning.mask.shape[1] - conditioning.lengths
            self._starts = starts if bool(starts.any()) else None
            for part in row_groups(len(states), states.device):
                self._fill_prefix(states, part)
        else:
            self._texts = texts_of(stack, conditioning, grouped=states.device.type == "cpu" and not static_cache)

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
        return additive_mask(attended[:, None, None], self._position_table.dtype)

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
        self._pass_through(hidden, rows, 0, mask)

    def fill_codes(self, embedded: torch.Tensor) -> None:
        """Passes the codes of the first steps through all layers at once: `[R, P, D]` without their positions."""
        places = torch.arange(self._prefix, self._prefix + embedded.shape[1], device=embedded.device)
        attended = (self._all_positions[: self._prefix + len(places)] <= places[:, None])[None]  # [1, P, prefix + P]
        for rows in row_groups(len(embedded), embedded.device, embedded.shape[1]):
            own, mask = places[None], attended if self._prefix else None
            if self._starts is not None:
                starts = self._starts[rows, None]
                own = places - starts
                mask = attended & (self._all_positions[: attended.shape[-1]] >= starts)[:, None]
            additive = None if mask is None else additive_mask(mask[:, None], embedded.dtype)
            self._pass_through(embedded[rows] + self._position_table[own], rows, self._prefix, additive)

    def _pass_through(self, hidden: torch.Tensor, rows: slice, first: int, mask: torch.Tensor | None) -> None:
        """Writes keys and values of some rows `[r, P, D]` from place `first` on; causal without a mask."""
        end = first + hidden.shape[1]
        texts = [] if self._stack.layers[0].cross is None else self._texts_of(rows)
        for number, layer in enumerate(self._stack.layers):
            joint = layer.query_key_value(layer.norm(hidden)).unflatten(-1, (3, *layer.shape))  # [r, P, 3, H, W]
            query, key, value = joint.permute(2, 0, 3, 1, 4)
            keys_values = self._keys_values[number][rows, ..., :end, :]
            keys_values[:, 0, :, first:] = key
            keys_values[:, 1, :, first:] = value
            attended = functional.scaled_dot_product_attention(
                query, keys_values[:, 0], keys_values[:, 1], attn_mask=mask, is_causal=mask is None
            )
            hidden = layer.add_own(hidden, attended.transpose(1, 2).reshape(hidden.shape))
            if layer.cross is not None:
                query = layer.cross.query(layer.cross.norm(hidden)).unflatten(-1, layer.shape).transpose(1, 2)
                attended = torch.zeros_like(query)
                for text, places, numbers in texts:
                    attended[places] = text.attended(number, query[places], numbers)
                hidden = layer.cross.add(hidden, attended.transpose(1, 2).reshape(hidden.shape))
            hidden = layer.feed_forward(hidden)

    def _texts_of(self, rows: slice) -> list[tuple[Text, list[int], list[int]]]:
        """The texts of some rows, each with the places of its rows among them, and in the text."""
        numbers = list(range(len(self._keys_values[0])))
        selected = []
        for text in self._texts:
            own = numbers if text.rows is None else torch.tensor(numbers)[text.rows].tolist()
            pairs = [(place, own.index(row)) for place, row in enumerate(numbers[rows]) if row in own]
            if pairs:
                selected.append((text, [place for place, _ in pairs], [number for _, number in pairs]))
        return selected

    def _right_aligned(self, states: torch.Tensor, starts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The prefix with its padding moved from the end to the start, and its additive mask."""
        places = self._all_positions[: self._prefix]
        own = (places - starts[:, None]) % self._prefix  # the position of each row without padding before it
        hidden = states.gather(1, own[..., None].expand_as(states)) + self._position_table[own]
        attended = (places >= starts[:, None])[:, None] & (places <= places[:, None])
        # padding attends to itself: a row without any place would give NaN
        attended = attended | torch.eye(self._prefix, dtype=torch.bool, device=states.device)
        return hidden, additive_mask(attended[:, None], states.dtype)
