"""The figures of an evaluation: of the base and of the fine-tuned model, with interval, meaning and source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files

import numpy as np
import yaml
from numpy.typing import NDArray

from musicgen_dreamboothing.evaluation.collect import EvaluationData
from musicgen_dreamboothing.evaluation.metrics.adherence import SCORES
from musicgen_dreamboothing.evaluation.metrics.distances import (
    Change,
    TooFewError,
    kernel_change,
    kernel_distance,
    style_change,
    style_gap,
)
from musicgen_dreamboothing.evaluation.metrics.losses import cross_entropy, cross_entropy_change, perplexity
from musicgen_dreamboothing.evaluation.metrics.prompts import tag_divergence, text_audio_score
from musicgen_dreamboothing.evaluation.metrics.statistics import Estimate, estimate, paired_difference
from musicgen_dreamboothing.evaluation.metrics.variety import diversity, drift, is_collapsed
from musicgen_dreamboothing.evaluation.result import NEUTRAL, STYLE, Figure, Interval, Originality

Array = NDArray[np.float64]

FEWEST_SONGS = 3  # to measure how far songs of the style are from each other
CODEBOOK = "ce_q"  # prefix of the keys of single codebooks' losses


def figures_of(data: EvaluationData) -> list[Figure]:
    """All figures; one that can't be measured has a reason."""
    return [
        *_losses(data),
        *_unless_too_few(_style, data, "style_distance", "style_gap_closed"),
        *_unless_too_few(_neutral_distance, data, "neutral_distance"),
        *_unless_too_few(_kernel, data, "kernel_distance"),
        _text(data),
        _tags(data),
        *_adherence(data),
        *_unless_too_few(_diversity, data, "diversity"),
        _drift(data),
    ]


def near_copies(data: EvaluationData, originality: Originality) -> Figure:
    """The shares of clips of both kinds that are near-copies; the base is the control, and has no interval."""
    base, tuned = originality.base, originality.tuned
    if not (tuned.by_codes or tuned.by_sound):
        return _missing(data, "near_copies", "It could not be checked " + "; ".join(originality.not_checked) + ".")
    before, after = (Estimate(side.flagged / side.clips, None) for side in (base, tuned))
    return _figure(data, "near_copies", before, after, clips=tuned.clips)


def collapsed_prompts(data: EvaluationData) -> list[str]:
    """Style prompts whose clips are nearly the same."""
    tuned, songs = data.vectors.tuned, data.vectors.songs
    groups = [rows for rows in data.by_prompt(STYLE) if len(rows) > 1]
    try:
        collapsed = [is_collapsed(tuned[rows], songs, _labels(data.songs.songs)) for rows in groups]
    except TooFewError:  # no variety of songs to compare with
        return []
    return [data.base[rows[0]].prompt for rows, is_one in zip(groups, collapsed, strict=True) if is_one]


@cache
def _texts() -> dict[str, dict[str, str]]:
    """Title, meaning and source of each figure, by its key."""
    text = files("musicgen_dreamboothing.assets").joinpath("figures.yaml").read_text(encoding="utf-8")
    texts: dict[str, dict[str, str]] = yaml.safe_load(text)
    return texts


def _figure(
    data: EvaluationData,
    key: str,
    base: Estimate | None,
    tuned: Estimate | None,
    change: Interval | None = None,
    *,
    goal: float | None = None,
    clips: int = 0,
    reason: str = "",
) -> Figure:
    """A figure with its texts; `goal` is its value for held-out songs."""
    number = key.removeprefix(CODEBOOK)
    texts = _texts()[CODEBOOK if number != key else key]
    values = {"embedding": data.embedder.name, "number": number}
    if data.losses is not None:
        values["codebooks"] = str(data.losses.count.shape[1])
    return Figure(
        key=key,
        title=texts["title"].format(**values),
        better=texts["better"],
        base=None if base is None else base.value,
        tuned=None if tuned is None else tuned.value,
        unit=texts.get("unit", ""),
        base_interval=None if base is None else base.interval,
        tuned_interval=None if tuned is None else tuned.interval,
        goal=goal,
        change=change,
        clips=clips,
        meaning=texts["meaning"],
        source=texts["source"].format(**values),
        reason=reason,
    )


