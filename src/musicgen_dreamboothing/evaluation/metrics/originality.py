"""Is a generated clip a copy? The training clip it is most like, by its codes and by its sound.

Songs of one style resemble each other, and loops may even be equal. So what counts as a copy is measured on the
training songs themselves: some of their clips are looked up among all *other* songs, and only a likeness that hardly
any of them reaches is flagged. Knows arrays and names; what wrote the clips, or who shows the result, it doesn't.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from musicgen_dreamboothing.audio import Wave
from musicgen_dreamboothing.console import UserError, progress_bar
from musicgen_dreamboothing.evaluation.metrics.embedding import Embedder
from musicgen_dreamboothing.evaluation.result import Likeness

__all__ = [
    "EMBEDDING",
    "TOKENS",
    "TokenIndex",
    "TrainingClip",
    "WindowIndex",
    "nearest_by_embedding",
    "nearest_by_tokens",
]

Codes = NDArray[Any]  # integers [K, T], without delay
Array = NDArray[np.float64]
Integers = NDArray[np.int64]

TOKENS, EMBEDDING = "tokens", "embedding"

FALSE_ALARMS = 0.01  # of clips of other songs, how many may be flagged
BEYOND = 1.25  # times what any of them reaches, at most
LEAST_SECONDS = 2.0  # alike: less is a riff
CALIBRATION_CLIPS = 64  # that are looked up among other songs

BLUR_SECONDS = 1.0  # in which most codes must speak for a copy
NEAR = 0.7  # share of a near-copy's codes that agree; more in the first codebooks, less in the last
UNKNOWN_CHANCE = 0.05  # the same of clips that are none, where a single song can't tell
WINDOW_SECONDS = 3.0  # in which shared n-grams are counted, and that are embedded
NEIGHBOURS, MOST_ALIGNMENTS = 8, 64  # of each window, and of a query, that are looked at closely
MOST_HITS = 1 << 16  # of a window's n-grams; the commonest are left out beyond that
HOP_SECONDS = 0.5
CLOSEST_CLIPS = 32  # whose windows are aligned
OUTSIDE = -1e6  # ends every run


@dataclass(frozen=True)
class TrainingClip:
    """What a training clip is called.

    Attributes:
        song: name of the song.
        start: where the clip begins in it, in seconds.
        file: of the clip.
    """

    song: str
    start: float
    file: str


class _Run(NamedTuple):
    """The strongest stretch of all alignments."""

    strength: float
    row: int  # which alignment
    begin: int
    end: int


def nearest_by_tokens(
    generated: Sequence[Codes], training: Sequence[Codes], clips: Sequence[TrainingClip], frame_rate: float
) -> list[Likeness]:
    """The likeness of each generated clip, in order, by codes `[K, T]` without delay; see `TokenIndex`.

    Seconds for 32 clips among 4 h of music, and a quarter of a GB.
    """
    index = TokenIndex(training, clips, frame_rate)
    return [index.nearest(codes) for codes in progress_bar(generated, unit="clip", desc="comparing codes", leave=False)]


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


class TokenIndex:
    """Training clips by the pairs of successive codes in them, each codebook for itself.

    A look-up counts, for every clip and every offset in time, the pairs it shares with windows of the query; rare ones
    count more. Where most are shared, all codes of all codebooks are compared frame by frame. Each one that agrees
    speaks for a copy by the logarithm of how much likelier that is in a near-copy (`NEAR`) than between songs of the
    style, measured on the training songs; each one that differs speaks against it likewise. A code that only goes on,
    as in silence or a held tone, says nothing. A frame is alike where the second around it speaks for a copy, and the
    stretch wins in which most more frames are alike than not. That difference, in seconds, is its strength: wrong codes
    here and there don't weaken it, and a loop of 4 s that two songs share doesn't grow beyond 4 s.

    Args:
        codes: of each training clip, `[K, T]` without delay.
        clips: what each is called.
        frame_rate: frames a second.

    Attributes:
        threshold: strength from which a likeness is a copy, in seconds.
        is_calibrated: whether there are at least two songs to measure it on.

    Raises:
        UserError: there is no training clip, or clips have different numbers of codebooks.
    """

    def __init__(self, codes: Sequence[Codes], clips: Sequence[TrainingClip], frame_rate: float) -> None:
        _check(codes, clips)
        if len({len(clip) for clip in codes}) > 1:
            raise UserError("training clips have different numbers of codebooks; run prepare again for one checkpoint")
        self._clips, self._rate = clips, frame_rate
        self._songs = _song_numbers(clips)
        self._codes = np.concatenate(codes, axis=1).astype(np.int32)  # [K, N]
        lengths = np.array([clip.shape[1] for clip in codes])
        self._ends = lengths.cumsum()
        self._starts = self._ends - lengths
        self._base = int(self._codes.max(initial=0)) + 2
        self._build()
        self._gains, self._costs = self._weights(np.full(len(self._codes), UNKNOWN_CHANCE))
        self.threshold = LEAST_SECONDS
        self.is_calibrated = len(set(self._songs)) > 1
        if self.is_calibrated:
            self._calibrate()

    def _build(self) -> None:
        grams, frames = self._pairs(self._codes)
        clip = np.searchsorted(self._ends, frames, side="right")
        whole = frames + 1 < self._ends[clip]
        grams, frames = grams[whole], frames[whole]
        order = np.argsort(grams, kind="stable")
        self._grams, self._places = grams[order], frames[order].astype(np.int32)

    def _pairs(self, codes: NDArray[np.int32]) -> tuple[Integers, Integers]:
        """Pairs of successive codes that differ: a number for each pair in its codebook, and its first frame."""
        book, frame = np.nonzero(codes[:, 1:] != codes[:, :-1])
        first, second = codes[book, frame].astype(np.int64), codes[book, frame + 1].astype(np.int64)
        return (book * self._base + first) * self._base + second, frame

    def _weights(self, chance: Array) -> tuple[Array, Array]:
        """For each codebook what a code speaks for a copy if it agrees, and against it if not, in nats `[K]`."""
        chance = np.clip(chance, 0.01, 0.9 * NEAR)
        return np.log(NEAR / chance), np.log((1 - chance) / (1 - NEAR))

    def _calibrate(self) -> None:
        """Learns from clips that are looked up among other songs what agrees by chance, and how long."""
        queries = _evenly(len(self._clips), CALIBRATION_CLIPS)
        lookups = [(self._clip(query), *self._alignments(self._clip(query), self._songs[query])) for query in queries]
        chance = np.median([self._agreement(*lookup) for lookup in lookups], axis=0)
        self._gains, self._costs = self._weights(chance)
        strengths = [self._run(*lookup).strength for lookup in lookups]
        self.threshold = max(LEAST_SECONDS, _hardly_reached(np.array(strengths)))

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
        exact = _strongest(self._speaks(query, clip, offset)[0][:, run.begin : run.end])  # not blurred
        begin, end = run.begin + exact.begin, run.begin + exact.end
        return _likeness(
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
        window = round(WINDOW_SECONDS * self._rate)
        found = [self._shared(query, begin, window, without) for begin in range(0, length, max(1, window // 2))]
        everywhere = _summed(*(np.concatenate(column) for column in zip(*found, strict=True)))
        best = [_best(*shared, NEIGHBOURS) for shared in [*found, everywhere]]
        bands, weights = (np.concatenate(column) for column in zip(*best, strict=True))
        if not len(bands):  # nothing is shared
            return np.flatnonzero(self._songs != without)[:1], np.zeros(1, np.int64)
        bands = np.unique(_best(bands, weights, MOST_ALIGNMENTS)[0])
        firsts = self._starts + np.arange(len(self._clips)) * length
        clips = np.searchsorted(firsts, bands, side="right") - 1
        return clips, bands - firsts[clips] - length

    def _shared(self, query: NDArray[np.int32], begin: int, window: int, without: int | None) -> tuple[Integers, Array]:
        """Alignments at which a window of the query shares pairs with a clip, and how much they count, `[A]`.

        Each is one number: every clip has room for all its offsets, those before its beginning as well.
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
        kept = self._songs[np.searchsorted(self._ends, places, side="right")] != without
        return hits[:, kept], weights[kept]

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

    def _speaks(self, query: NDArray[np.int32], clips: Integers, offsets: Integers) -> tuple[Array, NDArray[np.bool_]]:
        """How much each frame speaks for a copy, in nats, and which frames can, `[C, T]`."""
        agree, inside = self._agree(query, clips, offsets)
        new = np.diff(query, axis=1, prepend=-1) != 0
        speaks = np.where(agree, self._gains[:, None, None], -self._costs[:, None, None]) * new[:, None]
        return speaks.sum(axis=0) * inside, inside

    def _run(self, query: NDArray[np.int32], clips: Integers, offsets: Integers) -> _Run:
        """The strongest run, in seconds."""
        speaks, inside = self._speaks(query, clips, offsets)
        around = round(BLUR_SECONDS * self._rate / 2)
        sums = np.pad(speaks, ((0, 0), (around + 1, around))).cumsum(axis=1)
        blurred = sums[:, 2 * around + 1 :] - sums[:, : -2 * around - 1]
        agreed = blurred / (self._gains.sum() * (2 * around + 1))  # 1 at most
        votes = np.where(agreed > 1e-9, 1, -1) + 0.01 * agreed  # which decides between alignments of one length
        return _strongest(np.where(inside, votes / self._rate, OUTSIDE))


