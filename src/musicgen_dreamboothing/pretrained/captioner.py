"""Captions by audio language models of transformers: Qwen2-Audio, Music Flamingo and others."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
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
    BitsAndBytesConfig,
)

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.console import UserError, log, quiet_loading
from musicgen_dreamboothing.device import best_device, best_dtype, free_memory, is_out_of_memory, release_memory
from musicgen_dreamboothing.hub import Source, name_with_commit, weights_fingerprint

PROMPT = (
    "Describe this music in one sentence of at most 30 words, as a prompt for a music generator: genre, mood, "
    "instruments, rhythm and sound. No artist, no title, no lyrics, no explanation."
)
EXAMPLES = "Qwen/Qwen2-Audio-7B-Instruct or nvidia/music-flamingo-2601-hf"
MAX_NEW_TOKENS, MAX_WORDS = 96, 60  # of an answer, and of the caption made of it
WORKING_SHARE = 0.05  # of the weights in 16 bits: cache and activations of one clip of 30 s
NF4_BYTES = 1 / 2 + 1 / 64  # of a weight with its scale, which is quantised as well

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
    """A hash of everything that the captions of a `Captioner` depend on; nothing is loaded."""
    weights = weights_fingerprint(Path(model)) if Path(model).is_dir() else model
    settings = json.dumps([weights, PROMPT, MAX_NEW_TOKENS, MAX_WORDS])
    return hashlib.blake2b(settings.encode(), digest_size=8).hexdigest()


class Captioner:
    """An audio-text-to-text model that answers `PROMPT` for each clip.

    Args:
        model: a folder or Hub id.
        cache_dir, token: for the Hub.
        device: the best one by default.
        dtype: of the weights; by default what suits the device.
        batch_size: clips in one batch; fewer where memory runs out.
        max_new_tokens: of an answer.

    Raises:
        UserError: there is no such model, it is of another kind, or it doesn't fit into memory.
    """

    def __init__(
        self,
        model: str,
        *,
        cache_dir: str | None = None,
        token: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        batch_size: int = 4,
        max_new_tokens: int = MAX_NEW_TOKENS,
    ) -> None:
        self._device = torch.device(device) if device else best_device()
        self._dtype = dtype or best_dtype(self._device)
        source = Source(model, None, cache_dir, token)
        self._model, self._processor = _load(source, self._device, self._dtype)
        self._batch_size, self._max_new_tokens = batch_size, max_new_tokens
        self.rate = int(self._processor.feature_extractor.sampling_rate)  # Hz
        self.name = name_with_commit(source)

    def caption(self, waves: Sequence[tuple[audio.Wave, int]]) -> list[str]:
        """Waves `[C, S]` with their rates in Hz -> one line each, which may be empty.

        Decoding is greedy. Most models use 30 s of a longer wave.
        """
        starts = range(0, len(waves), self._batch_size)
        return [text for start in starts for text in self._answers_in_memory(waves[start : start + self._batch_size])]

    def _answers_in_memory(self, waves: Sequence[tuple[audio.Wave, int]]) -> list[str]:
        """The answers, in halves of the batch where memory runs out."""
        try:
            return self._answers(waves)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if len(waves) == 1:
                raise UserError(
                    f"--captioner ran out of memory on {self._device} with a single clip. Fix: close other programs, "
                    "choose a smaller model, or leave --captioner out"
                ) from error
        release_memory()
        half = len(waves) // 2
        return self._answers_in_memory(waves[:half]) + self._answers_in_memory(waves[half:])

    @torch.inference_mode()
    def _answers(self, waves: Sequence[tuple[audio.Wave, int]]) -> list[str]:
        sounds = [audio.resample(audio.to_channels(wave, 1), rate, self.rate)[0] for wave, rate in waves]
        inputs = self._processor.apply_chat_template(
            [_conversation(sound) for sound in sounds],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(self._device, self._dtype)
        unset = dict.fromkeys(("temperature", "top_p", "top_k"))  # of sampling; many checkpoints set some
        tokens = self._model.generate(**inputs, do_sample=False, max_new_tokens=self._max_new_tokens, **unset)
        if not self._model.config.is_encoder_decoder:  # decoders repeat the question
            tokens = tokens[:, inputs["input_ids"].shape[1] :]
        return [clean(text) for text in self._processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)]


def _conversation(sound: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "audio", "audio": sound}, {"type": "text", "text": PROMPT}]}]


def _load(source: Source, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """Model and processor; the weights go straight to the device."""
    try:
        config = AutoConfig.from_pretrained(source.name, **source.arguments())
        model_class = _model_class(config)
        processor = AutoProcessor.from_pretrained(source.name, **source.arguments())
        if not processor.chat_template:
            raise ValueError("it has no chat template")
        model = _load_weights(source, model_class, weight_bytes(model_class, config, dtype), device, dtype)
    except (OSError, ValueError, ImportError, HfHubHTTPError, HFValidationError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(
            f"no audio language model at {source.name!r} ({reason}). Fix: --captioner with an audio-text-to-text model "
            f"of transformers, such as {EXAMPLES}"
        ) from error
    processor.tokenizer.padding_side = "left"  # for batched generation
    return model.eval().requires_grad_(False), processor


def _load_weights(
    source: Source, model_class: Any, sizes: WeightBytes, device: torch.device, dtype: torch.dtype
) -> Any:
    free = free_memory(device)
    options: dict[str, Any] = {"dtype": dtype, "device_map": {"": device}, "use_safetensors": True}
    if fits_in_4_bits(source.name, sizes, device, free):
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    try:
        with quiet_loading():
            return model_class.from_pretrained(source.name, **options, **source.arguments())
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(_too_large(source.name, sizes, device, free)) from error


@dataclass(frozen=True)
class WeightBytes:
    """Bytes of a model's weights: in its precision of so many bits, and with linear layers in 4 bits."""

    plain: int
    nf4: int
    bits: int


