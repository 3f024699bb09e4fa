"""A checkpoint with adapters merged into its weights, as transformers reads it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.model.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_generation_config,
    save_processor,
)
from musicgen_dreamboothing.model.mixing import Mixer
from musicgen_dreamboothing.model.shards import SHARD_BYTES, write_shards
from musicgen_dreamboothing.model.weight_files import open_weights


def write_merged_checkpoint(
    checkpoint: Checkpoint, mixer: Mixer, folder: Path, *, shard_bytes: int = SHARD_BYTES
) -> float | None:
    """Writes base and adapters as one checkpoint, each weight in the precision in which the base stores it.

    Weights are read, merged in fp32, and rounded one by one.

    Args:
        checkpoint: the base, which is not changed.
        mixer: adapters on it.
        folder: where to; it exists.
        shard_bytes: size of a file of weights.

    Returns:
        As of `Rounding.kept`.

    Raises:
        UserError: the base lacks an adapted weight, or a merged weight is too large for the base's precision.
    """
    weights = open_weights(checkpoint.name, checkpoint.source.arguments(), lambda name: name, convert=False)
    if missing := [name for name in mixer.names if name not in weights]:
        raise UserError(f"{checkpoint.name} lacks {missing[0]}, which an adapter changes; take a complete checkpoint")
    original = load_checkpoint(checkpoint.source)  # that of a loaded model has its dropout switched off
    original.config.save_pretrained(folder)
    load_generation_config(checkpoint).save_pretrained(folder)
    save_processor(checkpoint, folder)
    rounding = Rounding()
    write_shards(_merged_weights(weights, mixer, rounding), folder, shard_bytes)
    return rounding.kept


class Rounding:
    """How much of an update is left after weights were rounded to the precision in which they are stored."""

    def __init__(self) -> None:
        self._update = self._lost = 0.0

    def add(self, base: torch.Tensor, merged: torch.Tensor, stored: torch.Tensor) -> None:
        """One weight: as it was, merged in fp32, and rounded."""
        self._update += float((merged - base).double().square().sum())
        self._lost += float((merged - stored).double().square().sum())

    @property
    def kept(self) -> float | None:
        """1 - |lost|² / |update|²: 0 where rounding gives the base's weights again; None where nothing changed.

        Each rounded weight is the nearest to the merged one, so no further from it than that of the base.
        """
        return 1 - self._lost / self._update if self._update else None


def _merged_weights(weights: dict[str, Any], mixer: Mixer, rounding: Rounding) -> Iterator[tuple[str, torch.Tensor]]:
    adapted = set(mixer.names)
    for name, weight in weights.items():
        base = weight[...]
        if name not in adapted:
            yield name, base.clone()
            continue
        merged = mixer.merged(name, weight)
        stored = merged.to(base.dtype)
        if not torch.isfinite(stored).all():
            raise UserError(
                f"merged, {name} is not finite in {str(base.dtype).removeprefix('torch.')}; "
                "merge with lower strengths, or take a base in float32"
            )
        rounding.add(base.float(), merged, stored.float())
        yield name, stored.contiguous()
