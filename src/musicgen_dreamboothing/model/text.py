"""Captions to states of the text encoder, each distinct caption once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase, T5EncoderModel

MAX_CAPTION_TOKENS = 512  # T5's training length; longer captions are cut


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
    tokenizer: PreTrainedTokenizerBase, encoder: T5EncoderModel, captions: Iterable[str]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields each distinct caption with its states, float32 `[L, D_text]`, in the order of first appearance.

    Captions are encoded one by one: in a padded batch the last digit of a caption's states would depend on the others,
    and sampling in bf16 turns that into different music.
    """
    for caption in dict.fromkeys(captions):
        ids, mask = (tensor.to(encoder.device) for tensor in tokenize(tokenizer, [caption]))
        states = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        yield caption, states[0].float().cpu().numpy()


def pad_states(states: Sequence[np.ndarray | torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """States of several captions as one batch: float32 `[B, L, D_text]` and its mask `[B, L]`."""
    rows = [torch.as_tensor(np.asarray(state)).float() for state in states]
    mask = [torch.ones(len(row), dtype=torch.long) for row in rows]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return padded, torch.nn.utils.rnn.pad_sequence(mask, batch_first=True)
