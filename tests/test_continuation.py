"""Music continues sound: its codes come first, its level returns, and the engine takes it in one pass."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import KINDS, Ran, tone_song
from random_checkpoint import SAMPLING_RATE

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.analysis.loudness import gain_to, loudness, peak
from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.generation.continuation import TRAINED_LOUDNESS, AudioPrompt
from musicgen_dreamboothing.generation.decoding import CodeStream, GraphedCodeStream
from musicgen_dreamboothing.generation.engine import Decoder
from musicgen_dreamboothing.generation.generator import Generator
from musicgen_dreamboothing.generation.guidance import Sampling, TextRows, guided, guided_conditioning
from musicgen_dreamboothing.generation.melodies import read_melody
from musicgen_dreamboothing.generation.requests import GenerationRequest
from musicgen_dreamboothing.model import codec, text

PROMPTS = ("punk", "a slow waltz for two guitars")
STEPS = 9

Folders = Callable[[str], Path]
Generators = Callable[..., Generator]


@pytest.fixture(scope="module")
def generators(checkpoints: Folders) -> Generators:
    """Gives a generator of a kind and a precision, loaded once, with the text states of the prompts."""
    made: dict[tuple[str, str], Generator] = {}

    def get(kind: str, dtype: str = "float32") -> Generator:
        if (kind, dtype) not in made:
            made[kind, dtype] = Generator(checkpoints(kind), device="cpu", dtype=dtype)
            made[kind, dtype]._encode(PROMPTS)
        return made[kind, dtype]

    return get


def some_codes(generator: Generator, clips: int = 2, frames: int = STEPS) -> torch.Tensor:
    shape = (clips, generator.checkpoint.codebooks, frames)
    return torch.randint(generator.checkpoint.codebook_size, shape, generator=torch.Generator().manual_seed(0))


def captions(generator: Generator) -> tuple[torch.Tensor, torch.Tensor]:
    return text.pad_states([generator._states[prompt] for prompt in PROMPTS])


# The engine


@pytest.mark.parametrize(
    ("kind", "static_cache"),
    [
        *(("text", False), ("melody", True), ("melody-stereo", False)),
        *(pytest.param(kind, True, marks=pytest.mark.slow) for kind in KINDS if kind in ("text", "text-stereo")),
    ],
)
@torch.inference_mode()
def test_a_pass_over_many_steps_computes_what_single_steps_do(
    kind: str, static_cache: bool, generators: Generators
) -> None:
    """Also with captions of other lengths, whose padding no step attends to."""
    generator = generators(kind)
    states, mask = captions(generator)
    rows = TextRows(states, mask, torch.ones(2, dtype=torch.bool))
    conditioning = guided_conditioning(generator._model, rows, Sampling())
    codes = some_codes(generator)
    single, filled = (Decoder(generator._stack, conditioning, STEPS, static_cache=static_cache) for _ in range(2))
    steps = [torch.tensor([step]) if static_cache else step for step in range(STEPS)]
    expected = [single.logits(codes[..., number], step) for number, step in enumerate(steps)]
    filled.fill(codes[..., : STEPS - 2])
    for number in (STEPS - 2, STEPS - 1):
        assert torch.allclose(filled.logits(codes[..., number], steps[number]), expected[number], atol=2e-5)


@pytest.mark.parametrize("kind", ["text", "melody-stereo"])
def test_a_captured_stream_continues_as_the_plain_one(kind: str, generators: Generators) -> None:
    generator = generators(kind)
    options: dict[str, Any] = {"frames": STEPS + 6, "seeds": [1, 2], "sampling": Sampling()}
    arguments = (generator._stack, generator.checkpoint, *captions(generator))
    plain, counted = (
        stream(*arguments, prompt_codes=some_codes(generator), **options) for stream in (CodeStream, GraphedCodeStream)
    )
    while plain.done < plain.steps:
        plain.advance()
        with torch.inference_mode():
            counted._draw()
    assert torch.equal(plain.sequence, counted.sequence)
    assert torch.equal(plain.codes(0, STEPS), some_codes(generator))


def request(generator: Generator, number: int = 0, prompt: str = "punk", frames: int = STEPS) -> GenerationRequest:
    return GenerationRequest(prompt, prompt_codes=some_codes(generator, 3, frames)[number])


def codes_of(generator: Generator, requests: list[GenerationRequest], **options: Any) -> list[torch.Tensor]:
    frames = options.pop("frames", STEPS + 8)
    found = generator.codes(requests, seconds=frames / generator.checkpoint.frame_rate, progress=False, **options)
    drawn = {id(key): codes for key, codes in found}
    return [drawn[id(key)] for key in requests]


@pytest.mark.parametrize("kind", KINDS)
def test_the_prompt_is_the_beginning_and_changes_the_rest(kind: str, generators: Generators) -> None:
    generator = generators(kind)
    requests = [request(generator, number) for number in range(2)]
    first, second = codes_of(generator, requests)
    assert first.shape[-1] == STEPS + 8
    for codes, asked in ((first, requests[0]), (second, requests[1])):
        assert torch.equal(codes[:, :STEPS], asked.prompt_codes)
    assert not torch.equal(first[:, STEPS:], second[:, STEPS:])
    assert int(first.max()) < generator.checkpoint.codebook_size


@pytest.mark.parametrize("kind", ["text", "melody"])
def test_continuing_a_clip_of_its_own_goes_on_as_the_clip(kind: str, generators: Generators) -> None:
    """With the same random numbers in each step; only the steps on the border saw codes that are cut off here."""
    generator = generators(kind)
    sampling = Sampling(temperature=0)
    (whole,) = generator.codes([("punk", 0)], seconds=20 / generator.checkpoint.frame_rate, sampling=sampling)
    asked = GenerationRequest("punk", prompt_codes=whole[1][:, :12])
    (codes,) = codes_of(generator, [asked], frames=20, sampling=sampling)
    assert torch.equal(codes, whole[1])


def test_a_continuation_does_not_depend_on_its_batch(generators: Generators) -> None:
    """Bit for bit in bf16, with longer and shorter prompts and captions beside it."""
    for kind in ("text", "melody"):
        generator = generators(kind, "bfloat16")
        requests = [
            request(generator, 0, PROMPTS[1]),
            request(generator, 1, frames=STEPS - 3),
            request(generator, 2, PROMPTS[0]),
            GenerationRequest("punk"),
        ]
        together = codes_of(generator, requests)
        for asked, codes in zip(requests[:2], together, strict=False):
            assert torch.equal(codes_of(generator, [asked])[0], codes)


def test_a_prompt_that_leaves_nothing_is_refused(generators: Generators) -> None:
    with pytest.raises(UserError, match=r"the audio prompt of 0\.18 s leaves nothing to generate in 0\.18 s"):
        codes_of(generators("text"), [request(generators("text"))], frames=STEPS)


def test_codes_of_another_model_are_refused(generators: Generators) -> None:
    mono = request(generators("text"))
    with pytest.raises(UserError, match=r"prompt codes of 4 codebooks for .*, which has 8: encode the sound with"):
        codes_of(generators("text-stereo"), [mono])


def test_a_model_that_ignores_its_audio_prompt_is_refused(checkpoints: Folders) -> None:
    generator = Generator(checkpoints("text"), device="cpu", dtype="float32")
    with torch.no_grad():
        for layer in generator._model.decoder.model.decoder.layers:
            layer.self_attn.out_proj.weight.zero_()
    with pytest.raises(UserError, match="the audio prompt changes nothing in this model"):
        codes_of(generator, [request(generator)])


# The sound


@pytest.fixture(scope="module")
def song(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stereo at another rate than the models', softer than what they were trained on; its sides differ."""
    path = tmp_path_factory.mktemp("songs") / "song.wav"
    audio.write(path, 0.2 * tone_song(3.0, 1, channels=2, rate=22_050), 22_050)
    return path


