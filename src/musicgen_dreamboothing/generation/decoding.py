"""The decode loop: text states in, codes out, for both families.

It does what transformers' `generate` does for these models (same delay mask, guidance, top-k and top-p), with two
differences: each clip draws from its own stream of random numbers, and no clip attends to the padding of longer
captions in its batch. So a clip depends on its prompt, its variation and the seed alone: exactly on a CPU in bf16,
elsewhere up to rounding, which can draw another code.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.device import is_out_of_memory
from musicgen_dreamboothing.generation.engine import Decoder
from musicgen_dreamboothing.generation.guidance import (
    Sampling,
    TextRows,
    check_prompts,
    guided,
    guided_conditioning,
)
from musicgen_dreamboothing.generation.layers import Stack
from musicgen_dreamboothing.model.checkpoint import Checkpoint
from musicgen_dreamboothing.model.delay import UNFILLED, apply_delay, undo_delay
from musicgen_dreamboothing.model.weight_files import first_line

CHECK_EVERY = 25  # steps between two checks for NaN, each of which waits for the GPU


def clip_seed(seed: int, prompt: str, variation: int, window: int = 0) -> int:
    """A seed that depends on nothing but the clip: the run's seed, its prompt, its variation and its window."""
    words = f"{seed}\0{prompt}\0{variation}" + (f"\0{window}" if window else "")
    digest = hashlib.blake2b(words.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class GraphError(Exception):
    """A step could not be captured as a CUDA graph."""


class CodeStream:
    """The codes of a batch of clips, drawn step by step.

    Args:
        stack: the language model.
        checkpoint: the base's ids and delays.
        text_states: `[B, L, D_text]`, padded at the end.
        text_mask: `[B, L]`.
        frames: length T of each clip in codec frames.
        seeds: one for each clip.
        sampling: how codes are chosen.
        prompt_codes: the first frames of each clip `[B, K, P]`, which are given; P may be 0.
        melody: chroma classes `[B, C]` of the melody family; None for the null melody.
        negative: texts of the unconditional branch of guidance, instead of the null condition.

    Attributes:
        sequence: delayed codes `[B, K, T + max(delay)]`, -1 where none is drawn yet.
        done: number of steps that were made, those of the prompt's frames included.

    Raises:
        UserError: in any step: the model computes NaN or infinity, or ignores its prompt.
    """

    static_cache = False  # whether all steps have the same shapes

    @torch.inference_mode()
    def __init__(
        self,
        stack: Stack,
        checkpoint: Checkpoint,
        text_states: torch.Tensor,
        text_mask: torch.Tensor,
        *,
        frames: int,
        seeds: list[int],
        sampling: Sampling,
        prompt_codes: torch.Tensor | None = None,
        melody: torch.Tensor | None = None,
        negative: TextRows | None = None,
    ) -> None:
        device, batch = stack.model.device, len(seeds)
        prompts = TextRows(text_states, text_mask, torch.ones(batch, dtype=torch.bool))
        conditioning = guided_conditioning(stack.model, prompts, sampling, melody, negative)
        codes = torch.full((batch, checkpoint.codebooks, frames), UNFILLED, dtype=torch.long, device=device)
        given = 0 if prompt_codes is None else prompt_codes.shape[-1]
        if prompt_codes is not None:
            codes[..., :given] = prompt_codes.to(device)
        self.sequence = apply_delay(codes, checkpoint.delay, checkpoint.pad_token_id)
        self.done, self.frames, self._delay, self._sampling = given, frames, checkpoint.delay, sampling
        self._first, self._branches = given, sampling.branches(with_melody=melody is not None)
        self._decoder = Decoder(stack, conditioning, self.steps, static_cache=self.static_cache)
        self._noise = _noise(seeds, self.steps, checkpoint.codebooks).to(device)
        self._codes = torch.full_like(self.sequence[..., 0], checkpoint.start_token_id)
        self._is_finite = torch.ones((), dtype=torch.bool, device=device)  # whether all logits so far were
        if given:
            self._decoder.fill(torch.cat([self._codes[..., None], self.sequence[..., : given - 1]], dim=-1))
            self._codes = self.sequence[..., given - 1].clone()

    @property
    def steps(self) -> int:
        """Number of all steps: the frames, and the delay of the last codebook."""
        return self.sequence.shape[-1]

    @property
    def complete_frames(self) -> int:
        """Number of frames whose codes are all drawn."""
        return max(0, self.done - max(self._delay))

    def codes(self, first: int, last: int) -> torch.Tensor:
        """Codes `[B, K, last - first]` of a range of frames, without the delay."""
        return undo_delay(self.sequence[..., first : last + max(self._delay)], self._delay)

    def finish(self, on_step: Callable[[int], object] = lambda done: None) -> torch.Tensor:
        """Makes the remaining steps: int64 codes `[B, K, T]` on the model's device.

        Args:
            on_step: called after each step with the number of steps that are done.
        """
        while self.done < self.steps:
            self.advance()
            on_step(self.done)
            if self.done % CHECK_EVERY == 0:
                self.check()
        self.check()
        return self.codes(0, self.frames)

    def check(self) -> None:
        """Waits for the GPU and raises a `UserError` if any logits were NaN or infinite: their codes are noise."""
        if not bool(self._is_finite):
            raise UserError("the model computed NaN or infinity; try --dtype float32")

    @torch.inference_mode()
    def advance(self) -> None:
        """Makes one step."""
        step = self.done
        self._codes = sample(self._logits(step, check=step == self._first), self._noise[:, step], self._sampling)
        planned = self.sequence[..., step]
        # At both ends some codebooks have only padding, and behind a prompt the codes of its last frames.
        if not self._first + max(self._delay) <= step < self.frames:
            self._codes = torch.where(planned == UNFILLED, self._codes, planned)
        planned.copy_(self._codes)
        self.done += 1

    def _logits(self, step: int | torch.Tensor, *, check: bool) -> torch.Tensor:
        """Float32 logits of the next codes `[B, K, V]`, guided."""
        logits = self._decoder.logits(self._codes, step)
        self._is_finite.logical_and_(logits.isfinite().all())
        if check:
            self.check()
            check_prompts(logits, self._branches)
        return guided(logits, self._branches, self._sampling)


class GraphedCodeStream(CodeStream):
    """Captures a step as a CUDA graph and replays it: no Python and no launch of single kernels between steps.

    `advance` raises `GraphError` if its first step can be made, but not captured.
    """

    static_cache = True

    @torch.inference_mode()
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._step = torch.full((1,), self.done, device=self.sequence.device)  # counted on the device
        self._graph: torch.cuda.CUDAGraph | None = None

    @torch.inference_mode()
    def advance(self) -> None:
        """Makes one step; the first one is made directly, which also warms up what is captured then."""
        with torch.cuda.device(self.sequence.device):
            if self._graph is None:
                self._graph = self._captured()
            else:
                self._graph.replay()
        self.done += 1

    def _captured(self) -> torch.cuda.CUDAGraph:
        side, own = _side_stream(self.sequence.device), torch.cuda.current_stream()
        side.wait_stream(own)
        with torch.cuda.stream(side):
            self._draw(check=True)
        own.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                self._draw()
        except RuntimeError as error:
            torch.cuda.set_stream(own)  # `torch.cuda.graph` does not restore it when the end of a capture fails
            if is_out_of_memory(error):
                raise
            raise GraphError(first_line(error)) from error
        return graph

    def _draw(self, check: bool = False) -> None:
        """One step, in which nothing but `check` depends on the host."""
        step = self._step
        noise, planned = self._noise.index_select(1, step)[:, 0], self.sequence.index_select(2, step)[..., 0]
        drawn = sample(self._logits(step, check=check), noise, self._sampling)
        codes = torch.where(planned == UNFILLED, drawn, planned)
        self.sequence.index_copy_(2, step, codes[..., None])
        self._codes.copy_(codes)
        self._step.add_(1)


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream on which steps are captured: one per GPU, as cuBLAS keeps memory for each stream that it has used."""
    return torch.cuda.Stream(device)


def _noise(seeds: list[int], steps: int, codebooks: int) -> torch.Tensor:
    """Uniform numbers `[B, S, K]`, drawn on the CPU so that they are the same on every device."""
    streams = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.stack([torch.rand(steps, codebooks, generator=stream) for stream in streams])


def sample(logits: torch.Tensor, noise: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Draws codes from logits `[..., V]` with uniform noise `[...]` by inverting the cumulative distribution."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    candidates = logits.shape[-1] if sampling.top_k == 0 else min(sampling.top_k, logits.shape[-1])
    values, ids = logits.topk(candidates, dim=-1)  # sorted, so that those of top_p are the first ones
    if sampling.temperature != 1:
        values = values / sampling.temperature
    chances = torch.softmax(values, dim=-1)
    cumulative = chances.cumsum(-1)
    total = cumulative[..., -1:]
    if sampling.top_p < 1:
        total = torch.where(cumulative - chances < sampling.top_p, chances, 0).sum(-1, keepdim=True)
    choice = (cumulative < noise[..., None] * total).sum(-1, keepdim=True)
    return ids.gather(-1, choice.clamp(max=candidates - 1))[..., 0]
