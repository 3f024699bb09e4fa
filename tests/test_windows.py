"""Music longer than a window: each begins with the end of the one before, and all are one sound."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import Ran, tone_song
from random_checkpoint import SAMPLING_RATE

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.analysis.loudness import loudness
from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.demo.recipe import ASSETS
from musicgen_dreamboothing.generation import windows
from musicgen_dreamboothing.generation.decoding import CodeStream, clip_seed
from musicgen_dreamboothing.generation.generator import Generator
from musicgen_dreamboothing.generation.guidance import Sampling
from musicgen_dreamboothing.generation.requests import GenerationRequest, Section
from musicgen_dreamboothing.generation.windows import Window, steps_of, window_plan
from musicgen_dreamboothing.model import codec, text

PROMPTS = ("punk", "a slow waltz for two guitars")
FRAME_RATE = 50

Folders = Callable[[str], Path]


def test_windows_of_thirty_seconds_continue_the_last_twelve() -> None:
    assert window_plan([1500], 0, 50.0) == (Window(0, 0, 1500, 0, 0),)
    plan = window_plan([3000], 0, 50.0)
    assert [window[:3] for window in plan] == [(0, 0, 1500), (896, 1500, 2396), (1792, 2396, 3000)]
    assert steps_of(plan, (0, 1, 2, 3)) == 3000 + 3 * 3
    hour = window_plan([3600 * 50], 0, 50.0)
    assert len(hour) == 1 + -(-(3600 * 50 - 1500) // 896)
    assert window_plan([3600 * 25], 0, 25.0)[1][:3] == (448, 750, 1198)  # of a codec with 25 frames a second


def test_windows_of_sections_and_prompts_leave_no_frame_out() -> None:
    for lengths, prompt in (([400, 2000, 30], 0), ([1000, 500], 300), ([1450, 1450], 1400), ([30], 29)):
        plan = window_plan(lengths, prompt, 50.0)
        position = prompt
        for window in plan:
            assert window.first == position
            assert window.start <= window.first < window.end
            assert window.frames <= 1500
            assert sum(lengths[: window.section]) == window.section_start <= window.first
            assert window.end <= sum(lengths[: window.section + 1])
            position = window.end
        assert position == sum(lengths)
        assert (plan[0].start, plan[0].first) == (0, prompt)
        assert all(later.first - later.start == min(later.first, 604) for later in plan[1:])


@pytest.fixture
def short_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of 20 frames with strides of 12."""
    monkeypatch.setattr(windows, "TRAINED_SECONDS", 20 / FRAME_RATE)
    monkeypatch.setattr(windows, "STRIDE_SECONDS", 12 / FRAME_RATE)


@pytest.fixture(scope="module")
def generators(checkpoints: Folders) -> Callable[[str], Generator]:
    made: dict[str, Generator] = {}

    def get(kind: str) -> Generator:
        if kind not in made:
            made[kind] = Generator(checkpoints(kind), device="cpu", dtype="float32")
            made[kind]._encode(PROMPTS)
        return made[kind]

    return get


def drawn(generator: Generator, request: GenerationRequest, frames: int, **options: Any) -> torch.Tensor:
    ((_, codes),) = generator.codes([request], seconds=frames / FRAME_RATE, progress=False, **options)
    return codes


@pytest.mark.usefixtures("short_windows")
@pytest.mark.parametrize("kind", ["text", pytest.param("melody-stereo", marks=pytest.mark.slow)])
def test_each_window_is_a_stream_behind_the_codes_before_it(kind: str, generators: Callable[[str], Generator]) -> None:
    generator = generators(kind)
    codes = drawn(generator, GenerationRequest("punk"), 40, seed=3)
    states, mask = text.pad_states([generator._states["punk"]])
    known: torch.Tensor | None = None
    for number, (start, end) in enumerate(((0, 20), (12, 32), (24, 40))):
        prompt = None if known is None else known[None, :, start:]
        options: dict[str, Any] = {"frames": end - start, "sampling": Sampling(), "prompt_codes": prompt}
        seeds = [clip_seed(3, "punk", 0, number)]
        stream = CodeStream(generator._stack, generator.checkpoint, states, mask, seeds=seeds, **options)
        own = stream.finish()[0]
        known = own if known is None else torch.cat([known[:, :start], own], dim=1)
        if number == 0:  # up to one window nothing is new
            assert torch.equal(own, drawn(generator, GenerationRequest("punk"), 20, seed=3))
    assert known is not None
    assert torch.equal(codes, known)


