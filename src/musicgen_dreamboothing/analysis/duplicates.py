"""Clips that are the same recording: fingerprints that are robust to gain, lossy coding and another start.

After Haitsma & Kalker (2002), "A highly robust audio fingerprinting system": for each frame one bit per band shows
whether the difference to the next band grows or shrinks. Copies agree in 9 bits of 10, two takes of one tune in 7, two
tunes in little more than half.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from musicgen_dreamboothing.analysis.spectrum import mono_at, spectra
from musicgen_dreamboothing.audio import Wave

Fingerprint = NDArray[np.uint32]  # [T], one word for each frame; 0 in silence
Words = Sequence[Fingerprint]

FRAME_RATE = 25  # frames a second
RATE, SIZE, HOP = 8000, 3072, 320  # Hz, samples (0.38 s), samples
BANDS, LOWEST_HZ, HIGHEST_HZ = 33, 200.0, 3500.0  # every codec and telephone carries these
LAG = 4  # frames between which growth is measured
FLOOR_DB = -70.0  # of a band, below the loudest one
SILENT_DB = -50.0  # of a frame, below the loudest one

SAME = 0.65  # agreement, from -1 to 1, of one recording: copies have 0.8, other takes below 0.6
MOST_SECONDS = 1.0  # by which the starts of two cuts may differ
POINTS = 48  # frames of a clip that are compared, evenly spread: neighbours are alike
LEAST_SECONDS = 2.0  # of sound in both
BLOCK = 250  # clips compared at once: 50 MB for clips of 30 s


class Duplicate(NamedTuple):
    """Clips `a` < `b`, by number, are one recording; what is at t in `a` is at t + `offset` seconds in `b`."""

    a: int
    b: int
    similarity: float
    offset: float


def fingerprint(wave: Wave, rate: int) -> Fingerprint:
    """Of `[C, S]`, 100 bytes a second."""
    power = np.concatenate(list(spectra(mono_at(wave, rate, RATE), SIZE, HOP))) ** 2
    edges = np.round(np.geomspace(LOWEST_HZ, HIGHEST_HZ, BANDS + 1) * SIZE / RATE).astype(int)
    bands = np.add.reduceat(power, edges, axis=1)[:, :BANDS]  # [T, BANDS]
    loudest = max(float(bands.max()), 1e-9)
    slopes = np.diff(np.log(bands + 10 ** (FLOOR_DB / 10) * loudest), axis=1)
    grows = slopes[LAG:] > slopes[:-LAG]
    words = np.packbits(grows, axis=1).view(">u4")[:, 0].astype(np.uint32)
    levels = bands.sum(axis=1)[LAG:]
    return np.where(levels > 10 ** (SILENT_DB / 10) * max(float(levels.max(initial=0.0)), 1e-9), words, 0)


def find_duplicates(fingerprints: Sequence[Fingerprint]) -> list[Duplicate]:
    """All pairs that are one recording, cut up to a second apart; they share at least 2 s and half of the shorter one.

    Every pair is compared at every offset by matrix products: some seconds for 1000 clips of 30 s.
    """
    by_length = sorted(range(len(fingerprints)), key=lambda clip: len(fingerprints[clip]))
    groups = [by_length[start : start + BLOCK] for start in range(0, len(by_length), BLOCK)]
    duplicates = []
    for first, second in combinations_with_replacement(groups, 2):
        best, offsets = _compared([fingerprints[clip] for clip in first], [fingerprints[clip] for clip in second])
        for row, column in np.argwhere(best >= SAME):
            a, b, seconds = first[row], second[column], float(offsets[row, column]) / FRAME_RATE
            if a != b and (first is not second or row < column):
                similarity = float(best[row, column])
                duplicates.append(Duplicate(min(a, b), max(a, b), similarity, seconds if a < b else -seconds))
    return sorted(duplicates)


def _compared(first: Words, second: Words) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The best agreement of all pairs `[A, B]`, 0 if too short, and its offset in frames; `second` has longer clips."""
    most, length = round(MOST_SECONDS * FRAME_RATE), max(map(len, first))
    step = max(1, length // POINTS)
    ours, sounding = _points(_stacked(first, length, 0), step)
    others = _stacked(second, length, most)
    least = np.maximum(LEAST_SECONDS * FRAME_RATE / step, sounding.sum(axis=1, keepdims=True) / 2)
    best = np.zeros((len(first), len(second)), np.float32)
    offsets = np.zeros(best.shape, np.int64)
    for offset in range(-most, most + 1):
        theirs, also_sounding = _points(others[:, most + offset : most + offset + length], step)
        shared = sounding @ also_sounding.T
        agreement = np.where(shared >= least, ours @ theirs.T / np.maximum(32 * shared, 1), 0)
        offsets[agreement > best] = offset
        best = np.maximum(best, agreement)
    return best, offsets


def _stacked(fingerprints: Words, length: int, margin: int) -> NDArray[np.uint32]:
    """`[N, margin + length + margin]`, padded with silence."""
    rows = np.zeros((len(fingerprints), length + 2 * margin), np.uint32)
    for row, words in zip(rows, fingerprints, strict=True):
        row[margin : margin + len(words)] = words[: length + margin]
    return rows


def _points(words: NDArray[np.uint32], step: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Of every `step`-th frame of `[N, T]` the bits `[N, P * 32]` as 1, -1, 0 in silence, and which sound `[N, P]`."""
    words = np.ascontiguousarray(words[:, ::step])
    bits = np.unpackbits(words.view(np.uint8), axis=1).reshape(*words.shape, 32)
    sounding = (words != 0).astype(np.float32)
    signs = (2 * bits.astype(np.float32) - 1) * sounding[..., None]
    return signs.reshape(len(words), -1), sounding
