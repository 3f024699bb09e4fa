"""A stereo checkpoint from a mono one: the weights of each codebook serve its left and its right side.

Stereo checkpoints interleave the codebooks of both sides, so head and embedding k of the stereo model are copies of
k // 2 of the mono model (audiocraft's docs/MUSICGEN.md, `continue_from`). All else stays. The model sums the embeddings
of all codebooks: with twice as many of half the size it has the same input where both sides are equal, and thus gives
the logits of the mono model. Halving is exact in every precision but for subnormal numbers.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.files import write_json
from musicgen_dreamboothing.model.checkpoint import (
    PROCESSOR_FILES,
    Checkpoint,
    load_generation_config,
    save_processor,
)
from musicgen_dreamboothing.model.delay import SIDES
from musicgen_dreamboothing.model.shards import SHARD_BYTES, write_shards
from musicgen_dreamboothing.model.weight_files import open_weights

ORIGIN = "warm_start.json"
OF_CODEBOOK = re.compile(r"(decoder\.(?:lm_heads|model\.decoder\.(embed_tokens))\.)(\d+)(\.weight)")


@dataclass(frozen=True)
class Origin:
    """What a stereo base was made from.

    Attributes:
        base: Hub id of the mono checkpoint, or the last part of its folder's path.
        revision: its commit on the Hub, or a hash of the weights in its folder.
        variant: `exact` or `meta`, as of `warm-start`.
    """

    base: str
    revision: str | None
    variant: str

    @classmethod
    def of(cls, mono: Checkpoint, variant: str) -> Origin:
        return cls(Path(mono.name).resolve().name if mono.is_local else mono.name, mono.identity, variant)

    def write(self, folder: Path) -> None:
        write_json(folder / ORIGIN, asdict(self))


def read_origin(folder: Path) -> Origin | None:
    """The origin of a stereo base that `warm-start` wrote; None for any other folder."""
    with suppress(OSError, ValueError, TypeError):
        return Origin(**json.loads((folder / ORIGIN).read_text(encoding="utf-8")))
    return None


def write_stereo_checkpoint(
    mono: Checkpoint, folder: Path, *, embedding_scale: float, shard_bytes: int = SHARD_BYTES
) -> None:
    """Writes the stereo checkpoint as transformers reads it, each weight in the precision in which it is stored.

    Args:
        mono: the checkpoint that is copied.
        folder: where to; it exists.
        embedding_scale: factor of the embeddings: 0.5, or 1 for Meta's start.
        shard_bytes: size of a file of weights.

    Raises:
        UserError: the checkpoint is incomplete.
    """
    weights = open_weights(mono.name, mono.source.arguments(), lambda name: name, convert=False)
    copied = sum(OF_CODEBOOK.fullmatch(name) is not None for name in weights)
    if copied != 2 * mono.codebooks:
        raise UserError(
            f"{mono.name} has {copied} heads and embeddings, not {2 * mono.codebooks}; take a complete checkpoint"
        )
    config = copy.deepcopy(mono.config)
    config.decoder.num_codebooks, config.decoder.audio_channels = len(SIDES) * mono.codebooks, len(SIDES)
    config.save_pretrained(folder)
    load_generation_config(mono).save_pretrained(folder)
    save_processor(mono, folder)
    for name in PROCESSOR_FILES:
        _set_channels(folder / name)
    write_shards(_stereo_weights(weights, embedding_scale), folder, shard_bytes)


def _set_channels(path: Path) -> None:
    """`feature_size` is the number of channels of EnCodec's feature extractor; that of melody models counts chroma."""
    if not path.is_file():
        return
    content = json.loads(path.read_text(encoding="utf-8"))
    extractor = content.get("feature_extractor", content)
    if extractor.get("feature_extractor_type") == "EncodecFeatureExtractor":
        extractor["feature_size"] = len(SIDES)
        write_json(path, content)


def _stereo_weights(weights: Mapping[str, Any], embedding_scale: float) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and weights of the stereo model, each in memory of its own, which safetensors asks for."""
    for name, weight in weights.items():
        match = OF_CODEBOOK.fullmatch(name)
        if match is None:
            yield name, weight[...].clone()
            continue
        before, embedding, codebook, after = match.groups()
        scale = embedding_scale if embedding else 1.0
        for side in range(len(SIDES)):
            yield f"{before}{len(SIDES) * int(codebook) + side}{after}", weight[...] * scale