@pytest.mark.parametrize("kind", [pytest.param("text", marks=pytest.mark.slow), "text-stereo"])
def test_codes_are_those_of_the_end_at_the_level_of_training(kind: str, song: Path, generators: Generators) -> None:
    generator = generators(kind)
    checkpoint = generator.checkpoint
    prompt = generator.audio_prompt(song, seconds=1.0)
    samples = round(1.0 * checkpoint.frame_rate) * checkpoint.hop_length
    wave = audio.decode(song, checkpoint.sampling_rate)
    gain = gain_to(loudness(wave, checkpoint.sampling_rate), peak(wave), TRAINED_LOUDNESS)
    assert gain > 1.5
    assert prompt.gain == pytest.approx(gain, rel=0.02)
    end = audio.to_channels(wave[:, -samples:], checkpoint.audio_channels)
    assert np.array_equal(prompt.wave, end)
    loud = torch.from_numpy(end * np.float32(prompt.gain))[None]
    assert torch.equal(prompt.codes, codec.encode(generator._loaded_codec(), loud, checkpoint)[0])
    (clip,) = generator.generate([GenerationRequest("punk", prompt_codes=prompt.codes)], seconds=1.2, progress=False)
    assert torch.equal(clip.codes[:, : prompt.codes.shape[-1]], prompt.codes)


