"""What an evaluation found, as plain values: `report.json` is these dataclasses, `report.html` shows them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

STYLE, NEUTRAL = (
    "style",
    "neutral",
)  # prompts that call up what was learned, and those that tell what became of the rest
LOWER, HIGHER, NEITHER = "lower", "higher", "neither"  # which way is better

Interval = tuple[float, float]  # where a figure lies in 95 of 100 cases


@dataclass(frozen=True)
class Figure:
    """One number, of the base and of the fine-tuned model.

    Attributes:
        key: its short name in `report.json`, e.g. `style_distance`.
        title: what a musician reads, e.g. "distance to your songs".
        unit: "nats", "%", or empty.
        better: `lower`, `higher` or `neither`.
        base, tuned: the value before and after; None where it can't be had (`reason` says why).
        base_interval, tuned_interval: bootstrap intervals of 95 %.
        goal: the same of music that is as good as can be (held-out songs through the codec), if it is known.
        change: interval of the paired difference tuned - base, where clips are paired by prompt and seed.
        clips: of how many clips.
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
    meaning: str = ""
    source: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Pair:
    """One prompt and seed, played by the base and by the fine-tuned model; files are relative to the report."""

    prompt: str
    kind: str
    variation: int
    base_file: str
    tuned_file: str
    base_picture: str = ""  # spectrograms, PNG
    tuned_picture: str = ""
    notes: dict[str, str] = field(default_factory=dict)  # e.g. {"tempo": "asked 120, heard 121"}


@dataclass(frozen=True)
class Likeness:
    """Where a generated clip is most like the training clips.

    Attributes:
        at, clip_at, song_at: where it begins in the generated clip, the training clip and the song, in seconds.
        song: name of the song.
        clip_file: the training clip.
        seconds: how long it lasts.
        score: 0 to 1, how alike: the share of codes that agree meanwhile, or the mean cosine.
        by: `tokens` or `embedding`.
        is_copy: whether it is beyond what other songs of the style share, and flagged as a near-copy.
    """

    at: float
    song: str
    clip_file: str
    clip_at: float
    song_at: float
    seconds: float
    score: float
    by: str
    is_copy: bool


@dataclass(frozen=True)
class Nearest(Likeness):
    """The same of a clip in a report; files are relative to it, `clip_file` is empty unless it is a near-copy.

    Attributes:
        file, prompt: the generated clip, and what it was made for.
    """

    file: str
    prompt: str


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
        embedding: what sounds were compared with, e.g. "CLAP laion/larger_clap_music" or "signal statistics (no CLAP)".
        verdict: three sentences.
        best: which checkpoint was kept and why, one sentence, or empty.
        figures, pairs, nearest, curves: what was found; `nearest` holds one entry for each generated style clip.
        settings: prompts, seeds, seconds, sampling, versions: what is needed to do it again.
        notes: what a reader must know, e.g. that few clips make intervals wide.
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
