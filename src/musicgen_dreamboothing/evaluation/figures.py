"""What was heard, in figures: of the base and of the fine-tuned model, with interval, meaning and source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files

import numpy as np
import yaml
from numpy.typing import NDArray

from musicgen_dreamboothing.evaluation.metrics import distances as metrics
from musicgen_dreamboothing.evaluation.metrics.adherence import SCORES, Adherence, adherence
from musicgen_dreamboothing.evaluation.metrics.embedding import Embedder
from musicgen_dreamboothing.evaluation.metrics.statistics import Estimate, estimate, paired_difference
from musicgen_dreamboothing.evaluation.playing import Played
from musicgen_dreamboothing.evaluation.result import NEUTRAL, STYLE, Figure
from musicgen_dreamboothing.evaluation.songs import Excerpts

Array = NDArray[np.float64]

FEWEST_SONGS = 3  # whose distances from each other are a yardstick for the style
CODEBOOK = "ce_q"  # begins the keys of the losses of single codebooks


@dataclass(frozen=True)
class Losses:
    """Sums of base and fine-tuned model and the number of steps, all `[N, K]`, and the song of each held-out clip."""

    base: Array
    tuned: Array
    count: Array
    songs: list[str]


@dataclass(frozen=True)
class Vectors:
    """Embeddings of everything, `[N, D]`; `held_out` is None where no song was held out."""

    base: Array
    tuned: Array
    songs: Array
    held_out: Array | None


@dataclass(frozen=True)
class Heard:
    """What figures are made of; what is measured of it is measured once.

    Attributes:
        base, tuned: clips of the same prompts and seeds in one order.
        songs, held_out: excerpts of the songs, of the same length, through the codec.
        losses: on held-out songs; None where none were held out.
        embedder: what sounds are compared with.
        seed: of all intervals.
    """

    base: list[Played]
    tuned: list[Played]
    songs: Excerpts
    held_out: Excerpts | None
    losses: Losses | None
    embedder: Embedder
    seed: int

    def rows(self, kind: str) -> list[int]:
        """The places of one kind of clips."""
        return [row for row, clip in enumerate(self.base) if clip.kind == kind]

    def by_prompt(self, kind: str) -> list[list[int]]:
        """The places of each prompt's clips."""
        groups: dict[str, list[int]] = {}
        for row in self.rows(kind):
            groups.setdefault(self.base[row].prompt, []).append(row)
        return list(groups.values())

    @cached_property
    def vectors(self) -> Vectors:
        """Every sound as the embedder hears it."""
        embed = self.embedder.embed
        base, tuned = (embed([(clip.wave, clip.rate) for clip in clips]) for clips in (self.base, self.tuned))
        held_out = embed(self.held_out.waves) if self.held_out is not None else None
        return Vectors(base, tuned, embed(self.songs.waves), held_out)

    @cached_property
    def adherence(self) -> tuple[list[Adherence], list[Adherence]]:
        """Whether each clip of base and fine-tuned model has the tempo and key that its prompt asks for."""
        base, tuned = (
            [adherence(clip.prompt, clip.wave, clip.rate) for clip in clips] for clips in (self.base, self.tuned)
        )
        return base, tuned


def figures_of(heard: Heard) -> list[Figure]:
    """All figures; one that can't be had says why."""
    found = [
        *_losses(heard),
        *_if_enough(_distances, heard, "style_distance", "style_gap_closed"),
        *_if_enough(lambda heard: [_from_neutral(heard)], heard, "neutral_distance"),
        *_if_enough(lambda heard: [_kernel(heard)], heard, "kernel_distance"),
        _frechet(heard),
        _text(heard),
        _tags(heard),
        *_adherence(heard),
        *_if_enough(lambda heard: [_variety(heard)], heard, "diversity"),
        _drift(heard),
    ]
    return [_told(figure, heard) for figure in found]


def _if_enough(measure: Callable[[Heard], list[_Found]], heard: Heard, *keys: str) -> list[_Found]:
    """What is measured, or the reason why there are too few songs or clips for it."""
    try:
        return measure(heard)
    except metrics.TooFewError as error:
        return [_missing(key, f"it can't be told from so few songs: {error}") for key in keys]


def collapsed_prompts(heard: Heard) -> list[str]:
    """Style prompts whose clips are all but the same."""
    tuned, songs = heard.vectors.tuned, heard.vectors.songs
    groups = [rows for rows in heard.by_prompt(STYLE) if len(rows) > 1]
    try:
        collapsed = [metrics.is_collapsed(tuned[rows], songs, _labels(heard.songs.songs)) for rows in groups]
    except metrics.TooFewError:  # there is no variety of songs to compare with
        return []
    return [heard.base[rows[0]].prompt for rows, is_collapsed in zip(groups, collapsed, strict=True) if is_collapsed]


