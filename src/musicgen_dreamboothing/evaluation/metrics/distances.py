"""The numbers of the evaluation, as pure functions of arrays: how near, how like what was asked, how varied.

Embeddings are float arrays `[N, D]`, one row a clip: CLAP's, each of length 1, or points of a `signal.Space`. Both
must come from one embedding; figures of different ones are never compared. Intervals are bootstrapped (`statistics`);
a wave is float32 `[C, S]` at `rate` Hz.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from musicgen_dreamboothing.evaluation.metrics.statistics import Estimate, estimate, interval, resampled
from musicgen_dreamboothing.evaluation.result import Interval

Array = NDArray[np.float64]
Rows = NDArray[np.intp]

SHRINKAGE = 0.1  # of covariances, towards their diagonal
INFINITY_SIZES, INFINITY_DRAWS = 8, 8  # numbers of clips of the line to infinity, and draws at each
HALVES = 100  # of the clips, for the interval of that line
KERNEL_SCALE = 100.0  # of KAD, as kadtk has it
TAG_FLOOR = 1e-6  # audiocraft's, in metrics/kld.py
COLLAPSED = 0.1  # of the songs' variety


EQUAL = 1e-5  # of other distances: what rounding leaves between equal sounds


class TooFewError(ValueError):
    """There are too few different songs or clips to measure something; the message says what it takes."""


@dataclass(frozen=True)
class Change:
    """A figure of the base and of the fine-tuned model; `change` is the interval of tuned - base, if it is known."""

    base: Estimate
    tuned: Estimate
    change: Interval | None


# Distances of sets


def frechet_distance(a: Array, b: Array) -> float:
    """Fréchet distance of the Gaussians of two sets of vectors `[N, P]` and `[M, P]` (Heusel et al. 2017, eq. 6).

    |m_a - m_b|² + tr(C_a + C_b - 2 (C_a C_b)^½); FAD, where the vectors are embeddings of sound (Kilgour et al. 2019).
    Figures that are compared should come from as many clips: few clips make it larger. Covariances are shrunk by a
    tenth towards their diagonals, which keeps them regular where clips are few.
    """
    mean_a, mean_b = a.mean(axis=0), b.mean(axis=0)
    covariance_a, covariance_b = _covariance(a), _covariance(b)
    root = _square_root(covariance_a)
    mixed = np.sqrt(np.clip(np.linalg.eigvalsh(root @ covariance_b @ root), 0, None)).sum()
    distance = ((mean_a - mean_b) ** 2).sum() + np.trace(covariance_a) + np.trace(covariance_b) - 2 * mixed
    return max(0.0, float(distance))


def _covariance(rows: Array) -> Array:
    """Of `[N, P]`, shrunk towards its diagonal."""
    found = np.atleast_2d(np.cov(rows, rowvar=False))
    return (1 - SHRINKAGE) * found + SHRINKAGE * np.diag(np.diag(found))


def _square_root(symmetric: Array) -> Array:
    """The root of a positive semi-definite matrix `[P, P]`."""
    values, vectors = np.linalg.eigh(symmetric)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


@dataclass(frozen=True)
class Extrapolation:
    """A line through distances at several numbers of clips n: its value at 1/n = 0, its slope over 1/n, its R²."""

    value: float
    slope: float
    r_squared: float


def frechet_infinity(reference: Array, generated: Array, seed: int) -> Extrapolation:
    """The Fréchet distance that endlessly many clips would have, of `[N, P]` and `[M, P]`.

    Gui et al. (2024), "Adapting Frechet Audio Distance for generative music evaluation", after Chong & Forsyth
    (2020): the bias is near proportional to 1/n, so the distance is taken at several n and a line carries it
    to 1/n = 0. Unlike there, where the reference is huge, n clips of *both* sets are drawn, and without replacement:
    a clip that is drawn twice would add a bias of its own. The value may be a little below 0.

    Raises:
        ValueError: fewer than 3 (P + 1) clips in a set; project on fewer dimensions, or use `style_distance`.
    """
    most, fewest = min(len(reference), len(generated)), _fewest(reference)
    if most < fewest:
        raise ValueError(
            f"{most} clips are too few for a Fréchet distance in {reference.shape[1]} dimensions: "
            f"it takes {fewest} of each set; fewer dimensions need fewer clips, and style_distance works with a few"
        )
    rng = np.random.default_rng(seed)
    sizes = np.unique(np.round(1 / np.linspace(3 / most, 1 / most, INFINITY_SIZES)).astype(int))
    found = np.array([_frechet_of(reference, generated, size, rng) for size in sizes])
    slope, value = np.polyfit(1 / sizes, found, 1)
    left = found - (value + slope / sizes)
    return Extrapolation(float(value), float(slope), float(1 - left.var() / max(found.var(), 1e-30)))


def frechet_change(base: Array, tuned: Array, reference: Array, seed: int) -> Change:
    """`frechet_infinity` of two models' clips of the same prompts and seeds, `[N, P]`, to `[M, P]`.

    Intervals come from halves of the clips, drawn without replacement (half-sampling: McCarthy 1969,
    "Pseudo-replication"): a bootstrap draws clips twice, which would bias this figure, and half of a sample varies
    about as much as the sample does. None where a half is too few.

    Raises:
        ValueError: as `frechet_infinity` does.
    """
    before, after = (frechet_infinity(reference, clips, seed).value for clips in (base, tuned))
    rng, halves = np.random.default_rng(seed), []
    if min(len(reference), len(base)) // 2 >= _fewest(reference):
        for _ in range(HALVES):
            songs, rows = (rng.permutation(len(clips))[: len(clips) // 2] for clips in (reference, base))
            halves.append([frechet_infinity(reference[songs], clips[rows], seed).value for clips in (base, tuned)])
    first, second = np.array(halves).reshape(-1, 2).T
    return Change(Estimate(before, interval(first)), Estimate(after, interval(second)), interval(second - first))


def _fewest(rows: Array) -> int:
    """Clips that a line to infinity takes in so many dimensions."""
    return 3 * (rows.shape[1] + 1)


def _frechet_of(a: Array, b: Array, size: int, rng: np.random.Generator) -> float:
    """The mean distance of `size` clips of each set."""
    draws = [(rng.permutation(len(a))[:size], rng.permutation(len(b))[:size]) for _ in range(INFINITY_DRAWS)]
    return float(np.mean([frechet_distance(a[one], b[other]) for one, other in draws]))


def distances(a: Array, b: Array) -> Array:
    """Euclidean distances `[N, M]` of the rows of `[N, D]` and `[M, D]`."""
    centre = b.mean(axis=0)  # cancels less there
    left, right = np.asarray(a - centre, np.float64), np.asarray(b - centre, np.float64)
    squares = (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1) - 2 * left @ right.T
    return np.sqrt(np.clip(squares, 0, None))


def median_distance(rows: Array) -> float:
    """The median distance of two different rows of `[N, D]`: the usual bandwidth (Gretton et al. 2012)."""
    return float(np.median(distances(rows, rows)[np.triu_indices(len(rows), 1)]))


def kernel_distance(reference: Array, generated: Array, bandwidth: float | None = None) -> float:
    """KAD of `[N, D]` and `[M, D]` (Chung et al. 2025, "KAD: No more FAD!"): 100 times the unbiased MMD².

    MMD² = mean k(x, x') + mean k(y, y') - 2 mean k(x, y) over pairs of different clips (Gretton et al. 2012, eq. 3),
    k(x, y) = exp(-|x - y|² / 2σ²), σ the `median_distance` of the reference if it is not given. It is right on
    average for few clips too, so it may be below 0. But it tells nothing of sets that lie several σ apart: there it
    only measures how alike the clips of either set are, and a model that gets nearer may seem to go away.

    Raises:
        ValueError: fewer than two clips in a set, or a reference of equal clips.
    """
    return _kernel_of(reference, generated, bandwidth)(np.ones(len(generated)), np.ones(len(reference)))


def kernel_change(
    base: Array,
    tuned: Array,
    reference: Array,
    seed: int,
    *,
    prompts: ArrayLike | None = None,
    reference_songs: ArrayLike | None = None,
) -> Change:
    """`kernel_distance` of two models' clips of the same prompts and seeds, `[N, D]`, to `[M, D]`.

    Args:
        prompts, reference_songs: what is drawn again for the intervals, if several clips are of one.
    """
    measures = [_kernel_of(reference, clips) for clips in (base, tuned)]
    return _change(measures, base, reference, seed, prompts, reference_songs)


def _kernel_of(reference: Array, generated: Array, bandwidth: float | None = None) -> Callable[[Array, Array], float]:
    """`kernel_distance` from how often each clip of `generated` and of `reference` was drawn."""
    _check_several(reference, generated)
    sigma = median_distance(reference) if bandwidth is None else bandwidth
    if sigma <= EQUAL * float(distances(reference, generated).max()):
        raise TooFewError("the clips of the songs are all the same")
    between, of_songs, of_clips = (
        np.exp(-(distances(x, y) ** 2) / (2 * sigma**2))
        for x, y in ((generated, reference), (reference, reference), (generated, generated))
    )
    within_songs, within_clips = _between_songs(of_songs, None), _between_songs(of_clips, None)

    def measure(clips: Array, songs: Array) -> float:
        across = float(clips @ between @ songs) / float(clips.sum() * songs.sum())
        return KERNEL_SCALE * (within_songs(songs) + within_clips(clips) - 2 * across)

    return measure


def _change(
    measures: Sequence[Callable[[Array, Array], float]],
    clips: Array,
    reference: Array,
    seed: int,
    prompts: ArrayLike | None,
    songs: ArrayLike | None,
) -> Change:
    """Distances of base and tuned model from how often each clip was drawn, both models' clips together."""

    def measure(pairs: Rows, training: Rows) -> list[float]:
        drawn, known = _counts(pairs, clips), _counts(training, reference)
        return [one(drawn, known) for one in measures]

    rows = [np.arange(len(one)) for one in (clips, reference)]
    before, after = measure(*rows)
    _defined(before, after)
    first, second = resampled(measure, *rows, seed=seed, groups=(prompts, songs)).reshape(-1, 2).T
    return Change(Estimate(before, interval(first)), Estimate(after, interval(second)), interval(second - first))