def _missing(data: EvaluationData, key: str, reason: str) -> Figure:
    return _figure(data, key, None, None, reason=reason)


def _unless_too_few(
    measure: Callable[[EvaluationData], list[Figure]], data: EvaluationData, *keys: str
) -> list[Figure]:
    """The figures, or the reason why there are too few songs or clips for them."""
    try:
        return measure(data)
    except TooFewError as error:
        return [_missing(data, key, f"too few songs: {error}") for key in keys]


def _losses(data: EvaluationData) -> list[Figure]:
    losses = data.losses
    if losses is None:
        return [_missing(data, "loss", "no song was held out; --eval_fraction holds some out")]
    base, tuned = (cross_entropy(nll, losses.count, data.seed, losses.songs) for nll in (losses.base, losses.tuned))
    change = cross_entropy_change(losses.base, losses.tuned, losses.count, data.seed, losses.songs)
    clips = len(losses.count)
    codebooks = zip(base.codebooks, tuned.codebooks, change.codebooks, strict=True)
    return [
        _figure(data, "loss", base.mean, tuned.mean, change.mean.interval, clips=clips),
        _figure(data, "ppl", perplexity(base.mean), perplexity(tuned.mean), clips=clips),
        *(
            _figure(data, f"{CODEBOOK}{number}", before, after, difference.interval, clips=clips)
            for number, (before, after, difference) in enumerate(codebooks, 1)
        ),
    ]


def _style(data: EvaluationData) -> list[Figure]:
    """Distance of the style's clips to the songs, and the share of the way to held-out songs."""
    _check_songs(data)
    base, tuned = _style_vectors(data)
    reference, held_out, songs = data.vectors.songs, data.vectors.held_out, _labels(data.songs.songs)
    if data.held_out is None or held_out is None or len(held_out) < 2:
        return [
            _changed(data, "style_distance", style_change, reference, songs),
            _missing(data, "style_gap_closed", "it takes two clips that were held out"),
        ]
    gap = style_gap(
        base,
        tuned,
        held_out,
        reference,
        data.seed,
        prompts=_prompts(data, STYLE),
        goal_songs=_labels(data.held_out.songs),
        reference_songs=songs,
    )
    distance = _figure(data, "style_distance", gap.base, gap.tuned, gap.change, goal=gap.goal.value, clips=len(base))
    if gap.closed is None:
        why = "before the training it was as near as held-out songs already"
        return [distance, _missing(data, "style_gap_closed", why)]
    return [distance, _figure(data, "style_gap_closed", None, gap.closed, goal=1.0, clips=len(base))]


def _neutral_distance(data: EvaluationData) -> list[Figure]:
    neutral = data.vectors.base[data.rows(NEUTRAL)]
    if len(neutral) < 2:
        return [_missing(data, "neutral_distance", "it takes two clips of neutral prompts")]
    return [_changed(data, "neutral_distance", style_change, neutral, _prompts(data, NEUTRAL))]


def _kernel(data: EvaluationData) -> list[Figure]:
    _check_songs(data)
    songs, held_out = data.vectors.songs, data.vectors.held_out
    goal = None if held_out is None or len(held_out) < 2 else kernel_distance(songs, held_out)
    return [_changed(data, "kernel_distance", kernel_change, songs, _labels(data.songs.songs), goal)]


def _check_songs(data: EvaluationData) -> None:
    """Clips of one or two songs are too alike to measure how far songs of this style are from each other."""
    songs = len(set(data.songs.songs))
    if songs < FEWEST_SONGS:
        raise TooFewError(f"it takes {FEWEST_SONGS} songs that were trained on, not {songs}")


