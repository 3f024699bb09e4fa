"""Which prompts an evaluation generates: those of the report, and of the style metric of a training."""

from __future__ import annotations

from importlib.resources import files

import yaml

from musicgen_dreamboothing.data.tokens.tables import Tables
from musicgen_dreamboothing.evaluation.result import STYLE

STYLE_PROMPTS = 8  # as many tell how prompts vary
OWN_CAPTIONS = 3  # among them, at most


def usual_prompts() -> dict[str, list[str]]:
    """Prompts by kind, `style` and `neutral`; those of the style have a place for the `{word}`."""
    text = files("musicgen_dreamboothing.assets").joinpath("prompts.yaml").read_text(encoding="utf-8")
    prompts: dict[str, list[str]] = yaml.safe_load(text)
    return prompts


def style_prompts(word: str, tables: Tables) -> list[str]:
    """Captions of held-out songs (of the songs that are trained on, where none are), and usual prompts with the word.

    Eight in all, each once; fewer only where there is no word and there are fewer captions.

    Args:
        word: the key phrase; without one there are captions only.
        tables: the clips of the run.
    """
    captions = list(dict.fromkeys((tables.held_out if len(tables.held_out) else tables.train)["text"]))
    usual = [prompt.format(word=word) for prompt in usual_prompts()[STYLE]] if word else []
    own = captions[: OWN_CAPTIONS if usual else STYLE_PROMPTS]
    return list(dict.fromkeys([*own, *usual]))[:STYLE_PROMPTS]
