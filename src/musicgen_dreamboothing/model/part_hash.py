"""Hashes of one part of a checkpoint, for caches that depend on that part alone."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedConfig

from musicgen_dreamboothing.model.weight_files import Hub, open_weights

SAMPLES, SAMPLE_BYTES = 16, 1 << 14  # of each weight; all of a weight below their product of 256 KB
PREFIXES = {"audio_encoder": ("encoder.", "decoder.", "quantizer."), "text_encoder": ("encoder.", "shared.")}
# Settings without an effect on codes and text states; loading changes some of them.
WITHOUT_EFFECT = frozenset(
    ("classifier_dropout", "dropout_rate", "eos_token_id", "initializer_factor", "is_decoder", "num_decoder_layers")
) | frozenset(("pad_token_id", "scale_decoder_outputs", "tie_word_embeddings", "use_cache"))
# Names that differ between versions of transformers, and a table that T5 stores twice.
RENAMED = (
    (".weight_g", ".parametrizations.weight.original0"),
    (".weight_v", ".parametrizations.weight.original1"),
    ("encoder.embed_tokens.", "shared."),
)


def part_hash(part: str, config: PreTrainedConfig, name: str, hub: Hub, *more: Any) -> str:
    """A short hash of a part's settings and stored weights, whatever the checkpoint's name, commit and file format.

    Of large weights only samples are read: tens of milliseconds for EnCodec and T5 instead of seconds.

    Args:
        part: `audio_encoder` or `text_encoder`.
        config: of the part.
        name: of the checkpoint: a folder or Hub id.
        hub: keyword arguments for the Hub.
        more: JSON values that the hash depends on, too.
    """
    digest = hashlib.blake2b(json.dumps([_settings(config), more], sort_keys=True).encode(), digest_size=8)
    read = tuple(f"{part}.{prefix}" for prefix in PREFIXES[part])  # some files have weights that are not used
    weights = open_weights(name, hub, lambda key: current_name(key) if key.startswith(read) else None, convert=False)
    for key in sorted(weights):
        weight = weights[key][...]
        digest.update(f"{key} {weight.dtype} {list(weight.shape)}".encode())
        for block in _blocks(weight):
            digest.update(block.tobytes())
    return digest.hexdigest()


def _settings(config: PreTrainedConfig) -> dict[str, Any]:
    """The settings of this kind of part that differ from the defaults."""
    own = type(config)().to_dict().keys() - PreTrainedConfig().to_dict().keys() - WITHOUT_EFFECT
    return {key: value for key, value in config.to_diff_dict().items() if key in own}


def current_name(key: str) -> str:
    """The name of a weight in the current version of transformers."""
    for old, new in RENAMED:
        key = key.replace(old, new)
    return key


def _blocks(weight: torch.Tensor) -> list[np.ndarray]:
    """The bytes of a weight, or evenly spaced blocks of them."""
    content = weight.contiguous().reshape(-1).view(torch.uint8).numpy()
    if len(content) <= SAMPLES * SAMPLE_BYTES:
        return [content]
    starts = np.linspace(0, len(content) - SAMPLE_BYTES, SAMPLES).astype(int)
    return [content[start : start + SAMPLE_BYTES] for start in starts]
