"""Music follows its prompt, its seed and nothing else, and greedy music is transformers' own, code by code."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import KINDS, Ran, read_checkpoint, tone_song, train_words
from random_checkpoint import SAMPLING_RATE

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.arguments import GenerateArguments
from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.data.layout import GENERATED
from musicgen_dreamboothing.generation import generate as generating
from musicgen_dreamboothing.generation.decoding import CodeStream, clip_seed, sample
from musicgen_dreamboothing.generation.generator import Generator
from musicgen_dreamboothing.generation.guidance import Sampling
from musicgen_dreamboothing.generation.output import file_name
from musicgen_dreamboothing.generation.windows import TRAINED_SECONDS
from musicgen_dreamboothing.model import text

PROMPTS = ("punk", "a slow waltz for two guitars", "80s synth pop")
FRAMES = 12
SHORT = ("--seconds", 0.1, "--dtype", "float32")  # 5 frames

Folders = Callable[[str], Path]
Generators = Callable[[str], Generator]


@pytest.fixture(scope="module")
def generators(checkpoints: Folders) -> Generators:
    """Gives a generator on the base checkpoint of a kind, loaded once."""
    made: dict[str, Generator] = {}

    def get(kind: str) -> Generator:
        if kind not in made:
            made[kind] = Generator(checkpoints(kind), device="cpu", dtype="float32")
        return made[kind]

    return get


@pytest.fixture(scope="module")
def wholes(checkpoints: Folders) -> Callable[[str], Any]:
    """Gives transformers' own model of a kind, loaded once."""
    made: dict[str, Any] = {}

    def get(kind: str) -> Any:
        if kind not in made:
            checkpoint = read_checkpoint(checkpoints(kind))
            made[kind] = checkpoint.model_class.from_pretrained(checkpoint.name, dtype=torch.float32).eval()
        return made[kind]

    return get


def codes_of(generator: Generator, prompts: Sequence[str], **options: Any) -> dict[tuple[str, int], torch.Tensor]:
    """The codes of each prompt and variation."""
    seconds = options.pop("frames", FRAMES) / generator.checkpoint.frame_rate
    clips = generator.generate(prompts, seconds=seconds, progress=False, **options)
    return {(clip.prompt, clip.variation): clip.codes for clip in clips}


def theirs(whole: Any, generator: Generator, prompt: str, seed: int = 0, **options: Any) -> torch.Tensor:
    """Codes `[K, T]` of transformers' own `generate`: what it hands to the codec, channel by channel."""
    ids, mask = text.tokenize(generator._tokenizer, [prompt])
    codes_of: list[torch.Tensor] = []
    decode = whole.audio_encoder.decode
    whole.audio_encoder.decode = lambda codes, **rest: codes_of.append(codes[0, 0]) or decode(codes, **rest)
    torch.manual_seed(seed)
    try:
        whole.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=FRAMES + max(generator.checkpoint.delay), **options
        )
    finally:
        whole.audio_encoder.decode = decode
    return torch.stack(codes_of, dim=1).flatten(0, 1)


# What the music depends on


@pytest.mark.parametrize("kind", KINDS)
def test_prompt_guidance_and_seed_change_the_codes(kind: str, generators: Generators) -> None:
    generator = generators(kind)
    usual = codes_of(generator, ["punk"], seed=1)["punk", 0]
    assert torch.equal(usual, codes_of(generator, ["punk"], seed=1)["punk", 0])
    others = {
        "seed": codes_of(generator, ["punk"], seed=2)["punk", 0],
        "guidance": codes_of(generator, ["punk"], seed=1, sampling=Sampling(guidance_scale=1))["punk", 0],
        "variation": codes_of(generator, ["punk"], seed=1, variations=2)["punk", 1],
        "top_k": codes_of(generator, ["punk"], seed=1, sampling=Sampling(top_k=3))["punk", 0],
        "temperature": codes_of(generator, ["punk"], seed=1, sampling=Sampling(temperature=3))["punk", 0],
    }
    for name, codes in others.items():
        assert not torch.equal(usual, codes), name
    greedy = [codes_of(generator, [prompt], sampling=Sampling(temperature=0))[prompt, 0] for prompt in PROMPTS[:2]]
    assert not torch.equal(*greedy)  # sampled clips have other random numbers for another prompt


