"""Options of `warm-start`."""

from __future__ import annotations

from dataclasses import dataclass

from musicgen_dreamboothing.arguments.fields import option

VARIANTS = EXACT, _ = "exact", "meta"


@dataclass
class WarmStartArguments:
    """Options of `warm-start`."""

    base: str = option(
        "",
        "A mono base checkpoint or full fine-tune: Hub id or folder.",
        positional=True,
        required="give a mono checkpoint: warm-start BASE --output_dir DIR",
    )
    output_dir: str = option(
        "",
        "Where the stereo base goes (required).",
        required="give an output folder: warm-start BASE --output_dir DIR",
    )
    variant: str = option(
        EXACT,
        "Embeddings: exact (halved, which gives the mono model where both sides are equal) or meta (unscaled, as in "
        "Meta's recipe).",
        choices=VARIANTS,
    )
    model_revision: str | None = option(None, "Branch, tag or commit of the base on the Hub.")
    cache_dir: str | None = option(None, "Folder for downloads from the Hub.")
    token: str | None = option(None, "Hub token; the stored login is used without it.")
