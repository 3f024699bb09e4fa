"""Pieces of music whose tempo, beats, downbeats and key are known: written at random, played with numpy alone.

They are there to be heard wrongly. Drums come in the patterns that suit a tempo, or not at all; chords go round in
progressions with secondary dominants and borrowed chords now and then; bands are out of tune, wander in tempo, swing,
make fills and leave bars out; clips begin and end anywhere in a bar, some in mono, all with noise at 20 dB below them.
Nothing here knows how the listening works. Same seed, same pieces.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Random = np.random.Generator

RATE = 32_000  # Hz, MusicGen's
TONICS = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
SLOWEST, FASTEST = 60.0, 190.0  # quarter notes a minute
NOISE_DB = -20.0
DETUNING = 30.0  # cents, either way
LEAD_IN = 8  # beats before the clip begins: it begins in the middle of things
RINGING = 1.0  # seconds of them that may still be heard


@dataclass(frozen=True)
class Piece:
    """A clip `[C, S]` at `RATE` and the truth about it; times in seconds."""

    wave: NDArray[np.float32]
    tempo: float
    beats: Array
    downbeats: Array
    beats_per_bar: int
    tonic: str
    mode: str
    cents: float
    style: str


@dataclass(frozen=True)
class Style:
    """How a band plays, and at which tempi. A pattern is a bar (or two) in equal steps: x hit, o soft hit, . none."""

    name: str
    tempi: tuple[float, float]
    kick: tuple[str, ...] = ()
    snare: tuple[str, ...] = ()
    hat: tuple[str, ...] = ()
    chords: tuple[str, ...] = ()
    bass: tuple[str, ...] = ()
    swing: tuple[float, float] = (0.5, 0.5)  # where the second half of a `swung` unit falls
    swung: float = 1.0  # in beats
    beats: int = 4
    timbres: tuple[str, ...] = ("plucked", "organ", "pad", "electric", "distorted")


_EIGHTHS, _QUARTERS, _SIXTEENTHS, _OFF = "x.o." * 4, "x..." * 4, "xooo" * 4, "..x." * 4
_BACKBEAT = "....x.......x..."
_HELD = ("x...............", "x.......x.......")
_COMPED = ("x...x...x...x...", "x..x..x.........", "x.....x...x.....", "x.x.x.x.x.x.x.x.")
_ROOTS = ("x.......x.......", "x.x.x.x.x.x.x.x.", "x..x....x..x..x.", "x.......x.....x.")

STYLES = (
    Style(
        "rock", (84, 176), ("x.......x.......", "x.......x.x.....", "x.....x.x.......", "x......xx.x....."),
        (_BACKBEAT,), (_EIGHTHS, _EIGHTHS, _QUARTERS), _HELD + _COMPED, _ROOTS,
    ),
    Style(
        "sixteenths", (70, 106), ("x..x..x...x.....", "x......x..x..x..", "x..x......x....."),
        (_BACKBEAT, "....x..o.o..x..o"), (_SIXTEENTHS,), _HELD + _COMPED[1:3], ("x..x..x...x.....", "x.....x.x.....x."),
    ),
    Style(
        "four on the floor", (108, 152), (_QUARTERS,), (_BACKBEAT, "................"), (_OFF, _EIGHTHS, _SIXTEENTHS),
        (*_HELD, "..x...x...x...x.", "x..x..x...x..x.."), ("x.x.x.x.x.x.x.x.", "..x...x...x...x.", _ROOTS[2]),
        timbres=("plucked", "organ", "pad", "electric"),
    ),
    Style(
        "punk", (150, 190), ("x.......x.......", "x.x...x.x.x...x.", "x.....x.x.x....."), (_BACKBEAT,),
        (_EIGHTHS, _QUARTERS), ("x.x.x.x.x.x.x.x.", "x..............."), ("x.x.x.x.x.x.x.x.",), timbres=("distorted",),
    ),
    Style(
        "halftime", (128, 168), ("x...............", "x.....x.......x.", "x.........x....."), ("........x.......",),
        (_EIGHTHS, "x.x.x.x.x.xxx.x."), _HELD, ("x...............", "x.....x.......x."),
        timbres=("pad", "distorted", "electric"),
    ),
    Style(
        "ballad", (60, 84), ("x.......x.......", "x.......x.x.....", "x.............x."), (_BACKBEAT,),
        (_EIGHTHS, _QUARTERS), ("x...x...x...x...", "x.x.x.x.x.x.x.x.", "x.......x......."),
        ("x.......x.......", "x.....x.x.....x."),
        timbres=("plucked", "organ", "pad", "electric"),
    ),
    Style(
        "hip-hop", (78, 104), ("x.x.......x.....", "x......x..x.....", "x..x...x..x....."), (_BACKBEAT,), (_EIGHTHS,),
        (*_HELD, "x.....x........."), ("x......x..x.....", "x.........x....."), swing=(0.5, 0.62), swung=0.5,
        timbres=("plucked", "pad", "electric"),
    ),
    Style(
        "drum and bass", (160, 178), ("x.........x.....",), (_BACKBEAT, "....x..o.o..x..."), (_EIGHTHS,), _HELD,
        ("x...............", "x.........x....."), timbres=("pad", "electric", "organ"),
    ),
    Style(
        "shuffle", (84, 140), ("x.....x.....", "x....xx.....", "x..x..x..x.."), ("...x.....x..",), ("x.ox.ox.ox.o",),
        ("x.xx.xx.xx.x", "x.....x.....", "..x..x..x..x"), ("x..x..x..x..", "x.xx.xx.xx.x"),
    ),
    Style(
        "jazz", (104, 190), ("o..o..o..o..", "............"), ("............",), ("x..x.ox..x.o",),
        ("x....x......", "..x..x......", "x..x..x..x.."), ("x..x..x..x..",), timbres=("plucked", "electric"),
    ),
    Style(
        "reggae", (66, 88), ("....x.......x...", "x...x...x...x..."), (_BACKBEAT,), (_EIGHTHS,), ("..x...x...x...x.",),
        ("x...x.x...x.x...", "x.....x.x......."), swing=(0.5, 0.58), swung=0.5, timbres=("organ", "plucked"),
    ),
    Style(
        "waltz", (84, 184), ("x...........",), ("....o...o...", "............"), ("x...x...x...", "x.o.x.o.x.o."),
        ("....x...x...", "x..........."), ("x...........", "x.......x..."), beats=3,
    ),
    Style(
        "strummed", (62, 144), chords=("x...x.x...x.x.x.", "x...x...x.x.x.x.", "x.x.x.x.x.x.x.x.", "x...x...x...x..."),
        bass=("x.......x.......", "x...............", "................"), timbres=("plucked", "distorted"),
    ),
    Style(
        "arpeggio", (60, 132), chords=("arpeggio",), bass=("x.......x.......", "x..............."),
        timbres=("plucked", "electric"),
    ),
    Style(
        "oom-pah-pah", (88, 176), chords=("....x...x...",), bass=("x...........",), beats=3,
        timbres=("plucked", "organ"),
    ),
)  # fmt: skip

_SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
# Roots in semitones above the tonic; upper case is major, lower case minor, 7 adds the minor seventh.
_ROMAN = {"I": 0, "bII": 1, "II": 2, "bIII": 3, "III": 4, "IV": 5, "V": 7, "bVI": 8, "VI": 9, "bVII": 10, "VII": 11}
_PROGRESSIONS = {
    "major": (
        "I V vi IV", "I IV V V", "I vi IV V", "I vi ii V7", "I IV I V7", "I iii IV V", "I IV ii V", "IV I V I",
        "I V IV I", "vi IV I V", "I ii IV V", "I I IV V7", "ii V7 I I", "I IV vi V", "I V vi iii IV I ii V7",
    ),
    "minor": (
        "i bVI bIII bVII", "i iv V i", "i bVII bVI V", "i iv bVII bIII", "i bVI iv V7", "i i iv v", "i bVII bVI bVII",
        "i iv i V7", "i v bVI iv", "i bIII bVII iv", "i bVI bVII i", "i iv bVI V", "i bVI bIII bVII i iv V7 i",
    ),
}  # fmt: skip
_SPICES = {"major": ("III7", "VI7", "II7", "iv", "bVII", "bVI"), "minor": ("I7", "bII", "IV", "II7", "bVI")}


class _Note(NamedTuple):
    beat: float
    beats: float
    pitch: float  # MIDI number; drums: unused
    loudness: float
    voice: str


def pieces(count: int, seed: int, seconds: tuple[float, float] = (20.0, 30.0)) -> Iterator[Piece]:
    """`count` pieces whose tempi and keys are spread evenly; one at a time, for they are large."""
    random = np.random.default_rng(seed)
    tempi = random.permutation(SLOWEST + (FASTEST - SLOWEST) * (np.arange(count) + random.random(count)) / count)
    keys = random.permutation(np.arange(count) % 24)
    for tempo, key, own in zip(tempi, keys, random.spawn(count), strict=True):
        yield _piece(float(tempo), int(key) % 12, ("major", "minor")[key // 12], own.uniform(*seconds), own)


def _piece(tempo: float, tonic: int, mode: str, seconds: float, random: Random) -> Piece:
    styles = [style for style in STYLES if style.tempi[0] <= tempo <= style.tempi[1]]
    style = styles[random.integers(len(styles))]
    begin = LEAD_IN + random.uniform(0, style.beats)
    beats = int(begin + seconds * tempo / 60) + 4
    clock = _clock(tempo, beats, random)
    clock -= float(np.interp(begin, np.arange(len(clock)), clock))
    cents = random.uniform(-DETUNING, DETUNING)
    notes = _music(style, tonic, mode, beats, random)
    wave = _mastered(_played(notes, style, clock, seconds, cents, random), random)
    inside = np.flatnonzero((clock >= 0) & (clock < wave.shape[1] / RATE))
    return Piece(
        wave=wave,
        tempo=tempo,
        beats=clock[inside],
        downbeats=clock[inside[inside % style.beats == 0]],
        beats_per_bar=style.beats,
        tonic=TONICS[tonic],
        mode=mode,
        cents=cents,
        style=style.name,
    )


def _clock(tempo: float, beats: int, random: Random) -> Array:
    """When each beat falls, in seconds; every third band wanders by up to 0.7 %."""
    depth = random.uniform(0.002, 0.007) if random.random() < 1 / 3 else 0.0
    lengths = 60 / tempo * (1 + depth * np.sin(2 * np.pi * (np.arange(beats + 8) / random.uniform(20, 60))))
    return np.concatenate([[0.0], np.cumsum(lengths)])


def _music(style: Style, tonic: int, mode: str, beats: int, random: Random) -> list[_Note]:
    """All the notes, in beats, drums among them, with swing and without human error."""
    bars = beats // style.beats + 1
    chords = _harmony(style, tonic, mode, bars, random)
    notes = [*_drums(style, bars, random), *_accompaniment(style, chords, random), *_bass(style, chords, random)]
    if random.random() < 0.75:
        notes += _melody(style, tonic, mode, chords, random)
    swing = random.uniform(*style.swing)
    return [note._replace(beat=_swung(note.beat, swing, style.swung)) for note in notes]


def _swung(beat: float, swing: float, unit: float) -> float:
    whole, part = divmod(beat / unit, 1)
    part = part * 2 * swing if part < 0.5 else swing + (part - 0.5) * 2 * (1 - swing)
    return (whole + part) * unit


def _steps(pattern: str, style: Style, bars: int) -> Iterator[tuple[float, float]]:
    """Beat and loudness of the hits of a pattern over `bars`."""
    per_beat = 3 if len(pattern) == 12 and style.beats == 4 else 4
    for step in range(bars * style.beats * per_beat):
        sign = pattern[step % len(pattern)]
        if sign != ".":
            yield step / per_beat, 1.0 if sign == "x" else 0.6


def _one(patterns: Sequence[str], random: Random) -> str:
    return patterns[random.integers(len(patterns))]


def _drums(style: Style, bars: int, random: Random) -> list[_Note]:
    if not style.hat:
        return []
    notes: list[_Note] = []
    for drum, patterns in (("kick", style.kick), ("snare", style.snare), ("hat", style.hat)):
        hits = _steps(_one(patterns, random), style, bars)
        notes += [_Note(beat, 0.25, 0, loudness * random.uniform(0.8, 1), drum) for beat, loudness in hits]
    silent = set(np.flatnonzero(random.random(bars) < 0.04) * style.beats)  # a bar is left out now and then
    notes = [note for note in notes if note.beat // style.beats * style.beats not in silent]
    every = (4 if random.random() < 0.5 else 8) * style.beats
    fills = random.random() < 0.6
    for end in range(every, bars * style.beats, every):
        notes.append(_Note(end, 2, 0, random.uniform(0.5, 1), "crash"))
        if fills:
            notes = [note for note in notes if note.voice == "kick" or not end - 1 <= note.beat < end]
            notes += [_Note(end - 1 + step / 4, 0.25, 0, random.uniform(0.6, 1), "snare") for step in range(4)]
    return notes


def _harmony(style: Style, tonic: int, mode: str, bars: int, random: Random) -> list[tuple[float, float, list[int]]]:
    """Chords as (beat, beats, pitch classes, the root first); the loop begins with the clip's first whole phrase."""
    names = _one(_PROGRESSIONS[mode], random).split()
    length = float(style.beats * random.choice([1, 1, 1, 2] if style.beats == 4 else [1, 2]))
    if style.tempi[1] <= 106 and random.random() < 0.3:
        length = 2.0
    chords = []
    for place in range(int(bars * style.beats / length) + 1):
        name = names[place % len(names)]
        if place % len(names) not in (0, len(names) - 1) and random.random() < 0.06:
            name = _one(_SPICES[mode], random)
        chords.append((place * length, length, _chord(name, tonic)))
    return chords


