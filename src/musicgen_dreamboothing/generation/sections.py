"""The parts of one clip in a YAML file: a list such as `[{text: slow punk, seconds: 20, melody: tune.wav}]`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from musicgen_dreamboothing.arguments.fields import LARGEST_SEED, LONGEST_SECONDS
from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.generation.melodies import read_melody
from musicgen_dreamboothing.generation.requests import Section

KEYS = ("text", "seconds", "melody", "seed")


@dataclass(frozen=True)
class PlannedSection:
    """A part of a clip as a file has it; `melody` is a sound file."""

    text: str
    seconds: float
    melody: Path | None = None
    seed: int | None = None

    def facts(self) -> dict[str, Any]:
        """What generated.jsonl says of it."""
        facts: dict[str, Any] = {"text": self.text, "seconds": self.seconds}
        facts |= {} if self.melody is None else {"melody": str(self.melody)}
        return facts | ({} if self.seed is None else {"seed": self.seed})

    def loaded(self) -> Section:
        """The same with its melody."""
        melody = None if self.melody is None else read_melody(self.melody)
        return Section(self.text, self.seconds, melody, self.seed)


def read_sections(path: Path) -> list[PlannedSection]:
    """The sections of a file; paths in it start in its folder.

    Raises:
        UserError: the file can't be read, or a section is not what it should be.
    """
    if not path.is_file():
        raise UserError(f"no file of sections at {path}; it holds a YAML list with text and seconds of each section")
    try:
        rows = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path} can't be read: {' '.join(str(error).split())}") from error
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path} must hold a list of sections, such as `- {{text: slow punk, seconds: 20}}`")
    sections = [_section(row, f"section {number} in {path}", path.parent) for number, row in enumerate(rows, start=1)]
    if (total := sum(section.seconds for section in sections)) > LONGEST_SECONDS:
        raise UserError(f"the sections in {path} take {total:g} s; they may take {LONGEST_SECONDS} s together")
    return sections


def _section(row: Any, label: str, folder: Path) -> PlannedSection:
    if not isinstance(row, dict) or (unknown := [str(key) for key in row if key not in KEYS]):
        what = f"has an unknown key {unknown[0]!r}" if isinstance(row, dict) else f"is {row!r}"
        raise UserError(f"{label} {what}; it takes {', '.join(KEYS)}")
    text = _value(row, "text", label, "a text", lambda value: isinstance(value, str))
    seconds = _value(row, "seconds", label, f"a number above 0 and at most {LONGEST_SECONDS}", _is_length)
    seed = _value(row, "seed", label, f"a whole number from 0 to {LARGEST_SEED}", _is_seed, optional=True)
    melody = _value(row, "melody", label, "a sound file", lambda value: (folder / str(value)).is_file(), optional=True)
    return PlannedSection(text, float(seconds), None if melody is None else folder / str(melody), seed)


def _value(
    row: dict[str, Any], key: str, label: str, kind: str, is_valid: Callable[[Any], bool], *, optional: bool = False
) -> Any:
    value = row.get(key)
    if value is None and optional:
        return None
    if not is_valid(value):
        problem = f"{key} is missing; it" if value is None else f"{key} {value!r}"
        raise UserError(f"{label}: {problem} must be {kind}")
    return value


def _is_length(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= LONGEST_SECONDS


def _is_seed(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST_SEED
