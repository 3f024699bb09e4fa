"""Instance prompt and class prompt in captions, and word dropout."""

from __future__ import annotations

import hashlib

import numpy as np

WORD_DROPOUT_VARIANTS = 4  # copies of a caption without some words: T5 encodes them once, each epoch draws one


def key_phrase(instance_prompt: str | None, class_prompt: str | None = None) -> str:
    """What every caption begins with: DreamBooth's "[identifier] [class noun]" (Ruiz et al. 2022).

    The noun ties what the base knows of the class to the instance prompt, which is left with what is new.

    >>> key_phrase("zxpunk", "rock"), key_phrase("my rock", "rock"), key_phrase(None, "rock")
    ('zxpunk rock', 'my rock', '')
    """
    prompt, noun = (instance_prompt or "").strip(), (class_prompt or "").strip()
    has_noun = f" {prompt}".lower().endswith(f" {noun}".lower())
    return f"{prompt} {noun}" if prompt and noun and not has_noun else prompt


def with_instance_prompt(instance_prompt: str | None, caption: str | None, class_prompt: str | None = None) -> str:
    """A caption that begins with the key phrase.

    >>> with_instance_prompt("punk", "fast and loud")
    'punk, fast and loud'
    >>> with_instance_prompt("punk", "Punk song with drums")
    'Punk song with drums'
    >>> with_instance_prompt("zxpunk", "fast and loud", "rock")
    'zxpunk rock, fast and loud'
    >>> with_instance_prompt("zxpunk", "Zxpunk song with drums", "rock")
    'Zxpunk rock song with drums'
    """
    prompt, own = (instance_prompt or "").strip(), (caption or "").strip()
    phrase = key_phrase(instance_prompt, class_prompt)
    if not phrase or _begins_with(own, phrase):
        return own
    if _begins_with(own, prompt):
        return own[: len(prompt)] + phrase[len(prompt) :] + own[len(prompt) :]
    return f"{phrase}, {own}" if own else phrase


def with_word_dropout(caption: str, phrase: str, dropout: float, rng: np.random.Generator) -> str:
    """The caption without each of its words at this probability, as audiocraft's `T5Conditioner` does (`word_dropout`).

    The key phrase stays, and so does a caption of which nothing would be left: that is caption dropout.

    >>> with_word_dropout("punk, loud and fast", "punk", 1.0, np.random.default_rng(0))
    'punk'
    """
    words = caption.split()
    keep = rng.random(len(words)) >= dropout
    keep[: len(phrase.split()) if _begins_with(caption, phrase) else 0] = True
    return " ".join(word for word, stays in zip(words, keep, strict=True) if stays).rstrip(" ,;:") or caption


def word_dropout_variants(caption: str, phrase: str, dropout: float) -> list[str]:
    """`WORD_DROPOUT_VARIANTS` copies of a caption without some words: always the same, and nested in `dropout`."""
    seed = int.from_bytes(hashlib.blake2b(caption.encode(), digest_size=8).digest(), "little")
    return [
        with_word_dropout(caption, phrase, dropout, np.random.default_rng([seed, copy]))
        for copy in range(WORD_DROPOUT_VARIANTS)
    ]


def _begins_with(caption: str, prompt: str) -> bool:
    """Whether the caption's first words are the prompt: `punk rock` begins with `punk`, `punkish` does not."""
    return caption.lower().startswith(prompt.lower()) and not caption[len(prompt) :][:1].isalnum()
