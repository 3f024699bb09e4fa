"""Words for what was measured: several captions of a clip, in varied order and phrasing.

The patterns are `assets/captions.txt`. They stay near the text MusicGen learned from: short descriptions, and lists
such as "bpm: 118. key: A minor" (audiocraft's `augment_music_info_description`). Listens to nothing: all that is needed
is kept in a `Heard`, so captions can be written anew at any time.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from importlib.resources import files
from typing import Any

from musicgen_dreamboothing.data.captions.captions import key_phrase, with_instance_prompt

ROUNDS = 8  # how often all patterns are tried before fewer variants have to do
MOST = {"genres": 2, "moods": 2, "instruments": 4}  # named in one caption
SAID_TEMPO, SAID_KEY = r"\b(bpm|tempo)\b", r"\b[a-g]([#♯b♭]| sharp| flat)? (major|minor)\b"
SAID_VOICE = r"\b(instrumental|vocals?|sung|sings|singing|singers?|voices?)\b"


@dataclass
class Heard:
    """What is known of a clip; every field may be missing. Plain values only: it is a JSON object in the metadata.

    Attributes:
        tempo: beats per minute.
        key: such as `A minor`.
        genres: best first, as are moods and instruments.
        moods: adjectives.
        instruments: nouns that need no article.
        vocals: whether somebody sings.
        own: what the song's own file says, `genre`, `bpm`, `key` or `comment`: believed more than what was measured.
    """

    tempo: float | None = None
    key: str | None = None
    genres: list[str] = field(default_factory=list)
    moods: list[str] = field(default_factory=list)
    instruments: list[str] = field(default_factory=list)
    vocals: bool | None = None
    own: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; `from_dict` gives an equal object back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Heard:
        """From `to_dict`'s values or a part of them; null counts as missing, other names are left alone."""
        names = {known.name for known in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in names and value is not None})


def captions(
    heard: Heard,
    *,
    instance_prompt: str | None,
    own: str | None,
    seed: int,
    variants: int,
    class_prompt: str | None = None,
) -> list[str]:
    """Up to `variants` different captions of one clip, at least one; more variants begin with the fewer ones.

    The instance prompt stands first in each, with the noun of its class. A person's own caption (or the comment in the
    file) follows as it was written, and measured facts only say behind it what it doesn't say. Where little is known,
    there are fewer ways to say it and fewer captions; with nothing known, one that may be empty.

    >>> heard = Heard(tempo=118.2, key="A minor", genres=["punk rock"], instruments=["guitar", "bass", "drums"])
    >>> for caption in captions(heard, instance_prompt="my band", own=None, seed=1, variants=3):
    ...     print(caption)
    my band, punk rock track in A minor at 118 bpm with bass, guitar and drums
    my band, punk rock, drums, guitar and bass, at 118 bpm, in A minor
    my band, genre: punk rock. instrument: guitar, drums, bass. bpm: 118. key: A minor
    >>> captions(heard, instance_prompt=None, own="Fast punk rock in A minor.", seed=1, variants=1)
    ['Fast punk rock in A minor. 118 bpm, guitar, bass and drums']
    >>> captions(Heard(), instance_prompt="my band", own=None, seed=1, variants=3)
    ['my band']
    """
    if variants < 1:
        raise ValueError(f"a clip has at least one caption, not {variants}")
    words = " ".join(str(own or heard.own.get("comment") or "").split())
    unsaid = _unsaid(_with_file_tags(heard), f"{key_phrase(instance_prompt, class_prompt)} {words}")
    found: dict[str, str] = {}
    patterns = [pattern for pattern in _patterns() if not (words and "[" in pattern)]  # behind a sentence only lists
    for phrase in _phrases(patterns, unsaid, random.Random(seed)):
        caption = with_instance_prompt(instance_prompt, _behind(words, phrase), class_prompt)
        found.setdefault(caption.lower(), caption)
        if len(found) == variants:
            break
    return list(found.values()) or [with_instance_prompt(instance_prompt, words, class_prompt)]


def phrasing(pattern: str, facts: Mapping[str, str]) -> str:
    """Fills one pattern with the facts there are; what lacks one is left out (see `assets/captions.txt`).

    >>> phrasing("[{mood} ]track[ with {instruments}], {tempo} bpm, in {key}", {"mood": "dark", "key": "A minor"})
    'dark track, in A minor'
    >>> phrasing("[{mood} ]track[ with {instruments}], {tempo} bpm", {"tempo": "118"})
    '118 bpm'
    """
    said = ""
    first, *rest = re.split(r"([,.] )", pattern)
    for separator, part in zip(["", *rest[::2]], [first, *rest[1::2]], strict=True):
        if filled := _fill(part, facts):
            said += (separator if said else "") + filled.strip()
    return re.sub(r"\b(instrumental|vocal|music|track)( \1\b)+", r"\1", said)  # the label "dance music" and "music"


