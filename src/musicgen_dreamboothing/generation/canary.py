"""Checks that a model depends on its conditions: with others, the logits of the first new step must be others.

Versions of transformers, wrong weights or an adapter for another base have made models ignore them without an error.
"""

from __future__ import annotations

import torch

from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.generation.engine import Decoder
from musicgen_dreamboothing.generation.layers import Stack
from musicgen_dreamboothing.model.checkpoint import Checkpoint
from musicgen_dreamboothing.model.chroma import NULL_CLASS
from musicgen_dreamboothing.model.delay import apply_delay
from musicgen_dreamboothing.model.language_model import Conditioning


@torch.inference_mode()
def check_melody(stack: Stack, checkpoint: Checkpoint, states: torch.Tensor, melody: torch.Tensor) -> None:
    """Raises a `UserError` if a melody and the null melody give the same logits, or a caption and none.

    With a melody the branches of guidance differ even in a model that ignores captions.

    Args:
        stack: of the melody family.
        checkpoint: its base.
        states: a caption `[1, L, D_text]`.
        melody: chroma classes `[1, C]`, not all of the null melody.
    """
    melodies = torch.cat([melody, torch.full_like(melody, NULL_CLASS), melody])
    conditioning = _conditioning(stack, states, torch.tensor([True, True, False]), melodies)
    decoder = Decoder(stack, conditioning, 1, static_cache=False)
    both, captioned, followed = decoder.logits(_start_codes(stack, checkpoint, 3), 0)
    for condition, without in {"melody": captioned, "prompt": followed}.items():
        if torch.equal(both, without):
            raise UserError(f"the {condition} changes nothing in this model: logits with and without it are the same")


@torch.inference_mode()
def check_prompt_codes(stack: Stack, checkpoint: Checkpoint, states: torch.Tensor, codes: torch.Tensor) -> None:
    """Raises a `UserError` if other frames before the last one of an audio prompt give the same logits.

    Args:
        stack: of either family.
        checkpoint: its base.
        states: a caption `[1, L, D_text]`.
        codes: of the prompt `[K, P]`, P at least 2.
    """
    start, steps = _start_codes(stack, checkpoint, 2), codes.shape[-1]
    pair = torch.stack([codes, (codes + 1) % checkpoint.codebook_size]).to(stack.model.device)
    delayed = apply_delay(pair, checkpoint.delay, checkpoint.pad_token_id)[..., :steps]
    conditioning = _conditioning(stack, states, torch.tensor([True, True]), None)
    decoder = Decoder(stack, conditioning, steps + 1, static_cache=False)
    decoder.fill(torch.cat([start[..., None], delayed[..., :-1]], dim=-1))
    if torch.equal(*decoder.logits(delayed[:1, :, -1].repeat(2, 1), steps)):
        raise UserError("the audio prompt changes nothing in this model: logits with and without it are the same")


def _start_codes(stack: Stack, checkpoint: Checkpoint, clips: int) -> torch.Tensor:
    """Codes of the first input of so many clips `[B, K]`."""
    return torch.full((clips, checkpoint.codebooks), checkpoint.start_token_id, device=stack.model.device)


def _conditioning(
    stack: Stack, states: torch.Tensor, keep_caption: torch.Tensor, melodies: torch.Tensor | None
) -> Conditioning:
    """Of clips with the same caption, which is dropped where `keep_caption` is False."""
    repeated, device = states.repeat(len(keep_caption), 1, 1), stack.model.device
    places = torch.ones(repeated.shape[:2], dtype=torch.long)
    melody = None if melodies is None else melodies.to(device)
    return stack.model.condition(repeated.to(device), places.to(device), keep_caption.to(device), melody)
