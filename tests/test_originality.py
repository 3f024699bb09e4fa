"""Copies of training clips are found and flagged, other songs of the style are not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from conftest import read_checkpoint, tone_song
from transformers import EncodecModel

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.demo.recipe import ASSETS
from musicgen_dreamboothing.evaluation.metrics.code_index import TOKENS, TokenIndex, nearest_by_tokens
from musicgen_dreamboothing.evaluation.metrics.copies import LEAST_SECONDS, TrainingClip
from musicgen_dreamboothing.evaluation.metrics.embedding import SignalEmbedder
from musicgen_dreamboothing.evaluation.metrics.sound_index import EMBEDDING, WindowIndex, nearest_by_embedding
from musicgen_dreamboothing.model import codec
from musicgen_dreamboothing.model.checkpoint import Checkpoint, load_codec

FRAMES = 50  # a second
SIZE = 512  # of a codebook
CLIP_SECONDS = 10.0
RATE = 16_000


def played(seconds: float, seed: int, codebooks: int = 4) -> np.ndarray:
    """Codes of unrelated music: a few are common, as in any style."""
    common = 1 / np.sqrt(np.arange(1, SIZE + 1))
    rng = np.random.default_rng([seed, 99])
    return rng.choice(SIZE, (codebooks, round(seconds * FRAMES)), p=common / common.sum())


def training(songs: int = 8, codebooks: int = 4) -> tuple[list[np.ndarray], list[TrainingClip]]:
    """Two clips of each song, one after the other."""
    codes = [played(CLIP_SECONDS, seed, codebooks) for seed in range(2 * songs)]
    names = [TrainingClip(f"song {n // 2}", CLIP_SECONDS * (n % 2), f"clip-{n}.flac") for n in range(2 * songs)]
    return codes, names


def flipped(codes: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.where(rng.random(codes.shape) < share, rng.integers(0, SIZE, codes.shape), codes)


def in_other_music(codes: np.ndarray, at: float, seconds: float = 10.0) -> np.ndarray:
    other = played(seconds, 1000, len(codes))
    other[:, round(at * FRAMES) : round(at * FRAMES) + codes.shape[1]] = codes
    return other


@pytest.fixture(scope="module")
def index() -> TokenIndex:
    return TokenIndex(*training(), FRAMES)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5])
@pytest.mark.parametrize("number", [0, 9, 15])
def test_a_training_clip_is_found_even_if_codes_are_wrong(index: TokenIndex, number: int, share: float) -> None:
    found = index.nearest(flipped(training()[0][number], share))
    assert (found.clip_file, found.song, found.by) == (f"clip-{number}.flac", f"song {number // 2}", TOKENS)
    assert found.at == pytest.approx(found.clip_at)
    assert found.song_at == pytest.approx(found.clip_at + CLIP_SECONDS * (number % 2))
    assert found.seconds == pytest.approx(CLIP_SECONDS, abs=0.2)
    assert found.score == pytest.approx(1 - share, abs=0.05)
    assert found.is_copy


@pytest.mark.parametrize(("at", "clip_at"), [(0.0, 5.0), (3.3, 1.5), (6.0, 0.0), (5.98, 6.0)])
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_four_seconds_are_found_in_other_music(index: TokenIndex, at: float, clip_at: float, share: float) -> None:
    begin = round(clip_at * FRAMES)
    excerpt = training()[0][5][:, begin : begin + 4 * FRAMES]
    found = index.nearest(in_other_music(flipped(excerpt, share), at))
    assert (found.clip_file, found.is_copy) == ("clip-5.flac", True)
    assert found.at == pytest.approx(at, abs=0.15)
    assert found.clip_at == pytest.approx(clip_at, abs=0.15)
    assert found.clip_at - found.at == pytest.approx(clip_at - at)
    assert found.seconds == pytest.approx(4, abs=0.3)


@pytest.mark.parametrize("seed", range(100, 104))
def test_another_song_is_none(index: TokenIndex, seed: int) -> None:
    found = index.nearest(played(CLIP_SECONDS, seed))
    assert not found.is_copy
    assert found.seconds < 1


def test_a_riff_is_no_copy(index: TokenIndex) -> None:
    assert not index.nearest(in_other_music(training()[0][5][:, :FRAMES], 3)).is_copy


def test_stereo_has_twice_the_codebooks() -> None:
    codes, clips = training(songs=3, codebooks=8)
    (found,) = nearest_by_tokens([flipped(codes[4], 0.3)], codes, clips, FRAMES)
    assert (found.clip_file, found.is_copy) == ("clip-4.flac", True)


def test_what_the_songs_of_a_style_share_is_no_copy() -> None:
    """All songs, new ones too, play one loop of 3 s at some time; a whole clip is a copy all the same."""
    loop = played(3.0, 500)

    def with_loop(codes: np.ndarray, seed: int) -> np.ndarray:
        start = int(np.random.default_rng(seed).integers(codes.shape[1] - loop.shape[1]))
        return np.concatenate([codes[:, :start], loop, codes[:, start + loop.shape[1] :]], axis=1)

    codes, clips = training()
    alike = [with_loop(clip, seed) for seed, clip in enumerate(codes)]
    new = with_loop(played(CLIP_SECONDS, 700), 3)
    assert nearest_by_tokens([new], [codes[0], alike[2], *codes[3:]], [clips[0], *clips[2:]], FRAMES)[0].is_copy
    found, copy = nearest_by_tokens([new, flipped(alike[7], 0.2)], alike, clips, FRAMES)
    assert found.seconds == pytest.approx(3, abs=0.2)
    assert not found.is_copy
    assert (copy.clip_file, copy.is_copy) == ("clip-7.flac", True)


def test_a_song_under_two_names_does_not_hide_copies() -> None:
    codes, clips = training()
    twice = [*clips, TrainingClip("song 0, remastered", 0.0, "again.flac")]
    (found,) = nearest_by_tokens([flipped(codes[3], 0.3)], [*codes, codes[0]], twice, FRAMES)
    assert (found.clip_file, found.is_copy) == ("clip-3.flac", True)


def test_silence_is_like_any_silence() -> None:
    codes, clips = training()
    for clip in codes[::2]:
        clip[:, 100:400] = 7
    index = TokenIndex(codes, clips, FRAMES)
    assert index.threshold == LEAST_SECONDS
    assert not index.nearest(in_other_music(np.full((4, 300), 7), 1.0)).is_copy


def test_of_two_alignments_the_better_one_wins() -> None:
    """A song whose loop comes again with other notes in the last codebook."""
    codes, clips = training()
    loop = codes[4][:, :250]
    codes[4] = np.concatenate([np.concatenate([loop[:3], played(5.0, 800)[3:]]), loop], axis=1)
    (found,) = nearest_by_tokens([loop], codes, clips, FRAMES)
    assert (found.clip_file, found.clip_at, found.score) == ("clip-4.flac", pytest.approx(5.0, abs=0.1), 1.0)


def test_one_song_is_enough_for_tokens() -> None:
    codes, clips = training(songs=1)
    index = TokenIndex(codes, clips, FRAMES)
    assert index.nearest(flipped(codes[1], 0.3)).is_copy
    assert not index.nearest(played(CLIP_SECONDS, 100)).is_copy


def test_the_same_clips_give_the_same_answers_in_order() -> None:
    codes, clips = training()
    queries = [flipped(codes[number], 0.3) for number in (3, 0, 11)]
    first, again = (nearest_by_tokens(queries, codes, clips, FRAMES) for _ in range(2))
    assert first == again
    assert [found.clip_file for found in first] == ["clip-3.flac", "clip-0.flac", "clip-11.flac"]


def test_few_songs_that_share_much_do_not_hide_a_whole_copy() -> None:
    """Two of four songs play one half of each clip alike: half a clip is usual then, all of it is not."""
    codes, clips = training(songs=4)
    for number in (2, 3):
        codes[number][:, :200] = codes[0][:, :200]
    index = TokenIndex(codes, clips, FRAMES)
    assert 4 < index.threshold < 5.5
    assert not index.nearest(in_other_music(codes[0][:, :200], 2.0)).is_copy
    assert index.nearest(codes[0]).is_copy
    assert index.nearest(flipped(codes[5], 0.3)).is_copy


@pytest.mark.parametrize("frames", [1, 2, 30])
def test_short_clips_are_no_copies(index: TokenIndex, frames: int) -> None:
    found = index.nearest(training()[0][2][:, :frames])
    assert not found.is_copy
    assert 0 < found.seconds <= frames / FRAMES


def test_nothing_in_common_is_said_so(index: TokenIndex) -> None:
    found = index.nearest(np.full((4, 100), SIZE + 5))
    assert (found.score, found.is_copy) == (0.0, False)


def test_without_training_clips_there_is_nothing_to_compare_with() -> None:
    with pytest.raises(UserError, match="no training clips"):
        nearest_by_tokens([played(1.0, 0)], [], [], FRAMES)
    with pytest.raises(UserError, match="no training clips"):
        nearest_by_embedding([], [], [], SignalEmbedder([(tone_song(9.0, 0), RATE)]))


def test_codes_of_another_checkpoint_are_an_error(index: TokenIndex) -> None:
    with pytest.raises(UserError, match=r"codes of shape \[8, 50\].* of 4 codebooks"):
        index.nearest(played(1.0, 0, codebooks=8))
    codes, clips = training(songs=1)
    with pytest.raises(UserError, match="different numbers of codebooks"):
        TokenIndex([codes[0], played(1.0, 0, codebooks=8)], clips, FRAMES)


def test_every_clip_has_a_name() -> None:
    codes, clips = training(songs=1)
    with pytest.raises(ValueError, match="2 training clips, but names for 1"):
        TokenIndex(codes, clips[:1], FRAMES)


@dataclass(frozen=True)
class Punk:
    """The built-in songs, as the built-in codec plays them: two clips of 8 s of each."""

    codes: list[np.ndarray]
    waves: list[tuple[np.ndarray, int]]
    clips: list[TrainingClip]
    play: Callable[[np.ndarray], np.ndarray]
    encode: Callable[[np.ndarray], np.ndarray]


@pytest.fixture(scope="module")
def punk() -> Callable[[str], Punk]:
    checkpoint = read_checkpoint(ASSETS / "musicgen-tiny")
    model = load_codec(checkpoint, torch.device("cpu"))
    sets = {"training": "songs/*.ogg", "validation": "songs/validation/*.ogg"}
    return {name: _punk(pattern, model, checkpoint) for name, pattern in sets.items()}.__getitem__


def _punk(pattern: str, model: EncodecModel, checkpoint: Checkpoint) -> Punk:
    def encode(wave: np.ndarray) -> np.ndarray:
        whole = wave[:, : wave.shape[1] // checkpoint.hop_length * checkpoint.hop_length]
        return codec.encode(model, torch.from_numpy(whole.copy())[None], checkpoint)[0].numpy()

    def play(codes: np.ndarray) -> np.ndarray:
        return codec.decode(model, torch.from_numpy(codes)[None], checkpoint)[0].numpy()

    codes, waves, clips = [], [], []
    for path in sorted(ASSETS.glob(pattern))[:12]:
        whole = encode(audio.decode(path, RATE)[:, : 16 * RATE])
        for start in (0, 8):
            codes.append(whole[:, start * 25 : (start + 8) * 25])
            waves.append((play(codes[-1]), RATE))
            clips.append(TrainingClip(path.stem, float(start), f"{path.stem}-{start}.flac"))
    return Punk(codes, waves, clips, play, encode)


def test_punk_songs_are_no_copies_of_each_other_by_their_codes(punk: Callable[[str], Punk]) -> None:
    """They share bars, for they are made by few rules: the threshold is the length that is usual among them."""
    known, new = punk("training"), punk("validation")
    copies = [flipped(known.codes[number], 0.3) for number in (3, 8, 22)]
    found = nearest_by_tokens([*copies, *new.codes], known.codes, known.clips, 25)
    assert [one.is_copy for one in found] == [True] * 3 + [False] * len(new.codes)
    assert [one.clip_file for one in found[:3]] == [known.clips[number].file for number in (3, 8, 22)]


@pytest.fixture(scope="module")
def embedder(punk: Callable[[str], Punk]) -> SignalEmbedder:
    return SignalEmbedder(punk("training").waves)


@pytest.fixture(scope="module")
def sounds(punk: Callable[[str], Punk], embedder: SignalEmbedder) -> WindowIndex:
    known = punk("training")
    return WindowIndex(known.waves, known.clips, embedder)


def test_punk_songs_are_no_copies_of_each_other_by_sound(punk: Callable[[str], Punk], sounds: WindowIndex) -> None:
    found = [sounds.nearest(*sound) for sound in punk("validation").waves]
    assert not any(one.is_copy for one in found)


@pytest.mark.parametrize("number", [0, 3, 16, 23])
def test_a_noisy_recording_of_a_clip_is_found_by_sound(
    punk: Callable[[str], Punk], sounds: WindowIndex, number: int
) -> None:
    """Played by the codec, noise 30 dB below, and half a frame late: its codes say nothing any more."""
    known = punk("training")
    wave, _ = known.waves[number]
    noise = wave.std() * 10 ** (-30 / 20) * np.random.default_rng(0).standard_normal(wave.shape)
    late = (wave + noise).astype(np.float32)[:, RATE // 50 :]
    found = sounds.nearest(late, RATE)
    assert (found.clip_file, found.by, found.is_copy) == (known.clips[number].file, EMBEDDING, True)
    assert found.clip_at - found.at == pytest.approx(0.02, abs=0.05)
    assert found.song_at == pytest.approx(found.clip_at + known.clips[number].start)
    assert found.seconds > 7
    assert found.score > 0.9


def test_an_excerpt_is_found_by_sound_at_another_time(punk: Callable[[str], Punk], sounds: WindowIndex) -> None:
    known = punk("training")
    wave, other = known.waves[4][0], punk("validation").waves[0][0]
    mixed = np.concatenate([other[:, : round(1.7 * RATE)], wave[:, RATE:]], axis=1)
    found = sounds.nearest(mixed, RATE)
    assert (found.clip_file, found.is_copy) == (known.clips[4].file, True)
    assert found.at == pytest.approx(1.7, abs=0.6)
    assert found.clip_at - found.at == pytest.approx(-0.7, abs=0.05)


def test_sounds_are_compared_in_order_and_alike_each_time(
    punk: Callable[[str], Punk], sounds: WindowIndex, embedder: SignalEmbedder
) -> None:
    known = punk("training")
    queries = [known.waves[number] for number in (9, 2)]
    found = nearest_by_embedding(iter(queries), iter(known.waves), known.clips, embedder)
    assert found == [sounds.nearest(*query) for query in queries]
    assert [one.clip_file for one in found] == [known.clips[number].file for number in (9, 2)]


def test_one_song_is_found_by_sound_but_nothing_tells_what_is_usual(
    punk: Callable[[str], Punk], embedder: SignalEmbedder
) -> None:
    known = punk("training")
    index = WindowIndex(known.waves[:2], known.clips[:2], embedder)
    found = index.nearest(*known.waves[1])
    assert (found.clip_file, found.is_copy) == (known.clips[1].file, False)


def test_a_clip_shorter_than_a_window_is_compared(punk: Callable[[str], Punk], sounds: WindowIndex) -> None:
    assert not sounds.nearest(punk("training").waves[0][0][:, :RATE], RATE).is_copy