def weight_bytes(model_class: Any, config: Any, dtype: torch.dtype) -> WeightBytes:
    """Counts the weights of a configuration without loading them."""
    with torch.device("meta"), quiet_loading():
        model = model_class(config)
    head = model.get_output_embeddings()
    linear = [part for part in model.modules() if isinstance(part, torch.nn.Linear) and part is not head]
    count, quantized = sum(one.numel() for one in model.parameters()), sum(part.weight.numel() for part in linear)
    size = dtype.itemsize
    return WeightBytes(count * size, round((count - quantized) * size + quantized * NF4_BYTES), 8 * size)


def fits_in_4_bits(name: str, sizes: WeightBytes, device: torch.device, free: int) -> bool:
    """Whether a model has to be loaded in 4 bits on a device with so many free bytes.

    Raises:
        UserError: it does not fit at all.
    """
    working = round(WORKING_SHARE * sizes.plain)
    if sizes.plain + working <= free:
        return False
    if device.type == "cuda" and sizes.nf4 + working <= free and importlib.util.find_spec("bitsandbytes"):
        log(
            f"note: {name} takes {_gb(sizes.plain)} in {sizes.bits} bits, and {_gb(free)} are free on {device}: it is "
            f"loaded in 4 bits ({_gb(sizes.nf4)})"
        )
        return True
    raise UserError(_too_large(name, sizes, device, free))


def _too_large(name: str, sizes: WeightBytes, device: torch.device, free: int) -> str:
    less = f", {_gb(sizes.nf4)} in 4 bits" if device.type == "cuda" else ""
    install = ""
    if less and importlib.util.find_spec("bitsandbytes") is None:
        install = "; 4 bits need: pip install 'musicgen-dreamboothing[quantization]'"
    return (
        f"--captioner {name} takes {_gb(sizes.plain)} in {sizes.bits} bits{less} and some for each clip, and "
        f"{_gb(free)} are free on {device}. Fix: close other programs, choose a smaller model, or leave --captioner "
        f"out{install}"
    )


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def _model_class(config: Any) -> Any:
    """The model class for audio and text; transformers lists such models in two mappings."""
    for classes in (MODEL_FOR_MULTIMODAL_LM_MAPPING, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING):
        if type(config) in classes and "audio" in classes[type(config)].input_modalities:
            return classes[type(config)]
    raise ValueError(f"a {config.model_type!r} model is no audio language model")


def clean(text: str) -> str:
    """An answer as a caption: one line without quotes, polite phrases and "The music is", at most `MAX_WORDS` words.

    >>> clean('Sure, here is a description:\\n"The music is a fast **punk rock** song, with loud guitars."')
    'fast punk rock song, with loud guitars'
    """
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    text = " ".join(re.sub(r"[\"“”„«»`*#<>\[\]{}�]", " ", text).split())
    text = _SUBJECT.sub("", _PREAMBLE.sub("", text).strip())
    return _cut(re.sub(r"\s+([,.;:!?])", r"\1", text)).strip(" .,;:'-")


def _cut(text: str) -> str:
    """At most `MAX_WORDS` words, cut behind a sentence or phrase where possible."""
    words = text.split()
    if len(words) <= MAX_WORDS:
        return text
    short = " ".join(words[:MAX_WORDS])
    for stops in (r"[.!?;](?=\s|$)", r",(?=\s|$)"):
        ends = [stop.end() for stop in re.finditer(stops, short)]
        if ends and ends[-1] > len(short) // 2:
            return short[: ends[-1]]
    return short
