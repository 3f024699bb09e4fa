"""Example songs: short fast punk pieces made from sines, saws and noise, so that the demo needs no recordings.

Signals are float32 arrays `[S]` around [-1, 1] until the mix, which is `[2, S]`; times are in seconds, pitches are MIDI
numbers (69 = A at 440 Hz), rates are in Hz.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from musicgen_dreamboothing.audio import Wave, to_channels, write

TITLES = ("burnt_toast", "no_signal", "last_bus_home", "broken_umbrella", "cold_coffee", "spare_key")
FOLDERS = ("first_demo", "live/kitchen_floor")
KEYS = ("C", "C sharp", "D", "E flat", "E", "F", "F sharp", "G", "A flat", "A", "B flat", "B")
SCALES = {"minor": (0, 2, 3, 5, 7, 8, 10), "major": (0, 2, 4, 5, 7, 9, 11)}  # semitones above the key note
PROGRESSIONS = (  # mode, and the degree of the scale (from 0) that each bar's chord stands on
    ("minor", (0, 5, 2, 6)),
    ("major", (0, 4, 5, 3)),
    ("minor", (0, 0, 3, 5)),
    ("major", (0, 3, 0, 4)),
    ("minor", (0, 6, 5, 6)),
    ("major", (0, 5, 3, 4)),
)
LOWEST_PITCH = 40  # the low E string of a guitar
INTRO_BARS, PART_BARS = 4, 8
EIGHTHS = 8  # in a bar
PEAK = 10 ** (-2 / 20)  # -2 dBFS: Vorbis adds up to 1.5 dB of its own


@dataclass(frozen=True)
class Song:
    """What a player would have on paper. `key` counts semitones from C."""

    key: int
    mode: str
    degrees: tuple[int, ...]
    bpm: int

    @property
    def caption(self) -> str:
        return f"fast punk in {KEYS[self.key]} {self.mode}, {self.bpm} bpm, distorted guitars, driving drums"

    def root(self, bar: int) -> int:
        """The pitch of the lowest note of the chord in a bar."""
        tonic = LOWEST_PITCH + (self.key - LOWEST_PITCH) % 12
        return tonic + SCALES[self.mode][self.degrees[bar % len(self.degrees)]]

    def is_chorus(self, bar: int) -> bool:
        return bar >= INTRO_BARS and (bar - INTRO_BARS) // PART_BARS % 2 == 1


@dataclass(frozen=True)
class Tape:
    """The room a song has: `samples` at `rate` Hz, ruled into bars of eighth notes."""

    bpm: int
    rate: int
    samples: int

    @property
    def eighth(self) -> float:
        """Seconds."""
        return 30 / self.bpm

    @property
    def bars(self) -> int:
        """As many as begin before the end."""
        return int(np.ceil(self.samples / (EIGHTHS * self.eighth * self.rate)))

    def blank(self) -> Wave:
        return np.zeros(self.samples, np.float32)

    def times(self, seconds: float) -> Wave:
        return np.arange(round(seconds * self.rate), dtype=np.float32) / np.float32(self.rate)

    def place(self, track: Wave, sound: Wave, bar: int, eighth: float, late: float = 0.0) -> None:
        """Adds a sound at a place in a bar, `late` seconds behind the beat; the end of the tape cuts it off."""
        start = round(((bar * EIGHTHS + eighth) * self.eighth + late) * self.rate)
        room = track[start : start + len(sound)]
        room += sound[: len(room)]


def write_songs(
    folder: Path, *, count: int = 4, seconds: float = 40.0, rate: int = 32_000, seed: int = 0
) -> list[Path]:
    """Writes `count` songs of `seconds` at `rate` Hz below `folder`, the same ones for the same seed.

    Every other song is stereo, the rest mono; they are .ogg and .flac files in two sub-folders. One of every two has
    its caption in a .txt file of the same name. Returns the paths of the songs.
    """
    return [_write_song(folder, song, index, seconds, rate, seed) for index, song in enumerate(songs(count, seed))]


def songs(count: int, seed: int) -> list[Song]:
    """`count` songs, each in another key (up to 12) and over another progression (up to 6)."""
    rng = np.random.default_rng(seed)
    keys, progressions = rng.permutation(len(KEYS)), rng.permutation(len(PROGRESSIONS))
    tempos = rng.integers(160, 191, count)
    plans = [(int(keys[i % len(keys)]), *PROGRESSIONS[progressions[i % len(progressions)]]) for i in range(count)]
    return [Song(key, mode, degrees, int(bpm)) for (key, mode, degrees), bpm in zip(plans, tempos, strict=True)]


def _write_song(folder: Path, song: Song, index: int, seconds: float, rate: int, seed: int) -> Path:
    pair, second = divmod(index, 2)
    suffix = (".ogg", ".flac")[pair % 2]
    path = folder / FOLDERS[second] / f"{index + 1:02d}_{TITLES[index % len(TITLES)]}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = play(song, seconds, rate, np.random.default_rng([seed, index]))
    write(path, to_channels(wave, 1) if second else wave, rate)
    if second == pair % 2:
        path.with_suffix(".txt").write_text(song.caption + "\n", encoding="utf-8")
    return path


def play(song: Song, seconds: float, rate: int, rng: np.random.Generator) -> Wave:
    """The whole band, mixed: `[2, S]`. The two guitars are two takes, one on each side: that is the width."""
    tape = Tape(song.bpm, rate, round(seconds * rate))
    left, right = (guitar(song, tape, rng, cents) for cents in (-4.0, 4.0))
    skins, metal = drums(song, tape, rng)
    middle = 1.4 * skins + 0.25 * bass(song, tape) + 0.3 * lead(song, tape, rng)
    mix = [middle + 0.8 * left + 0.2 * right + 1.4 * metal, middle + 0.2 * left + 0.8 * right + 2.0 * metal]
    return mastered(np.stack(mix), rate)


def guitar(song: Song, tape: Tape, rng: np.random.Generator, cents: float) -> Wave:
    """One take of rhythm guitar, eighth after eighth: muted with the palm in the verse, ringing in the chorus."""
    track = tape.blank()
    muted, ringing = decay(tape, tape.eighth, 0.12), decay(tape, tape.eighth, 0.6)
    for bar in range(tape.bars):
        chord = amplified(power_chord(tape, song.root(bar), cents, rng), tape.rate)
        stroke = chord * (ringing if song.is_chorus(bar) else muted)
        for eighth in range(EIGHTHS):
            accent = np.float32(0.7 if eighth % 2 else 1.0)
            tape.place(track, accent * stroke, bar, eighth, late=rng.uniform(0, 0.008))
    return track


def bass(song: Song, tape: Tape) -> Wave:
    """The chord's root in eighths, an octave below the guitars."""
    track = tape.blank()
    fade = decay(tape, tape.eighth, 0.25)
    for bar in range(tape.bars):
        note = fade * band(soft_clip(2 * saw(tape, song.root(bar) - 12, tape.eighth)), 50, 1200, tape.rate)
        for eighth in range(EIGHTHS):
            tape.place(track, note, bar, eighth)
    return track


