"""Facts about an adapter in the header of its safetensors file, which is readable without the weights."""

from __future__ import annotations

from musicgen_dreamboothing.model.checkpoint import Checkpoint


def header_of(checkpoint: Checkpoint, base: str, key_word: str | None, licence: str | None) -> dict[str, str]:
    """The metadata of an adapter; PEFT ignores all but `format`. What is unknown is left out.

    Args:
        checkpoint: the base that it belongs to.
        base: what others find it by.
        key_word: that brings its style into a prompt.
        licence: of the base's weights.
    """
    values = {
        "base_model": base,
        "base_revision": checkpoint.revision,
        "key_word": key_word,
        "licence": licence,
        "made_with": "musicgen-dreamboothing",
    }
    return {name: value for name, value in values.items() if value}
