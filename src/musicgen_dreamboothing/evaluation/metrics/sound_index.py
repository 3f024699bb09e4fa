"""The training clip that a generated clip is nearest to by its sound."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from musicgen_dreamboothing.audio import Wave
from musicgen_dreamboothing.console import progress_bar
from musicgen_dreamboothing.evaluation.metrics import copies
from musicgen_dreamboothing.evaluation.metrics.copies import Array, Integers, Run, TrainingClip
from musicgen_dreamboothing.evaluation.metrics.embedding import Embedder
from musicgen_dreamboothing.evaluation.result import Likeness

EMBEDDING = "embedding"

HOP_SECONDS = 0.5  # between windows of a query
CLOSEST_CLIPS = 32  # whose windows are aligned


def nearest_by_embedding(
    generated: Iterable[tuple[Wave, int]],
    training: Iterable[tuple[Wave, int]],
    clips: Sequence[TrainingClip],
    embedder: Embedder,
) -> list[Likeness]:
    """The likeness of each generated clip, in order, by sound; see `WindowIndex`. Waves are read one by one."""
    index = WindowIndex(training, clips, embedder)
    return [
        index.nearest(*sound) for sound in progress_bar(generated, unit="clip", desc="comparing sounds", leave=False)
    ]


class WindowIndex:
    """An index of training clips by embeddings of their windows.

    Windows of 3 s (as in Barnett et al. 2024, "Exploring musical roots", https://arxiv.org/abs/2401.14542) of the query
    are compared with all windows of the training clips, and those of the closest clips are aligned. A pair votes for a
    copy if it is more alike, by Fisher's z of the cosine, than three of four windows of a song are to the nearest one
    of all other songs, and against it if it is less. The stretch of aligned windows with the highest sum of votes wins;
    its strength is that sum times the seconds between windows.

    Args:
        waves: of each training clip, `[C, S]`, with its rate in Hz; read one by one. Best as decoded by the codec, like
            generated clips: its colour would count as a difference.
        clips: the name of each.
        embedder: of the windows.

    Attributes:
        threshold: strength from which a likeness is a copy; infinite where a single song can't tell what is usual.

    Raises:
        UserError: there is no training clip.
    """

    def __init__(
        self,
        waves: Iterable[tuple[Wave, int]],
        clips: Sequence[TrainingClip],
        embedder: Embedder,
    ) -> None:
        self._clips, self._embedder = clips, embedder
        self._phases = max(1, round(HOP_SECONDS / embedder.step_seconds))  # training windows within a hop
        bar: Iterable[tuple[Wave, int]]
        bar = progress_bar(waves, total=len(clips), unit="clip", desc="embedding training clips", leave=False)
        rows = [self._windows(*sound, HOP_SECONDS / self._phases) for sound in bar]
        copies.check_clips(rows, clips)
        self._songs = copies.song_numbers(clips)
        self._ends = np.cumsum([len(clip) for clip in rows])
        self._starts = np.concatenate([[0], self._ends[:-1]])
        self._rows = np.concatenate(rows)  # [N, P]
        self._usual, self._spread, self.threshold = 0.0, 1.0, math.inf
        if len(set(self._songs)) > 1:
            self._calibrate()

    def _windows(self, wave: Wave, rate: int, hop_seconds: float) -> NDArray[np.float32]:
        rows, _ = self._embedder.embed_windows(wave, rate, copies.WINDOW_SECONDS, hop_seconds)
        return rows.astype(np.float32)

    def _calibrate(self) -> None:
        queries = copies.evenly_spread(len(self._clips), copies.CALIBRATION_CLIPS)
        lookups = [(self._clip(query)[:: self._phases], self._songs != self._songs[query]) for query in queries]
        best = np.concatenate([self._per_clip(query)[:, others].max(axis=1) for query, others in lookups])
        low, self._usual = np.quantile(best, [0.25, 0.75])
        self._spread = max(self._usual - low, 1e-3)
        strengths = [self._run(*lookup)[0].strength for lookup in lookups]
        self.threshold = copies.copy_threshold(np.array(strengths))

    def _clip(self, number: int) -> NDArray[np.float32]:
        return self._rows[self._starts[number] : self._ends[number]]

    def nearest(self, wave: Wave, rate: int) -> Likeness:
        """Where a wave `[C, S]` is most like a training clip."""
        query = self._windows(wave, rate, HOP_SECONDS)
        run, clip, windows = self._run(query, np.ones(len(self._clips), bool))
        at, clip_at = run.begin * HOP_SECONDS, float(windows[0]) * HOP_SECONDS / self._phases
        cosines = (query[run.begin : run.end] * self._clip(clip)[windows]).sum(axis=1)
        return copies.likeness(
            self._clips[clip],
            at=at,
            clip_at=clip_at,
            seconds=(run.end - run.begin - 1) * HOP_SECONDS + copies.WINDOW_SECONDS,
            score=float(np.clip(cosines.mean(), 0, 1)),
            by=EMBEDDING,
            is_copy=run.strength >= self.threshold,
        )

    def _per_clip(self, query: NDArray[np.float32]) -> Array:
        """How close each window is to the closest one of each clip, `[W, clips]`."""
        return _fisher_z(np.maximum.reduceat(query @ self._rows.T, self._starts, axis=1))

    def _run(self, query: NDArray[np.float32], allowed: NDArray[np.bool_]) -> tuple[Run, int, Integers]:
        """The strongest run, the clip it is in, and the numbers of that clip's windows."""
        closeness = self._per_clip(query)[:, allowed].max(axis=0)
        numbers, _ = copies.heaviest(np.flatnonzero(allowed), closeness, CLOSEST_CLIPS)
        runs = [(self._run_in(query, number), number) for number in numbers.tolist()]
        (run, windows), number = max(runs, key=lambda found: found[0][0].strength)
        return run, number, windows

    def _run_in(self, query: NDArray[np.float32], number: int) -> tuple[Run, Integers]:
        """The strongest run in one clip and its windows: all offsets, in steps of the training windows."""
        rows = self._clip(number)
        steps = np.arange(len(query)) * self._phases
        offsets = np.arange(-steps[-1], len(rows))
        windows = offsets[:, None] + steps  # [offsets, W]
        inside = (windows >= 0) & (windows < len(rows))
        closeness = _fisher_z(query @ rows.T)[np.arange(len(query)), np.where(inside, windows, 0)]
        votes = np.tanh((closeness - self._usual) / self._spread) * HOP_SECONDS
        run = copies.strongest_run(np.where(inside, votes, copies.OUTSIDE))
        return run, windows[run.row, run.begin : run.end]


def _fisher_z(cosines: NDArray[np.float32]) -> Array:
    return np.arctanh(np.clip(cosines, -0.9999, 0.9999), dtype=np.float64)
