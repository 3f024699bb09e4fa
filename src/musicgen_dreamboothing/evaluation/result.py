"""The result of an evaluation as plain values: `report.json` is these dataclasses, `report.html` shows them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

STYLE, NEUTRAL = "style", "neutral"  # prompts for the new style, and for other music
LOWER, HIGHER, NEITHER = "lower", "higher", "neither"  # which way is better

LOSS_PARTS = ("ce_", "ppl_")  # keys of the losses of single sides and codebooks begin with one of them
ENOUGH_GROUPS = 6  # below that an interval is called rough

Interval = tuple[float, float]  # confidence interval of 95 %


@dataclass(frozen=True)
class Figure:
    """One number, of the base and of the fine-tuned model.

    Attributes:
        key: its short name in `report.json`, e.g. `style_distance`.
        title: for musicians, e.g. "distance to your songs".
        unit: "nats", "%", or empty.
        better: `lower`, `higher` or `neither`.
        base, tuned: the value before and after; None with a `reason`.
        base_interval, tuned_interval: confidence intervals of 95 %.
        goal: the value of clips that could be excerpts of the songs, if it is known.
        change: interval of the paired difference tuned - base, where clips are paired by prompt and seed.
        chance: the value of clips that have nothing to do with their prompts, if it is known.
        clips: number of clips.
        groups: number of independent groups (songs, prompts) behind the intervals, of the rarer kind; 0 if unknown.
        scope: what the intervals hold for, where it is not all songs of the style, e.g. `1 held-out song`.
        meaning: one sentence for a musician.
        source: paper or formula, for a researcher.
        reason: why there is no value.
    """

    key: str
    title: str
    better: str
    base: float | None
    tuned: float | None
    unit: str = ""
    base_interval: Interval | None = None
    tuned_interval: Interval | None = None
    goal: float | None = None
    change: Interval | None = None
    clips: int = 0
    groups: int = 0
    scope: str = ""
    meaning: str = ""
    source: str = ""
    reason: str = ""
    chance: float | None = None

    @property
    def is_rough(self) -> bool:
        """Whether so few groups are behind the intervals that these depend on how the groups are distributed."""
        return 0 < self.groups < ENOUGH_GROUPS


@dataclass(frozen=True)
class Pair:
    """One prompt and seed, played by the base and by the fine-tuned model; files are relative to the report."""

    prompt: str
    kind: str
    variation: int
    base_file: str
    tuned_file: str
    notes: dict[str, str] = field(default_factory=dict)  # e.g. {"tempo": "requested 120, detected 121"}


@dataclass(frozen=True)
class Likeness:
    """The place in the training clips that is most like a generated clip.

    Attributes:
        at, clip_at, song_at: where it begins in the generated clip, the training clip and the song, in seconds.
        song: name of the song.
        clip_file: the training clip.
        seconds: how long it lasts.
        score: 0 to 1: the share of codes that agree in that time, or the mean cosine of its spectra.
        strength: the evidence that it is a copy, in seconds of a verbatim one; what several recordings share counts 0.
        by: `codes` or `sound`.
        is_copy: whether it is a near-copy: stronger than songs of the style are like each other.
    """

    at: float
    song: str
    clip_file: str
    clip_at: float
    song_at: float
    seconds: float
    score: float
    strength: float
    by: str
    is_copy: bool


@dataclass(frozen=True)
class Nearest(Likeness):
    """The likeness of a clip in a report; files are relative to it, `clip_file` is empty unless it is a near-copy.

    Attributes:
        file, prompt, kind: of the generated clip.
    """

    file: str
    prompt: str
    kind: str


@dataclass(frozen=True)
class CopyCounts:
    """How many clips of one model were searched for copies, by codes and by sound, and how many are near-copies."""

    clips: int = 0
    by_codes: int = 0
    by_sound: int = 0
    flagged: int = 0


@dataclass(frozen=True)
class Originality:
    """What was compared to tell whether clips are copies of songs, and what came out.

    Attributes:
        base: the control: the base was not trained on the songs, so what is flagged here is likeness of the style.
        tuned: the fine-tuned model.
        style_clips, neutral_clips: how many of `tuned.clips` have prompts of each kind.
        clips, songs: that it was trained on; all are searched by codes.
        clips_by_sound, songs_by_sound: that are searched by sound.
        not_checked: what could not be checked and why, e.g. "by sound, because there is a single song".
    """

    base: CopyCounts = CopyCounts()
    tuned: CopyCounts = CopyCounts()
    style_clips: int = 0
    neutral_clips: int = 0
    clips: int = 0
    songs: int = 0
    clips_by_sound: int = 0
    songs_by_sound: int = 0
    not_checked: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Curve:
    """A figure over the updates of the training, from the run's log."""

    title: str
    steps: list[int]
    values: list[float]


@dataclass(frozen=True)
class Evaluation:
    """All that `report.json` holds.

    Attributes:
        run: name of the run's folder.
        base_model: its base.
        word: the key-word.
        embedding: of the sounds, e.g. "CLAP laion/larger_clap_music" or "signal statistics (no network)".
        verdict: three sentences.
        best: which checkpoint is in the run and why, one sentence, or empty.
        figures, pairs, curves: see there.
        nearest: for each clip of the fine-tuned model the strongest likeness of two seconds or more, if there is one.
        settings: prompts, seeds, seconds, sampling, versions: what is needed to repeat it.
        notes: limitations, e.g. that few clips make intervals wide.
        originality: how many clips were searched for copies, and how many are.
    """

    run: str
    base_model: str
    word: str
    embedding: str
    verdict: list[str]
    best: str
    figures: list[Figure]
    pairs: list[Pair]
    nearest: list[Nearest]
    curves: list[Curve]
    settings: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    originality: Originality = field(default_factory=Originality)
