"""Captions from facts: several for each clip, in varied order and phrasing.

The patterns in `assets/captions.txt` follow the text that MusicGen was trained on: short descriptions, and lists such
as "bpm: 118. key: A minor" (audiocraft's `augment_music_info_description`).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from importlib.resources import files
from typing import Any

from musicgen_dreamboothing.data.captions.captions import key_phrase, with_instance_prompt

ROUNDS = 8  # tries of all patterns to reach the number of variants
MAX_LABELS = {"genres": 2, "moods": 2, "instruments": 4}  # named in one caption
STATES_TEMPO, STATES_KEY = r"\b(bpm|tempo)\b", r"\b[a-g]([#♯b♭]| sharp| flat)? (major|minor)\b"
STATES_VOCALS = r"\b(instrumental|vocals?|sung|sings|singing|singers?|voices?)\b"


@dataclass
class ClipFacts:
    """What is known of a clip; every field may be missing."""

    tempo: float | None = None  # beats per minute
    key: str | None = None  # such as `A minor`
    genres: list[str] = field(default_factory=list)  # best first, as are moods and instruments
    moods: list[str] = field(default_factory=list)  # adjectives
    instruments: list[str] = field(default_factory=list)  # nouns that need no article
    vocals: bool | None = None  # whether somebody sings
    # tags of the song's file, `genre`, `bpm`, `key` or `comment`; they take precedence over measurements
    own: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ClipFacts:
        """From values by field name; null counts as missing, other names are ignored."""
        names = {known.name for known in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in names and value is not None})


def captions(
    facts: ClipFacts,
    *,
    instance_prompt: str | None,
    own: str | None,
    seed: int,
    variants: int,
    class_prompt: str | None = None,
) -> list[str]:
    """Up to `variants` different captions of one clip, at least one; fewer variants are a prefix of more.

    The instance prompt comes first in each, with the noun of its class. The song's own caption (or the comment in its
    file) follows unchanged, and then the facts that it does not state. Few known facts give few captions; none at all
    give one, which may be empty.

    >>> facts = ClipFacts(tempo=118.2, key="A minor", genres=["punk rock"], instruments=["guitar", "bass", "drums"])
    >>> for caption in captions(facts, instance_prompt="my band", own=None, seed=1, variants=3):
    ...     print(caption)
    my band, punk rock track in A minor at 118 bpm with bass, guitar and drums
    my band, punk rock, drums, guitar and bass, at 118 bpm, in A minor
    my band, genre: punk rock. instrument: guitar, drums, bass. bpm: 118. key: A minor
    >>> captions(facts, instance_prompt=None, own="Fast punk rock in A minor.", seed=1, variants=1)
    ['Fast punk rock in A minor. 118 bpm, guitar, bass and drums']
    >>> captions(ClipFacts(), instance_prompt="my band", own=None, seed=1, variants=3)
    ['my band']
    """
    if variants < 1:
        raise ValueError(f"a clip has at least one caption, not {variants}")
    own = " ".join(str(own or facts.own.get("comment") or "").split())
    unstated = _unstated(_with_file_tags(facts), f"{key_phrase(instance_prompt, class_prompt)} {own}")
    texts: dict[str, str] = {}
    patterns = [pattern for pattern in _patterns() if not (own and "[" in pattern)]  # behind a sentence only lists
    for phrase in _phrases(patterns, unstated, random.Random(seed)):
        caption = with_instance_prompt(instance_prompt, _join(own, phrase), class_prompt)
        texts.setdefault(caption.lower(), caption)
        if len(texts) == variants:
            break
    return list(texts.values()) or [with_instance_prompt(instance_prompt, own, class_prompt)]


def phrasing(pattern: str, words: Mapping[str, str]) -> str:
    """Fills one pattern; parts whose word is missing are left out (see `assets/captions.txt`).

    >>> phrasing("[{mood} ]track[ with {instruments}], {tempo} bpm, in {key}", {"mood": "dark", "key": "A minor"})
    'dark track, in A minor'
    >>> phrasing("[{mood} ]track[ with {instruments}], {tempo} bpm", {"tempo": "118"})
    '118 bpm'
    """
    text = ""
    first, *rest = re.split(r"([,.] )", pattern)
    for separator, part in zip(["", *rest[::2]], [first, *rest[1::2]], strict=True):
        if filled := _fill(part, words):
            text += (separator if text else "") + filled.strip()
    return re.sub(r"\b(instrumental|vocal|music|track)( \1\b)+", r"\1", text)  # the label "dance music" and "music"


def _fill(part: str, words: Mapping[str, str]) -> str:
    """One part of a pattern, or nothing."""
    names = re.findall(r"\{(\w+)\}", part)
    required = re.findall(r"\{(\w+)\}", re.sub(r"\[.*?\]", "", part))
    if not any(name in words for name in names) or not all(name in words for name in required):
        return ""
    filled = re.sub(r"\[(.*?)\]", lambda inner: _fill(inner[1], words), part)
    return re.sub(r"\{(\w+)\}", lambda name: words[name[1]], filled)


def _phrases(patterns: Sequence[str], facts: ClipFacts, rng: random.Random) -> Iterator[str]:
    """All patterns filled, in a new order in each round; none is empty."""
    for _ in range(ROUNDS):
        phrases = (phrasing(pattern, _words(facts, rng)) for pattern in rng.sample(patterns, len(patterns)))
        yield from filter(None, phrases)


@lru_cache(maxsize=1)
def _patterns() -> tuple[str, ...]:
    text = files("musicgen_dreamboothing.assets").joinpath("captions.txt").read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if line.strip() and not line.startswith("#"))


def _with_file_tags(facts: ClipFacts) -> ClipFacts:
    """The file's own genre first, its tempo and key instead of measured ones."""
    own_genres = re.split(r"[,;/]", str(facts.own.get("genre") or "").lower())
    return replace(
        facts,
        tempo=facts.own.get("bpm") or facts.tempo,
        key=facts.own.get("key") or facts.key,
        genres=_plain([*own_genres, *facts.genres]),
        moods=_plain(facts.moods),
        instruments=_plain(facts.instruments),
    )


