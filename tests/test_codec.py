"""EnCodec in stretches gives the codes of the whole, and hears no more at once than it was told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import read_checkpoint
from torch import nn

from musicgen_dreamboothing.model import codec
from musicgen_dreamboothing.model.checkpoint import load_codec


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


def test_the_convolutions_hear_a_stretch_at_a_time(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = read_checkpoint(tiny)
    model = load_codec(checkpoint, torch.device("cpu"))
    heard: list[int] = []
    first = next(layer for layer in model.encoder.modules() if isinstance(layer, nn.Conv1d))
    first.register_forward_hook(lambda layer, inputs, found: heard.append(inputs[0].numel()))
    monkeypatch.setattr(codec, "CPU_FRAMES", 10)
    codec.encode(model, torch.rand(2, 1, 200 * checkpoint.hop_length), checkpoint)
    assert len(heard) == 40
    assert max(heard) < 60 * checkpoint.hop_length
