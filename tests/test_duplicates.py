"""One take is known again when it was coded, turned down, darkened or cut elsewhere; another take is not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from made_music import as_mp3, low_passed, music

from musicgen_dreamboothing.analysis.duplicates import Duplicate, Fingerprint, find_duplicates, fingerprint
from musicgen_dreamboothing.audio import Wave, to_channels

RATE = 16_000


def take() -> Wave:
    return music(10, RATE, 1, channels=2)


def nothing() -> Wave:
    return np.zeros((2, 10 * RATE), np.float32)


def noisy(wave: Wave) -> Wave:
    """20 dB above noise."""
    noise = 0.1 * wave.std() * np.random.default_rng(0).standard_normal(wave.shape)
    return (wave + noise).astype(np.float32)


def later(seconds: float) -> Wave:
    """The take without its beginning, and with something else behind it."""
    return np.concatenate([take()[:, round(seconds * RATE) :], music(seconds, RATE, 9, channels=2)], axis=1)


COPIES: dict[str, Callable[[], Wave]] = {
    "the same": take,
    "quiet": lambda: 0.05 * take(),
    "mono": lambda: to_channels(take(), 1),
    "mp3 of 64 kbit/s": lambda: as_mp3(take(), RATE, 64),
    "a telephone's band": lambda: low_passed(take(), RATE, 4000),
    "noisy": lambda: noisy(take()),
    "cut off": lambda: take()[:, : 7 * RATE],
}


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_is_detected(name: str) -> None:
    found = find_duplicates([fingerprint(wave, RATE) for wave in (take(), COPIES[name]())])
    assert [(pair.a, pair.b) for pair in found] == [(0, 1)]
    assert found[0].similarity > 0.75
    assert found[0].offset == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("seconds", [0.02, 0.3, 0.51, 0.97])
def test_another_cut_is_detected_with_its_offset(seconds: float) -> None:
    ours, theirs = fingerprint(take(), RATE), fingerprint(as_mp3(later(seconds), RATE, 96), RATE)
    (there,), (back,) = find_duplicates([ours, theirs]), find_duplicates([theirs, ours])
    assert there.offset == pytest.approx(-seconds, abs=0.05)
    assert back.offset == pytest.approx(seconds, abs=0.05)


def another_take(drummer: int) -> Wave:
    """The same notes at the same time; the drums are played anew, and a melody is on top."""
    rng = np.random.default_rng(drummer)
    drums = music(10, RATE, 100 + drummer, channels=2) - music(10, RATE, 200 + drummer, channels=2)
    times = np.arange(10 * RATE) / RATE
    notes = np.repeat(330 * 2 ** (rng.integers(0, 12, 20) / 12), RATE // 2)
    melody = 0.15 * np.sin(2 * np.pi * np.cumsum(notes) / RATE) * (1 + 0.2 * np.sin(33 * times))
    return (take() + 0.4 * drums + melody).astype(np.float32)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda: another_take(1), lambda: another_take(2)),
        (lambda: another_take(3), take),
        (lambda: music(10, RATE, 2), lambda: music(10, RATE, 3)),
        (lambda: take()[:, : 5 * RATE], lambda: take()[:, 5 * RATE :]),
        (take, nothing),
        (nothing, nothing),
        (lambda: take()[:, :RATE], lambda: take()[:, :RATE]),  # too short to say
        (take, lambda: later(3.0)),  # too far apart
    ],
)
def test_similar_clips_are_not_duplicates(one: Callable[[], Wave], other: Callable[[], Wave]) -> None:
    assert find_duplicates([fingerprint(one(), RATE), fingerprint(other(), RATE)]) == []


def words(length: int, seed: int) -> Fingerprint:
    return np.random.default_rng(seed).integers(1, 2**32, length, dtype=np.uint32)


def test_copies_are_detected_among_clips_of_all_lengths() -> None:
    prints = [words(100 + 7 * (number % 90), number) for number in range(600)]
    prints[590], prints[17] = prints[3][:80], prints[400][10:]
    prints.append(np.zeros(0, np.uint32))  # a file that could not be read
    assert find_duplicates(prints) == [
        Duplicate(3, 590, pytest.approx(1), 0.0),
        Duplicate(17, 400, pytest.approx(1), 0.4),
    ]
    assert find_duplicates([]) == []
