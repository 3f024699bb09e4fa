"""Captions: what a clip is called, the key-word always first."""

from __future__ import annotations


def with_instance_prompt(instance_prompt: str | None, caption: str | None) -> str:
    """The caption of a clip: its own words behind the instance prompt, which never replaces them.

    >>> with_instance_prompt("punk", "fast and loud")
    'punk, fast and loud'
    >>> with_instance_prompt("punk", "Punk song with drums")
    'Punk song with drums'
    """
    prompt, own = (instance_prompt or "").strip(), (caption or "").strip()
    if not prompt or _begins_with(own, prompt):
        return own
    return f"{prompt}, {own}" if own else prompt


def _begins_with(caption: str, prompt: str) -> bool:
    """Whether the caption's first words are the prompt: `punk rock` begins with `punk`, `punkish` does not."""
    rest = caption[len(prompt) :]
    return caption.lower().startswith(prompt.lower()) and not rest[:1].isalnum()
