"""What was heard, in figures: of the base and of the fine-tuned model, with interval, meaning and source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from musicgen_dreamboothing.evaluation import metrics
from musicgen_dreamboothing.evaluation.embedding import Embedder
from musicgen_dreamboothing.evaluation.metrics import asked_of
from musicgen_dreamboothing.evaluation.playing import Played
from musicgen_dreamboothing.evaluation.result import HIGHER, LOWER, NEITHER, NEUTRAL, STYLE, Figure
from musicgen_dreamboothing.evaluation.songs import Excerpts
from musicgen_dreamboothing.evaluation.statistics import Estimate, estimate, paired_difference

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Losses:
    """Sums of base and fine-tuned model and the number of steps, all `[N, K]`, and the song of each held-out clip."""

    base: Array
    tuned: Array
    count: Array
    songs: list[str]


@dataclass(frozen=True)
class Heard:
    """What figures are made of.

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


@dataclass(frozen=True)
class _Embedded:
    """Vectors `[N, D]` of everything."""

    base: Array
    tuned: Array
    songs: Array
    held_out: Array | None


def figures_of(heard: Heard) -> list[Figure]:
    """All figures; one that can't be had says why."""
    found = _embed(heard)
    return [
        *_losses(heard),
        *_style(heard, found),
        *_text(heard, found),
        *_tags(heard),
        *_adherence(heard),
        *_variety(heard, found),
        *_drift(heard, found),
    ]


def _embed(heard: Heard) -> _Embedded:
    embed = heard.embedder.embed
    base, tuned = (embed([(clip.wave, clip.rate) for clip in clips]) for clips in (heard.base, heard.tuned))
    held_out = embed(heard.held_out.waves) if heard.held_out is not None and heard.held_out.waves else None
    return _Embedded(base, tuned, embed(heard.songs.waves), held_out)


def _losses(heard: Heard) -> list[Figure]:
    told: dict[str, Any] = {
        "title": "surprise at songs it was not trained on",
        "unit": "nats",
        "better": LOWER,
        "meaning": "How unexpected the next sound of a song is that was held back; it falls as the style is learned.",
        "source": "per-codebook cross-entropy, Copet et al. 2023, and audiocraft's solvers/musicgen.py",
    }
    if heard.losses is None:
        return [_missing("loss", "no song was held out; --eval_fraction holds some out", **told)]
    losses = heard.losses
    base, tuned = (
        metrics.cross_entropy(nll, losses.count, heard.seed, losses.songs) for nll in (losses.base, losses.tuned)
    )
    change = metrics.cross_entropy_change(losses.base, losses.tuned, losses.count, heard.seed, losses.songs)
    clips = len(losses.count)
    found = [_figure("loss", base.mean, tuned.mean, change.mean.interval, clips=clips, **told)]
    found.append(
        _figure(
            "ppl",
            metrics.perplexity(base.mean),
            metrics.perplexity(tuned.mean),
            None,
            clips=clips,
            title="the same as a number of choices",
            better=LOWER,
            meaning="Among how many equally likely codes the model wavers at each step.",
            source="perplexity: exp of the loss above",
        )
    )
    for number, pair in enumerate(zip(base.codebooks, tuned.codebooks, change.codebooks, strict=True), 1):
        title = f"surprise, codebook {number} of {len(base.codebooks)}"
        found.append(_figure(f"ce_q{number}", *pair[:2], pair[2].interval, clips=clips, **(told | {"title": title})))
    return found


def _style(heard: Heard, found: _Embedded) -> list[Figure]:
    """How near the clips of style prompts are to the songs."""
    rows = heard.rows(STYLE)
    base, tuned = found.base[rows], found.tuned[rows]
    return [
        *_distances(heard, found, base, tuned),
        _from_neutral(heard, found, base, tuned),
        _kernel(heard, found, base, tuned),
        _frechet(heard, found, base, tuned),
    ]