@pytest.mark.usefixtures("short_windows")
def test_sections_have_their_own_prompts_and_seeds(generators: Callable[[str], Generator]) -> None:
    generator = generators("text")

    def codes(*sections: tuple[str, int, int | None]) -> torch.Tensor:
        parts = tuple(Section(prompt, frames / FRAME_RATE, seed=seed) for prompt, frames, seed in sections)
        return drawn(generator, GenerationRequest("plan", sections=parts), 1)

    usual = codes(("punk", 15, None), (PROMPTS[1], 15, None))
    assert usual.shape[-1] == 30
    assert torch.equal(usual[:, :15], drawn(generator, GenerationRequest("punk"), 15))
    for other in (("punk", 15, None), (PROMPTS[1], 15, 4)):
        changed = codes(("punk", 15, None), other)
        assert torch.equal(changed[:, :15], usual[:, :15])
        assert not torch.equal(changed[:, 15:], usual[:, 15:])


@pytest.mark.usefixtures("short_windows")
@pytest.mark.parametrize(
    ("kind", "piece"),
    [
        ("text", 0.1),
        pytest.param("melody-stereo", 0.6, marks=pytest.mark.slow),
        *(pytest.param("text", piece, marks=pytest.mark.slow) for piece in (0.6, 5.0)),
    ],
)
def test_a_stream_goes_on_over_windows(kind: str, piece: float, generators: Callable[[str], Generator]) -> None:
    generator = generators(kind)
    (clip,) = generator.generate(PROMPTS[:1], seconds=1.0, seed=3, progress=False)
    streamed = np.concatenate(list(generator.stream(PROMPTS[0], seconds=1.0, seed=3, piece=piece)), axis=1)
    assert streamed.shape == clip.wave.shape
    assert np.abs(streamed - clip.wave).max() < 1e-5
    whole = codec.decode_clip(generator._loaded_codec(), clip.codes, generator.checkpoint)
    assert np.abs(whole - clip.wave).max() < 1e-5  # one decode, without joins


@pytest.mark.usefixtures("short_windows")
def test_a_stream_begins_with_the_sound_that_it_continues(generators: Callable[[str], Generator]) -> None:
    generator = generators("text")
    codes = torch.randint(generator.checkpoint.codebook_size, (4, 15), generator=torch.Generator().manual_seed(0))
    request = GenerationRequest("punk", prompt_codes=codes)
    (clip,) = generator.generate([request], seconds=0.8, progress=False)
    streamed = np.concatenate(list(generator.stream(request, seconds=0.8, piece=0.1)), axis=1)
    assert torch.equal(clip.codes[:, :15], codes)
    assert np.abs(streamed - clip.wave).max() < 1e-5


def test_memory_of_decoding_does_not_grow_with_the_length(generators: Callable[[str], Generator]) -> None:
    generator = generators("text")
    decoder = codec.StreamDecoder(generator._loaded_codec(), generator.checkpoint)
    kept = []
    for _ in range(6):
        decoder.push(torch.randint(generator.checkpoint.codebook_size, (4, 100)), last=False)
        (side,) = decoder._sides
        kept.append(sum(frames._latest.shape[-1] for frames in (side._codes, side._hidden)))  # type: ignore[union-attr]
    assert len(set(kept[1:])) == 1


def test_memory_of_writing_does_not_grow_with_the_length(tmp_path: Path) -> None:
    def pieces(seconds: int) -> Iterator[audio.Wave]:
        for _ in range(seconds):
            yield np.zeros((1, 32_000), np.float32)

    peaks = []
    for seconds in (20, 200):
        tracemalloc.start()
        audio.write_pieces(tmp_path / "long.wav", pieces(seconds), 32_000, 1)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert soundfile.info(tmp_path / "long.wav").frames == seconds * 32_000
    assert peaks[1] < 1.2 * peaks[0] + 100_000


# The command


