"""What the searches for copies by codes and by sound share: names of clips, evidence, and the threshold of a copy.

Songs of one style resemble each other, and loops may even be equal. So a place counts as evidence only as far as one
recording explains it better than all others, and the strength that makes a copy is measured on the training songs:
crops as long as the query are compared with all *other* recordings.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.evaluation.result import Likeness

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

FALSE_ALARMS = 0.05  # share of reports that may flag a clip which is no copy
USUAL_TESTS = 72  # clips of a report, each by codes and by sound
BEYOND = 1.25  # times the highest strength of other songs, at most
LEAST_SECONDS = 2.0  # of a copy; less is a riff
FEW_SECONDS = 3.0  # of strength more, divided by the number of recordings: few don't have all that a style shares
MOST_OF_A_COPY = 0.75  # share of the strength of a whole copy that a threshold may be
CALIBRATION_CROPS, LEAST_CROPS = 64, 6  # of the training clips that are compared with other recordings
OUTSIDE = -1e6  # ends every run
SINGLE_SONG = "there is a single song, and nothing tells how alike songs of this style are"


@dataclass(frozen=True)
class TrainingClip:
    """The name of a clip's song, its start in the song in seconds, its file, and the recording that the song is.

    Songs that are the same recording have one `recording`; if it is empty, the song is a recording of its own.
    """

    song: str
    start: float
    file: str
    recording: str = ""


class Threshold(NamedTuple):
    """The strength of a copy in seconds; or, where none can be set, infinity and the reason."""

    strength: float
    reason: str = ""


class Match(NamedTuple):
    """What a search returns for a clip: the strongest likeness of two seconds or more, if there is one.

    `unchecked` is the reason why it can't be told whether that is a copy; empty if it can.
    """

    likeness: Likeness | None
    unchecked: str


class Run(NamedTuple):
    """The strongest stretch `begin` to `end` of all alignments; `row` is the alignment's number."""

    strength: float
    row: int
    begin: int
    end: int


class Crop(NamedTuple):
    """`length` units of a training clip, from `begin` on."""

    clip: int
    begin: int
    length: int


class Query(NamedTuple):
    """A clip's length and the strength of a whole copy, in seconds; and the number of tests in a report.

    Tests are clips times searches: they share `FALSE_ALARMS`.
    """

    seconds: float
    most: float
    tests: int


class Compared(NamedTuple):
    """The strength of a crop's likeness to other recordings, in seconds, and whether it is verbatim there."""

    strength: float
    is_verbatim: bool


def strongest_run(evidence: Array) -> Run:
    """The stretch of a row of `[C, T]` with the highest sum; of equal ones the first, and never an empty one."""
    sums = evidence.cumsum(axis=1)
    before = np.concatenate([np.zeros((len(sums), 1)), sums[:, :-1]], axis=1)
    gained = sums - np.minimum.accumulate(before, axis=1)
    row, last = np.unravel_index(gained.argmax(), gained.shape)
    begin = int(before[row, : last + 1].argmin())
    return Run(float(gained[row, last]), int(row), begin, int(last) + 1)


def best_of_others(scores: Array, recordings: Integers) -> Array:
    """For each alignment and moment the best score of all other recordings, `[C, T]`; 0 at least.

    What several recordings share, such as a loop or a sample, is explained as well by the others.

    Args:
        scores: of alignments, `[C, T]`.
        recordings: of each, `[C]`.
    """
    order = np.argsort(recordings, kind="stable")
    names, firsts = np.unique(recordings[order], return_index=True)
    best = np.maximum.reduceat(scores[order], firsts, axis=0)  # [R, T]
    if len(names) == 1:
        return np.zeros(scores.shape)
    winner = names[best.argmax(axis=0)]
    second, first = np.partition(best, len(names) - 2, axis=0)[-2:]
    return np.maximum(np.where(recordings[:, None] == winner, second, first), 0)


def least_strength(recordings: int) -> float:
    """The least strength of a copy, in seconds, among so many recordings."""
    return LEAST_SECONDS + FEW_SECONDS / recordings


