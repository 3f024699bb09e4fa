"""Crops to a batch, padded on the right; padding has no effect on the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from musicgen_dreamboothing.model.chroma import NULL_CLASS
from musicgen_dreamboothing.model.delay import IGNORED
from musicgen_dreamboothing.model.text import pad_states
from musicgen_dreamboothing.training.dataset import INSTANCE, PRIOR

IS_PRIOR = "is_prior"


@dataclass(frozen=True)
class Collator:
    """Makes the arguments of the language model's `forward`.

    Attributes:
        pad_token_id: stands behind the end of a shorter piece.
        tokenize: turns captions into ids and mask where the text encoder is trained; with None the
            cached text states are used.
    """

    pad_token_id: int
    tokenize: Callable[[list[str]], tuple[torch.Tensor, torch.Tensor]] | None = None

    def __call__(self, pieces: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch of pieces; of pairs first all of the songs, then all of the class, which `is_prior` tells apart.

        `is_prior` is a numpy array, which stays on the host: class clips are counted without a wait for a GPU.
        """
        if PRIOR not in pieces[0]:
            return self._batch(pieces)
        rows = [pair[part] for part in (INSTANCE, PRIOR) for pair in pieces]
        return {**self._batch(rows), IS_PRIOR: np.arange(len(rows)) >= len(pieces)}

    def _batch(self, pieces: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = {
            "codes": _pad([piece["codes"] for piece in pieces], self.pad_token_id),
            "labels": _pad([piece["labels"] for piece in pieces], IGNORED),
            "keep_caption": torch.tensor([piece["keep_caption"] for piece in pieces]),
        }
        if self.tokenize is None:
            batch["text_states"], batch["text_mask"] = pad_states([piece["text_states"] for piece in pieces])
        else:
            batch["input_ids"], batch["text_mask"] = self.tokenize([piece["caption"] for piece in pieces])
        if (melody := _melodies(pieces)) is not None:
            batch["melody"] = melody
        return batch


def _melodies(pieces: list[dict[str, Any]]) -> torch.Tensor | None:
    """Classes of the prefixes `[B, C]`; None where all are null, so that the clips share one prefix.

    Pieces without the entry, such as clips of the class, have the null melody.
    """
    melodies = [piece.get("melody") for piece in pieces]
    if all(melody is None or not melody.any() for melody in melodies):
        return None
    null = torch.full_like(next(melody for melody in melodies if melody is not None), NULL_CLASS)
    return torch.stack([null if melody is None else melody for melody in melodies])


def _pad(rows: list[torch.Tensor], value: int) -> torch.Tensor:
    """`[K, T]` of several lengths -> `[B, K, T]`."""
    return pad_sequence([row.T for row in rows], batch_first=True, padding_value=value).transpose(1, 2)
