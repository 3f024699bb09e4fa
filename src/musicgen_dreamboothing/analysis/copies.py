"""Songs that are the same recording: another format, another folder, a remaster, an edit.

An inverted index over the words of the fingerprints, as in section 4 of Haitsma & Kalker (2002), selects the pairs of
songs and offsets to compare, so that time does not grow with the square of their number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby, islice

import numpy as np
from numpy.typing import NDArray

from musicgen_dreamboothing.analysis.duplicates import FRAME_RATE, LEAST_SECONDS, SAME, Fingerprint

Array = NDArray[np.int64]

COMMON = 32  # songs that share a word; more common words are not informative, and give too many pairs
LEAST_WORDS = 2  # equal words at one offset that make a pair worth comparing
MOST_OFFSETS = 6  # compared for each pair: an edit has a few
BLOCK = 2 * FRAME_RATE  # frames that are compared together: 2 s
LONGEST_GAP = 600.0  # seconds
LEAST_SHARE = 0.85  # of the shorter song that must be in the other: copies have 0.9, songs of one drum machine 0.8


def joined_fingerprint(clips: Sequence[tuple[float, Fingerprint]]) -> Fingerprint:
    """One fingerprint of a song from those of its clips and their starts in seconds, in any order.

    Gaps count as silence of at most `LONGEST_GAP`, as people edit the starts. A clip that overlaps the one before, or
    has no finite start, follows it.
    """
    parts: list[Fingerprint] = []
    before = 0.0  # end of the last clip, seconds
    for start, words in sorted(clips, key=lambda clip: clip[0] if math.isfinite(clip[0]) else math.inf):
        gap = min(max(0.0, start - before), LONGEST_GAP) if math.isfinite(start) else 0.0
        parts += [np.zeros(round(gap * FRAME_RATE), np.uint32), words]
        before = max(before, start if math.isfinite(start) else before) + len(words) / FRAME_RATE
    return np.concatenate(parts)


def same_recordings(songs: Sequence[Fingerprint]) -> list[int]:
    """For each song the number of the first one that is the same recording, which may be itself.

    Two songs are one recording if 85 % of the shorter one, and at least 2 s, are in the other one; the relation is
    transitive. Other takes, other mixes and songs that share loops or samples are different.
    """
    first = list(range(len(songs)))

    def root(song: int) -> int:
        while first[song] != song:
            song = first[song]
        return song

    for a, b, offsets in _candidates(songs):
        one, other = root(a), root(b)
        if one != other and _is_same(songs[a], songs[b], offsets):
            first[max(one, other)] = min(one, other)
    return [root(song) for song in range(len(songs))]


def _candidates(songs: Sequence[Fingerprint]) -> Iterator[tuple[int, int, list[int]]]:
    """Pairs `a` < `b` with the offsets, in frames, with most shared words: `a[t]` is like `b[t + offset]`."""
    a, b, offset = _matches(songs)
    keys, votes = np.unique(np.stack([a, b, offset]), axis=1, return_counts=True)
    keys, votes = keys[:, votes >= LEAST_WORDS], votes[votes >= LEAST_WORDS]
    ordered = keys[:, np.lexsort((-votes, keys[1], keys[0]))].T.tolist()
    for (one, other), rows in groupby(ordered, key=lambda row: row[:2]):
        yield one, other, [row[2] for row in islice(rows, MOST_OFFSETS)]


def _matches(songs: Sequence[Fingerprint]) -> tuple[Array, Array, Array]:
    """Two songs `a` < `b` and the offset between them for each word that both have, each `[M]`."""
    words, owners, places = _index(songs)
    changes = np.flatnonzero(np.diff(words, prepend=words[:1] ^ 1))
    sizes = np.diff(changes, append=len(words))
    matches: list[tuple[Array, Array, Array]] = []
    for size in range(2, min(COMMON, len(songs)) + 1):
        runs = changes[sizes == size, None] + np.arange(size)
        one, other = (runs[:, pick].ravel() for pick in np.triu_indices(size, 1))
        matches.append((owners[one], owners[other], places[other] - places[one]))
    if not matches:
        return (np.empty(0, np.int64),) * 3
    a, b, offset = (np.concatenate(column) for column in zip(*matches, strict=True))
    return a, b, offset


def _index(songs: Sequence[Fingerprint]) -> tuple[NDArray[np.uint32], Array, Array]:
    """The distinct words of each song, sorted by word and song, with the song and its first place in it."""
    rows = []
    for number, song in enumerate(songs):
        words, places = np.unique(song, return_index=True)
        sounding = words != 0
        rows.append((words[sounding], np.full(sounding.sum(), number), places[sounding]))
    if not rows:
        return np.empty(0, np.uint32), np.empty(0, np.int64), np.empty(0, np.int64)
    words, owners, places = (np.concatenate(column) for column in zip(*rows, strict=True))
    order = np.lexsort((owners, words))
    return words[order], owners[order], places[order]


def _is_same(a: Fingerprint, b: Fingerprint, offsets: list[int]) -> bool:
    """Whether enough blocks of the shorter song agree with the other one, each at any of the offsets."""
    if np.count_nonzero(a) > np.count_nonzero(b):
        a, b, offsets = b, a, [-offset for offset in offsets]
    own, sounding = _blocks(a), _blocks(a) != 0
    comparable = sounding.sum(axis=1) >= BLOCK / 2
    matched = np.zeros(len(own), bool)
    for offset in {offset + step for offset in offsets for step in (-1, 0, 1)}:
        other = _blocks(_shifted(b, offset, len(a)))
        both = sounding & (other != 0)
        agreement = np.where(both, 1 - np.bitwise_count(own ^ other) / 16, 0.0).sum(axis=1)
        matched |= (both.sum(axis=1) >= BLOCK / 2) & (agreement >= SAME * np.maximum(both.sum(axis=1), 1))
    enough = max(LEAST_SECONDS * FRAME_RATE / BLOCK, LEAST_SHARE * comparable.sum())
    return bool((matched & comparable).sum() >= enough)


def _blocks(song: Fingerprint) -> NDArray[np.uint32]:
    """`[T]` -> `[N, BLOCK]`, padded with silence."""
    return np.pad(song, (0, -len(song) % BLOCK)).reshape(-1, BLOCK)


def _shifted(song: Fingerprint, offset: int, length: int) -> Fingerprint:
    """`song[offset : offset + length]`, padded with silence."""
    shifted = np.zeros(length, song.dtype)
    begin, end = max(0, offset), min(len(song), offset + length)
    if begin < end:
        shifted[begin - offset : end - offset] = song[begin:end]
    return shifted
