"""audiocraft's format, out and in: names and sizes as its builders make them, exact round trips, and safe reading."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import KINDS, Ran, read_checkpoint
from safetensors.torch import load_file, save_file
from transformers import (
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    MusicgenMelodyConfig,
    MusicgenMelodyDecoderConfig,
    MusicgenMelodyForConditionalGeneration,
    T5Config,
)

from musicgen_dreamboothing.arguments import ExportArguments
from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.hub import Source
from musicgen_dreamboothing.model.adapter import LoraSettings, add_adapter, read_adapter, save_adapter
from musicgen_dreamboothing.model.audiocraft.codec import codec_config
from musicgen_dreamboothing.model.audiocraft.names import FFT_SIZE, WINDOW, Architecture, to_audiocraft
from musicgen_dreamboothing.model.audiocraft.package import language_model_state, read_package
from musicgen_dreamboothing.model.checkpoint import Checkpoint, load_checkpoint, load_codec
from musicgen_dreamboothing.model.loading import load_for_generation, load_language_model
from musicgen_dreamboothing.model.saved_adapter import name_base
from musicgen_dreamboothing.sharing.export import export as run_export

Cli = Callable[..., Ran]
CPU = torch.device("cpu")
KEYS = json.loads((Path(__file__).parent / "data" / "audiocraft_keys.json").read_text())


def export(cli: Cli, model: object, folder: Path, *words: object) -> Ran:
    ran = cli("export", model, "--format", "audiocraft", "--output_dir", folder, *words)
    assert ran.code == 0, ran.err
    return ran


def imported(cli: Cli, checkpoint: object, base: Path, folder: Path, *words: object) -> Path:
    ran = cli("import", checkpoint, "--base", base, "--output_dir", folder, *words)
    assert ran.code == 0, ran.err
    return folder


def package(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def same_weights(one: Path, other: Path) -> bool:
    left, right = (load_file(folder / "model.safetensors") for folder in (one, other))
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


def logits(model: Any, checkpoint: Checkpoint) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    codes = torch.randint(0, checkpoint.codebook_size, (1, checkpoint.codebooks, 6), generator=generator)
    states = torch.randn(1, 5, checkpoint.config.text_encoder.hidden_size, generator=generator)
    with torch.inference_mode():
        hidden = model.states(codes, torch.ones(1, 5, dtype=torch.long), torch.ones(1, dtype=torch.bool), states)
        return model.logits(hidden)


@pytest.mark.parametrize("kind", KEYS)
def test_names_and_sizes_are_those_of_audiocrafts_builders(kind: str) -> None:
    codebooks, channels = (8, 2) if kind.startswith("stereo") else (4, 1)
    decoder = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 256, "vocab_size": 2048}
    decoder |= {"num_codebooks": codebooks, "audio_channels": channels, "pad_token_id": 2048, "bos_token_id": 2048}
    text = T5Config(d_model=768, d_ff=8, num_layers=1, num_heads=1, vocab_size=8)
    parts: dict[str, Any] = {"text_encoder": text, "audio_encoder": read_encodec()}
    with torch.device("meta"):
        model: Any = (
            MusicgenMelodyForConditionalGeneration(
                MusicgenMelodyConfig(**parts, decoder=MusicgenMelodyDecoderConfig(**decoder))
            )
            if kind.endswith("melody")
            else MusicgenForConditionalGeneration(MusicgenConfig(**parts, decoder=MusicgenDecoderConfig(**decoder)))
        )
    weights = {name: torch.zeros(()).expand(tensor.shape) for name, tensor in model.state_dict().items()}
    state = to_audiocraft(weights, Architecture.of(Checkpoint(Source("x"), model.config)), 64)
    assert {name: list(tensor.shape) for name, tensor in state.items()} == KEYS[kind]
    if kind.endswith("melody"):
        assert torch.equal(state[WINDOW], torch.hann_window(FFT_SIZE, periodic=True))


def read_encodec() -> Any:
    from transformers import EncodecConfig

    return EncodecConfig(num_filters=4, hidden_size=8, codebook_size=16)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] if kind == "melody" else []) for kind in KINDS]
)
def test_there_and_back_every_bit_is_the_same(
    kind: str, cli: Cli, checkpoints: Callable[[str], Path], tiny: Path, tmp_path: Path
) -> None:
    folder = checkpoints(kind)
    export(cli, folder, tmp_path / "out")
    back = imported(cli, tmp_path / "out", tiny, tmp_path / "back")
    assert same_weights(folder, back)
    before, after = read_checkpoint(folder), read_checkpoint(back)
    assert logits_of(before).equal(logits_of(after))
    wave = torch.randn(1, 1, 8000, generator=torch.Generator().manual_seed(0)) / 3
    codes = [load_codec(checkpoint, CPU).encode(wave).audio_codes for checkpoint in (before, after)]
    assert torch.equal(*codes)
    assert (before.delay, before.sampling_rate) == (after.delay, after.sampling_rate)
    assert getattr(before.config, "chroma_length", 0) == getattr(after.config, "chroma_length", 0)
    if kind == "melody-stereo":
        ran = cli("generate", back, "punk", "--seconds", 0.2, "--output_dir", tmp_path / "music")
        assert ran.code == 0, ran.err


def logits_of(checkpoint: Checkpoint) -> torch.Tensor:
    return logits(load_language_model(checkpoint, torch.float32, CPU), checkpoint)


@pytest.mark.parametrize("kind", ["text-stereo", "melody"])
def test_the_configuration_has_every_key(
    kind: str, cli: Cli, checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    export(cli, checkpoints(kind), tmp_path / "out")
    content = package(tmp_path / "out" / "state_dict.bin")
    assert content["exported"] is True
    settings = yaml.safe_load(content["xp.cfg"])
    model = settings["transformer_lm"]
    expected = {"dim": 48, "num_heads": 2, "num_layers": 2, "hidden_scale": 2, "card": 64, "causal": True}
    expected |= {"activation": "gelu", "norm": "layer_norm", "positional_embedding": "sin", "norm_first": True}
    assert model | expected == model
    assert all(type(model[name]) is int for name in ("dim", "num_heads", "num_layers", "hidden_scale", "n_q", "card"))
    if kind == "melody":
        chroma = settings["conditioners"]["self_wav"]["chroma_stem"]
        assert (chroma["radix2_exp"], chroma["argmax"], chroma["match_len_on_eval"]) == (14, True, True)
        assert settings["fuser"]["prepend"] == ["self_wav", "description"]
        assert settings["fuser"]["cross"] == []
    else:
        assert settings["codebooks_pattern"]["delay"]["delays"] == [0, 0, 1, 1, 2, 2, 3, 3]
        assert settings["interleave_stereo_codebooks"] == {"use": True, "per_timestep": False}
        assert (settings["channels"], settings["compression_model_n_q"], model["n_q"]) == (2, 4, 8)


def test_the_published_codec_is_named_by_its_weights(
    cli: Cli, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = tmp_path / "published"
    published.mkdir()
    prefix = "audio_encoder."
    weights = load_file(tiny / "model.safetensors")
    codec = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    read_checkpoint(tiny).config.audio_encoder.save_pretrained(published)
    save_file(codec, published / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setattr("musicgen_dreamboothing.sharing.export.PUBLISHED_CODEC", str(published))
    export(cli, tiny, tmp_path / "named")
    assert package(tmp_path / "named" / "compression_state_dict.bin")["pretrained"] == str(published)
    export(cli, tiny, tmp_path / "whole", "--codec", "whole")
    whole = package(tmp_path / "whole" / "compression_state_dict.bin")
    assert yaml.safe_load(whole["xp.cfg"])["seanet"]["pad_mode"] == "reflect"
    name = next(iter(codec))
    save_file(codec | {name: codec[name] + 1}, published / "model.safetensors", metadata={"format": "pt"})
    export(cli, tiny, tmp_path / "other")
    assert "best_state" in package(tmp_path / "other" / "compression_state_dict.bin")


@pytest.fixture
def adapter(tiny: Path, tmp_path: Path) -> Path:
    """A trained adapter on the tiny checkpoint."""
    folder, base = tmp_path / "adapter", read_checkpoint(tiny)
    model = add_adapter(load_language_model(base, torch.float32, CPU), LoraSettings(r=4, alpha=4))
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) / 10
    folder.mkdir()
    save_adapter(model, folder)
    name_base(folder / "adapter_config.json", base)
    return folder


def test_an_adapter_is_merged_on_the_way(cli: Cli, tiny: Path, adapter: Path, tmp_path: Path) -> None:
    export(cli, adapter, tmp_path / "out")
    back = read_checkpoint(imported(cli, tmp_path / "out", tiny, tmp_path / "back"))
    base = read_checkpoint(tiny)
    tuned, _ = load_for_generation(base, torch.float32, CPU, adapter=read_adapter(str(adapter)))
    expected = logits(tuned, base)
    assert torch.allclose(logits_of(back), expected, atol=1e-5)
    assert not torch.allclose(logits_of(base), expected, atol=1e-2)


def test_a_smaller_precision(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    export(cli, tiny, tmp_path / "out", "--dtype", "float16")
    state = package(tmp_path / "out" / "state_dict.bin")["best_state"]
    assert {tensor.dtype for tensor in state.values()} == {torch.float16}


def test_the_own_text_encoder_goes_there_and_back(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(tiny, folder)
    weights = load_file(folder / "model.safetensors")
    weights = {name: tensor + 1 if name.startswith("text_encoder.") else tensor for name, tensor in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    export(cli, folder, tmp_path / "out", "--text_encoder", "own")
    settings = yaml.safe_load(package(tmp_path / "out" / "state_dict.bin")["xp.cfg"])
    assert settings["conditioners"]["description"]["t5"]["finetune"] is True
    assert same_weights(folder, imported(cli, tmp_path / "out", tiny, tmp_path / "back"))


def checkpoint_forms(state: dict[str, torch.Tensor], settings: str) -> dict[str, dict[str, Any]]:
    """A state dict as programs around audiocraft save it."""
    apart = {name: tensor for name, tensor in state.items() if name.startswith("condition_provider.")}
    fused = {name.replace("self_attn.in_proj", "self_attn.mha.in_proj"): tensor for name, tensor in state.items()}
    return {
        "training": {"best_state": {"model": state}, "fsdp_best_state": {}, "epoch": 3, "xp.cfg": settings},
        "fsdp": {"best_state": {}, "fsdp_best_state": {"model": state}, "xp.cfg": settings},
        "lightning": {
            "state_dict": {f"model._orig_mod.{name}": tensor for name, tensor in state.items()},
            "xp.cfg": settings,
        },
        "custom attention": {"best_state": fused, "xp.cfg": settings},
        "apart": {
            "best_state": {name: tensor for name, tensor in state.items() if name not in apart},
            "condition_provider": {name.removeprefix("condition_provider."): tensor for name, tensor in apart.items()},
            "xp.cfg": settings,
        },
    }


@pytest.fixture(scope="module")
def exported(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint in audiocraft's format; read it only."""
    folder = tmp_path_factory.mktemp("exported") / "out"
    run_export(ExportArguments(str(tiny), output_dir=str(folder)))
    return folder


