"""Writes the weights of a checkpoint as safetensors, in as many files as their size asks for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from musicgen_dreamboothing.files import write_json
from musicgen_dreamboothing.model.weight_files import INDEX, LAYOUTS

SHARD_BYTES = 4 * 10**9  # of a file of weights, which is in memory as a whole


def write_shards(weights: Iterable[tuple[str, torch.Tensor]], folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Writes one file, or several with an index; one of them at a time is in memory.

    Args:
        weights: names and weights, each in memory of its own, which safetensors asks for.
        folder: where to; it exists.
        shard_bytes: size of a file.
    """
    names, total = [], 0
    for number, shard in enumerate(_shards(weights, shard_bytes)):
        save_file(shard, folder / f"shard-{number}", metadata={"format": "pt"})
        names.append(list(shard))
        total += sum(weight.nbytes for weight in shard.values())
        shard.clear()  # before the next one is collected
    if len(names) == 1:
        (folder / "shard-0").rename(folder / LAYOUTS[0])
        return
    stem, _, suffix = LAYOUTS[0].partition(".")
    places: dict[str, str] = {}
    for number, shard_names in enumerate(names):
        file = f"{stem}-{number + 1:05}-of-{len(names):05}.{suffix}"
        (folder / f"shard-{number}").rename(folder / file)
        places |= dict.fromkeys(shard_names, file)
    write_json(folder / f"{LAYOUTS[0]}{INDEX}", {"metadata": {"total_size": total}, "weight_map": places})


def _shards(weights: Iterable[tuple[str, torch.Tensor]], shard_bytes: int) -> Iterator[dict[str, torch.Tensor]]:
    shard: dict[str, torch.Tensor] = {}
    size = 0
    for name, weight in weights:
        if shard and size + weight.nbytes > shard_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = weight
        size += weight.nbytes
    yield shard
