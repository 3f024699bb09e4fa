"""`run.json`: what a run was asked to do, and whether it is done."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from musicgen_dreamboothing.data.captions import key_phrase
from musicgen_dreamboothing.data.files import write_json

FILE = "run.json"


@dataclass
class RunRecord:
    """The contents of `run.json`; `data` is a fingerprint of clips and captions, `base_revision` one of the base.

    `split` says how the batch was split: another one would add up in another order. `prepared` is the folder with the
    clips and tokens; it may have moved since.
    """

    options: dict[str, Any]
    base_model: str
    base_revision: str | None
    data: str
    split: dict[str, Any] = field(default_factory=dict)
    prepared: str = ""
    finished: bool = False
    summary: dict[str, Any] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)  # of the training, line by line
    init_adapter: dict[str, Any] | None = None  # revision and digest of the adapter that the run began from

    @property
    def key_phrase(self) -> str:
        """What calls up the style; empty where the captions have no key-word."""
        return key_phrase(self.options.get("instance_prompt"), self.options.get("class_prompt"))

    def write(self, folder: Path) -> None:
        write_json(folder / FILE, dataclasses.asdict(self))


def read_record(folder: Path) -> RunRecord | None:
    """The record of an earlier run in this folder; a file of another kind counts as none."""
    try:
        return RunRecord(**json.loads((folder / FILE).read_text(encoding="utf-8")))
    except (OSError, json.JSONDecodeError, TypeError):
        return None
