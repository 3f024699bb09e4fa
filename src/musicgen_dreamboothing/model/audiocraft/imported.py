"""A checkpoint of audiocraft as a folder that transformers loads, with a text encoder from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    EncodecConfig,
    EncodecFeatureExtractor,
    EncodecModel,
    GenerationConfig,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    MusicgenMelodyConfig,
    MusicgenMelodyDecoderConfig,
    MusicgenMelodyForConditionalGeneration,
    MusicgenProcessor,
)

from musicgen_dreamboothing.console import UserError, quiet_loading
from musicgen_dreamboothing.files import write_json
from musicgen_dreamboothing.hub import Source
from musicgen_dreamboothing.model.audiocraft.codec import codec_config, codec_from_audiocraft
from musicgen_dreamboothing.model.audiocraft.names import T5, from_audiocraft
from musicgen_dreamboothing.model.audiocraft.package import Package
from musicgen_dreamboothing.model.audiocraft.sizes import Sizes
from musicgen_dreamboothing.model.checkpoint import META_GENERATION, Checkpoint
from musicgen_dreamboothing.model.chroma import CLASSES, HOP, N_FFT
from musicgen_dreamboothing.model.part_hash import current_name
from musicgen_dreamboothing.model.shards import write_shards
from musicgen_dreamboothing.model.weight_files import first_line, open_weights

VOCALS_AND_OTHER = [3, 2]  # stems of htdemucs that a melody is taken from


@dataclass(frozen=True)
class Codec:
    """EnCodec's configuration and weights under transformers' names, without a prefix."""

    config: EncodecConfig
    weights: Mapping[str, Any]


@dataclass(frozen=True)
class TextEncoder:
    """T5's configuration, its weights under the names of `T5EncoderModel`, and its tokenizer."""

    name: str
    config: Any
    weights: Mapping[str, Any]
    tokenizer: Any


def codec_of_base(base: Checkpoint) -> Codec:
    """The codec of a checkpoint in transformers' format."""
    return Codec(base.config.audio_encoder, _part(base.source, "audio_encoder."))


def codec_of_package(package: Package) -> Codec:
    """The codec of `compression_state_dict.bin`.

    Raises:
        UserError: its weights and its `xp.cfg` do not belong together, or transformers has no such codec.
    """
    config, weights = codec_config(package.settings), codec_from_audiocraft(package.state)
    with torch.device("meta"):
        expected = EncodecModel(config).state_dict()
    _check_same(weights, expected, "the codec")
    return Codec(config, weights)


