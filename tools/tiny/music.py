"""A composer of very regular little pieces: (style, bpm, key, seed) -> notes and a caption; no sound files here.

Time is in milliseconds. A codec frame is 40 ms and every tempo puts a quarter note on a whole number of frames, so that
music written on eighths falls on the codec's grid.
"""

import hashlib
import itertools
import random
from dataclasses import dataclass, field

FRAME_MS = 40
# What captions call a tempo -> a quarter note in frames. 167 is punk's only: its eighths fall between two frames.
QUARTER_FRAMES = {75: 20, 94: 16, 107: 14, 125: 12, 150: 10, 188: 8, 167: 9}
TEMPI = {
    "ballad": (75, 94, 107),
    "reggae": (75, 94, 125),
    "folk": (94, 107, 125),
    "house": (107, 125, 150),
    "techno": (125, 150, 188),
    "punk": (188, 167),
}
STYLES = ("ballad", "reggae", "folk", "house", "techno")
HELD_OUT = "punk"

# Key -> (pitch class of its root, semitones of its scale).
MAJOR, MINOR = (0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10)
KEYS = {"c major": (0, MAJOR), "g major": (7, MAJOR), "a minor": (9, MINOR), "e minor": (4, MINOR)}
# Degrees of the scale, one a bar; 0 is the root of the key.
PROGRESSIONS = {
    MAJOR: ((0, 4, 5, 3), (0, 5, 3, 4), (0, 3, 0, 4), (0, 3, 5, 4)),
    MINOR: ((0, 5, 2, 6), (0, 3, 6, 2), (0, 6, 5, 6), (0, 5, 3, 4)),
}
PENTATONIC = {MAJOR: (0, 1, 2, 4, 5), MINOR: (0, 2, 3, 4, 6)}  # degrees

PLANS = 4 * 2 * 2  # progressions of a mode, variants of a style, drum patterns of a style

DRUMS = 9  # the MIDI channel of percussion
KICK, STICK, SNARE, CLAP, CLOSED, OPEN, CRASH, TAMBOURINE, SHAKER = 36, 37, 38, 39, 42, 46, 49, 54, 70
EIGHTHS_A_BAR = 8


@dataclass(frozen=True)
class Part:
    """One instrument of a style: its word in captions, MIDI channel, General MIDI program (from 0), volume 0..127."""

    name: str
    channel: int
    program: int
    volume: int = 100


@dataclass(frozen=True)
class Note:
    """One note or hit: MIDI pitch, start and length in ms (whole frames long), velocity 1..127."""

    part: Part
    pitch: int
    start_ms: int
    length_ms: int
    velocity: int


@dataclass
class Piece:
    """A piece and what is known of it. `signature` says everything that was drawn, so equal ones sound the same."""

    style: str
    bpm: int
    key: str
    caption: str
    signature: str
    seconds: float
    notes: list[Note] = field(repr=False)
    plan: int = 0  # progression, variant and drum pattern as one number below PLANS


PARTS = {
    "ballad": {
        "chords": Part("piano", 0, 0, 110),
        "pad": Part("strings", 1, 48, 90),
        "bass": Part("upright bass", 2, 32, 105),
        "lead": Part("clarinet", 3, 71, 70),
        "drums": Part("soft drums", DRUMS, 32, 115),
    },
    "reggae": {
        "chords": Part("organ", 0, 16, 105),
        "bass": Part("bass", 2, 33, 105),
        "lead": Part("steel drums", 3, 114, 85),
        "drums": Part("rimshot drums", DRUMS, 0, 127),
    },
    "folk": {
        "chords": Part("acoustic guitar", 0, 25, 105),
        "lead": Part("recorder", 3, 74, 62),
        "drums": Part("tambourine", DRUMS, 0, 127),
    },
    "house": {
        "chords": Part("electric piano", 0, 4, 90),
        "bass": Part("synth bass", 2, 38, 110),
        "lead": Part("marimba", 3, 12, 115),
        "drums": Part("drum machine", DRUMS, 25, 80),
    },
    "techno": {
        "chords": Part("synth stabs", 0, 80, 105),
        "bass": Part("acid bass", 2, 39, 85),
        "drums": Part("electronic drums", DRUMS, 24, 115),
    },
    "punk": {
        "chords": Part("overdriven guitar", 0, 29, 105),
        "bass": Part("picked bass", 2, 34, 95),
        "lead": Part("lead guitar", 3, 29, 115),
        "drums": Part("loud drums", DRUMS, 16, 100),
    },
}

