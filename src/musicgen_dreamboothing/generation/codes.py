"""A model in memory that turns prompts into codes, batch by batch and window by window, without the codec."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil
from typing import Any, TypeVar

import numpy as np
import torch

from musicgen_dreamboothing.console import UserError, log, progress_bar
from musicgen_dreamboothing.device import free_memory, is_out_of_memory, release_memory, synchronize
from musicgen_dreamboothing.generation.canary import check_melody, check_prompt_codes
from musicgen_dreamboothing.generation.decoding import (
    CHECK_EVERY,
    CodeStream,
    GraphedCodeStream,
    GraphError,
    clip_seed,
)
from musicgen_dreamboothing.generation.guidance import Sampling, TextRows
from musicgen_dreamboothing.generation.layers import Stack
from musicgen_dreamboothing.generation.melodies import melody_window
from musicgen_dreamboothing.generation.requests import Clip, GenerationRequest, Section, as_request
from musicgen_dreamboothing.generation.windows import Window, continued, steps_of, window_frames, window_plan
from musicgen_dreamboothing.model import text
from musicgen_dreamboothing.model.checkpoint import EXAMPLES, Checkpoint, load_text_encoder, load_tokenizer
from musicgen_dreamboothing.model.language_model import MelodyLM, TextLM

LARGEST_CPU_BATCH, LARGEST_GPU_BATCH = 24, 64  # more clips at once are not faster
SHARE_OF_MEMORY = 0.5  # of free memory, for keys and values; the rest is for the tensors of a step

AnyClip = TypeVar("AnyClip", Clip, GenerationRequest)


class CodeGenerator:
    """Draws the codes of any number of clips.

    Args:
        model: in eval mode; `Stack` joins its weights.
        checkpoint: its base.
        states: text states by caption; missing ones are added.
        uses_graphs: whether steps are captured as CUDA graphs.
    """

    def __init__(
        self,
        model: TextLM | MelodyLM,
        checkpoint: Checkpoint,
        states: dict[str, np.ndarray],
        *,
        uses_graphs: bool,
    ) -> None:
        self.checkpoint, self._model, self._stack, self._states = checkpoint, model, Stack(model), states
        self.device, self.dtype = model.device, model.decoder.dtype
        self._tokenizer = load_tokenizer(checkpoint)
        self._uses_graphs = uses_graphs
        self._checked: set[str] = set()  # conditions that are known to change the logits

    def codes(
        self,
        clips: Sequence[AnyClip],
        *,
        seconds: float,
        seed: int = 0,
        sampling: Sampling = Sampling(),
        batch_size: int | None = None,
        progress: bool = True,
    ) -> Iterator[tuple[AnyClip, torch.Tensor]]:
        """Yields each clip with its codes `[K, T]` on the CPU, batch by batch, without the codec.

        Clips of one batch have the same windows, with a melody or without, so their order may be another.

        Args:
            clips: prompt and variation of each, or requests.
            seconds, seed, sampling, batch_size, progress: as of `generate`.
        """
        requests = [as_request(clip) for clip in clips]
        self._prepare(requests)
        groups: dict[tuple[tuple[Window, ...], tuple[bool, ...]], list[int]] = {}
        for number, request in enumerate(requests):
            with_melody = tuple(part.melody is not None for part in request.parts(seconds))
            groups.setdefault((self._plan(request, seconds), with_melody), []).append(number)
        steps = sum(steps_of(plan, self.checkpoint.delay) * len(numbers) for (plan, _), numbers in groups.items())
        with progress_bar(total=steps, unit="frame", desc="generating", disable=not progress) as bar:
            for (plan, _), numbers in groups.items():
                batch = [requests[number] for number in numbers]
                drawn = self._draw(batch, plan, seed, sampling, batch_size, bar)
                yield from zip((clips[number] for number in numbers), drawn, strict=True)

    def _draw(
        self,
        left: Sequence[GenerationRequest],
        plan: tuple[Window, ...],
        seed: int,
        sampling: Sampling,
        batch_size: int | None,
        bar: Any,
    ) -> Iterator[torch.Tensor]:
        """Codes `[K, T]` of clips with the same windows, batch by batch."""
        size = batch_size or self._fitting_batch(max(window.frames for window in plan), sampling)
        size = ceil(len(left) / ceil(len(left) / size))  # batches of one size: a last small one takes as many steps
        while left:
            batch = left[:size]
            before = bar.n
            made: list[torch.Tensor] = []
            try:
                made = self._draw_batch(batch, plan, seed, sampling, bar)
            except RuntimeError as error:
                if len(batch) == 1 or not is_out_of_memory(error):
                    raise
            if not made:  # after `except`, whose error keeps a reference to the memory
                size, bar.n = len(batch) // 2, before
                log(f"no memory for {len(batch)} clips at once; continuing with {size}")
                release_memory()
            yield from made  # none of them where memory ran out
            left = left[len(made) :]

    def _plan(self, request: GenerationRequest, seconds: float) -> tuple[Window, ...]:
        rate = self.checkpoint.frame_rate
        lengths = [max(1, round(part.seconds * rate)) for part in request.parts(seconds)]
        given, longest = request.prompt_frames, window_frames(rate)
        if given >= min(lengths[0], longest):
            alternative = "make the first section longer" if request.sections else "raise --seconds"
            raise UserError(
                f"the audio prompt of {given / rate:g} s leaves nothing to generate "
                f"in {min(lengths[0], longest) / rate:g} s; shorten it with --prompt_seconds, or {alternative}"
            )
        return window_plan(lengths, given, rate)

    def _fitting_batch(self, frames: int, sampling: Sampling) -> int:
        """As many clips as fit into free memory with their keys and values."""
        config = self._model.config.decoder
        rows = sampling.branches(with_melody=self.checkpoint.is_melody)  # at most
        capacity = frames + max(self.checkpoint.delay)
        if self.checkpoint.is_melody:
            capacity += self._model.config.chroma_length + max(len(states) for states in self._states.values())
        numbers = 2 * rows * config.num_hidden_layers * config.hidden_size * capacity
        fitting = SHARE_OF_MEMORY * free_memory(self.device) / (numbers * self.dtype.itemsize)
        return max(1, min(int(fitting), LARGEST_CPU_BATCH if self.device.type == "cpu" else LARGEST_GPU_BATCH))

    def _code_stream(
        self,
        states: torch.Tensor,
        mask: torch.Tensor,
        frames: int,
        seeds: list[int],
        sampling: Sampling,
        **conditions: Any,
    ) -> CodeStream:
        """A stream whose steps are captured where that works; then its first step is made already."""
        options: dict[str, Any] = {"frames": frames, "seeds": seeds, "sampling": sampling, **conditions}
        if self._uses_graphs:
            try:
                stream = GraphedCodeStream(self._stack, self.checkpoint, states, mask, **options)
                stream.advance()
                return stream
            except GraphError as error:
                self._uses_graphs = False
                log(f"note: this GPU or driver can't capture a CUDA graph ({error}); decoding without, more slowly")
        return CodeStream(self._stack, self.checkpoint, states, mask, **options)

    def _window_stream(
        self,
        batch: Sequence[GenerationRequest],
        window: Window,
        number: int,
        codes: torch.Tensor | None,
        seed: int,
        sampling: Sampling,
    ) -> CodeStream:
        """The stream of one window, which continues the codes `[B, K, T]` before it."""
        sections = [request.parts(0)[window.section] for request in batch]
        states, mask = text.pad_states([self._states[section.prompt] for section in sections])
        seeds = [
            clip_seed(seed if section.seed is None else section.seed, section.prompt, request.variation, number)
            for request, section in zip(batch, sections, strict=True)
        ]
        conditions: dict[str, Any] = {}
        if window.first > window.start:
            assert codes is not None
            conditions["prompt_codes"] = codes[..., window.start : window.first]
        if any(section.melody is not None for section in sections):
            since = window.start - window.section_start
            conditions["melody"] = torch.stack([self._melody(section, since) for section in sections])
        if any(request.negative_prompt is not None for request in batch):
            conditions["negative"] = self._negative(batch, sections)
        return self._code_stream(states, mask, window.frames, seeds, sampling, **conditions)

    def _negative(self, batch: Sequence[GenerationRequest], sections: Sequence[Section]) -> TextRows:
        """Negative prompts, and the null condition for clips without one."""
        pairs = zip(batch, sections, strict=True)
        texts = [part.prompt if request.negative_prompt is None else request.negative_prompt for request, part in pairs]
        states, mask = text.pad_states([self._states[words] for words in texts])
        return TextRows(states, mask, torch.tensor([request.negative_prompt is not None for request in batch]))

    def _draw_batch(
        self,
        batch: Sequence[GenerationRequest],
        plan: tuple[Window, ...],
        seed: int,
        sampling: Sampling,
        bar: Any,
    ) -> list[torch.Tensor]:
        def show(done: int) -> None:
            if done % CHECK_EVERY == 0:  # the GPU is behind the host, and the bar would be ahead of the music
                synchronize(self.device)
            bar.update(len(batch))

        codes = prompt_codes_of(batch)
        for number, window in enumerate(plan):
            stream = self._window_stream(batch, window, number, codes, seed, sampling)
            bar.update((stream.done - (window.first - window.start)) * len(batch))
            codes = continued(codes, stream.finish(show), window)
        assert codes is not None
        return list(codes.cpu())

    def _prepare(self, requests: Sequence[GenerationRequest]) -> None:
        """Checks requests, encodes their texts, and checks that the model reacts to their melodies and prompts."""
        melodies = [section for request in requests for section in request.parts(0) if section.melody is not None]
        if melodies and not self.checkpoint.is_melody:
            raise UserError(
                f"{self.checkpoint.name} takes no melody: it is a text model; "
                f"take {EXAMPLES[-1]}, or a model that was trained on a melody checkpoint"
            )
        for request in requests:
            if request.prompt_codes is not None and len(request.prompt_codes) != self.checkpoint.codebooks:
                raise UserError(
                    f"prompt codes of {len(request.prompt_codes)} codebooks for {self.checkpoint.name}, "
                    f"which has {self.checkpoint.codebooks}: encode the sound with this model"
                )
            if request.negative_prompt in {part.prompt for part in request.parts(0)}:
                raise UserError(
                    f"the negative prompt {request.negative_prompt!r} is the prompt itself; describe something else"
                )
        self._encode([words for request in requests for words in request.texts()])
        self._check_melody(melodies)
        self._check_prompt_codes(requests)

    def _check_melody(self, sections: Sequence[Section]) -> None:
        for section in sections:
            melody = self._melody(section, 0)
            if "melody" not in self._checked and bool(melody.any()):
                states, _ = text.pad_states([self._states[section.prompt]])
                check_melody(self._stack, self.checkpoint, states, melody[None])
                self._checked.add("melody")

    def _melody(self, section: Section, first: int) -> torch.Tensor:
        """The prefix of a window that begins `first` frames behind the start of a section, as chroma classes `[C]`."""
        return melody_window(section.melody, first, self.checkpoint.frame_rate, self._model.config.chroma_length)

    def _check_prompt_codes(self, requests: Sequence[GenerationRequest]) -> None:
        for request in requests:
            codes = request.prompt_codes
            if "prompt" not in self._checked and codes is not None and codes.shape[-1] > 1:
                states, _ = text.pad_states([self._states[request.parts(0)[0].prompt]])
                check_prompt_codes(self._stack, self.checkpoint, states, codes)
                self._checked.add("prompt")

    def _encode(self, prompts: Sequence[str]) -> None:
        """Adds missing text states; T5 is loaded for that alone."""
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._states]
        if not missing:
            return
        own = getattr(self._model.text_encoder, "encoder", None) is not None
        encoder = self._model.text_encoder if own else load_text_encoder(self.checkpoint, self.device)
        self._states.update(text.encode_captions(self._tokenizer, encoder, missing))
        del encoder
        release_memory()

    def cut_prompts(self, prompts: Sequence[str]) -> list[str]:
        """The prompts that are longer than the text encoder's limit, and so will be cut."""
        return [prompt for prompt in prompts if text.is_too_long(self._tokenizer, prompt)]

    def text_states(self, prompts: Sequence[str]) -> list[np.ndarray]:
        """States of the text encoder for each prompt, float32 `[L, D_text]`."""
        self._encode(prompts)
        return [self._states[prompt] for prompt in prompts]


def prompt_codes_of(batch: Sequence[GenerationRequest]) -> torch.Tensor | None:
    """The codes that equally long prompts give `[B, K, P]`; None without."""
    given = [request.prompt_codes for request in batch if request.prompt_codes is not None]
    return torch.stack(given) if given else None
