"""Blind listening: a page of pairs in random order and without names, and the count of answers."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from musicgen_dreamboothing.analysis.loudness import loudness, normalised
from musicgen_dreamboothing.audio import Wave
from musicgen_dreamboothing.console import UserError, plural
from musicgen_dreamboothing.evaluation.metrics.statistics import binomial_interval
from musicgen_dreamboothing.evaluation.report import load
from musicgen_dreamboothing.evaluation.result import STYLE, Interval, Pair
from musicgen_dreamboothing.files import write_json, write_text
from musicgen_dreamboothing.pages import FINE, mp3, render

PAGE, KEY = "blind.html", "blind_key.json"
SIDES, UNSURE = ("A", "B"), "same"
LOUDNESS = -16.0  # LUFS, of both sides of a pair, as listeners prefer the louder one
BASE, TUNED = "base", "tuned"
ON_STYLE, ON_PROMPT = "style", "prompt"  # the questions


@dataclass(frozen=True)
class Preference:
    """The answers to one question.

    Attributes:
        tuned, base, unsure: how often each was chosen.
        share: of the fine-tuned model among the decided answers; None where there are none.
        interval: of that share, 95 %.
    """

    tuned: int
    base: int
    unsure: int
    share: float | None
    interval: Interval | None


@dataclass(frozen=True)
class BlindResult:
    """The answers of a listener: which side sounds more like the style, and which fits the prompt better."""

    pairs: int
    style: Preference
    prompt: Preference


def write_blind(folder: Path, pairs: list[Pair], word: str, seed: int) -> Path:
    """Writes `blind.html`, and the key to it, `blind_key.json`; returns the page.

    Files of the pairs are relative to `folder`. Both sides of a pair are equally loud. Raises UserError where there are
    no pairs, or a file is gone.
    """
    if not pairs:
        raise UserError("there are no pairs to listen to; make some with: evaluate")
    rng = random.Random(seed)
    order = [(pair, rng.sample((BASE, TUNED), 2)) for pair in rng.sample(pairs, len(pairs))]
    shown = [_shown(folder, number, pair, sides) for number, (pair, sides) in enumerate(order, 1)]
    sounds = "".join(sound for pair in shown for _, sound in pair["sides"])
    test = hashlib.blake2b(sounds.encode(), digest_size=8).hexdigest()  # reveals nothing beyond the page
    key = [
        {"pair": number, "kind": pair.kind, "prompt": pair.prompt, "variation": pair.variation}
        | dict(zip(SIDES, sides, strict=True))
        for number, (pair, sides) in enumerate(order, 1)
    ]
    write_json(folder / KEY, {"test": test, "word": word, "seed": seed, "pairs": key})
    write_text(folder / PAGE, render("blind.html.jinja", word=word, test=test, pairs=shown, unsure=UNSURE))
    return folder / PAGE


def score_blind(folder: Path, answers: Path) -> BlindResult:
    """Counts a file of answers of the page in `folder`. Raises UserError where it is incomplete or of another page."""
    key, given = _read(folder / KEY, "pairs"), _read(answers, "answers")
    if given["test"] != key["test"]:
        raise UserError(f"{answers} belongs to another page than {folder / PAGE}; answer that one, or name its folder")
    asked = [(row, question) for row in key["pairs"] for question in _questions(row["kind"])]
    if missing := [row["pair"] for row, question in asked if _answer(given, row, question) is None]:
        numbers = ", ".join(map(str, dict.fromkeys(missing)))
        raise UserError(f"{answers} lacks answers to {plural(len(set(missing)), 'pair')} ({numbers}); finish the page")
    return BlindResult(len(key["pairs"]), *(_preference(given, asked, name) for name in (ON_STYLE, ON_PROMPT)))


def blind_lines(result: BlindResult, word: str) -> list[str]:
    """A sentence for each question."""
    asked = {f"sounding more like {word}": result.style, "fitting the prompt better": result.prompt}
    return [_sentence(name, one) for name, one in asked.items() if one.tuned + one.base + one.unsure]


def _sentence(name: str, one: Preference) -> str:
    if one.share is None or one.interval is None:
        return f"For {name} no difference was reported in {plural(one.unsure, 'pair')}."
    low, high = one.interval
    sure = "more than chance" if low > 0.5 else "less than chance" if high < 0.5 else "which may be chance"
    unsure = f"; in {plural(one.unsure, 'pair')} no difference was reported" if one.unsure else ""
    return (
        f"For {name} the fine-tuned model was chosen in {one.tuned} of {one.tuned + one.base} "
        f"({100 * low:.0f} to {100 * high:.0f} %), {sure}{unsure}."
    )


def _questions(kind: str) -> list[str]:
    return [ON_STYLE, ON_PROMPT] if kind == STYLE else [ON_PROMPT]


def _shown(folder: Path, number: int, pair: Pair, sides: list[str]) -> dict[str, Any]:
    """The data of a pair on the page, without which side is which."""
    names = {BASE: pair.base_file, TUNED: pair.tuned_file}
    sounds = _level([load(folder / names[side]) for side in sides])
    return {
        "number": number,
        "prompt": pair.prompt,
        "questions": _questions(pair.kind),
        "sides": [(side, mp3(wave, rate, FINE)) for side, (wave, rate) in zip(SIDES, sounds, strict=True)],
    }


def _level(sounds: list[tuple[Wave, int]]) -> list[tuple[Wave, int]]:
    """Both at the loudness that the one with the higher peaks can reach; silence stays as it is."""
    raised = [loudness(normalised(wave, rate, LOUDNESS), rate) for wave, rate in sounds]
    target = min((lufs for lufs in raised if np.isfinite(lufs)), default=LOUDNESS)
    return [(normalised(wave, rate, target), rate) for wave, rate in sounds]


def _read(path: Path, part: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"there is no {path}; make the page with: evaluate --blind, answer and save it") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read as JSON; save the answers from {PAGE} again") from error
    if not isinstance(content, dict) or "test" not in content or part not in content:
        raise UserError(f"{path} holds no {part} of a blind listening page; save them from {PAGE} again")
    return content


def _answer(given: dict[str, Any], row: dict[str, Any], question: str) -> str | None:
    """`A`, `B`, `same`, or None where there is no answer yet."""
    try:
        answer = given["answers"].get(str(row["pair"]), {}).get(question)
    except AttributeError as error:
        raise UserError(f"the answers to pair {row['pair']} aren't what {PAGE} saves; save them again") from error
    if answer not in (*SIDES, UNSURE, None):
        raise UserError(f"pair {row['pair']}: {answer!r} is no answer; it takes {', '.join(SIDES)} or {UNSURE}")
    return answer


def _preference(given: dict[str, Any], asked: list[tuple[dict[str, Any], str]], question: str) -> Preference:
    answers = [(_answer(given, row, name), row) for row, name in asked if name == question]
    chosen = Counter(row[answer] if answer in SIDES else UNSURE for answer, row in answers)
    decided = chosen[TUNED] + chosen[BASE]
    return Preference(
        chosen[TUNED],
        chosen[BASE],
        chosen[UNSURE],
        share=chosen[TUNED] / decided if decided else None,
        interval=binomial_interval(chosen[TUNED], decided) if decided else None,
    )
