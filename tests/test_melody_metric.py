"""The figure of melody following: chroma cosine with the melody asked for, and with those of other songs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from musicgen_dreamboothing.evaluation.metrics.melody import chroma_cosine, melody_scores

RNG = np.random.default_rng(0)


def classes(frames: int) -> np.ndarray:
    return RNG.integers(12, size=frames).astype(np.uint8)


def test_the_cosine_of_one_hot_frames_is_audiocrafts() -> None:
    clip, melody = classes(400), classes(400)
    one_hot = (functional.one_hot(torch.from_numpy(side).long(), 12).float() for side in (clip, melody))
    assert chroma_cosine(clip, melody) == pytest.approx(functional.cosine_similarity(*one_hot, dim=1).mean().item())


@pytest.mark.parametrize(
    ("clip", "melody", "expected"), [([5, 5, 7], [5, 5, 7], 1), ([5, 6, 5, 6], [5, 6], 1), ([1], [2], 0)]
)
def test_a_melody_begins_anew_where_the_clip_is_longer(clip: list[int], melody: list[int], expected: float) -> None:
    assert chroma_cosine(np.array(clip, np.uint8), np.array(melody, np.uint8)) == expected


def test_clips_that_follow_are_told_from_clips_that_do_not() -> None:
    melodies, songs = [classes(300) for _ in range(6)], ["a", "a", "b", "b", "c", "c"]
    followed, ignored = melody_scores(melodies, melodies, songs), melody_scores(melodies[::-1], melodies, songs)
    assert followed.asked.tolist() == [1.0] * 6
    assert followed.shuffled == pytest.approx([1 / 12] * 6, abs=0.06)
    assert ignored.asked == pytest.approx([1 / 12] * 6, abs=0.06)


def test_other_melodies_are_of_other_songs() -> None:
    same, other = np.zeros(10, np.uint8), np.ones(10, np.uint8)
    scores = melody_scores([same, same, same], [same, same, other], ["a", "a", "b"])
    assert scores.shuffled.tolist() == [0, 0, 1]


def test_one_song_or_nothing_cannot_be_scored() -> None:
    melody = classes(4)
    with pytest.raises(ValueError, match="there is 1 song"):
        melody_scores([melody, melody], [melody, melody], ["a", "a"])
    with pytest.raises(ValueError, match="not 0 with 4 frames"):
        chroma_cosine(melody[:0], melody)
