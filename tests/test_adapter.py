"""Adapters sit where they say, compute as they say, and make the same music in plain transformers and PEFT."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import KINDS, Ran, read_checkpoint, tone_song, train_words
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from random_checkpoint import SAMPLING_RATE
from safetensors.torch import load_file, save_file
from torch import nn

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.cli import main
from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.generation.generator import Generator
from musicgen_dreamboothing.generation.guidance import Sampling
from musicgen_dreamboothing.model import adapter
from musicgen_dreamboothing.model.adapter import (
    LoraSettings,
    add_adapter,
    read_adapter,
    save_adapter,
    target_pattern,
)
from musicgen_dreamboothing.model.delay import training_steps
from musicgen_dreamboothing.model.loading import load_for_generation, load_language_model
from musicgen_dreamboothing.training.collator import Collator

CPU = torch.device("cpu")
DEFAULT = LoraSettings()
PROMPTS = ["80s punk", "a slow waltz for two guitars"]
GREEDY = Sampling(guidance_scale=3.0, temperature=0)
FRAMES = 12
WEIGHTS = "adapter_model.safetensors"
LAYER = r"decoder\.model\.decoder\.layers\.\d\."

Folders = Callable[[str], Path]


def language_model(folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    return load_language_model(read_checkpoint(folder), dtype, CPU, **options)


def adapted(folder: Path, settings: LoraSettings = DEFAULT, dtype: torch.dtype = torch.float32) -> PeftModel:
    """A model with an adapter, the same for the same settings."""
    model = language_model(folder, dtype)
    torch.manual_seed(0)
    return add_adapter(model, settings)


def stir(model: nn.Module) -> None:
    """Gives the matrices that begin at zero random values, so that the adapter changes something."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name or "lora_embedding_A" in name:
                weight.normal_(std=0.05)


def names_of(model: nn.Module) -> set[str]:
    """Full names of the adapted layers in the base model."""
    return {
        name.removeprefix("base_model.model.") for name, layer in model.named_modules() if isinstance(layer, LoraLayer)
    }


def batch(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = read_checkpoint(folder)
    rng = np.random.default_rng(0)
    pieces = []
    for length in (5, 9):
        codes = torch.from_numpy(rng.integers(0, checkpoint.codebook_size, (checkpoint.codebooks, 3 * length)))
        inputs, labels = training_steps(codes, checkpoint.delay, checkpoint.start_token_id)
        states = rng.standard_normal((length, checkpoint.config.text_encoder.hidden_size)).astype(np.float16)
        pieces.append({"codes": inputs, "labels": labels, "text_states": states, "keep_caption": True})
    return Collator(checkpoint.pad_token_id)(pieces)


def loss_of(model: nn.Module, folder: Path) -> torch.Tensor:
    outputs = model(**batch(folder))
    return (outputs.nll.sum(0) / outputs.count.sum(0)).mean()


def played(base: Path, folder: Path, **options: Any) -> tuple[Any, Any]:
    """The model that plays a saved adapter, and its active layers."""
    return load_for_generation(read_checkpoint(base), torch.float32, CPU, adapter=read_adapter(str(folder)), **options)


def saved(model: PeftModel, folder: Path) -> Path:
    save_adapter(model, folder)
    return folder


# Where it sits


@pytest.mark.parametrize("kind", KINDS)
def test_by_default_every_matrix_of_the_language_model_is_adapted(kind: str, checkpoints: Folders) -> None:
    model = language_model(checkpoints(kind))
    matrices = {name for name, layer in model.named_modules() if isinstance(layer, nn.Linear | nn.Embedding)}
    attention = {name for name in matrices if "_attn." in name}
    codebooks = read_checkpoint(checkpoints(kind)).codebooks
    expected = {
        *(f"decoder.lm_heads.{number}" for number in range(codebooks)),
        *(f"decoder.model.decoder.embed_tokens.{number}" for number in range(codebooks)),
        *(f"decoder.model.decoder.layers.{layer}.fc{number}" for layer in (0, 1) for number in (1, 2)),
        *({"enc_to_dec_proj", "audio_enc_to_dec_proj"} if "melody" in kind else {"enc_to_dec_proj"}),
    }
    assert len(attention) == (8 if "melody" in kind else 16)
    assert matrices == attention | expected
    assert names_of(add_adapter(model, LoraSettings())) == matrices
    assert names_of(add_adapter(language_model(checkpoints(kind)), LoraSettings(targets="attention"))) == attention


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (r".*\.fc1", {f"decoder.model.decoder.layers.{layer}.fc1" for layer in (0, 1)}),
        (r"decoder\.lm_heads\.[02]", {"decoder.lm_heads.0", "decoder.lm_heads.2"}),
        ("enc_to_dec_proj", {"enc_to_dec_proj"}),
        (LAYER + r"self_attn\.q_proj", {f"decoder.model.decoder.layers.{layer}.self_attn.q_proj" for layer in (0, 1)}),
    ],
)
def test_a_regular_expression_names_layers(pattern: str, expected: set[str], tiny: Path) -> None:
    assert target_pattern(pattern) == pattern
    assert names_of(adapted(tiny, LoraSettings(targets=pattern))) == expected


