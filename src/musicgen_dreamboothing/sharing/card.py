"""The model card: what the model was trained on, and how to use it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template

from musicgen_dreamboothing.files import write_text
from musicgen_dreamboothing.model.checkpoint import Checkpoint
from musicgen_dreamboothing.model.stereo import Origin, read_origin
from musicgen_dreamboothing.sharing.licence import licence_notice

MAX_EXAMPLES = 5


@dataclass(frozen=True)
class CardFacts:
    """The facts of a run that its card states."""

    name: str
    is_adapter: bool  # or a full fine-tune
    instance_prompt: str | None
    captions: list[str]  # of the training clips, each once
    songs: int  # number of songs trained on
    minutes: float  # of music trained on
    held_out_songs: int  # number of songs evaluated on
    metrics: dict[str, float]  # of the last evaluation
    init_adapter: str | None  # that the training started from
    options: dict[str, Any]  # that differ from their defaults


def write_card(folder: Path, facts: CardFacts, checkpoint: Checkpoint, licence: str | None) -> None:
    """Writes `README.md` of a run; only a base on the Hub is linked."""
    base = Path(checkpoint.name).name if checkpoint.is_local else checkpoint.name  # paths are private
    text = _template("model_card.md.jinja").render(
        facts=facts,
        examples=facts.captions[:MAX_EXAMPLES],
        base=base,
        base_on_hub=None if checkpoint.is_local else checkpoint.name,
        revision=checkpoint.revision,
        origin=read_origin(Path(checkpoint.name)),
        is_melody=checkpoint.is_melody,
        licence=licence,
        notice=licence_notice(base, licence),
    )
    write_text(folder / "README.md", text)


def write_stereo_card(folder: Path, name: str, origin: Origin, mono: Checkpoint, licence: str | None) -> None:
    """Writes `README.md` of a stereo base of this name; only a mono checkpoint on the Hub is linked."""
    text = _template("stereo_card.md.jinja").render(
        name=name,
        origin=origin,
        base_on_hub=None if mono.is_local else mono.name,
        is_melody=mono.is_melody,
        licence=licence,
        notice=licence_notice(origin.base, licence),
    )
    write_text(folder / "README.md", text)


def write_merged_card(folder: Path, name: str, provenance: Any, checkpoint: Checkpoint, licence: str | None) -> None:
    """Writes `README.md` of a merged model of this name; `provenance`: a `merge.Provenance`."""
    text = _template("merged_card.md.jinja").render(
        name=name,
        provenance=provenance,
        base_on_hub=None if checkpoint.is_local else checkpoint.name,
        is_melody=checkpoint.is_melody,
        licence=licence,
        notice=licence_notice(provenance.base, licence),
    )
    write_text(folder / "README.md", text)


def _template(name: str) -> Template:
    text = files("musicgen_dreamboothing.assets").joinpath(name).read_text(encoding="utf-8")
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)
    return environment.from_string(text)
