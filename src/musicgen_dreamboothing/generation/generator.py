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
from musicgen_dreamboothing.generation.decoding import CHECK, EAGER, GRAPH, CodeStream, GraphError, Sampling, clip_seed
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
LARGEST_BATCH = {"cpu": 16}  # beyond it two cores have more to compute than to read
LARGEST_BATCH_ON_A_GPU = 64
SHARE_OF_MEMORY = 0.5  # of what is free, for keys and values; the rest is for what a step needs beside them


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
        base_model: the adapter's base, where its own note of it is out of date (a moved folder).
        revision: Hub revision of `model`.
        cache_dir: where Hub downloads are kept.
        token: Hub token, where the stored login does not do.
        device: torch device, or `auto` for the best there is.
        dtype: `auto`, `float32`, `bfloat16` or `float16`.
        quantization: `none`, or `nf4` or `int8` for weights of the decoder's layers in 4 or 8 bits, with the adapter
            beside them; `int8` is also faster on a CPU for one or two clips at once.
        cuda_graphs: whether steps on a GPU are captured and replayed, which is faster where there is a graph for it.

    Attributes:
        checkpoint: the base's configuration.
        device, dtype, quantization: of the language model.
        active_layers: adapted layers that change something, and adapted layers in all; None without an adapter.
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
            self.checkpoint = load_checkpoint(source)
        else:
            base = base_model or str(saved.config.base_model_name_or_path)
            self.checkpoint = _adapter_base(source, base, saved.config.revision if base_model is None else None)
        self._model, self.active_layers = load_for_generation(
            self.checkpoint, self.dtype, self.device, adapter=saved, quantization=quantization
        )
        self._stack = Stack(self._model)
        self._tokenizer = load_tokenizer(self.checkpoint)
        self._states: dict[str, np.ndarray] = {}
        self._codec: EncodecModel | None = None  # loaded when there are codes to decode
        self._mode = GRAPH if self.device.type == "cuda" and cuda_graphs else EAGER

    @classmethod
    def around(
        cls, model: TextLM | MelodyLM, checkpoint: Checkpoint, states: dict[str, np.ndarray] | None = None
    ) -> Generator:
        """A generator around a model in memory, such as one in the middle of a training.

        Weights that are read together are laid together; who goes on with the model puts them back. Nothing is captured
        on a GPU, as threads of a training (pinned memory) must not be seen in it.

        Args:
            model: in eval mode.
            checkpoint: its base.
            states: text states of captions, which are used and added to.
        """
        made = cls.__new__(cls)
        made.device, made.dtype, made.active_layers, made.checkpoint = (
            model.device,
            model.decoder.dtype,
            None,
            checkpoint,
        )
        made._model, made._stack, made._tokenizer = model, Stack(model), load_tokenizer(checkpoint)
        made._states, made._codec, made._mode = {} if states is None else states, None, EAGER
        return made

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
        """Yields `variations` clips of every prompt, batch by batch; each is the same whatever it is made beside.

        Args:
            prompts: descriptions of the music.
            seconds: length of a clip; up to 30 s is what the models were trained on.
            variations: clips of each prompt, each with its own random stream.
            seed: with the prompt and the variation it fixes the clip.
            sampling: guidance, temperature, top-k and top-p.
            batch_size: clips made at once; None makes as many as memory holds. Where memory runs out it is halved.
            progress: whether to show a bar on stderr.
        """
        wanted = [(prompt, variation) for prompt in prompts for variation in range(variations)]
        drawn = self.codes(
            wanted, seconds=seconds, seed=seed, sampling=sampling, batch_size=batch_size, progress=progress
        )
        rate = self.checkpoint.sampling_rate
        for (prompt, variation), codes in drawn:
            yield GeneratedClip(prompt, variation, codes, self.decode(codes), rate)

    def codes(
        self,
        wanted: Sequence[tuple[str, int]],
        *,
        seconds: float,
        seed: int = 0,
        sampling: Sampling = Sampling(),
        batch_size: int | None = None,
        progress: bool = True,
    ) -> Iterator[tuple[tuple[str, int], torch.Tensor]]:
        """Yields prompt and variation with the codes `[K, T]` on the CPU, batch by batch; the codec isn't needed.

        Args:
            wanted: prompt and variation of each clip.
            seconds, seed, sampling, batch_size, progress: as of `generate`.
        """
        frames = self._frames(seconds)
        self._encode([prompt for prompt, _ in wanted])
        steps = (frames + max(self.checkpoint.delay)) * len(wanted)
        size = batch_size or self._fitting_batch(frames, sampling)
        with progress_bar(total=steps, unit="frame", desc="generating", disable=not progress) as bar:
            left = wanted
            while left:
                batch = left[:size]
                before = bar.n
                made: list[torch.Tensor] = []
                try:
                    made = self._draw_batch(batch, frames, seed, sampling, bar)
                except GraphError as error:
                    self._leave_graphs(error)
                    bar.n = before
                    continue
                except RuntimeError as error:
                    if len(batch) == 1 or not is_out_of_memory(error):
                        raise
                if not made:  # outside of `except`, whose error holds on to all that is to be freed
                    size, bar.n = len(batch) // 2, before
                    log(f"no memory for {len(batch)} clips at once; going on with {size}")
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
            seed: with the prompt it fixes the clip.
            sampling: guidance, temperature, top-k and top-p.
            piece: seconds of music between two pieces; each comes as soon as its sound is certain.
        """
        frames, step = self._frames(seconds), max(1, round(piece * self.checkpoint.frame_rate))
        self._encode([prompt])
        states, mask = text.pad_states([self._states[prompt]])
        codes = self._code_stream(states, mask, frames, [clip_seed(seed, prompt, 0)], sampling)
        decoder = codec.StreamDecoder(self._loaded_codec(), self.checkpoint)
        given, ready = 0, step + decoder.lookahead
        while given < frames:
            try:
                codes.advance()
            except GraphError as error:  # of the first step: nothing was given yet
                self._leave_graphs(error)
                codes = self._code_stream(states, mask, frames, [clip_seed(seed, prompt, 0)], sampling)
                continue
            if codes.whole_frames >= min(ready, frames):
                codes.check()
                last = codes.whole_frames == frames
                wave = decoder.push(codes.codes(given, codes.whole_frames)[0], last=last)
                given, ready = codes.whole_frames, codes.whole_frames + step
                yield wave.numpy()

    def _leave_graphs(self, error: GraphError) -> None:
        log(f"note: this GPU or driver can't capture a step as a CUDA graph ({error}); going on without, more slowly")
        self._mode = EAGER

    def _frames(self, seconds: float) -> int:
        return max(1, round(seconds * self.checkpoint.frame_rate))

    def _fitting_batch(self, frames: int, sampling: Sampling) -> int:
        """As many clips as the keys and values of which fit into the memory that is free."""
        config = self._model.config.decoder
        rows = 1 if sampling.guidance_scale == 1 else 2
        capacity = frames + max(self.checkpoint.delay)
        if self.checkpoint.is_melody:
            capacity += self._model.config.chroma_length + max(len(states) for states in self._states.values())
        numbers = 2 * rows * config.num_hidden_layers * config.hidden_size * capacity
        fitting = SHARE_OF_MEMORY * free_memory(self.device) / (numbers * self.dtype.itemsize)
        return max(1, min(int(fitting), LARGEST_BATCH.get(self.device.type, LARGEST_BATCH_ON_A_GPU)))

    def _code_stream(
        self, states: torch.Tensor, mask: torch.Tensor, frames: int, seeds: list[int], sampling: Sampling
    ) -> CodeStream:
        return CodeStream(
            self._stack, self.checkpoint, states, mask, frames=frames, seeds=seeds, sampling=sampling, mode=self._mode
        )

    def _draw_batch(
        self, batch: Sequence[tuple[str, int]], frames: int, seed: int, sampling: Sampling, bar: Any
    ) -> list[torch.Tensor]:
        states, mask = text.pad_states([self._states[prompt] for prompt, _ in batch])
        seeds = [clip_seed(seed, prompt, variation) for prompt, variation in batch]
        stream = self._code_stream(states, mask, frames, seeds, sampling)

        def tell(done: int) -> None:
            if done % CHECK == 0:  # a GPU runs behind its host, and the bar would be ahead of the music
                synchronize(self.device)
            bar.update(len(batch))

        return list(stream.finish(tell).cpu())

    def _encode(self, prompts: Sequence[str]) -> None:
        """Fills the table of text states; T5 leaves memory when it is done."""
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._states]
        if not missing:
            return
        own = getattr(self._model.text_encoder, "encoder", None) is not None
        encoder = self._model.text_encoder if own else load_text_encoder(self.checkpoint, self.device)
        self._states.update(text.encode_captions(self._tokenizer, encoder, missing))
        del encoder
        release_memory()

    def cut_prompts(self, prompts: Sequence[str]) -> list[str]:
        """The prompts that are longer than the text encoder reads, and so will be cut."""
        return [prompt for prompt in prompts if text.is_too_long(self._tokenizer, prompt)]

    def decode(self, codes: torch.Tensor) -> np.ndarray:
        """Codes `[K, T]` of one clip to its wave `[C, S]`; EnCodec wants much memory for each."""
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
