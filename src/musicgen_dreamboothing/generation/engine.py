"""One decoding step at a time, over key and value buffers of fixed size.

transformers' `generate` copies all keys and values at each step and projects the text again. Here everything that does
not change is computed once, a step writes its keys and values in place, and layers with the same input are one matrix
product.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from musicgen_dreamboothing.generation.cache import Cache
from musicgen_dreamboothing.generation.layers import DecoderLayer, Stack
from musicgen_dreamboothing.generation.products import TILE, has_tiles
from musicgen_dreamboothing.model.language_model import Conditioning, MelodyLM


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
            Cache(stack, part, rows, steps, is_melody=is_melody, static_cache=static_cache) for rows, part in groups
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

    def fill(self, codes: torch.Tensor) -> None:
        """Computes keys and values of the first P steps in one pass, as P calls of `logits` would, up to rounding.

        Args:
            codes: inputs of these steps `[B, K, P]`, as `logits` takes them one by one.
        """
        clips, _, steps = codes.shape
        hidden = self._stack.embed(codes.transpose(1, 2).flatten(0, 1)).unflatten(0, (clips, steps))
        hidden = torch.cat([hidden] * (self._rows // clips))
        for cache in self._caches:
            cache.fill_codes(hidden if cache.rows is None else hidden[cache.rows])

    def _layer(self, number: int, layer: DecoderLayer, hidden: torch.Tensor) -> torch.Tensor:
        """`[R, D]` -> `[R, D]`, its key and value written to the buffers."""
        # Contiguous: attention copies other queries, which costs a third of a step.
        joint = layer.query_key_value(layer.norm(hidden)).contiguous().view(len(hidden), 3, *layer.shape)
        hidden = layer.add_own(hidden, self._by_group(joint, lambda cache, rows: cache.attend(number, rows)))
        if layer.cross is not None:
            query = layer.cross.query(layer.cross.norm(hidden)).contiguous().view(len(hidden), *layer.shape)[:, :, None]
            attended = self._by_group(query, lambda cache, rows: cache.cross_attend(number, rows))
            hidden = layer.cross.add(hidden, attended)
        return layer.feed_forward(hidden)

    def _by_group(self, values: torch.Tensor, compute: Callable[[Cache, torch.Tensor], torch.Tensor]) -> torch.Tensor:
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
