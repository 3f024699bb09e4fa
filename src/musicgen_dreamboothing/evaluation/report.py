"""An evaluation on disk: `report.json` for programs, and `report.html`, one page that needs nothing beside it."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.audio import Wave
from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.evaluation.result import (
    LOSS_PARTS,
    NEUTRAL,
    STYLE,
    CopyCounts,
    Curve,
    Evaluation,
    Figure,
    Interval,
    Nearest,
    Originality,
    Pair,
)
from musicgen_dreamboothing.evaluation.verdict import BETTER, WORSE, by_strength, clock, direction
from musicgen_dreamboothing.files import write_json, write_text
from musicgen_dreamboothing.pages import COARSE, data_uri, loudest_power, mp3, render, spectrogram
from musicgen_dreamboothing.workers import in_threads

PAGE = "report.html"
PAGE_SECONDS = 400.0  # of before and after, all together: some 8 MB with the pictures, where a clip lasts 8 s
COPIES = 12  # near-copies that get players; a pair takes some 300 KB
EXCERPT_SECONDS = (5.0, 15.0)  # of a near-copy, at least and at most
BAR_WIDTH, BAR_HEIGHT = 160, 36  # of a figure's drawing, in its own units
CURVE_WIDTH, CURVE_HEIGHT = 420, 150
TICKS, DOTS = 3, 30  # of a curve; more points are a line only
TONES = {BETTER: "better", WORSE: "worse"}
GROUPS = {STYLE: "What it was taught", NEUTRAL: "What it could do before"}


def write_report(folder: Path, evaluation: Evaluation) -> Path:
    """Writes `report.json` and `report.html`, each in one move, and returns the page.

    The files that the evaluation names are relative to `folder`. Raises UserError where one of them is missing. What
    isn't finite becomes null in the JSON. A figure whose unit is `%` is a share, 0 to 1; the page shows it in percent.
    """
    pairs, nearest = _fitting(folder, evaluation.pairs), by_strength(evaluation.nearest)
    copies = [one for one in nearest if one.is_copy]
    sides = list(in_threads(partial(_sides, folder), pairs, os.cpu_count() or 1, unit="pair", doing="drawing"))
    text = render(
        "evaluation.html.jinja",
        one=evaluation,
        groups=[(title, _prompts(pairs, sides, kind)) for kind, title in GROUPS.items()],
        left_out=len(evaluation.pairs) - len(pairs),
        figures=[_row(figure) for figure in evaluation.figures if not figure.key.startswith(LOSS_PARTS)],
        codebooks=[_row(figure) for figure in evaluation.figures if figure.key.startswith(LOSS_PARTS)],
        bar=(BAR_WIDTH, BAR_HEIGHT),
        curves=[drawn for curve in evaluation.curves if (drawn := _drawn(curve))],
        curve=(CURVE_WIDTH, CURVE_HEIGHT),
        copies=[_copy(folder, one) for one in copies[:COPIES]],
        others=[*copies[COPIES:], *(one for one in nearest if not one.is_copy)],
        silent_copies=len(copies[COPIES:]),
        settings=[(key, _setting(value)) for key, value in evaluation.settings.items()],
        clock=clock,
    )
    write_json(folder / "report.json", _finite(asdict(evaluation)))
    write_text(folder / PAGE, text)
    return folder / PAGE


def read_report(folder: Path) -> Evaluation:
    """The evaluation that `write_report` put into `folder`. Raises UserError where there is none."""
    path = folder / "report.json"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        return Evaluation(
            **report
            | {
                "figures": [_figure(row) for row in report["figures"]],
                "pairs": [_pair(row) for row in report["pairs"]],
                "nearest": [Nearest(**row) for row in report["nearest"]],
                "curves": [_curve(row) for row in report["curves"]],
                "originality": _originality(report["originality"]),
            }
        )
    except FileNotFoundError as error:
        raise UserError(f"{folder} holds no report.json; make one with: evaluate {folder}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is no report of this version ({error!r}); make it again with: evaluate") from error


def _pair(row: dict[str, Any]) -> Pair:
    return Pair(**{entry.name: row[entry.name] for entry in fields(Pair)})  # earlier versions had more fields


def _figure(row: dict[str, Any]) -> Figure:
    spans = {key: tuple(row[key]) for key in ("base_interval", "tuned_interval", "change") if row[key] is not None}
    return Figure(**row | spans)


def _originality(row: dict[str, Any]) -> Originality:
    return Originality(**row | {side: CopyCounts(**row[side]) for side in ("base", "tuned")})


def _curve(row: dict[str, Any]) -> Curve:
    return Curve(**row | {"values": [math.nan if value is None else value for value in row["values"]]})


def _finite(value: Any) -> Any:
    """The value with null for NaN and infinity, which JSON lacks."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def load(path: Path) -> tuple[Wave, int]:
    """A clip `[C, S]` and its rate in Hz. Raises UserError where it can't be read."""
    rate = int(_info(path).samplerate)
    return audio.decode(path, rate), rate


