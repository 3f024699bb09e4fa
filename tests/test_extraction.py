"""A LoRA adapter from a full fine-tune."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Ran
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import MusicgenForConditionalGeneration

from musicgen_dreamboothing.console import quiet_loading
from musicgen_dreamboothing.model.extraction import factors

Cli = Callable[..., Ran]


@pytest.fixture
def tuned(tiny: Path, tmp_path: Path) -> Path:
    """The tiny checkpoint with small changes in all of its language model."""
    folder = tmp_path / "tuned"
    shutil.copytree(tiny, folder)
    generator = torch.Generator().manual_seed(1)
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if name.startswith(("decoder.", "enc_to_dec_proj.")):
            weights[name] = weight + 0.01 * torch.randn(weight.shape, generator=generator)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def kept(ran: Ran) -> float:
    found = re.search(r"keeps ([\d.]+)% of", ran.out)
    assert found is not None, ran.err
    return float(found[1])


def loaded(folder: Path) -> Any:
    with quiet_loading():
        return MusicgenForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)


def test_a_full_rank_is_the_fine_tune_in_plain_peft(cli: Cli, tiny: Path, tuned: Path, tmp_path: Path) -> None:
    ran = cli("extract", tuned, "--base", tiny, "--rank", 48, "--output_dir", tmp_path / "adapter")
    assert kept(ran) > 98
    assert "note: normalisations have no place in LoRA" in ran.out
    merged = PeftModel.from_pretrained(loaded(tiny), tmp_path / "adapter").merge_and_unload().state_dict()
    expected = loaded(tuned).state_dict()
    for name, weight in expected.items():
        if weight.dim() == 2 and name.startswith("decoder."):
            assert torch.allclose(merged[name], weight, atol=1e-6), name
    played = cli("generate", tmp_path / "adapter", "punk", "--seconds", 0.2, "--output_dir", tmp_path / "music")
    assert "active in 29 of 29 layers" in played.out, played.err


def test_a_higher_rank_keeps_more(cli: Cli, tiny: Path, tuned: Path, tmp_path: Path) -> None:
    shares = []
    for rank in (1, 8):
        folder = tmp_path / f"rank-{rank}"
        shares.append(kept(cli("extract", tuned, "--base", tiny, "--rank", rank, "--output_dir", folder)))
    assert 0 < shares[0] < shares[1] < 100
    assert "  attention: " in cli("extract", tuned, "--base", tiny, "--output_dir", tmp_path / "default").out


def test_the_best_approximation() -> None:
    matrix = torch.randn(12, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for difference in (matrix, matrix.T):
        a, b, energy = factors(difference, 3)
        u, s, v = torch.linalg.svd(difference)
        assert torch.allclose((b @ a).double(), u[:, :3] * s[:3] @ v[:3], atol=1e-5)
        assert energy == pytest.approx(float(s[:3].square().sum()))


def test_what_does_not_belong_together(
    cli: Cli, tiny: Path, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    same = cli("extract", tiny, "--base", tiny, "--output_dir", tmp_path / "a")
    assert "have the same weights: there is nothing to extract" in same.err
    for kind, message in (("melody", "one of them is a melody model"), ("text-stereo", "is in one of them only")):
        ran = cli("extract", checkpoints(kind), "--base", tiny, "--output_dir", tmp_path / "a")
        assert (ran.code, ran.err.count("\n")) == (1, 1)
        assert message in ran.err