def _distances(heard: Heard, found: _Embedded, base: Array, tuned: Array) -> list[Figure]:
    told: dict[str, Any] = {
        "title": "distance to your songs",
        "better": LOWER,
        "meaning": "How far the new clips sound from your songs; 0 is where songs are from each other.",
        "source": f"energy distance (Székely & Rizzo 2013) of {heard.embedder.name}, over the songs' own spread",
    }
    share: dict[str, Any] = {
        "title": "way to your songs that was gone",
        "unit": "%",
        "better": HIGHER,
        "meaning": "0 % sounds as before the training, 100 % is as near to your songs as songs that it never heard.",
        "source": "(base - tuned) / (base - held-out songs) of the distance above",
    }
    songs = _labels(heard.songs.songs)
    if heard.held_out is None or found.held_out is None or len(found.held_out) < 2:
        distance = _by_pairs(
            lambda clips: metrics.style_distance(clips, found.songs, reference_songs=songs), base, tuned
        )
        why = "it takes two clips that were held out"
        return [
            _figure("style_distance", *distance, None, clips=len(base), **told),
            _missing("style_gap_closed", why, **share),
        ]
    gap = metrics.style_gap(
        base,
        tuned,
        found.held_out,
        found.songs,
        heard.seed,
        prompts=[heard.base[row].prompt for row in heard.rows(STYLE)] if len(_by_prompt(heard, STYLE)) > 1 else None,
        goal_songs=_labels(heard.held_out.songs),
        reference_songs=songs,
    )
    distance_figure = _figure(
        "style_distance", gap.base, gap.tuned, gap.change, goal=gap.goal.value, clips=len(base), **told
    )
    if gap.closed is None:
        why = "before the training it was as near as held-out songs already"
        return [distance_figure, _missing("style_gap_closed", why, **share)]
    return [distance_figure, _figure("style_gap_closed", None, gap.closed, None, goal=1.0, clips=len(base), **share)]


def _from_neutral(heard: Heard, found: _Embedded, base: Array, tuned: Array) -> Figure:
    told: dict[str, Any] = {
        "title": "distance to the base's other music",
        "better": NEITHER,
        "meaning": "How far the style's clips are from the base's everyday music; it grows with the style.",
        "source": "the same distance, to the base's clips of neutral prompts",
    }
    neutral = found.base[heard.rows(NEUTRAL)]
    if len(neutral) < 2:
        return _missing("neutral_distance", "it takes two clips of neutral prompts", **told)
    pair = _by_pairs(lambda clips: metrics.style_distance(clips, neutral), base, tuned)
    return _figure("neutral_distance", *pair, None, clips=len(base), **told)


def _kernel(heard: Heard, found: _Embedded, base: Array, tuned: Array) -> Figure:
    pair = _by_pairs(lambda clips: metrics.kernel_distance(found.songs, clips), base, tuned)
    goal = None
    if found.held_out is not None and len(found.held_out) > 1:
        goal = metrics.kernel_distance(found.songs, found.held_out)
    return _figure(
        "kernel_distance",
        *pair,
        None,
        goal=goal,
        clips=len(base),
        title="KAD",
        better=LOWER,
        meaning="The same question by another measure, which other papers report and which holds for few clips.",
        source=f"Kernel Audio Distance, Chung et al. 2025, of {heard.embedder.name}",
    )


def _frechet(heard: Heard, found: _Embedded, base: Array, tuned: Array) -> Figure:
    told: dict[str, Any] = {
        "title": "FAD, carried to endless clips",
        "better": LOWER,
        "meaning": "The usual figure of this field; few clips make it larger, so it is carried to endlessly many.",
        "source": f"Gui et al. 2024 (FAD-infinity), of {heard.embedder.name}",
    }
    try:
        before, after = (metrics.frechet_infinity(found.songs, clips, heard.seed).value for clips in (base, tuned))
    except ValueError as error:
        return _missing("frechet_infinity", str(error), **told)
    return _figure("frechet_infinity", Estimate(before, None), Estimate(after, None), None, clips=len(base), **told)


