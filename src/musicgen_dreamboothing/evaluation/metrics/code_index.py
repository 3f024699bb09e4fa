"""The training clip that a generated clip is nearest to by its codes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from musicgen_dreamboothing.console import UserError, progress_bar
from musicgen_dreamboothing.evaluation.metrics import copies
from musicgen_dreamboothing.evaluation.metrics.copies import (
    Array,
    Compared,
    Crop,
    Integers,
    Match,
    Query,
    Threshold,
    TrainingClip,
)

Codes = NDArray[Any]  # integers [K, T], without delay

CODES = "codes"

WINDOW_SECONDS = 3.0  # in which shared n-grams are counted
BLUR_SECONDS = 1.0  # over which the ratios of codes are summed
NEAR = 0.7  # share of a near-copy's codes that agree; more in the first codebooks, less in the last
UNKNOWN_CHANCE = 0.3  # the same of other songs where that can't be measured: much, as with one drum machine
VERBATIM = 0.9  # share of codes that agree, from which songs have material in common
FULL = 0.5  # of the highest log-likelihood ratio, from which evidence is not stronger
NEIGHBOURS = 8  # alignments of each window that are compared frame by frame, and as many of other recordings
MOST_HITS = 1 << 16  # of a window's n-grams; the commonest are left out beyond that


class _Alignments(NamedTuple):
    """Numbers of training clips `[C]`, and offsets `[C]` in frames at which the query is laid over them."""

    clips: Integers
    offsets: Integers


class _Found(NamedTuple):
    """A training clip's number; where the likeness begins in query and clip, its length and strength, in seconds."""

    clip: int
    at: float
    clip_at: float
    seconds: float
    score: float
    strength: float


