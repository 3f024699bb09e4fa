"""A loop has an exact length, fits to itself, and says so in its file."""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import Ran, tone_song
from random_checkpoint import SAMPLING_RATE

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.generation.generator import Generator
from musicgen_dreamboothing.generation.loops import Loop, LoopLength, best_loop, loop_wave

Folders = Callable[[str], Path]


@pytest.fixture(scope="module")
def generator(checkpoints: Folders) -> Generator:
    return Generator(checkpoints("text-stereo"), device="cpu", dtype="float32")


def chunks_of(path: Path) -> dict[bytes, bytes]:
    """The chunks of a WAV file, read as a sampler does."""
    content = path.read_bytes()
    riff, size, kind = struct.unpack("<4sI4s", content[:12])
    assert (riff, size, kind) == (b"RIFF", len(content) - 8, b"WAVE")
    chunks, place = {}, 12
    while place < len(content):
        name, size = struct.unpack("<4sI", content[place : place + 8])
        chunks[name] = content[place + 8 : place + 8 + size]
        place += 8 + size + size % 2
    return chunks


def loop_points(path: Path) -> tuple[int, int, int]:
    """Type, first and last sample of the only loop."""
    fields = struct.unpack("<15I", chunks_of(path)[b"smpl"])
    assert fields[7:9] == (1, 0)
    assert fields[2] == round(1e9 / SAMPLING_RATE)
    return fields[10:13]


def test_a_loop_has_the_nearest_whole_number_of_frames() -> None:
    assert LoopLength.of(4, 120, 50.0, 3600) == LoopLength(400, 25, 120.0)
    odd = LoopLength.of(4, 133, 50.0, 3600)
    assert odd.frames == 361
    assert odd.bpm == pytest.approx(12_000 * 4 / 361)
    assert abs(odd.frames / 50 - 16 * 60 / 133) <= 0.01
    with pytest.raises(UserError, match="256 bars at 20 bpm are too long for a loop"):
        LoopLength.of(256, 20, 50.0, 3600)


def test_the_middle_of_three_copies_is_that_of_more(generator: Generator) -> None:
    codes = torch.randint(generator.checkpoint.codebook_size, (8, 30), generator=torch.Generator().manual_seed(1))
    wave = loop_wave(generator, Loop(codes, 0.0))
    samples = 30 * generator.checkpoint.hop_length
    assert wave.shape == (2, samples)
    more = generator.decode(codes.repeat(1, 5))[:, 2 * samples : 3 * samples]
    assert np.abs(wave - more).max() < 3e-5 * np.abs(more).max()
    alone = generator.decode(codes)
    assert np.abs(wave - alone).max() > 1e-3 * np.abs(more).max()


def test_the_seam_is_not_rougher_than_the_inside(generator: Generator) -> None:
    codes = torch.randint(generator.checkpoint.codebook_size, (8, 60), generator=torch.Generator().manual_seed(2))

    def is_smooth(wave: np.ndarray) -> bool:
        inside = np.abs(np.diff(wave, n=2, axis=1))
        seam = np.abs(np.diff(np.concatenate([wave[:, -4:], wave[:, :4]], axis=1), n=2, axis=1))
        return bool((seam.max(axis=1) <= np.quantile(inside, 0.999, axis=1)).all())

    wave = loop_wave(generator, Loop(codes, 0.0))
    assert is_smooth(wave)
    assert not is_smooth(wave + np.linspace(-9, 9, wave.shape[1]) * wave.std())  # the same with a jump at its seam


def test_the_stretch_that_repeats_itself_is_chosen() -> None:
    """Noise, in which one passage comes again after the length of a loop."""
    hop, frames, length = 320, 260, LoopLength(100, 10, 120.0)
    rng = np.random.default_rng(0)
    wave = np.repeat(rng.uniform(0.05, 1, (1, frames)), hop, axis=1) * rng.standard_normal((1, frames * hop))
    wave[:, 137 * hop : 177 * hop] = wave[:, 37 * hop : 77 * hop]
    codes = torch.arange(frames).expand(4, -1)
    loop = best_loop(codes, wave.astype(np.float32), length)
    assert loop.codes.shape == (4, 100)
    assert 47 <= int(loop.codes[0, 0]) <= 67
    assert loop.join < 0.1
    assert best_loop(codes, np.zeros_like(wave, np.float32), length).join == 0


