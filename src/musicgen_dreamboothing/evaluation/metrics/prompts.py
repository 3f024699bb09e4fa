"""How well clips fit words: the genres that CLAP recognises in them, and their prompts. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import rel_entr

from musicgen_dreamboothing.evaluation.metrics.statistics import Estimate, mean_of_groups

Array = NDArray[np.float64]

TAG_FLOOR = 1e-6  # audiocraft's, in metrics/kld.py


def tag_divergence(reference: Array, generated: Array) -> Array:
    """KL divergence in nats of tags of generated clips from those of their references, `[N]`; its mean is the KLD.

    sum p log(p / (q + 1e-6)) over classes, p the reference: as in audiocraft (metrics/kld.py; Kreuk et al. 2023,
    "AudioGen"). Both are `[N, L]`, probabilities of L classes.

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


@dataclass(frozen=True)
class DivergenceChange:
    """`mean_tag_divergence` of the base and of the fine-tuned model, and of the second minus the first."""

    base: Estimate
    tuned: Estimate
    change: Estimate


def mean_tag_divergence(songs: Array, base: Array, tuned: Array, groups: ArrayLike) -> DivergenceChange:
    """KL divergence in nats of the mean tags of clips from those of songs; it is not the KLD, a mean over pairs.

    The divergence of a mean of few clips is too high by about sum p var(q) / 2 q^2, which the jackknife over groups
    removes (Efron & Tibshirani 1993, chapter 11): a small divergence can come out below 0. Its pseudo-values give
    Student's intervals. The songs are taken as they are: with few of them both values are too high, but not the change.

    Args:
        songs: probabilities of L classes `[M, L]`.
        base, tuned: those of the same N prompts and seeds `[N, L]`.
        groups: the prompt of each `[N]`. With a single one nothing is corrected, and there are no intervals.

    Raises:
        ValueError: of tags that are no pairs or don't sum to 1.
    """
    if base.shape != tuned.shape:
        raise ValueError(f"pairs need as many clips before as after, not {base.shape} and {tuned.shape}")
    reference = songs.mean(axis=0)[None]

    def divergence(rows: Array) -> float:
        return float(tag_divergence(reference, rows.mean(axis=0)[None])[0])

    before, after = (_pseudo_values(divergence, rows, groups) for rows in (base, tuned))
    return DivergenceChange(mean_of_groups(before), mean_of_groups(after), mean_of_groups(after - before))


def _pseudo_values(statistic: Callable[[Array], float], rows: Array, groups: ArrayLike) -> Array:
    """P f(all) - (P - 1) f(all but one group), for each of P groups `[P]`; f(all) itself where there is one only."""
    labels, whole = np.asarray(groups), statistic(rows)
    names = np.unique(labels)
    if len(names) < 2:
        return np.array([whole])
    left_out = np.array([statistic(rows[labels != name]) for name in names])
    return len(names) * whole - (len(names) - 1) * left_out


def without_key_phrase(prompt: str, phrase: str) -> str:
    """The words of a prompt that CLAP can know: a made-up key-word means nothing to it.

    >>> without_key_phrase("zxpunk rock, slow and quiet", "zxpunk rock"), without_key_phrase("zxpunk", "zxpunk")
    ('slow and quiet', '')
    """
    if not phrase:
        return prompt
    rest = re.sub(rf"(?<!\w){re.escape(phrase)}(?!\w)\s*[,;:.]*", " ", prompt, flags=re.IGNORECASE)
    return " ".join(rest.split()).strip(" ,;:.")


def text_audio_score(sounds: Array, texts: Array) -> Array:
    """How well each clip fits its prompt, -1 to 1: cosines `[N]` of CLAP's embeddings of both, `[N, D]`.

    Wu et al. (2023), "Large-scale contrastive language-audio pretraining"; the mean over clips is the CLAP score
    (audiocraft, metrics/clap_consistency.py). Only to be compared within one CLAP model.
    """
    if sounds.shape != texts.shape:
        raise ValueError(f"each sound needs its text: {sounds.shape} and {texts.shape} are no pairs")
    lengths = np.linalg.norm(sounds, axis=1) * np.linalg.norm(texts, axis=1)
    return np.asarray((sounds * texts).sum(axis=1) / np.maximum(lengths, 1e-12), np.float64)
