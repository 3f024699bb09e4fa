"""How closely clips follow the melodies that were asked for. Pure functions of pitch classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Classes = NDArray[np.uint8]
Array = NDArray[np.float64]


def chroma_cosine(clip: Classes, melody: Classes) -> float:
    """The chroma cosine similarity of audiocraft's `ChromaCosineSimilarityMetric` with one-hot chroma.

    The cosine of two one-hot frames is 1 where their classes agree and 0 elsewhere, so its mean is the share of frames
    that agree.

    Args:
        clip: strongest pitch class of each frame of a clip `[T]`.
        melody: those of the melody `[M]`, which begins anew where the clip is longer.

    Raises:
        ValueError: one of them has no frame.
    """
    if not len(clip) or not len(melody):
        raise ValueError(f"chroma is compared frame by frame, not {len(clip)} with {len(melody)} frames")
    return float(np.mean(clip == np.resize(melody, len(clip))))


@dataclass(frozen=True)
class MelodyScores:
    """Chroma cosines of N clips.

    Attributes:
        asked: with the melody of each clip `[N]`.
        shuffled: the mean over the melodies of the other songs `[N]`: what clips have that follow none.
    """

    asked: Array
    shuffled: Array


def melody_scores(clips: Sequence[Classes], melodies: Sequence[Classes], songs: Sequence[str]) -> MelodyScores:
    """Compares each clip with its melody, and with those of the other songs.

    Args:
        clips: pitch classes of each clip `[T]`.
        melodies: of the melody that each was asked for `[M]`.
        songs: the song of each melody.

    Raises:
        ValueError: there is one song only, or the numbers differ.
    """
    if len(set(songs)) < 2:
        raise ValueError(f"melodies are compared with those of other songs, and there is {len(set(songs))} song")
    asked = [chroma_cosine(clip, melody) for clip, melody in zip(clips, melodies, strict=True)]
    others = {song: [melody for other, melody in zip(songs, melodies, strict=True) if other != song] for song in songs}
    shuffled = [
        np.mean([chroma_cosine(clip, melody) for melody in others[song]])
        for clip, song in zip(clips, songs, strict=True)
    ]
    return MelodyScores(np.array(asked), np.array(shuffled))