class CodeIndex:
    """An index of training clips by pairs of successive codes, each codebook for itself.

    A query counts, for every clip and every offset in time, the pairs it shares with windows of the query; rare pairs
    count more. At the best alignments all codes are compared frame by frame: each has a log-likelihood ratio of a
    near-copy (`NEAR` of its codes agree) against another song of the style (measured on the training songs). Codes that
    repeat the last frame's, as in silence or a held tone, count 0. The score of a frame is the mean ratio of the second
    around it, 1 from `FULL` of the highest ratio on; the evidence is that score less the best one of other recordings.
    The strength of a stretch is the sum of its evidence in seconds: a verbatim copy of 4 s has 4 s, and a loop that
    several recordings share has 0 s.

    Args:
        codes: of each training clip, `[K, T]` without delay.
        clips: the name of each.
        frame_rate: frames a second.
        tests: number of clips times searches in a report; see `copies.calibrate`.

    Raises:
        UserError: there is no training clip, or clips have different numbers of codebooks.
    """

    def __init__(
        self,
        codes: Sequence[Codes],
        clips: Sequence[TrainingClip],
        frame_rate: float,
        tests: int = copies.USUAL_TESTS,
    ) -> None:
        copies.check_clips(codes, clips)
        if len({len(clip) for clip in codes}) > 1:
            raise UserError("training clips have different numbers of codebooks; run prepare again for one checkpoint")
        self._clips, self._rate, self._tests = clips, frame_rate, tests
        self._recordings = copies.recording_numbers(clips)
        self._codes = np.concatenate(codes, axis=1).astype(np.int32)  # [K, N]
        self._lengths = [clip.shape[1] for clip in codes]
        self._ends = np.cumsum(self._lengths)
        self._starts = self._ends - self._lengths
        self._owners = np.repeat(np.arange(len(clips)), self._lengths)  # the clip of each frame, [N]
        self._base = int(self._codes.max(initial=0)) + 2
        self._thresholds: dict[int, Threshold] = {}
        self._build()
        self._gains, self._costs = self._weights(np.full(len(self._codes), UNKNOWN_CHANCE))
        if len(set(self._recordings)) > 1:
            self._measure_chance()

    def _build(self) -> None:
        grams, frames = self._pairs(self._codes)
        is_inside = frames + 1 < self._ends[self._owners[frames]]
        grams, frames = grams[is_inside], frames[is_inside]
        order = np.argsort(grams, kind="stable")
        self._grams, self._places = grams[order], frames[order].astype(np.int32)

    def _pairs(self, codes: NDArray[np.int32]) -> tuple[Integers, Integers]:
        """Pairs of successive codes that differ: a number for each pair in its codebook, and its first frame."""
        book, frame = np.nonzero(codes[:, 1:] != codes[:, :-1])
        first, second = codes[book, frame].astype(np.int64), codes[book, frame + 1].astype(np.int64)
        return (book * self._base + first) * self._base + second, frame

    def _weights(self, chance: Array) -> tuple[Array, Array]:
        """Log-likelihood ratios of a code that agrees, and negative ones of a code that differs, both `[K]`."""
        chance = np.clip(chance, 0.01, 0.9 * NEAR)
        return np.log(NEAR / chance), np.log((1 - chance) / (1 - NEAR))

    def _measure_chance(self) -> None:
        """Measures how many codes of other recordings agree where most do."""
        crops = copies.crops_of(self._lengths, self._recordings, round(3 * WINDOW_SECONDS * self._rate))
        queries = [(self._crop(crop), self._recordings[crop.clip]) for crop in crops]
        shares = [self._agreement(query, self._alignments(query, recording)) for query, recording in queries]
        self._gains, self._costs = self._weights(np.median(shares, axis=0))

    def _crop(self, crop: Crop) -> NDArray[np.int32]:
        begin = self._starts[crop.clip] + crop.begin
        return self._codes[:, begin : begin + crop.length]

    def threshold(self, frames: int) -> Threshold:
        """The strength from which a likeness of a clip of so many frames is a copy.

        With a single song it is the least one: more than any other song of one drum machine would have.
        """
        if frames not in self._thresholds:
            self._thresholds[frames] = self._calibrated(frames)
        return self._thresholds[frames]

    def _calibrated(self, frames: int) -> Threshold:
        seconds, recordings = frames / self._rate, len(set(self._recordings))
        least = copies.least_strength(recordings)
        if recordings == 1 and copies.MOST_OF_A_COPY * seconds >= least:
            return Threshold(least)
        crops = copies.crops_of(self._lengths, self._recordings, frames)
        return copies.calibrate(crops, Query(seconds, seconds, self._tests), recordings, self._compared)

    def _compared(self, crop: Crop) -> Compared:
        found = self._found(self._crop(crop), self._recordings[crop.clip])
        return Compared(found.strength, found.score >= VERBATIM)

    def search(self, generated: Iterable[Codes]) -> list[Match]:
        """The match of each clip, in order."""
        return [
            self.nearest(codes) for codes in progress_bar(generated, unit="clip", desc="comparing codes", leave=False)
        ]

    def nearest(self, codes: Codes) -> Match:
        """Where codes `[K, T]` are most like a training clip.

        Raises:
            UserError: they have another number of codebooks, or no frames.
        """
        if len(codes) != len(self._codes) or not codes.shape[1]:
            raise UserError(
                f"codes of shape {list(codes.shape)} can't be compared with training clips of {len(self._codes)} "
                "codebooks; generate with the checkpoint that the clips were prepared for"
            )
        threshold = self.threshold(codes.shape[1])
        found = self._found(codes.astype(np.int32))
        if found.seconds < copies.LEAST_SECONDS or found.strength <= 0:
            return Match(None, threshold.reason)
        likeness = copies.likeness(
            self._clips[found.clip],
            at=found.at,
            clip_at=found.clip_at,
            seconds=found.seconds,
            score=found.score,
            strength=found.strength,
            by=CODES,
            is_copy=found.strength >= threshold.strength,
        )
        return Match(likeness, threshold.reason)

    def _found(self, query: NDArray[np.int32], without: int | None = None) -> _Found:
        """Where codes are most like a training clip, except those of the recording `without`."""
        run, alignments = self._run(query, without)
        clip, offset = int(alignments.clips[run.row]), int(alignments.offsets[run.row])
        best = _Alignments(np.array([clip]), np.array([offset]))
        exact = copies.strongest_run(self._ratios(query, best)[0][:, run.begin : run.end])  # not blurred
        begin, end = run.begin + exact.begin, run.begin + exact.end
        score = float(self._agree(query, best)[0][:, 0, begin:end].mean())
        at, clip_at, end_at = (frame / self._rate for frame in (begin, begin + offset, end))
        return _Found(clip, at, clip_at, end_at - at, score, run.strength)

    def _alignments(self, query: NDArray[np.int32], without: int | None = None) -> _Alignments:
        """Where windows of the query share most, and where they share most with another recording than that one.

        `without` leaves a recording out.
        """
        length = query.shape[1]
        window = round(WINDOW_SECONDS * self._rate)
        windows = [self._shared(query, begin, window, without) for begin in range(0, length, max(1, window // 2))]
        everywhere = _summed(*(np.concatenate(column) for column in zip(*windows, strict=True)))
        firsts = self._starts + np.arange(len(self._clips)) * length
        chosen = []
        for keys, weights in [*windows, everywhere]:
            recordings = self._recordings[np.searchsorted(firsts, keys, side="right") - 1]
            is_other = recordings != recordings[weights.argmax()] if len(keys) else np.zeros(0, bool)
            chosen.append(copies.heaviest(keys, weights, NEIGHBOURS))
            chosen.append(copies.heaviest(keys[is_other], weights[is_other], NEIGHBOURS))
        bands = np.unique(np.concatenate(chosen))
        if not len(bands):  # nothing is shared
            return _Alignments(np.flatnonzero(self._recordings != without)[:1], np.zeros(1, np.int64))
        clips = np.searchsorted(firsts, bands, side="right") - 1
        return _Alignments(clips, bands - firsts[clips] - length)

    def _shared(self, query: NDArray[np.int32], begin: int, window: int, without: int | None) -> tuple[Integers, Array]:
        """Alignments at which a window of the query shares pairs with a clip, and how much they count, `[A]`.

        Each is one number: every clip has numbers for all its offsets, those before its beginning as well.
        """
        hits, weights = self._hits(query[:, begin : begin + window], without)
        return _summed(hits[0] + (self._owners[hits[0]] + 1) * query.shape[1] - (hits[1] + begin), weights)

    def _hits(self, window: NDArray[np.int32], without: int | None) -> tuple[Integers, Array]:
        """Where pairs of a window stand among the training codes: both frames `[2, H]`, and how rare they are `[H]`."""
        grams, frames = self._pairs(window)
        low, high = np.searchsorted(self._grams, grams, "left"), np.searchsorted(self._grams, grams, "right")
        counts = high - low
        order = np.argsort(counts, kind="stable")
        order = order[(counts[order] > 0) & (counts[order].cumsum() <= MOST_HITS)]
        counts = counts[order]
        steps = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
        places = self._places[np.repeat(low[order], counts) + steps].astype(np.int64)
        weights = np.repeat(np.log(1 + self._codes.shape[1] / np.maximum(counts, 1)), counts)
        hits = np.stack([places, np.repeat(frames[order], counts)])
        if without is None:
            return hits, weights
        allowed = self._recordings[self._owners[places]] != without
        return hits[:, allowed], weights[allowed]

    def _agree(self, query: NDArray[np.int32], alignments: _Alignments) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which codes agree `[K, C, T]`, and which frames lie in the training clip `[C, T]`."""
        starts, ends = self._starts[alignments.clips, None], self._ends[alignments.clips, None]
        places = starts + alignments.offsets[:, None] + np.arange(query.shape[1])
        inside = (places >= starts) & (places < ends)
        return inside & (self._codes[:, np.where(inside, places, 0)] == query[:, None]), inside

    def _agreement(self, query: NDArray[np.int32], alignments: _Alignments) -> Array:
        """How much of each codebook agrees at the alignment where most does, `[K]`."""
        agree, inside = self._agree(query, alignments)
        most = agree.sum(axis=(0, 2)).argmax()
        return agree[:, most].sum(axis=1) / max(1, int(inside[most].sum()))

    def _ratios(self, query: NDArray[np.int32], alignments: _Alignments) -> tuple[Array, NDArray[np.bool_]]:
        """The log-likelihood ratio of a copy for each frame, in nats, and which frames lie in the clip, `[C, T]`."""
        agree, inside = self._agree(query, alignments)
        new = np.diff(query, axis=1, prepend=-1) != 0
        ratios = np.where(agree, self._gains[:, None, None], -self._costs[:, None, None]) * new[:, None]
        return ratios.sum(axis=0) * inside, inside

    def _run(self, query: NDArray[np.int32], without: int | None = None) -> tuple[copies.Run, _Alignments]:
        """The strongest run, in seconds, and the alignments that it is one of."""
        alignments = self._alignments(query, without)
        ratios, inside = self._ratios(query, alignments)
        around = round(BLUR_SECONDS * self._rate / 2)
        sums = np.pad(ratios, ((0, 0), (around + 1, around))).cumsum(axis=1)
        blurred = (sums[:, 2 * around + 1 :] - sums[:, : -2 * around - 1]) / (2 * around + 1)
        scores = np.clip(blurred / (FULL * self._gains.sum()), -1, 1)
        outside = np.where(inside, scores, -1)
        evidence = scores - copies.best_of_others(outside, self._recordings[alignments.clips])
        evidence += 0.01 * blurred / self._gains.sum()  # which decides between alignments of one strength
        run = copies.strongest_run(np.where(inside, evidence / self._rate, copies.OUTSIDE))
        return run, alignments


def _summed(keys: Integers, weights: Array) -> tuple[Integers, Array]:
    """Keys, each once, and the sums of their weights."""
    order = np.argsort(keys, kind="stable")
    keys, weights = keys[order], weights[order]
    firsts = np.flatnonzero(np.diff(keys, prepend=-1))
    return keys[firsts], np.add.reduceat(weights, firsts) if len(firsts) else weights
