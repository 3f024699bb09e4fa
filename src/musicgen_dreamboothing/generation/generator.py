"""A loaded model that turns prompts into audio: an adapter, a full fine-tune or a base checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import EncodecModel

from musicgen_dreamboothing.console import UserError, log, progress_bar, quiet_libraries
from musicgen_dreamboothing.device import (
    free_memory,
    is_out_of_memory,
    parse_device,
    parse_dtype,
    release_memory,
    synchronize,
)
from musicgen_dreamboothing.generation.decoding import (
    CHECK_EVERY,
    CodeStream,
    GraphedCodeStream,
    GraphError,
    Sampling,
    clip_seed,
)
from musicgen_dreamboothing.generation.engine import Stack
from musicgen_dreamboothing.hub import Source
from musicgen_dreamboothing.model import adapter, codec, text
from musicgen_dreamboothing.model.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_codec,
    load_text_encoder,
    load_tokenizer,
)
from musicgen_dreamboothing.model.language_model import MelodyLM, TextLM
from musicgen_dreamboothing.model.loading import load_for_generation
from musicgen_dreamboothing.model.quantized import QUANTIZATIONS

TRAINED_SECONDS = 30.0  # Meta trained on clips of 30 s; longer ones wander
LARGEST_CPU_BATCH, LARGEST_GPU_BATCH = 16, 64  # more clips at once are not faster
SHARE_OF_MEMORY = 0.5  # of free memory, for keys and values; the rest is for the tensors of a step


@dataclass(frozen=True)
class GeneratedClip:
    """One piece of new music: `wave` is float32 `[C, S]` at `sampling_rate`, `codes` int64 `[K, T]`."""

    prompt: str
    variation: int
    codes: torch.Tensor
    wave: np.ndarray
    sampling_rate: int


class Generator:
    """Loads a model once and generates any number of clips.

    Args:
        model: adapter folder or Hub id, fully fine-tuned folder, or base checkpoint.
        base_model: the adapter's base, if it is not where adapter_config.json says (a moved folder).
        revision: Hub revision of `model`.
        cache_dir: where Hub downloads are kept.
        token: Hub token, instead of the stored login.
        device: torch device, or `auto`.
        dtype: `auto`, `float32`, `bfloat16` or `float16`.
        quantization: `none`, or `nf4` or `int8` for the decoder's layers in 4 or 8 bits, with the adapter beside them;
            on a CPU `int8` is also faster for one or two clips at once.
        cuda_graphs: whether steps on an NVIDIA or AMD GPU are captured and replayed, which is faster.

    Attributes:
        checkpoint: the base's configuration.
        device, dtype, quantization: of the language model.
        active_layers: numbers of adapted layers with an update that is not zero, and of all adapted layers; None
            without an adapter.
    """

    @quiet_libraries()
    def __init__(
        self,
        model: str | Path,
        *,
        base_model: str | None = None,
        revision: str | None = None,
        cache_dir: str | None = None,
        token: str | None = None,
        device: torch.device | str = "auto",
        dtype: str = "auto",
        quantization: str = "none",
        cuda_graphs: bool = True,
    ) -> None:
        if quantization not in QUANTIZATIONS:
            raise UserError(f"--quantization {quantization!r} is unknown; it takes {', '.join(QUANTIZATIONS)}")
        self.device, self.quantization = parse_device(device), quantization
        self.dtype = parse_dtype(dtype, self.device)
        source = Source(str(model), revision, cache_dir, token)
        saved = adapter.read_adapter(source.name, **source.arguments())
        if saved is None:
            checkpoint = load_checkpoint(source)
        else:
            base = base_model or str(saved.config.base_model_name_or_path)
            checkpoint = _adapter_base(source, base, saved.config.revision if base_model is None else None)
        loaded, self.active_layers = load_for_generation(
            checkpoint, self.dtype, self.device, adapter=saved, quantization=quantization
        )
        self._set_model(loaded, checkpoint, {})
        self._uses_graphs = self.device.type == "cuda" and cuda_graphs

    @classmethod
    def around(
        cls, model: TextLM | MelodyLM, checkpoint: Checkpoint, states: dict[str, np.ndarray] | None = None
    ) -> Generator:
        """A generator around a model in memory, such as one in the middle of a training.

        `Stack` joins weights of the model; the caller restores them. Steps are not captured as CUDA graphs, because
        threads of a training (pinned memory) would disturb that.

        Args:
            model: in eval mode.
            checkpoint: its base.
            states: text states by caption; missing ones are added.
        """
        made = cls.__new__(cls)
        made.device, made.dtype, made.quantization, made.active_layers = model.device, model.decoder.dtype, "none", None
        made._set_model(model, checkpoint, {} if states is None else states)
        return made

    def _set_model(self, model: TextLM | MelodyLM, checkpoint: Checkpoint, states: dict[str, np.ndarray]) -> None:
        self.checkpoint, self._model, self._stack, self._states = checkpoint, model, Stack(model), states
        self._tokenizer = load_tokenizer(checkpoint)
        self._codec: EncodecModel | None = None  # loaded when there are codes to decode
        self._uses_graphs = False

    def generate(
        self,
        prompts: Sequence[str],
        *,
        seconds: float = 10.0,
        variations: int = 1,
        seed: int = 0,
        sampling: Sampling = Sampling(),
        batch_size: int | None = None,
        progress: bool = True,
    ) -> Iterator[GeneratedClip]:
        """Yields `variations` clips of every prompt, batch by batch; a clip does not depend on the others.

        Args:
            prompts: descriptions of the music.
            seconds: length of a clip; up to 30 s is what the models were trained on.
            variations: clips of each prompt, each with its own random stream.
            seed: of the random numbers, with the prompt and the variation.
            sampling: guidance, temperature, top-k and top-p.
            batch_size: clips at once, by default as many as fit into memory; halved when memory runs out.
            progress: whether to show a bar on stderr.
        """
        clips = [(prompt, variation) for prompt in prompts for variation in range(variations)]
        drawn = self.codes(
            clips, seconds=seconds, seed=seed, sampling=sampling, batch_size=batch_size, progress=progress
        )
        rate = self.checkpoint.sampling_rate
        for (prompt, variation), codes in drawn:
            yield GeneratedClip(prompt, variation, codes, self.decode(codes), rate)

    def codes(
        self,
        clips: Sequence[tuple[str, int]],
        *,
        seconds: float,
        seed: int = 0,
        sampling: Sampling = Sampling(),
        batch_size: int | None = None,
        progress: bool = True,
    ) -> Iterator[tuple[tuple[str, int], torch.Tensor]]:
        """Yields prompt and variation with the codes `[K, T]` on the CPU, batch by batch, without the codec.

        Args:
            clips: prompt and variation of each.
            seconds, seed, sampling, batch_size, progress: as of `generate`.
        """
        frames = self._frames(seconds)
        self._encode([prompt for prompt, _ in clips])
        steps = (frames + max(self.checkpoint.delay)) * len(clips)
        size = batch_size or self._fitting_batch(frames, sampling)
        with progress_bar(total=steps, unit="frame", desc="generating", disable=not progress) as bar:
            left = clips
            while left:
                batch = left[:size]
                before = bar.n
                made: list[torch.Tensor] = []
                try:
                    made = self._draw_batch(batch, frames, seed, sampling, bar)
                except RuntimeError as error:
                    if len(batch) == 1 or not is_out_of_memory(error):
                        raise
                if not made:  # after `except`, whose error keeps a reference to the memory
                    size, bar.n = len(batch) // 2, before
                    log(f"no memory for {len(batch)} clips at once; continuing with {size}")
                    release_memory()
                yield from zip(batch, made, strict=False)  # none of them where memory ran out
                left = left[len(made) :]

    def stream(
        self, prompt: str, *, seconds: float = 10.0, seed: int = 0, sampling: Sampling = Sampling(), piece: float = 1.0
    ) -> Iterator[np.ndarray]:
        """Yields one clip while it is being made, float32 `[C, S]` in pieces; together they are the clip of `generate`.

        Args:
            prompt: description of the music.
            seconds: length of the clip.
            seed: of the random numbers, with the prompt.
            sampling: guidance, temperature, top-k and top-p.
            piece: seconds of each piece.
        """
        frames, step = self._frames(seconds), max(1, round(piece * self.checkpoint.frame_rate))
        self._encode([prompt])
        states, mask = text.pad_states([self._states[prompt]])
        codes = self._code_stream(states, mask, frames, [clip_seed(seed, prompt, 0)], sampling)
        decoder = codec.StreamDecoder(self._loaded_codec(), self.checkpoint)
        decoded, ready = 0, step + decoder.lookahead
        while decoded < frames:
            codes.advance()
            if codes.complete_frames >= min(ready, frames):
                codes.check()
                last = codes.complete_frames == frames
                wave = decoder.push(codes.codes(decoded, codes.complete_frames)[0], last=last)
                decoded, ready = codes.complete_frames, codes.complete_frames + step
                yield wave.numpy()

    def _frames(self, seconds: float) -> int:
        return max(1, round(seconds * self.checkpoint.frame_rate))

    def _fitting_batch(self, frames: int, sampling: Sampling) -> int:
        """As many clips as fit into free memory with their keys and values."""
        config = self._model.config.decoder
        rows = 1 if sampling.guidance_scale == 1 else 2
        capacity = frames + max(self.checkpoint.delay)
        if self.checkpoint.is_melody:
            capacity += self._model.config.chroma_length + max(len(states) for states in self._states.values())
        numbers = 2 * rows * config.num_hidden_layers * config.hidden_size * capacity
        fitting = SHARE_OF_MEMORY * free_memory(self.device) / (numbers * self.dtype.itemsize)
        return max(1, min(int(fitting), LARGEST_CPU_BATCH if self.device.type == "cpu" else LARGEST_GPU_BATCH))

    def _code_stream(
        self, states: torch.Tensor, mask: torch.Tensor, frames: int, seeds: list[int], sampling: Sampling
    ) -> CodeStream:
        """A stream whose steps are captured where that works; then its first step is made already."""
        options: dict[str, Any] = {"frames": frames, "seeds": seeds, "sampling": sampling}
        if self._uses_graphs:
            try:
                stream = GraphedCodeStream(self._stack, self.checkpoint, states, mask, **options)
                stream.advance()
                return stream
            except GraphError as error:
                self._uses_graphs = False
                log(f"note: this GPU or driver can't capture a CUDA graph ({error}); decoding without, more slowly")
        return CodeStream(self._stack, self.checkpoint, states, mask, **options)

    def _draw_batch(
        self, batch: Sequence[tuple[str, int]], frames: int, seed: int, sampling: Sampling, bar: Any
    ) -> list[torch.Tensor]:
        states, mask = text.pad_states([self._states[prompt] for prompt, _ in batch])
        seeds = [clip_seed(seed, prompt, variation) for prompt, variation in batch]
        stream = self._code_stream(states, mask, frames, seeds, sampling)
        bar.update(stream.done * len(batch))

        def show(done: int) -> None:
            if done % CHECK_EVERY == 0:  # the GPU is behind the host, and the bar would be ahead of the music
                synchronize(self.device)
            bar.update(len(batch))

        return list(stream.finish(show).cpu())

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

    def decode(self, codes: torch.Tensor) -> np.ndarray:
        """Codes `[K, T]` of one clip to its wave `[C, S]`."""
        return codec.decode_clip(self._loaded_codec(), codes, self.checkpoint)

    def text_states(self, prompts: Sequence[str]) -> list[np.ndarray]:
        """States of the text encoder for each prompt, float32 `[L, D_text]`."""
        self._encode(prompts)
        return [self._states[prompt] for prompt in prompts]

    @property
    def model(self) -> TextLM | MelodyLM:
        """The language model, for losses: its `forward` is that of the training."""
        return self._model

    def _loaded_codec(self) -> EncodecModel:
        if self._codec is None:
            self._codec = load_codec(self.checkpoint, self.device)
        return self._codec


def _adapter_base(source: Source, base: str, revision: str | None) -> Checkpoint:
    try:
        return load_checkpoint(replace(source, name=base, revision=revision))
    except UserError as error:
        raise UserError(
            f"the adapter {source.name} needs its base: {error}; or name the base with --base_model"
        ) from error
