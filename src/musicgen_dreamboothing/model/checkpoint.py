"""A base checkpoint and its parts, each loaded on its own: text encoder, codec, language model.

Pad and start ids, rates, codebooks and delays are read from the checkpoint's configuration.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, StrictDataclassError
from transformers import (
    AutoConfig,
    AutoTokenizer,
    EncodecModel,
    GenerationConfig,
    MusicgenForConditionalGeneration,
    MusicgenMelodyForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5EncoderModel,
)

from musicgen_dreamboothing.console import UserError, quiet_loading
from musicgen_dreamboothing.hub import Source, explain_refusal, weights_fingerprint
from musicgen_dreamboothing.model.building import build_model
from musicgen_dreamboothing.model.delay import delays
from musicgen_dreamboothing.model.part_hash import part_hash
from musicgen_dreamboothing.model.weight_files import find_file, first_line, foreign_weights, open_weights

TEXT, MELODY = "musicgen", "musicgen_melody"
EXAMPLES = tuple(f"facebook/musicgen-{size}" for size in ("small", "medium", "large", "melody"))
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
META_GENERATION: dict[str, Any] = {"do_sample": True, "guidance_scale": 3.0, "max_length": 1500}
TOKENIZER, SENTENCEPIECE = "tokenizer.json", "spiece.model"


@dataclass(frozen=True)
class Checkpoint:
    """The configuration of a MusicGen checkpoint, and the numbers derived from it."""

    source: Source
    config: Any = field(repr=False)
    pad_token_id: int = 0
    start_token_id: int = 0

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def is_melody(self) -> bool:
        return bool(self.config.model_type == MELODY)

    @property
    def model_class(self) -> type[PreTrainedModel]:
        """transformers' own class for this family."""
        return MusicgenMelodyForConditionalGeneration if self.is_melody else MusicgenForConditionalGeneration

    @property
    def is_local(self) -> bool:
        return Path(self.name).is_dir()

    @property
    def revision(self) -> str | None:
        """The commit that was loaded, if it came from the Hub."""
        return None if self.is_local else self.source.revision

    @cached_property
    def identity(self) -> str | None:
        """The commit on the Hub; of a folder a hash that changes with its weights."""
        return weights_fingerprint(Path(self.name)) if self.is_local else self.revision

    @cached_property
    def codec_hash(self) -> str:
        """A hash of all that the codes of a sound depend on."""
        sizes = (self.codebooks, self.audio_channels)
        return part_hash("audio_encoder", self.config.audio_encoder, self.name, self.source.arguments(), *sizes)

    @cached_property
    def text_hash(self) -> str:
        """A hash of all that the text states of a caption depend on: text encoder and tokenizer."""
        rules = json.loads(load_tokenizer(self).backend_tokenizer.to_str())
        rules |= {"padding": None, "truncation": None}  # those of the last call before it was saved
        return part_hash("text_encoder", self.config.text_encoder, self.name, self.source.arguments(), rules)

    @property
    def sampling_rate(self) -> int:
        return int(self.config.audio_encoder.sampling_rate)

    @property
    def hop_length(self) -> int:
        """Samples per frame: 640 at 32 kHz and 50 Hz."""
        return int(self.config.audio_encoder.hop_length)

    @property
    def frame_rate(self) -> float:
        """Frames per second; EncodecConfig.frame_rate rounds it up, this does not."""
        return self.sampling_rate / self.hop_length

    @property
    def codebooks(self) -> int:
        """K: 4 for mono checkpoints, 8 for stereo ones."""
        return int(self.config.decoder.num_codebooks)

    @property
    def codebook_size(self) -> int:
        return int(self.config.decoder.vocab_size)

    @property
    def audio_channels(self) -> int:
        return int(self.config.decoder.audio_channels)

    @cached_property
    def delay(self) -> tuple[int, ...]:
        return delays(self.codebooks, self.audio_channels)


