"""What the search for copies by codes and by sound share: names of clips, the best stretch, the threshold of a copy.

Songs of one style resemble each other, and loops may even be equal. So the threshold is measured on the training songs:
some of their clips are compared with all *other* songs, and only a likeness that few of them reach is a copy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.evaluation.result import Likeness

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

FALSE_ALARMS = 0.01  # share of clips of other songs that may be flagged
BEYOND = 1.25  # times the highest strength of other songs, at most
LEAST_SECONDS = 2.0  # of a copy; less is a riff
CALIBRATION_CLIPS = 64  # that are compared with other songs
WINDOW_SECONDS = 3.0  # in which shared n-grams are counted, and that are embedded
OUTSIDE = -1e6  # ends every run


@dataclass(frozen=True)
class TrainingClip:
    """The name of a clip's song, its start in the song in seconds, and its file."""

    song: str
    start: float
    file: str


class Run(NamedTuple):
    """The strongest stretch `begin` to `end` of all alignments; `row` is the alignment's number."""

    strength: float
    row: int
    begin: int
    end: int


def strongest_run(speaks: Array) -> Run:
    """The stretch of a row of `[C, T]` with the highest sum; of equal ones the first, and never an empty one."""
    sums = speaks.cumsum(axis=1)
    before = np.concatenate([np.zeros((len(sums), 1)), sums[:, :-1]], axis=1)
    gained = sums - np.minimum.accumulate(before, axis=1)
    row, last = np.unravel_index(gained.argmax(), gained.shape)
    begin = int(before[row, : last + 1].argmin())
    return Run(float(gained[row, last]), int(row), begin, int(last) + 1)


def copy_threshold(strengths: Array) -> float:
    """The strength that only `FALSE_ALARMS` of clips of other songs reach, by the strengths `[N]` of some of them.

    The highest of many scores has a Gumbel distribution, here fitted to median and quartiles, which a few duplicate
    songs don't change. At least `LEAST_SECONDS`, and at most `BEYOND` times the highest strength: a fit to few songs
    could exceed the length of a clip.
    """
    low, middle, high = np.quantile(strengths, [0.25, 0.5, 0.75])

    def standard(share: float) -> float:
        return -math.log(-math.log(share))

    scale = (high - low) / (standard(0.75) - standard(0.25))
    fitted = middle + scale * (standard(1 - FALSE_ALARMS) - standard(0.5))
    return max(LEAST_SECONDS, float(min(fitted, BEYOND * strengths.max())))


def likeness(clip: TrainingClip, *, clip_at: float, **rest: Any) -> Likeness:
    """A likeness to a training clip from `clip_at` seconds on; `rest` are its other fields."""
    return Likeness(song=clip.song, clip_file=clip.file, clip_at=clip_at, song_at=clip.start + clip_at, **rest)


def check_clips(training: Sequence[Any], clips: Sequence[TrainingClip]) -> None:
    """Raises UserError where there are no training clips."""
    if not clips or not training:
        raise UserError("there are no training clips to compare with; give the folder that the run was trained on")
    if len(training) != len(clips):
        raise ValueError(f"{len(training)} training clips, but names for {len(clips)}")


def song_numbers(clips: Sequence[TrainingClip]) -> Integers:
    """The number of each clip's song, `[N]`."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(clip.song, len(numbers)) for clip in clips])


def evenly_spread(count: int, most: int) -> list[int]:
    """At most so many of the numbers below `count`, evenly spread."""
    numbers: list[int] = np.linspace(0, count - 1, min(count, most)).astype(int).tolist()
    return numbers


def heaviest(keys: Integers, weights: Array, most: int) -> tuple[Integers, Array]:
    """At most so many of the heaviest; of equal ones the first."""
    order = np.argsort(-weights, kind="stable")[:most]
    return keys[order], weights[order]