@pytest.mark.usefixtures("short_windows")
def test_a_plan_of_sections_is_one_clip(tiny: Path, tmp_path: Path, cli: Callable[..., Ran]) -> None:
    plan = tmp_path / "my plan.yaml"
    plan.write_text("- {text: punk, seconds: 0.4}\n- {text: a waltz, seconds: 0.5, seed: 7}\n")
    audio.write(tmp_path / "song.wav", tone_song(1.0, 0), SAMPLING_RATE)
    folder, words = tmp_path / "out", ("--continue_from", tmp_path / "song.wav", "--prompt_seconds", 0.2)
    words += ("--variations", 2, "--melody_guidance", 2)
    ran = cli("generate", tiny, "--sections", plan, "--output_dir", folder, *words)
    assert ran.code == 0, ran.err
    assert f"note: --melody_guidance has no effect: no section in {plan} has a melody" in ran.out
    first, second = sorted(folder.glob("*.wav"))
    assert [path.name for path in (first, second)] == [f"00_my-plan_seed0_{number}.wav" for number in range(2)]
    assert soundfile.info(first).frames == 45 * 320
    assert first.read_bytes() != second.read_bytes()
    assert (
        '"sections": [{"text": "punk", "seconds": 0.4}, {"text": "a waltz"' in (folder / "generated.jsonl").read_text()
    )


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ("", "must hold a list of sections"),
        ("text: punk", "must hold a list of sections"),
        ("- punk", "section 1 in plan.yaml is 'punk'; it takes text, seconds, melody, seed"),
        ("- {text: a, seconds: 1, tempo: 3}", "section 1 in plan.yaml has an unknown key 'tempo'"),
        ("- {seconds: 1}", "section 1 in plan.yaml: text is missing; it must be a text"),
        ("- {text: a, seconds: 1}\n- {text: b}", "section 2 in plan.yaml: seconds is missing; it must be a number"),
        ("- {text: a, seconds: 3000}\n- {text: b, seconds: 3000}", "take 6000 s; they may take 3600 s together"),
        ("- {text: a, seconds: 1, melody: no.wav}", "melody 'no.wav' must be a sound file"),
        ("- {text: a, seconds: 1, seed: -1}", "seed -1 must be a whole number from 0"),
        ("- {text: [", "plan.yaml can't be read"),
    ],
)
def test_a_plan_with_a_mistake_is_refused(
    plan: str, message: str, tmp_path: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plan.yaml").write_text(plan)
    ran = cli("generate", "no-model", "--sections", "plan.yaml")
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert message in ran.err


def test_a_prompt_as_long_as_the_first_section_is_refused(generators: Callable[[str], Generator]) -> None:
    codes = torch.zeros(generators("text").checkpoint.codebooks, 10, dtype=torch.long)
    request = GenerationRequest("plan", prompt_codes=codes, sections=(Section("a", 0.2), Section("b", 1)))
    with pytest.raises(UserError, match=r"shorten it with --prompt_seconds, or make the first section longer"):
        next(generators("text").codes([request], seconds=1, progress=False))


def test_sections_exclude_other_prompts(tmp_path: Path, cli: Callable[..., Ran]) -> None:
    ran = cli("generate", "no-model", "punk", "--sections", tmp_path / "plan.yaml")
    assert "--sections holds the prompts of its clip" in ran.err
    ran = cli("generate", "no-model", "--sections", tmp_path / "plan.yaml")
    assert "no file of sections at" in ran.err


@pytest.mark.slow
def test_level_and_brightness_stay_over_ten_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the trained checkpoint, whose clips had 8 s: the last windows are like the first ones."""
    monkeypatch.setattr(windows, "TRAINED_SECONDS", 8.0)
    monkeypatch.setattr(windows, "STRIDE_SECONDS", 4.8)
    generator = Generator(ASSETS / "musicgen-tiny", device="cpu", dtype="float32")
    prompts = [f"{style} at 125 bpm in a minor" for style in ("ballad", "reggae", "house", "techno")]
    rate, changes = generator.checkpoint.sampling_rate, []
    for clip in generator.generate(prompts, seconds=8 + 9 * 4.8, progress=False):
        first, last = clip.wave[:, : 15 * rate], clip.wave[:, -15 * rate :]
        spectra = [np.abs(np.fft.rfft(part[0])) ** 2 for part in (first, last)]
        hertz = np.fft.rfftfreq(15 * rate, 1 / rate)
        centres = [np.log2((power * hertz).sum() / power.sum()) for power in spectra]
        changes.append((loudness(last, rate) - loudness(first, rate), centres[1] - centres[0]))
    level, octaves = np.mean(changes, axis=0)
    assert abs(level) < 2
    assert abs(octaves) < 0.4