def _changed(
    data: EvaluationData,
    key: str,
    measure: Callable[..., Change],
    reference: Array,
    songs: list[str] | None,
    goal: float | None = None,
) -> Figure:
    """A distance of the style's clips to a reference with these songs (or prompts)."""
    base, tuned = _style_vectors(data)
    change = measure(base, tuned, reference, data.seed, prompts=_prompts(data, STYLE), reference_songs=songs)
    return _figure(data, key, change.base, change.tuned, change.change, goal=goal, clips=len(base))


def _text(data: EvaluationData) -> Figure:
    texts = data.embedder.embed_text([clip.prompt for clip in data.base])
    if texts is None:
        return _missing(data, "text_score", "only CLAP embeds both words and sounds")
    base, tuned = (text_audio_score(sounds, texts) for sounds in (data.vectors.base, data.vectors.tuned))
    return _paired(data, "text_score", base, tuned)


def _tags(data: EvaluationData) -> Figure:
    songs, base, tuned = (
        data.embedder.tag_probabilities(vectors) for vectors in (data.vectors.songs, *_style_vectors(data))
    )
    if songs is None or base is None or tuned is None:
        return _missing(data, "tag_divergence", "only CLAP recognises genres")
    mean = songs.mean(axis=0)[None]

    def divergence(tags: Array) -> float:
        return float(tag_divergence(mean, tags.mean(axis=0)[None])[0])

    before, after = (estimate(divergence, tags, seed=data.seed) for tags in (base, tuned))
    return _figure(data, "tag_divergence", before, after, clips=len(base))


def _adherence(data: EvaluationData) -> list[Figure]:
    """Tempo, key and notes, over the clips whose prompts ask for them."""
    figures = []
    for key in SCORES:
        base, tuned = (np.array([clip.scores[key] for clip in clips if key in clip.scores]) for clips in data.adherence)
        figures.append(_paired(data, key, base, tuned) if len(base) else _missing(data, key, "no prompt asks for one"))
    return figures


def _diversity(data: EvaluationData) -> list[Figure]:
    groups = [rows for rows in data.by_prompt(STYLE) if len(rows) > 1]
    if not groups:
        return [_missing(data, "diversity", "it takes two clips of a prompt")]
    usual = max(diversity(data.vectors.songs), 1e-12)
    base, tuned = (
        np.array([diversity(vectors[rows]) for rows in groups]) / usual
        for vectors in (data.vectors.base, data.vectors.tuned)
    )
    return [_paired(data, "diversity", base, tuned, clips=sum(map(len, groups)))]


def _drift(data: EvaluationData) -> Figure:
    groups = data.by_prompt(NEUTRAL)
    if not groups or len(groups[0]) < 2:
        return _missing(data, "drift", "it takes two clips of a neutral prompt")
    before, after = (
        np.stack([vectors[rows] for rows in groups]) for vectors in (data.vectors.base, data.vectors.tuned)
    )
    try:
        moved = drift(before, after, data.seed)
    except ValueError as error:
        return _missing(data, "drift", str(error))
    return _figure(data, "drift", None, moved, goal=1.0, clips=len(groups) * len(groups[0]))


def _style_vectors(data: EvaluationData) -> tuple[Array, Array]:
    """The embeddings of base and fine-tuned model for clips of style prompts."""
    rows = data.rows(STYLE)
    return data.vectors.base[rows], data.vectors.tuned[rows]


def _labels(names: Sequence[str]) -> list[str] | None:
    """The songs (or prompts) of clips, or None where there is only one: then each clip counts as a song."""
    return list(names) if len(set(names)) > 1 else None


def _prompts(data: EvaluationData, kind: str) -> list[str] | None:
    return _labels([data.base[row].prompt for row in data.rows(kind)])


def _paired(data: EvaluationData, key: str, base: Array, tuned: Array, clips: int | None = None) -> Figure:
    """Means of values that belong to the same prompts and seeds."""
    change = paired_difference(base, tuned, data.seed).interval
    before, after = (estimate(np.mean, values, seed=data.seed) for values in (base, tuned))
    return _figure(data, key, before, after, change, clips=len(base) if clips is None else clips)
