"""Options of `merge`."""

from __future__ import annotations

from dataclasses import dataclass

from musicgen_dreamboothing.arguments.fields import option

USAGE = "merge RUN [ADAPTER:STRENGTH ...] --output_dir DIR"


@dataclass
class MergeArguments:
    """Options of `merge`."""

    model: str = option(
        "",
        "Adapter (with a strength as you like: RUN:0.7), full fine-tune or base: folder or Hub id.",
        positional=True,
        required=f"give an adapter: {USAGE}",
    )
    adapters: list[str] = option(
        [], "Adapters on the base that RUN is or has, with their strengths, as of generate --adapter.", positional=True
    )
    output_dir: str = option("", "Where the merged model goes (required).", required=f"give an output folder: {USAGE}")
    blend: bool = option(False, "Scale strengths so that their absolute values add up to 1, instead of adding all up.")
    base_model: str | None = option(None, "The adapters' base, if it has moved since the training.")
    model_revision: str | None = option(None, "Branch, tag or commit of RUN on the Hub.")
    cache_dir: str | None = option(None, "Folder for downloads from the Hub.")
    token: str | None = option(None, "Hub token; the stored login is used without it.")