def _text(heard: Heard, found: _Embedded) -> list[Figure]:
    told: dict[str, Any] = {
        "title": "fit of sound and prompt",
        "better": HIGHER,
        "meaning": "How well a clip fits the words of its prompt, as a network hears it that knows both.",
        "source": f"CLAP score, Wu et al. 2023, {heard.embedder.name}",
    }
    texts = heard.embedder.embed_text([clip.prompt for clip in heard.base])
    if texts is None:
        return [_missing("text_score", "it takes CLAP, which could not be loaded", **told)]
    base, tuned = (metrics.text_audio_score(sounds, texts) for sounds in (found.base, found.tuned))
    return [_paired("text_score", base, tuned, heard.seed, **told)]


def _tags(heard: Heard) -> list[Figure]:
    told: dict[str, Any] = {
        "title": "difference of genres from your songs",
        "unit": "nats",
        "better": LOWER,
        "meaning": "How differently a listening network names the genres of the new clips and of your songs.",
        "source": "KL divergence of mean tag probabilities, as AudioGen's KLD (Kreuk et al. 2023)",
    }
    rows = heard.rows(STYLE)
    songs = heard.embedder.tag_probabilities(heard.songs.waves)
    if songs is None:
        return [_missing("tag_divergence", "it takes CLAP, which could not be loaded", **told)]
    values = []
    for clips in (heard.base, heard.tuned):
        found = heard.embedder.tag_probabilities([(clips[row].wave, clips[row].rate) for row in rows])
        assert found is not None
        values.append(estimate(lambda tags: _divergence(songs, tags), found, seed=heard.seed))
    base, tuned = values
    return [_figure("tag_divergence", base, tuned, None, clips=len(rows), **told)]


def _divergence(songs: Array, tags: Array) -> float:
    return float(metrics.tag_divergence(songs.mean(axis=0)[None], tags.mean(axis=0)[None])[0])


def _adherence(heard: Heard) -> list[Figure]:
    """Tempo and key where prompts ask for them."""
    tempo: dict[str, Any] = {
        "title": "tempo as asked",
        "unit": "%",
        "better": HIGHER,
        "meaning": "Clips that have the tempo which their prompt asks for, give or take 4 %.",
        "source": "Accuracy 1, Gouyon et al. 2006",
    }
    key: dict[str, Any] = {
        "title": "key as asked",
        "unit": "%",
        "better": HIGHER,
        "meaning": "How near a clip's key is to the one that its prompt asks for; the key itself counts whole.",
        "source": "MIREX's weighted key score",
    }

    def tempo_of(clip: Played) -> float:
        return float(metrics.tempo_adherence(asked_of(clip.prompt).bpm or 0.0, clip.wave, clip.rate).is_right)

    def key_of(clip: Played) -> float:
        return metrics.key_adherence(str(asked_of(clip.prompt).key), clip.wave, clip.rate).score

    found = []
    for name, told, score, wanted in (
        ("tempo_adherence", tempo, tempo_of, [asked_of(clip.prompt).bpm for clip in heard.base]),
        ("key_adherence", key, key_of, [asked_of(clip.prompt).key for clip in heard.base]),
    ):
        rows = [row for row, value in enumerate(wanted) if value is not None]
        if not rows:
            found.append(_missing(name, "no prompt asks for one", **told))
            continue
        base, tuned = (np.array([score(clips[row]) for row in rows]) for clips in (heard.base, heard.tuned))
        found.append(_paired(name, base, tuned, heard.seed, **told))
    return found