def _counts(rows: Rows, clips: Array) -> Array:
    """How often each clip was drawn, `[N]`."""
    return np.bincount(rows, minlength=len(clips)).astype(float)


def _off_diagonal(square: Array) -> float:
    """The mean of `[N, N]` without its diagonal."""
    return float((square.sum() - np.trace(square)) / (len(square) * (len(square) - 1)))


def _check_several(*sets: Array) -> None:
    for rows in sets:
        if len(rows) < 2:
            raise TooFewError(f"it takes two clips at least, not {len(rows)}")


# Style: how near to the songs


def style_distance(
    clips: Array,
    reference: Array,
    *,
    clip_songs: ArrayLike | None = None,
    reference_songs: ArrayLike | None = None,
) -> float:
    """How far clips `[N, D]` are from the clips of the training songs `[M, D]`: 0 where one could be the other.

    The energy distance (Székely & Rizzo 2013, "Energy statistics"), an MMD² with the kernel -|x - y| (Sejdinovic et
    al. 2013), divided by how far the songs are from each other:

        (2 mean |x - y| - mean |x - x'|) / mean |y - y'| - 1

    Why this one: the Fréchet distance needs several clips for each dimension, and few make it larger. This, like KAD,
    holds for few clips (so it may be a little below 0); unlike KAD it has no bandwidth beyond which everything is
    equally far, so it shows progress from far away, where it grows as the distance does. It has no unit.

    Args:
        clip_songs, reference_songs: the song of each clip, if several are of one: means within a set are then taken
            over pairs of different songs, for halves of one song are more alike than songs are.

    Raises:
        ValueError: a set without two different songs (or clips).
    """
    spread = _between_songs(distances(reference, reference), reference_songs)
    each, all_songs = np.ones(len(clips)), np.ones(len(reference))
    distance = _style_of(clips, reference, clip_songs)(each, all_songs, spread(all_songs))
    _defined(distance)
    return distance