def test_a_short_sound_is_cut_to_whole_frames_from_the_left(tmp_path: Path, generators: Generators) -> None:
    generator = generators("text")
    wave = tone_song(0.5, 2)[:, : 10 * 320 + 37]
    audio.write(tmp_path / "short.wav", wave, SAMPLING_RATE)
    prompt = generator.audio_prompt(tmp_path / "short.wav")
    assert prompt.codes.shape[-1] == 10
    assert np.abs(prompt.wave - wave[:, 37:]).max() < 1e-4


def test_a_prompt_has_a_frame_at_least(song: Path, generators: Generators) -> None:
    assert generators("text").audio_prompt(song, 0.001).codes.shape[-1] == 1


def test_damage_of_a_continued_file_is_named(
    tmp_path: Path, generators: Generators, capsys: pytest.CaptureFixture[str]
) -> None:
    audio.write(tmp_path / "cut.flac", tone_song(3.0, 2), SAMPLING_RATE)
    content = (tmp_path / "cut.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(content[: len(content) // 2])
    generators("text").audio_prompt(tmp_path / "cut.flac", 0.1)
    read_melody(tmp_path / "cut.flac")
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2
    assert all("cut.flac: " in line and "s decoded of the 3.0 s" in line for line in printed)


def test_a_kept_prompt_is_the_original_and_fades_into_the_decoded_sound() -> None:
    rng = np.random.default_rng(0)
    original, decoded = rng.standard_normal((2, 2, 3000)).astype(np.float32)
    prompt = AudioPrompt(torch.zeros(4, 1), original[:, :2000], 4.0, 8000)
    pieces = [decoded[:, :700], decoded[:, 700:1950], decoded[:, 1950:]]
    kept = np.concatenate(list(prompt.restored(iter(pieces), keep=True)), axis=1)
    assert kept.shape == decoded.shape
    assert np.array_equal(kept[:, :1200], original[:, :1200])
    assert np.allclose(kept[:, 2000:], decoded[:, 2000:] / 4)
    middle = np.linspace(1, 0, 800, dtype=np.float32)
    assert np.allclose(kept[:, 1200:2000], middle * original[:, 1200:2000] + (1 - middle) * decoded[:, 1200:2000] / 4)
    new = np.concatenate(list(prompt.restored(iter(pieces), keep=False)), axis=1)
    assert np.allclose(new, decoded[:, 2000:] / 4)


# The command


@pytest.mark.parametrize("kind", [pytest.param("text", marks=pytest.mark.slow), "melody-stereo"])
def test_files_begin_with_the_end_of_the_song(
    kind: str, song: Path, checkpoints: Folders, tmp_path: Path, cli: Callable[..., Ran]
) -> None:
    words = ("generate", checkpoints(kind), "punk", "--continue_from", song, "--prompt_seconds", 1, "--seconds", 1.5)
    for name, options in {"kept": (), "new": ("--keep_prompt", "false")}.items():
        ran = cli(*words, "--output_dir", tmp_path / name, *options)
        assert ran.code == 0, ran.err
    kept, new = (audio.decode(tmp_path / name / "00_punk_seed0_0.wav", SAMPLING_RATE) for name in ("kept", "new"))
    channels = 2 if "stereo" in kind else 1
    assert (kept.shape, new.shape) == ((channels, 24_000), (channels, 8_000))
    end = audio.to_channels(audio.decode(song, SAMPLING_RATE)[:, -16_000:], channels)
    assert np.abs(kept[:, :14_400] - end[:, :14_400]).max() < 1e-4
    assert np.array_equal(kept[:, 16_000:], new)
    assert "1 clip of 0.5 s" in ran.out
    (row,) = map(json.loads, (tmp_path / "new" / "generated.jsonl").read_text().splitlines())
    assert row["continued"] == str(song)


@pytest.mark.parametrize("prompts", [["punk"], pytest.param(["punk", "dub"], marks=pytest.mark.slow)])
def test_many_songs_with_one_prompt_and_a_prompt_for_each(
    prompts: list[str], song: Path, tiny: Path, tmp_path: Path, cli: Callable[..., Ran]
) -> None:
    other = tmp_path / "other.wav"
    audio.write(other, tone_song(0.5, 3), SAMPLING_RATE)  # shorter than the prompt that is asked for
    short = ("--prompt_seconds", 0.6, "--seconds", 0.8, "--keep_prompt", "false", "--continue_from", song, other)
    ran = cli("generate", tiny, *prompts, "--output_dir", tmp_path / "out", *short)
    assert ran.code == 0, ran.err
    first, second = sorted((tmp_path / "out").glob("*.wav"))
    assert "2 clips of 0.2 to 0.3 s in " in ran.out
    assert (first.name[:7], second.name[:6]) == ("00_punk", f"01_{prompts[-1][:3]}")
    assert first.read_bytes() != second.read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["punk", "--continue_from", "nowhere.wav"], "no file at nowhere.wav; --continue_from takes sound files"),
        (["a", "b", "c", "--continue_from", "s.wav", "s.wav"], "--continue_from has 2 values, and another option 3"),
        (["punk", "--continue_from", "silent.wav"], "the last 1 s of silent.wav are silent"),
        (
            ["punk", "--continue_from", "s.wav", "--seconds", "1"],
            "the audio prompt of 2 s leaves nothing to generate in 1 s",
        ),
        (
            ["punk", "--continue_from", "s.wav", "--prompt_seconds", "30"],
            "--prompt_seconds 30 must be above 0 and at most 29",
        ),
        (
            ["punk", "--continue_from", "s.wav", "--loop_bars", "2"],
            "--loop_bars and --continue_from exclude each other",
        ),
        (["punk", "--negative_prompt", "punk"], "the negative prompt 'punk' is the prompt itself"),
    ],
)
def test_what_cannot_be_continued_is_refused(
    words: list[str], message: str, tiny: Path, tmp_path: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    audio.write(Path("s.wav"), tone_song(2.0, 0), SAMPLING_RATE)
    audio.write(Path("silent.wav"), np.zeros((1, SAMPLING_RATE), np.float32), SAMPLING_RATE)
    ran = cli("generate", tiny, *words, "--output_dir", "out")
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert message in ran.err
    assert list(tmp_path.glob("out/*")) == []


def test_options_of_a_prompt_have_no_effect_without_one(tiny: Path, tmp_path: Path, cli: Callable[..., Ran]) -> None:
    words = ("--seconds", 0.1, "--prompt_seconds", 2, "--bpm", 100, "--melody_guidance", 2, "--melody_start", 1)
    ran = cli("generate", tiny, "punk", "--output_dir", tmp_path, *words)
    assert ran.code == 0, ran.err
    assert "note: --prompt_seconds has no effect without --continue_from" in ran.out
    assert "note: --bpm has no effect without --loop_bars" in ran.out
    assert "note: --melody_guidance has no effect without --melody or --sections" in ran.out
    assert "note: --melody_start has no effect without --melody" in ran.out


# Negative prompts


@pytest.mark.parametrize("kind", ["text", "melody"])
@torch.inference_mode()
def test_a_negative_prompt_is_the_other_branch_of_guidance(kind: str, generators: Generators) -> None:
    """Guided logits lead from those of the negative prompt to those of the prompt."""
    generator = generators(kind)
    codes, sampling = some_codes(generator, 1), Sampling(guidance_scale=2.5)
    one = torch.ones(1, dtype=torch.bool)

    def rows(prompt: str) -> TextRows:
        return TextRows(*text.pad_states([generator._states[prompt]]), one)

    def logits(conditioning: Any) -> torch.Tensor:
        decoder = Decoder(generator._stack, conditioning, 1, static_cache=False)
        return decoder.logits(codes[..., 0], 0)

    plain = Sampling(guidance_scale=1)
    positive, negative = (logits(guided_conditioning(generator._model, rows(prompt), plain)) for prompt in PROMPTS)
    both = logits(guided_conditioning(generator._model, rows(PROMPTS[0]), sampling, negative=rows(PROMPTS[1])))
    assert torch.allclose(guided(both, 2, sampling), negative + 2.5 * (positive - negative), atol=1e-4)


def test_a_negative_prompt_concerns_its_clip_alone(generators: Generators) -> None:
    generator = generators("text", "bfloat16")
    plain, against = GenerationRequest("punk"), GenerationRequest("punk", negative_prompt=PROMPTS[1])
    together = codes_of(generator, [plain, against])
    assert torch.equal(together[0], codes_of(generator, [plain])[0])
    assert torch.equal(together[1], codes_of(generator, [against])[0])
    assert not torch.equal(*together)
