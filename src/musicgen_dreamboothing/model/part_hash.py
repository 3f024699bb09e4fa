"""Hashes of one part of a checkpoint: what a cache depends on, whichever repository the part is published in."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedConfig

from musicgen_dreamboothing.model.weight_files import Hub, open_weights

SAMPLES, SAMPLE_BYTES = 16, 1 << 14  # of a weight above their product of 256 KB; all of a smaller one
PREFIXES = {"audio_encoder": ("encoder.", "decoder.", "quantizer."), "text_encoder": ("encoder.", "shared.")}
# Settings that neither codes nor text states depend on; some of them are changed by loading.
WITHOUT_EFFECT = frozenset(
    ("classifier_dropout", "dropout_rate", "eos_token_id", "initializer_factor", "is_decoder", "num_decoder_layers")
) | frozenset(("pad_token_id", "scale_decoder_outputs", "tie_word_embeddings", "use_cache"))
# Names that differ between versions of transformers, and a table that T5 holds twice.
RENAMED = (
    (".weight_g", ".parametrizations.weight.original0"),
    (".weight_v", ".parametrizations.weight.original1"),
    ("encoder.embed_tokens.", "shared."),
)


def part_hash(part: str, config: PreTrainedConfig, name: str, hub: Hub, *more: Any) -> str:
    """A short hash of a part's settings and weights as they are stored.

    The name of the checkpoint, its commit, the other parts and the file format make no difference. Of large weights
    samples are read: tens of milliseconds for EnCodec and T5, instead of seconds.

    Args:
        part: `audio_encoder` or `text_encoder`.
        config: of the part.
        name: of the checkpoint: a folder or Hub id.
        hub: keyword arguments for the Hub.
        more: what else is to change the hash, as JSON values.

    Raises:
        UserError: as of `open_weights`.
    """
    digest = hashlib.blake2b(json.dumps([_settings(config), more], sort_keys=True).encode(), digest_size=8)
    read = tuple(f"{part}.{prefix}" for prefix in PREFIXES[part])  # some files hold weights that nobody reads
    weights = open_weights(name, hub, lambda key: _current_name(key) if key.startswith(read) else None, convert=False)
    for key in sorted(weights):
        weight = weights[key][...]
        digest.update(f"{key} {weight.dtype} {list(weight.shape)}".encode())
        for block in _blocks(weight):
            digest.update(block.tobytes())
    return digest.hexdigest()


def _settings(config: PreTrainedConfig) -> dict[str, Any]:
    """The settings that this kind of part has and others have not, as far as they are not the usual ones."""
    own = type(config)().to_dict().keys() - PreTrainedConfig().to_dict().keys() - WITHOUT_EFFECT
    return {key: value for key, value in config.to_diff_dict().items() if key in own}


def _current_name(key: str) -> str:
    for old, new in RENAMED:
        key = key.replace(old, new)
    return key


def _blocks(weight: torch.Tensor) -> list[np.ndarray]:
    """The bytes of a weight, or blocks that lie evenly in it."""
    content = weight.contiguous().reshape(-1).view(torch.uint8).numpy()
    if len(content) <= SAMPLES * SAMPLE_BYTES:
        return [content]
    starts = np.linspace(0, len(content) - SAMPLE_BYTES, SAMPLES).astype(int)
    return [content[start : start + SAMPLE_BYTES] for start in starts]
