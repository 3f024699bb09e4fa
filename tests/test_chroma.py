"""The melody of a sound is audiocraft's: the strongest pitch class of each frame of 0.128 s."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from conftest import tone_song
from torch.nn import functional
from transformers.audio_utils import chroma_filter_bank

from musicgen_dreamboothing.model.chroma import (
    HOP,
    N_FFT,
    SAMPLING_RATE,
    chroma_classes,
    chroma_of_pieces,
    common_frames,
    fitted,
)

A4 = 440.0


def tone(seconds: float, frequency: float, rate: int = SAMPLING_RATE) -> torch.Tensor:
    return 0.3 * torch.sin(2 * math.pi * frequency * torch.arange(int(seconds * rate)) / rate)[None]


def tune(seconds: float, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(tone_song(seconds, seed, rate=SAMPLING_RATE))


def features_of_transformers(wave: torch.Tensor) -> torch.Tensor:
    """`[T]` from `[1, S]` by the steps of its MusicgenMelodyFeatureExtractor, which needs torchaudio.

    The constant by which that one scales the spectrum is left out: it has no effect on the largest class.
    """
    if wave.shape[-1] < N_FFT:
        missing = N_FFT - wave.shape[-1]
        wave = functional.pad(wave, (missing // 2, missing // 2 + missing % 2))
    bank = chroma_filter_bank(sampling_rate=SAMPLING_RATE, num_frequency_bins=N_FFT, tuning=0, num_chroma=12)
    spectrum = torch.stft(wave, N_FFT, HOP, window=torch.hann_window(N_FFT), center=True, return_complex=True)
    chroma = torch.einsum("cf,...ft->...ct", torch.from_numpy(bank).float(), spectrum.abs() ** 2)
    return functional.normalize(chroma, p=float("inf"), dim=-2, eps=1e-6)[0].argmax(0)


@pytest.mark.parametrize("semitones", range(12))
def test_a_tone_has_one_class(semitones: int) -> None:
    classes = chroma_classes(tone(2, A4 * 2 ** (semitones / 12)), SAMPLING_RATE)
    assert classes.dtype == torch.uint8
    assert classes.tolist() == [(9 + semitones) % 12] * 16


@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000])
def test_any_rate_and_both_sides_are_taken(rate: int) -> None:
    left, right = tone(1, A4, rate), torch.zeros(1, rate)
    assert chroma_classes(torch.cat([left, right]), rate).tolist() == [9] * 8


def test_thirty_seconds_have_235_frames() -> None:
    assert len(chroma_classes(torch.zeros(1, 30 * SAMPLING_RATE), SAMPLING_RATE)) == 235


@pytest.mark.parametrize("samples", [0, 1, 5000, N_FFT - 1, N_FFT, N_FFT + 1, 100_000, 30 * SAMPLING_RATE])
def test_classes_are_those_of_transformers(samples: int) -> None:
    wave = tune(30)[:, :samples]
    assert torch.equal(chroma_classes(wave, SAMPLING_RATE).long(), features_of_transformers(wave))


@pytest.mark.parametrize("size", [700, 4096, 20_000, 500_000])
def test_pieces_give_the_classes_of_the_whole(size: int) -> None:
    wave = tune(40, seed=1)[0]
    assert torch.equal(chroma_of_pieces(wave.split(size)), chroma_classes(wave[None], SAMPLING_RATE))


@pytest.mark.parametrize("step", [1, 3, 7])
def test_a_crop_at_32_frames_has_the_classes_of_the_clip(step: int) -> None:
    """But for two frames at each edge, where the crop is mirrored."""
    wave, codec_hop = tune(20, seed=2), 640
    begin = step * 32 * codec_hop
    crop = chroma_classes(wave[:, begin : begin + 8 * SAMPLING_RATE], SAMPLING_RATE)
    cached = chroma_classes(wave, SAMPLING_RATE)[begin // HOP :][: len(crop)]
    assert torch.equal(crop[2:-2], cached[2:-2])


@pytest.mark.parametrize(("rate", "frames"), [(Fraction(50), 32), (Fraction(25), 16), (Fraction(75), 48)])
def test_where_codes_and_chroma_begin_together(rate: Fraction, frames: int) -> None:
    assert common_frames(rate) == frames
    assert (frames / rate * SAMPLING_RATE / HOP).denominator == 1


@pytest.mark.parametrize(("frames", "expected"), [(2, [5, 6]), (3, [5, 6, 7]), (7, [5, 6, 7, 5, 6, 7, 5]), (1, [5])])
def test_a_melody_is_repeated_and_cut(frames: int, expected: list[int]) -> None:
    assert fitted(torch.tensor([5, 6, 7], dtype=torch.uint8), frames).tolist() == expected


def test_an_empty_melody_cannot_be_fitted() -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        fitted(torch.tensor([]), 3)


def test_silence_is_the_null_class() -> None:
    assert not np.any(chroma_classes(torch.zeros(2, 50_000), SAMPLING_RATE).numpy())
