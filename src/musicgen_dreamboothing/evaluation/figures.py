"""The figures of an evaluation: of the base and of the fine-tuned model, with interval, meaning and source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from musicgen_dreamboothing.console import plural
from musicgen_dreamboothing.evaluation.collect import EvaluationData
from musicgen_dreamboothing.evaluation.metrics.adherence import SCORES
from musicgen_dreamboothing.evaluation.metrics.distances import (
    Change,
    kernel_change,
    kernel_distance,
)
from musicgen_dreamboothing.evaluation.metrics.losses import loss_changes
from musicgen_dreamboothing.evaluation.metrics.prompts import tag_divergence, text_audio_score
from musicgen_dreamboothing.evaluation.metrics.statistics import (
    FEWEST_GROUPS,
    Estimate,
    TooFewError,
    estimate,
    paired_difference,
)
from musicgen_dreamboothing.evaluation.metrics.style import style_change
from musicgen_dreamboothing.evaluation.metrics.variety import diversity, drift, is_collapsed
from musicgen_dreamboothing.evaluation.result import CODEBOOK, NEUTRAL, STYLE, Figure, Interval

Array = NDArray[np.float64]

FEWEST_SONGS = 3  # to measure how far songs of the style are from each other


def figures_of(data: EvaluationData) -> list[Figure]:
    """All figures; one that can't be measured has a reason."""
    return [
        *_losses(data),
        *_unless_too_few(_style, data, "style_distance", "style_gap_closed"),
        *_unless_too_few(_kernel, data, "kernel_distance"),
        _text(data),
        _tags(data),
        *_adherence(data),
        *_unless_too_few(_diversity, data, "diversity"),
        _drift(data),
    ]


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
    groups: int = 0,
    scope: str = "",
    reason: str = "",
) -> Figure:
    """A figure with its texts; `goal` is its value for clips that could be excerpts of the songs."""
    kind, _, number = key.partition(CODEBOOK)
    texts = _texts()[kind + CODEBOOK if number else key]
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
        groups=groups,
        scope=scope,
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
    changes = loss_changes(losses.base, losses.tuned, losses.count, losses.songs)
    clips, scope = len(losses.count), _scope(losses.songs, "held-out ")
    return [_figure(data, one.key, one.base, one.tuned, one.change.interval, clips=clips, **scope) for one in changes]


def _style(data: EvaluationData) -> list[Figure]:
    """Distance of the style's clips to the songs, and the share of it that is gone."""
    base, tuned = _style_vectors(data)
    rows = data.rows(STYLE)
    change = style_change(
        base,
        tuned,
        data.vectors.all_songs,
        prompts=[data.base[row].prompt for row in rows],
        song_names=data.song_names,
    )
    scope = _scope(data.song_names)
    scope["groups"] = min(change.prompts, int(scope["groups"]))
    distance = _figure(
        data, "style_distance", change.base, change.tuned, change.change.interval, goal=0.0, clips=len(base), **scope
    )
    if change.closed is None:
        why = "the base model is not surely apart from your songs, so that there is no way whose share could be given"
        return [distance, _missing(data, "style_gap_closed", why)]
    return [distance, _figure(data, "style_gap_closed", None, change.closed, goal=1.0, clips=len(base), **scope)]


def _scope(songs: Sequence[str], kind: str = "") -> dict[str, Any]:
    """`groups` and `scope` of a figure whose intervals are of songs, or of the clips of one or two songs."""
    count = len(set(songs))
    if count >= FEWEST_GROUPS:
        return {"groups": count, "scope": ""}
    return {"groups": len(songs), "scope": plural(count, f"{kind}song")}


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
        return _missing(data, "text_score", f"{data.embedder.name} embeds no words; CLAP does")
    base, tuned = (text_audio_score(sounds, texts) for sounds in (data.vectors.base, data.vectors.tuned))
    return _paired(data, "text_score", base, tuned)


def _tags(data: EvaluationData) -> Figure:
    songs, base, tuned = (
        data.embedder.tag_probabilities(vectors) for vectors in (data.vectors.songs, *_style_vectors(data))
    )
    if songs is None or base is None or tuned is None:
        return _missing(data, "tag_divergence", f"{data.embedder.name} recognises no genres; CLAP does")
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
