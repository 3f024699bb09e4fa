"""The figures of an evaluation: of the base and of the fine-tuned model, with interval, meaning and source."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from musicgen_dreamboothing.console import plural
from musicgen_dreamboothing.evaluation.collect import EvaluationData, Losses
from musicgen_dreamboothing.evaluation.metrics.adherence import CHANCE, SCORES, compare
from musicgen_dreamboothing.evaluation.metrics.audio_distances import (
    FAR,
    distance_change,
    fewest_clips,
    frechet_distance,
    kernel_distance,
    separation,
)
from musicgen_dreamboothing.evaluation.metrics.losses import loss_changes
from musicgen_dreamboothing.evaluation.metrics.melody import melody_scores
from musicgen_dreamboothing.evaluation.metrics.prompts import mean_tag_divergence, text_audio_score, without_key_phrase
from musicgen_dreamboothing.evaluation.metrics.shares import mean_score, score_difference
from musicgen_dreamboothing.evaluation.metrics.statistics import (
    FEWEST_GROUPS,
    Change,
    Estimate,
    TooFewError,
    grouped_difference,
    mean_of_groups,
)
from musicgen_dreamboothing.evaluation.metrics.style import style_change
from musicgen_dreamboothing.evaluation.metrics.variety import (
    diversity,
    diversity_ratio,
    drift,
    is_collapsed,
    variety_within,
)
from musicgen_dreamboothing.evaluation.result import LOSS_PARTS, NEITHER, NEUTRAL, STYLE, Figure, Interval, Originality

Array = NDArray[np.float64]

ONE_TAKE = (
    "it takes two takes of a prompt (--variations 2 or more): with one, a change of the model can't be told from chance"
)


def figures_of(data: EvaluationData) -> list[Figure]:
    """All figures; one that can't be measured has a reason."""
    return [
        *_losses(data),
        *_unless_too_few(_style, data, "style_distance", "style_gap_closed"),
        *_unless_too_few(_kernel, data, "kernel_distance"),
        _frechet(data),
        _style_text(data),
        _neutral_text(data),
        _tags(data),
        *_adherence(data),
        *_melody(data),
        _diversity(data, STYLE, "diversity"),
        _diversity(data, NEUTRAL, "neutral_diversity"),
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
    """Prompts, of the style and neutral ones, whose takes are nearly the same.

    Those of the style also by what excerpts of a song have in common: a style may well vary less than the base's noise.
    """
    base, tuned = data.vectors.base, data.vectors.tuned
    limits = {STYLE: variety_within(data.vectors.all_songs, data.song_names), NEUTRAL: math.inf}
    return [
        data.base[rows[0]].prompt
        for kind, limit in limits.items()
        for rows in data.by_prompt(kind)
        if len(rows) > 1 and is_collapsed(tuned[rows], min(limit, diversity(base[rows])))
    ]


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
    better: str = "",
    chance: float | None = None,
    note: str = "",
) -> Figure:
    """A figure with its texts.

    Args:
        goal: its value for clips that could be excerpts of the songs.
        better: instead of the direction in its texts.
        chance: what clips that have nothing to do with their prompts would have.
        note: is added to its meaning.
    """
    kind, _, part = key.partition("_")
    is_part = key.startswith(LOSS_PARTS)
    texts, values = _texts()[f"{kind}_part" if is_part else key], {"embedding": data.embedder.name}
    if chance is not None:
        values["chance"] = f"{100 * chance:.0f} %"
    if is_part and data.losses is not None:
        values |= _loss_part(data.losses, part)
    return Figure(
        key=key,
        title=texts["title"].format(**values),
        better=better or texts["better"],
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
        meaning=f"{texts['meaning'].format(**values)} {note}".strip(),
        source=texts["source"].format(**values),
        reason=reason,
        chance=chance,
    )


def _loss_part(losses: Losses, part: str) -> dict[str, str]:
    """Names of a part of the loss for the texts: a side, or a codebook `q3`, which in stereo is of a side."""
    number = part.removeprefix("q")
    if number == part:
        return {"part": f"{part} channel", "name": part}
    title = f"codebook {number} of {losses.count.shape[1]}"
    side = f" ({losses.sides[(int(number) - 1) % len(losses.sides)]})" if losses.sides else ""
    return {"part": title + side, "name": part}