def _chord(name: str, tonic: int) -> list[int]:
    roman = name.rstrip("7")
    flat, numeral = ("b", roman[1:]) if roman.startswith("b") else ("", roman)
    root = tonic + _ROMAN[flat + numeral.upper()] if flat + numeral.upper() in _ROMAN else tonic
    shape = [0, 4, 7] if numeral.isupper() else [0, 3, 7]
    return [(root + step) % 12 for step in (*shape, *((10,) if name.endswith("7") else ()))]


def _accompaniment(style: Style, chords: list[tuple[float, float, list[int]]], random: Random) -> list[_Note]:
    pattern = _one(style.chords, random)
    if pattern == "arpeggio":
        return _arpeggio(chords, random)
    low, held = int(random.integers(50, 58)), random.uniform(0.4, 1)
    hits = list(_steps(pattern, style, int(chords[-1][0] // style.beats)))
    notes = []
    for (beat, loudness), (following, _) in pairwise(hits):
        chord = _at(chords, beat)
        voicing = [chord[0], chord[2]] if style.timbres == ("distorted",) else chord
        for tone in voicing:
            pitch = low + (tone - low) % 12
            notes.append(_Note(beat, held * (following - beat), pitch, loudness * random.uniform(0.8, 1), "chords"))
    return notes


def _arpeggio(chords: list[tuple[float, float, list[int]]], random: Random) -> list[_Note]:
    """Eighths up and down through the chord."""
    order = (0, 1, 2, 3, 2, 1) if random.random() < 0.3 else (0, 2, 1, 2)
    low = int(random.integers(50, 58))
    notes = []
    for begin, beats, chord in chords:
        pitches = [*(low + (tone - low) % 12 for tone in chord[:3]), low + 12 + (chord[0] - low) % 12]
        for step in range(int(beats * 2)):
            loudness = 1.0 if step == 0 else random.uniform(0.6, 0.85)
            notes.append(_Note(begin + step / 2, 0.9, pitches[order[step % len(order)]], loudness, "chords"))
    return notes


def _at(chords: list[tuple[float, float, list[int]]], beat: float) -> list[int]:
    length = chords[0][1]
    return chords[min(int(beat / length), len(chords) - 1)][2]


def _bass(style: Style, chords: list[tuple[float, float, list[int]]], random: Random) -> list[_Note]:
    pattern = _one(style.bass, random)
    held, fifths = random.uniform(0.5, 0.95), random.random() < 0.3
    walks = style.name == "jazz"
    notes = []
    for beat, loudness in _steps(pattern, style, int(chords[-1][0] // style.beats)):
        chord = _at(chords, beat)
        tone = chord[0]
        if beat % style.beats and (walks or (fifths and random.random() < 0.5)):
            tone = chord[random.integers(len(chord))] if walks else chord[2]
        notes.append(_Note(beat, held, 28 + (tone - 28) % 12, loudness, "bass"))
    return notes


def _melody(
    style: Style, tonic: int, mode: str, chords: list[tuple[float, float, list[int]]], random: Random
) -> list[_Note]:
    """A walk over the scale which likes chord tones on the beat; in minor the seventh is raised under V."""
    scale = [60 + tonic + 12 * octave + step for octave in (-1, 0, 1) for step in _SCALES[mode]]
    thirds = style.name in ("jazz", "shuffle")
    durations = (1.0, 2 / 3, 1 / 3) if thirds else (0.5, 0.5, 1.0, 1.0, 1.5, 2.0)
    place, beat, notes = 9, 0.0, []
    while beat < chords[-1][0]:
        chord = _at(chords, beat)
        place = int(np.clip(place + random.integers(-3, 4), 3, len(scale) - 4))
        near = [other for other in range(max(place - 2, 0), place + 3) if scale[other] % 12 in chord]
        if beat % 1 == 0 and near and random.random() < 0.75:
            place = near[random.integers(len(near))]
        pitch = scale[place] + (mode == "minor" and (scale[place] + 1) % 12 in chord and scale[place] % 12 not in chord)
        beats = float(random.choice(durations)) if not thirds or beat % 1 == 0 else 1 - beat % 1
        if random.random() < 0.85:
            notes.append(_Note(beat, beats * 0.9, pitch, random.uniform(0.6, 1), "melody"))
        beat = round((beat + beats) * 6) / 6
    return notes


def _played(notes: list[_Note], style: Style, clock: Array, seconds: float, cents: float, random: Random) -> Array:
    """`[2, S]`: every voice with a timbre, a place and a loudness of its own, played by hands that err by a few ms."""
    samples, earlier = round(seconds * RATE), round(RINGING * RATE)
    band = _Band(style, cents, random)
    error = random.uniform(0.001, 0.009)
    mix = np.zeros((2, earlier + samples), np.float32)
    for voice, level in band.levels.items():
        mono = np.zeros(earlier + samples)
        for note in notes:
            begin, end = np.interp([note.beat, note.beat + note.beats], np.arange(len(clock)), clock)
            first = earlier + round((begin + random.normal(0, error)) * RATE)
            if note.voice == voice and 0 <= first < len(mono):
                sound = note.loudness * band.sound(note, end - begin)
                mono[first : first + len(sound)] += sound[: len(mono) - first]
        if band.timbres.get(voice) == "distorted":
            mono = np.tanh(6 * mono / max(np.std(mono) * 3, 1e-9))
        side = random.uniform(-0.4, 0.4) if voice in ("chords", "melody", "hat") else 0.0
        scaled = level * mono / max(float(np.sqrt(np.mean(mono**2))), 1e-9)
        mix += np.array([[1 - side], [1 + side]]) * scaled
    return _in_a_room(mix, random)[:, earlier:]


class _Band:
    """The sounds of one piece: timbres and drums, drawn once."""

    def __init__(self, style: Style, cents: float, random: Random) -> None:
        self.random = random
        self.cents = cents
        lead = ("plucked", "organ", "electric", "lead", "lead")
        self.timbres = {"chords": _one(style.timbres, random), "melody": _one(lead, random), "bass": "bass"}
        drums = 10 ** (random.uniform(-6, 5) / 20)
        self.levels = {
            "kick": 0.6 * drums, "snare": 0.5 * drums, "hat": 0.18 * drums * random.uniform(0.6, 1.4),
            "crash": 0.1 * drums, "bass": random.uniform(0.5, 1), "chords": random.uniform(0.5, 1),
            "melody": random.uniform(0.4, 0.9),
        }  # fmt: skip
        self.bright = random.uniform(0.7, 1.6)
        self.kick = random.uniform(44, 62), random.uniform(60, 200), random.uniform(0.1, 0.3)
        self.snare = random.uniform(150, 230), random.uniform(0.06, 0.18), random.uniform(0.3, 0.8)
        self.hat = random.uniform(0.02, 0.07)
        self.cache: dict[tuple[str, float, int], Array] = {}

    def sound(self, note: _Note, seconds: float) -> Array:
        """`[S]` of one note or hit, with its release."""
        key = (note.voice, note.pitch, round(seconds * 50))
        if key not in self.cache or note.voice in ("snare", "hat", "crash"):
            self.cache[key] = self._drum(note.voice) if note.pitch == 0 else self._tone(note, seconds)
        return self.cache[key]

    def _drum(self, name: str) -> Array:
        length = {"kick": self.kick[2], "snare": self.snare[1], "hat": self.hat, "crash": 0.6}[name]
        time = np.arange(int(5 * length * RATE)) / RATE
        fade = np.exp(-time / length)
        if name == "kick":
            low, sweep, _ = self.kick
            body = np.sin(2 * np.pi * (low * time - sweep * 0.025 * np.exp(-time / 0.025)))
            return body * fade + 0.2 * self.random.standard_normal(len(time)) * np.exp(-time / 0.003)
        noise = self.random.standard_normal(len(time))
        if name == "snare":
            shell = np.sin(2 * np.pi * self.snare[0] * time) + 0.6 * np.sin(2 * np.pi * 1.8 * self.snare[0] * time)
            return fade * (self.snare[2] * noise + (1 - self.snare[2]) * shell)
        return np.diff(noise, 2, prepend=[0.0, 0.0]) * fade  # twice differentiated: little is left below 5 kHz

    def _tone(self, note: _Note, seconds: float) -> Array:
        hertz = 440 * 2 ** ((note.pitch - 69 + self.cents / 100) / 12)
        time = np.arange(int((seconds + 0.08) * RATE)) / RATE
        wave = _TIMBRES[self.timbres[note.voice]](hertz, time, self.bright)
        return wave * np.clip((seconds + 0.08 - time) / 0.08, 0, 1)


def _partials(hertz: float, time: Array, strengths: dict[float, float], fading: float = 0.0) -> Array:
    """The sum of sines at multiples of `hertz`, the high ones fading sooner; in single precision, for speed."""
    turns = (hertz / 2 * time % 1).astype(np.float32)  # of half the frequency: organs have a pipe for that
    short = time.astype(np.float32)
    wave = np.zeros(len(time), np.float32)
    for number, strength in strengths.items():
        if number * hertz < 0.45 * RATE:
            tone = strength * np.sin(4 * np.pi * number * turns + number)
            wave += tone * np.exp(-fading * number**0.7 * short) if fading else tone
    return wave.astype(float)


def _falling(count: int, power: float) -> dict[float, float]:
    return {float(number): number**-power for number in range(1, count + 1)}


def _plucked(hertz: float, time: Array, bright: float) -> Array:
    strengths = {
        number: strength * abs(np.sin(0.6 * number)) for number, strength in _falling(10, 1.5 / bright).items()
    }
    return _partials(hertz, time, strengths, 1.6) * np.clip(time / 0.003, 0, 1)


def _organ(hertz: float, time: Array, bright: float) -> Array:
    drawbars = {0.5: 0.3, 1.0: 1.0, 2.0: 0.7, 3.0: 0.4 * bright, 4.0: 0.3, 6.0: 0.1, 8.0: 0.1 * bright}
    return _partials(hertz, time, drawbars) * np.clip(time / 0.008, 0, 1)


def _pad(hertz: float, time: Array, bright: float) -> Array:
    voices = sum(_partials(hertz * 2 ** (cents / 1200), time, _falling(8, 1.6 / bright)) for cents in (-7, 6))
    return np.asarray(voices) * np.clip(time / 0.15, 0, 1)


def _electric(hertz: float, time: Array, bright: float) -> Array:
    """Frequency modulation (Chowning 1973), as in electric pianos of the eighties."""
    depth = 1.5 * bright * np.exp(-3 * time)
    return np.sin(2 * np.pi * hertz * time + depth * np.sin(2 * np.pi * hertz * time)) * np.exp(-0.9 * time)


def _saw(hertz: float, time: Array, bright: float) -> Array:
    return _partials(hertz, time, _falling(12, 1.1)) * np.clip(time / 0.003, 0, 1)


def _lead(hertz: float, time: Array, bright: float) -> Array:
    """A voice with vibrato, 20 cents either way."""
    phase = 2 * np.pi * hertz * (time + 0.0115 / (2 * np.pi * 5.5) * np.sin(2 * np.pi * 5.5 * time))
    wave = sum(np.sin(number * phase) * number ** (-1.6 / bright) for number in range(1, 7))
    return np.asarray(wave) * np.clip(time / 0.03, 0, 1)


def _low(hertz: float, time: Array, bright: float) -> Array:
    return _partials(hertz, time, _falling(6, 1.8 / bright), 0.8) * np.clip(time / 0.005, 0, 1)


_TIMBRES = {
    "plucked": _plucked, "organ": _organ, "pad": _pad, "electric": _electric, "distorted": _saw, "lead": _lead,
    "bass": _low,
}  # fmt: skip


def _in_a_room(mix: Array, random: Random) -> Array:
    """`[2, S]` with some of it coming back from the walls, decaying noise on either side."""
    wet, decay = random.uniform(0, 0.35), random.uniform(0.15, 0.5)
    time = np.arange(int(3 * decay * RATE)) / RATE
    walls = random.standard_normal((2, len(time))) * np.exp(-time / decay) / np.sqrt(decay * RATE / 2)
    size = 2 ** int(np.ceil(np.log2(mix.shape[1] + len(time))))
    back = np.fft.irfft(np.fft.rfft(mix, size) * np.fft.rfft(walls.astype(np.float32), size), size)[:, : mix.shape[1]]
    return mix + wet * back


def _mastered(wave: Array, random: Random) -> NDArray[np.float32]:
    """Squeezed a little as records are, with noise 20 dB below, at some loudness; every fourth one in mono."""
    wave = np.tanh(wave / (np.abs(wave).max() * random.uniform(0.4, 1.0)))
    wave += random.standard_normal(wave.shape) * np.sqrt(np.mean(wave**2)) * 10 ** (NOISE_DB / 20)
    wave = wave.mean(axis=0, keepdims=True) if random.random() < 0.25 else wave
    return (wave / np.abs(wave).max() * random.uniform(0.2, 1.0)).astype(np.float32)