def calibrate(crops: Sequence[Crop], query: Query, recordings: int, compare: Callable[[Crop], Compared]) -> Threshold:
    """The threshold of clips like `query`.

    Crops that have a verbatim copy in one other recording are left out: two songs that share a loop tell nothing about
    what clips have in common that share none.

    Args:
        crops: of the training clips, from `crops_of`.
        query: what is searched for.
        recordings: number of recordings.
        compare: a crop with the other recordings.
    """
    if recordings < 2:
        return Threshold(math.inf, SINGLE_SONG)
    least = least_strength(recordings)
    if MOST_OF_A_COPY * query.most < least:
        return Threshold(math.inf, f"clips of {query.seconds:.3g} s are too short to tell a copy from a riff")
    compared = [compare(crop) for crop in crops]
    strengths = [one.strength for one in compared if one.strength < LEAST_SECONDS or not one.is_verbatim]
    if len(strengths) < max(LEAST_CROPS, len(crops) / 2):
        few = "few" if len(crops) < LEAST_CROPS else "alike"
        return Threshold(math.inf, f"the songs are too {few} to tell what is usual among them")
    limit = max(least, copy_threshold(np.array(strengths), query.tests))
    if limit > MOST_OF_A_COPY * query.most:
        return Threshold(math.inf, f"the songs are too alike to recognise a copy in clips of {query.seconds:.3g} s")
    return Threshold(limit)


def copy_threshold(strengths: Array, tests: int = USUAL_TESTS) -> float:
    """The strength that is reached in `FALSE_ALARMS` of reports of so many tests, by crops of other songs `[N]`.

    The highest of many scores has a Gumbel distribution, here fitted to median and quartiles, which a few loops that
    two songs share don't change. At most `BEYOND` times the highest strength: the tail ends there, as strengths are
    bounded by the length of a clip.
    """
    low, middle, high = np.quantile(strengths, [0.25, 0.5, 0.75])

    def standard(share: float) -> float:
        return -math.log(-math.log(share))

    scale = (high - low) / (standard(0.75) - standard(0.25))
    fitted = middle + scale * (standard(1 - FALSE_ALARMS / tests) - standard(0.5))
    return float(min(fitted, BEYOND * strengths.max()))


def crops_of(lengths: Sequence[int], recordings: Integers, length: int) -> list[Crop]:
    """At most `CALIBRATION_CROPS` crops of training clips that overlap by half at most, spread over the recordings.

    Args:
        lengths: of the clips, in any unit.
        recordings: of each clip, `[N]`.
        length: of a crop; where all clips are shorter, the longest are taken.
    """
    length = min(length, max(lengths, default=0))
    taken: Counter[int] = Counter()
    turns = []
    for clip, available in enumerate(lengths):
        if available < length:
            continue
        count = 1 + 2 * (available - length) // max(length, 1)
        for begin in np.linspace(0, available - length, count).astype(int).tolist():
            turns.append((taken[int(recordings[clip])], Crop(clip, begin, length)))
            taken[int(recordings[clip])] += 1
    return sorted(crop for _, crop in sorted(turns)[:CALIBRATION_CROPS])


def likeness(clip: TrainingClip, *, clip_at: float, **rest: Any) -> Likeness:
    """A likeness to a training clip from `clip_at` seconds on; `rest` are its other fields."""
    return Likeness(song=clip.song, clip_file=clip.file, clip_at=clip_at, song_at=clip.start + clip_at, **rest)


def check_clips(training: Sequence[Any], clips: Sequence[TrainingClip]) -> None:
    """Raises UserError where there are no training clips."""
    if not clips or not training:
        raise UserError("there are no training clips to compare with; give the folder that the run was trained on")
    if len(training) != len(clips):
        raise ValueError(f"{len(training)} training clips, but names for {len(clips)}")


def recording_numbers(clips: Sequence[TrainingClip]) -> Integers:
    """The number of each clip's recording, `[N]`."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(clip.recording or clip.song, len(numbers)) for clip in clips])


def heaviest(keys: Integers, weights: Array, most: int) -> Integers:
    """The keys of at most so many of the heaviest; of equal ones the first."""
    return keys[np.argsort(-weights, kind="stable")[:most]]
