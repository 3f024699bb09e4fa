"""A LoRA adapter from the difference between a full fine-tune and its base.

Of each matrix the difference D = W' - W is replaced by its best approximation of a given rank (Eckart and Young 1936).
With UΛUᵀ the eigenvalues of the smaller of DDᵀ and DᵀD, in double precision, that is B·A = U₁(U₁ᵀD), and the sum of
the first eigenvalues is what it keeps of |D|².
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import get_peft_model_state_dict

from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.model.adapter import (
    ATTENTION,
    EMBEDDINGS,
    FEED_FORWARD,
    HEADS,
    PROJECTIONS,
    LoraSettings,
    SavedAdapter,
    add_adapter,
)
from musicgen_dreamboothing.model.checkpoint import Checkpoint
from musicgen_dreamboothing.model.language_model import empty_language_model
from musicgen_dreamboothing.model.weight_files import open_weights

GROUPS = {
    "attention": ATTENTION,
    "feed-forward": FEED_FORWARD,
    "heads": HEADS,
    "embeddings": EMBEDDINGS,
    "projections": PROJECTIONS,
}
PREFIX = "base_model.model."
A, B = "lora_A.weight", "lora_B.weight"
EMBEDDING_A, EMBEDDING_B = "lora_embedding_A", "lora_embedding_B"


@dataclass
class Energy:
    """Squared norms of differences: of all of a group, and of what an adapter keeps."""

    total: float = 0.0
    kept: float = 0.0

    @property
    def share(self) -> float:
        """0 to 1; 1 where nothing differs."""
        return self.kept / self.total if self.total else 1.0


@dataclass
class Extraction:
    """An adapter, and how much of the difference is in it.

    Attributes:
        adapter: for the base.
        groups: the energy by kind of layer.
        lost: squared norms of differences that no LoRA adapter holds, such as those of normalisations, by name.
    """

    adapter: SavedAdapter
    groups: dict[str, Energy] = field(default_factory=dict)
    lost: dict[str, float] = field(default_factory=dict)

    @property
    def all(self) -> Energy:
        """The energy of everything that differs."""
        energies = self.groups.values()
        return Energy(
            sum(energy.total for energy in energies) + sum(self.lost.values()),
            sum(energy.kept for energy in energies),
        )


@torch.no_grad()
def extract_adapter(tuned: Checkpoint, base: Checkpoint, rank: int, device: torch.device) -> Extraction:
    """Approximates the difference of two checkpoints by an adapter of this rank.

    Args:
        tuned: a full fine-tune.
        base: the checkpoint that it was trained from.
        rank: of the adapter; smaller matrices are kept whole.
        device: where decompositions are computed.

    Raises:
        UserError: the checkpoints differ in their weights' names or sizes, or not at all.
    """
    before, after = _weights(base), _weights(tuned)
    _check(before, after, tuned, base)
    model = add_adapter(empty_language_model(base, with_text_encoder=False), LoraSettings(r=rank, alpha=rank))
    sizes = {key: value.shape for key, value in get_peft_model_state_dict(model, save_embedding_layers=False).items()}
    extraction = Extraction(SavedAdapter(tuned.name, model.peft_config["default"], {}))
    extraction.groups.update({group: Energy() for group in GROUPS})
    for name in before:
        difference = after[name][...].to(device, torch.float64) - before[name][...].to(device, torch.float64)
        group = _group(name)
        if group is None:
            if energy := float(difference.square().sum()):
                extraction.lost[name] = energy
            continue
        _add(extraction, name, difference, rank, sizes, group)
    if not extraction.all.total:
        raise UserError(f"{tuned.name} and {base.name} have the same weights: there is nothing to extract")
    if not extraction.all.kept:
        raise UserError(
            f"{tuned.name} differs from {base.name} only where LoRA has no place, in {next(iter(extraction.lost))}"
        )
    return extraction


def _weights(checkpoint: Checkpoint) -> dict[str, Any]:
    """All but the encoders, which no fine-tune of this program changes, or only the text encoder."""
    encoders = ("audio_encoder.", "text_encoder.")
    hub = checkpoint.source.arguments()
    return open_weights(checkpoint.name, hub, lambda name: None if name.startswith(encoders) else name, convert=False)


def _check(before: dict[str, Any], after: dict[str, Any], tuned: Checkpoint, base: Checkpoint) -> None:
    if other := sorted(before.keys() ^ after.keys()):
        raise UserError(
            f"{tuned.name} is no fine-tune of {base.name}: {other[0]} is in one of them only ({len(other)} weights)"
        )
    for name in before:
        ours, theirs = (list(_shape(entry)) for entry in (after[name], before[name]))
        if ours != theirs:
            raise UserError(f"{tuned.name} is no fine-tune of {base.name}: {name} has the sizes {ours} and {theirs}")


def _shape(entry: Any) -> Any:
    return entry.shape if isinstance(entry, torch.Tensor) else entry.get_shape()


def _group(name: str) -> str | None:
    """The kind of layer that a weight belongs to, None for what LoRA does not adapt."""
    layer, _, kind = name.rpartition(".")
    if kind != "weight":
        return None
    return next((group for group, pattern in GROUPS.items() if re.fullmatch(pattern, layer)), None)


def _add(
    extraction: Extraction, name: str, difference: torch.Tensor, rank: int, sizes: dict[str, torch.Size], group: str
) -> None:
    """Adds the two matrices of one layer; embeddings `[V, D]` are adapted as their transpose."""
    key = f"{PREFIX}{name.removesuffix('weight')}"
    is_embedding = f"{key}{EMBEDDING_A}" in sizes
    names = (EMBEDDING_A, EMBEDDING_B) if is_embedding else (A, B)
    a, b, kept = factors(difference.T if is_embedding else difference, rank)
    for part, matrix in zip(names, (a, b), strict=True):
        if matrix.shape != sizes[f"{key}{part}"]:
            raise RuntimeError(f"{key}{part} has the size {list(matrix.shape)}, not {list(sizes[f'{key}{part}'])}")
        extraction.adapter.weights[f"{key}{part}"] = matrix
    energy = extraction.groups[group]
    energy.total += float(difference.square().sum())
    energy.kept += kept


def factors(difference: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    """The best B·A of a rank, and its squared norm.

    Args:
        difference: `[out, in]` in double precision.
        rank: r; rows and columns beyond the rank of the difference are zero.

    Returns:
        A `[r, in]` and B `[out, r]`, fp32 on the CPU and of equal norms, and |B·A|².
    """
    wide = difference if difference.shape[0] <= difference.shape[1] else difference.T
    values, vectors = torch.linalg.eigh(wide @ wide.T)  # ascending
    number = min(rank, len(values))
    vectors = vectors.flip(-1)[:, :number]
    rows = vectors.T @ wide  # [n, longer side], norms are the singular values
    norms = rows.norm(dim=1)
    scale = norms.clamp_min(1e-30).sqrt()
    left, right = vectors * scale, rows / scale[:, None]
    a, b = (right, left) if wide is difference else (left.T, right.T)
    a_full, b_full = difference.new_zeros(rank, a.shape[1]), difference.new_zeros(b.shape[0], rank)
    a_full[:number], b_full[:, :number] = a, b
    return a_full.float().cpu(), b_full.float().cpu(), float(norms.square().sum())


def lost_kinds(extraction: Extraction) -> Iterator[tuple[str, float]]:
    """Kinds of weights that LoRA has no place for, with their share of the whole difference."""
    total, kinds = extraction.all.total, dict[str, float]()
    for name, energy in extraction.lost.items():
        kind = "normalisations" if "norm" in name else "biases"
        kinds[kind] = kinds.get(kind, 0.0) + energy / total
    yield from kinds.items()