def lead(song: Song, tape: Tape, rng: np.random.Generator) -> Wave:
    """A tune over the chorus, in steps through the scale, with an echo three eighths later."""
    track = tape.blank()
    for bar in filter(song.is_chorus, range(tape.bars)):
        for eighth, length, pitch in melody(song, bar, rng):
            seconds = length * tape.eighth
            tone = band(soft_clip(3 * saw(tape, pitch, seconds, vibrato=0.15)), 350, 6000, tape.rate)
            note = tone * decay(tape, seconds, 0.5)
            tape.place(track, note, bar, eighth)
            tape.place(track, np.float32(0.3) * note, bar, eighth + 3)
    return track


def melody(song: Song, bar: int, rng: np.random.Generator) -> Iterator[tuple[int, int, int]]:
    """One bar of tune as (eighth it starts on, eighths it lasts, pitch); it starts on a note of the chord."""
    scale = SCALES[song.mode]
    degree = song.degrees[bar % len(song.degrees)]
    eighth = 0
    while eighth < EIGHTHS:
        length = min(int(rng.choice([1, 1, 2, 2, 4])), EIGHTHS - eighth)
        octave, step = divmod(degree, len(scale))
        yield eighth, length, LOWEST_PITCH + (song.key - LOWEST_PITCH) % 12 + 24 + 12 * octave + scale[step]
        eighth += length
        degree = int(np.clip(degree + rng.choice([-2, -1, 1, 2]), 0, 9))


def drums(song: Song, tape: Tape, rng: np.random.Generator) -> tuple[Wave, Wave]:
    """Two tracks: the skins (kick, snare), and the metal (hi-hat, crash)."""
    skins, metal = tape.blank(), tape.blank()
    kick_hit, snare_hit, hat_hit, crash_hit = kick(tape), snare(tape, rng), hi_hat(tape, rng), crash(tape, rng)
    for bar in range(tape.bars):
        place: float
        for place in kick_pattern(song, bar):
            tape.place(skins, kick_hit, bar, place)
        for place in snare_pattern(bar):
            tape.place(skins, np.float32(rng.uniform(0.85, 1.0)) * snare_hit, bar, place)
        for place in range(EIGHTHS):
            tape.place(metal, np.float32(0.4 if place % 2 else 1.0) * hat_hit, bar, place)
        if starts_part(bar) or (song.is_chorus(bar) and bar % 2 == 0):
            tape.place(metal, crash_hit, bar, 0)
    return skins, metal


def starts_part(bar: int) -> bool:
    """Whether a verse or a chorus begins with this bar."""
    return bar >= INTRO_BARS and (bar - INTRO_BARS) % PART_BARS == 0


def kick_pattern(song: Song, bar: int) -> tuple[int, ...]:
    """Eighths with a kick: every beat in the intro, then one and three, doubled."""
    if bar < INTRO_BARS:
        return (0, 2, 4, 6)
    return (0, 1, 4, 5) if song.is_chorus(bar) else (0, 4, 5)