def test_the_text_encoder_is_adapted_when_it_is_trained(tiny: Path) -> None:
    model = language_model(tiny, with_text_encoder=True)
    linears = {name for name, layer in model.text_encoder.named_modules() if isinstance(layer, nn.Linear)}
    wrapped = add_adapter(model, LoraSettings(), with_text_encoder=True)
    assert {name for name in names_of(wrapped) if name.startswith("text_encoder.")} == {
        f"text_encoder.{name}" for name in linears
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (LoraSettings(targets="everything"), "everything not found.*--lora_targets takes all, attention, or a regular"),
        (LoraSettings(targets="(unclosed"), "no regular expression: .*unterminated subpattern"),
        (LoraSettings(targets=r".*self_attn"), "is not supported.*--lora_targets takes"),
        (LoraSettings(init="eva"), "--lora_init 'eva' is unknown; it takes default, gaussian.* olora, pissa"),
        (LoraSettings(init="pissa_niter_0"), "--lora_init 'pissa_niter_0' is unknown"),
        (LoraSettings(init="olora", use_dora=True), "--lora_init olora changes the base.* --use_dora true needs"),
        (LoraSettings(init="orthogonal", r=3), "rank to be even, got 3"),
        (LoraSettings(r=0), "positive integer value but the value passed is 0"),
    ],
)
def test_an_adapter_that_cannot_be_made_is_an_error_of_one_line(
    settings: LoraSettings, message: str, tiny: Path
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        add_adapter(language_model(tiny), settings)
    assert "\n" not in str(caught.value)


# How it computes


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("text-stereo", LoraSettings()),
        ("melody", LoraSettings(use_dora=True)),
        ("melody", LoraSettings(use_rslora=True, alpha=32)),
        ("text", LoraSettings(init="gaussian")),
        ("text", LoraSettings(init="orthogonal", r=4)),
        ("melody", LoraSettings(dropout=0.1, targets="attention")),
        ("text", LoraSettings(init="pissa", r=4)),
        ("melody", LoraSettings(init="pissa_niter_4", r=4, alpha=8)),
        ("text", LoraSettings(init="olora", use_rslora=True, r=4)),
    ],
    ids=[
        *("default", "dora", "rslora", "gaussian", "orthogonal", "dropout"),
        *("pissa", "melody-pissa-fast", "olora-rslora"),
    ],
)
def test_every_variant_learns_and_comes_back_from_disk(
    kind: str, settings: LoraSettings, checkpoints: Folders, tmp_path: Path
) -> None:
    folder = checkpoints(kind)
    model = adapted(folder, settings)
    untouched = loss_of(language_model(folder), folder).item()
    assert loss_of(model.eval(), folder).item() == pytest.approx(untouched, abs=1e-4)  # it begins as the base
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-2)
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(model, folder).backward()
        optimizer.step()
    learned = loss_of(model.eval(), folder).item()
    assert learned < untouched - 0.01
    loaded, active = played(folder, saved(model, tmp_path))
    assert loss_of(loaded, folder).item() == pytest.approx(learned, abs=1e-4)
    assert active == (len(names_of(model)),) * 2