def test_the_search_holds_no_spectra_of_all_the_music() -> None:
    hop, frames = 320, 4000
    wave = np.random.default_rng(0).standard_normal((1, frames * hop)).astype(np.float32)
    tracemalloc.start()
    best_loop(torch.zeros(4, frames), wave, LoopLength(1500, 25, 120.0))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * wave.nbytes


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("samples", [999, 1000])
def test_loop_points_are_read_back(samples: int, channels: int, tmp_path: Path) -> None:
    wave = tone_song(1.0, 0, channels=channels)[:, :samples]
    audio.write(tmp_path / "plain.wav", wave, SAMPLING_RATE)
    audio.write(tmp_path / "loop.wav", wave, SAMPLING_RATE, loop=(10, samples - 1))
    assert loop_points(tmp_path / "loop.wav") == (0, 10, samples - 1)
    assert chunks_of(tmp_path / "loop.wav")[b"data"] == chunks_of(tmp_path / "plain.wav")[b"data"]
    plain, looped = (soundfile.read(tmp_path / name)[0] for name in ("plain.wav", "loop.wav"))
    assert np.array_equal(plain, looped)
    assert b"smpl" not in chunks_of(tmp_path / "plain.wav")
    with pytest.raises(audio.AudioError, match=r"loop\.flac: only \.wav has loop points"):
        audio.write(tmp_path / "loop.flac", wave, SAMPLING_RATE, loop=(0, 1))


def test_the_command_writes_loops(tiny: Path, tmp_path: Path, cli: Callable[..., Ran]) -> None:
    words = ("generate", tiny, "punk", "dub at 240 bpm", "--loop_bars", 1, "--bpm", 390, "--seconds", 3)
    ran = cli(*words, "--output_dir", tmp_path, "--loop_takes", 2)
    assert ran.code == 0, ran.err
    frames = 31  # 240 / 390 * 50 is 30.77
    assert "loops of 1 bar in 0.62 s, 387.0967742 bpm, the best of 2 takes" in ran.out
    assert "note: --seconds has no effect with --loop_bars" in ran.out
    assert "2 clips of 0.62 s" in ran.out
    files = sorted(tmp_path.glob("*.wav"))
    assert [path.name.partition("_seed")[0] for path in files] == ["00_punk", "01_dub-at-240-bpm"]
    for path in files:
        assert soundfile.info(path).frames == frames * 320
        assert loop_points(path) == (0, 0, frames * 320 - 1)
    rows = [json.loads(line) for line in (tmp_path / "generated.jsonl").read_text().splitlines()]
    assert {row["prompt"] for row in rows} == {"punk", "dub at 240 bpm"}
    assert all(row["bpm"] == pytest.approx(12_000 / frames) and 0 <= row["join"] < 1 for row in rows)


@pytest.mark.slow
def test_more_takes_make_a_better_loop(tiny: Path, tmp_path: Path, cli: Callable[..., Ran]) -> None:
    """And other formats lack loop points."""
    joins = []
    for takes in (1, 4):
        words = ("--loop_bars", 1, "--bpm", 230, "--loop_takes", takes, "--format", "flac")
        ran = cli("generate", tiny, "punk", *words, "--output_dir", tmp_path / str(takes))
        assert "note: flac files have no loop points" in ran.out
        (row,) = (tmp_path / str(takes) / "generated.jsonl").read_text().splitlines()
        joins.append(json.loads(row)["join"])
    assert joins[1] <= joins[0]


def test_a_loop_needs_a_tempo(cli: Callable[..., Ran]) -> None:
    ran = cli("generate", "no-model", "punk", "--loop_bars", 4)
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert "--loop_bars 4 needs a tempo: add --bpm 120" in ran.err