def style_change(
    base: Array,
    tuned: Array,
    reference: Array,
    seed: int,
    *,
    prompts: ArrayLike | None = None,
    reference_songs: ArrayLike | None = None,
) -> Change:
    """`style_distance` of two models' clips of the same prompts and seeds, `[N, D]`, to `[M, D]`.

    Args:
        prompts, reference_songs: the prompt and the song of each clip, as `clip_songs` and `reference_songs` there;
            they are drawn again for the intervals.
    """
    spread_of = _between_songs(distances(reference, reference), reference_songs)

    def of(clips: Array) -> Callable[[Array, Array], float]:
        measure = _style_of(clips, reference, prompts)
        return lambda drawn, songs: measure(drawn, songs, spread_of(songs))

    return _change([of(base), of(tuned)], base, reference, seed, prompts, reference_songs)


def _style_of(clips: Array, reference: Array, clip_songs: ArrayLike | None) -> Callable[[Array, Array, float], float]:
    """`style_distance` from how often each clip of both sets was drawn, and how far the songs that were are apart."""
    between, within = distances(clips, reference), _between_songs(distances(clips, clips), clip_songs)

    def measure(drawn: Array, songs: Array, spread: float) -> float:
        apart = float(drawn @ between @ songs) / float(drawn.sum() * songs.sum())
        return (2 * apart - within(drawn)) / spread - 1 if spread > EQUAL * apart else math.nan  # a draw of equal songs

    return measure


