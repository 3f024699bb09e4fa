"""The model card: what the model was trained on, and how to use it."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template

from musicgen_dreamboothing.files import write_text
from musicgen_dreamboothing.model.checkpoint import Checkpoint
from musicgen_dreamboothing.model.stereo import Origin, read_origin
from musicgen_dreamboothing.sharing.licence import licence_notice

MAX_EXAMPLES = 5
MAX_SLUG = 40


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
    songs_licence: str | None = None  # whose the songs are


@dataclass(frozen=True)
class Player:
    """One prompt and seed before and after the training; `variation` counts clips of one prompt."""

    prompt: str
    variation: int
    before: Path
    after: Path

    def files(self) -> list[tuple[str, Path]]:
        """Names in the repository, which sort by prompt, and files."""
        stem = re.sub(r"[^a-z0-9]+", "-", self.prompt.lower()).strip("-")[:MAX_SLUG] or "clip"
        return [
            (f"{stem}-{self.variation}-{when}{path.suffix}", path)
            for when, path in (("before", self.before), ("after", self.after))
        ]


@dataclass(frozen=True)
class Listening:
    """Clips that a card plays, with what makes them again, and what an evaluation says.

    Attributes:
        players: before and after.
        seed, seconds, options, variations: of the clips, as `generate` takes them.
        verdict: sentences of the report.
        figures: title, before and after.
    """

    players: list[Player]
    seed: int
    seconds: float
    options: dict[str, Any]
    variations: int = 1
    verdict: list[str] = field(default_factory=list)
    figures: list[tuple[str, str, str]] = field(default_factory=list)


def write_card(
    folder: Path,
    facts: CardFacts,
    checkpoint: Checkpoint,
    licence: str | None,
    *,
    listening: Listening | None = None,
    url: str | None = None,
) -> None:
    """Writes `README.md` of a run; only a base on the Hub is linked.

    Args:
        folder: where to.
        facts: of the run.
        checkpoint: its base.
        licence: of the base.
        listening: clips for its players.
        url: of the repository, which players need.
    """
    base = Path(checkpoint.name).name if checkpoint.is_local else checkpoint.name  # paths are private
    _write_card(
        folder,
        "model_card.md.jinja",
        base,
        checkpoint,
        licence,
        facts=facts,
        listening=listening,
        url=url,
        examples=facts.captions[:MAX_EXAMPLES],
        origin=read_origin(Path(checkpoint.name)),
    )


def write_stereo_card(folder: Path, name: str, origin: Origin, mono: Checkpoint, licence: str | None) -> None:
    """Writes `README.md` of a stereo base of this name; only a mono checkpoint on the Hub is linked."""
    _write_card(folder, "stereo_card.md.jinja", origin.base, mono, licence, name=name, origin=origin)


def write_audiocraft_card(
    folder: Path, name: str, checkpoint: Checkpoint, licence: str | None, *, is_merged: bool
) -> None:
    """Writes `README.md` of a package for audiocraft.

    Args:
        folder: of the package.
        name: what the card calls it.
        checkpoint: the exported model, or the base of the adapter that was merged into it.
        licence: of the base.
        is_merged: whether there was an adapter.
    """
    base = Path(checkpoint.name).resolve().name if checkpoint.is_local else checkpoint.name  # paths are private
    _write_card(folder, "audiocraft_card.md.jinja", base, checkpoint, licence, name=name, is_merged=is_merged)


def write_merged_card(folder: Path, name: str, provenance: Any, checkpoint: Checkpoint, licence: str | None) -> None:
    """Writes `README.md` of a merged model of this name; `provenance`: a `merge.Provenance`."""
    base = provenance.base
    _write_card(folder, "merged_card.md.jinja", base, checkpoint, licence, name=name, provenance=provenance)


def write_imported_card(folder: Path, name: str, origin: dict[str, str], *, is_melody: bool) -> None:
    """Writes `README.md` of a model that was imported from audiocraft; its licence is not in such files.

    Args:
        folder: of the model.
        name: what the card calls it.
        origin: the names of `checkpoint`, `base` and `codec`.
        is_melody: whether it takes melodies.
    """
    text = _template("imported_card.md.jinja").render(name=name, origin=origin, is_melody=is_melody)
    write_text(folder / "README.md", text)


def _write_card(
    folder: Path, template: str, base: str, checkpoint: Checkpoint, licence: str | None, **facts: Any
) -> None:
    """Writes `README.md` with what each card says of its base, and these facts."""
    text = _template(template).render(
        base=base,
        base_on_hub=None if checkpoint.is_local else checkpoint.name,
        revision=checkpoint.revision,
        is_melody=checkpoint.is_melody,
        licence=licence,
        notice=licence_notice(base, licence),
        **facts,
    )
    write_text(folder / "README.md", text)


def _template(name: str) -> Template:
    text = files("musicgen_dreamboothing.assets").joinpath(name).read_text(encoding="utf-8")
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)
    environment.filters["shell"] = shlex.quote
    return environment.from_string(text)
