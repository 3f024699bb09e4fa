"""Signal statistics; and tempo and pulse of tools/tiny, on sounds whose tempo and pulse are known."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "tools" / "tiny"))

from rhythm import pulse, tempo, tempo_matches

from musicgen_dreamboothing.evaluation.metrics.signal import Space, embed, mel_db, onset_envelope

RATE = 16_000


def clicks(places: np.ndarray, seconds: float = 8.0) -> np.ndarray:
    """Short noises at places in seconds, every one the same."""
    wave = np.zeros(int(seconds * RATE) + RATE, np.float32)
    burst = np.random.default_rng(1).standard_normal(400).astype(np.float32) * np.linspace(0.5, 0, 400) ** 2
    for place in places:
        start = int(place * RATE)
        wave[start : start + len(burst)] += burst
    return wave[: int(seconds * RATE)]


def metronome(bpm: float) -> np.ndarray:
    return clicks(np.arange(0.2, 7.9, 60 / bpm))


def chord(hertz: tuple[float, ...], seed: int) -> np.ndarray:
    """Held sines over a breath of noise."""
    time = np.arange(4 * RATE) / RATE
    tones = sum(0.1 * np.sin(2 * np.pi * tone * time) for tone in hertz)
    return (tones + 0.01 * np.random.default_rng(seed).standard_normal(len(time))).astype(np.float32)


@pytest.mark.parametrize("bpm", [62, 75, 94, 107, 125, 150, 167, 188])
def test_tempo_of_a_metronome(bpm: int) -> None:
    assert tempo_matches(tempo(metronome(bpm), RATE), bpm, tolerance=0.04)


def test_tempo_does_not_depend_on_the_rate() -> None:
    assert tempo(metronome(125)[::2], RATE // 2) == pytest.approx(125, rel=0.04)


def test_silence_has_no_tempo() -> None:
    assert np.isnan(tempo(np.zeros(RATE, np.float32), RATE))
    assert not tempo_matches(float("nan"), 120)


@pytest.mark.parametrize(
    ("bpm", "matches"), [(100, True), (107, True), (110, False), (50, True), (201, True), (33, False)]
)
def test_octaves_match_and_thirds_do_not(bpm: float, matches: bool) -> None:
    assert tempo_matches(bpm, 100) is matches


def test_onsets_stand_where_the_clicks_are() -> None:
    envelope = onset_envelope(mel_db(clicks(np.array([1.0, 2.0])), RATE))
    assert len(envelope) == pytest.approx(800, abs=5)
    assert abs(int(envelope[50:150].argmax()) + 50 - 100) <= 4
    assert envelope[120:180].max() < 0.01 * envelope.max()


@pytest.mark.parametrize("bpm", [75, 125, 188])
def test_a_metronome_has_a_pulse(bpm: int) -> None:
    assert pulse(metronome(bpm), RATE, seed=0) >= 0.95


def test_random_clicks_have_a_pulse_by_chance_only() -> None:
    rng = np.random.default_rng(0)
    found = [pulse(clicks(np.sort(rng.uniform(0.1, 7.8, 20))), RATE, seed, copies=40) for seed in range(24)]
    assert 0.3 < np.mean(found) < 0.7


def test_silence_has_no_pulse() -> None:
    assert pulse(np.zeros(4 * RATE, np.float32), RATE, seed=0) == 0.0


@pytest.mark.parametrize("samples", [0, 1, 100, RATE])
def test_embeddings_are_finite(samples: int) -> None:
    vector = embed(np.zeros(samples, np.float32), RATE)
    assert vector.shape == (173,)
    assert np.isfinite(vector).all()


def test_like_sounds_lie_near_each_other() -> None:
    low, low_again = (embed(chord((110, 165, 220), seed), RATE) for seed in (0, 1))
    high = embed(chord((880, 1320, 1760), 2), RATE)
    assert np.linalg.norm(low - low_again) < 0.3 * np.linalg.norm(low - high)


def test_a_space_holds_what_varies() -> None:
    rng = np.random.default_rng(0)
    reference = rng.standard_normal((100, 2)) @ rng.standard_normal((2, 30)) * 7 + 5
    space = Space.fit(reference, dimensions=2)
    standardised = (reference - reference.mean(0)) / reference.std(0)
    assert space.project(reference).var(0).sum() == pytest.approx(standardised.var(0).sum(), rel=1e-3)
    assert Space.fit(reference[:5]).components.shape == (4, 30)