# Two drum patterns a style: sound -> (velocity, eighths of the bar that it hits).
BEATS, OFFBEATS, ALL = (0, 2, 4, 6), (1, 3, 5, 7), tuple(range(8))
PATTERNS: dict[str, tuple[dict[int, tuple[int, tuple[int, ...]]], ...]] = {
    "ballad": (
        {KICK: (90, (0, 4)), STICK: (80, (2, 6)), CLOSED: (60, BEATS)},
        {KICK: (90, (0, 4)), SNARE: (70, (2, 6)), CLOSED: (60, BEATS)},
    ),
    "reggae": (
        {KICK: (110, (4,)), STICK: (110, (4,)), CLOSED: (75, BEATS)},
        {KICK: (110, BEATS), STICK: (110, (4,)), CLOSED: (75, BEATS)},
    ),
    "folk": (
        {TAMBOURINE: (100, (2, 6)), SHAKER: (70, ALL)},
        {TAMBOURINE: (100, BEATS)},
    ),
    "house": (
        {KICK: (115, BEATS), OPEN: (80, OFFBEATS)},
        {KICK: (115, BEATS), OPEN: (80, OFFBEATS), CLAP: (90, (2, 6))},
    ),
    "techno": (
        {KICK: (120, BEATS), CLOSED: (80, ALL)},
        {KICK: (120, BEATS), CLOSED: (80, ALL), SNARE: (80, (6,))},
    ),
    "punk": (
        {KICK: (115, (0, 4)), SNARE: (115, (2, 6)), CLOSED: (90, ALL)},
        {KICK: (115, (0, 4, 5)), SNARE: (115, (2, 6)), CLOSED: (90, BEATS)},
    ),
}

# Rhythms of a lead: (eighth, length in eighths).
RHYTHMS = (
    ((0, 2), (2, 2), (4, 2), (6, 2)),
    ((0, 2), (2, 1), (3, 1), (4, 4)),
    ((0, 1), (1, 1), (2, 2), (4, 1), (5, 1), (6, 2)),
    ((0, 3), (3, 1), (4, 2), (6, 2)),
    ((0, 2), (4, 1), (5, 1), (6, 2)),
)


