"""The melody of a sound as MusicGen's melody checkpoints take it: the strongest pitch class in each frame.

The features are those of audiocraft's `ChromaExtractor` (Copet et al. 2023, section 2.3.2): power spectra of 16384
samples at 32 kHz every 4096 samples, summed by pitch class, of which the largest remains. A frame lasts 0.128 s.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import cache

import torch
from torch.nn import functional
from transformers.audio_utils import chroma_filter_bank

from musicgen_dreamboothing import audio

CLASSES = 12  # C, C sharp, ..., B
NULL_CLASS = 0  # in every frame: no melody
N_FFT, HOP = 16384, 4096
SAMPLING_RATE = 32_000
SIDE = N_FFT // 2  # samples to each side of a frame's centre that its class depends on
FRAMES_AT_ONCE = 256  # their spectra take 17 MB


def chroma_classes(wave: torch.Tensor, rate: int) -> torch.Tensor:
    """The pitch class of each frame.

    Args:
        wave: `[C, S]` float32, mono or stereo.
        rate: its samples per second.

    Returns:
        uint8 `[T]`, T = 1 + samples at 32 kHz // 4096; silence is class 0.
    """
    return chroma_of_pieces([mono(wave, rate)])


def mono(wave: torch.Tensor, rate: int) -> torch.Tensor:
    """`[C, S]` at any rate -> `[S]` at 32 kHz."""
    single = audio.to_channels(wave.float().cpu().numpy(), 1)
    return torch.from_numpy(audio.resample(single, rate, SAMPLING_RATE))[0]


def chroma_of_pieces(pieces: Iterable[torch.Tensor]) -> torch.Tensor:
    """Classes `[T]` of one sound that comes in pieces `[S]` of mono at 32 kHz; only the piece at hand is in memory."""
    classes = [torch.zeros(0, dtype=torch.uint8)]
    left = torch.zeros(0)
    for block in _padded(pieces):
        left = torch.cat([left, block])
        frames = max(0, (len(left) - N_FFT) // HOP + 1)
        classes += [_strongest(left[first * HOP :], count) for first, count in _runs(frames)]
        left = left[frames * HOP :]
    return torch.cat(classes)


def _runs(frames: int) -> Iterator[tuple[int, int]]:
    """First frame and number of frames of each run that is transformed at once."""
    for first in range(0, frames, FRAMES_AT_ONCE):
        yield first, min(FRAMES_AT_ONCE, frames - first)


def _strongest(wave: torch.Tensor, frames: int) -> torch.Tensor:
    """The largest of the sums over each class's bins, `[frames]`; the first frame begins at the first sample."""
    samples = wave[: (frames - 1) * HOP + N_FFT]
    spectrum = torch.stft(
        samples, N_FFT, HOP, window=torch.hann_window(N_FFT), center=False, return_complex=True
    )  # [F, frames]
    return (_filters() @ spectrum.abs().square()).argmax(0).to(torch.uint8)


@cache
def _filters() -> torch.Tensor:
    """The share of each bin in each class `[12, F]`, librosa's."""
    bank = chroma_filter_bank(num_frequency_bins=N_FFT, num_chroma=CLASSES, sampling_rate=SAMPLING_RATE, tuning=0.0)
    return torch.from_numpy(bank).float()


def _padded(pieces: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Half a window of the sound, mirrored, before and after it; a sound shorter than a window is padded with zeros."""
    waiting, tail, started = torch.zeros(0), torch.zeros(0), False
    for piece in pieces:
        if started:
            yield piece
            tail = torch.cat([tail, piece])[-SIDE - 1 :]
            continue
        waiting = torch.cat([waiting, piece])
        if len(waiting) >= N_FFT:
            yield torch.cat([waiting[1 : SIDE + 1].flip(0), waiting])
            tail, started = waiting[-SIDE - 1 :], True
    if not started:
        missing = N_FFT - len(waiting)
        waiting = functional.pad(waiting, (missing // 2, missing - missing // 2))
        yield torch.cat([waiting[1 : SIDE + 1].flip(0), waiting])
        tail = waiting[-SIDE - 1 :]
    yield tail[:-1].flip(0)


def fitted(classes: torch.Tensor, frames: int) -> torch.Tensor:
    """Classes `[T]` repeated as a whole and then cut to `[frames]`, as audiocraft does.

    Raises:
        ValueError: there is no class.
    """
    if not len(classes):
        raise ValueError("a melody has at least one frame")
    return classes.repeat(math.ceil(frames / len(classes)))[:frames]


def common_frames(frame_rate: Fraction) -> int:
    """Codec frames after which a frame of codes and one of chroma begin together: 32 at 50 frames a second."""
    return (frame_rate * HOP / SAMPLING_RATE).numerator