def snare_pattern(bar: int) -> tuple[float, ...]:
    """Eighths with a snare: beats two and four, and a roll of sixteenths before a new part."""
    if starts_part(bar + 1):
        return (2, 4, 4.5, 5, 5.5, 6, 6.5, 7, 7.5)
    return () if bar < INTRO_BARS else (2, 6)


def kick(tape: Tape) -> Wave:
    """A sine that falls from 170 to 48 Hz, with a click of the beater."""
    times = tape.times(0.25)
    hertz = 48 + 122 * np.exp(-times / 0.025)
    body = np.sin(2 * np.pi * np.cumsum(hertz) / tape.rate) * decay(tape, 0.25, 0.06)
    click: Wave = np.sin(2 * np.pi * 2500 * times) * decay(tape, 0.25, 0.004)
    return soft_clip(1.6 * body) + np.float32(0.3) * click


def snare(tape: Tape, rng: np.random.Generator) -> Wave:
    """The shell at 190 Hz and the rattle of the wires."""
    shell = np.sin(2 * np.pi * 190 * tape.times(0.22)) * decay(tape, 0.22, 0.05)
    wires = band(noise(tape, 0.22, rng), 700, 10_000, tape.rate) * decay(tape, 0.22, 0.07)
    hit: Wave = 0.6 * shell + 1.4 * wires
    return hit


def hi_hat(tape: Tape, rng: np.random.Generator) -> Wave:
    """A closed hi-hat: what is left of noise above 6.5 kHz, for a fiftieth of a second."""
    return band(noise(tape, 0.08, rng), 6500, 14_000, tape.rate) * decay(tape, 0.08, 0.02)


def crash(tape: Tape, rng: np.random.Generator) -> Wave:
    """A cymbal that rings for a bar or so."""
    return 0.8 * band(noise(tape, 1.6, rng), 3000, 13_000, tape.rate) * decay(tape, 1.6, 0.4)


def noise(tape: Tape, seconds: float, rng: np.random.Generator) -> Wave:
    """White noise, RMS 0.5."""
    return 0.5 * rng.standard_normal(round(seconds * tape.rate), dtype=np.float32)


def power_chord(tape: Tape, root: int, cents: float, rng: np.random.Generator) -> Wave:
    """Root, fifth and octave for one eighth, `cents` out of tune; random phases make every bar a little different."""
    strings = (saw(tape, root + step + cents / 100, tape.eighth, phase=rng.random()) for step in (0, 7, 12))
    return sum(strings, start=np.zeros(1, np.float32)) / np.float32(3)


def saw(tape: Tape, pitch: float, seconds: float, *, phase: float = 0.0, vibrato: float = 0.0) -> Wave:
    """A saw tooth wave; `vibrato` is in semitones, 5.5 times a second; `phase` is in cycles."""
    times = tape.times(seconds)
    hertz = 440 * 2 ** ((pitch - 69) / 12)
    if vibrato:  # a pitch that swings shifts the phase by the integral of the swing
        times = times + vibrato * float(np.log(2)) / 12 * (1 - np.cos(2 * np.pi * 5.5 * times)) / (2 * np.pi * 5.5)
    teeth: Wave = 2 * ((hertz * times + phase) % 1) - 1
    return teeth


def decay(tape: Tape, seconds: float, fall: float) -> Wave:
    """A stroke's loudness over `seconds`: 2 ms to rise, then down to 1/e every `fall` seconds, 4 ms to stop."""
    times = tape.times(seconds)
    loudness: Wave = np.exp(-times / fall) * np.minimum(1, times / 0.002) * np.clip((seconds - times) / 0.004, 0, 1)
    return loudness


def amplified(sound: Wave, rate: int) -> Wave:
    """An overdriven amplifier and its cabinet, which lets through little above 5 kHz."""
    return band(soft_clip(8 * band(sound, 150, 8000, rate)), 110, 5000, rate)


def soft_clip(sound: Wave) -> Wave:
    """Bends what is beyond full scale back below it, as a valve does."""
    clipped: Wave = np.tanh(sound)
    return clipped


def band(sound: Wave, low: float, high: float, rate: int) -> Wave:
    """Keeps what is between `low` and `high` Hz; falls by 12 dB an octave beyond, without shifting phases."""
    size = 1 << (2 * len(sound) - 1).bit_length()  # the ends do not leak into each other; a power of two is fast
    hertz = np.fft.rfftfreq(size, 1 / rate)
    gains = 1 / (1 + (low / np.maximum(hertz, 1e-3)) ** 2) / (1 + (hertz / high) ** 2)
    return np.fft.irfft(np.fft.rfft(sound, size) * gains, size)[: len(sound)].astype(np.float32)


def mastered(mix: Wave, rate: int) -> Wave:
    """`[2, S]` pressed together as a mastering engineer would, faded out over the last 50 ms, its peak at `PEAK`."""
    loud = soft_clip(0.9 * mix / np.float32(np.percentile(np.abs(mix), 99)))
    loud *= np.clip(np.arange(mix.shape[1], 0, -1, dtype=np.float32) / np.float32(0.05 * rate), 0, 1)
    loud *= np.float32(PEAK) / np.abs(loud).max()
    return loud
