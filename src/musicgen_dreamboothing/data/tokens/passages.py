"""Passages: clips that follow each other in a song without a gap, so that a piece may run from one into the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass
class Passage:
    """Clips that follow each other in a song without a gap: `(row, first frame, frames)`."""

    clips: list[tuple[int, int, int]]
    frames: int = 0


def find_passages(rows: Sequence[Mapping[str, Any]], frame_rate: float) -> list[tuple[Passage, int, int]]:
    """For each clip its passage, where it begins there, and its length, in frames.

    Args:
        rows: clips with `source`, and `start` and `seconds` in it.
        frame_rate: codec frames per second.
    """
    ordered = sorted(enumerate(rows), key=lambda pair: (pair[1]["source"], pair[1]["start"]))
    places: dict[int, tuple[Passage, int, int]] = {}
    passage, last = Passage([]), None
    for row, clip in ordered:
        follows = last is not None and clip["source"] == last[0] and abs(clip["start"] - last[1]) * frame_rate < 1
        if not follows:
            passage = Passage([])
        length = round(clip["seconds"] * frame_rate)
        passage.clips.append((row, passage.frames, length))
        places[row] = (passage, passage.frames, length)
        passage.frames += length
        last = (clip["source"], clip["start"] + clip["seconds"])
    return [places[row] for row in range(len(rows))]
