"""Cross-entropy on held-out songs, with intervals. Pure functions of arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from musicgen_dreamboothing.evaluation.metrics.statistics import Estimate, Jackknife, group_numbers

Array = NDArray[np.float64]
Rows = NDArray[np.intp]


@dataclass(frozen=True)
class LossChange:
    """A loss of both models on the same held-out clips.

    Attributes:
        key: `loss`, the mean over codebooks in nats, and `ppl`, its exponential; `ce_q1`, `ppl_q1` and so on are of
            each codebook, as audiocraft calls them (`solvers/musicgen.py`); `ce_left`, `ppl_left` and so on of a side.
        base, tuned: the losses.
        change: tuned - base.
    """

    key: str
    base: Estimate
    tuned: Estimate
    change: Estimate


def loss_changes(
    base: Array, tuned: Array, count: Array, songs: Sequence[str] | None = None, sides: Sequence[str] = ()
) -> list[LossChange]:
    """Mean cross-entropies of held-out clips, and their perplexities.

    Intervals are of the jackknife over songs; of one or two songs over clips, and then they hold for these songs.

    Args:
        base, tuned: sums over valid steps in nats, `[N, K]`.
        count: numbers of valid steps, `[N, K]`.
        songs: the song of each clip.
        sides: names of the sides whose codebooks are interleaved.

    Raises:
        ValueError: the shapes differ, or there is no clip.
    """
    sums, steps = np.stack([base, tuned]).astype(np.float64), np.asarray(count, np.float64)
    if sums.shape[1:] != steps.shape or not len(steps):
        raise ValueError(f"cross-entropy needs sums and counts [clips, codebooks], not {sums.shape} and {steps.shape}")
    groups = group_numbers(songs, len(steps))

    def losses(rows: Rows) -> Array:
        """Of both models, `[2 (1 + sides + K) 2]`: nats and perplexity of all codebooks, each side, each codebook."""
        chosen = np.isin(groups, rows)
        books = sums[:, chosen].sum(axis=1) / np.maximum(steps[chosen].sum(axis=0), 1)  # [2, K]
        of_sides = [books[:, number :: len(sides)] for number in range(len(sides))]
        nats = np.concatenate([*(part.mean(axis=1, keepdims=True) for part in (books, *of_sides)), books], axis=1)
        return np.stack([nats, np.exp(nats)], axis=-1).ravel()

    known = Jackknife.of(losses, int(groups.max()) + 1)
    parts = [*sides, *(f"q{book + 1}" for book in range(steps.shape[1]))]
    keys = ["loss", "ppl", *(f"{name}_{part}" for part in parts for name in ("ce", "ppl"))]
    changes = []
    for number, key in enumerate(keys):
        before, after = np.zeros((2, 2 * len(keys)))
        before[number] = after[len(keys) + number] = 1
        changes.append(LossChange(key, *(known.estimate(weights) for weights in (before, after, after - before))))
    return changes
