"""What sounds are compared by: CLAP (tiny, random) and the statistics that stand in for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import tone_song
from test_tags import write_tiny_clap

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.evaluation.metrics.embedding import (
    SIGNAL,
    ClapEmbedder,
    Embedder,
    SignalEmbedder,
    load_embedder,
)
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


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


REFERENCE = [(tone_song(5.0, seed), RATE) for seed in range(6)]


@pytest.fixture(scope="module")
def clap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_clap(tmp_path_factory.mktemp("clap") / "tiny")


@pytest.fixture(scope="module")
def embedders(clap: Path) -> Embedders:
    found = {
        "clap": ClapEmbedder(Tagger(str(clap), {}, device="cpu"), str(clap), GENRES),
        "signal": SignalEmbedder(REFERENCE),
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
    for stereo, mono in zip(
        embedder.embed_windows(wave, RATE, 2.0, 0.5), embedder.embed_windows(mixed, RATE, 2.0, 0.5), strict=True
    ):
        np.testing.assert_allclose(stereo, mono, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("seconds", "count"), [(0.7, 1), (2.0, 1), (2.4, 1), (2.5, 2), (5.0, 7)])
def test_windows_lie_inside_the_sound(embedders: Embedders, kind: str, seconds: float, count: int) -> None:
    rows, starts = embedders(kind).embed_windows(tone_song(seconds, 3), RATE, 2.0, 0.5)
    assert len(rows) == count
    np.testing.assert_allclose(starts, 0.5 * np.arange(count))
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_window_is_found_again_in_the_sound_it_is_from(embedders: Embedders, kind: str) -> None:
    wave, embedder = tone_song(6.0, 3), embedders(kind)
    rows, starts = embedder.embed_windows(wave, RATE, 2.0, 0.5)
    window = embedder.embed_windows(wave[:, round(1.5 * RATE) : round(3.5 * RATE)], RATE, 2.0, 0.5)[0][0]
    assert starts[(rows @ window).argmax()] == 1.5


def test_clap_windows_are_the_embeddings_of_the_pieces(embedders: Embedders) -> None:
    embedder, wave = embedders("clap"), tone_song(3.0, 4, rate=48_000)
    rows, _ = embedder.embed_windows(wave, 48_000, 2.0, 1.0)
    np.testing.assert_allclose(
        rows, embedder.embed([(wave[:, :96_000], 48_000), (wave[:, 48_000:], 48_000)]), atol=1e-6
    )


def test_clap_hears_texts_and_genres(embedders: Embedders) -> None:
    embedder = embedders("clap")
    assert embedder.is_clap
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
    assert not embedder.is_clap
    assert embedder.embed_text(["punk"]) is None
    assert embedder.tag_probabilities(embedder.embed(REFERENCE)) is None


def test_like_sounds_lie_in_one_direction() -> None:
    low, high = (110, 165, 220), (880, 1320, 1760)
    embedder = SignalEmbedder([chord(tones, seed) for seed in range(6) for tones in (low, high)])
    first, again, other = unit(embedder.embed([chord(low, 10), chord(low, 11), chord(high, 12)]))
    assert first @ again > 0.9
    assert first @ other < first @ again - 0.3


def test_one_coordinate_is_the_same_for_all() -> None:
    """The coordinate that is the same for all is as long as a reference sound is far from their centre."""
    rows = SignalEmbedder(REFERENCE).embed(REFERENCE)
    assert np.ptp(rows[:, -1]) == 0
    assert rows[0, -1] > 0
    assert (rows[:, :-1] ** 2).sum(axis=1).mean() == pytest.approx(rows[0, -1] ** 2, rel=0.5)


def test_sounds_unlike_the_reference_lie_far_from_it(embedders: Embedders) -> None:
    embedder = embedders("signal")
    song, noise = tone_song(5.0, 20), 0.5 * np.random.default_rng(0).standard_normal((1, 5 * RATE)).astype(np.float32)
    cosines = unit(embedder.embed([(song, RATE), (noise, RATE)])) @ unit(embedder.embed(REFERENCE)).T
    assert cosines[0].mean() > cosines[1].mean() + 0.2


def test_windows_of_one_moment_are_nearer_than_those_of_another_song(embedders: Embedders) -> None:
    """As far apart as windows can be that miss each other, and with noise 30 dB below."""
    embedder, step = embedders("signal"), embedders("signal").step_seconds
    song = tone_song(5.0, 30)
    noise = song.std() * 10 ** (-30 / 20) * np.random.default_rng(0).standard_normal(song.shape)
    late = (song + noise).astype(np.float32)[:, round(step / 2 * RATE) :]
    songs = [song, late, *(tone_song(5.0, seed) for seed in range(31, 36))]
    own, again, *others = (embedder.embed_windows(wave, RATE, 3.0, 0.5)[0] for wave in songs)
    nearest = max(float((own @ other.T).max()) for other in others)
    assert min(own[number] @ again[number] for number in range(len(again))) > nearest + 0.1


def test_the_rate_makes_little_difference(embedders: Embedders) -> None:
    wave = tone_song(5.0, 3, rate=48_000)
    rows = embedders("signal").embed([(wave, 48_000), (audio.resample(wave, 48_000, RATE), RATE)])
    assert np.linalg.norm(rows[0] - rows[1]) < 0.5 * rows[0, -1]


def test_same_reference_same_vectors(embedders: Embedders) -> None:
    again, wave = SignalEmbedder(REFERENCE), tone_song(5.0, 9)
    np.testing.assert_array_equal(again.embed([(wave, RATE)]), embedders("signal").embed([(wave, RATE)]))
    rows = [embedder.embed_windows(wave, RATE, 3.0, 0.5)[0] for embedder in (again, embedders("signal"))]
    np.testing.assert_array_equal(*rows)


@pytest.mark.parametrize(
    "reference",
    [
        [(tone_song(9.0, 0), RATE)],
        [(tone_song(1.0, seed), RATE) for seed in range(2)],
        [(tone_song(0.5, seed), RATE) for seed in range(150)],
    ],
)
def test_few_or_many_clips_make_a_space(reference: list[tuple[np.ndarray, int]]) -> None:
    rows = SignalEmbedder(reference).embed(REFERENCE)
    assert np.isfinite(rows).all()
    assert np.linalg.norm(rows[0] - rows[1]) > 0


@pytest.mark.parametrize("seconds", [0.5, 2.0, 5.0])
def test_one_short_sound_is_compared_with_by_its_halves(seconds: float) -> None:
    embedder = SignalEmbedder([(tone_song(seconds, 0), RATE)])
    vectors = embedder.embed([(tone_song(seconds, 0), RATE), (tone_song(seconds, 1), RATE)])
    assert np.isfinite(vectors).all()
    assert not np.allclose(*vectors)


@pytest.mark.parametrize("model", [None, "none"])
def test_the_stand_in_can_be_asked_for(model: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    assert load_embedder(model, REFERENCE).name == SIGNAL
    assert capsys.readouterr().out == ""


def test_without_a_clap_one_line_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    embedder = load_embedder(str(tmp_path / "nowhere"), REFERENCE)
    assert (embedder.name, embedder.is_clap) == (SIGNAL, False)
    (line,) = capsys.readouterr().out.splitlines()
    assert "signal statistics instead of CLAP" in line
    assert "nowhere" in line


def test_a_clap_is_loaded_and_named(clap: Path, capsys: pytest.CaptureFixture[str]) -> None:
    embedder = load_embedder(str(clap), [])
    assert (embedder.name, embedder.is_clap) == (f"CLAP {clap}", True)
    assert embedder.embed(REFERENCE[:1]).shape == (1, 16)
    assert capsys.readouterr().out == ""
