"""EnCodec in chunks gives the codes of entire clips, and processes no more frames at once than the limit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import read_checkpoint
from torch import nn
from transformers import EncodecConfig
from transformers.models.encodec.modeling_encodec import EncodecDecoder, EncodecEncoder, EncodecLSTM

from musicgen_dreamboothing.model import codec
from musicgen_dreamboothing.model.checkpoint import load_codec
from musicgen_dreamboothing.model.convolutions import ChannelsLast


@pytest.mark.parametrize("kind", ["text", "melody-stereo"])
@pytest.mark.parametrize("frames", [1, 4, 9, 30, 500])
def test_codes_are_those_of_the_whole_clip(
    kind: str, frames: int, checkpoints: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = read_checkpoint(checkpoints(kind))
    model = load_codec(checkpoint, torch.device("cpu"))
    waves = torch.randn(3, checkpoint.audio_channels, 61 * checkpoint.hop_length, generator=torch.manual_seed(0)) / 3
    with torch.inference_mode():
        sides = [model.encode(waves[:, [side]]).audio_codes[0] for side in range(checkpoint.audio_channels)]
    monkeypatch.setattr(codec, "CPU_FRAMES", frames)
    found = codec.encode(model, waves, checkpoint)
    assert torch.equal(found, torch.stack(sides, dim=2).flatten(1, 2))
    assert found.unique().numel() > 10  # a codec that always says the same would pass


@pytest.mark.parametrize("kind", ["text", "melody-stereo"])
@pytest.mark.parametrize("frames", [1, 4, 9, 30, 500])
def test_the_wave_is_that_of_the_whole_clip(
    kind: str, frames: int, checkpoints: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = read_checkpoint(checkpoints(kind))
    model, channels = load_codec(checkpoint, torch.device("cpu")), checkpoint.audio_channels
    shape = (2, checkpoint.codebooks, 61)
    codes = torch.randint(checkpoint.codebook_size, shape, generator=torch.manual_seed(0))
    with torch.inference_mode():
        sides = [model.decode(codes[None, :, side::channels], [None] * 2).audio_values for side in range(channels)]
    monkeypatch.setattr(codec, "CPU_FRAMES", frames)
    decoded, expected = codec.decode(model, codes, checkpoint), torch.cat(sides, dim=1)
    assert expected.std() > 0.001
    torch.testing.assert_close(decoded, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_the_convolutions_process_chunks(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = read_checkpoint(tiny)
    model = load_codec(checkpoint, torch.device("cpu"))
    sizes: list[int] = []

    class Recording(codec.ChannelsLast):
        def __call__(self, wave: torch.Tensor) -> torch.Tensor:
            sizes.append(wave.numel())
            return super().__call__(wave)

    monkeypatch.setattr(codec, "ChannelsLast", Recording)
    monkeypatch.setattr(codec, "CPU_FRAMES", 10)
    codec.encode(model, torch.rand(2, 1, 200 * checkpoint.hop_length), checkpoint)
    assert len(sizes) == 40
    assert max(sizes) < 60 * checkpoint.hop_length


@pytest.mark.parametrize("moments", [7, 8, 640])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_causal_conv": True},
        {"use_conv_shortcut": True},
        {"pad_mode": "constant"},
        {"num_residual_layers": 2, "residual_kernel_size": 1},
        {"upsampling_ratios": [5, 3, 2, 1], "kernel_size": 4, "num_residual_layers": 0},
    ],
)
def test_channels_last_computes_what_the_layers_do(changes: dict[str, Any], moments: int) -> None:
    """Also where a wave is shorter than what is put around it, or no multiple of a stride."""
    config = EncodecConfig(num_filters=4, hidden_size=8, norm_type="weight_norm", sampling_rate=32000, **changes)
    torch.manual_seed(0)
    encoder, decoder = list(EncodecEncoder(config).layers), list(EncodecDecoder(config).layers)
    lstms = [next(n for n, one in enumerate(layers) if isinstance(one, EncodecLSTM)) for layers in (encoder, decoder)]
    hidden = torch.randn(1, decoder[lstms[1] + 1 :][1].conv.in_channels, moments)
    for layers, wave in ((encoder[: lstms[0]], torch.randn(1, 1, moments)), (decoder[lstms[1] + 1 :], hidden)):
        with torch.inference_mode():
            before = wave.clone()
            found, expected = ChannelsLast(layers)(wave), nn.Sequential(*layers)(before.clone())
        assert expected.abs().mean() > 0.001
        torch.testing.assert_close(found, expected)
        assert torch.equal(wave, before)
