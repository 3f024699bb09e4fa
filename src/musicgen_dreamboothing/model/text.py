"""Captions to states of the text encoder, each distinct caption once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase, T5EncoderModel

MAX_CAPTION_TOKENS = 512  # T5's own training length; what stands behind it is cut off


def tokenize(tokenizer: PreTrainedTokenizerBase, captions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, both `[B, L]`, padded on the right and cut at 512 tokens."""
    batch = tokenizer(
        list(captions),
        padding=True,
        truncation=True,
        max_length=MAX_CAPTION_TOKENS,
        padding_side="right",
        return_tensors="pt",
    )
    return batch["input_ids"], batch["attention_mask"]


def is_too_long(tokenizer: PreTrainedTokenizerBase, caption: str) -> bool:
    """Whether a caption will be cut."""
    return len(tokenizer(caption, truncation=True, max_length=MAX_CAPTION_TOKENS + 1)["input_ids"]) > MAX_CAPTION_TOKENS


@torch.inference_mode()
def encode_captions(
    tokenizer: PreTrainedTokenizerBase, encoder: T5EncoderModel, captions: Sequence[str], batch_size: int = 32
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields each caption with its states, float32 `[L, D_text]` without padding.

    Captions of like length share a batch; a padded one gives the same states as alone.
    """
    ordered = sorted(set(captions), key=lambda caption: (len(caption), caption))
    for first in range(0, len(ordered), batch_size):
        batch = ordered[first : first + batch_size]
        ids, mask = tokenize(tokenizer, batch)
        states = encoder(input_ids=ids.to(encoder.device), attention_mask=mask.to(encoder.device)).last_hidden_state
        for caption, state, length in zip(batch, states.cpu(), mask.sum(-1).tolist(), strict=True):
            yield caption, state[:length].float().numpy()


def pad_states(states: Sequence[np.ndarray | torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """States of several captions to one batch: float32 `[B, L, D_text]` and its mask `[B, L]`."""
    rows = [torch.as_tensor(np.asarray(state)).float() for state in states]
    mask = [torch.ones(len(row), dtype=torch.long) for row in rows]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return padded, torch.nn.utils.rnn.pad_sequence(mask, batch_first=True)
