"""Strengths and mixes of adapters: exact at 0 and 1, commutative, the same for every type, and only for one base."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Ran, read_checkpoint
from peft import PeftModel
from test_loading import KINDS_OF_ADAPTER, random_adapter

from musicgen_dreamboothing import Generator, UserError
from musicgen_dreamboothing.model.adapter import LoraSettings, add_adapter, save_adapter
from musicgen_dreamboothing.model.loading import load_language_model
from musicgen_dreamboothing.model.strengths import GROUPS, Strength, as_strength, blended, split_strength

CPU = torch.device("cpu")
PUNK, JAZZ = LoraSettings(r=4), LoraSettings(r=6, alpha=9, use_rslora=True)

Folders = Callable[[str], Path]
Cli = Callable[..., Ran]
Weights = dict[str, torch.Tensor]


def adapter_at(folder: Path, base: Path, settings: LoraSettings = PUNK, *, seed: int = 0, std: float = 0.05) -> Path:
    """A random adapter as `train` saves it, with the name of its base."""
    model = random_adapter(base, settings, std)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name or "lora_embedding_A" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * std)
    save_adapter(model, folder)
    config = folder / "adapter_config.json"
    stated = {"base_model_name_or_path": str(base.resolve())}
    config.write_text(json.dumps(json.loads(config.read_text()) | stated))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return adapter_at(root / "punk", tiny), adapter_at(root / "jazz", tiny, JAZZ, seed=1)


def weights_of(generator: Generator) -> Weights:
    return {name: weight.detach().clone() for name, weight in generator.model.named_parameters()}


def mixed(base: Path, *adapters: Any, dtype: str = "float32", **options: Any) -> Generator:
    return Generator(base, adapters=adapters, device="cpu", dtype=dtype, **options)


def same(first: Weights, second: Weights) -> bool:
    return first.keys() == second.keys() and all(torch.equal(weight, second[name]) for name, weight in first.items())


def distance(first: Weights, second: Weights) -> float:
    return float(sum((first[name] - second[name]).square().sum() for name in first) ** 0.5)


def logits(model: Any) -> torch.Tensor:
    """`[B, K, S, V]` of random codes and text states."""
    generator = torch.Generator().manual_seed(2)
    codes = torch.randint(0, 64, (2, model.config.decoder.num_codebooks, 8), generator=generator)
    states = torch.randn(2, 5, model.config.text_encoder.hidden_size, generator=generator)
    with torch.no_grad():
        hidden = model.states(codes, torch.ones(2, 5, dtype=torch.long), torch.tensor([True, False]), states)
        return model.logits(hidden)


# What a strength means


@pytest.mark.parametrize(
    "kind", [kind if kind == "DoRA" else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS_OF_ADAPTER]
)
def test_strength_runs_from_the_base_to_the_adapter_without_a_jump(kind: str, tiny: Path, tmp_path: Path) -> None:
    folder = adapter_at(tmp_path / "punk", tiny, KINDS_OF_ADAPTER[kind])
    base, trained = (weights_of(Generator(model, device="cpu", dtype="float32")) for model in (tiny, folder))
    way = distance(trained, base)
    generator = mixed(tiny, (folder, 0))
    assert same(weights_of(generator), base)
    generator.set_strengths(1)
    assert same(weights_of(generator), trained)
    for strength in (1e-5, 0.5, -1.0, 2.0):
        generator.set_strengths(strength)
        assert distance(weights_of(generator), base) == pytest.approx(abs(strength) * way, rel=1e-2)


def test_zero_is_the_base_in_16_bits_too(tiny: Path, folders: tuple[Path, Path]) -> None:
    base = weights_of(Generator(tiny, device="cpu", dtype="bfloat16"))
    assert same(weights_of(mixed(tiny, *((folder, 0) for folder in folders), dtype="bfloat16")), base)


@pytest.mark.parametrize("kind", ["text", "melody", pytest.param("text-stereo", marks=pytest.mark.slow)])
def test_a_mix_is_that_of_peft(kind: str, checkpoints: Folders, tmp_path: Path) -> None:
    """Its `cat` joins the matrices of both adapters, which is exact; our sum is that of merged weights."""
    base = checkpoints(kind)
    punk, jazz = adapter_at(tmp_path / "punk", base), adapter_at(tmp_path / "jazz", base, JAZZ, seed=1)
    model = PeftModel.from_pretrained(load_language_model(read_checkpoint(base), torch.float32, CPU), str(punk), "punk")
    model.load_adapter(str(jazz), "jazz")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.add_weighted_adapter(["punk", "jazz"], [0.8, -0.3], "mix", combination_type="cat")
    model.set_adapter("mix")
    expected, plain = (
        logits(model.get_base_model()),
        logits(load_language_model(read_checkpoint(base), torch.float32, CPU)),
    )
    ours = logits(mixed(base, f"{punk}:0.8", f"{jazz}:-0.3").model)
    assert (expected - plain).abs().max() > 0.1
    assert (ours - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_the_order_of_adapters_does_not_matter(tiny: Path, folders: tuple[Path, Path], tmp_path: Path) -> None:
    punk, jazz = folders
    dora = adapter_at(tmp_path / "dora", tiny, LoraSettings(use_dora=True), seed=2)
    parts = [(punk, 0.8), (jazz, -0.3), (dora, 0.6)]
    first = weights_of(mixed(tiny, *parts))
    assert same(weights_of(mixed(tiny, *reversed(parts))), first)
    assert same(weights_of(mixed(Path(f"{punk}:0.8"), *parts[1:])), first)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_new_strengths_equal_a_fresh_load(dtype: str, tiny: Path, folders: tuple[Path, Path], tmp_path: Path) -> None:
    punk, jazz = folders
    generator = mixed(tiny, punk, jazz, dtype=dtype)
    before = next(generator.generate(["punk"], seconds=0.3)).codes
    generator.set_strengths("0.5,heads=0", {"attention": -1, "embeddings": 0.25})
    fresh = mixed(tiny, f"{punk}:0.5,heads=0", (jazz, {"attention": -1, "embeddings": 0.25}), dtype=dtype)
    assert same(weights_of(generator), weights_of(fresh))
    clips = [next(one.generate(["punk"], seconds=0.3)).codes for one in (generator, fresh)]
    assert torch.equal(*clips)
    assert not torch.equal(clips[0], before)


def test_a_strength_of_a_text_encoder_changes_its_states(tiny: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = add_adapter(
        load_language_model(read_checkpoint(tiny), torch.float32, CPU, with_text_encoder=True),
        PUNK,
        with_text_encoder=True,
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3)
    save_adapter(model, tmp_path)
    generator = mixed(tiny, (tmp_path, 1))
    (first,) = generator.text_states(["punk"])
    generator.set_strengths(0)
    (second,) = generator.text_states(["punk"])
    (base,) = Generator(tiny, device="cpu").text_states(["punk"])
    assert np.allclose(second, base, atol=1e-5)
    assert not np.allclose(first, base, atol=1e-2)


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_has_its_own_strength(group: str, tiny: Path, folders: tuple[Path, Path]) -> None:
    base = weights_of(Generator(tiny, device="cpu", dtype="float32"))
    found = weights_of(mixed(tiny, f"{folders[0]}:0,{group}=1"))
    changed = {name for name, weight in found.items() if not torch.equal(weight, base[name])}
    assert changed == {name for name in base if GROUPS[group].match(name) and base[name].dim() == 2}
    assert changed


# How strengths are read


@pytest.mark.parametrize(
    ("text", "name", "strength"),
    [
        ("punk", "punk", None),
        ("punk:0.8", "punk", Strength(0.8)),
        ("you/punk:-.3", "you/punk", Strength(-0.3)),
        ("punk:1e-5", "punk", Strength(1e-5)),
        ("runs/a:b:2", "runs/a:b", Strength(2.0)),
        ("punk:attention=0.5,ffn=1", "punk", Strength(1.0, {"attention": 0.5, "ffn": 1.0})),
        ("punk:0.8,heads=0", "punk", Strength(0.8, {"heads": 0.0})),
        (r"C:\adapters\punk", r"C:\adapters\punk", None),
        (r"C:\adapters\punk:0.7", r"C:\adapters\punk", Strength(0.7)),
        ("C:/punk", "C:/punk", None),
        ("hf:you/punk", "hf:you/punk", None),
        ("punk:", "punk:", None),
        ("punk:loud", "punk:loud", None),
        ("punk:nan", "punk:nan", None),
        (":0.5", ":0.5", None),
    ],
)
def test_a_suffix_is_a_strength_only_if_it_reads_as_one(text: str, name: str, strength: Strength | None) -> None:
    assert split_strength(text) == (name, strength)
    assert split_strength(f"{name}:{strength}") == (name, strength) or strength is None


def test_a_folder_with_a_colon_and_a_number_is_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "take:2"
    folder.mkdir()
    assert split_strength(str(folder)) == (str(folder), None)
    assert split_strength(f"{folder}:0.5") == (str(folder), Strength(0.5))


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (4, r"the strength 4 of an adapter must be at least -2 and at most 3"),
        (float("nan"), r"the strength nan"),
        ("loud", r"'loud' is no strength; it takes a number, attention=NUMBER"),
        ("drums=1", r"a strength of 'drums': there is no such group of layers; it takes attention=NUMBER, ffn="),
        ("ffn=1,ffn=2", r"the strength 'ffn=1,ffn=2' names ffn twice"),
    ],
)
def test_an_impossible_strength_is_explained(value: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        as_strength(value)


def test_blended_strengths_add_up_to_one(tiny: Path, folders: tuple[Path, Path]) -> None:
    assert blended([Strength(1.0), Strength(-1.0)]) == [Strength(0.5), Strength(-0.5)]
    assert blended([Strength(3.0), Strength(1.0, {"ffn": 0.0})]) == [
        Strength(0.75, {"ffn": 1.0}),
        Strength(0.25, {"ffn": 0.0}),
    ]
    assert blended([Strength(0.0)]) == [Strength(0.0)]
    punk, jazz = folders
    found = weights_of(mixed(tiny, (punk, 2), (jazz, -2), blend=True))
    assert same(found, weights_of(mixed(tiny, (punk, 0.5), (jazz, -0.5))))


# What does not mix


def test_adapters_of_other_bases_are_refused(
    tiny: Path, checkpoints: Folders, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    melody = adapter_at(tmp_path / "melody", checkpoints("melody"))
    stereo = adapter_at(tmp_path / "stereo", checkpoints("text-stereo"))
    attention = adapter_at(tmp_path / "attention", checkpoints("text-stereo"), LoraSettings(targets="attention"))
    with pytest.raises(
        UserError, match=rf"{melody} was made for .*/melody, and the base here is .*/text;.*--base_model"
    ):
        mixed(tiny, folders[0], melody)
    with pytest.raises(UserError, match=rf"{stereo} has layers for 8 codebooks, but .*/text has 4: mono"):
        mixed(folders[0], stereo)
    with pytest.raises(UserError, match=rf"{attention} was made for .*/text-stereo, and the base here is .*/text"):
        mixed(folders[0], attention)
    with pytest.raises(UserError, match=r"does not fit .*: its weights have other names or sizes"):
        mixed(tiny, melody, base_model=str(tiny))


def test_a_copy_of_the_base_is_the_same_base(tiny: Path, folders: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(tiny, copy := tmp_path / "copy")
    config = json.loads((folders[0] / "adapter_config.json").read_text())
    shutil.copytree(folders[0], moved := tmp_path / "moved")
    expected = weights_of(mixed(tiny, folders[0]))
    assert same(weights_of(mixed(copy, folders[0])), expected)
    (moved / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "facebook/gone"}))
    with pytest.raises(UserError, match=r"was made for facebook/gone.*in two places: --base_model .*/copy"):
        mixed(copy, moved)
    assert same(weights_of(mixed(copy, moved, base_model=str(copy))), expected)


def test_what_is_no_adapter_has_no_strength(tiny: Path, folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no adapter at '.*/text', and only adapters have a strength \(:0\.5\)"):
        Generator(f"{tiny}:0.5", device="cpu")
    with pytest.raises(UserError, match=r"no adapter at '.*nothing': --adapter takes a folder or Hub id"):
        mixed(tiny, tmp_path / "nothing")
    untrained = adapter_at(tmp_path / "untrained", tiny, std=0.0)
    with pytest.raises(UserError, match=r"untrained changes nothing: all its updates are zero"):
        mixed(tiny, folders[0], untrained)
    with pytest.raises(UserError, match=r"3 strengths for 1 adapter: give one each"):
        mixed(tiny, folders[0]).set_strengths(1, 2, 3)
    with pytest.raises(UserError, match=r"given as Generator\(base, adapters="):
        Generator(folders[0], device="cpu").set_strengths(0.5)


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_quantised_weights_take_one_adapter_as_it_is(quantization: str, tiny: Path, folders: tuple[Path, Path]) -> None:
    pytest.importorskip("bitsandbytes")
    told = rf"--quantization {quantization} has one adapter, at full strength.* merge MODEL ADAPTER:STRENGTH"
    with pytest.raises(UserError, match=told):
        mixed(tiny, (folders[0], 0.5), quantization=quantization)
    assert Generator(f"{folders[0]}:1", device="cpu", quantization=quantization).active_layers is not None


# The command line


def test_generate_mixes(tiny: Path, folders: tuple[Path, Path], tmp_path: Path, cli: Cli) -> None:
    punk, jazz = folders
    length = ("--seconds", 0.2, "--output_dir", tmp_path)
    ran = cli("generate", tiny, "--adapter", f"{punk}:0.8", "--adapter", f"{jazz}:-0.3", "a waltz", *length)
    assert ran.code == 0, ran.err
    assert f"adapters {punk}:0.8, {jazz}:-0.3: active in " in ran.out
    assert len(list(tmp_path.glob("*.wav"))) == 1
    ran = cli("generate", f"{punk}:0.7", "a waltz", "--adapter", f"{jazz}:0.7", "--blend", *length)
    assert f"adapters {punk}:0.5, {jazz}:0.5: active in " in ran.out
    ran = cli("generate", f"{punk}:0.7", "a waltz", *length)
    assert f"adapter {punk}:0.7: active in " in ran.out
    ran = cli("generate", tiny, "a waltz", "--adapter", f"{punk}:7", *length)
    assert ran == Ran(1, "", "musicgen-dreamboothing: the strength 7 of an adapter must be at least -2 and at most 3\n")
