"""Captions by a language model that hears: Qwen2-Audio, Music Flamingo and others of their kind in transformers."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoProcessor,
)

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.model.checkpoint import Source, weights_fingerprint
from musicgen_dreamboothing.model.device import best_device, best_dtype
from musicgen_dreamboothing.model.loading import quiet_loading

__all__ = ["PROMPT", "Captioner", "captioner_signature", "clean"]

PROMPT = (
    "Describe this music in one sentence of at most 30 words, as a prompt for a music generator: genre, mood, "
    "instruments, rhythm and sound. No artist, no title, no lyrics, no explanation."
)
EXAMPLES = "Qwen/Qwen2-Audio-7B-Instruct or nvidia/music-flamingo-2601-hf"
MAX_NEW_TOKENS, MOST_WORDS = 96, 60  # of an answer, and of the caption that is made of it

_PREAMBLE = re.compile(
    r"^(?:(?:sure|certainly|okay|of course)\b[^:.!]*[:.!]\s*|here(?: is|'s)\b[^:]*:\s*)+", re.IGNORECASE
)
_SUBJECT = re.compile(
    r"^(?:the|this) (?:given |provided )?(?:music|song|track|audio|piece|clip|recording|sound|composition)"
    r"(?: (?:clip|file|track|piece|recording|of music))*"
    r" (?:is|has|features|contains|presents|consists of|sounds like|can be described as) (?:(?:a|an|the) )?",
    re.IGNORECASE,
)


def captioner_signature(model: str) -> str:
    """Changes whenever the caption that a `Captioner` with its usual settings gives a clip could; nothing is loaded."""
    weights = weights_fingerprint(Path(model)) if Path(model).is_dir() else model
    settings = json.dumps([weights, PROMPT, MAX_NEW_TOKENS, MOST_WORDS])
    return hashlib.blake2b(settings.encode(), digest_size=8).hexdigest()


class Captioner:
    """A model of transformers that takes sound and text and answers in text; it is asked `PROMPT` for each clip.

    Args:
        model: a folder or Hub id.
        revision, cache_dir, token: for the Hub.
        device: CUDA, MPS or the CPU, whichever there is, if not given.
        dtype: of the weights; what suits the device, if not given.
        batch_size: clips that are heard at once.
        max_new_tokens: of an answer.
        prompt: what is asked instead.

    Raises:
        UserError: there is no such model, or it isn't of that kind.
    """

    def __init__(
        self,
        model: str,
        *,
        revision: str | None = None,
        cache_dir: str | None = None,
        token: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        batch_size: int = 4,
        max_new_tokens: int = MAX_NEW_TOKENS,
        prompt: str = PROMPT,
    ) -> None:
        self._device = torch.device(device) if device else best_device()
        self._dtype = dtype or best_dtype(self._device)
        self._model, self._processor = _load(Source(model, revision, cache_dir, token), self._dtype)
        self._model.to(self._device)
        self._batch_size, self._max_new_tokens, self._prompt = batch_size, max_new_tokens, prompt
        self.rate = int(self._processor.feature_extractor.sampling_rate)  # Hz

    def caption(self, waves: Sequence[tuple[audio.Wave, int]]) -> list[str]:
        """Waves `[C, S]` with their rates in Hz -> a caption each, on one line; empty where the model says nothing.

        Greedy: the same sound gets the same caption. Most models hear 30 s of a longer wave.
        """
        starts = range(0, len(waves), self._batch_size)
        return [text for start in starts for text in self._answers(waves[start : start + self._batch_size])]

    @torch.inference_mode()
    def _answers(self, waves: Sequence[tuple[audio.Wave, int]]) -> list[str]:
        sounds = [audio.resample(audio.to_channels(wave, 1), rate, self.rate)[0] for wave, rate in waves]
        asked = self._processor.apply_chat_template(
            [_conversation(sound, self._prompt) for sound in sounds],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(self._device, self._dtype)
        unset = dict.fromkeys(("temperature", "top_p", "top_k"))  # many checkpoints bring some, for sampling
        found = self._model.generate(**asked, do_sample=False, max_new_tokens=self._max_new_tokens, **unset)
        if not self._model.config.is_encoder_decoder:  # decoders repeat what they were asked
            found = found[:, asked["input_ids"].shape[1] :]
        return [clean(text) for text in self._processor.tokenizer.batch_decode(found, skip_special_tokens=True)]


def _conversation(sound: Any, prompt: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "audio", "audio": sound}, {"type": "text", "text": prompt}]}]


def _load(source: Source, dtype: torch.dtype) -> tuple[Any, Any]:
    """Model and processor."""
    try:
        model_class = _model_class(AutoConfig.from_pretrained(source.name, **source.arguments()))
        processor = AutoProcessor.from_pretrained(source.name, **source.arguments())
        if not processor.chat_template:
            raise ValueError("it has no chat template")
        with quiet_loading():
            model = model_class.from_pretrained(source.name, dtype=dtype, use_safetensors=True, **source.arguments())
    except (OSError, ValueError, ImportError, HfHubHTTPError, HFValidationError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(
            f"no model that describes sound at {source.name!r} ({reason}); --captioner takes one of transformers' "
            f"audio-text-to-text models, such as {EXAMPLES}"
        ) from error
    processor.tokenizer.padding_side = "left"  # answers begin where the questions end
    return model.eval().requires_grad_(False), processor


def _model_class(config: Any) -> Any:
    """The class that hears and answers; transformers lists such models in one or the other place."""
    for classes in (MODEL_FOR_MULTIMODAL_LM_MAPPING, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING):
        if type(config) in classes and "audio" in classes[type(config)].input_modalities:
            return classes[type(config)]
    raise ValueError(f"a {config.model_type!r} model doesn't answer questions about sound")


def clean(text: str) -> str:
    """An answer as a caption: one line, without quotes, politeness and "The music is", `MOST_WORDS` at most.

    >>> clean('Sure, here is a description:\\n"The music is a fast **punk rock** song, with loud guitars."')
    'fast punk rock song, with loud guitars'
    """
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    text = " ".join(re.sub(r"[\"“”„«»`*#<>\[\]{}�]", " ", text).split())
    text = _SUBJECT.sub("", _PREAMBLE.sub("", text).strip())
    return _cut(re.sub(r"\s+([,.;:!?])", r"\1", text)).strip(" .,;:'-")


def _cut(text: str) -> str:
    """`MOST_WORDS` words at most, whole sentences or phrases where there are some."""
    words = text.split()
    if len(words) <= MOST_WORDS:
        return text
    short = " ".join(words[:MOST_WORDS])
    for stops in (r"[.!?;](?=\s|$)", r",(?=\s|$)"):
        ends = [stop.end() for stop in re.finditer(stops, short)]
        if ends and ends[-1] > len(short) // 2:
            return short[: ends[-1]]
    return short
