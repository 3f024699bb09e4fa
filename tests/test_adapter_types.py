"""Adapters beside LoRA: trained, saved, loaded again, mixed and merged; and LoRA+."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import Ran, read_checkpoint, train_words
from peft import PeftModel
from test_mixing import adapter_at, distance, logits, mixed, same, weights_of
from transformers import AutoModelForTextToWaveform

from musicgen_dreamboothing import Generator, UserError, merge
from musicgen_dreamboothing.model.adapter import LoraSettings, add_adapter, save_adapter
from musicgen_dreamboothing.model.loading import load_language_model
from musicgen_dreamboothing.training.loraplus import raise_rates

CPU = torch.device("cpu")
SLOW = pytest.mark.slow
TYPES = ("loha", "lokr")
ONCE = ("--max_steps", 2, "--eval_strategy", "no", "--eval_on_start", "false", "--save_strategy", "no")

Cli = Callable[..., Ran]
Folders = Callable[[str], Path]


def lycoris_at(folder: Path, base: Path, kind: str) -> Path:
    torch.manual_seed(0)
    model = add_adapter(load_language_model(read_checkpoint(base), torch.float32, CPU), LoraSettings(r=4, kind=kind))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".hada_" in name or ".lokr_" in name:
                weight.normal_(std=0.3)
    save_adapter(model, folder)
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": str(base.resolve())}))
    return folder


@pytest.mark.parametrize("kind", TYPES)
def test_strengths_mixes_and_merges_of_it(kind: str, tiny: Path, tmp_path: Path) -> None:
    folder = lycoris_at(tmp_path / kind, tiny, kind)
    base = weights_of(Generator(tiny, device="cpu", dtype="float32"))
    trained = Generator(folder, device="cpu", dtype="float32")
    assert trained.active_layers is not None
    assert trained.active_layers[0] == trained.active_layers[1] == 25  # all but the four embeddings
    plain = PeftModel.from_pretrained(load_language_model(read_checkpoint(tiny), torch.float32, CPU), str(folder))
    assert (logits(trained.model) - logits(plain.get_base_model())).abs().max() <= 1e-4
    generator = mixed(tiny, (folder, 0))
    assert same(weights_of(generator), base)
    generator.set_strengths(1)
    assert same(weights_of(generator), weights_of(trained))
    for strength in (1e-4, -0.5):
        generator.set_strengths(strength)
        way = distance(weights_of(trained), base)
        assert distance(weights_of(generator), base) == pytest.approx(abs(strength) * way, rel=1e-2)
    punk = adapter_at(tmp_path / "punk", tiny)
    done = merge(model=f"{folder}:0.8", adapters=[f"{punk}:-0.3"], output_dir=str(tmp_path / "merged"))
    expected = mixed(tiny, (punk, -0.3), (folder, 0.8))
    assert same(weights_of(Generator(done.folder, device="cpu", dtype="float32")), weights_of(expected))


@pytest.mark.parametrize(
    ("kind", "family", "dtype"),
    [
        ("loha", "text", "bfloat16"),
        ("lokr", "melody", "float32"),
        pytest.param("lokr", "text", "bfloat16", marks=SLOW),
        pytest.param("dora", "text", "float32", marks=SLOW),
    ],
)
def test_it_is_trained_saved_and_played(
    kind: str, family: str, dtype: str, checkpoints: Folders, songs: Path, tmp_path: Path, cli: Cli
) -> None:
    """The last sample of the training is the clip of `generate`, and plain PEFT loads the adapter."""
    base, run = checkpoints(family), tmp_path / "run"
    sampling = ("--sample_prompts", "punk", "--sample_seconds", 0.2, "--seed", 3, "--sample_at_start", "false")
    words = (*train_words(songs, run, base), *ONCE, "--adapter_type", kind, "--dtype", dtype, *sampling)
    ran = cli(*words, "--learning_rate", 0.01)
    assert ran.code == 0, ran.err
    (sample,) = (run / "samples" / "step_0002").glob("*.wav")
    playing = ("generate", run, "punk", "--seconds", 0.2, "--seed", 3, "--output_dir", tmp_path, "--dtype", dtype)
    assert cli(*playing).code == 0
    (clip,) = tmp_path.glob("*.wav")
    assert np.array_equal(soundfile.read(clip)[0], soundfile.read(sample)[0])
    config = json.loads((run / "adapter_config.json").read_text())
    assert (config["peft_type"], config.get("use_dora", False)) == (
        "LORA" if kind == "dora" else kind.upper(),
        kind == "dora",
    )
    PeftModel.from_pretrained(AutoModelForTextToWaveform.from_pretrained(base), str(run))
    name = {"loha": "LoHa", "lokr": "LoKr", "dora": "DoRA"}[kind]
    assert f"A {name} adapter for [MusicGen]" in (run / "README.md").read_text()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--adapter_type", "loha", "--use_dora", "true"), "--adapter_type loha has rank, alpha and targets only"),
        (("--adapter_type", "lokr", "--quantization", "nf4"), "--quantization nf4 takes LoRA adapters; leave out"),
        (("--adapter_type", "lokr", "--init_adapter", "punk"), "--init_adapter takes LoRA adapters; leave out"),
        (("--adapter_type", "ia3"), "--adapter_type 'ia3' is unknown; it takes lora, dora, loha, lokr"),
    ],
)
def test_what_does_not_go_together_is_refused(
    words: tuple[str, ...], told: str, tiny: Path, tmp_path: Path, cli: Cli
) -> None:
    pytest.importorskip("bitsandbytes")
    ran = cli(*train_words(tmp_path, tmp_path / "run", tiny), *words)
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert told in ran.err


def test_only_lora_is_beside_quantised_weights(tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    folder = lycoris_at(tmp_path / "lokr", tiny, "lokr")
    with pytest.raises(UserError, match=r"--quantization nf4 takes LoRA adapters beside its weights"):
        Generator(folder, device="cpu", quantization="nf4")
    assert Generator(folder, device="cpu", quantization="int8").active_layers == (25, 25)  # merged, then rounded


# LoRA+


def test_only_matrices_b_get_the_higher_rate(tiny: Path) -> None:
    model: Any = add_adapter(load_language_model(read_checkpoint(tiny), torch.float32, CPU), LoraSettings(r=2))
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW([{"params": weights, "weight_decay": 0.1}], lr=1e-3)
    raise_rates(optimizer, model, 16)
    rates = {id(weight): group["lr"] for group in optimizer.param_groups for weight in group["params"]}
    assert len(rates) == len(weights)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.1}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            assert rates[id(weight)] == pytest.approx(1.6e-2 if ".lora_B." in name else 1e-3), name


def test_a_run_with_lora_plus_is_resumed_and_learns_faster(
    tiny: Path, prepared: Path, tmp_path: Path, cli: Cli
) -> None:
    def trained(name: str, *words: object) -> dict[str, torch.Tensor]:
        run = tmp_path / name
        common = (*train_words(prepared, run, tiny), "--lr_scheduler_type", "constant", "--save_steps", 1)
        ran = cli(*common, "--eval_strategy", "no", "--eval_on_start", "false", "--save_strategy", "steps", *words)
        assert ran.code == 0, ran.err
        return weights_of(Generator(run, device="cpu", dtype="float32"))

    base = weights_of(Generator(tiny, device="cpu", dtype="float32"))
    plain = trained("plain", "--max_steps", 2)
    plus = trained("plus", "--max_steps", 2, "--loraplus_lr_ratio", 16)
    assert distance(plus, base) > 4 * distance(plain, base)
    trained("resumed", "--max_steps", 1, "--loraplus_lr_ratio", 16)
    assert same(trained("resumed", "--max_steps", 2, "--loraplus_lr_ratio", 16), plus)


# Optimizers


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("prodigy", "prodigyopt"),
        ("schedule_free_adamw", "schedulefree"),
        ("adamw_torch_8bit", "torchao"),
        ("grokadamw", "grokadamw"),
    ],
)
def test_a_missing_optimizer_names_its_package(name: str, package: str, tiny: Path, tmp_path: Path, cli: Cli) -> None:
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is here")
    ran = cli(*train_words(tmp_path, tmp_path / "run", tiny), "--optim", name)
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert f"pip install {package}" in ran.err


@pytest.mark.parametrize(
    ("package", "words"),
    [
        ("bitsandbytes", ("--optim", "adamw_8bit")),
        (
            "schedulefree",
            ("--optim", "schedule_free_adamw", "--lr_scheduler_type", "constant", "--learning_rate", 1e-2),
        ),
        ("prodigyopt", ("--optim", "prodigy", "--lr_scheduler_type", "constant", "--optim_args", "d0=1e-4,d_coef=2")),
    ],
)
def test_the_optimizers_of_the_docs_train_and_resume(
    package: str, words: tuple[object, ...], tiny: Path, prepared: Path, tmp_path: Path, cli: Cli
) -> None:
    """A run that was saved behind its first update ends with the weights of a run at one go, to the last bit."""
    pytest.importorskip(package)

    def trained(name: str, steps: int) -> dict[str, torch.Tensor]:
        common = (*train_words(prepared, tmp_path / name, tiny), "--max_steps", steps, "--save_strategy", "steps")
        ran = cli(*common, "--save_steps", 1, "--eval_strategy", "no", "--eval_on_start", "false", *words)
        assert ran.code == 0, ran.err
        return weights_of(Generator(tmp_path / name, device="cpu", dtype="float32"))

    whole = trained("whole", 3)
    assert distance(whole, weights_of(Generator(tiny, device="cpu", dtype="float32"))) > 1e-4
    trained("parts", 1)
    assert same(trained("parts", 3), whole)