class WindowIndex:
    """Training clips by the sound of their windows.

    Windows of 3 s (as in Barnett et al. 2024, "Exploring musical roots", https://arxiv.org/abs/2401.14542) of the query
    are compared with all windows of the training clips, and those of the closest clips are aligned. A pair votes for a
    copy if it is more alike, by Fisher's z of the cosine, than three of four windows of a song are to the nearest one
    of all other songs, and against it if it is less. The stretch of windows in step with the highest sum of votes wins;
    its strength are votes times seconds between windows.

    Args:
        waves: of each training clip, `[C, S]`, with its rate in Hz; read one by one. Best as the codec plays its
            codes, for so it plays generated clips too, and its colour would count as a difference.
        clips: what each is called.
        embedder: what hears them.
        hop_seconds: between windows of a query.

    Attributes:
        threshold: strength from which a likeness is a copy; infinite where a single song can't tell what is usual.
        is_calibrated: whether there are at least two songs.

    Raises:
        UserError: there is no training clip.
    """

    def __init__(
        self,
        waves: Iterable[tuple[Wave, int]],
        clips: Sequence[TrainingClip],
        embedder: Embedder,
        hop_seconds: float = HOP_SECONDS,
    ) -> None:
        self._clips, self._embedder, self._hop = clips, embedder, hop_seconds
        self._phases = max(1, round(hop_seconds / embedder.step_seconds))  # training windows within a hop
        bar: Iterable[tuple[Wave, int]]
        bar = progress_bar(waves, total=len(clips), unit="clip", desc="hearing training clips", leave=False)
        rows = [self._windows(*sound, hop_seconds / self._phases) for sound in bar]
        _check(rows, clips)
        self._songs = _song_numbers(clips)
        self._ends = np.cumsum([len(clip) for clip in rows])
        self._starts = np.concatenate([[0], self._ends[:-1]])
        self._rows = np.concatenate(rows)  # [N, P]
        self._usual, self._spread, self.threshold = 0.0, 1.0, math.inf
        self.is_calibrated = len(set(self._songs)) > 1
        if self.is_calibrated:
            self._calibrate()

    def _windows(self, wave: Wave, rate: int, hop_seconds: float) -> NDArray[np.float32]:
        rows, _ = self._embedder.embed_windows(wave, rate, WINDOW_SECONDS, hop_seconds)
        return rows.astype(np.float32)

    def _calibrate(self) -> None:
        queries = _evenly(len(self._clips), CALIBRATION_CLIPS)
        lookups = [(self._clip(query)[:: self._phases], self._songs != self._songs[query]) for query in queries]
        best = np.concatenate([self._per_clip(query)[:, others].max(axis=1) for query, others in lookups])
        low, self._usual = np.quantile(best, [0.25, 0.75])
        self._spread = max(self._usual - low, 1e-3)
        strengths = [self._run(*lookup)[0].strength for lookup in lookups]
        self.threshold = max(LEAST_SECONDS, _hardly_reached(np.array(strengths)))

    def _clip(self, number: int) -> NDArray[np.float32]:
        return self._rows[self._starts[number] : self._ends[number]]

    def nearest(self, wave: Wave, rate: int) -> Likeness:
        """Where a wave `[C, S]` is most like a training clip."""
        query = self._windows(wave, rate, self._hop)
        run, clip, windows = self._run(query, np.ones(len(self._clips), bool))
        at, clip_at = run.begin * self._hop, float(windows[0]) * self._hop / self._phases
        cosines = (query[run.begin : run.end] * self._clip(clip)[windows]).sum(axis=1)
        return _likeness(
            self._clips[clip],
            at=at,
            clip_at=clip_at,
            seconds=(run.end - run.begin - 1) * self._hop + WINDOW_SECONDS,
            score=float(np.clip(cosines.mean(), 0, 1)),
            by=EMBEDDING,
            is_copy=run.strength >= self.threshold,
        )

    def _per_clip(self, query: NDArray[np.float32]) -> Array:
        """How close each window is to the closest one of each clip, `[W, clips]`."""
        return _fisher_z(np.maximum.reduceat(query @ self._rows.T, self._starts, axis=1))

    def _run(self, query: NDArray[np.float32], allowed: NDArray[np.bool_]) -> tuple[_Run, int, Integers]:
        """The strongest run, the clip it is in, and the numbers of that clip's windows."""
        numbers, _ = _best(np.flatnonzero(allowed), self._per_clip(query)[:, allowed].max(axis=0), CLOSEST_CLIPS)
        runs = [(self._run_in(query, number), number) for number in numbers.tolist()]
        (run, windows), number = max(runs, key=lambda found: found[0][0].strength)
        return run, number, windows

    def _run_in(self, query: NDArray[np.float32], number: int) -> tuple[_Run, Integers]:
        """The strongest run in one clip and its windows: all offsets, in steps of the training windows."""
        rows = self._clip(number)
        steps = np.arange(len(query)) * self._phases
        offsets = np.arange(-steps[-1], len(rows))
        windows = offsets[:, None] + steps  # [offsets, W]
        inside = (windows >= 0) & (windows < len(rows))
        closeness = _fisher_z(query @ rows.T)[np.arange(len(query)), np.where(inside, windows, 0)]
        votes = np.tanh((closeness - self._usual) / self._spread) * self._hop
        run = _strongest(np.where(inside, votes, OUTSIDE))
        return run, windows[run.row, run.begin : run.end]