def _defined(*values: float) -> None:
    """Refuses style distances to songs that are all the same."""
    if any(map(math.isnan, values)):
        raise TooFewError("the clips of the songs are all the same")


def _between_songs(values: Array, names: ArrayLike | None) -> Callable[[Array], float]:
    """The mean of `[N, N]` over pairs of different songs, each as often as its clips were drawn; NaN without a pair.

    Clips are songs where they have no names. One that is drawn twice makes no pair with itself.
    """
    labels = np.arange(len(values)) if names is None else np.asarray(names)
    pairs = (labels[:, None] != labels).astype(float)
    if pairs.shape != values.shape or not pairs.any():
        raise TooFewError(f"it takes clips of two songs at least, not {len(values)} of {len(set(labels.tolist()))}")
    counted = values * pairs

    def mean(drawn: Array) -> float:
        total = float(drawn @ pairs @ drawn)
        return float(drawn @ counted @ drawn) / total if total else math.nan

    return mean


def gap_closed(base: float, tuned: float, goal: float) -> float | None:
    """The share of the way from the base to held-out songs that was gone, of three style distances.

    1 is as near as the songs themselves, 0 as far as the base, below 0 farther. None where the base is as near as
    the songs already: there is no gap.
    """
    return (base - tuned) / (base - goal) if base > goal else None


@dataclass(frozen=True)
class StyleGap:
    """Style distances of the base, the fine-tuned model and held-out songs; `change` is the interval of tuned - base.

    `closed` is the share of the gap that was closed; None where there is no gap.
    """

    base: Estimate
    tuned: Estimate
    goal: Estimate
    change: Interval | None
    closed: Estimate | None


def style_gap(
    base: Array,
    tuned: Array,
    goal: Array,
    reference: Array,
    seed: int,
    *,
    prompts: ArrayLike | None = None,
    goal_songs: ArrayLike | None = None,
    reference_songs: ArrayLike | None = None,
) -> StyleGap:
    """Style distances to the training songs `reference` `[M, D]`, and how much of the gap was closed.

    Intervals come from drawing prompts and songs again, each with all its clips, and both models' clips together.

    Args:
        base, tuned: clips of the same prompts and seeds in one order, `[N, D]`.
        goal: clips of held-out songs `[G, D]`, through the codec if generated clips are to be able to reach it.
        prompts: the prompt of each pair. Its clips are taken for clips of one song: that they are alike is for
            `diversity` to say. With one prompt only, leave it out.
        goal_songs, reference_songs: the song of each clip. If there is but one held-out song, leave it out: its clips
            then pass for songs, and the goal seems farther than it is.

    Raises:
        ValueError: not as many clips of base and tuned, or a set without two different songs (or clips).
    """
    if base.shape != tuned.shape:
        raise ValueError(f"clips of base and tuned model are paired: {len(base)} and {len(tuned)} are not")
    of_base, of_tuned = (_style_of(clips, reference, prompts) for clips in (base, tuned))
    of_goal = _style_of(goal, reference, goal_songs)
    spread_of = _between_songs(distances(reference, reference), reference_songs)

    def measure(pairs: Rows, held_out: Rows, training: Rows) -> tuple[float, float, float]:
        clips, best, songs = _counts(pairs, base), _counts(held_out, goal), _counts(training, reference)
        spread = spread_of(songs)
        return of_base(clips, songs, spread), of_tuned(clips, songs, spread), of_goal(best, songs, spread)

    rows = [np.arange(len(clips)) for clips in (base, goal, reference)]
    before, after, best = measure(*rows)
    _defined(before, after, best)
    drawn = resampled(measure, *rows, seed=seed, groups=(prompts, goal_songs, reference_songs)).reshape(-1, 3)
    first, second, third = drawn.T
    closed = gap_closed(before, after, best)
    return StyleGap(
        base=Estimate(before, interval(first)),
        tuned=Estimate(after, interval(second)),
        goal=Estimate(best, interval(third)),
        change=interval(second - first),
        closed=None if closed is None else Estimate(closed, interval((first - second) / (first - third))),
    )


