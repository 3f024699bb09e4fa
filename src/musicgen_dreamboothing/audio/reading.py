"""Reads files as waves at any rate, block by block or as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import Path

import numpy as np

from musicgen_dreamboothing.audio.readers import Piece, Reader, opened
from musicgen_dreamboothing.audio.waves import AudioError, Wave, blocks, label_of, resampled, to_channels

_SOUND = "aac ac3 aif aifc aiff amr ape au caf flac m4a m4b mka mp2 mp3 oga ogg opus tta w64 wav wma wv"
_PICTURES_AND_SOUND = "3gp asf avi flv m4v mkv mov mp4 mpeg mpg ogv ts webm wmv"
AUDIO_SUFFIXES: frozenset[str] = frozenset(f".{suffix}" for suffix in f"{_SOUND} {_PICTURES_AND_SOUND}".split())

MAX_AMPLITUDE = 2.0**32  # float files that hold integers of 32 bits reach half of it

_SPAN_SECONDS = 0.1  # invalid samples that are nearer to each other are reported as one span

OnInvalid = Callable[[float, float], None]
OnBlock = Callable[[Wave, int], None]


def stream(
    source: Path | str | bytes,
    rate: int,
    *,
    name: str | None = None,
    start: float = 0.0,
    end: float | None = None,
    block_seconds: float = 10.0,
    on_damage: Callable[[str], None] | None = None,
    on_invalid: OnInvalid | None = None,
    on_block: OnBlock | None = None,
    max_amplitude: float = MAX_AMPLITUDE,
) -> Iterator[Wave]:
    """Yields the first sound track of a file as waves `[C, n]` at `rate` Hz, each about `block_seconds` long.

    Memory does not grow with the length of the file. Damaged parts are left out. A cut-off end shows only where a
    header states the length: in FLAC, m4a, WebM and in MP3 with a frame count, but not in Ogg, raw AAC and most WAV.

    Args:
        source: a path, or the bytes of a file, of any container that libav or libsndfile reads, videos included. C is
            that of the first samples, more than 2 are mixed down to 2. Samples are not clipped.
        rate: Hz.
        name: of the file in messages, where `source` is bytes or a temporary path.
        start: seconds in the file; what is before is decoded and left out.
        end: seconds in the file; nothing behind is decoded.
        block_seconds: length of a wave.
        on_damage: called once, after the last block, with one line on what is missing between `start` and `end`.
        on_invalid: called with the first and last second (counted from `start`) of samples that are NaN, infinite or
            beyond `max_amplitude`, before their block; they are replaced by zeros. Without it they are an error.
        on_block: called with each block and its rate in Hz before it is resampled, without its invalid samples.
        max_amplitude: the largest valid sample.

    Raises:
        AudioError: at the first block, where there is nothing to decode; at any block with NaN or infinite samples.
    """
    label = label_of(source, name)
    with opened(source, label) as reader:
        check = _Check(label, on_invalid, max_amplitude)
        samples = 0
        for rate_in, run in groupby(_same_channels(_between(reader, start, end)), key=lambda piece: piece.rate):
            block_size = max(1, round(block_seconds * rate_in))
            checked = (check(block, rate_in) for block in blocks((piece.wave for piece in run), block_size))
            observed = _observed(checked, rate_in, on_block) if on_block else checked
            for block in resampled(observed, rate_in, rate):
                samples += block.shape[1]
                yield block
        if not samples:
            raise AudioError(f"{label}: {_why_empty(reader, rate, start)}")
        if on_damage and (missing := reader.missing(end)):
            on_damage(f"{label}: {missing}")


def decode(
    source: Path | str | bytes,
    rate: int,
    *,
    name: str | None = None,
    on_damage: Callable[[str], None] | None = None,
) -> Wave:
    """The whole of a file as one wave `[C, S]` at `rate` Hz: the blocks of `stream`, joined, with its errors."""
    return np.concatenate(list(stream(source, rate, name=name, on_damage=on_damage)), axis=-1)


def _observed(waves: Iterable[Wave], rate: int, on_block: OnBlock) -> Iterator[Wave]:
    for wave in waves:
        on_block(wave, rate)
        yield wave


def _why_empty(reader: Reader, rate: int, start: float) -> str:
    if start >= reader.seconds:
        return f"ends at {reader.seconds:.1f} s, before its track begins at {start:.1f} s"
    return f"is shorter than one sample at {rate} Hz"


def _between(reader: Reader, start: float, end: float | None) -> Iterator[Piece]:
    """The samples from `start` to `end` seconds; two tracks that meet share none and lose none."""
    position = 0.0
    for wave, rate in reader.pieces():
        if position < start:
            reader.skipped_before = reader.skipped
        first, last = (_sample(second, position, rate, wave) for second in (start, end))
        position = reader.seconds
        if first < last:
            yield Piece(wave[:, first:last], rate)
        if end is not None and position >= end:
            return


def _sample(second: float | None, position: float, rate: int, wave: Wave) -> int:
    """The sample of a wave that begins at `position` in which a second begins, between 0 and the length of the wave."""
    samples = wave.shape[1]
    return samples if second is None else min(max(round((second - position) * rate), 0), samples)


def _same_channels(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Brings all pieces to the channels of the first: radio recordings change between mono and stereo on the way."""
    channels = 0
    for wave, rate in pieces:
        channels = channels or len(wave)
        yield Piece(to_channels(wave, channels), rate)


class _Check:
    """Replaces invalid samples, before a resampler spreads them over their neighbours."""

    def __init__(self, label: str, on_invalid: OnInvalid | None, max_amplitude: float) -> None:
        self.label, self.on_invalid, self.max_amplitude = label, on_invalid, max_amplitude
        self.seconds = 0.0

    def __call__(self, wave: Wave, rate: int) -> Wave:
        begin, self.seconds = self.seconds, self.seconds + wave.shape[1] / rate
        if self.on_invalid is None:
            if not np.isfinite(wave).all():
                raise AudioError(f"{self.label}: holds NaN or infinite samples")
            return wave
        is_invalid = ~(np.abs(wave) <= self.max_amplitude)  # NaN compares as false
        if not is_invalid.any():
            return wave
        places = np.flatnonzero(is_invalid.any(axis=0))
        for run in np.split(places, np.flatnonzero(np.diff(places) > _SPAN_SECONDS * rate) + 1):
            self.on_invalid(begin + run[0] / rate, begin + (run[-1] + 1) / rate)
        return np.where(is_invalid, np.float32(0), wave)
