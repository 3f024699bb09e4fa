"""`run.json`: options, data and state of a run."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from musicgen_dreamboothing.data.captions.captions import key_phrase
from musicgen_dreamboothing.files import write_text

FILE = "run.json"


@dataclass
class RunRecord:
    """The contents of `run.json`."""

    options: dict[str, Any]  # of the command
    base_model: str  # the base model, and a fingerprint of it
    base_revision: str | None
    data: str  # fingerprint of clips and captions
    # how a batch is split, and among how many processes; it changes the order of sums
    split: dict[str, Any] = field(default_factory=dict)
    prepared: str = ""  # folder with clips and tokens; it may have moved since
    finished: bool = False  # whether the training is done
    summary: dict[str, Any] = field(default_factory=dict)  # results of the training
    log: list[dict[str, Any]] = field(default_factory=list)  # lines of the training
    # training and held-out clips for `Split.from_json`; records of earlier versions lack them
    clips: dict[str, Any] | None = None
    versions: dict[str, str] = field(default_factory=dict)  # of this package and the libraries, when the run began
    init_adapter: dict[str, Any] | None = None  # revision and digest of the adapter that the run started from

    @property
    def key_phrase(self) -> str:
        """What every caption begins with; empty without an instance prompt."""
        return key_phrase(self.options.get("instance_prompt"), self.options.get("class_prompt"))

    def write(self, folder: Path) -> None:
        """Writes the file: indented for people, with one line for each clip."""
        values = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        clips = values.pop("clips")
        text = json.dumps(values, indent=2, ensure_ascii=False)
        if clips is not None:
            text = f'{text[:-2]},\n  "clips": {_one_clip_a_line(clips)}\n}}'
        write_text(folder / FILE, text + "\n")


def _one_clip_a_line(clips: dict[str, Any]) -> str:
    """`Split.to_json` as text."""
    entries = []
    for name, value in clips.items():
        text = json.dumps(value, ensure_ascii=False)
        if name in ("train", "held_out") and value:
            text = "[\n      " + ",\n      ".join(json.dumps(clip, ensure_ascii=False) for clip in value) + "\n    ]"
        entries.append(f'"{name}": {text}')
    return "{\n    " + ",\n    ".join(entries) + "\n  }"


def read_record(folder: Path) -> RunRecord | None:
    """The record of a run in this folder, None without a valid one; fields of later versions are ignored."""
    try:
        values = json.loads((folder / FILE).read_text(encoding="utf-8"))
        names = {entry.name for entry in dataclasses.fields(RunRecord)}
        return RunRecord(**{name: value for name, value in values.items() if name in names})
    except (OSError, ValueError, TypeError, AttributeError):
        return None