def _fill(part: str, facts: Mapping[str, str]) -> str:
    """One part of a pattern, or nothing."""
    wanted = re.findall(r"\{(\w+)\}", part)
    needed = re.findall(r"\{(\w+)\}", re.sub(r"\[.*?\]", "", part))
    if not any(name in facts for name in wanted) or not all(name in facts for name in needed):
        return ""
    kept = re.sub(r"\[(.*?)\]", lambda inner: _fill(inner[1], facts), part)
    return re.sub(r"\{(\w+)\}", lambda name: facts[name[1]], kept)


def _phrases(patterns: Sequence[str], heard: Heard, rng: random.Random) -> Iterator[str]:
    """All patterns filled, in a new order in each round; none is empty."""
    for _ in range(ROUNDS):
        phrases = (phrasing(pattern, _facts(heard, rng)) for pattern in rng.sample(patterns, len(patterns)))
        yield from filter(None, phrases)


@lru_cache(maxsize=1)
def _patterns() -> tuple[str, ...]:
    text = files("musicgen_dreamboothing.assets").joinpath("captions.txt").read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if line.strip() and not line.startswith("#"))


def _with_file_tags(heard: Heard) -> Heard:
    """The file's own genre first, its tempo and key instead of measured ones."""
    own_genres = re.split(r"[,;/]", str(heard.own.get("genre") or "").lower())
    tempo, key = heard.own.get("bpm") or heard.tempo, heard.own.get("key") or heard.key
    genres = _plain([*own_genres, *heard.genres])
    return replace(
        heard, tempo=tempo, key=key, genres=genres, moods=_plain(heard.moods), instruments=_plain(heard.instruments)
    )


def _plain(labels: Sequence[str]) -> list[str]:
    """Labels without commas, braces, stray spaces, empty and repeated ones."""
    return list(dict.fromkeys(filter(None, (" ".join(re.sub(r"[,{}]", " ", label).split()) for label in labels))))


def _unsaid(heard: Heard, said: str) -> Heard:
    """What a text doesn't say yet."""

    def without(labels: list[str]) -> list[str]:
        return [label for label in labels if not re.search(rf"(?<!\w){re.escape(label)}(?!\w)", said, re.IGNORECASE)]

    return replace(
        heard,
        tempo=None if re.search(SAID_TEMPO, said, re.IGNORECASE) else heard.tempo,
        key=None if re.search(SAID_KEY, said, re.IGNORECASE) else heard.key,
        vocals=None if re.search(SAID_VOICE, said, re.IGNORECASE) else heard.vocals,
        genres=without(heard.genres),
        moods=without(heard.moods),
        instruments=without(heard.instruments),
    )


def _facts(heard: Heard, rng: random.Random) -> dict[str, str]:
    """The words for one caption: labels are drawn anew each time, and their order with them."""
    genres, moods, instruments = (
        rng.sample(labels, min(len(labels), MOST[name]))
        for name, labels in (("genres", heard.genres), ("moods", heard.moods), ("instruments", heard.instruments))
    )
    facts = {
        "genre": "".join(genres[:1]),
        "genres": ", ".join(genres),
        "mood": "".join(moods[:1]),
        "moods": _enumeration(moods),
        "mood_list": ", ".join(moods),
        "instruments": _enumeration(instruments),
        "instrument_list": ", ".join(instruments),
        "tempo": f"{heard.tempo:.0f}" if heard.tempo else "",
        "key": heard.key or "",
        "voice": {True: "vocals", False: "instrumental", None: ""}[heard.vocals],
        "sung": {True: "vocal", False: "instrumental", None: ""}[heard.vocals],
    }
    return {name: fact for name, fact in facts.items() if fact}


def _enumeration(labels: Sequence[str]) -> str:
    """
    >>> _enumeration(["guitar", "bass", "drums"])
    'guitar, bass and drums'
    """
    return " and ".join(filter(None, [", ".join(labels[:-1]), *labels[-1:]]))


def _behind(words: str, phrase: str) -> str:
    """
    >>> _behind("Loud and fast.", "118 bpm"), _behind("loud and fast", "118 bpm"), _behind("", "118 bpm")
    ('Loud and fast. 118 bpm', 'loud and fast, 118 bpm', '118 bpm')
    """
    if not words or not phrase:
        return words or phrase
    return f"{words} {phrase}" if words[-1] in ".!?…" else f"{words.rstrip(',;: ')}, {phrase}"