def _missing(data: EvaluationData, key: str, reason: str, chance: float | None = None) -> Figure:
    return _figure(data, key, None, None, reason=reason, chance=chance)


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
    changes = loss_changes(losses.base, losses.tuned, losses.count, losses.songs, losses.sides)
    clips, scope = len(losses.count), _scope(losses.songs, "held-out ")
    return [_figure(data, one.key, one.base, one.tuned, one.change.interval, clips=clips, **scope) for one in changes]


def _style(data: EvaluationData) -> list[Figure]:
    """Distance of the style's clips to the songs, and the share of it that is gone."""
    base, tuned = _style_vectors(data)
    change = style_change(
        base,
        tuned,
        data.vectors.all_songs,
        prompts=_row_prompts(data, data.rows(STYLE)),
        song_names=data.song_names,
    )
    scope = _scope(data.song_names)
    scope["groups"] = min(change.prompts, scope["groups"])
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
    """KAD; without a direction where a set of clips is so far from the songs that it has none."""
    base, tuned = _style_vectors(data)
    songs, held_out = data.vectors.songs, data.vectors.held_out
    change = _distance_change(data, kernel_distance)
    goal = None if held_out is None or len(held_out) < 2 else kernel_distance(songs, held_out)
    far = max(separation(songs, clips) for clips in (base, tuned)) > FAR
    options: dict[str, Any] = {"better": NEITHER, "note": _texts()["kernel_distance"]["far"]} if far else {}
    options |= {"goal": goal, "clips": len(base)} | _scope(data.songs.songs)
    return [_figure(data, "kernel_distance", change.base, change.tuned, change.change.interval, **options)]


def _frechet(data: EvaluationData) -> Figure:
    """FAD where there are enough clips and songs for it."""
    base, _ = _style_vectors(data)
    counts, fewest = (len(base), len(data.vectors.songs)), fewest_clips(base.shape[1])
    if min(counts) < fewest:
        return _missing(
            data,
            "frechet_distance",
            f"it takes {fewest} clips of each model and {fewest} song excerpts, not {counts[0]} and {counts[1]} "
            "(--variations, --song_excerpts)",
        )
    change = _distance_change(data, frechet_distance)
    return _figure(data, "frechet_distance", change.base, change.tuned, change.change.interval, clips=len(base))


def _distance_change(data: EvaluationData, distance: Callable[[Array, Array], float]) -> Change:
    """A distance of the style's clips to the songs."""
    prompts = _row_prompts(data, data.rows(STYLE))
    return distance_change(distance, *_style_vectors(data), data.vectors.songs, prompts=prompts, songs=data.songs.songs)


def _style_text(data: EvaluationData) -> Figure:
    """Of style prompts, without the key phrase: CLAP does not know it."""
    rows = data.rows(STYLE)
    texts = [without_key_phrase(data.base[row].prompt, data.key_phrase) for row in rows]
    known = [(row, text) for row, text in zip(rows, texts, strict=True) if text]
    reason = "style prompts say nothing but the key phrase" if data.key_phrase else "there is no style prompt"
    return _text(data, "text_score", known, reason)


def _neutral_text(data: EvaluationData) -> Figure:
    known = [(row, data.base[row].prompt) for row in data.rows(NEUTRAL)]
    return _text(data, "neutral_text_score", known, "there is no neutral prompt")


def _text(data: EvaluationData, key: str, known: list[tuple[int, str]], reason: str) -> Figure:
    """How well clips (rows) fit these texts; `reason` is given where there is none."""
    if not known:
        return _missing(data, key, reason)
    rows = [row for row, _ in known]
    texts = data.embedder.embed_text([text for _, text in known])
    if texts is None:
        return _missing(data, key, f"{data.embedder.name} embeds no words; CLAP does")
    base, tuned = (text_audio_score(sounds[rows], texts) for sounds in (data.vectors.base, data.vectors.tuned))
    groups = _row_prompts(data, rows)
    before, after = (mean_of_groups(scores, groups) for scores in (base, tuned))
    change = grouped_difference(base, tuned, groups).interval
    return _figure(data, key, before, after, change, clips=len(rows), groups=len(set(groups)))


