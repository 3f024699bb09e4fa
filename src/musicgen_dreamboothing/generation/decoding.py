"""The decode loop: text states in, codes out, for both families.

It does what transformers' `generate` does for these models (same delay mask, guidance and top-k),
with two differences: each clip draws from its own stream of random numbers, and captions of the
melody family are never padded, so that a clip is the same whatever it is made beside.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.model.checkpoint import Checkpoint
from musicgen_dreamboothing.model.delay import apply_delay, undo_delay
from musicgen_dreamboothing.model.language_model import Conditioning, MelodyLM, TextLM

UNFILLED = -1


@dataclass(frozen=True)
class Sampling:
    """How the next code is chosen.

    Attributes:
        guidance_scale: 1 ignores classifier-free guidance; Meta uses 3 (Copet et al. 2023, section 3.1).
        temperature: 0 takes the likeliest code.
        top_k: number of likeliest codes to draw from; 0 draws from all.
    """

    guidance_scale: float = 3.0
    temperature: float = 1.0
    top_k: int = 250


def clip_seed(seed: int, prompt: str, variation: int) -> int:
    """A seed that depends on nothing but the clip: the run's seed, its prompt and its variation."""
    digest = hashlib.blake2b(f"{seed}\0{prompt}\0{variation}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@torch.inference_mode()
def generate_codes(
    model: TextLM | MelodyLM,
    checkpoint: Checkpoint,
    text_states: torch.Tensor,
    text_mask: torch.Tensor,
    *,
    frames: int,
    seeds: list[int],
    sampling: Sampling,
    on_step: Callable[[int], object] = lambda clips: None,
) -> torch.Tensor:
    """Samples codes for a batch of captions.

    Args:
        model: the language model.
        checkpoint: the base's ids and delays.
        text_states: `[B, L, D_text]`; for the melody family all of the same length.
        text_mask: `[B, L]`.
        frames: length T of each clip in codec frames.
        seeds: one for each clip.
        sampling: how codes are chosen.
        on_step: called after each step with the number of clips.

    Returns:
        int64 codes `[B, K, T]` on the model's device.
    """
    device, batch = model.device, len(seeds)
    conditioning = _guided_conditioning(model, text_states.to(device), text_mask.to(device), sampling)
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    blank = torch.full((batch, checkpoint.codebooks, frames), UNFILLED, dtype=torch.long, device=device)
    sequence = apply_delay(blank, checkpoint.delay, checkpoint.pad_token_id)
    noise = _noise(seeds, sequence.shape[-1], checkpoint.codebooks).to(device)
    step_input = torch.full_like(sequence[..., :1], checkpoint.start_token_id)
    for step in range(sequence.shape[-1]):
        logits = _next_logits(model, step_input, conditioning, cache, sampling.guidance_scale, check=step == 0)
        drawn = sample(logits, noise[:, step], sampling)
        planned = sequence[..., step]
        step_input = torch.where(planned == UNFILLED, drawn, planned)[..., None]
        sequence[..., step] = step_input[..., 0]
        on_step(batch)
    return undo_delay(sequence, checkpoint.delay)


def _guided_conditioning(
    model: TextLM | MelodyLM, states: torch.Tensor, mask: torch.Tensor, sampling: Sampling
) -> Conditioning:
    """Under guidance the batch is doubled: captions first, then the null condition."""
    keep = torch.ones(len(states), dtype=torch.bool, device=states.device)
    if sampling.guidance_scale != 1:
        states, mask, keep = states.repeat(2, 1, 1), mask.repeat(2, 1), torch.cat([keep, ~keep])
    return model.condition(states, mask, keep)


def _next_logits(
    model: TextLM | MelodyLM,
    step_input: torch.Tensor,
    conditioning: Conditioning,
    cache: EncoderDecoderCache,
    guidance_scale: float,
    check: bool,
) -> torch.Tensor:
    """Float32 logits of the next codes `[B, K, V]`, guided."""
    if guidance_scale == 1:
        return _logits(model, step_input, conditioning, cache)
    doubled = _logits(model, step_input.repeat(2, 1, 1), conditioning, cache)
    captioned, null = doubled.chunk(2)
    if check and torch.equal(captioned, null):
        raise UserError("the prompt changes nothing in this model: captioned and null logits are the same")
    return null + guidance_scale * (captioned - null)


def _logits(
    model: TextLM | MelodyLM,
    step_input: torch.Tensor,
    conditioning: Conditioning,
    cache: EncoderDecoderCache,
) -> torch.Tensor:
    hidden = model.hidden_states(step_input, conditioning, cache)
    return model.logits(hidden[:, -1:])[:, :, 0].float()


def _noise(seeds: list[int], steps: int, codebooks: int) -> torch.Tensor:
    """Uniform numbers `[B, S, K]`, drawn on the CPU so that every device hears the same clip."""
    streams = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.stack([torch.rand(steps, codebooks, generator=stream) for stream in streams])


def sample(logits: torch.Tensor, noise: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Draws codes from logits `[..., V]` with uniform noise `[...]` by inverting the cumulative distribution."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    candidates = logits.shape[-1] if sampling.top_k == 0 else min(sampling.top_k, logits.shape[-1])
    values, ids = logits.topk(candidates, dim=-1)
    cumulative = torch.softmax(values / sampling.temperature, dim=-1).cumsum(-1)
    choice = (cumulative < noise[..., None] * cumulative[..., -1:]).sum(-1, keepdim=True)
    return ids.gather(-1, choice.clamp(max=candidates - 1))[..., 0]
