"""Whether a clip has the tempo, the key and the notes that its prompt asks for.

A wave is float32 `[C, S]` at `rate` Hz.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from musicgen_dreamboothing.analysis.key import TONICS, find_key
from musicgen_dreamboothing.analysis.rhythm import find_rhythm
from musicgen_dreamboothing.audio import Wave

TEMPO_TOLERANCE = 0.04  # of Gouyon et al. (2006), "An experimental comparison of audio tempo induction algorithms"
TEMPO_MULTIPLES = (1.0, 0.5, 2.0)
FIFTH, RELATIVE, PARALLEL = 0.5, 0.3, 0.2  # of a right key; MIREX, audio key detection
SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}  # semitones above the tonic
ANY_NOTES = 7 / 12  # of what sounds where all notes sound alike
SCORES = TEMPO, KEY, CHROMA = "tempo_adherence", "key_adherence", "chroma_adherence"


@dataclass(frozen=True)
class Asked:
    """The tempo of a caption in beats a minute, and its key such as `C# minor`, with sharps; None without one."""

    bpm: float | None
    key: str | None


_NUMBER = r"(\d{2,3}(?:[.,]\d+)?)"
_TEMPO = re.compile(
    rf"(?<![\d.,–-]){_NUMBER}[\s-]*(?:bpm|beats (?:per|a) minute)\b"
    rf"|\b(?:bpm|tempo)(?:\s*[:=]\s*|\s+(?:(?:of|is|at|around|about)\s+)*){_NUMBER}\b",
    re.IGNORECASE,
)
_KEY = re.compile(
    r"(?P<before>\b(?:in|key(?:\s+(?:of|is))?)\b[\s:]*)?(?<![\w#♯♭'])(?P<letter>[A-G])"
    r"(?P<sharp>\s*[#♯]|[\s-]sharp)?(?P<flat>[b♭]|[\s-]flat)?[\s-]*\b(?P<mode>maj|min)(?:or)?\b",
    re.IGNORECASE,
)
_NOUN = re.compile(r"\s+(?!(?:and|at|by|for|from|in|on|or|then|to|with)\b)[a-z]", re.IGNORECASE)


def asked_of(prompt: str) -> Asked:
    """The tempo and the key that a caption asks for; one that names two different ones asks for neither.

    A key needs its mode as a word: "Am" and "in F" are not read.

    >>> asked_of("punk at 188 bpm in e minor"), asked_of("genre: rock. bpm: 118. key: Bb major")
    (Asked(bpm=188.0, key='E minor'), Asked(bpm=118.0, key='A# major'))
    >>> asked_of("a minor hit of 99 bands, in a minor key")
    Asked(bpm=None, key=None)
    """
    tempi = {float((one or other).replace(",", ".")) for one, other in _TEMPO.findall(prompt)}
    keys = {_key_name(match) for match in _KEY.finditer(prompt) if not _is_article(match)}
    return Asked(tempi.pop() if len(tempi) == 1 else None, keys.pop() if len(keys) == 1 else None)


def _is_article(match: re.Match[str]) -> bool:
    """Whether an "a" is a word of its own: in "a minor hit" and "in a minor key", not "in a minor" or "in A minor"."""
    letter, before = match["letter"], (match["before"] or "").lower()
    if letter not in "aA" or match["sharp"] or match["flat"] or before.startswith("key") or (letter == "A" and before):
        return False
    return bool(_NOUN.match(match.string, match.end()))


def _key_name(match: re.Match[str]) -> str:
    step = bool(match["sharp"]) - bool(match["flat"])
    return f"{TONICS[(TONICS.index(match['letter'].upper()) + step) % 12]} {match['mode'].lower()}or"


@dataclass(frozen=True)
class TempoAdherence:
    """Tempi in beats a minute; `detected` is None without a pulse or for less than 5 s.

    `multiple` is 1, 0.5 or 2 where that multiple of the requested tempo was detected, within 4 %; else None.
    """

    requested: float
    detected: float | None
    multiple: float | None


def tempo_adherence(requested: float, wave: Wave, rate: int) -> TempoAdherence:
    """Compares the tempo that `find_rhythm` detects in a clip `[C, S]` with the requested one, in beats a minute."""
    rhythm = find_rhythm(wave, rate)
    if rhythm is None:
        return TempoAdherence(requested, None, None)
    return TempoAdherence(requested, rhythm.tempo, tempo_multiple(rhythm.tempo, requested))


def tempo_multiple(detected: float, requested: float) -> float | None:
    """1, 0.5 or 2 where the detected tempo is that multiple of the requested one, within 4 %; else None."""
    near = (multiple for multiple in TEMPO_MULTIPLES if abs(detected / (requested * multiple) - 1) <= TEMPO_TOLERANCE)
    return next(near, None)


@dataclass(frozen=True)
class KeyAdherence:
    """Keys such as `C# minor`; `detected` is None where nothing is tonal or the clip is shorter than 3 s.

    `score` is MIREX's: 1 for the key, 0.5 for one a fifth away, 0.3 for the relative and 0.2 for the parallel one.
    `in_scale` is the share of the chroma on notes of the requested key; 7/12 where nothing is tonal.
    """

    requested: str
    detected: str | None
    score: float
    in_scale: float


def key_adherence(requested: str, wave: Wave, rate: int) -> KeyAdherence:
    """Compares the key that `find_key` detects in a clip `[C, S]` with the requested one, such as `C# minor`."""
    key = find_key(wave, rate)
    if key is None:
        return KeyAdherence(requested, None, 0.0, ANY_NOTES)
    return KeyAdherence(requested, key.name, key_score(key.name, requested), scale_share(key.classes, requested))


def key_score(detected: str, requested: str) -> float:
    """MIREX's weighted score of two keys, 0 to 1; a fifth may be up or down, as in its evaluation."""
    (tonic, mode), (asked_tonic, asked_mode) = detected.split(), requested.split()
    steps = (TONICS.index(tonic) - TONICS.index(asked_tonic)) % 12
    if mode == asked_mode:
        return {0: 1.0, 5: FIFTH, 7: FIFTH}.get(steps, 0.0)
    return {0: PARALLEL, 9 if asked_mode == "major" else 3: RELATIVE}.get(steps, 0.0)


