"""What this program made itself: runs, samples, evaluations, prepared folders, generated clips. They are no songs."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from musicgen_dreamboothing.audio import AUDIO_SUFFIXES
from musicgen_dreamboothing.data.layout import CLIPS, GENERATED, METADATA, SONGS, TOKENS

RUN = "run.json"
# Files that a folder of ours holds, with keys that tell them from other programs' files of the same name.
RECORDS = {
    RUN: ("options", "base_model"),
    "report.json": ("verdict", "figures"),  # an evaluation
    "made.json": ("weights", "sampling"),  # the clips of an evaluation
    "samples.json": ("prompts", "sampling"),  # the samples of a training step
}
DEMO_CLIPS = ("made_with", "files")  # in the `made.json` of a demo
TOKENS_INFO = "info.json"  # in `tokens/`
CLIP_FILE = re.compile(r".+-\d{3,}\.flac")  # in `clips/`, which has no metadata yet when a run is killed
OF_RUN = re.compile(r"samples|evaluation|checkpoint-\d+")  # folders beside `run.json`
OF_WANDB = re.compile(r"(offline-)?run-\d")  # folders in `wandb/`, which keeps copies of samples
STEMS = "stems"
STEM_FILE = re.compile(r"[0-9a-f]{24}\.flac")  # in `stems/`


def is_product(folder: Path, names: set[str]) -> bool:
    """Whether this program made a folder, by the names of what is in it.

    People use folders of songs as output folders, too: a run with songs beside `run.json` is not passed over as a
    whole, but see `is_product_of_parent`.
    """
    if folder.name == "wandb" and any(map(OF_WANDB.match, names)):
        return True
    sounds = _sounds(names)
    if folder.name == STEMS and _all_match(STEM_FILE, sounds):
        return True
    found = [record for record in RECORDS if record in names and _is_ours(folder / record)]
    return bool(found) and not (found == [RUN] and sounds)


def is_product_of_parent(folder: Path, siblings: set[str]) -> bool:
    """Whether this program made a folder, by what stands beside it and, in a prepared folder, in it."""
    if SONGS in siblings and folder.name in (CLIPS, TOKENS) and _is_part_of_prepared(folder):
        return True
    return RUN in siblings and bool(OF_RUN.fullmatch(folder.name)) and _is_ours(folder.parent / RUN)


def _is_part_of_prepared(folder: Path) -> bool:
    """By its content: a person may have a folder of songs with such a name."""
    try:
        names = set(os.listdir(folder))
    except OSError:
        return False
    if folder.name == TOKENS:
        return TOKENS_INFO in names
    return METADATA in names or _all_match(CLIP_FILE, _sounds(names))


def _sounds(names: Iterable[str]) -> set[str]:
    return {name for name in names if Path(name).suffix.lower() in AUDIO_SUFFIXES}


def _all_match(pattern: re.Pattern[str], names: set[str]) -> bool:
    return bool(names) and all(map(pattern.fullmatch, names))


def stem_files(folder: Path, names: set[str]) -> set[str]:
    """Names of the separated songs in a folder that may hold songs as well."""
    return {name for name in names if STEM_FILE.fullmatch(name)} if folder.name == STEMS else set()


def generated_files(folder: Path) -> set[str]:
    """Names of the clips that `generate` wrote into a folder, which may hold songs as well."""
    try:
        lines = (folder / GENERATED).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    rows = (_parsed(line) for line in lines)  # a kill may leave half a line
    return {str(row["file_name"]) for row in rows if isinstance(row, dict) and "file_name" in row}


def _is_ours(record: Path) -> bool:
    try:
        values = _parsed(record.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return False
    keys_of_kinds = [RECORDS[record.name], *([DEMO_CLIPS] if record.name == "made.json" else [])]
    return isinstance(values, dict) and any(set(keys) <= set(values) for keys in keys_of_kinds)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return None