def _strongest(speaks: Array) -> _Run:
    """The stretch of a row of `[C, T]` with the highest sum; of equal ones the first, and never an empty one."""
    sums = speaks.cumsum(axis=1)
    before = np.concatenate([np.zeros((len(sums), 1)), sums[:, :-1]], axis=1)
    gained = sums - np.minimum.accumulate(before, axis=1)
    row, last = np.unravel_index(gained.argmax(), gained.shape)
    begin = int(before[row, : last + 1].argmin())
    return _Run(float(gained[row, last]), int(row), begin, int(last) + 1)


def _fisher_z(cosines: NDArray[np.float32]) -> Array:
    return np.arctanh(np.clip(cosines, -0.9999, 0.9999), dtype=np.float64)


def _hardly_reached(strengths: Array) -> float:
    """What only `FALSE_ALARMS` of clips of other songs reach, by the strengths `[N]` of some of them.

    The highest of many scores has a Gumbel distribution. It is fitted to median and quartiles, so that a few songs that
    are there twice, under two names, don't spoil it. Of few songs it knows little, so it may not go far beyond the
    strongest: else it could ask for more than a whole clip.
    """
    low, middle, high = np.quantile(strengths, [0.25, 0.5, 0.75])

    def standard(share: float) -> float:
        return -math.log(-math.log(share))

    scale = (high - low) / (standard(0.75) - standard(0.25))
    fitted = middle + scale * (standard(1 - FALSE_ALARMS) - standard(0.5))
    return float(min(fitted, BEYOND * strengths.max()))


