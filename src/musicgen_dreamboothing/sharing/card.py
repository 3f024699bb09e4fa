"""The model card: what the model is made of, in the words of its run."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from musicgen_dreamboothing.files import write_text
from musicgen_dreamboothing.model.checkpoint import Checkpoint
from musicgen_dreamboothing.sharing.licence import licence_notice

MAX_EXAMPLES = 5


@dataclass(frozen=True)
class CardFacts:
    """What a card tells about a run.

    Attributes:
        name: of the run.
        is_adapter: LoRA adapter, or full fine-tune.
        instance_prompt: the key-word, if there is one.
        captions: of the training clips, each once.
        songs: number of songs trained on.
        minutes: of music trained on.
        held_out_songs: number of songs evaluated on.
        metrics: the last evaluation.
        init_adapter: the adapter that the training began from, if there is one.
        options: the options that differ from their defaults.
    """

    name: str
    is_adapter: bool
    instance_prompt: str | None
    captions: list[str]
    songs: int
    minutes: float
    held_out_songs: int
    metrics: dict[str, float]
    init_adapter: str | None
    options: dict[str, Any]


def write_card(folder: Path, facts: CardFacts, checkpoint: Checkpoint, licence: str | None) -> None:
    """Writes `README.md` of a run. Only a base on the Hub is linked: a folder's name says nothing elsewhere."""
    template = files("musicgen_dreamboothing.assets").joinpath("model_card.md.jinja").read_text(encoding="utf-8")
    base = Path(checkpoint.name).name if checkpoint.is_local else checkpoint.name  # paths are nobody's business
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)
    text = environment.from_string(template).render(
        facts=facts,
        examples=facts.captions[:MAX_EXAMPLES],
        base=base,
        base_on_hub=None if checkpoint.is_local else checkpoint.name,
        revision=checkpoint.revision,
        is_melody=checkpoint.is_melody,
        licence=licence,
        notice=licence_notice(base, licence),
    )
    write_text(folder / "README.md", text)