@pytest.mark.parametrize("kind", KINDS)
def test_prompt_guidance_and_seed_change_the_codes_of_transformers(
    kind: str, generators: Generators, wholes: Callable[[str], Any]
) -> None:
    """transformers 5.1 to 5.17 ignored prompt and guidance of melody models without a word."""

    def codes(prompt: str, scale: float = 3.0, seed: int = 0) -> torch.Tensor:
        options = {"do_sample": True, "guidance_scale": scale}
        return theirs(wholes(kind), generators(kind), prompt, seed, **options)

    usual = codes("punk")
    assert torch.equal(usual, codes("punk"))
    assert not torch.equal(usual, codes("waltz"))
    assert not torch.equal(usual, codes("punk", scale=1.0))
    assert not torch.equal(usual, codes("punk", seed=1))


@pytest.mark.parametrize("scale", [3.0, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_codes_are_transformers_own(
    kind: str, scale: float, generators: Generators, wholes: Callable[[str], Any]
) -> None:
    generator = generators(kind)
    ours = codes_of(generator, PROMPTS, sampling=Sampling(guidance_scale=scale, temperature=0))
    for prompt in PROMPTS:
        expected = theirs(wholes(kind), generator, prompt, do_sample=False, guidance_scale=scale)
        assert expected.shape == (generator.checkpoint.codebooks, FRAMES)
        assert torch.equal(ours[prompt, 0], expected), prompt


@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_does_not_depend_on_its_batch(kind: str, generators: Generators) -> None:
    generator = generators(kind)
    together = codes_of(generator, PROMPTS, variations=2, seed=5)
    assert len(together) == 6
    for batch_size in (1, 4):
        again = codes_of(generator, PROMPTS[::-1], variations=2, seed=5, batch_size=batch_size)
        assert all(torch.equal(codes, together[clip]) for clip, codes in again.items())
    alone = codes_of(generator, PROMPTS[1:2], seed=5)
    assert torch.equal(alone[PROMPTS[1], 0], together[PROMPTS[1], 0])


@pytest.mark.parametrize("kind", ["text-stereo", "melody"])
def test_a_longer_clip_begins_as_the_shorter_one(kind: str, generators: Generators) -> None:
    """Up to the step after the last frame of codebook 1: from there on the shorter clip has pad tokens."""
    generator = generators(kind)
    short, long = (codes_of(generator, ["punk"], frames=frames)["punk", 0] for frames in (10, 25))
    for codebook, shift in enumerate(generator.checkpoint.delay):
        same = min(10, 10 + 1 - shift)
        assert torch.equal(short[codebook, :same], long[codebook, :same])
    assert long.shape[-1] == 25


def test_states_may_be_padded_in_the_text_family(generators: Generators) -> None:
    generator = generators("text")
    list(generator.generate(PROMPTS, seconds=0.02, progress=False))
    states, mask = text.pad_states([generator._states[prompt] for prompt in PROMPTS])
    assert len(set(mask.sum(-1).tolist())) == 3
    options = {"frames": FRAMES, "sampling": Sampling()}
    stack, checkpoint, seeds = generator._stack, generator.checkpoint, [clip_seed(0, prompt, 0) for prompt in PROMPTS]
    together = CodeStream(stack, checkpoint, states, mask, seeds=seeds, **options).finish()
    for number, length in enumerate(mask.sum(-1).tolist()):
        one = slice(number, number + 1)
        narrow = (states[one, :length], mask[one, :length])
        alone = CodeStream(stack, checkpoint, *narrow, seeds=seeds[one], **options).finish()
        assert torch.equal(alone[0], together[number])


def test_a_model_that_ignores_its_prompt_is_refused(checkpoints: Folders) -> None:
    generator = Generator(checkpoints("text"), device="cpu", dtype="float32")
    with torch.no_grad():
        for layer in generator._model.decoder.model.decoder.layers:
            layer.encoder_attn.out_proj.weight.zero_()
    with pytest.raises(UserError, match="the prompt changes nothing in this model"):
        codes_of(generator, ["punk"])


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_nan_weights_are_refused(scale: float, checkpoints: Folders) -> None:
    generator = Generator(checkpoints("text"), device="cpu", dtype="float32")
    with torch.no_grad():
        generator._model.decoder.model.decoder.layers[0].fc1.weight[0, 0] = torch.nan
    with pytest.raises(UserError, match="computed NaN or infinity; try --dtype float32"):
        codes_of(generator, ["punk"], sampling=Sampling(guidance_scale=scale))


def test_the_seed_of_a_clip_depends_on_prompt_variation_and_seed() -> None:
    seeds = {clip_seed(seed, prompt, variation) for seed in (0, 1) for prompt in ("a", "b") for variation in (0, 1)}
    assert len(seeds) == 8
    assert clip_seed(0, "a", 1) == clip_seed(0, "a", 1)
    assert all(0 <= seed < 2**63 for seed in seeds)


# Sampling


LOGITS = torch.tensor([1.0, -0.5, 2.0, 0.3, 1.9])
EVENLY = (torch.arange(10_000) + 0.5) / 10_000  # noise values as a perfect uniform distribution would have them


def frequencies(sampling: Sampling) -> torch.Tensor:
    drawn = sample(LOGITS.expand(len(EVENLY), -1), EVENLY, sampling)
    return torch.bincount(drawn, minlength=len(LOGITS)) / len(EVENLY)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [0, 1, 2, 4, 5, 250])
def test_codes_are_drawn_with_the_probabilities_of_the_model(top_k: int, temperature: float) -> None:
    kept = LOGITS.topk(top_k).indices if 0 < top_k < 5 else torch.arange(5)
    expected = torch.zeros(5)
    expected[kept] = torch.softmax(LOGITS[kept] / temperature, dim=-1)
    found = frequencies(Sampling(temperature=temperature, top_k=top_k))
    assert torch.allclose(found, expected, atol=2e-4)  # one in 10,000, twice


def test_random_noise_gives_the_same_distribution() -> None:
    noise = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    drawn = sample(LOGITS.expand(len(noise), -1), noise, Sampling())
    expected = torch.softmax(LOGITS, dim=-1) * len(noise)
    chi_square = ((torch.bincount(drawn, minlength=5) - expected).square() / expected).sum().item()
    assert chi_square < 18.5  # four degrees of freedom: passed by chance once in a thousand


def test_temperature_zero_takes_the_likeliest() -> None:
    for top_k in (0, 3):
        assert frequencies(Sampling(temperature=0, top_k=top_k)).tolist() == [0, 0, 1, 0, 0]


def test_each_clip_and_codebook_is_drawn_by_its_own_noise() -> None:
    logits = torch.stack([LOGITS, LOGITS.flip(0)]).expand(3, 2, 5)
    noise = torch.tensor([[0.0, 0.0], [0.999999, 0.0], [0.5, 0.9]])
    drawn = sample(logits, noise, Sampling())
    assert drawn.shape == (3, 2)
    for clip in range(3):
        for codebook in range(2):
            assert drawn[clip, codebook] == sample(logits[clip, codebook], noise[clip, codebook], Sampling())
    assert drawn[:2].tolist() == [[2, 2], [1, 2]]  # the likeliest for 0, the least likely just below 1


# The command


def names_in(folder: Path) -> list[str]:
    """The clips; `generated.jsonl` lists them with their prompts."""
    return sorted(path.name for path in folder.iterdir() if path.name != GENERATED)


@pytest.mark.parametrize(("kind", "channels"), [("text", 1), ("melody-stereo", 2)])
def test_files_have_the_length_and_the_channels_asked_for(
    kind: str, channels: int, checkpoints: Folders, tmp_path: Path, cli: Callable[..., Ran]
) -> None:
    ran = cli("generate", checkpoints(kind), "punk fast", "a waltz", "--output_dir", tmp_path, "--seconds", 0.25)
    assert ran.code == 0, ran.err
    assert names_in(tmp_path) == ["00_punk-fast_seed0_0.wav", "01_a-waltz_seed0_0.wav"]
    for name in names_in(tmp_path):
        info = soundfile.info(tmp_path / name)
        assert (info.channels, info.samplerate) == (channels, SAMPLING_RATE)
        assert info.frames == 12 * 320  # 0.25 s are 12.5 frames of 320 samples; half a frame is rounded to even
        wave = audio.decode(tmp_path / name, SAMPLING_RATE)
        assert np.isfinite(wave).all()
        assert np.abs(wave).max() > 0
    family = "melody model, stereo" if channels == 2 else "text model, mono"
    assert f"{family}, 16000 Hz, on " in ran.out
    assert "2 clips of 0.25 s" in ran.out


@pytest.mark.parametrize("name", ["flac", "ogg", ".WAV"])
def test_formats(name: str, tiny: Path, tmp_path: Path, cli: Callable[..., Ran]) -> None:
    ran = cli("generate", tiny, "punk", "--output_dir", tmp_path, "--format", name, *SHORT)
    assert ran.code == 0, ran.err
    suffix = name.lower().lstrip(".")
    assert names_in(tmp_path) == [f"00_punk_seed0_0.{suffix}"]
    info = soundfile.info(tmp_path / f"00_punk_seed0_0.{suffix}")
    assert (info.format.lower(), info.frames) == (suffix, 5 * 320)


def test_prompts_come_from_the_command_line_and_from_a_file(
    tiny: Path, tmp_path: Path, cli: Callable[..., Ran]
) -> None:
    """Those of the command line first; empty lines and repetitions are left out; any script is a legal prompt."""
    listed = tmp_path / "prompts.txt"
    listed.write_text("\ufeffdub\n\n  ska  \ndub\npunk\n日本\n", encoding="utf-8")
    out = tmp_path / "out"
    ran = cli("generate", tiny, "punk", "--prompts_file", listed, "--output_dir", out, *SHORT)
    assert ran.code == 0, ran.err
    assert names_in(out) == ["00_punk_seed0_0.wav", "01_dub_seed0_0.wav", "02_ska_seed0_0.wav", "03_日本_seed0_0.wav"]
    rows = [json.loads(line) for line in (out / GENERATED).read_text(encoding="utf-8").splitlines()]
    assert {row["file_name"]: row["prompt"] for row in rows} == dict(
        zip(names_in(out), ["punk", "dub", "ska", "日本"], strict=True)
    )


def test_files_are_in_the_order_of_the_prompts(tiny: Path, tmp_path: Path) -> None:
    options = GenerateArguments(
        str(tiny), ["zydeco", "acid"], output_dir=str(tmp_path), seconds=0.02, variations=11, dtype="float32"
    )
    made = generating.generate(options)
    expected = [
        tmp_path / f"{number:02d}_{prompt}_seed0_{variation}.wav"
        for number, prompt in enumerate(("zydeco", "acid"))
        for variation in range(11)
    ]
    assert made.files == expected
    assert made.speed > 0


def test_the_same_seed_gives_the_same_bytes(tiny: Path, tmp_path: Path, cli: Callable[..., Ran]) -> None:
    options_of = {"a": ("--seed", 1), "b": ("--seed", 1, "--batch_size", 1), "c": ("--seed", 2)}
    for name, options in options_of.items():
        ran = cli("generate", tiny, "punk", "dub", "--output_dir", tmp_path / name, *SHORT, *options)
        assert ran.code == 0, ran.err
    first, again, other = (
        [(tmp_path / name / file).read_bytes() for file in names_in(tmp_path / name)] for name in options_of
    )
    assert first == again
    assert all(one != two for one, two in zip(first, other, strict=True))


def test_a_prompt_of_ten_thousand_characters_is_cut_with_a_note(
    tiny: Path, tmp_path: Path, cli: Callable[..., Ran]
) -> None:
    long = "loud guitars " * 770
    ran = cli("generate", tiny, long, "--output_dir", tmp_path, *SHORT)
    assert ran.code == 0, ran.err
    assert f"prompt of {len(long)} characters is cut to what the text encoder reads: 'loud guitars" in ran.out
    (name,) = names_in(tmp_path)
    assert re.fullmatch(r"00_loud-guitars-loud-guitars-loud-guitars-l-[0-9a-f]{8}_seed0_0\.wav", name)


def test_another_prompt_seed_or_variation_has_another_file() -> None:
    pairs = [
        *(("быстрый панк", "медленный блюз"), ("Punk, fast!", "punk fast"), ("🎸🔥", "🔥🎸")),
        *(("loud " * 20, "loud " * 20 + "soft"), ("e\u0301", "\u00e8")),
    ]

    def name(prompt: str, seed: int = 0, variation: int = 0) -> str:
        return file_name(0, prompt, seed, variation, ".wav")

    for one, other in pairs:
        assert name(one) != name(other)
    assert len({name("punk"), name("punk", seed=1), name("punk", variation=1)}) == 3


def test_more_than_the_models_were_trained_on_is_noted(
    tiny: Path, tmp_path: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert TRAINED_SECONDS == 30
    monkeypatch.setattr(generating, "TRAINED_SECONDS", 0.2)  # 30 s take a while
    for seconds, noted in ((0.2, False), (0.22, True)):
        ran = cli("generate", tiny, "punk", "--output_dir", tmp_path, "--seconds", seconds)
        assert ran.code == 0, ran.err
        assert ("is longer than the 0.2 s the models were trained on" in ran.out) == noted


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "no prompt; write it after the model: generate MODEL"),
        (("--prompts_file", "nowhere.txt"), "no file of prompts at nowhere.txt; it holds one prompt per line"),
        (("--prompts_file", "latin.txt"), "latin.txt is not UTF-8 text"),
        (("--prompts_file", "empty.txt"), "no prompt; write it after the model"),
        (("punk", "--format", "mp3"), "--format 'mp3' can't be written; it takes flac, ogg, wav"),
        (("punk", "--seconds", "0"), "--seconds 0 must be above 0"),
        (("punk", "--seconds", "nan"), "--seconds nan must be above 0 and at most 3600"),
        (("punk", "--guidance_scale", "inf"), "--guidance_scale inf must be at least 0 and at most 100"),
        (("punk", "--guidance_scale", "-1"), "--guidance_scale -1 must be at least 0"),
        (("punk", "--seconds", "-3"), "--seconds -3 must be above 0"),
        (("punk", "--variations", "0"), "--variations 0 must be at least 1"),
        (("punk", "--batch_size", "0"), "--batch_size 0 must be at least 1"),
        (("punk", "--top_k", "-1"), "--top_k -1 must be at least 0"),
        (("punk", "--temperature", "-0.5"), "--temperature -0.5 must be at least 0"),
        (("punk", "--dtype", "float8"), "--dtype 'float8' is unknown; it takes auto, float32, bfloat16, float16"),
    ],
)
def test_errors_are_one_line_before_anything_is_written(
    words: tuple[str, ...],
    message: str,
    tiny: Path,
    tmp_path: Path,
    cli: Callable[..., Ran],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    Path("empty.txt").write_text("\n \n")
    ran = cli("generate", tiny, *words, "--output_dir", "out")
    assert ran.code == 1
    assert ran.err.count("\n") == 1
    assert message in ran.err
    assert list(tmp_path.glob("out/*")) == []


def test_a_missing_model_is_an_error(tmp_path: Path, cli: Callable[..., Ran]) -> None:
    ran = cli("generate", tmp_path / "nothing", "punk", "--output_dir", tmp_path / "out")
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert f"no model at '{tmp_path / 'nothing'}'" in ran.err


def test_a_full_fine_tune_generates_its_own_music(tiny: Path, tmp_path: Path, cli: Callable[..., Ran]) -> None:
    audio.write(tmp_path / "song.wav", tone_song(4.0, seed=1), SAMPLING_RATE)
    words = [*train_words(tmp_path / "song.wav", tmp_path / "run", tiny), "--use_lora", "false", "--max_steps", 1]
    words += ["--learning_rate", 0.01, "--save_strategy", "no", "--eval_strategy", "no", "--eval_on_start", "false"]
    ran = cli(*words, "--dtype", "float32")
    assert ran.code == 0, ran.err
    for model, folder in ((tiny, "base"), (tmp_path / "run", "tuned")):
        ran = cli("generate", model, "punk", "--output_dir", tmp_path / folder, *SHORT)
        assert ran.code == 0, ran.err
    assert "loaded " in ran.out
    assert "adapter" not in ran.out.replace(str(tmp_path), "")
    base, tuned = (
        audio.decode(tmp_path / folder / "00_punk_seed0_0.wav", SAMPLING_RATE) for folder in ("base", "tuned")
    )
    assert base.shape == tuned.shape
    assert not np.array_equal(base, tuned)
