"""The figures about prompts: each is measured where it can be, by prompts, and says what chance would give."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
from made_music import music

from musicgen_dreamboothing.audio import Wave
from musicgen_dreamboothing.evaluation.clips import EvaluatedClip
from musicgen_dreamboothing.evaluation.collect import EvaluationData, Vectors
from musicgen_dreamboothing.evaluation.figures import figures_of
from musicgen_dreamboothing.evaluation.metrics.adherence import CHANCE, Adherence, TempoAdherence, tempo_multiple
from musicgen_dreamboothing.evaluation.references import Excerpts
from musicgen_dreamboothing.evaluation.result import NEUTRAL, STYLE, Figure, Originality
from musicgen_dreamboothing.evaluation.verdict import verdict

RATE = 16_000
PROMPTS = {
    "zxpunk": STYLE,
    "zxpunk, slow, at 80 bpm": STYLE,
    "zxpunk, fast, at 160 bpm": STYLE,
    "jazz at 120 bpm": NEUTRAL,
    "dance at 128 bpm": NEUTRAL,
}
TAKES = 4


class StandIn:
    """An embedder that remembers the texts it was given."""

    name, is_clap, step_seconds = "stand-in", True, 0.1

    def __init__(self) -> None:
        self.texts: list[str] = []

    def embed(self, waves: Sequence[tuple[Wave, int]]) -> np.ndarray:
        return np.random.default_rng(len(waves)).standard_normal((len(waves), 8))

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        self.texts += texts
        return np.random.default_rng(1).standard_normal((len(texts), 8))

    def tag_probabilities(self, vectors: np.ndarray) -> np.ndarray:
        rows = np.exp(vectors[:, :5])
        return rows / rows.sum(axis=1, keepdims=True)


class Data(EvaluationData):
    """Vectors at random: nothing here looks at sounds but for tempo and key."""

    @cached_property
    def vectors(self) -> Vectors:
        sizes = (len(self.base), len(self.tuned), 20)
        return Vectors(*(np.random.default_rng(n).standard_normal((size, 8)) for n, size in enumerate(sizes)), None)


def data_of(waves: tuple[Wave, Wave], prompts: dict[str, str] = PROMPTS, key_phrase: str = "zxpunk") -> Data:
    sides = [
        [
            EvaluatedClip(prompt, kind, take, Path("x.wav"), np.zeros((4, 9), int), wave, RATE)
            for prompt, kind in prompts.items()
            for take in range(TAKES)
        ]
        for wave in waves
    ]
    songs = Excerpts([(waves[0], RATE)] * 20, [f"{number // 4}.wav" for number in range(20)])
    return Data(sides[0], sides[1], songs, None, None, StandIn(), key_phrase)  # type: ignore[arg-type]


def with_tempi(base: Sequence[float | None], tuned: Sequence[float | None]) -> dict[str, Figure]:
    """The figures of clips whose tempi are the requested one times these factors, None without a pulse."""
    data = data_of((np.zeros((1, RATE), np.float32),) * 2)
    requested = [None] * TAKES + [80.0] * TAKES + [160.0] * TAKES + [120.0] * TAKES + [128.0] * TAKES
    sides = []
    for factors in (base, tuned):
        parts = []
        for bpm, factor in zip(requested, [None] * TAKES + list(factors), strict=True):
            detected = None if bpm is None or factor is None else bpm * factor
            multiple = None if bpm is None or detected is None else tempo_multiple(detected, bpm)
            parts.append(Adherence(None if bpm is None else TempoAdherence(bpm, detected, multiple), None))
        sides.append(parts)
    data.__dict__["adherence"] = tuple(sides)  # in the place of the cached property
    return {figure.key: figure for figure in figures_of(data)}


@pytest.fixture(scope="module")
def four_seconds() -> dict[str, Figure]:
    wave = music(4.0, RATE, seed=3, bpm=120.0)
    return {figure.key: figure for figure in figures_of(data_of((wave, wave)))}


def test_clips_that_are_too_short_have_no_tempo_and_a_reason(four_seconds: dict[str, Figure]) -> None:
    for key in ("tempo_adherence", "tempo_level"):
        assert four_seconds[key].tuned is four_seconds[key].base is None
        assert four_seconds[key].reason == "it takes clips of 5 s"
    assert four_seconds["key_adherence"].reason == "no prompt asks for one"
    assert "the tempo" not in verdict(list(four_seconds.values()), [], Originality(), "punk")[1]


def test_nobody_follows_the_tempo() -> None:
    figures = with_tempi([1.3] * 16, [1.3] * 16)
    tempo = figures["tempo_adherence"]
    assert (tempo.base, tempo.tuned, tempo.chance, tempo.clips) == (0, 0, CHANCE["tempo_adherence"], 16)
    assert tempo.base_interval[1] > 0.2
    assert tempo.change[0] < 0 < tempo.change[1]
    assert "by chance it is 7 %" in tempo.meaning
    sentence = verdict([tempo], [], Originality(), "punk")[1]
    assert "the base model does not follow it either" in sentence
    assert "still" not in sentence


def test_half_the_tempo_is_a_figure_of_its_own() -> None:
    figures = with_tempi([1] * 16, [1] * 8 + [0.5] * 8)
    assert figures["tempo_adherence"].tuned == 0.5
    assert (figures["tempo_level"].base, figures["tempo_level"].tuned) == (0, 0.5)
    assert figures["tempo_level"].better == "neither"


def test_a_lost_pulse_is_not_left_out() -> None:
    figures = with_tempi([1] * 12 + [None] * 4, [1] * 4 + [None] * 12)
    tempo = figures["tempo_adherence"]
    assert (tempo.clips, tempo.base, tempo.tuned) == (12, 1, pytest.approx(1 / 3))
    assert tempo.meaning.endswith(
        "12 of 16 clips could be measured. No pulse was found in 4 of 16 clips of the base model and in 12 of the "
        "fine-tuned one."
    )


def test_style_and_neutral_prompts_are_scored_apart_and_without_the_key_phrase() -> None:
    data = data_of((music(1.0, RATE, seed=1),) * 2)
    figures = {figure.key: figure for figure in figures_of(data)}
    assert data.embedder.texts == (
        ["slow, at 80 bpm"] * 4 + ["fast, at 160 bpm"] * 4 + ["jazz at 120 bpm"] * 4 + ["dance at 128 bpm"] * 4
    )
    assert (figures["text_score"].clips, figures["neutral_text_score"].clips) == (8, 8)
    assert figures["text_score"].change is not None


def test_a_style_without_words_has_no_score() -> None:
    data = data_of((music(1.0, RATE, seed=1),) * 2, {"zxpunk": STYLE, "jazz": NEUTRAL, "waltz": NEUTRAL})
    figures = {figure.key: figure for figure in figures_of(data)}
    assert figures["text_score"].reason == "style prompts say nothing but the key phrase"
    assert figures["neutral_text_score"].tuned is not None


def test_the_change_of_genres_is_tested(four_seconds: dict[str, Figure]) -> None:
    genres = four_seconds["tag_divergence"]
    assert genres.change is not None
    assert genres.change[0] < genres.tuned - genres.base < genres.change[1]
    assert "not the KLD" in genres.source
