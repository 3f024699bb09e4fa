"""Stems of a song by demucs (Rouard, Massa & Défossez 2023, arXiv:2211.08553).

A model's stems need not add up to the mix. What they miss is counted as part of `other` (or of the first stem besides
`vocals`), so that

- dropping vocals subtracts them, and changes nothing else of the mix,
- all stems together are the mix itself, and so are any selection and its complement,
- a selection without `other` is demucs' own sum.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby, islice
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.audio import Wave
from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.device import best_device, free_memory
from musicgen_dreamboothing.pretrained.demucs_files import files_digest, load_bag

REST, VOCALS = "other", "vocals"
OVERLAP = 0.25  # of neighbouring segments, as in demucs
SILENT_DEVIATION = 1e-8  # added as in demucs, so that silence can be divided by it
PIECE = 1 << 18  # samples that are handed on at once: 6 s at 44.1 kHz
SAMPLE_BYTES = 2200  # of activations for each sample of a segment, measured with htdemucs on a CPU
LARGEST_BATCH = 16  # segments

Progress = Callable[[float], None]  # receives the share that is done, up to 1


def parse_stems(names: Sequence[str], possible: Sequence[str]) -> tuple[str, ...]:
    """The stems to keep, in the model's order; no names mean every stem but the vocals.

    Raises:
        UserError: the model has no such stem, or no vocals to remove.
    """
    wrong = [name for name in names or [VOCALS] if name not in possible]
    if wrong and names:
        raise UserError(f"--keep_stems {wrong[0]} is unknown to this model; possible are {', '.join(possible)}")
    if wrong:
        raise UserError(f"this model has no {VOCALS} to remove; choose --keep_stems from {', '.join(possible)}")
    return tuple(stem for stem in possible if (stem in names if names else stem != VOCALS))


def signature(model: str, *, seed: int = 0, cache_dir: str | None = None) -> str:
    """A short hash of everything besides the wave that a separator's stems depend on; no model is loaded.

    Arguments and errors are those of `Separator`.
    """
    return files_digest(model, cache_dir, OVERLAP, seed)


class Separator:
    """A demucs model, or a bag of them, in fp32.

    The stems are those of `demucs.apply.apply_model` without random shifts; segments are batched, which changes them by
    float rounding only. Threads may share a separator.

    Args:
        model: a name under which demucs publishes a model, or a file or folder of demucs' format: `.safetensors` or
            `.th` with one model, `.yaml` with a bag of models that lie beside it.
        device: where to compute; by default the best there is.
        batch_size: segments at once; 0 takes one on a CPU, and on a GPU what half of its free memory holds.
        seed: of the shift of positions that some models draw.
        cache_dir: where downloads from the Hub are kept.

    Raises:
        UserError: demucs is missing, the model is unknown or unreadable or can't be had without a network.
    """

    rate: int  # Hz, at which the model works
    stems: tuple[str, ...]

    def __init__(
        self,
        model: str = "htdemucs",
        *,
        device: torch.device | None = None,
        batch_size: int = 0,
        seed: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        self._bag = load_bag(model, cache_dir)
        self._device = device or best_device()
        self._bag.to(self._device)
        self.rate, self.stems = int(self._bag.samplerate), tuple(self._bag.sources)
        others = [stem for stem in self.stems if stem != VOCALS] or self.stems
        self._rest = REST if REST in others else others[0]
        self._batch_size, self._seed, self._lock = batch_size, seed, Lock()

    def keep(
        self,
        read: Callable[[], Iterable[Wave]],
        stems: Sequence[str],
        on_progress: Progress = lambda share: None,
    ) -> Iterator[Wave]:
        """The sum of some stems as loud as in the mix, piece by piece.

        The mix is read twice, first for its level; memory does not grow with its length.

        Args:
            read: returns the mix in blocks `[C, n]` of any length, C 1 or 2, at the model's rate.
            stems: names for `parse_stems`.
            on_progress: called after each batch.

        Yields:
            `[C, n]`, together as long as the mix; with all stems the mix itself.
        """
        kept = parse_stems(stems, self.stems)
        dropped = tuple(stem for stem in self.stems if stem not in kept)
        if not dropped:
            yield from read()
            return
        level = _level(read())
        mix, copy = _copies(audio.blocks(read(), PIECE), 2)
        subtract = self._rest in kept
        for block, sums in zip(mix, self._sums(copy, level, dropped if subtract else kept, on_progress), strict=True):
            stem_sum = audio.to_channels(sums, len(block))
            yield block - stem_sum if subtract else stem_sum

    def _sums(self, mix: Iterable[Wave], level: _Level, stems: Sequence[str], on_progress: Progress) -> Iterator[Wave]:
        """The models' sum of some stems, in pieces of `PIECE` samples.

        Unlike in demucs, the mean of the mix is not added to each stem: a DC offset stays in the rest.
        """
        needed = self._needed(stems)
        shares = [0.0] * len(needed)

        def report(number: int, share: float) -> None:
            shares[number] = share
            on_progress(sum(shares) / len(shares))

        copies = _copies((audio.to_channels(block, self._bag.audio_channels) for block in mix), len(needed))
        outputs = [
            audio.blocks(self._stem_sum(model, counts, copy, level, partial(report, number)), PIECE)
            for number, ((model, counts), copy) in enumerate(zip(needed, copies, strict=True))
        ]
        for pieces in zip(*outputs, strict=True):  # in step, so that the copies of the mix hold little
            total: Wave = np.add.reduce(pieces)
            total *= np.float32(level.deviation)
            yield total

    def _needed(self, stems: Sequence[str]) -> list[tuple[Any, torch.Tensor]]:
        """The models with non-zero weights in the sum, each with the weights of its stems `[K]`.

        A bag such as htdemucs_ft has a model for each stem, so that one of four is enough to drop vocals.
        """
        selected = torch.tensor([float(stem in stems) for stem in self.stems])
        weights = torch.tensor(self._bag.weights)  # [M, K]
        counts = selected * weights / weights.sum(0)
        return [(model, count) for model, count in zip(self._bag.models, counts, strict=True) if count.any()]

    def _stem_sum(
        self, model: Any, counts: torch.Tensor, mix: Iterable[Wave], level: _Level, on_progress: Progress
    ) -> Iterator[Wave]:
        """One model's weighted sum of stems by overlap-add with demucs' triangles: `[C, n]` after each segment."""
        segment = int(model.samplerate * model.segment)
        stride = int((1 - OVERLAP) * segment)
        spans = [slice(start, min(start + segment, level.samples)) for start in range(0, level.samples, stride)]
        fade = np.minimum(np.arange(1, segment + 1), np.arange(segment, 0, -1), dtype=np.float32)
        sums = np.zeros((self._bag.audio_channels, segment), np.float32)
        weights = np.zeros(segment, np.float32)
        for span, piece in self._pieces(model, counts, _Windows(mix, level), spans, on_progress):
            length, ready = _length(span), min(stride, level.samples - span.start)
            sums[:, :length] += fade[:length] * piece
            weights[:length] += fade[:length]
            yield np.divide(sums[:, :ready], weights[:ready], dtype=np.float32)
            sums, weights = np.roll(sums, -stride, axis=1), np.roll(weights, -stride)
            sums[:, -stride:], weights[-stride:] = 0, 0

    def _pieces(
        self, model: Any, counts: torch.Tensor, windows: _Windows, spans: list[slice], on_progress: Progress
    ) -> Iterator[tuple[slice, Wave]]:
        """Each span with the model's weighted sum of stems in it."""
        done = 0
        for padded, batch in _batches(model, spans, self._segments_at_once(int(model.samplerate * model.segment))):
            waves = np.stack([windows.window(span, padded) for span in batch])
            pieces = self._forward(model, counts, torch.from_numpy(waves)).numpy()
            done += len(batch)
            on_progress(done / len(spans))
            for span, piece in zip(batch, pieces, strict=True):
                margin = _margin(span, padded)
                yield span, piece[:, margin : margin + _length(span)]

    def _forward(self, model: Any, counts: torch.Tensor, waves: torch.Tensor) -> torch.Tensor:
        """`[B, C, L]` -> the sums of stems `[B, C, L]`, on the CPU."""
        exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
        with torch.inference_mode(), self._lock, _seeded(self._seed), exact:
            stems = model(waves.to(self._device))  # [B, K, C, L]
            return torch.einsum("k,bkcl->bcl", counts.to(self._device), stems).cpu()

    def _segments_at_once(self, segment: int) -> int:
        if self._batch_size or self._device.type == "cpu":
            return self._batch_size or 1
        return max(1, min(LARGEST_BATCH, free_memory(self._device) // 2 // (segment * SAMPLE_BYTES)))


class _Level(NamedTuple):
    """Length of a mix, and mean and standard deviation of its mono version, as demucs normalises it."""

    samples: int
    mean: float
    deviation: float


def _level(mix: Iterable[Wave]) -> _Level:
    samples, total, squares = 0, 0.0, 0.0
    for block in mix:
        mono = block.mean(axis=0, dtype=np.float64)
        samples, total, squares = samples + len(mono), total + mono.sum(), squares + mono @ mono
    mean = total / max(1, samples)
    variance = max(0.0, squares - total * mean) / max(1, samples - 1)
    return _Level(samples, float(mean), float(variance) ** 0.5 + SILENT_DEVIATION)


class _Windows:
    """Windows of a mix that is read once, normalised to mean 0 and deviation 1; they are taken in order.

    Blocks before the latest window are dropped; before and behind the mix there is silence.
    """

    def __init__(self, mix: Iterable[Wave], level: _Level) -> None:
        self._mix, self._level = iter(mix), level
        self._blocks: list[Wave] = []
        self._start = self._end = 0  # samples, of what is held

    def window(self, span: slice, padded: int) -> Wave:
        """`[C, padded]` with a span of samples in its middle, and the mix around it."""
        begin = span.start - _margin(span, padded)
        first, last = max(0, begin), min(self._level.samples, begin + padded)
        self._read(first, last)
        blocks = np.concatenate(self._blocks, axis=1)[:, first - self._start : last - self._start]
        inside = (blocks - np.float32(self._level.mean)) / np.float32(self._level.deviation)
        return np.pad(inside, ((0, 0), (first - begin, begin + padded - last)))

    def _read(self, first: int, last: int) -> None:
        """Drops the blocks before one sample, and reads up to another."""
        while self._end < last:
            self._blocks.append(next(self._mix))
            self._end += self._blocks[-1].shape[1]
        while self._start + self._blocks[0].shape[1] <= first:
            self._start += self._blocks.pop(0).shape[1]


def _copies(blocks: Iterable[Wave], count: int) -> list[Iterator[Wave]]:
    """The same blocks several times, each read once; `itertools.tee` would keep 57 of them."""
    source, queues = iter(blocks), [deque[Wave]() for _ in range(count)]

    def copy(queue: deque[Wave]) -> Iterator[Wave]:
        while True:
            for block in islice(source, 0 if queue else 1):
                for each in queues:
                    each.append(block)
            if not queue:
                return
            yield queue.popleft()

    return [copy(queue) for queue in queues]


def _length(span: slice) -> int:
    return int(span.stop - span.start)


def _margin(span: slice, padded: int) -> int:
    """Samples before a span in the middle of a longer window."""
    return (padded - _length(span)) // 2


def _batches(model: Any, spans: list[slice], size: int) -> Iterator[tuple[int, list[slice]]]:
    """Batches of at most `size` spans with one padded length in samples, behind that length."""
    from demucs.hdemucs import HDemucs

    def padded(span: slice) -> int:  # HDemucs accepts any length
        return _length(span) if isinstance(model, HDemucs) else int(model.valid_length(_length(span)))

    for samples, equal in groupby(spans, padded):
        group = list(equal)
        for first in range(0, len(group), size):
            yield samples, group[first : first + size]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds Python's random numbers, and restores their state afterwards."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)