def load_checkpoint(
    source: Source, *, pad_token_id: int | None = None, start_token_id: int | None = None
) -> Checkpoint:
    """Reads a checkpoint's configuration, no weights.

    The result's source names the commit on the Hub, so that all parts are of one commit.

    Raises:
        UserError: there is no such checkpoint, or it is not MusicGen.
    """
    config = _read_config(source)
    if config.model_type not in (TEXT, MELODY):
        raise UserError(
            f"{source.name} is a {config.model_type!r} model, not MusicGen; "
            f"--model_name_or_path takes for example {', '.join(EXAMPLES)}"
        )
    decoder = config.decoder
    pad = _first(pad_token_id, decoder.pad_token_id, decoder.vocab_size)
    start = _first(start_token_id, getattr(decoder, "decoder_start_token_id", None), decoder.bos_token_id, pad)
    for name, value in (("pad_token_id", pad), ("decoder_start_token_id", start)):
        if not 0 <= value <= decoder.vocab_size:
            raise UserError(f"--{name} {value} lies outside the checkpoint's codes; it takes 0 to {decoder.vocab_size}")
    # The forward pass of MusicGen reads both from the configuration; a file of transformers 5 may lack them.
    decoder.pad_token_id, decoder.decoder_start_token_id = pad, start
    return Checkpoint(replace(source, revision=_commit(source)), config, pad, start)


def _first(*candidates: int | None) -> int:
    return next(int(value) for value in candidates if value is not None)


def _read_config(source: Source) -> Any:
    try:
        with quiet_loading():  # transformers warns of the pad id, which is one above the codes
            return AutoConfig.from_pretrained(source.name, **source.arguments())
    except (OSError, HfHubHTTPError, HFValidationError, StrictDataclassError, ValueError, TypeError) as error:
        raise _no_checkpoint(source, error) from error


def _no_checkpoint(source: Source, error: Exception) -> UserError:
    """Says what `--model_name_or_path` names instead of a checkpoint."""
    path = Path(source.name)
    if path.is_file():
        return UserError(f"{source.name} is a file; give the folder that it is in, with its config.json")
    if path.is_dir() and (path / "adapter_config.json").is_file():
        return UserError(
            f"{source.name} is an adapter, not a base checkpoint; its adapter_config.json names its base: give that one"
        )
    if (path / "config.json").is_file():
        return UserError(f"{path / 'config.json'} is not the configuration of a MusicGen model ({first_line(error)})")
    if (refusal := explain_refusal(source.name, error)) is not None:
        return UserError(refusal)
    hint = foreign_weights(source.name) or f"give a folder with a config.json, or a Hub id such as {EXAMPLES[0]}"
    return UserError(f"no model at {source.name!r} ({first_line(error)}); {hint}")


def _commit(source: Source) -> str | None:
    """The commit of a checkpoint of the Hub, from the path of its config.json in the cache; None for a folder."""
    path = None if Path(source.name).is_dir() else find_file(source.name, "config.json", source.arguments())
    return None if path is None else path.parent.name


def load_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    """The text encoder's tokenizer, without the processor: that of a melody model needs torchaudio.

    Raises:
        UserError: its files are missing or damaged, or a package that reads them is missing.
    """
    file = _tokenizer_file(checkpoint)
    try:
        with quiet_loading():
            return AutoTokenizer.from_pretrained(checkpoint.name, **checkpoint.source.arguments())
    except Exception as error:  # tokenizers raises plain exceptions, and each format others
        reason = f" ({first_line(error)})" if file == TOKENIZER else ""  # of spiece.model the last format tried
        raise UserError(
            f"the tokenizer of {checkpoint.name} cannot be read{reason}; "
            f"download {file} and tokenizer_config.json again"
        ) from error


