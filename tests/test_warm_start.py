"""`warm-start`: a stereo base that is the mono checkpoint where both sides are equal, and that everything loads."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import Ran, prepare_words, read_checkpoint, train_words
from layouts import Layout, write_layout
from safetensors.torch import load_file
from transformers import AutoModelForTextToWaveform, AutoProcessor

from musicgen_dreamboothing import Generator, UserError, warm_start
from musicgen_dreamboothing.model import stereo
from musicgen_dreamboothing.model.loading import load_language_model
from musicgen_dreamboothing.model.weight_files import open_weights

Cli = Callable[..., Ran]
Folders = Callable[[str], Path]
CPU = torch.device("cpu")
FAMILIES = ("text", "melody")
FRAMES = 12


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory, checkpoints: Folders) -> Folders:
    """The stereo base of a tiny checkpoint of one family, made once."""
    root = tmp_path_factory.mktemp("bases")

    def folder(family: str) -> Path:
        path = root / family
        if not path.exists():
            assert warm_start(base=str(checkpoints(family)), output_dir=str(path)).folder == path
        return path

    return folder


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    return {name: weight[...] for name, weight in open_weights(str(folder), {}, lambda name: name, convert=False).items()}


def logits(folder: Path, codes: torch.Tensor) -> torch.Tensor:
    """The logits `[B, K, S, V]` of codes `[B, K, S]` for two captions, one of which is dropped."""
    model: Any = load_language_model(read_checkpoint(folder), torch.float32, CPU)
    width = model.config.text_encoder.hidden_size
    states = torch.randn(2, 5, width, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    with torch.no_grad():
        return model.logits(model.states(codes, mask, torch.tensor([True, False]), states))


def both_sides(codes: torch.Tensor) -> torch.Tensor:
    """Codes `[B, K, S]` of mono -> `[B, 2 K, S]` with equal sides."""
    return codes.repeat_interleave(2, dim=1)


def random_codes() -> torch.Tensor:
    return torch.randint(0, 65, (2, 4, FRAMES), generator=torch.Generator().manual_seed(0))  # with the start code


@pytest.mark.parametrize("family", FAMILIES)
def test_both_sides_have_the_logits_of_the_mono_model(family: str, checkpoints: Folders, bases: Folders) -> None:
    codes = random_codes()
    mono, both = logits(checkpoints(family), codes), logits(bases(family), both_sides(codes))
    assert both.shape == (2, 8, FRAMES, 64)
    assert (both - both_sides(mono.flatten(2)).unflatten(2, mono.shape[2:])).abs().max() <= 1e-4
    assert mono.std() > 0.1