@pytest.mark.parametrize("kind", ["text-stereo", "melody"])
def test_computing_in_the_bases_precision_equals_peft(kind: str, checkpoints: Folders) -> None:
    folder = checkpoints(kind)
    ours = adapted(folder)
    torch.manual_seed(0)
    config = LoraConfig(r=16, lora_alpha=16, target_modules=target_pattern("all"))
    theirs = get_peft_model(language_model(folder), config)
    for model in (ours, theirs):
        stir(model)
        loss_of(model, folder).backward()
    assert loss_of(ours, folder).item() == pytest.approx(loss_of(theirs, folder).item(), abs=1e-6)
    gradients = {name: weight.grad for name, weight in theirs.named_parameters() if weight.requires_grad}
    for name, weight in ours.named_parameters():
        if weight.requires_grad:
            assert torch.allclose(weight.grad, gradients[name], atol=1e-6), name


@pytest.mark.parametrize("kind", ["text", "melody"])
def test_on_a_16_bit_base_weights_are_fp32_and_arithmetic_is_not(kind: str, checkpoints: Folders) -> None:
    folder = checkpoints(kind)
    model = adapted(folder, dtype=torch.bfloat16)
    stir(model)
    seen: set[torch.dtype] = set()
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(lambda _, inputs, output: seen.update((inputs[0].dtype, output.dtype)))
        if "lora_" in name:
            assert all(weight.dtype == torch.float32 for weight in layer.parameters(recurse=False)), name
    base = [weight for name, weight in model.named_parameters() if "lora_" not in name]
    assert {weight.dtype for weight in base} == {torch.bfloat16}
    loss = loss_of(model, folder)
    assert seen == {torch.bfloat16}
    loss.backward()
    gradients = [weight.grad for weight in model.parameters() if weight.requires_grad]
    assert {gradient.dtype for gradient in gradients} == {torch.float32}
    full = adapted(folder)
    stir(full)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(loss_of(full, folder).item(), abs=0.02)


# Whether it does anything, and on which base


def test_an_adapter_that_changes_nothing_is_refused(tiny: Path, tmp_path: Path) -> None:
    for number, init in enumerate(("default", "orthogonal")):  # the latter has no zeros: its product is zero
        fresh = adapted(tiny, LoraSettings(r=4, init=init))
        assert adapter.count_active(fresh)[0] == 0
        folder = saved(fresh, tmp_path / str(number))
        with pytest.raises(UserError, match=r"changes nothing: all its updates are zero. Was it trained\?"):
            played(tiny, folder)


def test_one_active_layer_counts(tiny: Path) -> None:
    model = adapted(tiny)
    total = len(names_of(model))
    assert adapter.count_active(model) == (0, total)
    stir(model.base_model.model.decoder.lm_heads[0])
    assert adapter.count_active(model) == (1, total)


@pytest.mark.parametrize(
    ("trained_on", "put_on"),
    [("text", "melody"), ("melody", "text"), ("text", "text-stereo")],
)
def test_an_adapter_does_not_go_on_another_kind_of_base(
    trained_on: str, put_on: str, checkpoints: Folders, tmp_path: Path
) -> None:
    """Their layers share names and sizes: half an adapter would go on without a word."""
    model = adapted(checkpoints(trained_on))
    stir(model)
    folder = saved(model, tmp_path)
    with pytest.raises(UserError, match=r"does not fit .*--base_model"):
        played(checkpoints(put_on), folder)