def _tokenizer_file(checkpoint: Checkpoint) -> str:
    """The file that a tokenizer will be read from; without one transformers would make up a vocabulary."""
    name, hub = checkpoint.name, checkpoint.source.arguments()
    if find_file(name, TOKENIZER, hub) is not None:
        return TOKENIZER
    if find_file(name, SENTENCEPIECE, hub) is None:
        raise UserError(
            f"{name} has no tokenizer: neither {TOKENIZER} nor {SENTENCEPIECE}; copy {TOKENIZER} and "
            "tokenizer_config.json of facebook/musicgen-small there; without a network they have to be in the cache"
        )
    if not (importlib.util.find_spec("sentencepiece") and importlib.util.find_spec("google.protobuf")):
        raise UserError(
            f"{name} has its tokenizer as {SENTENCEPIECE} only, without {TOKENIZER}; "
            "to read it: pip install 'musicgen-dreamboothing[sentencepiece]'"
        )
    return SENTENCEPIECE


def load_text_encoder(checkpoint: Checkpoint, device: torch.device) -> T5EncoderModel:
    """T5 alone, in fp32: half precision overflows in its feed-forward layers."""
    return _load_part(T5EncoderModel, "text_encoder", checkpoint, device)


def load_codec(checkpoint: Checkpoint, device: torch.device) -> EncodecModel:
    """EnCodec alone, in fp32; on the CPU instead of Apple's MPS, where its quantiser gives wrong codes."""
    return _load_part(
        EncodecModel, "audio_encoder", checkpoint, torch.device("cpu") if device.type == "mps" else device
    )


def _load_part(model_class: Any, part: str, checkpoint: Checkpoint, device: torch.device) -> Any:
    prefix = f"{part}."
    weights = open_weights(
        checkpoint.name,
        checkpoint.source.arguments(),
        lambda name: name.removeprefix(prefix) if name.startswith(prefix) else None,
        convert=False,
    )
    if not weights:
        raise UserError(f"{checkpoint.name} holds no weights of its {part}; take a complete checkpoint")
    model = build_model(
        model_class,
        getattr(checkpoint.config, part),
        weights,
        checkpoint.name,
        prefix=prefix,
        dtype=torch.float32,
        attn_implementation="eager",  # EnCodec refuses SDPA
    )
    return model.requires_grad_(False).to(device)


def load_whole(checkpoint: Checkpoint) -> PreTrainedModel:
    """All parts in one model of transformers, in fp32, to be saved for its own `generate`."""
    original = load_checkpoint(
        checkpoint.source, pad_token_id=checkpoint.pad_token_id, start_token_id=checkpoint.start_token_id
    )
    weights = open_weights(checkpoint.name, checkpoint.source.arguments(), lambda name: name, convert=False)
    model: Any = build_model(checkpoint.model_class, original.config, weights, checkpoint.name, dtype=torch.float32)
    model.generation_config = load_generation_config(checkpoint)
    return model


def load_generation_config(checkpoint: Checkpoint) -> GenerationConfig:
    """The checkpoint's settings of transformers' `generate`, or Meta's if they are missing or invalid.

    They are saved with a full fine-tune, where transformers refuses invalid values.
    """
    pad, start = checkpoint.pad_token_id, checkpoint.start_token_id
    try:
        with quiet_loading():
            config = GenerationConfig.from_pretrained(checkpoint.name, **checkpoint.source.arguments())
            config.update(pad_token_id=pad, decoder_start_token_id=start)
            config.validate(strict=True)
            config.to_json_string()
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        config = GenerationConfig(**META_GENERATION, pad_token_id=pad, bos_token_id=pad, decoder_start_token_id=start)
    return config


def save_processor(checkpoint: Checkpoint, folder: Path) -> None:
    """Writes the files of tokenizer and feature extractor for `AutoProcessor.from_pretrained(folder)`.

    Those of the feature extractor are copied: to instantiate the melody one needs torchaudio.
    """
    load_tokenizer(checkpoint).save_pretrained(folder)
    for name in PROCESSOR_FILES:
        path = find_file(checkpoint.name, name, checkpoint.source.arguments())
        if path is not None:
            shutil.copyfile(path, folder / name)
