"""The licence of base weights, which also applies to what is made with them."""

from __future__ import annotations

from pathlib import Path

import yaml
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

from musicgen_dreamboothing.model.checkpoint import Checkpoint

META = "facebook/musicgen"
META_LICENCE = "cc-by-nc-4.0"


def licence_of(checkpoint: Checkpoint) -> str | None:
    """The licence id in the base's own card, or None where it has none; Meta's is built in."""
    if checkpoint.name.startswith(META):
        return META_LICENCE
    card = Path(checkpoint.name) / "README.md"
    try:
        if checkpoint.is_local:
            return _licence(ModelCard.load(card)) if card.is_file() else None
        return _licence(ModelCard.load(checkpoint.name, token=checkpoint.source.token))
    except (EntryNotFoundError, HfHubHTTPError, OSError, ValueError, yaml.YAMLError):
        return None


def _licence(card: ModelCard) -> str | None:
    data = card.data
    return str(data.license) if isinstance(data, ModelCardData) and data.license else None


def licence_notice(name: str, licence: str | None) -> str:
    """One line for the end of a run and the card."""
    if licence is None:
        return f"licence: {name} does not state one; ask its makers before you share what you made with it"
    if licence == META_LICENCE:
        return f"licence: the weights of {name} are {licence}: what you make with them may not be used commercially"
    return f"licence: the weights of {name} are {licence}; it governs what you make with them"
