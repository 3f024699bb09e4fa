"""How well clips fit words: the genres that CLAP recognises in them, and their prompts. Pure functions of arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import rel_entr

Array = NDArray[np.float64]

TAG_FLOOR = 1e-6  # audiocraft's, in metrics/kld.py


def tag_divergence(reference: Array, generated: Array) -> Array:
    """KL divergence in nats of tags of generated clips from those of their references, `[N]`; its mean is the KLD.

    sum p log(p / (q + 1e-6)) over classes, p the reference: as in audiocraft (metrics/kld.py; Kreuk et al. 2023,
    "AudioGen"). Both are `[N, L]`, probabilities of L classes. Sets without pairs can be compared by their means, as
    one row each.

    Raises:
        ValueError: of different shapes, or rows that don't sum to 1.
    """
    p, q = np.asarray(reference, np.float64), np.asarray(generated, np.float64)
    if p.shape != q.shape:
        raise ValueError(f"tags are compared in pairs: {p.shape} and {q.shape} are none")
    for rows in (p, q):
        if (rows < 0).any() or not np.allclose(rows.sum(axis=-1), 1, atol=1e-3):
            raise ValueError("tags need probabilities of classes that exclude each other: rows that sum to 1")
    return np.asarray(rel_entr(p, q + TAG_FLOOR).sum(axis=-1))


def text_audio_score(sounds: Array, texts: Array) -> Array:
    """How well each clip fits its prompt, -1 to 1: cosines `[N]` of CLAP's embeddings of both, `[N, D]`.

    Wu et al. (2023), "Large-scale contrastive language-audio pretraining"; the mean over clips is the CLAP score
    (audiocraft, metrics/clap_consistency.py). Only to be compared within one CLAP model.
    """
    if sounds.shape != texts.shape:
        raise ValueError(f"each sound needs its text: {sounds.shape} and {texts.shape} are no pairs")
    lengths = np.linalg.norm(sounds, axis=1) * np.linalg.norm(texts, axis=1)
    return np.asarray((sounds * texts).sum(axis=1) / np.maximum(lengths, 1e-12), np.float64)
