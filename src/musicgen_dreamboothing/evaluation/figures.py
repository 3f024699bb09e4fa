"""The figures of an evaluation: of the base and of the fine-tuned model, with interval, meaning and source."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files

import numpy as np
import yaml
from numpy.typing import NDArray

from musicgen_dreamboothing.evaluation.collect import EvaluationData
from musicgen_dreamboothing.evaluation.metrics.adherence import SCORES
from musicgen_dreamboothing.evaluation.metrics.audio_distances import (
    FAR,
    distance_change,
    fewest_clips,
    frechet_distance,
    kernel_distance,
    separation,
)
from musicgen_dreamboothing.evaluation.metrics.distances import Change, TooFewError, style_change, style_gap
from musicgen_dreamboothing.evaluation.metrics.losses import (
    cross_entropy,
    cross_entropy_change,
    perplexity,
    perplexity_change,
)
from musicgen_dreamboothing.evaluation.metrics.prompts import tag_divergence, text_audio_score
from musicgen_dreamboothing.evaluation.metrics.statistics import Estimate, estimate, paired_difference
from musicgen_dreamboothing.evaluation.metrics.variety import diversity, diversity_ratio, drift, is_collapsed
from musicgen_dreamboothing.evaluation.result import NEITHER, NEUTRAL, STYLE, Figure, Interval

Array = NDArray[np.float64]

ONE_TAKE = (
    "it takes two takes of a prompt (--variations 2 or more): with one, a change of the model can't be told from chance"
)
ROUGH = 6  # prompts; intervals of fewer are wide, and may hold the truth less often than they say
FEWEST_SONGS = 3  # to measure how far songs of the style are from each other
CODEBOOK = re.compile(r"((?:ce|ppl)_q)(\d+)")  # keys of single codebooks' losses and perplexities


def figures_of(data: EvaluationData) -> list[Figure]:
    """All figures; one that can't be measured has a reason."""
    return [
        *_losses(data),
        *_unless_too_few(_style, data, "style_distance", "style_gap_closed"),
        *_unless_too_few(_neutral_distance, data, "neutral_distance"),
        *_unless_too_few(_kernel, data, "kernel_distance"),
        _frechet(data),
        _text(data),
        _tags(data),
        *_adherence(data),
        _diversity(data, STYLE, "diversity"),
        _diversity(data, NEUTRAL, "neutral_diversity"),
        _drift(data),
    ]


def collapsed_prompts(data: EvaluationData) -> list[str]:
    """Prompts, of the style and neutral ones, whose takes are nearly the same."""
    collapsed = []
    for kind in (STYLE, NEUTRAL):
        groups = [rows for rows in data.by_prompt(kind) if len(rows) > 1]
        if not groups:
            continue
        usual = float(np.mean([diversity(data.vectors.base[rows]) for rows in groups]))
        collapsed += [data.base[rows[0]].prompt for rows in groups if is_collapsed(data.vectors.tuned[rows], usual)]
    return collapsed


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
    better: str = "",
    note: str = "",
) -> Figure:
    """A figure with its texts.

    Args:
        goal: its value for held-out songs.
        better: instead of the direction in its texts.
        note: the name of a text that is added to its meaning.
    """
    codebook = CODEBOOK.fullmatch(key)
    texts = _texts()[codebook[1] if codebook else key]
    values = {"embedding": data.embedder.name, "number": codebook[2] if codebook else ""}
    if data.losses is not None:
        values["codebooks"] = str(data.losses.count.shape[1])
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
        meaning=f"{texts['meaning']} {texts[note]}" if note else texts["meaning"],
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
        _perplexity(data, "ppl", base.mean, tuned.mean, change.mean),
        *(
            figure
            for number, (before, after, difference) in enumerate(codebooks, 1)
            for figure in (
                _figure(data, f"ce_q{number}", before, after, difference.interval, clips=clips),
                _perplexity(data, f"ppl_q{number}", before, after, difference),
            )
        ),
    ]


def _perplexity(data: EvaluationData, key: str, base: Estimate, tuned: Estimate, change: Estimate) -> Figure:
    """Of a loss and its change."""
    clips = 0 if data.losses is None else len(data.losses.count)
    return _figure(
        data, key, perplexity(base), perplexity(tuned), perplexity_change(base, change).interval, clips=clips
    )


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
    """KAD; without a direction where a set of clips is so far from the songs that it has none."""
    base, tuned = _style_vectors(data)
    songs, held_out = data.vectors.songs, data.vectors.held_out
    change = _distance_change(data, kernel_distance)
    goal = None if held_out is None or len(held_out) < 2 else kernel_distance(songs, held_out)
    far = max(separation(songs, clips) for clips in (base, tuned)) > FAR
    options = {"better": NEITHER, "note": "far"} if far else {}
    return [
        _figure(
            data, "kernel_distance", change.base, change.tuned, change.change, goal=goal, clips=len(base), **options
        )
    ]


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
    return _figure(data, "frechet_distance", change.base, change.tuned, change.change, clips=len(base))


def _distance_change(data: EvaluationData, distance: Callable[[Array, Array], float]) -> Change:
    """A distance of the style's clips to the songs."""
    prompts = [data.base[row].prompt for row in data.rows(STYLE)]
    return distance_change(distance, *_style_vectors(data), data.vectors.songs, prompts=prompts, songs=data.songs.songs)


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
) -> Figure:
    """A distance of the style's clips to a reference with these songs (or prompts)."""
    base, tuned = _style_vectors(data)
    change = measure(base, tuned, reference, data.seed, prompts=_prompts(data, STYLE), reference_songs=songs)
    return _figure(data, key, change.base, change.tuned, change.change, clips=len(base))


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
    return _figure(data, key, Estimate(1.0, None), ratio, change, clips=takes[0].shape[0] * takes[0].shape[1])


def _drift(data: EvaluationData) -> Figure:
    takes = _takes(data, NEUTRAL)
    if takes is None:
        return _missing(data, "drift", ONE_TAKE)
    try:
        moved = drift(*takes)
    except ValueError as error:
        return _missing(data, "drift", str(error))
    prompts, variations, _ = takes[0].shape
    note = "rough" if prompts < ROUGH else ""
    return _figure(data, "drift", None, moved, goal=0.0, clips=prompts * variations, note=note)


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