# Words: tags and prompts


def tag_divergence(reference: Array, generated: Array) -> Array:
    """KL divergence in nats of tags of generated clips from those of their references, `[N]`; its mean is the KLD.

    sum p log(p / (q + 1e-6)) over classes, p the reference: as in audiocraft (metrics/kld.py; Kreuk et al. 2023,
    "AudioGen"). Both are `[N, L]`, probabilities of L classes. Sets that aren't paired can be compared by their means,
    as one row each.

    Raises:
        ValueError: of different shapes, or rows that don't sum to 1.
    """
    p, q = np.asarray(reference, np.float64), np.asarray(generated, np.float64)
    if p.shape != q.shape:
        raise ValueError(f"tags are compared in pairs: {p.shape} and {q.shape} are none")
    for rows in (p, q):
        if (rows < 0).any() or not np.allclose(rows.sum(axis=-1), 1, atol=1e-3):
            raise ValueError("tags need probabilities of classes that exclude each other: rows that sum to 1")
    logs = np.log(np.where(p > 0, p, 1)) - np.log(q + TAG_FLOOR)
    return np.asarray((p * logs).sum(axis=-1))


def text_audio_score(sounds: Array, texts: Array) -> Array:
    """How well each clip fits its prompt, -1 to 1: cosines `[N]` of CLAP's embeddings of both, `[N, D]`.

    Wu et al. (2023), "Large-scale contrastive language-audio pretraining"; the mean over clips is the CLAP score
    (audiocraft, metrics/clap_consistency.py). Only to be compared within one CLAP model.

    Raises:
        ValueError: not as many texts as sounds.
    """
    if sounds.shape != texts.shape:
        raise ValueError(f"each sound needs its text: {sounds.shape} and {texts.shape} are no pairs")
    lengths = np.linalg.norm(sounds, axis=1) * np.linalg.norm(texts, axis=1)
    return np.asarray((sounds * texts).sum(axis=1) / np.maximum(lengths, 1e-12), np.float64)


# Variety


def half_squares(a: Array, b: Array) -> Array:
    """|x - y|²/2 of the rows of `[N, D]` and `[M, D]`: of rows of length 1 it is the cosine distance, 1 - cos.

    In a `Space`, whose centre has no meaning of its own, it still has one where a cosine has not.
    """
    return distances(a, b) ** 2 / 2


def diversity(embeddings: Array) -> float:
    """How different clips `[N, D]` are: the mean of `half_squares` over pairs.

    Raises:
        ValueError: fewer than two clips.
    """
    _check_several(embeddings)
    return _off_diagonal(half_squares(embeddings, embeddings))


def is_collapsed(clips: Array, songs: Array, song_names: ArrayLike | None = None) -> bool:
    """Whether clips `[N, D]` of one prompt are all but the same: less than a tenth as different as songs `[M, D]` are.

    Both are means of `half_squares`, so a tenth is a third of the distance. Halves of a built-in song have 0.01 to
    0.13 of what lies between these songs, depending on the `Space`, and pieces of another style 0.6 to 4. A prompt
    asks for less variety than a collection has: a fifth or a half is no fault.

    Args:
        song_names: the song of each clip of `songs`, if several are of one.

    Raises:
        ValueError: fewer than two clips, or clips of fewer than two songs.
    """
    usual = _between_songs(half_squares(songs, songs), song_names)(np.ones(len(songs)))
    return diversity(clips) < COLLAPSED * usual