def read_text_encoder(source: Source) -> TextEncoder:
    """The text encoder of a MusicGen checkpoint or of a plain T5, such as `t5-large`.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    try:
        with quiet_loading():
            config = AutoConfig.from_pretrained(source.name, **source.arguments())
            tokenizer = AutoTokenizer.from_pretrained(source.name, **source.arguments())
    except Exception as error:  # transformers, tokenizers and the Hub have no common class
        raise UserError(
            f"the text encoder {source.name} cannot be read ({first_line(error)}); give a folder or Hub id with "
            "--text_encoder"
        ) from error
    is_plain = config.model_type == "t5"
    if not is_plain and getattr(config, "text_encoder", None) is None:
        raise UserError(f"{source.name} is a {config.model_type!r} model and has no T5; give another --text_encoder")
    weights = _part(source, "" if is_plain else "text_encoder.")
    weights = {name: entry for name, entry in weights.items() if name.startswith(("shared.", "encoder."))}
    return TextEncoder(source.name, config if is_plain else config.text_encoder, weights, tokenizer)


def _part(source: Source, prefix: str) -> dict[str, Any]:
    return open_weights(
        source.name,
        source.arguments(),
        lambda name: current_name(name.removeprefix(prefix)) if name.startswith(prefix) else None,
        convert=False,
    )


def write_imported(
    folder: Path, state: Mapping[str, torch.Tensor], sizes: Sizes, text_encoder: TextEncoder, codec: Codec
) -> None:
    """Writes configuration, weights, processor and generation settings.

    Args:
        folder: where to; it exists.
        state: of the language model, `package.language_model_state`; a T5 in it replaces the weights of the other one.
        sizes: of the language model.
        text_encoder: for the captions.
        codec: for the sound.

    Raises:
        UserError: the parts do not fit each other.
    """
    _check_codec(sizes, codec)
    config = _config(sizes, text_encoder.config, codec.config)
    own = {current_name(name.removeprefix(T5)): tensor for name, tensor in state.items() if name.startswith(T5)}
    weights = {
        **from_audiocraft(state, sizes.architecture),
        **{f"text_encoder.{name}": entry for name, entry in (own or text_encoder.weights).items()},
        **{f"audio_encoder.{name}": entry for name, entry in codec.weights.items()},
    }
    model_class = MusicgenMelodyForConditionalGeneration if sizes.has_melody else MusicgenForConditionalGeneration
    with torch.device("meta"), quiet_loading():
        expected = model_class(config).state_dict()
    _check_same(weights, expected, "the model")
    with quiet_loading():
        config.save_pretrained(folder)
        _generation_config(sizes, codec.config).save_pretrained(folder)
    write_shards(_separate(weights), folder)
    _write_processor(folder, sizes, text_encoder, codec.config)


def _check_codec(sizes: Sizes, codec: Codec) -> None:
    rate, codes = codec.config.sampling_rate, codec.config.codebook_size
    if sizes.rate not in (None, rate):
        raise UserError(
            f"the checkpoint is for {sizes.rate} Hz and the codec for {rate} Hz; give the checkpoint's own "
            "compression_state_dict.bin with --codec"
        )
    quantizers = sum(name.endswith(".codebook.embed") for name in codec.weights)
    if codes != sizes.codebook_size or quantizers < sizes.codebooks // sizes.channels:
        raise UserError(
            f"the checkpoint has {sizes.codebooks // sizes.channels} codebooks of {sizes.codebook_size} codes, and the "
            f"codec {quantizers} of {codes}; give the checkpoint's own compression_state_dict.bin with --codec"
        )


def _config(sizes: Sizes, text_encoder: Any, codec: EncodecConfig) -> Any:
    pad = sizes.codebook_size
    decoder = {
        "vocab_size": sizes.codebook_size,
        "hidden_size": sizes.width,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "ffn_dim": sizes.inner,
        "num_codebooks": sizes.codebooks,
        "audio_channels": sizes.channels,
        "pad_token_id": pad,
        "bos_token_id": pad,
        "activation_function": "gelu",
    }
    with quiet_loading():  # transformers warns of the pad id, which is one above the codes
        if sizes.has_melody:
            parts = {"text_encoder": text_encoder, "audio_encoder": codec}
            length = {"num_chroma": CLASSES, "chroma_length": sizes.chroma_frames}
            return MusicgenMelodyConfig(**parts, decoder=MusicgenMelodyDecoderConfig(**decoder), **length)
        return MusicgenConfig(text_encoder=text_encoder, audio_encoder=codec, decoder=MusicgenDecoderConfig(**decoder))


def _generation_config(sizes: Sizes, codec: EncodecConfig) -> GenerationConfig:
    pad, frame_rate = sizes.codebook_size, codec.sampling_rate / codec.hop_length
    return GenerationConfig(
        **META_GENERATION
        | {"guidance_scale": sizes.guidance, "max_length": round(sizes.seconds * frame_rate)}
        | {"pad_token_id": pad, "bos_token_id": pad, "decoder_start_token_id": pad}
    )


def _check_same(weights: Mapping[str, Any], expected: Mapping[str, torch.Tensor], what: str) -> None:
    """Names and sizes; T5's embeddings are one tensor under two names."""
    shapes = {current_name(name): list(tensor.shape) for name, tensor in expected.items()}
    present = {current_name(name): list(_shape(entry)) for name, entry in weights.items()}
    if missing := sorted(shapes.keys() - present.keys()):
        raise UserError(f"{what} lacks {missing[0]} ({len(missing)} weights in all)")
    if unknown := sorted(present.keys() - shapes.keys()):
        raise UserError(f"{what} has weights that transformers lacks: {unknown[0]} ({len(unknown)} in all)")
    if other := sorted(name for name in shapes if shapes[name] != present[name]):
        raise UserError(f"{what}: {other[0]} has the size {present[other[0]]}, not {shapes[other[0]]}")


def _shape(entry: Any) -> Any:
    return entry.shape if isinstance(entry, torch.Tensor) else entry.get_shape()


def _separate(weights: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Each tensor in memory of its own, which safetensors asks for."""
    for name, entry in weights.items():
        yield name, entry[...].clone(memory_format=torch.contiguous_format)


def _write_processor(folder: Path, sizes: Sizes, text_encoder: TextEncoder, codec: EncodecConfig) -> None:
    """What `AutoProcessor` reads; the melody family's feature extractor cannot be built without torchaudio."""
    rate = codec.sampling_rate
    if not sizes.has_melody:
        extractor = EncodecFeatureExtractor(feature_size=sizes.channels, sampling_rate=rate)
        MusicgenProcessor(extractor, text_encoder.tokenizer).save_pretrained(folder)
        return
    text_encoder.tokenizer.save_pretrained(folder)
    melody = {
        "chroma_length": sizes.chroma_frames,
        "feature_extractor_type": "MusicgenMelodyFeatureExtractor",
        "feature_size": CLASSES,
        "hop_length": HOP,
        "n_fft": N_FFT,
        "num_chroma": CLASSES,
        "padding_side": "right",
        "padding_value": 0.0,
        "processor_class": "MusicgenMelodyProcessor",
        "return_attention_mask": True,
        "sampling_rate": rate,
        "stem_indices": VOCALS_AND_OTHER,
    }
    write_json(folder / "preprocessor_config.json", melody)