def _info(path: Path) -> Any:
    try:
        return soundfile.info(path)
    except soundfile.SoundFileError as error:
        raise UserError(f"{path} is missing or no sound; make the clips again with: evaluate") from error


@dataclass(frozen=True)
class _Side:
    """A sound with its spectrogram, both as data URIs."""

    name: str
    sound: str
    picture: str


def _fitting(folder: Path, pairs: list[Pair]) -> list[Pair]:
    """The pairs that get players: first one of each prompt, then the second ones, up to `PAGE_SECONDS`."""
    chosen: list[Pair] = []
    seconds = 0.0
    for pair in sorted(pairs, key=lambda pair: pair.variation):
        seconds += sum(_info(folder / file).duration for file in (pair.base_file, pair.tuned_file))
        if chosen and seconds > PAGE_SECONDS:
            break
        chosen.append(pair)
    return chosen


def _prompts(pairs: list[Pair], sides: list[list[_Side]], kind: str) -> list[tuple[str, list[dict[str, Any]]]]:
    """Each prompt of a kind with what the template needs of its takes."""
    takes: dict[str, list[dict[str, Any]]] = {}
    for pair, shown in zip(pairs, sides, strict=True):
        if pair.kind == kind:
            takes.setdefault(pair.prompt, []).append({"notes": pair.notes, "sides": shown})
    return list(takes.items())


def _sides(folder: Path, pair: Pair) -> list[_Side]:
    """Before and after."""
    return _shown({"before": load(folder / pair.base_file), "after": load(folder / pair.tuned_file)})


def _shown(sounds: dict[str, tuple[Wave, int]]) -> list[_Side]:
    """Sounds by name with their spectrograms, which share one scale of brightness."""
    loudest = max(loudest_power(wave) for wave, _ in sounds.values())
    return [
        _Side(name, mp3(wave, rate, COARSE), data_uri("image/png", spectrogram(wave, rate, loudest)))
        for name, (wave, rate) in sounds.items()
    ]


def _copy(folder: Path, one: Nearest) -> tuple[Nearest, list[_Side]]:
    """A near-copy and the song it is near to, both from where the likeness begins."""
    sounds = {"new clip": _excerpt(folder / one.file, one.at, one.seconds)}
    if one.clip_file and (folder / one.clip_file).is_file():
        sounds["your song"] = _excerpt(folder / one.clip_file, one.clip_at, one.seconds)
    return one, _shown(sounds)


def _excerpt(path: Path, at: float, seconds: float) -> tuple[Wave, int]:
    wave, rate = load(path)
    shortest, longest = EXCERPT_SECONDS
    start, length = round(at * rate), round(min(max(seconds, shortest), longest) * rate)
    return wave[:, start : start + length], rate


def _row(figure: Figure) -> dict[str, Any]:
    """A line of the table of figures; its cells are label, number, interval, word and the word's tone."""
    unit, difference, change = figure.unit, _difference(figure), direction(figure)
    digits = _digits([figure.base, figure.tuned, figure.goal], unit, 3)
    fine = _digits([difference, *(figure.change or ())], unit, 2)
    cells = [
        ("before", _number(figure.base, digits, unit), _span(figure.base_interval, digits, unit), "", ""),
        ("after", _number(figure.tuned, digits, unit), _span(figure.tuned_interval, digits, unit), "", ""),
        ("goal", _number(figure.goal, digits, unit), "", "", ""),
        (
            "change",
            _number(difference, fine, unit, "+"),
            _span(figure.change, fine, unit, "+"),
            change,
            TONES.get(change, ""),
        ),
    ]
    return {"figure": figure, "cells": cells, "drawing": _bar(figure)}


