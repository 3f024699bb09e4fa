"""A page that lets one choose the strength of an adapter: the same prompts and seeds at several strengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from musicgen_dreamboothing.console import log
from musicgen_dreamboothing.evaluation.clips import ClipPlan, EvaluatedClip, generate_clips, load_clips
from musicgen_dreamboothing.evaluation.collect import EvaluationData
from musicgen_dreamboothing.evaluation.metrics.style import style_distance
from musicgen_dreamboothing.evaluation.result import STYLE
from musicgen_dreamboothing.files import write_json, write_text
from musicgen_dreamboothing.generation.generator import Generator
from musicgen_dreamboothing.pages import COARSE, mp3, render

FOLDER, PAGE, FIGURES = "strengths", "strengths.html", "strengths.json"
MOST_PROMPTS = 4  # each is played at every strength


@dataclass(frozen=True)
class StrengthFigures:
    """Of the clips at one strength.

    Attributes:
        strength: of the adapter: 0 is the base, 1 the run as trained.
        style_distance: as of the report, from these few clips.
        clips: number of clips.
    """

    strength: float
    style_distance: float
    clips: int


def write_strengths(
    load: Callable[[float], Generator],
    folder: Path,
    plan: ClipPlan,
    strengths: Sequence[float],
    data: EvaluationData,
    *,
    run: str,
    weights: str,
    batch_size: int | None,
) -> Path:
    """Generates clips at each strength, and writes `strengths.html` and `strengths.json`.

    A second call generates no clip again.

    Args:
        load: gives the base with the run's adapter at a strength.
        folder: of the evaluation.
        plan: that of the evaluation, of which the first prompts of the style are played.
        strengths: of the adapter.
        data: of the evaluation: songs and what compares them.
        run: its name.
        weights: a fingerprint of base and adapter.
        batch_size: clips at once; None for as many as memory holds.
    """
    prompts = [(prompt, kind) for prompt, kind in plan.prompts if kind == STYLE][:MOST_PROMPTS]
    plan, values = replace(plan, prompts=tuple(prompts)), sorted(set(strengths))
    generator = load(values[0])
    rows: list[StrengthFigures] = []
    clips: list[list[EvaluatedClip]] = []
    for strength in values:
        generator.set_strengths(strength)
        place = folder / FOLDER / f"{strength:g}"
        generate_clips(generator, place, plan, f"{weights} {strength:g}", batch_size)
        clips.append(load_clips(place, plan, generator.checkpoint.sampling_rate))
        rows.append(_figures(strength, clips[-1], data))
    write_json(folder / FIGURES, {"run": run, "strengths": [asdict(row) for row in rows]})
    write_text(folder / PAGE, _page(run, rows, clips))
    for row in rows:
        log(f"  strength {row.strength:g}: distance to your songs {row.style_distance:.2f}")
    return folder / PAGE


def _figures(strength: float, clips: Sequence[EvaluatedClip], data: EvaluationData) -> StrengthFigures:
    vectors = data.embedder.embed([(clip.wave, clip.rate) for clip in clips])
    distance = style_distance(
        vectors,
        data.vectors.all_songs,
        clip_groups=[clip.prompt for clip in clips],
        song_names=data.song_names,
    )
    return StrengthFigures(strength, distance, len(clips))


def _page(run: str, rows: Sequence[StrengthFigures], clips: Sequence[Sequence[EvaluatedClip]]) -> str:
    """One card for each prompt and variation, with a player for each strength."""
    cards = [
        {
            "prompt": takes[0].prompt,
            "variation": takes[0].variation,
            "players": [
                (row.strength, mp3(take.wave, take.rate, COARSE)) for row, take in zip(rows, takes, strict=True)
            ],
        }
        for takes in zip(*clips, strict=True)
    ]
    return render("strengths.html.jinja", run=run, rows=rows, cards=cards)
