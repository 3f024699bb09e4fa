"""Copies of one recording are known whatever they are called, and are on one side of the split."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from conftest import Ran, prepare_words, tables_in, train_words
from made_music import as_mp3, low_passed, music

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.analysis.copies import joined_fingerprint, same_recordings
from musicgen_dreamboothing.analysis.duplicates import FRAME_RATE, fingerprint
from musicgen_dreamboothing.audio import Wave, to_channels

RATE = 16_000


def song(seed: int, seconds: float = 20) -> Wave:
    return music(seconds, RATE, seed, channels=2)


def remastered(wave: Wave) -> Wave:
    """Brighter, louder, with rounded peaks."""
    brighter = wave + 0.5 * (wave - low_passed(wave, RATE, 3000))
    return np.tanh(1.2 * brighter / np.abs(wave).max()).astype(np.float32)


def with_intro(wave: Wave, seconds: float) -> Wave:
    return np.concatenate([music(seconds, RATE, 77, channels=2), wave], axis=1)


COPIES: dict[str, Callable[[Wave], Wave]] = {
    "the same": lambda wave: wave,
    "mono, soft": lambda wave: 0.05 * to_channels(wave, 1),
    "mp3 of 64 kbit/s": lambda wave: as_mp3(wave, RATE, 64),
    "remaster": remastered,
    "7.3 s later": lambda wave: with_intro(wave, 7.3),
    "its first half": lambda wave: wave[:, : 10 * RATE],
    "without its middle": lambda wave: np.concatenate([wave[:, : 8 * RATE], wave[:, 13 * RATE :]], axis=1),
}


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_is_known(name: str) -> None:
    songs = [song(5), song(1), COPIES[name](song(1)), song(6)]
    assert same_recordings([fingerprint(wave, RATE) for wave in songs]) == [0, 1, 1, 3]


def test_what_is_like_a_third_song_is_like_both() -> None:
    """The halves of a song have nothing in common but the song."""
    whole, halves = song(1), (song(1)[:, : 10 * RATE], song(1)[:, 10 * RATE :])
    prints = [fingerprint(wave, RATE) for wave in (*halves, whole)]
    assert same_recordings(prints[:2]) == [0, 1]
    assert same_recordings(prints) == [0, 0, 0]


@pytest.mark.parametrize(
    "other",
    [
        lambda: song(2),
        lambda: np.concatenate([song(1)[:, : 5 * RATE], song(2)[:, : 15 * RATE]], axis=1),  # a quarter is shared
        lambda: np.zeros((2, 20 * RATE), np.float32),
        lambda: song(1)[:, :RATE],  # too short to say
    ],
    ids=["another song", "a shared part", "silence", "one second"],
)
def test_other_songs_stay_apart(other: Callable[[], Wave]) -> None:
    assert same_recordings([fingerprint(song(1), RATE), fingerprint(other(), RATE)]) == [0, 1]


def test_songs_of_the_same_sounds_and_chords_stay_apart() -> None:
    """The built-in songs share drums, sounds and chords, most of them for half of their length."""
    paths = sorted(Path(str(files("musicgen_dreamboothing.assets") / "songs")).rglob("*.ogg"))
    assert len(paths) == 24
    prints = [fingerprint(audio.decode(path, RATE), RATE) for path in paths]
    assert same_recordings(prints) == list(range(24))


def test_among_many_songs_only_copies_are_paired() -> None:
    rng = np.random.default_rng(0)
    prints = [rng.integers(1, 2**32, rng.integers(500, 4000), dtype=np.uint32) for _ in range(300)]
    copy = prints[17].copy()
    flipped = rng.random((len(copy), 32)) < 0.08  # bits that lossy coding changes
    prints[250] = copy ^ (flipped @ (1 << np.arange(32, dtype=np.uint64))).astype(np.uint32)
    expected = list(range(300))
    expected[250] = 17
    assert same_recordings(prints) == expected
    assert same_recordings([]) == []
    assert same_recordings([np.zeros(0, np.uint32)] * 2) == [0, 1]


def test_clips_are_joined_at_their_places() -> None:
    one, other = np.full(50, 1, np.uint32), np.full(50, 2, np.uint32)
    joined = joined_fingerprint([(4.0, other), (0.0, one)])
    assert joined.tolist() == [1] * 50 + [0] * (4 * FRAME_RATE - 50) + [2] * 50
    assert joined_fingerprint([(0.0, one), (0.0, other)]).tolist() == [1] * 50 + [2] * 50
    edited = joined_fingerprint([(math.nan, other), (1e9, one)])  # by people, in metadata.jsonl
    assert [edited[-100], edited[-50]] == [1, 2]
    assert len(edited) < 20_000


def write_songs(folder: Path) -> None:
    """Three songs, two of them three times under other names, formats and in other folders."""
    for name, wave in (
        ("one.wav", song(1, 8)),
        ("best of/track 07.flac", song(1, 8)),
        ("one (remaster).ogg", remastered(song(1, 8))),
        ("two.wav", song(2, 8)),
        ("old/zwei.ogg", song(2, 8)),
        ("three.wav", song(3, 8)),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        audio.write(folder / name, wave, RATE)


QUICK = ("--max_steps", 1, "--eval_strategy", "no", "--eval_on_start", "false")
ONE = ("best of/track 07.flac", "one (remaster).ogg", "one.wav")
TWO = ("old/zwei.ogg", "two.wav")


def test_copies_are_on_one_side_of_the_split(cli: Callable[..., Ran], tiny: Path, tmp_path: Path) -> None:
    write_songs(tmp_path / "songs")
    assert cli(*prepare_words(tmp_path / "songs", tmp_path / "data", tiny)).code == 0
    for fraction, held_out in ((0.1, ["three.wav"]), (0.6, [*TWO, "three.wav"])):  # the fewest songs first
        tables = tables_in(tmp_path / "data", tiny, eval_fraction=fraction)
        assert tables.split.copies == (ONE, TWO)
        assert tables.held_out_songs == sorted(held_out)
        assert not set(tables.held_out["source"]) & set(tables.train["source"])
        assert len(tables.held_out) + len(tables.train) == 24


def test_a_copy_of_the_evaluation_split_is_not_trained_on(cli: Callable[..., Ran], tiny: Path, tmp_path: Path) -> None:
    write_songs(tmp_path / "songs")
    words = [*prepare_words(tmp_path / "songs", tmp_path / "data", tiny), "--eval_split_name", "old"]
    assert cli(*words).code == 0
    tables = tables_in(tmp_path / "data", tiny, eval_fraction=0.1)
    assert tables.held_out_songs == ["old/zwei.ogg"]
    assert tables.split.left_out == ("two.wav",)
    assert set(tables.train["source"]) == {*ONE, "three.wav"}
    ran = cli(*train_words(tmp_path / "data", tmp_path / "run", tiny), *QUICK)
    assert ran.code == 0, ran.err
    assert f"the same recording, held out or trained on together: {' = '.join(ONE)}\n" in ran.out
    assert "not trained on, as the evaluation split has the same recording: two.wav\n" in ran.out
