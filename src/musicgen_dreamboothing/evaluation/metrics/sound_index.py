"""The training clip that a generated clip is nearest to by its sound."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from musicgen_dreamboothing.audio import Wave
from musicgen_dreamboothing.console import progress_bar
from musicgen_dreamboothing.evaluation.metrics import copies, semitones
from musicgen_dreamboothing.evaluation.metrics.copies import (
    Array,
    Compared,
    Crop,
    Integers,
    Match,
    Query,
    Run,
    Threshold,
    TrainingClip,
)
from musicgen_dreamboothing.evaluation.metrics.semitones import STEPS_HZ, VARIANTS, WINDOW, Floats, Variant

SOUND = "sound"

HOP = STEPS_HZ // 2  # steps between windows of a query: 0.5 s
COARSE = STEPS_HZ // 5  # steps between windows of the training clips that select the clips to align
CLOSEST = 16  # clips and variants that are aligned, and half as many of other recordings
FULL = 0.5  # Fisher's z above that of other recordings, from which evidence is hardly stronger
VERBATIM = 0.97  # mean cosine of a run from which songs have material in common
BLOCK = 16_384  # windows of training clips that are compared at once
CACHED_CLIPS = 256  # whose windows are kept


class _Candidate(NamedTuple):
    """A training clip, and the variant of the query that is compared with it."""

    clip: int
    variant: int


class _Aligned(NamedTuple):
    """The strongest run, in seconds; its candidate; the windows of that clip, and the cosines with them."""

    run: Run
    candidate: _Candidate
    steps: Integers
    cosines: Floats


class SoundIndex:
    """An index of training clips by windows of 3 s of their spectrograms; see `semitones`.

    The query is compared in `VARIANTS`: transposed up to two semitones, and 5 % slower or faster. Its windows are
    compared with those of all training clips, and the closest clips are aligned. The evidence of a pair of windows is
    how much closer they are, by Fisher's z of the cosine, than the query's window is to any other recording: the ratio
    test of Lowe (2004), "Distinctive image features from scale-invariant keypoints", section 7.1. What several
    recordings share is no evidence. The strength of a stretch is the sum of its evidence in seconds.

    Args:
        spectra: of each training clip, from `semitones.spectrogram`.
        clips: the name of each.
        tests: number of clips times searches in a report; see `copies.calibrate`.

    Raises:
        UserError: there is no training clip.
    """

    def __init__(
        self, spectra: Sequence[NDArray[Any]], clips: Sequence[TrainingClip], tests: int = copies.USUAL_TESTS
    ) -> None:
        copies.check_clips(spectra, clips)
        self._spectra, self._clips, self._tests = spectra, clips, tests
        self._recordings = copies.recording_numbers(clips)
        self._thresholds: dict[int, Threshold] = {}
        coarse = [semitones.windows(self._shapes(number), self._starts(number, COARSE)) for number in range(len(clips))]
        self._ends = np.cumsum([len(rows) for rows in coarse])
        self._firsts = np.concatenate([[0], self._ends[:-1]])
        self._coarse = np.concatenate(coarse)  # [N, P]
        self._windows_of = lru_cache(CACHED_CLIPS)(self._all_windows)

    def _shapes(self, number: int) -> Floats:
        return semitones.shapes(self._spectra[number].astype(np.float32))

    def _starts(self, number: int, hop: int) -> Integers:
        return np.arange(0, max(1, len(self._spectra[number]) - WINDOW + 1), hop)

    def _all_windows(self, number: int) -> Floats:
        return semitones.windows(self._shapes(number), self._starts(number, 1))

    def threshold(self, steps: int) -> Threshold:
        """The strength from which a likeness of a clip of so many steps of the spectrogram is a copy."""
        if steps not in self._thresholds:
            crops = copies.crops_of([len(spectra) for spectra in self._spectra], self._recordings, max(1, steps - 1))
            query = Query((steps - 1) / STEPS_HZ, _count(steps) * HOP / STEPS_HZ, self._tests)
            self._thresholds[steps] = copies.calibrate(crops, query, len(set(self._recordings)), self._compared)
        return self._thresholds[steps]

    def _compared(self, crop: Crop) -> Compared:
        spectra = self._spectra[crop.clip][crop.begin : crop.begin + crop.length].astype(np.float32)
        aligned = self._run(_query(spectra), self._recordings != self._recordings[crop.clip])
        return Compared(aligned.run.strength, float(aligned.cosines.mean()) >= VERBATIM)

    def search(self, generated: Iterable[tuple[Wave, int]]) -> list[Match]:
        """The match of each clip, in order; waves are read one by one."""
        bar = progress_bar(generated, unit="clip", desc="comparing sounds", leave=False)
        return [self.nearest(*sound) for sound in bar]

    def nearest(self, wave: Wave, rate: int) -> Match:
        """Where a wave `[C, S]` is most like a training clip."""
        spectra = semitones.spectrogram(wave, rate)
        threshold = self.threshold(len(spectra))
        aligned = self._run(_query(spectra), np.ones(len(self._clips), bool))
        run, clip = aligned.run, aligned.candidate.clip
        speed = VARIANTS[aligned.candidate.variant].speed
        covered = (run.end - run.begin - 1) * HOP / STEPS_HZ + semitones.WINDOW_SECONDS / speed
        seconds = min(covered, wave.shape[1] / rate)
        if seconds < copies.LEAST_SECONDS or run.strength <= 0:
            return Match(None, threshold.reason)
        likeness = copies.likeness(
            self._clips[clip],
            at=run.begin * HOP / STEPS_HZ,
            clip_at=float(aligned.steps[0]) / STEPS_HZ,
            seconds=seconds,
            score=float(np.clip(aligned.cosines.mean(), 0, 1)),
            strength=run.strength,
            by=SOUND,
            is_copy=run.strength >= threshold.strength,
        )
        return Match(likeness, threshold.reason)

    def _run(self, query: Floats, allowed: NDArray[np.bool_]) -> _Aligned:
        """The strongest run of all candidates; `query` are windows of each variant, `[V, W, P]`."""
        candidates = self._candidates(query, allowed)
        cosines = [query[candidate.variant] @ self._windows_of(candidate.clip).T for candidate in candidates]
        closest = np.stack([_fisher_z(rows.max(axis=1)) for rows in cosines])  # [C, W]
        others = copies.best_of_others(closest, self._recordings[[candidate.clip for candidate in candidates]])
        runs = [_align(*row) for row in zip(candidates, cosines, others, strict=True)]
        return max(runs, key=lambda aligned: aligned.run.strength)

    def _candidates(self, query: Floats, allowed: NDArray[np.bool_]) -> list[_Candidate]:
        """The closest clips and variants, and the closest ones of other recordings than the very closest."""
        per_clip = self._per_clip(query[:, ::2])  # [V, W, clips], a window each second
        most = np.sort(per_clip, axis=1)[:, per_clip.shape[1] // 2 :].mean(axis=1)  # of the closer half of windows
        most[:, ~allowed] = -np.inf
        variants = most.argmax(axis=0)
        scores, clips = most.max(axis=0), np.flatnonzero(allowed)
        is_other = self._recordings[clips] != self._recordings[scores.argmax()]
        chosen = [copies.heaviest(clips, scores[clips], CLOSEST)]
        chosen.append(copies.heaviest(clips[is_other], scores[clips[is_other]], CLOSEST // 2))
        return [_Candidate(clip, int(variants[clip])) for clip in np.unique(np.concatenate(chosen)).tolist()]

    def _per_clip(self, query: Floats) -> Floats:
        """How close each window of each variant is to the closest one of each clip, `[V, W, clips]`."""
        rows = query.reshape(-1, query.shape[-1])
        blocks = []
        first = 0
        while first < len(self._clips):
            last = max(first + 1, int(np.searchsorted(self._ends, self._firsts[first] + BLOCK, side="right")))
            begin, end = self._firsts[first], self._ends[last - 1]
            blocks.append(
                np.maximum.reduceat(rows @ self._coarse[begin:end].T, self._firsts[first:last] - begin, axis=1)
            )
            first = last
        return np.concatenate(blocks, axis=1).reshape(*query.shape[:2], -1)


def _query(spectra: Floats) -> Floats:
    """Windows of each variant of a spectrogram, `[V, W, P]`, that begin at the same moments."""
    count = _count(len(spectra))
    return np.stack([semitones.windows(semitones.shapes(spectra, one), _moments(count, one)) for one in VARIANTS])


def _count(steps: int) -> int:
    """The number of windows that lie in all variants of so many steps; one at least."""
    slowest = min(semitones.SPEEDS)
    return 1 + max(0, int(((steps - 1) * slowest - WINDOW) // (HOP * slowest)))


def _moments(count: int, variant: Variant) -> Integers:
    return np.round(np.arange(count) * HOP * variant.speed).astype(np.int64)


def _align(candidate: _Candidate, cosines: Floats, others: Array) -> _Aligned:
    """The strongest run at any offset.

    Args:
        candidate: a clip and a variant.
        cosines: of the query's windows with all of the clip, `[W, N]`.
        others: Fisher's z of the closest window of other recordings, `[W]`.
    """
    moments = _moments(len(cosines), VARIANTS[candidate.variant])
    offsets = np.arange(-moments[-1], cosines.shape[1])
    steps = offsets[:, None] + moments  # [offsets, W]
    inside = (steps >= 0) & (steps < cosines.shape[1])
    rows = np.arange(len(cosines))
    evidence = np.tanh((_fisher_z(cosines)[rows, np.where(inside, steps, 0)] - others) / FULL) * HOP / STEPS_HZ
    run = copies.strongest_run(np.where(inside, evidence, copies.OUTSIDE))
    chosen = steps[run.row, run.begin : run.end]
    return _Aligned(run, candidate, chosen, cosines[rows[run.begin : run.end], chosen])


def _fisher_z(cosines: Floats) -> Array:
    return np.arctanh(np.clip(cosines, -0.9999, 0.9999), dtype=np.float64)