class Score:
    """Collects notes that are written in eighths from the start, each at most as long as said and in whole frames."""

    def __init__(self, bpm: int) -> None:
        self.eighth_ms = QUARTER_FRAMES[bpm] * FRAME_MS // 2
        self.notes: list[Note] = []

    def add(self, part: Part, pitches: tuple[int, ...], eighth: int, eighths: float, velocity: int) -> None:
        """One frame before the end the key goes up, so that the same pitch can be struck again."""
        frames = max(1, int(eighths * self.eighth_ms) // FRAME_MS - 1)
        start = eighth * self.eighth_ms
        self.notes += [Note(part, pitch, start, frames * FRAME_MS, velocity) for pitch in pitches]


@dataclass(frozen=True)
class Chord:
    """A triad of a key: pitch classes of root, third and fifth."""

    root: int
    third: int
    fifth: int

    def voicing(self, lowest: int) -> tuple[int, ...]:
        """All three notes, each in the octave that begins at `lowest`, so that chords stay in one place."""
        return tuple(sorted(above(note, lowest) for note in (self.root, self.third, self.fifth)))


def above(pitch_class: int, lowest: int) -> int:
    """The lowest MIDI pitch of this class that isn't under `lowest`."""
    return lowest + (pitch_class - lowest) % 12


def chord(key: str, degree: int) -> Chord:
    """The triad on a degree of the key's scale."""
    root, scale = KEYS[key]
    return Chord(*((root + scale[(degree + third) % 7]) % 12 for third in (0, 2, 4)))


def motif(rng: random.Random, key: str, lowest: int) -> list[tuple[int, int, int]]:
    """A bar of melody: (eighth, eighths long, MIDI pitch) on the key's pentatonic scale."""
    root, scale = KEYS[key]
    ladder = sorted(above((root + scale[degree]) % 12, lowest) for degree in PENTATONIC[scale])
    step, bar = rng.randrange(len(ladder)), []
    for eighth, eighths in rng.choice(RHYTHMS):
        bar.append((eighth, eighths, ladder[step]))
        step = min(max(step + rng.choice((-2, -1, 1, 2)), 0), len(ladder) - 1)
    return bar


def lead(score: Score, part: Part, melody: list[tuple[int, int, int]], at: int, harmony: Chord, lowest: int) -> None:
    """The motif over one bar's chord: its first note moves to the nearest note of the chord."""
    for eighth, eighths, pitch in melody:
        if eighth == 0:
            pitch = min(harmony.voicing(lowest), key=lambda note, wanted=pitch: abs(note - wanted))
        score.add(part, (pitch,), at + eighth, eighths, 95)


def drums(score: Score, part: Part, pattern: dict[int, tuple[int, tuple[int, ...]]], at: int) -> None:
    """One bar of a fixed pattern."""
    for sound, (velocity, eighths) in pattern.items():
        for eighth in eighths:
            score.add(part, (sound,), at + eighth, 1, velocity)


def ballad(score: Score, parts: dict[str, Part], harmony: Chord, at: int, variant: int) -> None:
    """Piano on every beat over long strings; in the second variant the bass goes to the fifth."""
    for eighth in BEATS:
        score.add(parts["chords"], harmony.voicing(57), at + eighth, 2, 105 if eighth in (0, 4) else 90)
    score.add(parts["pad"], harmony.voicing(57)[:2], at, 8, 70)
    for eighth in (0, 4):
        note = harmony.fifth if variant and eighth == 4 else harmony.root
        score.add(parts["bass"], (above(note, 31),), at + eighth, 4, 95)


def reggae(score: Score, parts: dict[str, Part], harmony: Chord, at: int, variant: int) -> None:
    """Short organ chords after every beat, a round bass on the beats."""
    for eighth in OFFBEATS:
        score.add(parts["chords"], harmony.voicing(57), at + eighth, 0.7, 100)
    low, fifth = above(harmony.root, 31), above(harmony.fifth, 31)
    line = (low, low, fifth, low) if variant else (low, fifth, low, fifth)
    for eighth, pitch in zip(BEATS, line, strict=True):
        score.add(parts["bass"], (pitch,), at + eighth, 1.5, 110)


def folk(score: Score, parts: dict[str, Part], harmony: Chord, at: int, variant: int) -> None:
    """A guitar that plays bass and chord in turn; the second variant answers each chord with another."""
    low, fifth = above(harmony.root, 40), above(harmony.fifth, 40)
    for eighth, pitch in ((0, low), (4, fifth)):
        score.add(parts["chords"], (pitch,), at + eighth, 2, 110)
    for eighth in (2, 3, 6, 7) if variant else (2, 6):
        score.add(parts["chords"], harmony.voicing(55), at + eighth, 1 if variant else 2, 95)


def house(score: Score, parts: dict[str, Part], harmony: Chord, at: int, variant: int) -> None:
    """Synth bass after every beat, electric piano on one of two fixed rhythms."""
    for eighth in OFFBEATS:
        score.add(parts["bass"], (above(harmony.root, 33),), at + eighth, 1, 100)
    for eighth in (0, 4) if variant else (0, 3, 6):
        score.add(parts["chords"], harmony.voicing(57), at + eighth, 2, 100)


def techno(score: Score, parts: dict[str, Part], harmony: Chord, at: int, variant: int) -> None:
    """A bass figure in eighths that never changes but for the chord's root; one or two stabs a bar."""
    low = above(harmony.root, 33)
    figure = (0, 0, 12, 0, 0, 12, 0, 12) if variant else (0, 12, 0, 12, 0, 12, 0, 12)
    for eighth, octave in enumerate(figure):
        score.add(parts["bass"], (low + octave,), at + eighth, 1, 105 if octave else 90)
    for eighth in (2, 5) if variant else (4,):
        score.add(parts["chords"], harmony.voicing(60), at + eighth, 1, 90)


def punk(score: Score, parts: dict[str, Part], harmony: Chord, at: int, variant: int) -> None:
    """Power chords and bass in eighths; the second variant holds the first beat and lets the chord ring."""
    low = above(harmony.root, 40)
    for eighth in (0, 2, 3, 4, 5, 6, 7) if variant else ALL:
        score.add(parts["chords"], (low, low + 7, low + 12), at + eighth, 2 if variant and eighth == 0 else 1, 105)
    for eighth in ALL:
        score.add(parts["bass"], (above(harmony.root, 28),), at + eighth, 1, 105)


PLAYERS = {"ballad": ballad, "reggae": reggae, "folk": folk, "house": house, "techno": techno, "punk": punk}
LOWEST_LEAD = {"ballad": 67, "reggae": 67, "folk": 72, "house": 67, "punk": 64}


def compose(style: str, bpm: int, key: str, seed: int, seconds: float = 8.0) -> Piece:
    """A piece that begins on the first beat of its first bar; what would sound after `seconds` isn't written."""
    rng = random.Random(f"{style} {bpm} {key} {seed}")
    plan = rng.randrange(PLANS)
    progression, variant, beat = PROGRESSIONS[KEYS[key][1]][plan // 4], plan // 2 % 2, plan % 2
    with_lead = "lead" in PARTS[style] and rng.random() < 0.5
    melody = motif(rng, key, LOWEST_LEAD[style]) if with_lead else []
    score = Score(bpm)
    bars = -(-int(seconds * 1000) // (score.eighth_ms * EIGHTHS_A_BAR))
    for bar, degree in zip(range(bars), itertools.cycle(progression), strict=False):
        play_bar(score, style, chord(key, degree), bar, variant, beat, melody)
    signature = f"{style} {bpm} {key} {progression} {variant} {beat} {melody}"
    notes = cut(score.notes, seconds)
    words = caption(rng, style, bpm, key, instruments(notes))
    return Piece(style, bpm, key, words, signature, seconds, notes, plan)


def play_bar(
    score: Score, style: str, harmony: Chord, bar: int, variant: int, beat: int, melody: list[tuple[int, int, int]]
) -> None:
    """All parts of one bar."""
    at, parts = bar * EIGHTHS_A_BAR, PARTS[style]
    PLAYERS[style](score, parts, harmony, at, variant)
    drums(score, parts["drums"], PATTERNS[style][beat], at)
    if melody:
        lead(score, parts["lead"], melody, at, harmony, LOWEST_LEAD[style])


def cut(notes: list[Note], seconds: float) -> list[Note]:
    """Without the notes that begin after the end."""
    return [note for note in notes if note.start_ms < seconds * 1000]


def instruments(notes: list[Note]) -> list[str]:
    """The words of all instruments that play, in the order in which they enter."""
    return list(dict.fromkeys(note.part.name for note in notes))


def is_valid(piece: Piece) -> bool:
    """One of the 16 plans of each style, tempo and key belongs to validation, whatever melody is on top."""
    place = f"{piece.style} {piece.bpm} {piece.key}"
    return hashlib.sha256(place.encode()).digest()[0] % PLANS == piece.plan


def songbook(number: int, seed: int) -> list[Piece]:
    """Punk songs of 16 to 20 s; no two have the same key, verse and chorus, but progressions come again."""
    rng = random.Random(f"songbook {seed}")
    places = [(key, *pair) for key in KEYS for pair in itertools.permutations(PROGRESSIONS[KEYS[key][1]], 2)]
    rng.shuffle(places)
    return [song(rng, 167 if index % 4 == 3 else 188, *place) for index, place in enumerate(places[:number])]


def song(rng: random.Random, bpm: int, key: str, verse: tuple[int, ...], chorus: tuple[int, ...]) -> Piece:
    """Verse, chorus with a melody, verse; two bars more at 188 bpm; one last chord."""
    beat, melody, score = rng.randrange(2), motif(rng, key, LOWEST_LEAD["punk"]), Score(bpm)
    bars = [*((degree, 0) for degree in verse), *((degree, 1) for degree in chorus), *((degree, 0) for degree in verse)]
    bars += [(verse[2], 0), (verse[3], 0)] if bpm == 188 else []
    for bar, (degree, in_chorus) in enumerate(bars):
        play_bar(score, "punk", chord(key, degree), bar, in_chorus, beat, melody if in_chorus else [])
        if bar % 4 == 0:
            score.add(PARTS["punk"]["drums"], (CRASH,), bar * EIGHTHS_A_BAR, 8, 90)
    end = len(bars) * EIGHTHS_A_BAR
    low = above(KEYS[key][0], 40)
    score.add(PARTS["punk"]["chords"], (low, low + 7, low + 12), end, 4, 105)
    score.add(PARTS["punk"]["drums"], (KICK, CRASH), end, 4, 110)
    seconds = (end + 5) * score.eighth_ms / 1000
    words = caption(rng, "punk", bpm, key, instruments(score.notes))
    return Piece("punk", bpm, key, words, f"punk {bpm} {key} {verse} {chorus} {melody}", seconds, score.notes)


def etude(seed: int, seconds: float = 8.0) -> Piece:
    """Random notes of one style's instruments in no bar and no key: sounds for a codec, not music.

    Every other one has the sounds of the held-out style, which a codec hears nowhere else and which are hard to code;
    half of these have its whole band.
    """
    rng = random.Random(f"etude {seed}")
    style = HELD_OUT if seed % 2 else STYLES[seed // 2 % len(STYLES)]
    names = list(PARTS[style])
    share = rng.choice((0.3, 1.0)) if style == HELD_OUT else 0.3
    first = names[seed // 10 % len(names)]
    chosen = [first, *(name for name in names if name != first and rng.random() < share)]
    notes = [note for name in chosen for note in etude_part(rng, style, name, int(seconds * 1000) // FRAME_MS)]
    words = listed(instruments(notes), last=" and ")
    return Piece(style, 0, "", f"etude with {words}", f"etude {seed}", seconds, notes)


# Lengths of notes in frames, and how often each is struck. The held-out style's are eighths and quarters at its tempi.
ETUDE_FRAMES, ETUDE_TIMES = (3, 4, 5, 6, 8, 10, 12, 16), (1,)
HELD_OUT_FRAMES, HELD_OUT_TIMES = (4, 4, 4.5, 4.5, 8, 9), (1, 2, 4, 8)


def etude_part(rng: random.Random, style: str, role: str, frames: int) -> list[Note]:
    """One instrument: a hit, a note or a chord, then a pause, until the end; velocities are those of the pieces."""
    part, notes, at = PARTS[style][role], [], 0.0
    lengths, times = (HELD_OUT_FRAMES, HELD_OUT_TIMES) if style == HELD_OUT else (ETUDE_FRAMES, ETUDE_TIMES)
    while at < frames:
        length = rng.choice(lengths)
        pitches, velocity = etude_pitches(rng, style, role), rng.choice((90, 100, 110))
        for _ in range(rng.choice(times)):
            for pitch in pitches:
                loud = etude_velocity(style, pitch) if role == "drums" else velocity
                notes.append(Note(part, pitch, int(at * FRAME_MS), (int(length) - 1) * FRAME_MS, loud))
            at += length
        at += rng.choice((0, 0, 0, 2, 5))
    return cut(notes, seconds=frames * FRAME_MS / 1000)


def etude_velocity(style: str, sound: int) -> int:
    """How hard the style's own patterns hit this drum."""
    return next((pattern[sound][0] for pattern in PATTERNS[style] if sound in pattern), 90)


def etude_pitches(rng: random.Random, style: str, role: str) -> tuple[int, ...]:
    """What the instrument may sound at once: drums of the style's patterns, chords, or one note of any key."""
    if role == "drums":
        crash = [CRASH] if style == "punk" else []
        sounds = sorted({*crash, *(sound for pattern in PATTERNS[style] for sound in pattern)})
        return tuple(rng.sample(sounds, rng.choice((1, 1, min(2, len(sounds))))))
    harmony = chord(rng.choice(list(KEYS)), rng.randrange(7))
    low = above(harmony.root, 40)
    if role == "chords" and style == "punk":
        return (low, low + 7, low + 12)
    if role in ("chords", "pad"):
        return rng.choice((harmony.voicing(57), harmony.voicing(57), (low + 12,)))
    lowest = LOWEST_LEAD[style] if role == "lead" else 31
    return (above(harmony.root, lowest),)


# Style and tempo are always said; key and instruments in most captions.
TEMPLATES = (
    "{style} at {bpm} bpm in {key} with {parts}",
    "{style} in {key} at {bpm} bpm with {parts}",
    "a {bpm} bpm {style} track in {key}, {commas}",
    "{style}, {bpm} bpm, {key}, {commas}",
    "{bpm} bpm {style} in {key} with {parts}",
    "a {style} song at {bpm} bpm with {parts}",
    "{style} at {bpm} bpm in {key}",
    "{style} at {bpm} bpm",
)


def caption(rng: random.Random, style: str, bpm: int, key: str, parts: list[str]) -> str:
    """Lower case words and commas: style, tempo, and mostly key and instruments, which come in any order."""
    parts = rng.sample(parts, len(parts))
    words = {"style": style, "bpm": bpm, "key": key, "parts": listed(parts, " and "), "commas": listed(parts, ", ")}
    return rng.choice(TEMPLATES).format(**words)


def listed(words: list[str], last: str) -> str:
    """'organ, bass and drums'."""
    return last.join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def tokens(caption: str) -> list[str]:
    """Whole words; a comma is a word of its own."""
    return caption.replace(",", " , ").split()


def _vocabulary() -> list[str]:
    """Everything that a caption can hold, sorted."""
    names = [part.name for parts in PARTS.values() for part in parts.values()]
    templates = [template.format(style="", bpm="", key="", parts="", commas="") for template in TEMPLATES]
    sources = [*templates, *names, *PARTS, *KEYS, "etude with and ,"]
    return sorted({word for source in sources for word in tokens(source)} | {str(number) for number in range(30, 241)})


VOCABULARY = _vocabulary()
