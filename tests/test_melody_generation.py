"""Music follows a melody: the prefix of each window, guidance with it, and the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Ran, read_checkpoint
from random_checkpoint import SAMPLING_RATE

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.generation import windows
from musicgen_dreamboothing.generation.engine import Decoder
from musicgen_dreamboothing.generation.generator import Generator
from musicgen_dreamboothing.generation.guidance import Sampling, TextRows, guided, guided_conditioning
from musicgen_dreamboothing.generation.melodies import melody_window, read_melody
from musicgen_dreamboothing.generation.requests import Classes, GenerationRequest, Section
from musicgen_dreamboothing.model import text

PROMPTS = ("punk", "a slow waltz for two guitars")
FRAMES = 12
FRAME_RATE = 50
TUNE = np.array([9, 9, 4, 4, 7, 2, 11, 0, 5, 5, 1], np.uint8)  # as many frames as the tiny checkpoint's prefix has
OTHER = TUNE[::-1].copy()

Folders = Callable[[str], Path]


@pytest.fixture(scope="module")
def generators(checkpoints: Folders) -> Callable[..., Generator]:
    made: dict[tuple[str, str], Generator] = {}

    def get(kind: str = "melody", dtype: str = "float32") -> Generator:
        if (kind, dtype) not in made:
            made[kind, dtype] = Generator(checkpoints(kind), device="cpu", dtype=dtype)
            made[kind, dtype]._encode(PROMPTS)
        return made[kind, dtype]

    return get


def codes_of(generator: Generator, requests: list[GenerationRequest], **options: Any) -> list[torch.Tensor]:
    frames = options.pop("frames", FRAMES)
    found = generator.codes(requests, seconds=frames / FRAME_RATE, progress=False, **options)
    drawn = {id(key): codes for key, codes in found}
    return [drawn[id(key)] for key in requests]


def following(melody: Classes | None, prompt: str = "punk", **options: Any) -> GenerationRequest:
    return GenerationRequest(prompt, melody=melody, **options)


@pytest.mark.parametrize(
    ("kind", "scale"),
    [
        ("melody", 3.0),
        pytest.param("melody-stereo", 1.0, marks=pytest.mark.slow),
        pytest.param("melody", 1.0, marks=pytest.mark.slow),
        pytest.param("melody-stereo", 3.0, marks=pytest.mark.slow),
    ],
)
def test_greedy_codes_are_those_of_transformers(
    kind: str, scale: float, checkpoints: Folders, generators: Callable[..., Generator]
) -> None:
    generator = generators(kind)
    checkpoint = read_checkpoint(checkpoints(kind))
    whole: Any = checkpoint.model_class.from_pretrained(checkpoint.name, dtype=torch.float32).eval()
    kept: list[torch.Tensor] = []
    decode = whole.audio_encoder.decode
    whole.audio_encoder.decode = lambda codes, **rest: kept.append(codes[0, 0]) or decode(codes, **rest)
    ids, mask = text.tokenize(generator._tokenizer, ["punk"])
    whole.generate(
        input_ids=ids,
        attention_mask=mask,
        input_features=torch.nn.functional.one_hot(torch.from_numpy(TUNE).long(), 12)[None].float(),
        max_new_tokens=FRAMES + max(checkpoint.delay),
        do_sample=False,
        guidance_scale=scale,
    )
    theirs = torch.stack(kept, dim=1).flatten(0, 1)
    sampling = Sampling(guidance_scale=scale, temperature=0)
    (ours,) = codes_of(generator, [following(TUNE)], sampling=sampling)
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, codes_of(generator, [following(OTHER)], sampling=sampling)[0])


def test_a_clip_follows_its_own_melody_whatever_is_in_its_batch(generators: Callable[..., Generator]) -> None:
    generator = generators("melody", "bfloat16")
    prompt = torch.randint(generator.checkpoint.codebook_size, (4, 5), generator=torch.Generator().manual_seed(0))
    requests = [
        *(following(TUNE), following(OTHER), following(None), following(TUNE, PROMPTS[1])),
        *(following(TUNE, prompt_codes=prompt), following(OTHER, negative_prompt=PROMPTS[1])),
    ]
    sampling = Sampling(melody_guidance=0.5)
    together = codes_of(generator, requests, sampling=sampling)
    for number in (0, 2, 5):
        assert torch.equal(together[number], codes_of(generator, [requests[number]], sampling=sampling)[0])
    assert len({codes.numpy().tobytes() for codes in together}) == len(requests)


def test_class_c_throughout_is_no_melody(generators: Callable[..., Generator]) -> None:
    none, null = (codes_of(generators(), [following(melody)])[0] for melody in (None, np.zeros(3, np.uint8)))
    assert torch.equal(none, null)


@torch.inference_mode()
def test_double_guidance_weighs_the_prompt_against_the_melody(generators: Callable[..., Generator]) -> None:
    """`u + g * (w + b * (c - w) - u)`, with the branches in the order c, w, u."""
    generator = generators()
    model, melody = generator._model, torch.from_numpy(TUNE).long()[None]
    start = torch.full((1, 4), generator.checkpoint.start_token_id)
    states, mask = text.pad_states([generator._states["punk"]])
    rows = TextRows(states, mask, torch.ones(1, dtype=torch.bool))

    def logits(rows: TextRows, melody: torch.Tensor | None, sampling: Sampling) -> torch.Tensor:
        conditioning = guided_conditioning(model, rows, sampling, melody)
        return Decoder(generator._stack, conditioning, 1, static_cache=False).logits(start, 0)

    single, double = Sampling(guidance_scale=1), Sampling(guidance_scale=3, melody_guidance=5)
    c, w, u = logits(rows, melody, single), logits(rows.dropped(), melody, single), logits(rows.dropped(), None, single)
    three = logits(rows, melody, double)
    assert torch.allclose(three, torch.cat([c, w, u]), atol=1e-5)
    assert torch.allclose(guided(three, 3, double), u + 3 * (w + 5 * (c - w) - u), atol=1e-3)
    assert logits(rows, melody, Sampling()).shape[0] == 2  # plain guidance has no third branch
    assert logits(rows, None, double).shape[0] == 2


def test_a_melody_repeats_from_the_time_of_its_window() -> None:
    classes = np.arange(12, dtype=np.uint8)
    assert melody_window(classes, 0, 50.0, 30).tolist() == [number % 12 for number in range(30)]
    assert melody_window(classes, 896, 50.0, 3).tolist() == [number % 12 for number in (140, 141, 142)]
    assert melody_window(classes, 448, 25.0, 1).tolist() == [140 % 12]
    assert melody_window(classes, -32, 50.0, 2).tolist() == [7, 8]
    assert melody_window(None, 99, 50.0, 2).tolist() == [0, 0]


def test_windows_read_the_melody_on(generators: Callable[..., Generator], monkeypatch: pytest.MonkeyPatch) -> None:
    """A window's codes are those of a continuation with the melody from there on, and a section begins its own."""
    monkeypatch.setattr(windows, "TRAINED_SECONDS", 96 / FRAME_RATE)
    monkeypatch.setattr(windows, "STRIDE_SECONDS", 64 / FRAME_RATE)
    generator, greedy = generators(), {"sampling": Sampling(temperature=0)}
    (codes,) = codes_of(generator, [following(TUNE)], frames=150, **greedy)
    later = following(np.roll(TUNE, -10), prompt_codes=codes[:, 64:96])
    assert torch.equal(codes_of(generator, [later], frames=86, **greedy)[0], codes[:, 64:])
    parts = (Section("punk", 32 / FRAME_RATE), Section("punk", 64 / FRAME_RATE, TUNE))
    (mixed,) = codes_of(generator, [GenerationRequest("plan", sections=parts)], **greedy)
    assert torch.equal(mixed[:, :32], codes_of(generator, [following(None)], frames=32, **greedy)[0])
    behind = following(np.roll(TUNE, 5), prompt_codes=mixed[:, :32])
    assert torch.equal(codes_of(generator, [behind], frames=96, **greedy)[0], mixed)


