"""Figures that the tiny checkpoint is judged by, as small pure functions. Audio is float32 `[B, S]`."""

from __future__ import annotations

import math

import torch
from torch import nn

BANDS, WINDOW, STEP = 64, 1024, 256
FLOOR_DB = -60.0


def si_sdr(made: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Scale-invariant signal-to-distortion ratio in dB `[B]` (Le Roux et al. 2019, eq. 4)."""
    made, true = made - made.mean(1, keepdim=True), true - true.mean(1, keepdim=True)
    scale = (made * true).sum(1, keepdim=True) / true.square().sum(1, keepdim=True).clamp(min=1e-8)
    target = scale * true
    return 10 * torch.log10(target.square().sum(1) / (made - target).square().sum(1).clamp(min=1e-8))


class MelBands(nn.Module):
    """Power in 64 mel bands, in dB, no lower than 60 dB below full scale: `[B, S]` to `[B, bands, T]`."""

    def __init__(self, rate: int) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        self.register_buffer("filters", mel_filters(rate), persistent=False)

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        spectrum = torch.stft(wave, WINDOW, STEP, window=self.window, return_complex=True)
        power = (spectrum.real.square() + spectrum.imag.square()) / (WINDOW / 4) ** 2  # a sine at full scale has 1
        return 10 * torch.log10(self.filters @ power + 10 ** (FLOOR_DB / 10))


def mel_filters(rate: int) -> torch.Tensor:
    """Triangles `[bands, bins]` equally wide on the mel scale (HTK's formula), 40 Hz to half the rate."""

    def to_mel(hertz: float) -> float:
        return 2595 * math.log10(1 + hertz / 700)

    mels = torch.linspace(to_mel(40), to_mel(rate / 2), BANDS + 2)
    edges = 700 * (10 ** (mels / 2595) - 1)
    bins = torch.linspace(0, rate / 2, WINDOW // 2 + 1)
    left, middle, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (bins - left) / (middle - left), (right - bins) / (right - middle)
    return torch.minimum(rising, falling).clamp(min=0)


def mel_distance(made: torch.Tensor, true: torch.Tensor, rate: int) -> torch.Tensor:
    """Mean absolute difference of the mel bands in dB `[B]`."""
    bands = MelBands(rate)
    return (bands(made) - bands(true)).abs().mean((1, 2))