def scale_share(classes: Sequence[float], key: str) -> float:
    """The share of twelve pitch classes, from C up, on notes of a key: of its major or natural minor scale.

    >>> scale_share([1.0] * 12, "C# minor") == ANY_NOTES
    True
    """
    tonic, mode = key.split()
    inside = sum(classes[(TONICS.index(tonic) + step) % 12] for step in SCALES[mode])
    return inside / sum(classes)


@dataclass(frozen=True)
class Adherence:
    """Tempo and key of a clip against those of its prompt; None where the prompt asks for none."""

    tempo: TempoAdherence | None
    key: KeyAdherence | None

    @property
    def scores(self) -> dict[str, float]:
        """Those of `SCORES` that the prompt asks for, each 0 to 1."""
        scores = {}
        if self.tempo is not None:
            scores[TEMPO] = float(self.tempo.multiple == 1)  # Accuracy 1 of Gouyon et al. (2006)
        if self.key is not None:
            scores |= {KEY: self.key.score, CHROMA: self.key.in_scale}
        return scores

    @property
    def notes(self) -> dict[str, str]:
        """Text for a page."""
        notes = {}
        if self.tempo is not None:
            tempo = "none" if self.tempo.detected is None else f"{self.tempo.detected:.0f}"
            notes["tempo"] = f"requested {self.tempo.requested:g}, detected {tempo}"
        if self.key is not None:
            share = f"{100 * self.key.in_scale:.0f} % of its notes"
            notes["key"] = f"requested {self.key.requested}, detected {self.key.detected or 'none'}; {share}"
        return notes


def adherence(prompt: str, wave: Wave, rate: int) -> Adherence:
    """Tempo and key of a clip `[C, S]`, as far as its prompt asks for them."""
    requested = asked_of(prompt)
    return Adherence(
        None if requested.bpm is None else tempo_adherence(requested.bpm, wave, rate),
        None if requested.key is None else key_adherence(requested.key, wave, rate),
    )
