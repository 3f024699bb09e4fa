"""`warm-start`: a stereo base that is the mono checkpoint where both sides are equal, and that everything loads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import SAMPLING_RATE, Ran, read_checkpoint, tone_song, train_words
from layouts import Layout, write_layout
from safetensors.torch import load_file, save_file
from transformers import AutoModelForTextToWaveform, AutoProcessor

from musicgen_dreamboothing import Generator, UserError, audio, warm_start
from musicgen_dreamboothing.hub import Source
from musicgen_dreamboothing.model import stereo
from musicgen_dreamboothing.model.loading import load_language_model
from musicgen_dreamboothing.model.weight_files import open_weights
from musicgen_dreamboothing.training.warm_start import _check_base

Cli = Callable[..., Ran]
Folders = Callable[[str], Path]
CPU = torch.device("cpu")
FAMILIES = ("text", "melody")
FRAMES = 12


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory, checkpoints: Folders) -> Folders:
    """The stereo base of a tiny checkpoint of one family, made once."""
    root = tmp_path_factory.mktemp("bases")

    def folder(family: str) -> Path:
        path = root / family
        if not path.exists():
            assert warm_start(base=str(checkpoints(family)), output_dir=str(path)).folder == path
        return path

    return folder


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: weight[...] for name, weight in open_weights(str(folder), {}, lambda name: name, convert=False).items()
    }


def logits(folder: Path, codes: torch.Tensor) -> torch.Tensor:
    """The logits `[B, K, S, V]` of codes `[B, K, S]` for two captions, one of which is dropped."""
    model: Any = load_language_model(read_checkpoint(folder), torch.float32, CPU)
    width = model.config.text_encoder.hidden_size
    states = torch.randn(2, 5, width, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    with torch.no_grad():
        return model.logits(model.states(codes, mask, torch.tensor([True, False]), states))


def both_sides(codes: torch.Tensor) -> torch.Tensor:
    """Codes `[B, K, S]` of mono -> `[B, 2 K, S]` with equal sides."""
    return codes.repeat_interleave(2, dim=1)


def random_codes() -> torch.Tensor:
    return torch.randint(0, 65, (2, 4, FRAMES), generator=torch.Generator().manual_seed(0))  # with the start code


@pytest.mark.parametrize("family", FAMILIES)
def test_both_sides_have_the_logits_of_the_mono_model(family: str, checkpoints: Folders, bases: Folders) -> None:
    codes = random_codes()
    mono, both = logits(checkpoints(family), codes), logits(bases(family), both_sides(codes))
    assert both.shape == (2, 8, FRAMES, 64)
    assert (both - both_sides(mono.flatten(2)).unflatten(2, mono.shape[2:])).abs().max() <= 1e-4
    assert mono.std() > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_own_classes_load_and_play_it(family: str, checkpoints: Folders, bases: Folders) -> None:
    mono, both = (
        AutoModelForTextToWaveform.from_pretrained(folder).eval() for folder in (checkpoints(family), bases(family))
    )
    assert type(both) is type(mono)
    codes = random_codes()[:1]
    prompt = {"input_ids": torch.tensor([[5, 9, 1]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    with torch.no_grad():
        one = mono(**prompt, decoder_input_ids=codes[0]).logits
        two = both(**prompt, decoder_input_ids=both_sides(codes)[0]).logits
    assert (two - one.repeat_interleave(2, dim=0)).abs().max() <= 1e-4
    wave = both.generate(**prompt, do_sample=True, guidance_scale=3, max_new_tokens=10)
    assert wave.shape[:2] == (1, 2)
    assert torch.isfinite(wave).all()
    assert not torch.equal(wave[0, 0], wave[0, 1])  # each side is drawn by itself


@pytest.mark.parametrize(("variant", "scale"), [("exact", 0.5), ("meta", 1.0)])
def test_heads_are_copied_and_embeddings_scaled(variant: str, scale: float, tiny: Path, tmp_path: Path) -> None:
    warm_start(base=str(tiny), output_dir=str(tmp_path / "base"), variant=variant)
    mono, both = weights_in(tiny), weights_in(tmp_path / "base")
    assert len(both) == len(mono) + 8
    for book in range(8):
        head, embedding = "decoder.lm_heads.{}.weight", "decoder.model.decoder.embed_tokens.{}.weight"
        assert torch.equal(both.pop(head.format(book)), mono[head.format(book // 2)])
        assert torch.equal(both.pop(embedding.format(book)), mono[embedding.format(book // 2)] * scale)
    assert all(torch.equal(weight, mono[name]) for name, weight in both.items())


PUBLISHED = [
    Layout("text", "4.31", "absent", "weight_g", "present", "bin shards", "float16", "spiece.model", "both"),
    Layout("melody", "4.41", "unflagged", weights="bin of 2019", dtype="float16", embedding="embed_tokens"),
]


@pytest.mark.parametrize("layout", PUBLISHED, ids=lambda layout: layout.label)
def test_published_files_keep_their_precision(layout: Layout, checkpoints: Folders, tmp_path: Path) -> None:
    name, _ = write_layout(layout, checkpoints(layout.kind), tmp_path)
    folder = tmp_path / "base"
    warm_start(base=name, output_dir=str(folder))
    assert {weight.dtype for weight in weights_in(folder).values()} == {torch.float16}
    checkpoint = read_checkpoint(folder)
    assert (checkpoint.codebooks, checkpoint.audio_channels, checkpoint.pad_token_id) == (8, 2, 64)
    (clip,) = Generator(folder).generate(["punk"], seconds=0.2, progress=False)
    assert clip.wave.shape[0] == 2
    model = AutoModelForTextToWaveform.from_pretrained(folder, dtype=torch.float32)
    assert (model.generation_config.guidance_scale, model.generation_config.decoder_start_token_id) == (3.0, 64)
    extractor = json.loads((folder / "preprocessor_config.json").read_text()) if layout.kind == "melody" else None
    assert extractor is None or extractor["feature_size"] == 12  # chroma, not channels


@pytest.mark.parametrize("file", ["processor_config.json", "preprocessor_config.json"])
def test_the_processor_takes_stereo(file: str, tiny: Path, tmp_path: Path) -> None:
    """As transformers 5 writes it, and 4 did."""
    base = shutil.copytree(tiny, tmp_path / "mono")
    if file == "preprocessor_config.json":
        content = json.loads((base / "processor_config.json").read_text())
        (base / "processor_config.json").unlink()
        (base / file).write_text(json.dumps({**content["feature_extractor"], "processor_class": "MusicgenProcessor"}))
    warm_start(base=str(base), output_dir=str(tmp_path / "base"))
    processor = AutoProcessor.from_pretrained(tmp_path / "base")
    assert processor.feature_extractor.feature_size == 2
    inputs = processor(audio=np.zeros((2, 800)), sampling_rate=16_000, text=["punk"], return_tensors="pt")
    assert inputs["input_values"].shape == (1, 2, 800)


def test_large_checkpoints_are_written_in_shards(tiny: Path, bases: Folders, tmp_path: Path) -> None:
    stereo.write_stereo_checkpoint(read_checkpoint(tiny), tmp_path, embedding_scale=0.5, shard_bytes=600_000)
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 3
    assert shards[0].name == f"model-00001-of-{len(shards):05}.safetensors"
    assert all(path.stat().st_size < 620_000 for path in shards)
    whole, parts = weights_in(bases("text")), weights_in(tmp_path)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(weight, parts[name]) for name, weight in whole.items())
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(weight.nbytes for weight in whole.values())
    AutoModelForTextToWaveform.from_pretrained(tmp_path)


# What is refused, and what a second call does


def test_the_same_command_finds_it_finished_and_another_replaces_it(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    words = ("warm-start", tiny, "--output_dir", tmp_path / "base")
    ran = cli(*words)
    assert ran.code == 0, ran.err
    assert f"Saved in {tmp_path / 'base'}\n" in ran.out
    written = (tmp_path / "base" / "model.safetensors").stat().st_mtime_ns
    assert f"{tmp_path / 'base'} already holds this stereo base\n" in cli(*words).out
    assert (tmp_path / "base" / "model.safetensors").stat().st_mtime_ns == written
    assert cli(*words, "--variant", "meta").code == 0
    assert stereo.read_origin(tmp_path / "base") == stereo.Origin("text", read_checkpoint(tiny).identity, "meta")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_a_folder_of_something_else_is_refused(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    ran = cli("warm-start", tiny, "--output_dir", tmp_path)
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert f"{tmp_path} holds something else (it has no valid warm_start.json); choose another" in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_file_is_never_replaced(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "song.wav").write_bytes(b"mine")
    ran = cli("warm-start", tiny, "--output_dir", tmp_path / "song.wav")
    assert ran.code == 1
    assert f"{tmp_path / 'song.wav'} is a file; choose another --output_dir" in ran.err
    assert (tmp_path / "song.wav").read_bytes() == b"mine"


def test_an_empty_folder_is_filled(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    assert (warm_start(base=str(tiny), output_dir=str(tmp_path / "base")).folder / "config.json").is_file()


@pytest.mark.parametrize("family", ["text-stereo", "melody-stereo"])
def test_a_stereo_base_is_refused(family: str, checkpoints: Folders, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is stereo already; train on it: train --model_name_or_path"):
        warm_start(base=str(checkpoints(family)), output_dir=str(tmp_path / "base"))
    assert not list(tmp_path.iterdir())


def test_an_incomplete_base_leaves_nothing(tiny: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny, tmp_path / "mono")
    weights = load_file(base / "model.safetensors")
    del weights["decoder.lm_heads.3.weight"]
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="has 7 heads and embeddings, not 8"):
        warm_start(base=str(base), output_dir=str(tmp_path / "base"))
    assert [path.name for path in tmp_path.iterdir()] == ["mono"]


def test_published_stereo_checkpoints_are_recommended(tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    _check_base(replace(read_checkpoint(tiny), source=Source("facebook/musicgen-melody-large")))
    assert "note: facebook/musicgen-stereo-melody-large was trained on stereo music" in caplog.text
    caplog.clear()
    _check_base(read_checkpoint(tiny))
    assert not caplog.text


# What is done with it


def front_matter(folder: Path) -> tuple[dict[str, Any], str]:
    _, front, body = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), body


def test_the_card_says_what_it_was_made_from(bases: Folders, checkpoints: Folders) -> None:
    front, body = front_matter(bases("text"))
    assert front == {
        "library_name": "transformers",
        "pipeline_tag": "text-to-audio",
        "tags": ["text-to-audio", "music", "musicgen", "stereo"],
    }
    identity = read_checkpoint(checkpoints("text")).identity
    assert f"`text` at revision `{identity}`, made with musicgen-dreamboothing" in body
    assert "`musicgen-dreamboothing warm-start text --variant exact --output_dir text`" in body
    assert "The embeddings are halved" in body
    assert str(bases("text").parent) not in body
    assert "needs torchaudio" in front_matter(bases("melody"))[1]


def test_an_adapter_is_trained_on_it(bases: Folders, tmp_path: Path, cli: Cli) -> None:
    """Its card says how others get the base."""
    (tmp_path / "songs").mkdir()
    audio.write(tmp_path / "songs" / "song.wav", tone_song(1.0, 0, channels=2), SAMPLING_RATE)
    once = ("--max_steps", 1, "--eval_fraction", 0, "--save_strategy", "no")
    ran = cli(*train_words(tmp_path / "songs", tmp_path / "run", bases("text")), *once)
    assert ran.code == 0, ran.err
    _, body = front_matter(tmp_path / "run")
    assert "The base is a stereo version of `text` at revision" in body
    assert "make it with `musicgen-dreamboothing warm-start text --variant exact --output_dir text`" in body
    ran = cli("generate", tmp_path / "run", "punk", "--seconds", 0.2, "--output_dir", tmp_path / "made")
    assert ran.code == 0, ran.err
    assert "text model, stereo" in ran.out