@dataclass(frozen=True)
class Drift:
    """What training did to prompts it should have left alone, in units of what another seed does to the base's clips.

    Attributes:
        same_seed: 0 where clips of one seed are unchanged, 1 where they are as different as clips of another seed.
            Sampling soon goes another way, so it comes near 1 even where prompts sound as ever.
        other_seeds: 1 where the tuned model's clips are to the base's what these are to each other, more where prompts
            have changed their sound.
        clips: `half_squares` of each pair of clips, `[P, S]`.
        yardstick: the mean between seeds of the base.
    """

    same_seed: Estimate
    other_seeds: Estimate
    clips: Array
    yardstick: float


def drift(before: Array, after: Array, seed: int) -> Drift:
    """How far neutral prompts have moved; before and after are `[P, S, D]`: P prompts, S seeds.

    Distances are `half_squares`: of CLAP's embeddings the cosine distance. Intervals come from drawing prompts.

    Raises:
        ValueError: of different shapes, one seed only, or a base whose seeds all sound the same.
    """
    if before.shape != after.shape or before.ndim != 3 or before.shape[1] < 2:
        raise ValueError(f"drift needs [prompts, seeds >= 2, D] of both, not {before.shape} and {after.shape}")
    across = np.array([half_squares(*clips) for clips in zip(before, after, strict=True)])  # [P, S, S]
    clips = np.diagonal(across, axis1=1, axis2=2)
    spread = np.array([_off_diagonal(half_squares(rows, rows)) for rows in before])
    if spread.mean() < 1e-12:
        raise ValueError("all seeds of the base sound the same: there is no yardstick for drift")
    prompts = np.stack([clips.mean(axis=1), [_off_diagonal(rows) for rows in across], spread], axis=1)  # [P, 3]
    same, others = (estimate(_ratio_to_last(column), prompts, seed=seed) for column in (0, 1))
    return Drift(same, others, clips, float(spread.mean()))


def _ratio_to_last(column: int) -> Callable[[Array], float]:
    return lambda rows: float(rows[:, column].mean() / rows[:, -1].mean())


# Cross-entropy on held-out songs


@dataclass(frozen=True)
class CrossEntropy:
    """In nats: of each of K codebooks, and their mean, which is the loss that is trained."""

    codebooks: tuple[Estimate, ...]
    mean: Estimate


def cross_entropy(nll: Array, count: Array, seed: int, songs: ArrayLike | None = None) -> CrossEntropy:
    """Mean cross-entropy on held-out clips, from sums over valid steps and numbers of these, both `[N, K]`.

    Intervals come from drawing clips again, or whole songs where the song of each clip is given.

    Raises:
        ValueError: of different shapes, or without clips.
    """
    return _cross_entropy(np.asarray(nll)[None], count, seed, songs)


def cross_entropy_change(
    base: Array, tuned: Array, count: Array, seed: int, songs: ArrayLike | None = None
) -> CrossEntropy:
    """The same of tuned - base, on the same clips: below 0 the fine-tuned model knows them better."""
    return _cross_entropy(np.stack([tuned, -np.asarray(base)]), count, seed, songs)


def _cross_entropy(terms: Array, count: Array, seed: int, songs: ArrayLike | None) -> CrossEntropy:
    """Of a sum of terms `[n, N, K]`."""
    sums, steps = terms.astype(np.float64).sum(axis=0), np.asarray(count, np.float64)
    if sums.shape != steps.shape or not len(steps):
        raise ValueError(f"cross-entropy needs sums and counts [clips, codebooks], not {sums.shape} and {steps.shape}")
    clips = np.stack([sums, steps], axis=1)  # [N, 2, K]
    drawn = resampled(_mean_nll, clips, seed=seed, groups=(songs,)).reshape(-1, clips.shape[2])
    means = _mean_nll(clips)
    codebooks = [Estimate(float(mean), interval(column)) for mean, column in zip(means, drawn.T, strict=True)]
    return CrossEntropy(tuple(codebooks), Estimate(float(means.mean()), interval(drawn.mean(axis=1))))


def _mean_nll(clips: Array) -> Array:
    """`[N, 2, K]`, sums and counts, -> `[K]`."""
    sums, steps = clips.sum(axis=0)
    return np.asarray(sums / np.maximum(steps, 1))


def perplexity(entropy: Estimate) -> Estimate:
    """exp of a cross-entropy in nats; of a change, by which factor the perplexity changes."""
    bounds = entropy.interval
    return Estimate(math.exp(entropy.value), None if bounds is None else (math.exp(bounds[0]), math.exp(bounds[1])))