@pytest.mark.parametrize("form", ["training", "fsdp", "lightning", "custom attention", "apart"])
def test_every_form_of_a_checkpoint_is_read(form: str, exported: Path, tmp_path: Path) -> None:
    content = package(exported / "state_dict.bin")
    torch.save(checkpoint_forms(content["best_state"], content["xp.cfg"])[form], tmp_path / "checkpoint.th")
    read = read_package(tmp_path / "checkpoint.th")
    state = language_model_state(read.state, tmp_path / "checkpoint.th")
    assert state.keys() == content["best_state"].keys()
    assert all(torch.equal(state[name], content["best_state"][name]) for name in state)
    assert read.settings["transformer_lm"]["num_heads"] == 2


def test_a_plain_state_dict_shows_its_sizes(exported: Path, cli: Cli, tiny: Path, tmp_path: Path) -> None:
    state = package(exported / "state_dict.bin")["best_state"]
    torch.save(state, tmp_path / "lm_final.pt")
    ran = cli("import", tmp_path / "lm_final.pt", "--base", tiny, "--output_dir", tmp_path / "back")
    assert "no xp.cfg with transformer_lm.num_heads, and no published model has its width 48" in ran.err


def test_a_training_checkpoint_of_omegaconf(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    omegaconf = pytest.importorskip("omegaconf")
    export(cli, tiny, tmp_path / "out")
    content = package(tmp_path / "out" / "state_dict.bin")
    settings = omegaconf.OmegaConf.create(content["xp.cfg"])
    torch.save({"best_state": {"model": content["best_state"]}, "xp.cfg": settings}, tmp_path / "checkpoint.th")
    back = imported(cli, tmp_path / "checkpoint.th", tiny, tmp_path / "back")
    assert same_weights(tiny, back)


class Evil:
    """Would make a folder where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("is_zip", [True, False])
def test_code_in_a_checkpoint_is_named_and_not_run(is_zip: bool, cli: Cli, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "state_dict.bin"
    content = {"best_state": {"emb.0.weight": torch.zeros(2, 2)}, "xp.cfg": Evil(tmp_path / "made")}
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    ran = cli("import", path, "--base", tiny, "--output_dir", tmp_path / "back")
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert ".mkdir, and a pickle with more than tensors could run any program; nothing of it was executed" in ran.err
    assert not (tmp_path / "made").exists()
    assert not (tmp_path / "back").exists()


def test_a_bare_pickle_is_refused(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(pickle.dumps(Evil(tmp_path / "made")))
    ran = cli("import", path, "--base", tiny, "--output_dir", tmp_path / "back")
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lm_model": "transformer_lm_magnet"}, "lm_model is 'transformer_lm_magnet'"),
        ({"sample_rate": 44100}, "is for 44100 Hz and the codec for 16000 Hz"),
        ({"codebooks_pattern": {"modeling": "delay", "delay": {"delays": [0, 0, 0, 0]}}}, "MusicGen delays them by"),
        ({"fuser": {"cross_attention_pos_emb": True}}, "fuser.cross_attention_pos_emb is True"),
    ],
)
def test_models_of_another_kind_are_refused(
    change: dict[str, Any], message: str, exported: Path, cli: Cli, tiny: Path, tmp_path: Path
) -> None:
    shutil.copytree(exported, tmp_path / "out")
    path = tmp_path / "out" / "state_dict.bin"
    content = package(path)
    torch.save(content | {"xp.cfg": yaml.safe_dump(yaml.safe_load(content["xp.cfg"]) | change)}, path)
    ran = cli("import", tmp_path / "out", "--base", tiny, "--output_dir", tmp_path / "back")
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert message in ran.err


def test_another_folder_is_not_overwritten(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    for words in (("export", tiny), ("import", tiny / "model.safetensors")):
        ran = cli(*words, "--output_dir", tmp_path / "mine")
        assert ran.code == 1
        assert "holds something else" in ran.err
    assert (tmp_path / "mine" / "notes.txt").exists()


def test_interpolations_of_a_codecs_configuration_are_resolved() -> None:
    from musicgen_dreamboothing.model.audiocraft.config import template

    settings = template("codec") | {"sample_rate": 16000}
    settings["encodec"] |= {"sample_rate": "${sample_rate}", "channels": "${channels}", "causal": False}
    settings["seanet"] |= {"causal": "${encodec.causal}", "channels": "${channels}", "ratios": [8, 5, 4, 2]}
    config = codec_config(settings)
    assert (config.sampling_rate, config.hop_length, config.use_causal_conv) == (16000, 320, False)
    assert config.num_quantizers == 4
    del settings["rvq"]["n_q"]
    with pytest.raises(UserError, match="lacks 'n_q'"):
        codec_config(settings)


def test_a_checkpoint_with_another_text_encoder_and_codec(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    """AudioGen: its own codec, and a wider T5 than that of the base."""
    wide = tmp_path / "wide"
    shutil.copytree(tiny, wide)
    config = load_checkpoint(Source(str(tiny))).config.text_encoder
    config.d_model, config.d_ff = 40, 24
    from transformers import T5EncoderModel

    T5EncoderModel(config).save_pretrained(wide / "t5")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny / name, wide / "t5" / name)
    export(cli, tiny, tmp_path / "out")
    path = tmp_path / "out" / "state_dict.bin"
    content = package(path)
    name = "condition_provider.conditioners.description.output_proj.weight"
    content["best_state"][name] = torch.randn(48, 40)
    torch.save(content, path)
    ran = cli("import", tmp_path / "out", "--base", tiny, "--output_dir", tmp_path / "back")
    assert "the text encoder t5-base cannot be read" in ran.err
    back = imported(cli, tmp_path / "out", tiny, tmp_path / "back", "--text_encoder", wide / "t5")
    assert read_checkpoint(back).config.text_encoder.hidden_size == 40
    ran = cli("generate", back, "rain", "--seconds", 0.2, "--output_dir", tmp_path / "music")
    assert ran.code == 0, ran.err