def _likeness(clip: TrainingClip, *, clip_at: float, **rest: Any) -> Likeness:
    return Likeness(song=clip.song, clip_file=clip.file, clip_at=clip_at, song_at=clip.start + clip_at, **rest)


def _check(training: Sequence[Any], clips: Sequence[TrainingClip]) -> None:
    if not clips or not training:
        raise UserError("there are no training clips to compare with; give the folder that the run was trained on")
    if len(training) != len(clips):
        raise ValueError(f"{len(training)} training clips, but names for {len(clips)}")


def _song_numbers(clips: Sequence[TrainingClip]) -> Integers:
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(clip.song, len(numbers)) for clip in clips])


def _evenly(count: int, most: int) -> list[int]:
    """At most so many of the numbers below `count`, evenly spread."""
    numbers: list[int] = np.linspace(0, count - 1, min(count, most)).astype(int).tolist()
    return numbers


def _summed(keys: Integers, weights: Array) -> tuple[Integers, Array]:
    """Keys, each once, and the sums of their weights."""
    order = np.argsort(keys, kind="stable")
    keys, weights = keys[order], weights[order]
    firsts = np.flatnonzero(np.diff(keys, prepend=-1))
    return keys[firsts], np.add.reduceat(weights, firsts) if len(firsts) else weights


def _best(keys: Integers, weights: Array, most: int) -> tuple[Integers, Array]:
    """At most so many of the heaviest; of equal ones the first."""
    order = np.argsort(-weights, kind="stable")[:most]
    return keys[order], weights[order]
