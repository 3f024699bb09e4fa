"""`xp.cfg`: the configuration that audiocraft builds a model from, as YAML."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import yaml

from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.model.checkpoint import Checkpoint, load_generation_config
from musicgen_dreamboothing.model.chroma import HOP

TEXT_ENCODERS = {512: "t5-small", 768: "t5-base", 1024: "t5-large"}  # by width of the states
PUBLISHED_CODEC = "facebook/encodec_32khz"
OWN_CODEC = "compression_state_dict.bin"
MELODY_FRAMES = {"model": "chroma_stem", "n_chroma": 12, "radix2_exp": 14}
ACTIVATION = "gelu"


def template(name: str) -> dict[str, Any]:
    """A fresh copy of one of the configurations in `assets/`."""
    text = files("musicgen_dreamboothing.assets").joinpath(f"audiocraft_{name}.yaml").read_text(encoding="utf-8")
    content: dict[str, Any] = yaml.safe_load(text)
    return content


def model_settings(
    checkpoint: Checkpoint, *, has_published_codec: bool, text_encoder: str, with_text_encoder: bool
) -> dict[str, Any]:
    """The `xp.cfg` of a checkpoint's language model.

    Args:
        checkpoint: the model.
        has_published_codec: whether its codec is audiocraft's published one.
        text_encoder: audiocraft's name of its text encoder.
        with_text_encoder: whether the text encoder's weights are in the package.

    Raises:
        UserError: audiocraft's configuration has no place for a setting of the model.
    """
    config, settings = checkpoint.config.decoder, template("lm")
    if config.activation_function != ACTIVATION or getattr(config, "scale_embedding", False):
        raise UserError(
            f"{checkpoint.name} has activation_function {config.activation_function!r} and scale_embedding "
            f"{config.scale_embedding}; only {ACTIVATION} and false can be exported"
        )
    settings["transformer_lm"] |= {
        "dim": config.hidden_size,
        "num_heads": config.num_attention_heads,
        "num_layers": config.num_hidden_layers,
        "hidden_scale": hidden_scale(config.ffn_dim, config.hidden_size),
        "n_q": checkpoint.codebooks,
        "card": config.vocab_size,
        "cross_attention": not checkpoint.is_melody,
    }
    settings["codebooks_pattern"]["delay"]["delays"] = list(checkpoint.delay)
    is_stereo = checkpoint.audio_channels > 1
    settings["interleave_stereo_codebooks"]["use"] = is_stereo
    settings |= {"sample_rate": checkpoint.sampling_rate, "channels": checkpoint.audio_channels}
    settings["compression_model_n_q"] = checkpoint.codebooks // checkpoint.audio_channels
    if not has_published_codec:
        settings["compression_model_checkpoint"] = OWN_CODEC
    generation = load_generation_config(checkpoint)
    settings["classifier_free_guidance"]["inference_coef"] = float(generation.guidance_scale or 3.0)
    settings["dataset"]["segment_duration"] = _segment_seconds(checkpoint, generation.max_length)
    t5 = {"name": text_encoder, "finetune": with_text_encoder}
    settings["conditioners"]["description"]["t5"] |= t5
    if checkpoint.is_melody:
        _add_melody(settings)
    return settings


def _segment_seconds(checkpoint: Checkpoint, longest: int) -> int | float:
    """Length of the clips that the model was trained on, from which audiocraft derives the length of a melody.

    Args:
        checkpoint: the model.
        longest: frames that transformers generates by default.
    """
    seconds, rate = longest / checkpoint.frame_rate, checkpoint.sampling_rate
    if checkpoint.is_melody and 1 + int(seconds * rate) // HOP != checkpoint.config.chroma_length:
        seconds = (checkpoint.config.chroma_length - 1) * HOP / rate
    return _plain(seconds)


def hidden_scale(inner: int, width: int) -> int | float:
    """Width of a feed-forward layer in widths of the model."""
    return _plain(inner / width)


def _plain(number: float) -> int | float:
    return int(number) if number == int(number) else number


def _add_melody(settings: dict[str, Any]) -> None:
    """What the melody family has instead of cross-attention; dropouts are Meta's of its training."""
    chroma = {key: value for key, value in MELODY_FRAMES.items() if key != "model"}
    chroma |= {"sample_rate": settings["sample_rate"], "argmax": True, "match_len_on_eval": True}
    chroma |= {"eval_wavs": None, "n_eval_wavs": 100, "cache_path": None}
    settings["conditioners"] = {
        "self_wav": {"model": MELODY_FRAMES["model"], MELODY_FRAMES["model"]: chroma},
        **settings["conditioners"],
    }
    settings["fuser"] |= {"prepend": ["self_wav", "description"], "cross": []}
    settings["classifier_free_guidance"]["training_dropout"] = 0.2
    settings["attribute_dropout"] = {"args": {"active_on_eval": False}, "text": {}, "wav": {"self_wav": 0.5}}