@cache
def _texts() -> dict[str, dict[str, str]]:
    """What is said of each figure, by its key."""
    found: dict[str, dict[str, str]] = yaml.safe_load(
        files("musicgen_dreamboothing.assets").joinpath("figures.yaml").read_text(encoding="utf-8")
    )
    return found


@dataclass(frozen=True)
class _Found:
    """A figure without its words; `goal` is that of held-out songs, `reason` tells why there is no value."""

    key: str
    base: Estimate | None
    tuned: Estimate | None
    change: tuple[float, float] | None = None
    goal: float | None = None
    clips: int = 0
    reason: str = ""


def _told(found: _Found, heard: Heard) -> Figure:
    """With its words."""
    number = found.key.removeprefix(CODEBOOK)
    words = _texts()[CODEBOOK if number != found.key else found.key]
    known = {"embedding": heard.embedder.name, "number": number}
    if heard.losses is not None:
        known["codebooks"] = str(heard.losses.count.shape[1])
    return Figure(
        key=found.key,
        title=words["title"].format(**known),
        better=words["better"],
        base=None if found.base is None else found.base.value,
        tuned=None if found.tuned is None else found.tuned.value,
        unit=words.get("unit", ""),
        base_interval=None if found.base is None else found.base.interval,
        tuned_interval=None if found.tuned is None else found.tuned.interval,
        goal=found.goal,
        change=found.change,
        clips=found.clips,
        meaning=words["meaning"],
        source=words["source"].format(**known),
        reason=found.reason,
    )


def _missing(key: str, reason: str) -> _Found:
    return _Found(key, None, None, reason=reason)


def _losses(heard: Heard) -> list[_Found]:
    losses = heard.losses
    if losses is None:
        return [_missing("loss", "no song was held out; --eval_fraction holds some out")]
    base, tuned = (
        metrics.cross_entropy(nll, losses.count, heard.seed, losses.songs) for nll in (losses.base, losses.tuned)
    )
    change = metrics.cross_entropy_change(losses.base, losses.tuned, losses.count, heard.seed, losses.songs)
    clips = len(losses.count)
    codebooks = zip(base.codebooks, tuned.codebooks, change.codebooks, strict=True)
    return [
        _Found("loss", base.mean, tuned.mean, change.mean.interval, clips=clips),
        _Found("ppl", metrics.perplexity(base.mean), metrics.perplexity(tuned.mean), clips=clips),
        *(
            _Found(f"{CODEBOOK}{number}", before, after, difference.interval, clips=clips)
            for number, (before, after, difference) in enumerate(codebooks, 1)
        ),
    ]


def _distances(heard: Heard) -> list[_Found]:
    """How near the clips of style prompts are to the songs, and how much of the way was gone."""
    _check_songs(heard)
    base, tuned = _of_style(heard)
    reference, held_out, songs = heard.vectors.songs, heard.vectors.held_out, _labels(heard.songs.songs)
    if heard.held_out is None or held_out is None or len(held_out) < 2:
        return [
            _changed(heard, "style_distance", metrics.style_change, reference, songs),
            _missing("style_gap_closed", "it takes two clips that were held out"),
        ]
    gap = metrics.style_gap(
        base,
        tuned,
        held_out,
        reference,
        heard.seed,
        prompts=_prompts(heard, STYLE),
        goal_songs=_labels(heard.held_out.songs),
        reference_songs=songs,
    )
    distance_found = _Found("style_distance", gap.base, gap.tuned, gap.change, gap.goal.value, len(base))
    if gap.closed is None:
        why = "before the training it was as near as held-out songs already"
        return [distance_found, _missing("style_gap_closed", why)]
    return [distance_found, _Found("style_gap_closed", None, gap.closed, goal=1.0, clips=len(base))]


def _from_neutral(heard: Heard) -> _Found:
    neutral = heard.vectors.base[heard.rows(NEUTRAL)]
    if len(neutral) < 2:
        return _missing("neutral_distance", "it takes two clips of neutral prompts")
    return _changed(heard, "neutral_distance", metrics.style_change, neutral, _prompts(heard, NEUTRAL))


def _check_songs(heard: Heard) -> None:
    """Clips of one or two songs are too alike to say how far songs of this style are from each other."""
    songs = len(set(heard.songs.songs))
    if songs < FEWEST_SONGS:
        raise metrics.TooFewError(f"it takes {FEWEST_SONGS} songs that were trained on, not {songs}")


