"""Whether a clip has the tempo, the key and the notes that its prompt asks for.

A wave is float32 `[C, S]` at `rate` Hz. What can't be measured is not wrong: a clip that is too short for the detectors
has no score, nor has a pair of clips where none is found in either. Where one of the two models lost the pulse or the
key that the other one has, its clip does not have what was asked for, and scores 0: else a model that turns to noise
would lose no score at all.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from musicgen_dreamboothing.analysis.key import SHORTEST_SECONDS as SHORTEST_KEY_SECONDS
from musicgen_dreamboothing.analysis.key import TONICS, find_key
from musicgen_dreamboothing.analysis.rhythm import SHORTEST_SECONDS as SHORTEST_TEMPO_SECONDS
from musicgen_dreamboothing.analysis.rhythm import find_rhythm
from musicgen_dreamboothing.audio import Wave

TEMPO_TOLERANCE = 0.04  # of Gouyon et al. (2006), "An experimental comparison of audio tempo induction algorithms"
TEMPO_LEVELS = {
    0.5: "half the requested tempo",
    2.0: "double the requested tempo",
    1 / 3: "a third of the requested tempo",
    3.0: "three times the requested tempo",
}  # other metrical levels, those of Gouyon's Accuracy 2
FIFTH, RELATIVE, PARALLEL = 0.5, 0.3, 0.2  # of a right key; MIREX, audio key detection
SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}  # semitones above the tonic
ANY_NOTES = 7 / 12  # of what sounds where all notes sound alike
ANY_TEMPO = math.log2((1 + TEMPO_TOLERANCE) / (1 - TEMPO_TOLERANCE)) / math.log2(190 / 60)  # drawn from 60 to 190 bpm
ANY_KEY = (1 + 2 * FIFTH + RELATIVE + PARALLEL) / 24  # mean score of a key drawn from all 24
SCORES = TEMPO, TEMPO_LEVEL, KEY, CHROMA = "tempo_adherence", "tempo_level", "key_adherence", "chroma_adherence"
CHANCE = {TEMPO: ANY_TEMPO, TEMPO_LEVEL: len(TEMPO_LEVELS) * ANY_TEMPO, KEY: ANY_KEY, CHROMA: ANY_NOTES}


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
    """Tempi in beats a minute; `detected` is None without a pulse, and where the clip is not long enough (5 s).

    `multiple` is 1, or one of `TEMPO_LEVELS`, where that multiple of the requested tempo was detected, within 4 %; else
    None.
    """

    requested: float
    detected: float | None
    multiple: float | None
    is_long_enough: bool = True

    @property
    def scores(self) -> dict[str, float]:
        """Whether it is the tempo (Accuracy 1 of Gouyon et al. 2006), and whether another metrical level of it."""
        return {TEMPO: float(self.multiple == 1), TEMPO_LEVEL: float(self.multiple in TEMPO_LEVELS)}

    @property
    def note(self) -> str:
        """Text for a page, such as `requested 120, detected 60 (half the requested tempo)`."""
        detected = _missing("pulse", self.is_long_enough) if self.detected is None else f"{self.detected:.0f}"
        level = TEMPO_LEVELS.get(self.multiple) if self.multiple is not None else None
        return f"requested {self.requested:g}, detected {detected}" + (f" ({level})" if level else "")


def tempo_adherence(requested: float, wave: Wave, rate: int) -> TempoAdherence:
    """Compares the tempo that `find_rhythm` detects in a clip `[C, S]` with the requested one, in beats a minute."""
    rhythm = find_rhythm(wave, rate)
    if rhythm is None:
        return TempoAdherence(requested, None, None, wave.shape[1] >= SHORTEST_TEMPO_SECONDS * rate)
    return TempoAdherence(requested, rhythm.tempo, tempo_multiple(rhythm.tempo, requested))


def tempo_multiple(detected: float, requested: float) -> float | None:
    """1 or the one of `TEMPO_LEVELS` that the detected tempo is of the requested one, within 4 %; else None."""
    ratio = detected / requested
    near = (multiple for multiple in (1.0, *TEMPO_LEVELS) if abs(ratio / multiple - 1) <= TEMPO_TOLERANCE)
    return next(near, None)


def _missing(what: str, is_long_enough: bool) -> str:
    return f"no {what}" if is_long_enough else "none (too short)"


@dataclass(frozen=True)
class KeyAdherence:
    """Keys such as `C# minor`; `detected` is None where nothing is tonal, and where the clip is not long enough (3 s).

    `score` is MIREX's: 1 for the key, 0.5 for one a fifth away, 0.3 for the relative and 0.2 for the parallel one.
    `in_scale` is the share of the chroma on notes of the requested key; 7/12 where nothing is tonal.
    """

    requested: str
    detected: str | None
    score: float
    in_scale: float
    is_long_enough: bool = True

    @property
    def scores(self) -> dict[str, float]:
        return {KEY: self.score, CHROMA: self.in_scale}

    @property
    def note(self) -> str:
        """Text for a page."""
        if self.detected is None:
            return f"requested {self.requested}, detected {_missing('key', self.is_long_enough)}"
        return f"requested {self.requested}, detected {self.detected}; {100 * self.in_scale:.0f} % of its notes"


def key_adherence(requested: str, wave: Wave, rate: int) -> KeyAdherence:
    """Compares the key that `find_key` detects in a clip `[C, S]` with the requested one, such as `C# minor`."""
    key = find_key(wave, rate)
    if key is None:
        return KeyAdherence(requested, None, 0.0, ANY_NOTES, wave.shape[1] >= SHORTEST_KEY_SECONDS * rate)
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
    def notes(self) -> dict[str, str]:
        """Text for a page."""
        parts = {"tempo": self.tempo, "key": self.key}
        return {name: part.note for name, part in parts.items() if part is not None}

    def of(self, score: str) -> TempoAdherence | KeyAdherence | None:
        """The part that has this one of `SCORES`; None where the prompt does not ask for it."""
        return self.tempo if score in (TEMPO, TEMPO_LEVEL) else self.key


def adherence(prompt: str, wave: Wave, rate: int) -> Adherence:
    """Tempo and key of a clip `[C, S]`, as far as its prompt asks for them."""
    requested = asked_of(prompt)
    return Adherence(
        None if requested.bpm is None else tempo_adherence(requested.bpm, wave, rate),
        None if requested.key is None else key_adherence(requested.key, wave, rate),
    )


@dataclass(frozen=True)
class Comparison:
    """One of `SCORES` for the clips of both models of the same prompts and seeds.

    Attributes:
        score: which one.
        rows: indices of the N clips that can be compared.
        base, tuned: their scores `[N]`, 0 to 1.
        requested: clips whose prompt asks for it.
        long_enough: those of them that are long enough in both models.
        base_missing, tuned_missing: those of these in which there is none: no pulse, or no key.
    """

    score: str
    rows: list[int]
    base: list[float]
    tuned: list[float]
    requested: int
    long_enough: int
    base_missing: int
    tuned_missing: int

    @property
    def reason(self) -> str:
        """Why nothing can be compared; empty where something can."""
        if self.rows:
            return ""
        if not self.requested:
            return "no prompt asks for one"
        if not self.long_enough:
            return f"it takes clips of {self._shortest:g} s"
        return f"no {self._what} was found in any of {self.long_enough} clips"

    @property
    def note(self) -> str:
        """How many clips were measured, where it was not all; empty where it was."""
        parts = []
        if len(self.rows) < self.requested:
            parts.append(f"{len(self.rows)} of {self.requested} clips could be measured.")
        if self.base_missing or self.tuned_missing:
            parts.append(
                f"No {self._what} was found in {self.base_missing} of {self.long_enough} clips of the base model and "
                f"in {self.tuned_missing} of the fine-tuned one."
            )
        return " ".join(parts)

    @property
    def _what(self) -> str:
        return "pulse" if self.score in (TEMPO, TEMPO_LEVEL) else "key"

    @property
    def _shortest(self) -> float:
        return SHORTEST_TEMPO_SECONDS if self.score in (TEMPO, TEMPO_LEVEL) else SHORTEST_KEY_SECONDS


def compare(score: str, base: Sequence[Adherence], tuned: Sequence[Adherence]) -> Comparison:
    """One of `SCORES` of clips of the base and the fine-tuned model in the same order."""
    parts = [
        (row, before.of(score), after.of(score)) for row, (before, after) in enumerate(zip(base, tuned, strict=True))
    ]
    requested = [(row, before, after) for row, before, after in parts if before is not None and after is not None]
    long_enough = [pair for pair in requested if pair[1].is_long_enough and pair[2].is_long_enough]
    measured = [pair for pair in long_enough if pair[1].detected is not None or pair[2].detected is not None]
    return Comparison(
        score=score,
        rows=[row for row, _, _ in measured],
        base=[before.scores[score] for _, before, _ in measured],
        tuned=[after.scores[score] for _, _, after in measured],
        requested=len(requested),
        long_enough=len(long_enough),
        base_missing=sum(before.detected is None for _, before, _ in long_enough),
        tuned_missing=sum(after.detected is None for _, _, after in long_enough),
    )
