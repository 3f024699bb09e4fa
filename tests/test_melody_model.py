"""Melodies as transformers' melody model takes them: a clip's prefix is its own, and the null melody is shared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import read_checkpoint
from test_prefix import (
    CHROMA,
    POLICIES,
    Batch,
    collated,
    counted_positions,
    learned,
    random_clips,
    trained_model,
)
from torch.nn import functional

from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.model.language_model import MelodyLM

Folders = Callable[[str], Path]
MELODIES = torch.randint(12, (3, CHROMA), generator=torch.Generator().manual_seed(5))


def conditions(folder: Path, clips: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Text states, mask and `keep_caption` of as many captions of one length; the last one is dropped."""
    width = read_checkpoint(folder).config.text_encoder.hidden_size
    states = torch.randn(clips, 4, width, generator=torch.Generator().manual_seed(6))
    return states, torch.ones(clips, 4, dtype=torch.long), torch.arange(clips) < clips - 1


def codes_of(folder: Path, clips: int = 3, frames: int = 10) -> torch.Tensor:
    checkpoint = read_checkpoint(folder)
    shape, draw = (clips, checkpoint.codebooks, frames), torch.Generator().manual_seed(7)
    return torch.randint(checkpoint.codebook_size, shape, generator=draw)


@pytest.mark.parametrize("kind", ["melody", "melody-stereo"])
@pytest.mark.parametrize("rows", [3, CHROMA, CHROMA + 4])
def test_logits_with_a_melody_are_transformers_own(kind: str, rows: int, checkpoints: Folders) -> None:
    """Whose `forward` repeats chroma features that are too short, and cuts longer ones."""
    folder = checkpoints(kind)
    checkpoint, model = read_checkpoint(folder), trained_model(folder, settings=None).eval()
    whole: Any = checkpoint.model_class.from_pretrained(folder).eval()
    _, mask, keep = conditions(folder)
    ids = torch.arange(mask.numel()).view(mask.shape) + 5
    codes, features = codes_of(folder), functional.one_hot(torch.arange(3 * rows).view(3, rows) % 12, 12).float()
    with torch.no_grad():
        states = whole.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        melody = features.argmax(-1).repeat(1, CHROMA)[:, :CHROMA]
        ours = model.logits(model.hidden_states(codes, model.condition(states, mask, keep, melody)))
        theirs = whole(
            input_ids=ids,
            attention_mask=mask * keep[:, None],
            input_features=features,
            decoder_input_ids=codes.flatten(0, 1),
        ).logits
    places = theirs[:, -codes.shape[-1] :].view(*codes.shape[:2], codes.shape[-1], -1)
    assert torch.allclose(ours, places, atol=1e-4)


@pytest.mark.parametrize("kind", ["melody", "melody-stereo"])
def test_class_0_everywhere_is_the_null_melody(kind: str, checkpoints: Folders) -> None:
    model = trained_model(checkpoints(kind), settings=None)
    arguments = conditions(checkpoints(kind))
    nothing, zeros = (model.condition(*arguments, melody) for melody in (None, torch.zeros_like(MELODIES)))
    assert torch.equal(nothing.states, zeros.states)
    assert (nothing.shared, zeros.shared) == (CHROMA, 0)
    codes = codes_of(checkpoints(kind), clips=1)
    single = [
        model.condition(*(one[:1] for one in arguments), melody) for melody in (None, torch.zeros(1, CHROMA).long())
    ]
    assert torch.equal(*(model.hidden_states(codes, one) for one in single))


def test_a_clip_with_a_melody_does_not_depend_on_its_batch(checkpoints: Folders) -> None:
    folder = checkpoints("melody")
    for policy in POLICIES:
        model, clips = trained_model(folder, policy), random_clips(folder, 3)
        alone = [collated(folder, [clip]) | {"melody": MELODIES[[row]]} for row, clip in enumerate(clips)]
        expected, expected_gradients = learned(model, alone)
        losses, gradients = learned(model, [collated(folder, clips) | {"melody": MELODIES}])
        assert torch.allclose(losses, expected, rtol=1e-5)
        for name, gradient in expected_gradients.items():
            assert torch.allclose(gradients[name], gradient, rtol=0, atol=1e-5 * float(gradient.abs().max())), name


def nll(model: MelodyLM, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch).nll


def test_null_melodies_give_the_loss_of_no_melody(checkpoints: Folders) -> None:
    """Also beside a clip with a melody, where the prefix is not shared."""
    folder = checkpoints("melody")
    model, batch = trained_model(folder), collated(folder, random_clips(folder, 3))
    shared, zeros = nll(model, batch), nll(model, batch | {"melody": torch.zeros_like(MELODIES)})
    assert torch.allclose(shared, zeros, rtol=1e-5)
    mixed = torch.stack([torch.zeros_like(MELODIES[0]), MELODIES[1], MELODIES[2]])
    assert torch.allclose(nll(model, batch | {"melody": mixed})[0], shared[0], rtol=1e-5)


def test_the_prefix_is_shared_only_without_melodies(checkpoints: Folders) -> None:
    folder = checkpoints("melody")
    model, batch = trained_model(folder), collated(folder, random_clips(folder, 3))
    length = batch["text_mask"].shape[1] + batch["codes"].shape[2]
    with counted_positions(model) as seen, torch.no_grad():
        model(**batch)
        model(**batch, melody=MELODIES)
    assert seen == [CHROMA + 3 * length, 3 * (CHROMA + length)]


def test_another_melody_changes_the_loss(checkpoints: Folders) -> None:
    folder = checkpoints("melody")
    model, batch = trained_model(folder), collated(folder, random_clips(folder, 3))
    own, swapped = (nll(model, batch | {"melody": melody}) for melody in (MELODIES, MELODIES[[1, 0, 2]]))
    assert ((own[:2] - swapped[:2]).abs() > 1e-2).all()
    assert torch.allclose(own[2], swapped[2], rtol=1e-5)


def test_a_text_model_takes_no_melody(tiny: Path) -> None:
    model = trained_model(tiny, settings=None)
    with pytest.raises(UserError, match=r"takes no melody.*facebook/musicgen-melody"):
        model.condition(*conditions(tiny), MELODIES)


@pytest.mark.parametrize("shape", [(3, CHROMA - 1), (2, CHROMA)])
def test_a_melody_of_another_shape_is_an_error(shape: tuple[int, int], checkpoints: Folders) -> None:
    model = trained_model(checkpoints("melody"), settings=None)
    with pytest.raises(ValueError, match=rf"shape \({shape[0]}, {shape[1]}\) for \(3, {CHROMA}\)"):
        model.condition(*conditions(checkpoints("melody")), torch.zeros(shape, dtype=torch.long))
