"""Figures that the tiny checkpoint is judged by, as small pure functions. Audio is float32 `[B, S]`."""

from __future__ import annotations

import torch
from torch import nn
from transformers.audio_utils import mel_filter_bank

BANDS, WINDOW, STEP = 64, 1024, 256
LOWEST_HZ, FLOOR_DB = 40.0, -60.0


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
        filters = mel_filter_bank(WINDOW // 2 + 1, BANDS, LOWEST_HZ, rate / 2, rate, norm=None, mel_scale="htk")
        self.register_buffer("filters", torch.from_numpy(filters.T).float(), persistent=False)

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        spectrum = torch.stft(wave, WINDOW, STEP, window=self.window, return_complex=True)
        power = (spectrum.real.square() + spectrum.imag.square()) / (WINDOW / 4) ** 2  # a sine at full scale peaks at 1
        return 10 * torch.log10(self.filters @ power + 10 ** (FLOOR_DB / 10))


def mel_distance(made: torch.Tensor, true: torch.Tensor, rate: int) -> torch.Tensor:
    """Mean absolute difference of the mel bands in dB `[B]`."""
    bands = MelBands(rate)
    return (bands(made) - bands(true)).abs().mean((1, 2))
