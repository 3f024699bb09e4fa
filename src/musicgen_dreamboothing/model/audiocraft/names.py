"""Names of the weights of a MusicGen language model in audiocraft and in transformers.

audiocraft stores query, key and value of an attention as one matrix; all else has one counterpart. The correspondence
was checked by loading converted weights with audiocraft's own loader and comparing logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from musicgen_dreamboothing.model.checkpoint import Checkpoint

CONDITIONERS = "condition_provider.conditioners."
TEXT, MELODY = f"{CONDITIONERS}description.", f"{CONDITIONERS}self_wav."
TEXT_PROJECTION = f"{TEXT}output_proj."
T5 = f"{TEXT}t5."
WINDOW = f"{MELODY}chroma.spec.window"
FFT_SIZE = 16384  # samples of the window, `radix2_exp: 14`
DECODER = "decoder.model.decoder."
AFFINE = ("weight", "bias")


@dataclass(frozen=True)
class Architecture:
    """The numbers that decide which weights a language model has.

    Attributes:
        codebooks: K.
        has_melody: whether chroma and text come before the codes, instead of cross-attention.
        has_projection: whether transformers has a projection of the text states, which it leaves out where their width
            is that of the decoder; audiocraft always has one.
    """

    layers: int
    codebooks: int
    has_melody: bool
    has_projection: bool

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Architecture:
        config = checkpoint.config
        same_width = config.text_encoder.hidden_size == config.decoder.hidden_size
        return cls(config.decoder.num_hidden_layers, checkpoint.codebooks, checkpoint.is_melody, not same_width)


def counterparts(architecture: Architecture) -> dict[str, tuple[str, ...]]:
    """transformers' names by audiocraft's, in audiocraft's order; several are joined along the first dimension.

    Not listed: the window of the chroma, which is no weight, and a projection that transformers lacks.
    """
    names: dict[str, tuple[str, ...]] = {}
    if architecture.has_melody:
        names |= {f"{MELODY}output_proj.{kind}": (f"audio_enc_to_dec_proj.{kind}",) for kind in AFFINE}
    if architecture.has_projection:
        names |= {f"{TEXT_PROJECTION}{kind}": (f"enc_to_dec_proj.{kind}",) for kind in AFFINE}
    for k in range(architecture.codebooks):
        names[f"emb.{k}.weight"] = (f"{DECODER}embed_tokens.{k}.weight",)
    for number in range(architecture.layers):
        names |= _of_layer(number, has_cross_attention=not architecture.has_melody)
    names |= {f"out_norm.{kind}": (f"{DECODER}layer_norm.{kind}",) for kind in AFFINE}
    for k in range(architecture.codebooks):
        names[f"linears.{k}.weight"] = (f"decoder.lm_heads.{k}.weight",)
    return names


def _of_layer(number: int, *, has_cross_attention: bool) -> dict[str, tuple[str, ...]]:
    theirs, ours = f"transformer.layers.{number}.", f"{DECODER}layers.{number}."
    attentions = {"self_attn": "self_attn"} | ({"cross_attention": "encoder_attn"} if has_cross_attention else {})
    norms = {"norm1": "self_attn_layer_norm", "norm2": "final_layer_norm"}
    norms |= {"norm_cross": "encoder_attn_layer_norm"} if has_cross_attention else {}
    names: dict[str, tuple[str, ...]] = {}
    for their, our in attentions.items():
        projections = tuple(f"{ours}{our}.{part}_proj.weight" for part in "qkv")
        names[f"{theirs}{their}.in_proj_weight"] = projections
        names[f"{theirs}{their}.out_proj.weight"] = (f"{ours}{our}.out_proj.weight",)
    names |= {f"{theirs}linear{n}.weight": (f"{ours}fc{n}.weight",) for n in (1, 2)}
    names |= {f"{theirs}{their}.{kind}": (f"{ours}{our}.{kind}",) for their, our in norms.items() for kind in AFFINE}
    return names


def to_audiocraft(weights: Mapping[str, Any], architecture: Architecture, width: int) -> dict[str, torch.Tensor]:
    """The state dict of audiocraft's language model.

    Args:
        weights: of transformers' composite model; each is read when it is indexed (`weights[name][...]`).
        architecture: of the model.
        width: D, of the decoder.
    """
    state = {
        theirs: torch.cat([weights[name][...] for name in ours]).clone()
        for theirs, ours in counterparts(architecture).items()
    }
    if architecture.has_melody:
        state[WINDOW] = torch.hann_window(FFT_SIZE)
    if not architecture.has_projection:  # exact: a product with one, and zeros
        dtype = state["out_norm.weight"].dtype
        state |= {f"{TEXT_PROJECTION}weight": torch.eye(width, dtype=dtype)}
        state |= {f"{TEXT_PROJECTION}bias": torch.zeros(width, dtype=dtype)}
    return state


def from_audiocraft(state: Mapping[str, torch.Tensor], architecture: Architecture) -> dict[str, torch.Tensor]:
    """The language model's weights under transformers' names; `state` has exactly those of `counterparts`."""
    weights: dict[str, torch.Tensor] = {}
    for theirs, ours in counterparts(architecture).items():
        weights |= zip(ours, state[theirs].chunk(len(ours)), strict=True)
    return weights