def test_an_adapter_does_not_go_on_a_base_of_another_size(tiny: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny, other)
    checkpoint = read_checkpoint(tiny)
    checkpoint.config.decoder.hidden_size = 64
    checkpoint.model_class(checkpoint.config).save_pretrained(other)
    model = adapted(tiny)
    stir(model)
    with pytest.raises(UserError, match=r"does not fit .*other: its weights have other names or sizes.*--base_model"):
        played(other, saved(model, tmp_path / "adapter"))


def test_a_folder_without_an_adapter_is_not_one(tiny: Path, tmp_path: Path) -> None:
    assert adapter.adapter_config(str(tiny)) is None
    assert adapter.adapter_config(str(tmp_path / "nowhere")) is None


# From training to music, here and with plain transformers and PEFT


@pytest.fixture(scope="module")
def runs(checkpoints: Folders, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the folder of a short training by the command line: of a kind, or of `text` with its text encoder."""
    root = tmp_path_factory.mktemp("runs")
    audio.write(root / "song.wav", tone_song(4.0, seed=1), SAMPLING_RATE)

    def folder(name: str) -> Path:
        path, kind = root / name, name.removesuffix("+encoder")
        if not path.exists():
            words = train_words(root / "song.wav", path, checkpoints(kind))
            words += ["--learning_rate", 0.05, "--dtype", "float32", "--save_strategy", "no", "--max_steps", 2]
            words += ["--eval_strategy", "no", "--eval_on_start", "false"]
            words += ["--freeze_text_encoder", str(kind == name).lower()]
            assert main([str(word) for word in words]) == 0
        return path

    return folder


# What the README shows, but greedy, in fp32, and with the codes kept. A melody processor would need torchaudio.
PLAIN = """
import sys
import numpy, torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForTextToWaveform, AutoProcessor, AutoTokenizer

for repo_id, prompts in zip(sys.argv[2::2], sys.argv[3::2]):
    config = PeftConfig.from_pretrained(repo_id)
    model = AutoModelForTextToWaveform.from_pretrained(config.base_model_name_or_path, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, repo_id)
    codes, decode = [], model.audio_encoder.decode
    model.base_model.model.audio_encoder.decode = lambda ids, **kw: codes.append(ids[0]) or decode(ids, **kw)
    is_melody = model.config.model_type == "musicgen_melody"
    processor = (AutoTokenizer if is_melody else AutoProcessor).from_pretrained(repo_id)
    waves, steps = [], int(sys.argv[1]) + 3
    batches = [[prompt] for prompt in prompts.split("|")] if is_melody else [prompts.split("|")]
    for batch in batches:
        inputs = processor(text=batch, padding=True, return_tensors="pt")
        waves.append(model.generate(**inputs, do_sample=False, guidance_scale=3, max_new_tokens=steps))
    sides = model.config.decoder.audio_channels
    codes = [torch.stack(codes[first : first + sides], dim=2).flatten(1, 2) for first in range(0, len(codes), sides)]
    numpy.savez(repo_id + "/plain.npz", codes=torch.cat(codes).numpy(), waves=torch.cat(waves).numpy())
assert "musicgen_dreamboothing" not in sys.modules
"""


def greedy(model: Path, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Codes and waves of `PROMPTS` by our own generator."""
    generator = Generator(model, device="cpu", dtype="float32", **options)
    seconds = FRAMES / generator.checkpoint.frame_rate
    clips = list(generator.generate(PROMPTS, seconds=seconds, sampling=GREEDY, progress=False))
    clips.sort(key=lambda clip: PROMPTS.index(clip.prompt))
    return np.stack([clip.codes.numpy() for clip in clips]), np.stack([clip.wave for clip in clips])


def test_plain_transformers_and_peft_make_the_same_music(runs: Callable[[str], Path], tiny: Path) -> None:
    names = ["text", "melody-stereo", "text+encoder"]
    words = [word for name in names for word in (str(runs(name)), "|".join(PROMPTS))]
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(FRAMES), *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name in names:
        codes, waves = greedy(runs(name))
        plain = np.load(runs(name) / "plain.npz")
        assert (plain["codes"] == codes).all(), name
        between_prompts = np.abs(waves[0] - waves[1]).max()  # the waves of the tiny codec are quiet
        assert np.abs(plain["waves"] - waves).max() < 0.1 * between_prompts, name
        if name in ("text", "text+encoder"):
            assert (codes != greedy(tiny)[0]).mean() > 0.1, name


def test_a_generator_counts_active_layers(runs: Callable[[str], Path], tiny: Path) -> None:
    layers = len(names_of(add_adapter(language_model(tiny), LoraSettings())))
    assert Generator(runs("text"), device="cpu").active_layers == (layers, layers)
    with_encoder = Generator(runs("text+encoder"), device="cpu").active_layers
    assert with_encoder is not None
    assert with_encoder[0] == with_encoder[1] > layers
    assert Generator(tiny, device="cpu").active_layers is None


def test_base_model_names_a_base_that_was_moved(
    runs: Callable[[str], Path], checkpoints: Folders, tmp_path: Path
) -> None:
    run, base = tmp_path / "run", tmp_path / "new place"
    shutil.copytree(runs("text"), run)
    shutil.copytree(checkpoints("text"), base)
    config = json.loads((run / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "/old/place"
    (run / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"needs its base: no model at '/old/place'.*name the base with --base_model"):
        Generator(run, device="cpu")
    assert (greedy(run, base_model=str(base))[0] == greedy(runs("text"))[0]).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_trained_text_encoder_works_in_16_bits(dtype: str, runs: Callable[[str], Path]) -> None:
    generator = Generator(runs("text+encoder"), device="cpu", dtype=dtype)
    (clip,) = generator.generate(["punk"], seconds=0.1, progress=False)
    assert np.isfinite(clip.wave).all()


def test_a_run_names_its_base_by_its_full_path(runs: Callable[[str], Path], tiny: Path) -> None:
    config = json.loads((runs("text") / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny.resolve())
    assert config["auto_mapping"]["base_model_class"] == "MusicgenForConditionalGeneration"


def test_zeros_in_a_saved_adapter_are_refused_by_the_command_line(
    runs: Callable[[str], Path], tmp_path: Path, cli: Callable[..., Ran]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs("text"), run)
    save_file({name: torch.zeros_like(weight) for name, weight in load_file(run / WEIGHTS).items()}, run / WEIGHTS)
    ran = cli("generate", run, "punk", "--output_dir", tmp_path / "out")
    assert ran.code == 1
    assert ran.err.count("\n") == 1
    assert "changes nothing: all its updates are zero" in ran.err


def test_an_adapter_on_the_wrong_base_is_refused_by_the_command_line(
    runs: Callable[[str], Path], checkpoints: Folders, tmp_path: Path, cli: Callable[..., Ran]
) -> None:
    out = ("--output_dir", tmp_path / "out")
    ran = cli("generate", runs("text"), "punk", "--base_model", checkpoints("melody"), *out)
    assert ran.code == 1
    assert ran.err.count("\n") == 1
    assert "does not fit" in ran.err


def test_small_updates_survive_in_a_16_bit_base(tiny: Path, tmp_path: Path) -> None:
    """Merged in bf16 arithmetic, half of an update of this size would be rounded away."""
    model = add_adapter(load_language_model(read_checkpoint(tiny), torch.float32, CPU), LoraSettings())
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                torch.manual_seed(len(name))
                weight.normal_(std=0.03)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    exact = model.merge_and_unload().state_dict()
    merged = Generator(tmp_path, dtype="bfloat16", device="cpu")._model.state_dict()
    for name in ("decoder.model.decoder.layers.0.fc1.weight", "decoder.lm_heads.3.weight", "enc_to_dec_proj.weight"):
        assert torch.equal(merged[name], exact[name].to(torch.bfloat16)), name