def _plain(labels: Sequence[str]) -> list[str]:
    """Labels without commas, braces, stray spaces, empty and repeated ones."""
    return list(dict.fromkeys(filter(None, (" ".join(re.sub(r"[,{}]", " ", label).split()) for label in labels))))


def _unstated(facts: ClipFacts, text: str) -> ClipFacts:
    """The facts that a text does not state yet."""

    def states(pattern: str) -> bool:
        return re.search(pattern, text, re.IGNORECASE) is not None

    def without(labels: list[str]) -> list[str]:
        return [label for label in labels if not states(rf"(?<!\w){re.escape(label)}(?!\w)")]

    return replace(
        facts,
        tempo=None if states(STATES_TEMPO) else facts.tempo,
        key=None if states(STATES_KEY) else facts.key,
        vocals=None if states(STATES_VOCALS) else facts.vocals,
        genres=without(facts.genres),
        moods=without(facts.moods),
        instruments=without(facts.instruments),
    )


def _words(facts: ClipFacts, rng: random.Random) -> dict[str, str]:
    """The words of one caption by their names in patterns; labels and their order are drawn each time."""
    genres, moods, instruments = (
        rng.sample(labels, min(len(labels), MAX_LABELS[name]))
        for name, labels in (("genres", facts.genres), ("moods", facts.moods), ("instruments", facts.instruments))
    )
    words = {
        "genre": "".join(genres[:1]),
        "genres": ", ".join(genres),
        "mood": "".join(moods[:1]),
        "moods": _enumeration(moods),
        "mood_list": ", ".join(moods),
        "instruments": _enumeration(instruments),
        "instrument_list": ", ".join(instruments),
        "tempo": f"{facts.tempo:.0f}" if facts.tempo else "",
        "key": facts.key or "",
        "voice": {True: "vocals", False: "instrumental", None: ""}[facts.vocals],
        "sung": {True: "vocal", False: "instrumental", None: ""}[facts.vocals],
    }
    return {name: word for name, word in words.items() if word}


def _enumeration(labels: Sequence[str]) -> str:
    """
    >>> _enumeration(["guitar", "bass", "drums"])
    'guitar, bass and drums'
    """
    return " and ".join(filter(None, [", ".join(labels[:-1]), *labels[-1:]]))


def _join(own: str, phrase: str) -> str:
    """
    >>> _join("Loud and fast.", "118 bpm"), _join("loud and fast", "118 bpm"), _join("", "118 bpm")
    ('Loud and fast. 118 bpm', 'loud and fast, 118 bpm', '118 bpm')
    """
    if not own or not phrase:
        return own or phrase
    return f"{own} {phrase}" if own[-1] in ".!?…" else f"{own.rstrip(',;: ')}, {phrase}"