def _variety(heard: Heard, found: _Embedded) -> list[Figure]:
    told: dict[str, Any] = {
        "title": "variety within a prompt",
        "better": HIGHER,
        "meaning": "How different the clips of one prompt are, 1 as your songs are; near 0 it repeats itself.",
        "source": f"mean half squared distance of pairs over that of the songs, {heard.embedder.name}",
    }
    groups = [rows for rows in _by_prompt(heard, STYLE) if len(rows) > 1]
    if not groups:
        return [_missing("diversity", "it takes two clips of a prompt", **told)]
    usual = metrics.half_squares(found.songs, found.songs).mean()
    base, tuned = (
        np.array([_mean_apart(clips[rows]) for rows in groups]) / max(usual, 1e-12)
        for clips in (found.base, found.tuned)
    )
    return [_paired("diversity", base, tuned, heard.seed, clips=sum(map(len, groups)), **told)]


def _mean_apart(rows: Array) -> float:
    """The mean of half squared distances of different rows."""
    return float(metrics.half_squares(rows, rows).sum() / (len(rows) * (len(rows) - 1)))


def collapsed_prompts(heard: Heard) -> list[str]:
    """Style prompts whose clips are all but the same."""
    found = _embed(heard)
    return [
        heard.base[rows[0]].prompt
        for rows in _by_prompt(heard, STYLE)
        if len(rows) > 1 and metrics.is_collapsed(found.tuned[rows], found.songs, _labels(heard.songs.songs))
    ]


def _drift(heard: Heard, found: _Embedded) -> list[Figure]:
    told: dict[str, Any] = {
        "title": "drift of everyday prompts",
        "better": LOWER,
        "meaning": "What the training did to prompts without your key-word: 1 is no more than another seed would do.",
        "source": "distance of tuned to base clips over that among the base's seeds, by prompt",
    }
    groups = _by_prompt(heard, NEUTRAL)
    if not groups or len(groups[0]) < 2:
        return [_missing("drift", "it takes two clips of a neutral prompt", **told)]
    before, after = (np.stack([clips[rows] for rows in groups]) for clips in (found.base, found.tuned))
    try:
        moved = metrics.drift(before, after, heard.seed)
    except ValueError as error:
        return [_missing("drift", str(error), **told)]
    return [_figure("drift", None, moved.other_seeds, None, goal=1.0, clips=len(groups) * len(groups[0]), **told)]


def _by_prompt(heard: Heard, kind: str) -> list[list[int]]:
    """The places of each prompt's clips."""
    groups: dict[str, list[int]] = {}
    for row in heard.rows(kind):
        groups.setdefault(heard.base[row].prompt, []).append(row)
    return list(groups.values())


def _labels(songs: Sequence[str]) -> list[str] | None:
    """The songs, or None where there is but one, whose clips then pass for songs."""
    return list(songs) if len(set(songs)) > 1 else None


def _by_pairs(measure: Callable[[Array], float], base: Array, tuned: Array) -> tuple[Estimate, Estimate]:
    """A figure of both sets, without intervals."""
    return Estimate(measure(base), None), Estimate(measure(tuned), None)


def _paired(key: str, base: Array, tuned: Array, seed: int, clips: int | None = None, **told: Any) -> Figure:
    """Means of values that belong to the same prompts and seeds."""
    change = paired_difference(base, tuned, seed).interval
    before, after = (estimate(np.mean, values, seed=seed) for values in (base, tuned))
    return _figure(key, before, after, change, clips=len(base) if clips is None else clips, **told)


def _figure(
    key: str, base: Estimate | None, tuned: Estimate, change: tuple[float, float] | None, **told: Any
) -> Figure:
    return Figure(
        key=key,
        base=None if base is None else base.value,
        tuned=tuned.value,
        base_interval=None if base is None else base.interval,
        tuned_interval=tuned.interval,
        change=change,
        **told,
    )


def _missing(key: str, reason: str, **told: Any) -> Figure:
    return Figure(key=key, base=None, tuned=None, reason=reason, **told)
