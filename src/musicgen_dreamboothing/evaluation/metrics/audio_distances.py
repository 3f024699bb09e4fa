"""FAD and KAD, as fadtk 1.1.0 and kadtk 1.1.0 compute them, so that they can be compared. Pure functions of embeddings.

Embeddings are float arrays `[N, D]`, one row a clip. Both distances depend on the embedding and on the number of clips:
compare values of the same embedding and of as many clips only.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import cdist

from musicgen_dreamboothing.evaluation.metrics.statistics import Change, Jackknife, check_several

Array = NDArray[np.float64]
Rows = NDArray[np.intp]

KERNEL_SCALE = 100.0  # kadtk's SCALE_FACTOR
EPSILON = 1e-8  # kadtk's, beside the bandwidth
FAR = 2.0  # bandwidths; the kernel of clips so far from each other is exp(-2) = 0.14 and less
FEWEST_FRECHET = 500  # embeddings of each set: the smallest sample that fadtk's FAD-inf (`score_inf`) starts from
MOST_BLOCKS = 40  # of prompts, or of songs, for the jackknife: what bounds its time


def frechet_distance(reference: Array, generated: Array) -> float:
    """FAD of `[N, D]` and `[M, D]` (Kilgour et al. 2019): the Fréchet distance of normal distributions.

    |μ₁ - μ₂|² + tr C₁ + tr C₂ - 2 tr √(C₁ C₂), with C divided by N - 1, as in fadtk. The trace of the root is the
    nuclear norm of X₁ X₂ᵀ / √((N - 1)(M - 1)) for centred rows X: the same number as from fadtk's eigenvalues of
    C₁ C₂, without the square root of a nearly singular product. It is biased upwards, the more the fewer clips there
    are; see `fewest_clips`.

    Raises:
        TooFewError: fewer than two clips in a set.
    """
    check_several(reference, generated)
    first, second = ((rows - rows.mean(axis=0)) / np.sqrt(len(rows) - 1) for rows in (reference, generated))
    traces = (first**2).sum() + (second**2).sum()
    roots = [np.asarray(np.linalg.qr(rows, mode="r")) for rows in (first, second)]  # at most [D, D]
    shift = ((reference.mean(axis=0) - generated.mean(axis=0)) ** 2).sum()
    return float(shift + traces - 2 * np.linalg.norm(roots[0] @ roots[1].T, "nuc"))


def fewest_clips(dimensions: int) -> int:
    """How many clips of each set a FAD needs: 500 as in fadtk's FAD-inf, and more than the embedding has dimensions.

    With fewer than that the covariances are singular, and the bias is larger than most differences between models.
    """
    return max(FEWEST_FRECHET, dimensions + 1)


def kernel_distance(reference: Array, generated: Array) -> float:
    """KAD of `[N, D]` and `[M, D]` (Chung et al. 2025, "KAD: No more FAD!"): 100 times the unbiased MMD².

    MMD² = mean k(x, x') + mean k(y, y') - 2 mean k(x, y) over pairs of different clips (Gretton et al. 2012, eq. 3),
    k(x, y) = exp(-|x - y|² / (2σ² + 1e-8)). σ is the median distance within the generated clips, the lower one of two
    medians: kadtk 1.1.0 takes the set that is evaluated (its paper: the reference). It is unbiased for few clips, so it
    may be below 0. Of sets several σ apart it only measures how alike the clips of either set are: see `separation`.

    Raises:
        TooFewError: fewer than two clips in a set.
    """
    check_several(reference, generated)
    squares = [cdist(x, y, "sqeuclidean") for x, y in ((reference,) * 2, (generated,) * 2, (reference, generated))]
    scale = 2 * _bandwidth(squares[1]) ** 2 + EPSILON
    of_songs, of_clips, between = (np.exp(-square / scale) for square in squares)
    return float(KERNEL_SCALE * (_mean_of_pairs(of_songs) + _mean_of_pairs(of_clips) - 2 * between.mean()))


def separation(reference: Array, generated: Array) -> float:
    """How far two sets are from each other for `kernel_distance`: the median distance across them, in its σ.

    1 for sets of one distribution; infinite where all generated clips are the same, and no song.
    """
    across = float(np.median(cdist(reference, generated)))
    sigma = _bandwidth(cdist(generated, generated, "sqeuclidean"))
    return across / sigma if sigma > 0 else float("inf")


def _bandwidth(squares: Array) -> float:
    """The median distance from squared distances `[N, N]`; of two medians the lower one, as `torch.median` has it."""
    pairs = squares[np.triu_indices(len(squares), 1)]
    middle = (len(pairs) - 1) // 2
    return float(np.sqrt(np.partition(pairs, middle)[middle]))


def _mean_of_pairs(values: Array) -> float:
    """The mean of `[N, N]` without its diagonal."""
    number = len(values)
    return float((values.sum() - np.trace(values)) / (number * (number - 1)))


def distance_change(
    distance: Callable[[Array, Array], float],
    base: Array,
    tuned: Array,
    reference: Array,
    *,
    prompts: ArrayLike | None = None,
    songs: ArrayLike | None = None,
) -> Change:
    """A distance of two models' clips of the same prompts and seeds, `[N, D]`, to the songs `[M, D]`.

    Intervals are those of a jackknife over prompts and over songs: clips of one prompt, or of one song, are left out
    together. There are none with fewer than three prompts or songs.

    Args:
        distance: `frechet_distance` or `kernel_distance`.
        prompts, songs: the prompt of each pair of clips, and the song of each row of the reference.
    """
    clip_blocks, song_blocks = _blocks(len(base), prompts), _blocks(len(reference), songs)

    def distances(chosen_prompts: Rows, chosen_songs: Rows) -> list[float]:
        clips = np.concatenate([clip_blocks[number] for number in chosen_prompts])
        rows = np.concatenate([song_blocks[number] for number in chosen_songs])
        return [distance(reference[rows], model[clips]) for model in (base, tuned)]

    both = Jackknife.of(distances, len(clip_blocks), len(song_blocks))
    return Change(*(both.estimate(weights) for weights in ([1, 0], [0, 1], [-1, 1])))


def _blocks(number: int, names: ArrayLike | None) -> list[Rows]:
    """The rows of each group, at most `MOST_BLOCKS` blocks of them; without names each row is a group."""
    labels = np.arange(number) if names is None else np.unique(np.asarray(names), return_inverse=True)[1]
    blocks = labels % MOST_BLOCKS
    return [np.flatnonzero(blocks == block) for block in np.unique(blocks)]