def _tags(data: EvaluationData) -> Figure:
    songs, base, tuned = (
        data.embedder.tag_probabilities(vectors) for vectors in (data.vectors.songs, *_style_vectors(data))
    )
    if songs is None or base is None or tuned is None:
        return _missing(data, "tag_divergence", f"{data.embedder.name} recognises no genres; CLAP does")
    found = mean_tag_divergence(songs, base, tuned, _row_prompts(data, data.rows(STYLE)))
    return _figure(data, "tag_divergence", found.base, found.tuned, found.change.interval, clips=len(base))


def _adherence(data: EvaluationData) -> list[Figure]:
    """Tempo, key and notes, over the clips whose prompts ask for them, of both kinds: else there are few prompts."""
    figures = []
    for key in SCORES:
        scores = compare(key, *data.adherence)
        if scores.reason:
            figures.append(_missing(data, key, scores.reason, CHANCE[key]))
            continue
        groups = _row_prompts(data, scores.rows)
        base, tuned = (mean_score(side, groups) for side in (scores.base, scores.tuned))
        change = score_difference(scores.base, scores.tuned, groups).interval
        clips, chance, note = len(scores.rows), CHANCE[key], scores.note
        figures.append(_figure(data, key, base, tuned, change, clips=clips, chance=chance, note=note))
    return figures


def _melody(data: EvaluationData) -> list[Figure]:
    """How closely clips follow the melodies that were asked for; nothing for a base that takes none."""
    melodies = data.melodies
    if melodies is None:
        return []
    songs, asked = [one.song for one in melodies.asked], [one.classes for one in melodies.asked]
    try:
        base, tuned = (melody_scores(clips, asked, songs) for clips in (melodies.base, melodies.tuned))
    except ValueError as error:
        return [_missing(data, "melody_adherence", str(error))]
    before, after = (mean_score(side.asked, songs) for side in (base, tuned))
    change = score_difference(base.asked, tuned.asked, songs).interval
    chance = float(np.mean([base.shuffled, tuned.shuffled]))
    groups, clips = len(set(songs)), len(asked)
    return [_figure(data, "melody_adherence", before, after, change, clips=clips, groups=groups, chance=chance)]


def _diversity(data: EvaluationData, kind: str, key: str) -> Figure:
    """Variety within the prompts of the style; of neutral prompts also across them. The base's is 1."""
    takes = _takes(data, kind)
    if takes is None:
        return _missing(data, key, ONE_TAKE)
    try:
        ratio = diversity_ratio(*takes, across=kind == NEUTRAL)
    except ValueError as error:
        return _missing(data, key, str(error))
    change = None if ratio.interval is None else (ratio.interval[0] - 1, ratio.interval[1] - 1)
    prompts, variations, _ = takes[0].shape
    return _figure(data, key, Estimate(1.0, None), ratio, change, clips=prompts * variations, groups=prompts)


def _drift(data: EvaluationData) -> Figure:
    takes = _takes(data, NEUTRAL)
    if takes is None:
        return _missing(data, "drift", ONE_TAKE)
    try:
        moved = drift(*takes)
    except ValueError as error:
        return _missing(data, "drift", str(error))
    prompts, variations, _ = takes[0].shape
    return _figure(data, "drift", None, moved, goal=0.0, clips=prompts * variations, groups=prompts)


def _takes(data: EvaluationData, kind: str) -> tuple[Array, Array] | None:
    """Embeddings of base and fine-tuned model by prompt, `[P, V, D]`; None where prompts have one take each."""
    groups = data.by_prompt(kind)
    if not groups or len(groups[0]) < 2:
        return None
    base, tuned = (np.stack([vectors[rows] for rows in groups]) for vectors in (data.vectors.base, data.vectors.tuned))
    return base, tuned


def _style_vectors(data: EvaluationData) -> tuple[Array, Array]:
    """The embeddings of base and fine-tuned model for clips of style prompts."""
    rows = data.rows(STYLE)
    return data.vectors.base[rows], data.vectors.tuned[rows]


def _row_prompts(data: EvaluationData, rows: Sequence[int]) -> list[str]:
    """The prompts of clips: takes of one are not independent of each other."""
    return [data.base[row].prompt for row in rows]
