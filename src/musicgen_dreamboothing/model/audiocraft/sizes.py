"""The sizes of a language model of audiocraft: from its weights, and from `xp.cfg` what these do not show."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.model.audiocraft.names import (
    MELODY,
    T5,
    TEXT_PROJECTION,
    WINDOW,
    Architecture,
    counterparts,
)
from musicgen_dreamboothing.model.chroma import CLASSES, HOP
from musicgen_dreamboothing.model.delay import delays

HEAD_WIDTH = 64  # of every published size
STEREO_CODEBOOKS = 8
# What transformers' MusicGen always does, by the place in xp.cfg; audiocraft can do otherwise.
FIXED: dict[tuple[str, ...], Any] = {
    ("lm_model",): "transformer_lm",
    ("codebooks_pattern", "modeling"): "delay",
    ("transformer_lm", "norm_first"): True,
    ("transformer_lm", "causal"): True,
    ("transformer_lm", "activation"): "gelu",
    ("transformer_lm", "norm"): "layer_norm",
    ("transformer_lm", "positional_embedding"): "sin",
    ("transformer_lm", "qk_layer_norm"): False,
    ("transformer_lm", "qk_layer_norm_cross"): False,
    ("transformer_lm", "layer_scale"): None,
    ("transformer_lm", "past_context"): None,
    ("transformer_lm", "kv_repeat"): 1,
    ("fuser", "cross_attention_pos_emb"): False,
}


@dataclass(frozen=True)
class Sizes:
    """Sizes of a language model.

    Attributes:
        width, layers, heads, inner: D, number of layers, of heads, and width of a feed-forward layer.
        codebooks, codebook_size: K, and number of codes.
        channels: 2 where the codebooks of both sides are interleaved.
        text_width: of the text encoder's states.
        has_melody: whether it takes a melody.
        seconds: length of the clips that it was trained on.
        guidance: scale that it is played with.
        rate: samples per second, None if unknown.
        text_encoder: name of its T5, None if unknown.
    """

    width: int
    layers: int
    heads: int
    inner: int
    codebooks: int
    codebook_size: int
    channels: int
    text_width: int
    has_melody: bool
    seconds: float
    guidance: float
    rate: int | None
    text_encoder: str | None

    @property
    def architecture(self) -> Architecture:
        return Architecture(self.layers, self.codebooks, self.has_melody, self.text_width != self.width)

    @property
    def chroma_frames(self) -> int:
        """Frames of a melody: 235 for 30 s at 32 kHz."""
        return 1 + int(self.seconds * (self.rate or 32_000)) // HOP


def sizes_of(state: Mapping[str, torch.Tensor], settings: Mapping[str, Any]) -> Sizes:
    """The sizes of a model.

    Args:
        state: of `package.language_model_state`.
        settings: `xp.cfg`, or an empty dictionary.

    Raises:
        UserError: weights are missing, or the model is not one that transformers' MusicGen computes.
    """
    _check_settings(settings)
    if f"{TEXT_PROJECTION}weight" not in state:
        raise UserError(
            f"the checkpoint has no {TEXT_PROJECTION}weight: its text conditioner was saved elsewhere. Give the file "
            "that holds the whole model"
        )
    codebooks = _count(state, r"emb\.(\d+)\.weight")
    codes, width = state["linears.0.weight"].shape if "linears.0.weight" in state else (0, 0)
    if tuple(state["emb.0.weight"].shape) != (codes + 1, width):
        raise UserError(f"emb.0.weight has the size {list(state['emb.0.weight'].shape)}, not {[codes + 1, width]}")
    seconds, guidance = _at(settings, "dataset", "segment_duration"), _guidance(settings)
    t5 = _at(settings, "conditioners", "description", "t5", "name")
    rate = _at(settings, "sample_rate")
    sizes = Sizes(
        width,
        layers=_count(state, r"transformer\.layers\.(\d+)\.norm1\.weight"),
        heads=_heads(settings, width),
        inner=len(state["transformer.layers.0.linear1.weight"]),
        codebooks=codebooks,
        codebook_size=codes,
        channels=_channels(settings, codebooks),
        text_width=state[f"{TEXT_PROJECTION}weight"].shape[1],
        has_melody=f"{MELODY}output_proj.weight" in state,
        seconds=float(seconds) if isinstance(seconds, int | float) else 30.0,
        guidance=guidance,
        rate=rate if isinstance(rate, int) else None,
        text_encoder=t5 if isinstance(t5, str) else None,
    )
    _check_delays(settings, sizes)
    _check_names(state, sizes)
    return sizes


def _at(settings: Mapping[str, Any], *names: str) -> Any:
    value: Any = settings
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _check_settings(settings: Mapping[str, Any]) -> None:
    for place, expected in FIXED.items():
        parent = _at(settings, *place[:-1])
        if isinstance(parent, Mapping) and place[-1] in parent and parent[place[-1]] != expected:
            raise UserError(
                f"{'.'.join(place)} is {parent[place[-1]]!r} in the checkpoint's xp.cfg; transformers' MusicGen has "
                f"{expected!r} only, so this model cannot be imported"
            )


def _heads(settings: Mapping[str, Any], width: int) -> int:
    heads = _at(settings, "transformer_lm", "num_heads")
    if isinstance(heads, int):
        return heads
    if width % HEAD_WIDTH:
        raise UserError(
            f"the checkpoint has no xp.cfg with transformer_lm.num_heads, and no published model has its "
            f"width {width}; give a checkpoint with xp.cfg"
        )
    return width // HEAD_WIDTH


def _guidance(settings: Mapping[str, Any]) -> float:
    value = _at(settings, "classifier_free_guidance", "inference_coef")
    return float(value) if isinstance(value, int | float) else 3.0


def _channels(settings: Mapping[str, Any], codebooks: int) -> int:
    use = _at(settings, "interleave_stereo_codebooks", "use")
    return 2 if (use if isinstance(use, bool) else codebooks == STEREO_CODEBOOKS) else 1


def _count(state: Mapping[str, torch.Tensor], pattern: str) -> int:
    return sum(bool(re.fullmatch(pattern, name)) for name in state)


def _check_delays(settings: Mapping[str, Any], sizes: Sizes) -> None:
    expected = list(delays(sizes.codebooks, sizes.channels))
    found = _at(settings, "codebooks_pattern", "delay", "delays")
    if isinstance(found, list) and found != expected:
        raise UserError(f"the checkpoint delays its codebooks by {found}; MusicGen delays them by {expected}")


def _check_names(state: Mapping[str, torch.Tensor], sizes: Sizes) -> None:
    """Names of weights have to be exactly those of the architecture; sizes are checked when the model is built."""
    expected = {*counterparts(sizes.architecture), *(f"{TEXT_PROJECTION}{kind}" for kind in ("weight", "bias"))}
    present = {name for name in state if name != WINDOW and not name.startswith(T5)}
    if missing := sorted(expected - present):
        raise UserError(f"the checkpoint lacks {missing[0]} ({len(missing)} weights in all); it is incomplete")
    if unknown := sorted(present - expected):
        raise UserError(
            f"the checkpoint has weights that MusicGen and AudioGen lack: {unknown[0]} ({len(unknown)} in all); models "
            "such as MusicGen-Style, MAGNeT and JASCO cannot be imported"
        )
    if sizes.has_melody and state[f"{MELODY}output_proj.weight"].shape[1] != CLASSES:
        raise UserError(
            f"the melody has {state[f'{MELODY}output_proj.weight'].shape[1]} classes; transformers takes {CLASSES}"
        )
    if not sizes.architecture.has_projection and not _is_identity(state):
        raise UserError(
            f"its text encoder and its decoder have the same width, {sizes.width}; transformers has no projection "
            "between them then, and the checkpoint's is not the identity, so it cannot be imported"
        )


def _is_identity(state: Mapping[str, torch.Tensor]) -> bool:
    weight, bias = (state[f"{TEXT_PROJECTION}{kind}"] for kind in ("weight", "bias"))
    return torch.equal(weight, torch.eye(len(weight), dtype=weight.dtype)) and not bool(bias.any())
