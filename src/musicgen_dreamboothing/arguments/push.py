"""Options of `push`."""

from __future__ import annotations

from dataclasses import dataclass

from musicgen_dreamboothing.arguments.fields import option

MOST_PLAYERS = 50


@dataclass
class PushArguments:
    """Options of `push`."""

    run: str = option(
        "",
        "Folder of a finished run, an adapter, or of what merge, export, extract, import or warm-start wrote.",
        positional=True,
        required="give a folder: push RUN --hub_model_id you/punk",
    )
    hub_model_id: str = option(
        "",
        "Repository on the Hub, made if there is none (required).",
        required="give a repository: push RUN --hub_model_id you/punk",
    )
    private: bool = option(False, "Make the repository private.")
    list_only: bool = option(False, "Show what would go up, and stop.")
    songs_licence: str | None = option(
        None, 'Whose the songs are and what you may do with them, for the card: "my own, CC BY 4.0".'
    )
    players: int = option(3, "Pairs of clips, before and after, that the card plays.", at_least=0, at_most=MOST_PLAYERS)
    base_model: str | None = option(None, "The base, if it has moved since the training.")
    cache_dir: str | None = option(None, "Folder for downloads from the Hub.")
    token: str | None = option(None, "Hub token; the stored login is used without it.")
