"""The delay pattern: a round trip for any length, and the drawing of the paper."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from musicgen_dreamboothing.model.delay import IGNORED, apply_delay, delays, ignore_prompt, training_steps, undo_delay

PAD = 2048


@given(kind=st.sampled_from([(4, 1), (8, 2)]), frames=st.integers(1, 60), seed=st.integers(0, 1000))
def test_round_trip(kind: tuple[int, int], frames: int, seed: int) -> None:
    delay = delays(*kind)
    codes = torch.randint(0, PAD, (2, kind[0], frames), generator=torch.Generator().manual_seed(seed))
    delayed = apply_delay(codes, delay, PAD)
    assert delayed.shape[-1] == frames + max(delay)
    assert (delayed == PAD).sum() == 2 * sum(max(delay) for _ in delay)  # each row is padded to the same length
    assert torch.equal(undo_delay(delayed, delay), codes)


def test_the_pattern_of_the_paper() -> None:
    codes = torch.arange(12).view(4, 3)
    assert apply_delay(codes, (0, 1, 2, 3), -1).tolist() == [
        [0, 1, 2, -1, -1, -1],
        [-1, 3, 4, 5, -1, -1],
        [-1, -1, 6, 7, 8, -1],
        [-1, -1, -1, 9, 10, 11],
    ]


@pytest.mark.parametrize("kind", [(4, 1), (8, 2)])
@pytest.mark.parametrize("prompt", [0, 1, 5, 9])
def test_a_prompt_takes_the_labels_of_its_frames_and_no_others(kind: tuple[int, int], prompt: int) -> None:
    delay, frames = delays(*kind), 10
    codes = torch.arange(kind[0] * frames).view(kind[0], frames)
    _, labels = training_steps(codes, delay, PAD)
    left = ignore_prompt(labels, delay, prompt)
    for codebook, shift in enumerate(delay):
        asked = left[codebook][left[codebook] != IGNORED]
        assert asked.tolist() == codes[codebook, prompt : frames - shift].tolist()
        assert torch.equal(left[codebook, prompt + shift :], labels[codebook, prompt + shift :])


def test_stereo_delays_pairs() -> None:
    assert delays(8, 2) == (0, 0, 1, 1, 2, 2, 3, 3)


def test_codebooks_must_be_shared_evenly() -> None:
    with pytest.raises(ValueError, match="5 codebooks"):
        delays(5, 2)


@given(kind=st.sampled_from([(4, 1), (8, 2)]), frames=st.integers(1, 40))
def test_training_steps_are_audiocrafts_valid_steps(kind: tuple[int, int], frames: int) -> None:
    delay = delays(*kind)
    codes = torch.arange(kind[0] * frames).view(kind[0], frames)
    inputs, labels = training_steps(codes, delay, PAD)
    assert inputs.shape == labels.shape == codes.shape
    for codebook, shift in enumerate(delay):
        # nothing is asked before the delay is over, and the last frames of a delayed codebook are never asked
        assert (labels[codebook, :shift] == IGNORED).all()
        assert labels[codebook, shift:].tolist() == codes[codebook, : max(frames - shift, 0)].tolist()
        assert inputs[codebook, 0] == PAD
        assert (
            inputs[codebook, 1:].tolist() == labels[codebook, :-1].masked_fill(labels[codebook, :-1] < 0, PAD).tolist()
        )
