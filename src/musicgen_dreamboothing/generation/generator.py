"""A loaded model that turns prompts into audio: an adapter, a full fine-tune or a base checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import EncodecModel

from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.generation.decoding import Sampling, clip_seed, generate_codes
from musicgen_dreamboothing.model import adapter, codec, text
from musicgen_dreamboothing.model.checkpoint import (
    Checkpoint,
    Source,
    load_checkpoint,
    load_codec,
    load_text_encoder,
    load_tokenizer,
)
from musicgen_dreamboothing.model.device import best_device, parse_dtype, release_memory
from musicgen_dreamboothing.model.language_model import MelodyLM, TextLM, load_language_model

TRAINED_SECONDS = 30.0  # Meta trained on clips of 30 s; longer ones wander


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
        device: torch device; by default the best there is.
        dtype: `auto`, `float32`, `bfloat16` or `float16`.

    Attributes:
        checkpoint: the base's configuration.
        active_layers: adapted layers that change something, and adapted layers in all; None without an adapter.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        base_model: str | None = None,
        revision: str | None = None,
        cache_dir: str | None = None,
        token: str | None = None,
        device: torch.device | str | None = None,
        dtype: str = "auto",
    ) -> None:
        self.device = torch.device(device) if device else best_device()
        self.dtype = parse_dtype(dtype, self.device)
        self.active_layers: tuple[int, int] | None = None
        source = Source(str(model), revision, cache_dir, token)
        config = adapter.adapter_config(source.name, **source.arguments())
        if config is None:
            self.checkpoint = load_checkpoint(source)
            self._model = load_language_model(self.checkpoint, self.dtype, self.device)
        else:
            base = base_model or str(config.base_model_name_or_path)
            self.checkpoint = _adapter_base(source, base, config.revision if base_model is None else None)
            self._model = self._load_adapted(source)
        self._tokenizer = load_tokenizer(self.checkpoint)
        self._states: dict[str, np.ndarray] = {}
        self._codec: EncodecModel | None = None  # loaded when there are codes to decode

    def _load_adapted(self, source: Source) -> TextLM | MelodyLM:
        """Merges in fp32: a small update added to a 16-bit weight would be rounded away, half of it at 3e-5 in bf16."""
        with_text = adapter.trains_text_encoder(source.name, **source.arguments())
        base = load_language_model(self.checkpoint, torch.float32, torch.device("cpu"), with_text_encoder=with_text)
        adapted = adapter.load_adapter(base, source.name, **source.arguments())
        self.active_layers = adapter.count_active(adapted)
        merged: Any = adapter.merge(adapted).eval()
        merged.decoder.to(self.dtype)
        for name in ("enc_to_dec_proj", "audio_enc_to_dec_proj"):
            if name in dict(merged.named_children()):
                merged.get_submodule(name).to(self.dtype)
        return merged.to(self.device)  # a trained text encoder stays in fp32: fp16 overflows in it

    def generate(
        self,
        prompts: Sequence[str],
        *,
        seconds: float = 10.0,
        variations: int = 1,
        seed: int = 0,
        sampling: Sampling = Sampling(),
        batch_size: int = 8,
        progress: bool = True,
    ) -> Iterator[GeneratedClip]:
        """Yields `variations` clips of every prompt, batch by batch; each is the same whatever it is made beside.

        Args:
            prompts: descriptions of the music.
            seconds: length of a clip; up to 30 s is what the models were trained on.
            variations: clips of each prompt, each with its own random stream.
            seed: with the prompt and the variation it fixes the clip.
            sampling: guidance, temperature and top-k.
            batch_size: clips made at once.
            progress: whether to show a bar on stderr.
        """
        frames = max(1, round(seconds * self.checkpoint.frame_rate))
        wanted = [(prompt, variation) for prompt in prompts for variation in range(variations)]
        self._encode(prompts)
        steps = (frames + max(self.checkpoint.delay)) * len(wanted)
        with tqdm(total=steps, unit="frame", desc="generating", disable=not progress) as bar:
            for batch in self._batches(wanted, batch_size):
                yield from self._generate_batch(batch, frames, seed, sampling, bar)

    def _generate_batch(
        self, batch: list[tuple[str, int]], frames: int, seed: int, sampling: Sampling, bar: tqdm
    ) -> Iterator[GeneratedClip]:
        states, mask = text.pad_states([self._states[prompt] for prompt, _ in batch])
        codes = generate_codes(
            self._model,
            self.checkpoint,
            states,
            mask,
            frames=frames,
            seeds=[clip_seed(seed, prompt, variation) for prompt, variation in batch],
            sampling=sampling,
            on_step=bar.update,
        )
        waves = self._decode(codes)
        for (prompt, variation), clip_codes, wave in zip(batch, codes.cpu(), waves, strict=True):
            yield GeneratedClip(prompt, variation, clip_codes, wave, self.checkpoint.sampling_rate)

    def _batches(self, wanted: list[tuple[str, int]], batch_size: int) -> Iterator[list[tuple[str, int]]]:
        """Batches of clips; in the melody family only captions of equal length share one."""
        if not self.checkpoint.is_melody:
            groups = [wanted]
        else:
            lengths = {len(self._states[prompt]) for prompt, _ in wanted}
            groups = [[clip for clip in wanted if len(self._states[clip[0]]) == length] for length in sorted(lengths)]
        for group in groups:
            for first in range(0, len(group), batch_size):
                yield group[first : first + batch_size]

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

    def _decode(self, codes: torch.Tensor) -> np.ndarray:
        """Codes `[B, K, T]` to waves `[B, C, S]`, one clip at a time: EnCodec wants much memory for each."""
        if self._codec is None:
            self._codec = load_codec(self.checkpoint, self.device)
        waves = [codec.decode(self._codec, clip[None], self.checkpoint) for clip in codes]
        return torch.cat(waves).numpy()


def _adapter_base(source: Source, base: str, revision: str | None) -> Checkpoint:
    try:
        return load_checkpoint(replace(source, name=base, revision=revision))
    except UserError as error:
        raise UserError(
            f"the adapter {source.name} needs its base: {error}; or name the base with --base_model"
        ) from error