def _kernel(heard: Heard) -> _Found:
    _check_songs(heard)
    songs, held_out = heard.vectors.songs, heard.vectors.held_out
    goal = None if held_out is None or len(held_out) < 2 else metrics.kernel_distance(songs, held_out)
    return _changed(heard, "kernel_distance", metrics.kernel_change, songs, _labels(heard.songs.songs), goal)


def _changed(
    heard: Heard,
    key: str,
    measure: Callable[..., metrics.Change],
    reference: Array,
    songs: list[str] | None,
    goal: float | None = None,
) -> _Found:
    """A distance of the style's clips to a reference with these songs (or prompts)."""
    base, tuned = _of_style(heard)
    found = measure(base, tuned, reference, heard.seed, prompts=_prompts(heard, STYLE), reference_songs=songs)
    return _Found(key, found.base, found.tuned, found.change, goal, len(base))


def _frechet(heard: Heard) -> _Found:
    base, tuned = _of_style(heard)
    try:
        found = metrics.frechet_change(base, tuned, heard.vectors.songs, heard.seed)
    except ValueError as error:
        return _missing("frechet_infinity", str(error))
    return _Found("frechet_infinity", found.base, found.tuned, found.change, clips=len(base))


def _text(heard: Heard) -> _Found:
    texts = heard.embedder.embed_text([clip.prompt for clip in heard.base])
    if texts is None:
        return _missing("text_score", "only CLAP knows words and sounds")
    base, tuned = (metrics.text_audio_score(sounds, texts) for sounds in (heard.vectors.base, heard.vectors.tuned))
    return _paired("text_score", base, tuned, heard.seed)


def _tags(heard: Heard) -> _Found:
    songs, base, tuned = (
        heard.embedder.tag_probabilities(vectors) for vectors in (heard.vectors.songs, *_of_style(heard))
    )
    if songs is None or base is None or tuned is None:
        return _missing("tag_divergence", "only CLAP knows genres")
    mean = songs.mean(axis=0)[None]

    def divergence(tags: Array) -> float:
        return float(metrics.tag_divergence(mean, tags.mean(axis=0)[None])[0])

    before, after = (estimate(divergence, tags, seed=heard.seed) for tags in (base, tuned))
    return _Found("tag_divergence", before, after, clips=len(base))


def _adherence(heard: Heard) -> list[_Found]:
    """Tempo, key and notes, over the clips whose prompts ask for them."""
    found = []
    for key in SCORES:
        base, tuned = (
            np.array([clip.scores[key] for clip in clips if key in clip.scores]) for clips in heard.adherence
        )
        found.append(_paired(key, base, tuned, heard.seed) if len(base) else _missing(key, "no prompt asks for one"))
    return found


def _variety(heard: Heard) -> _Found:
    groups = [rows for rows in heard.by_prompt(STYLE) if len(rows) > 1]
    if not groups:
        return _missing("diversity", "it takes two clips of a prompt")
    usual = max(metrics.diversity(heard.vectors.songs), 1e-12)
    base, tuned = (
        np.array([metrics.diversity(vectors[rows]) for rows in groups]) / usual
        for vectors in (heard.vectors.base, heard.vectors.tuned)
    )
    return _paired("diversity", base, tuned, heard.seed, clips=sum(map(len, groups)))


def _drift(heard: Heard) -> _Found:
    groups = heard.by_prompt(NEUTRAL)
    if not groups or len(groups[0]) < 2:
        return _missing("drift", "it takes two clips of a neutral prompt")
    before, after = (
        np.stack([vectors[rows] for rows in groups]) for vectors in (heard.vectors.base, heard.vectors.tuned)
    )
    try:
        moved = metrics.drift(before, after, heard.seed)
    except ValueError as error:
        return _missing("drift", str(error))
    return _Found("drift", None, moved.other_seeds, goal=1.0, clips=len(groups) * len(groups[0]))


def _of_style(heard: Heard) -> tuple[Array, Array]:
    """The vectors of base and fine-tuned model for clips of style prompts."""
    rows = heard.rows(STYLE)
    return heard.vectors.base[rows], heard.vectors.tuned[rows]


def _labels(names: Sequence[str]) -> list[str] | None:
    """The songs (or prompts) of clips, or None where there is but one, whose clips then pass for songs."""
    return list(names) if len(set(names)) > 1 else None


def _prompts(heard: Heard, kind: str) -> list[str] | None:
    return _labels([heard.base[row].prompt for row in heard.rows(kind)])


def _paired(key: str, base: Array, tuned: Array, seed: int, clips: int | None = None) -> _Found:
    """Means of values that belong to the same prompts and seeds."""
    change = paired_difference(base, tuned, seed).interval
    before, after = (estimate(np.mean, values, seed=seed) for values in (base, tuned))
    return _Found(key, before, after, change, clips=len(base) if clips is None else clips)