def _difference(figure: Figure) -> float | None:
    return None if figure.base is None or figure.tuned is None else figure.tuned - figure.base


def _usable(values: Any) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]


def _digits(values: Any, unit: str, figures: int) -> int:
    """Decimal places for so many figures of the largest value; none in percent."""
    largest = max(map(abs, _usable(values)), default=0.0)
    if unit == "%":
        return 0 if largest >= 0.1 else 1
    return min(max(figures - 1 - math.floor(math.log10(largest)), 0), 6) if largest else 2


def _number(value: float | None, digits: int, unit: str, sign: str = "") -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return f"{100 * value:{sign}.{digits}f} %".replace("-", "−") if unit == "%" else _plain(value, digits, sign)


def _plain(value: float, digits: int, sign: str = "") -> str:
    return f"{value:{sign}.{digits}f}".replace("-", "−")


def _span(span: Interval | None, digits: int, unit: str, sign: str = "") -> str:
    if span is None or len(_usable(span)) < 2:
        return ""
    low, high = (_plain(100 * end if unit == "%" else end, digits, sign) for end in span)
    return f"{low} to {high}"


def _bar(figure: Figure) -> dict[str, Any] | None:
    """Where before, after and goal lie on one line, from the least to the greatest of them."""
    sides = [("before", figure.base, figure.base_interval, 10), ("after", figure.tuned, figure.tuned_interval, 26)]
    values = _usable(
        [figure.goal, figure.base, figure.tuned, *(figure.base_interval or ()), *(figure.tuned_interval or ())]
    )
    if len(_usable([figure.base, figure.tuned, figure.goal])) < 2 or max(values) == min(values):
        return None

    def place(value: float) -> float:
        return round(6 + (value - min(values)) / (max(values) - min(values)) * (BAR_WIDTH - 12), 1)

    return {
        "goal": [place(goal) for goal in _usable([figure.goal])],
        "sides": [
            (name, place(value), [place(end) for end in _usable(span or ())], height)
            for name, value, span, height in sides
            if value is not None and math.isfinite(value)
        ],
    }


def _drawn(curve: Curve) -> dict[str, Any] | None:
    """A curve as points of a drawing; what isn't finite is left out."""
    points = [(step, value) for step, value in zip(curve.steps, curve.values, strict=True) if math.isfinite(value)]
    if not points:
        return None
    low, high = min(value for _, value in points), max(value for _, value in points)
    (first, _), (last, end) = points[0], points[-1]
    span = (high - low) or abs(high) or 1.0
    digits = min(max(1 - math.floor(math.log10(span)), 0), 6)

    def place(step: float, value: float) -> tuple[float, float]:
        across = (step - first) / max(last - first, 1)
        return round(across * CURVE_WIDTH, 1), round((high - value) / span * CURVE_HEIGHT, 1)

    places = [place(*point) for point in points]
    ticks = np.linspace(high, low, TICKS).tolist() if high > low else [high]
    return {
        "title": curve.title,
        "line": " ".join(f"{x},{y}" for x, y in places),
        "dots": places if len(places) <= DOTS else [],
        "ticks": [(place(first, value)[1], _short(value, digits)) for value in ticks],
        "first": first,
        "last": last,
        "end": _plain(end, digits),
    }


def _short(value: float, digits: int) -> str:
    """`3.50`, but `0.0002` for `0.00020`."""
    text = _plain(value, digits)
    return text.rstrip("0").rstrip(".") if digits > 3 else text


def _setting(value: Any) -> list[str]:
    """The lines of a setting: strings of a list one below the other, numbers in a row."""
    if isinstance(value, list | tuple) and all(isinstance(one, str) for one in value):
        return list(value)
    if isinstance(value, list | tuple) and all(isinstance(one, int | float) for one in value):
        return [", ".join(map(str, value))]
    return [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)]
