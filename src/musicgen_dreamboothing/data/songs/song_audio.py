"""The samples of one song, for several passes: to measure it, to analyse it and to cut it.

A song of a few minutes is decoded once and stays in memory; a longer one is decoded for every pass, so that memory does
not grow with its length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.analysis.levels import Levels
from musicgen_dreamboothing.analysis.outliers import Outliers
from musicgen_dreamboothing.audio import Wave
from musicgen_dreamboothing.data.songs.song import Song

INVALID = "samples that are NaN, infinite or far beyond the rest of the song"
CACHE_BYTES = 62 * 2**20  # 4 minutes of stereo at 32 kHz

Span = tuple[int, int]  # first sample, and the one behind the last


class SongAudio:
    """One song at one rate.

    Attributes:
        levels: loudness, peak, DC offset and ends of the song.
        damage: one line on what could not be decoded, or None.
        invalid: spans in seconds of `INVALID` samples; they are zeros in the waves, and are not measured.
    """

    def __init__(self, song: Song, rate: int) -> None:
        """Decodes and measures the song at `rate` Hz. Raises `AudioError` where there is nothing to decode."""
        self._song, self._rate = song, rate
        self._max_amplitude = audio.MAX_AMPLITUDE
        self._cached: list[Wave] | None = None
        self.damage: str | None = None
        self.invalid: list[tuple[float, float]] = []
        outliers = Outliers()
        self.levels = Levels(self._decoded(outliers.add), rate)
        if math.isfinite(limit := outliers.limit):  # known only now, and a resampler has spread the outliers already
            self._max_amplitude = limit
            self.levels = Levels(self._decoded(), rate)

    def waves(self) -> Iterator[Wave]:
        """The song from its first sample to its last, in blocks `[C, n]`, without its DC offset."""
        first = 0
        for wave in self._decoded() if self._cached is None else self._cached:
            yield self.levels.centred(wave, first)
            first += wave.shape[1]

    def is_invalid(self, span: Span) -> bool:
        """Whether there is an invalid sample in a span."""
        start, end = (place / self._rate for place in span)
        return any(first < end and last > start for first, last in self.invalid)

    def _decoded(self, on_block: Callable[[Wave, int], None] | None = None) -> Iterator[Wave]:
        song, damages, cached, size = self._song, list[str](), list[Wave](), 0
        self._cached, self.invalid = None, []
        waves = audio.stream(
            song.read(),
            self._rate,
            name=song.name,
            start=song.start,
            end=song.end,
            on_damage=damages.append,
            on_invalid=lambda first, last: self.invalid.append((first, last)),
            on_block=on_block,
            max_amplitude=self._max_amplitude,
        )
        for wave in waves:
            size += wave.nbytes
            if size > CACHE_BYTES:
                cached.clear()
            else:
                cached.append(wave)
            yield wave
        self.damage = damages[0] if damages else None
        self._cached = cached or None


def slices(waves: Iterable[Wave], spans: Sequence[Span]) -> Iterator[Wave]:
    """The spans of a song that comes in blocks `[C, n]`, in the order of their starts; they may overlap.

    Holds one span and one block.
    """
    blocks, block, first = iter(waves), np.empty((1, 0), np.float32), 0  # the first sample of the block
    starts_next = [*(start for start, _ in spans[1:]), spans[-1][1]] if spans else []
    for (start, end), start_next in zip(spans, starts_next, strict=True):
        place, wave = start, np.empty((0, 0), np.float32)
        while place < end:
            if place >= first + block.shape[1]:
                first, block = first + block.shape[1], next(blocks)
                continue
            part = block[:, place - first : end - first]
            if place == start:
                wave = np.empty((len(block), end - start), np.float32)
            wave[:, place - start : place - start + part.shape[1]] = part
            place += part.shape[1]
        if start_next < first:
            block, first = np.concatenate([wave[:, start_next - start : first - start], block], axis=1), start_next
        yield wave
