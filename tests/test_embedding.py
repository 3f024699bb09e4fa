"""What sounds are compared by: CLAP (tiny, random) and the statistics that stand in for it.

Statistics are judged on the built-in songs: what is the same music has to stay as near to the training songs as these
are to each other, and other music has to be farther away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from conftest import tone_song
from made_music import low_passed, music
from test_tags import write_tiny_clap

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.analysis.loudness import levelled
from musicgen_dreamboothing.demo.recipe import ASSETS
from musicgen_dreamboothing.evaluation.clips import EvaluatedClip
from musicgen_dreamboothing.evaluation.collect import EvaluationData
from musicgen_dreamboothing.evaluation.figures import collapsed_prompts, figures_of
from musicgen_dreamboothing.evaluation.metrics.embedding import (
    SIGNAL,
    ClapEmbedder,
    Embedder,
    SignalEmbedder,
    Sounds,
    load_embedder,
)
from musicgen_dreamboothing.evaluation.metrics.style import style_distance
from musicgen_dreamboothing.evaluation.references import Excerpts
from musicgen_dreamboothing.evaluation.result import NEUTRAL, STYLE
from musicgen_dreamboothing.pretrained.clap import Tagger

RATE = 16_000
GENRES = ["punk rock", "jazz", "techno"]
KINDS = ["clap", "signal"]
Embedders = Callable[[str], Embedder]


def chord(hertz: tuple[float, ...], seed: int, seconds: float = 4.0) -> tuple[np.ndarray, int]:
    """Held sines over a breath of noise."""
    time = np.arange(round(seconds * RATE)) / RATE
    tones = sum(0.1 * np.sin(2 * np.pi * tone * time) for tone in hertz)
    return (tones + 0.01 * np.random.default_rng(seed).standard_normal(len(time)))[None].astype(np.float32), RATE


REFERENCE = [(tone_song(5.0, seed), RATE) for seed in range(6)]


@pytest.fixture(scope="module")
def clap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_clap(tmp_path_factory.mktemp("clap") / "tiny")


@pytest.fixture(scope="module")
def embedders(clap: Path) -> Embedders:
    found = {
        "clap": ClapEmbedder(Tagger(str(clap), {}, device="cpu"), str(clap), GENRES),
        "signal": SignalEmbedder(),
    }
    return found.__getitem__


@pytest.mark.parametrize("kind", KINDS)
def test_a_vector_for_each_sound_whatever_is_beside_it(embedders: Embedders, kind: str) -> None:
    embedder = embedders(kind)
    waves = [(tone_song(2.0 + seed, seed, channels=1 + seed % 2), RATE) for seed in range(3)]
    rows = embedder.embed(waves)
    assert rows.shape[0] == 3
    assert rows.dtype == np.float64
    assert np.isfinite(rows).all()
    for row, wave in zip(rows, waves, strict=True):
        np.testing.assert_allclose(embedder.embed([wave])[0], row, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_stereo_is_heard_as_its_mix(embedders: Embedders, kind: str) -> None:
    wave = tone_song(4.0, 8, channels=2)
    mixed = wave.mean(axis=0, keepdims=True)
    embedder = embedders(kind)
    np.testing.assert_allclose(embedder.embed([(wave, RATE)]), embedder.embed([(mixed, RATE)]), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gain", [10 ** (-40 / 20), 0.3, 2.0])
def test_the_level_makes_no_difference(embedders: Embedders, kind: str, gain: float) -> None:
    embedder, wave = embedders(kind), tone_song(4.0, 8)
    np.testing.assert_allclose(embedder.embed([(gain * wave, RATE)]), embedder.embed([(wave, RATE)]), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("samples", [160, 1600, 5000])
def test_silence_and_short_sounds_have_embeddings(embedders: Embedders, kind: str, samples: int) -> None:
    embedder = embedders(kind)
    short = tone_song(1.0, 0)[:, :samples]
    rows = embedder.embed([(short, RATE), (0.1 * short, RATE), (np.zeros_like(short), RATE)])
    assert np.isfinite(rows).all()
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-3)


def test_clap_hears_texts_and_genres(embedders: Embedders) -> None:
    embedder = embedders("clap")
    texts = embedder.embed_text(["punk at 188 bpm", "a slow waltz"])
    assert texts is not None
    assert texts.shape == (2, embedder.embed(REFERENCE[:1]).shape[1])
    probabilities = embedder.tag_probabilities(embedder.embed(REFERENCE[:4]))
    assert probabilities is not None
    assert probabilities.shape == (4, len(GENRES))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert probabilities.min() > 0


def test_genres_are_the_packages_if_none_are_named(clap: Path, embedders: Embedders) -> None:
    embedder = ClapEmbedder(Tagger(str(clap), {}, device="cpu"), str(clap))
    probabilities = embedder.tag_probabilities(embedder.embed(REFERENCE[:1]))
    assert probabilities.shape == (1, len(embedder.genres))
    assert "punk rock" in embedder.genres


def test_the_stand_in_has_no_words(embedders: Embedders) -> None:
    embedder = embedders("signal")
    assert embedder.embed_text(["punk"]) is None
    assert embedder.tag_probabilities(embedder.embed(REFERENCE)) is None


def test_like_sounds_are_near_each_other(embedders: Embedders) -> None:
    low, high = (110, 165, 220), (880, 1320, 1760)
    first, again, other = embedders("signal").embed([chord(low, 10), chord(low, 11), chord(high, 12)])
    assert np.linalg.norm(first - again) < 0.1 * np.linalg.norm(first - other)


def test_sounds_unlike_the_reference_lie_far_from_it(embedders: Embedders) -> None:
    embedder = embedders("signal")
    song, noise = tone_song(5.0, 20), 0.5 * np.random.default_rng(0).standard_normal((1, 5 * RATE)).astype(np.float32)
    rows = embedder.embed([(song, RATE), (noise, RATE)])
    of_song, of_noise = np.linalg.norm(rows[:, None] - embedder.embed(REFERENCE), axis=-1)
    assert of_song.max() < of_noise.min()


def test_the_rate_makes_little_difference(embedders: Embedders) -> None:
    wave = tone_song(5.0, 3, rate=48_000)
    others = [(tone_song(5.0, seed), RATE) for seed in range(4, 8)]
    rows = embedders("signal").embed([(wave, 48_000), (audio.resample(wave, 48_000, RATE), RATE), *others])
    distances = np.linalg.norm(rows[0] - rows[1:], axis=1)
    assert distances[0] < 0.1 * distances[1:].min()


@pytest.mark.parametrize("model", [None, "none"])
def test_the_stand_in_can_be_asked_for(model: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    assert load_embedder(model).name == SIGNAL
    assert capsys.readouterr().out == ""


def test_without_a_clap_one_line_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    embedder = load_embedder(str(tmp_path / "nowhere"))
    assert embedder.name == SIGNAL
    (line,) = capsys.readouterr().out.splitlines()
    assert "signal statistics instead of CLAP" in line
    assert "nowhere" in line


def test_a_clap_is_loaded_and_named(clap: Path, capsys: pytest.CaptureFixture[str]) -> None:
    embedder = load_embedder(str(clap))
    assert (embedder.name, embedder.note) == (f"CLAP {clap}", "")
    assert embedder.embed(REFERENCE[:1]).shape == (1, 16)
    assert capsys.readouterr().out == ""


def test_each_clip_is_embedded_once(clap: Path) -> None:
    class Counting(ClapEmbedder):
        """Notes how many sounds it embeds."""

        count = 0

        def _embed(self, waves: Sounds) -> np.ndarray:
            self.count += len(waves)
            return super()._embed(waves)

    def clips(seed: int) -> list[EvaluatedClip]:
        kinds = (STYLE, STYLE, NEUTRAL, NEUTRAL)
        return [
            EvaluatedClip(kind, kind, row, Path("x.wav"), np.zeros((4, 9), int), tone_song(1.0, seed + row), RATE)
            for row, kind in enumerate(kinds)
        ]

    embedder = Counting(Tagger(str(clap), {}, device="cpu"), str(clap), GENRES)
    songs = [(tone_song(1.0, seed), RATE) for seed in range(6)]
    excerpts = [Excerpts(waves, [f"{number}.wav" for number in range(3)]) for waves in (songs[:3], songs[3:])]
    data = EvaluationData(clips(10), clips(20), *excerpts, None, embedder)
    figures_of(data)
    collapsed_prompts(data)
    assert embedder.count == len(data.base) + len(data.tuned) + len(songs)


# --- what statistics of the signal tell of the built-in songs, as `evaluate` does with them

SONG_RATE = 24_000
EXCERPT = 8 * SONG_RATE


@dataclass(frozen=True)
class Distances:
    """`style_distance` to the training songs: of other sounds, and of each training song to the others."""

    reference: np.ndarray
    songs: list[str]
    spread: float

    def of(self, waves: list[np.ndarray], songs: list[str] | None = None) -> float:
        rows = SignalEmbedder().embed([(wave, SONG_RATE) for wave in waves])
        return style_distance(rows, self.reference, clip_groups=songs, song_names=self.songs)


def excerpts_of(folder: Path) -> tuple[list[np.ndarray], list[str]]:
    """Two pieces of 8 s of each song."""
    paths = sorted(folder.glob("*.ogg"))
    waves = [audio.decode(path, SONG_RATE) for path in paths]
    return [wave[:, start : start + EXCERPT] for wave in waves for start in (0, EXCERPT)], [
        path.stem for path in paths for _ in range(2)
    ]


@pytest.fixture(scope="module")
def distances() -> Distances:
    waves, names = excerpts_of(ASSETS / "songs")
    rows, songs = SignalEmbedder().embed([(wave, SONG_RATE) for wave in waves]), np.array(names)
    left_out = [
        style_distance(rows[songs == name], rows[songs != name], song_names=songs[songs != name].tolist())
        for name in sorted(set(names))
    ]
    return Distances(rows, names, max(left_out))


@pytest.fixture(scope="module")
def held_out() -> tuple[list[np.ndarray], list[str]]:
    return excerpts_of(ASSETS / "songs" / "validation")


def with_hiss(wave: np.ndarray, level_db: float) -> np.ndarray:
    """White noise of this level in dB below full scale (RMS)."""
    noise = np.random.default_rng(0).standard_normal(wave.shape)
    return (wave + 10 ** (level_db / 20) * noise).astype(np.float32)


def stretched(wave: np.ndarray, speed: float) -> np.ndarray:
    """`[1, S]` -> `[1, S / speed]` at the same pitch: a phase vocoder (Flanagan & Golden 1966)."""
    size, hop = 1024, 256
    window = np.hanning(size + 1)[:-1]
    starts = np.arange(0, wave.shape[1] - size, hop)
    frames = np.fft.rfft(wave[0][starts[:, None] + np.arange(size)] * window)
    usual = 2 * np.pi * hop * np.arange(size // 2 + 1) / size
    places = np.arange(0, len(frames) - 1, speed)
    whole = places.astype(int)
    steps = np.angle(frames[1:]) - np.angle(frames[:-1]) - usual
    steps += usual - 2 * np.pi * np.round(steps / (2 * np.pi))
    phases = np.angle(frames[0]) + np.cumsum(steps[whole], axis=0) - steps[0]
    share = (places - whole)[:, None]
    levels = (1 - share) * np.abs(frames[whole]) + share * np.abs(frames[whole + 1])
    pieces = np.fft.irfft(levels * np.exp(1j * phases)) * window
    sound = np.zeros(len(pieces) * hop + size)
    for number, piece in enumerate(pieces):
        sound[number * hop : number * hop + size] += piece
    return (sound[None] / 1.5).astype(np.float32)


def tune(seed: int, *, partials: tuple[int, ...], fading: float) -> np.ndarray:
    """A random tune of 6 s at 140 beats a minute over a drum."""
    rng, beat = np.random.default_rng(seed), round(60 / 140 * SONG_RATE)
    time = np.arange(beat) / SONG_RATE
    notes = 220 * 2 ** (rng.choice([0, 2, 3, 5, 7, 8, 10, 12], size=14) / 12)
    number = np.array(partials)[:, None]
    tones = [(np.sin(2 * np.pi * note * number * time) / number).sum(0) * np.exp(-fading * time) for note in notes]
    drum = 0.3 * rng.standard_normal(beat) * np.exp(-40 * time)
    return np.concatenate([0.3 * tone + drum for tone in tones])[None].astype(np.float32)


PLUCKED, ORGAN = {"partials": tuple(range(1, 13)), "fading": 6.0}, {"partials": (1, 2, 4, 8), "fading": 0.0}

SAME: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as they are": lambda wave: wave,
    "10 dB softer": lambda wave: wave * np.float32(10 ** (-10 / 20)),
    "low-passed at 10 kHz": lambda wave: low_passed(wave, SONG_RATE, 10_000),
    "with hiss at -60 dBFS": lambda wave: with_hiss(wave, -60),
}


@pytest.mark.parametrize("change", SAME)
def test_held_out_songs_are_as_near_as_songs_are_to_each_other(
    distances: Distances, held_out: tuple[list[np.ndarray], list[str]], change: str
) -> None:
    waves, songs = held_out
    assert abs(distances.of([SAME[change](wave) for wave in waves], songs)) < min(0.2, distances.spread)


@pytest.mark.parametrize("speed", [0.75, 1.25])
def test_another_tempo_is_farther_away_than_any_song(
    distances: Distances, held_out: tuple[list[np.ndarray], list[str]], speed: float
) -> None:
    waves, songs = held_out
    assert distances.of([stretched(wave, speed) for wave in waves], songs) > 1.1 * distances.spread
    assert distances.of([stretched(wave, 1.0) for wave in waves], songs) < distances.spread


def test_another_style_is_farther_away_than_any_song(distances: Distances) -> None:
    """At the tempo of most songs."""
    assert distances.of([music(8.0, SONG_RATE, seed, bpm=188) for seed in range(4)]) > 2 * distances.spread


def test_another_instrument_is_farther_away_than_any_song() -> None:
    """The same kind of tunes, at one tempo and with one drum."""
    plucked, again, organ = (
        SignalEmbedder().embed([(tune(seed, **instrument), SONG_RATE) for seed in seeds])
        for instrument, seeds in ((PLUCKED, range(10)), (PLUCKED, range(10, 14)), (ORGAN, range(10, 14)))
    )
    spread = max(style_distance(np.roll(plucked, row, 0)[:2], np.roll(plucked, row, 0)[2:]) for row in range(10))
    assert abs(style_distance(again, plucked)) < spread
    assert style_distance(organ, plucked) > 2 * spread


def test_hiss_that_is_not_heard_counts_nothing_in_dark_music() -> None:
    """Nothing sounds above 1.5 kHz: bands there are at the floor in all songs, which are as loud as `prepare` makes
    them.
    """
    dark = [levelled(low_passed(music(4.0, SONG_RATE, seed), SONG_RATE, 1_500), SONG_RATE, -14.0) for seed in range(9)]
    songs, clean, hissing = (
        SignalEmbedder().embed([(wave, SONG_RATE) for wave in waves])
        for waves in (dark[:6], dark[6:], [with_hiss(wave, -60) for wave in dark[6:]])
    )
    assert style_distance(hissing, songs) == pytest.approx(style_distance(clean, songs), abs=0.1)