def test_a_model_that_ignores_its_melody_is_refused(checkpoints: Folders) -> None:
    generator = Generator(checkpoints("melody"), device="cpu", dtype="float32")
    with torch.no_grad():
        generator._model.audio_enc_to_dec_proj.weight.zero_()
    assert codes_of(generator, [following(None)])
    with pytest.raises(UserError, match="the melody changes nothing in this model"):
        codes_of(generator, [following(TUNE)])


def test_a_model_that_ignores_its_prompt_is_refused_with_a_melody_too(checkpoints: Folders) -> None:
    generator = Generator(checkpoints("melody"), device="cpu", dtype="float32")
    with torch.no_grad():
        for weight in generator._model.enc_to_dec_proj.parameters():
            weight.zero_()
    with pytest.raises(UserError, match="the prompt changes nothing in this model"):
        codes_of(generator, [following(TUNE)])


# The command


@pytest.fixture(scope="module")
def tunes(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two seconds on a, two on e; and two on g: files of other rates and channels."""
    folder, paths = tmp_path_factory.mktemp("tunes"), []
    for name, rate, notes in (("a-e.flac", 44_100, (440.0, 659.3)), ("g.ogg", 22_050, (392.0,))):
        time = np.arange(2 * rate) / rate
        wave = np.concatenate([np.sin(2 * np.pi * hertz * time) for hertz in notes])
        audio.write(folder / name, 0.3 * np.stack([wave, wave]).astype(np.float32), rate)
        paths.append(folder / name)
    return paths


def test_melodies_are_read_from_a_part_of_a_file(tunes: list[Path]) -> None:
    classes = read_melody(tunes[0])
    assert len(classes) == 1 + 4 * 32_000 // 4096
    assert set(classes[:14]) == {9}
    assert set(classes[18:]) == {4}
    assert set(read_melody(tunes[0], start=2.0)) == {4}
    assert set(read_melody(tunes[0], seconds=1.5)) == {9}


def test_one_melody_for_all_prompts_and_one_for_each(
    tunes: list[Path], checkpoints: Folders, tmp_path: Path, cli: Callable[..., Ran]
) -> None:
    words = ("generate", checkpoints("melody"), "--seconds", 0.1, "--melody_guidance", 0.5)
    runs = {
        "each": ("punk", "punk", "--melody", *tunes),
        "all": ("punk", "dub", "--melody", tunes[1], "--melody_seconds", 1.9),
    }
    made = {}
    for name, more in runs.items():
        ran = cli(*words[:2], *more, *words[2:], "--output_dir", tmp_path / name)
        assert ran.code == 0, ran.err
        made[name] = [path.read_bytes() for path in sorted((tmp_path / name).glob("*.wav"))]
    assert made["all"][0] == made["each"][1]
    assert made["each"][0] != made["each"][1]
    rows = [json.loads(line) for line in (tmp_path / "each" / "generated.jsonl").read_text().splitlines()]
    assert [row["melody"] for row in rows] == [str(tune) for tune in tunes]


@pytest.mark.slow
def test_a_section_names_its_melody(
    tunes: list[Path], checkpoints: Folders, tmp_path: Path, cli: Callable[..., Ran]
) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(f"- {{text: punk, seconds: 0.2}}\n- {{text: punk, seconds: 0.2, melody: '{tunes[0]}'}}\n")
    ran = cli("generate", checkpoints("melody"), "--sections", plan, "--output_dir", tmp_path / "out")
    assert ran.code == 0, ran.err
    assert f'"melody": "{tunes[0]}"' in (tmp_path / "out" / "generated.jsonl").read_text()


def test_a_text_model_takes_no_melody(tunes: list[Path], tiny: Path, tmp_path: Path, cli: Callable[..., Ran]) -> None:
    ran = cli("generate", tiny, "punk", "--melody", tunes[0], "--output_dir", tmp_path / "out")
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert "takes no melody: it is a text model; take facebook/musicgen-melody" in ran.err
    assert list(tmp_path.glob("out/*.wav")) == []


def test_a_drone_on_c_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    time = np.arange(2 * SAMPLING_RATE) / SAMPLING_RATE
    audio.write(tmp_path / "c.wav", 0.3 * np.sin(2 * np.pi * 261.63 * time)[None].astype(np.float32), SAMPLING_RATE)
    assert not read_melody(tmp_path / "c.wav").any()
    assert "is a C throughout, or it is silent; for the model that is no melody" in capsys.readouterr().out
