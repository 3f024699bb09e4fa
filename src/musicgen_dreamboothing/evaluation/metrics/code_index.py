"""The training clip that a generated clip is nearest to by its codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from musicgen_dreamboothing.console import UserError, progress_bar
from musicgen_dreamboothing.evaluation.metrics import copies
from musicgen_dreamboothing.evaluation.metrics.copies import Array, Integers, Run, TrainingClip
from musicgen_dreamboothing.evaluation.result import Likeness

Codes = NDArray[Any]  # integers [K, T], without delay

TOKENS = "tokens"

BLUR_SECONDS = 1.0  # over which the ratios of codes are summed
NEAR = 0.7  # share of a near-copy's codes that agree; more in the first codebooks, less in the last
UNKNOWN_CHANCE = 0.05  # the same of other songs, where there is a single song and it can't be measured
NEIGHBOURS, MOST_ALIGNMENTS = 8, 64  # of each window, and of a query, that are compared frame by frame
MOST_HITS = 1 << 16  # of a window's n-grams; the commonest are left out beyond that


def nearest_by_tokens(
    generated: Sequence[Codes], training: Sequence[Codes], clips: Sequence[TrainingClip], frame_rate: float
) -> list[Likeness]:
    """The likeness of each generated clip, in order, by codes `[K, T]` without delay; see `TokenIndex`.

    Seconds for 32 clips among 4 h of music, and a quarter of a GB.
    """
    index = TokenIndex(training, clips, frame_rate)
    return [index.nearest(codes) for codes in progress_bar(generated, unit="clip", desc="comparing codes", leave=False)]


class TokenIndex:
    """An index of training clips by pairs of successive codes, each codebook for itself.

    A query counts, for every clip and every offset in time, the pairs it shares with windows of the query; rare pairs
    count more. At the best alignments all codes are compared frame by frame: each has a log-likelihood ratio of a
    near-copy (`NEAR` of its codes agree) against another song of the style (measured on the training songs). Codes that
    repeat the last frame's, as in silence or a held tone, count 0. A frame votes +1 where the ratios of the second
    around it favour a copy, else -1. The strength of a stretch is the sum of its votes in seconds: single wrong
    codes don't weaken it, and a shared loop of 4 s has a strength of 4 s at most.

    Args:
        codes: of each training clip, `[K, T]` without delay.
        clips: the name of each.
        frame_rate: frames a second.

    Attributes:
        threshold: strength from which a likeness is a copy, in seconds.

    Raises:
        UserError: there is no training clip, or clips have different numbers of codebooks.
    """

    def __init__(self, codes: Sequence[Codes], clips: Sequence[TrainingClip], frame_rate: float) -> None:
        copies.check_clips(codes, clips)
        if len({len(clip) for clip in codes}) > 1:
            raise UserError("training clips have different numbers of codebooks; run prepare again for one checkpoint")
        self._clips, self._rate = clips, frame_rate
        self._songs = copies.song_numbers(clips)
        self._codes = np.concatenate(codes, axis=1).astype(np.int32)  # [K, N]
        lengths = np.array([clip.shape[1] for clip in codes])
        self._ends = lengths.cumsum()
        self._starts = self._ends - lengths
        self._base = int(self._codes.max(initial=0)) + 2
        self._build()
        self._gains, self._costs = self._weights(np.full(len(self._codes), UNKNOWN_CHANCE))
        self.threshold = copies.LEAST_SECONDS
        if len(set(self._songs)) > 1:
            self._calibrate()

    def _build(self) -> None:
        grams, frames = self._pairs(self._codes)
        clip = np.searchsorted(self._ends, frames, side="right")
        is_inside = frames + 1 < self._ends[clip]
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

    def _calibrate(self) -> None:
        """Measures on clips that are compared with other songs how many codes agree by chance, and for how long."""
        queries = copies.evenly_spread(len(self._clips), copies.CALIBRATION_CLIPS)
        lookups = [(self._clip(query), *self._alignments(self._clip(query), self._songs[query])) for query in queries]
        chance = np.median([self._agreement(*lookup) for lookup in lookups], axis=0)
        self._gains, self._costs = self._weights(chance)
        strengths = [self._run(*lookup).strength for lookup in lookups]
        self.threshold = copies.copy_threshold(np.array(strengths))

    def _clip(self, number: int) -> NDArray[np.int32]:
        return self._codes[:, self._starts[number] : self._ends[number]]

    def nearest(self, codes: Codes) -> Likeness:
        """Where codes `[K, T]` are most like a training clip.

        Raises:
            UserError: they have another number of codebooks, or no frames.
        """
        if len(codes) != len(self._codes) or not codes.shape[1]:
            raise UserError(
                f"codes of shape {list(codes.shape)} can't be compared with training clips of {len(self._codes)} "
                "codebooks; generate with the checkpoint that the clips were prepared for"
            )
        query = codes.astype(np.int32)
        clips, offsets = self._alignments(query)
        run = self._run(query, clips, offsets)
        clip, offset = clips[[run.row]], offsets[[run.row]]
        exact = copies.strongest_run(self._ratios(query, clip, offset)[0][:, run.begin : run.end])  # not blurred
        begin, end = run.begin + exact.begin, run.begin + exact.end
        return copies.likeness(
            self._clips[clip[0]],
            at=begin / self._rate,
            clip_at=(begin + int(offset[0])) / self._rate,
            seconds=(end - begin) / self._rate,
            score=float(self._agree(query, clip, offset)[0][:, 0, begin:end].mean()),
            by=TOKENS,
            is_copy=run.strength >= self.threshold,
        )

    def _alignments(self, query: NDArray[np.int32], without: int | None = None) -> tuple[Integers, Integers]:
        """Training clips `[C]` and offsets `[C]`, in frames, at which some window of the query shares most.

        `without` leaves a song out.
        """
        length = query.shape[1]
        window = round(copies.WINDOW_SECONDS * self._rate)
        windows = [self._shared(query, begin, window, without) for begin in range(0, length, max(1, window // 2))]
        everywhere = _summed(*(np.concatenate(column) for column in zip(*windows, strict=True)))
        best = [copies.heaviest(*shared, NEIGHBOURS) for shared in [*windows, everywhere]]
        bands, weights = (np.concatenate(column) for column in zip(*best, strict=True))
        if not len(bands):  # nothing is shared
            return np.flatnonzero(self._songs != without)[:1], np.zeros(1, np.int64)
        bands = np.unique(copies.heaviest(bands, weights, MOST_ALIGNMENTS)[0])
        firsts = self._starts + np.arange(len(self._clips)) * length
        clips = np.searchsorted(firsts, bands, side="right") - 1
        return clips, bands - firsts[clips] - length

    def _shared(self, query: NDArray[np.int32], begin: int, window: int, without: int | None) -> tuple[Integers, Array]:
        """Alignments at which a window of the query shares pairs with a clip, and how much they count, `[A]`.

        Each is one number: every clip has numbers for all its offsets, those before its beginning as well.
        """
        hits, weights = self._hits(query[:, begin : begin + window], without)
        clip = np.searchsorted(self._ends, hits[0], side="right")
        return _summed(hits[0] + (clip + 1) * query.shape[1] - (hits[1] + begin), weights)

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
        allowed = self._songs[np.searchsorted(self._ends, places, side="right")] != without
        return hits[:, allowed], weights[allowed]

    def _agree(
        self, query: NDArray[np.int32], clips: Integers, offsets: Integers
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which codes agree `[K, C, T]`, and which frames lie in the training clip `[C, T]`."""
        places = self._starts[clips, None] + offsets[:, None] + np.arange(query.shape[1])
        inside = (places >= self._starts[clips, None]) & (places < self._ends[clips, None])
        return inside & (self._codes[:, np.where(inside, places, 0)] == query[:, None]), inside

    def _agreement(self, query: NDArray[np.int32], clips: Integers, offsets: Integers) -> Array:
        """How much of each codebook agrees at the alignment where most does, `[K]`."""
        agree, inside = self._agree(query, clips, offsets)
        most = agree.sum(axis=(0, 2)).argmax()
        return agree[:, most].sum(axis=1) / max(1, int(inside[most].sum()))

    def _ratios(self, query: NDArray[np.int32], clips: Integers, offsets: Integers) -> tuple[Array, NDArray[np.bool_]]:
        """The log-likelihood ratio of a copy for each frame, in nats, and which frames lie in the clip, `[C, T]`."""
        agree, inside = self._agree(query, clips, offsets)
        new = np.diff(query, axis=1, prepend=-1) != 0
        ratios = np.where(agree, self._gains[:, None, None], -self._costs[:, None, None]) * new[:, None]
        return ratios.sum(axis=0) * inside, inside

    def _run(self, query: NDArray[np.int32], clips: Integers, offsets: Integers) -> Run:
        """The strongest run, in seconds."""
        ratios, inside = self._ratios(query, clips, offsets)
        around = round(BLUR_SECONDS * self._rate / 2)
        sums = np.pad(ratios, ((0, 0), (around + 1, around))).cumsum(axis=1)
        blurred = sums[:, 2 * around + 1 :] - sums[:, : -2 * around - 1]
        agreed = blurred / (self._gains.sum() * (2 * around + 1))  # 1 at most
        votes = np.where(agreed > 1e-9, 1, -1) + 0.01 * agreed  # which decides between alignments of one length
        return copies.strongest_run(np.where(inside, votes / self._rate, copies.OUTSIDE))


def _summed(keys: Integers, weights: Array) -> tuple[Integers, Array]:
    """Keys, each once, and the sums of their weights."""
    order = np.argsort(keys, kind="stable")
    keys, weights = keys[order], weights[order]
    firsts = np.flatnonzero(np.diff(keys, prepend=-1))
    return keys[firsts], np.add.reduceat(weights, firsts) if len(firsts) else weights
