"""Several adapters on one base, each with its own strength.

Strength is defined on merged updates: W = W₀ + Σ sᵢ (mergeᵢ(W₀) - W₀). So it means the same for every type of adapter:
scaling only the matrices of DoRA would leave its magnitudes, and its effect would jump next to 0. The sum is computed
one matrix after the other in fp32; a strength of 0 gives the base exactly, a single adapter at 1 its own merge exactly,
and the order of adapters does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.model.adapter import SavedAdapter
from musicgen_dreamboothing.model.checkpoint import Checkpoint
from musicgen_dreamboothing.model.merging import LazilyMerged, Merger
from musicgen_dreamboothing.model.strengths import Strength
from musicgen_dreamboothing.model.weight_files import open_weights


class Mixer:
    """Adapters that are merged into the weights of their base as they are read.

    Args:
        checkpoint: the base.
        adapters: in any order; they are added in the order of their names.
        strengths: of each.

    Attributes:
        active_layers: numbers of adapted layers with an update that is not zero, and of all, summed over the adapters.

    Raises:
        UserError: an adapter does not fit the base, or all of its updates are zero.
    """

    def __init__(self, checkpoint: Checkpoint, adapters: Sequence[SavedAdapter], strengths: Sequence[Strength]) -> None:
        self._checkpoint, self.adapters, self.strengths = checkpoint, tuple(adapters), tuple(strengths)
        self._mergers = [Merger(checkpoint, saved) for saved in adapters]
        self._keeps_updates, self._updates = False, dict[tuple[Merger, str], torch.Tensor]()
        for saved, merger in zip(adapters, self._mergers, strict=True):
            if not merger.active_layers[0]:
                raise UserError(f"the adapter {saved.name} changes nothing: all its updates are zero. Was it trained?")
        active, total = zip(*(merger.active_layers for merger in self._mergers), strict=True)
        self.active_layers = (sum(active), sum(total))

    @property
    def trains_text_encoder(self) -> bool:
        return any(saved.trains_text_encoder for saved in self.adapters)

    @property
    def names(self) -> list[str]:
        """Names of all weights that an adapter changes, each once."""
        return list(dict.fromkeys(name for merger in self._mergers for name in merger.names))

    def wrap(self, weights: dict[str, Any]) -> dict[str, Any]:
        """The weights of `weight_files.open_weights`, merged when they are indexed."""
        return weights | {name: LazilyMerged(self, name, weights[name]) for name in self.names if name in weights}

    @torch.no_grad()
    def merged(self, name: str, entry: Any) -> torch.Tensor:
        """The weight with all updates in fp32 on the CPU, `[out, in]`; `entry[...]` is that of the base."""
        parts = [(factor, merger) for factor, merger in self._parts(name) if factor]
        if len(parts) == 1 and parts[0][0] == 1:
            return parts[0][1].merged(name, entry)
        base = entry[...].to(torch.float32)
        pairs = [(factor, *pair) for factor, merger in parts if (pair := merger.low_rank(name)) is not None]
        if pairs:  # all of LoRA in one product, which is faster than merging each
            up = torch.cat([factor * up for factor, up, _ in pairs], dim=1)
            total = torch.addmm(base, up, torch.cat([down for *_, down in pairs]))
        else:
            total = base.clone()
        for factor, merger in parts:
            if merger.low_rank(name) is None:
                total.add_(self._dense_update(merger, name, base), alpha=factor)
        return total

    def _dense_update(self, merger: Merger, name: str, base: torch.Tensor) -> torch.Tensor:
        """merge(W₀) - W₀ of an adapter that is not LoRA, which takes long for DoRA."""
        if (merger, name) in self._updates:
            return self._updates[merger, name]
        update = merger.merged(name, _Held(base)).sub_(base)
        if self._keeps_updates:
            self._updates[merger, name] = update
        return update

    def _parts(self, name: str) -> list[tuple[float, Merger]]:
        """Factors and mergers of the adapters that change a weight, in the order of their names."""
        every = sorted(
            zip(self.adapters, self.strengths, self._mergers, strict=True),
            key=lambda part: (part[0].name, str(part[1])),
        )
        return [(strength.of(name), merger) for _, strength, merger in every if name in merger.names]

    def apply(self, model: nn.Module, strengths: Sequence[Strength]) -> None:
        """Gives a loaded model other strengths: its weights are written anew where they change.

        The weights of the base are read again from the checkpoint, which the system holds in memory as far as it can.
        Updates of LoRA stay in memory as its two matrices; those of other types in fp32, from the first call on, which
        is 4 bytes for each adapted weight.
        """
        self._keeps_updates = True
        before = {name: self._factors(name) for name in self.names}
        self.strengths = tuple(strengths)
        changed = {name for name in before if self._factors(name) != before[name]}
        if not changed:
            return
        weights = open_weights(
            self._checkpoint.name,
            self._checkpoint.source.arguments(),
            lambda name: name if name in changed else None,
            convert=False,
        )
        parameters = dict(model.named_parameters())
        for name in changed:
            parameters[name].data.copy_(self.merged(name, weights[name]))

    def _factors(self, name: str) -> list[float]:
        return [strength.of(name) for strength in self.strengths]


class _Held:
    """A weight that is in memory already, as one that is read when it is indexed."""

    def __init__(self, weight: torch.Tensor) -> None:
        self._weight = weight

    def __getitem__(self, place: Any) -> torch.Tensor:
        return self._weight[place]
