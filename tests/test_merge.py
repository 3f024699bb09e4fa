"""`merge`: the merged model has the logits of base and adapters, and plays in plain transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import Ran, read_checkpoint, train_words
from layouts import Layout, write_layout
from safetensors.torch import load_file, save_file
from test_mixing import JAZZ, PUNK, adapter_at, logits, mixed
from transformers import AutoModelForTextToWaveform, AutoProcessor

from musicgen_dreamboothing import Generator, UserError, merge
from musicgen_dreamboothing.hub import Source
from musicgen_dreamboothing.model.adapter import LoraSettings
from musicgen_dreamboothing.model.merged_checkpoint import write_merged_checkpoint
from musicgen_dreamboothing.model.mix_sources import read_mix
from musicgen_dreamboothing.model.mixing import Mixer

Folders = Callable[[str], Path]
Cli = Callable[..., Ran]
SLOW = pytest.mark.slow


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        weights |= load_file(path)
    return weights


def front_matter(folder: Path) -> tuple[dict[str, Any], str]:
    _, front, body = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), body


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("text", PUNK),
        ("melody", LoraSettings(use_dora=True)),
        pytest.param("text-stereo", LoraSettings(r=4, init="pissa"), marks=SLOW),
        pytest.param("text", LoraSettings(r=4, use_rslora=True, targets="attention"), marks=SLOW),
    ],
)
def test_a_merged_model_has_the_logits_of_base_and_adapters(
    kind: str, settings: LoraSettings, checkpoints: Folders, tmp_path: Path
) -> None:
    base = checkpoints(kind)
    punk, jazz = adapter_at(tmp_path / "punk", base, settings), adapter_at(tmp_path / "jazz", base, JAZZ, seed=1)
    done = merge(model=f"{punk}:0.8", adapters=[f"{jazz}:-0.3"], output_dir=str(tmp_path / "merged"))
    assert done.provenance.kept == pytest.approx(1, abs=1e-6)
    ours, expected = (
        logits(one.model)
        for one in (Generator(done.folder, device="cpu", dtype="float32"), mixed(base, (punk, 0.8), (jazz, -0.3)))
    )
    assert (ours - expected).abs().max() <= 1e-5
    before, after = weights_in(base), weights_in(done.folder)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith(("decoder.", "enc_to_dec_proj", "audio_enc_to_dec_proj")) for name in changed)


def test_plain_transformers_plays_it(tiny: Path, tmp_path: Path) -> None:
    """With its own processor and settings of generation, the same codes as PEFT beside the base."""
    from peft import PeftModel

    punk = adapter_at(tmp_path / "punk", tiny)
    merge(model=str(punk), output_dir=str(tmp_path / "merged"))
    merged = AutoModelForTextToWaveform.from_pretrained(tmp_path / "merged").eval()
    adapted = PeftModel.from_pretrained(AutoModelForTextToWaveform.from_pretrained(tiny), str(punk)).eval()
    inputs = AutoProcessor.from_pretrained(tmp_path / "merged")(text=["punk"], return_tensors="pt")
    waves = [model.generate(**inputs, do_sample=False, max_new_tokens=12) for model in (merged, adapted)]
    torch.testing.assert_close(*waves, atol=1e-4, rtol=1e-4)
    assert merged.config.decoder.dropout == AutoModelForTextToWaveform.from_pretrained(tiny).config.decoder.dropout
    assert (merged.generation_config.guidance_scale, merged.generation_config.decoder_start_token_id) == (3.0, 64)


def test_published_files_keep_their_precision_and_lose_little(checkpoints: Folders, tmp_path: Path) -> None:
    """A base in 16-bit shards of .bin files: the share that rounding leaves is that of the weights on the disk."""
    layout = Layout("text", "4.31", "absent", "weight_g", "present", "bin shards", "float16", "spiece.model", "both")
    name, _ = write_layout(layout, checkpoints("text"), tmp_path)
    shares = []
    for number, std in enumerate((0.05, 1e-5)):
        punk = adapter_at(tmp_path / f"punk-{number}", Path(name), std=std)
        done = merge(model=str(punk), output_dir=str(tmp_path / f"merged-{number}"))
        assert {weight.dtype for weight in weights_in(done.folder).values()} == {torch.float16}
        shares.append(done.provenance.kept)
    base = Generator(name, device="cpu", dtype="float32").model.state_dict()
    exact = Generator(punk, device="cpu", dtype="float32").model.state_dict()
    stored = weights_in(done.folder)
    changed = [weight for weight in base if weight in stored and not torch.equal(base[weight], exact[weight])]
    lost = sum(float((exact[weight] - stored[weight].float()).square().sum()) for weight in changed)
    update = sum(float((exact[weight] - base[weight]).square().sum()) for weight in changed)
    assert shares[1] == pytest.approx(1 - lost / update, abs=1e-3)
    assert shares[0] > 0.999
    assert 0 < shares[1] < 0.9
    (clip,) = Generator(done.folder).generate(["punk"], seconds=0.2, progress=False)
    assert clip.wave.shape[0] == 1


def test_a_weight_that_16_bits_cannot_hold_is_named(checkpoints: Folders, tmp_path: Path) -> None:
    base = shutil.copytree(checkpoints("text"), tmp_path / "base")
    weights = {name: weight.half() for name, weight in load_file(base / "model.safetensors").items()}
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    punk = adapter_at(tmp_path / "punk", base, std=1e5)
    with pytest.raises(UserError, match=r"merged, decoder\..* is not finite in float16; merge with lower strengths"):
        merge(model=str(punk), output_dir=str(tmp_path / "merged"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "punk"]


def test_large_models_are_written_in_shards(tiny: Path, tmp_path: Path) -> None:
    mix = read_mix(Source(str(adapter_at(tmp_path / "punk", tiny))))
    (tmp_path / "merged").mkdir()
    mixer = Mixer(mix.checkpoint, mix.adapters, mix.strengths)
    write_merged_checkpoint(mix.checkpoint, mixer, tmp_path / "merged", shard_bytes=600_000)
    assert len(list((tmp_path / "merged").glob("model-*-of-*.safetensors"))) > 2
    loaded = AutoModelForTextToWaveform.from_pretrained(tmp_path / "merged").state_dict()
    expected = Generator(tmp_path / "punk", device="cpu", dtype="float32").model.state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in expected.items() if name in loaded)


def test_a_trained_text_encoder_is_merged_too(tiny: Path, tmp_path: Path, prepared: Path, cli: Cli) -> None:
    once = ("--max_steps", 1, "--eval_strategy", "no", "--eval_on_start", "false", "--save_strategy", "no")
    words = (*train_words(prepared, tmp_path / "run", tiny), *once, "--learning_rate", 0.01)
    assert cli(*words, "--freeze_text_encoder", "false").code == 0
    merge(model=str(tmp_path / "run"), output_dir=str(tmp_path / "merged"))
    ours, theirs = (Generator(tmp_path / name, device="cpu", dtype="float32") for name in ("merged", "run"))
    assert torch.equal(logits(ours.model), logits(theirs.model))
    pairs = zip(ours.text_states(["punk"]), theirs.text_states(["punk"]), strict=True)
    assert all(abs(first - second).max() <= 1e-5 for first, second in pairs)


# Files


def test_the_same_command_finds_it_finished_and_another_replaces_it(tiny: Path, tmp_path: Path, cli: Cli) -> None:
    punk, jazz = adapter_at(tmp_path / "punk", tiny), adapter_at(tmp_path / "jazz", tiny, JAZZ, seed=1)
    folder = tmp_path / "merged"
    words = ("merge", punk, f"{jazz}:0.5", "--output_dir", folder)
    ran = cli(*words)
    assert ran.code == 0, ran.err
    assert f"Merged 2 adapters into {tiny}: {punk}:1, {jazz}:0.5\n" in ran.out
    assert "100.00% of the update is left after rounding to the precision of the base\n" in ran.out
    assert f"Saved in {folder}\n" in ran.out
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert f"{folder} already holds this model\n" in cli(*words).out
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    assert cli(*words, "--blend", "true").code == 0
    provenance = json.loads((folder / "merge.json").read_text())
    assert [one["strength"] for one in provenance["adapters"]] == ["0.666667", "0.333333"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["jazz", "merged", "punk"]


def test_the_card_says_what_it_was_made_from(tiny: Path, tmp_path: Path) -> None:
    punk = adapter_at(tmp_path / "punk", tiny)
    merge(model=f"{punk}:0.8,heads=0", output_dir=str(tmp_path / "merged"))
    front, body = front_matter(tmp_path / "merged")
    assert front == {
        "library_name": "transformers",
        "pipeline_tag": "text-to-audio",
        "tags": ["text-to-audio", "music", "musicgen", "merge"],
    }
    assert f"`text` at revision `{read_checkpoint(tiny).identity}`, with an adapter merged" in body
    assert "| `punk` | `" in body
    assert "| 0.8,heads=0 |" in body
    assert "100.00 % of the update (of its squared norm) is left" in body
    assert str(tmp_path) not in body


@pytest.mark.parametrize("place", ["folder", "run", "base"])
def test_a_folder_of_something_else_is_refused(place: str, tiny: Path, tmp_path: Path, cli: Cli) -> None:
    """Also the adapter's own folder, and that of its base."""
    punk = adapter_at(tmp_path / "punk", tiny)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("mine")
    folder = {"folder": tmp_path / "notes", "run": punk, "base": tiny}[place]
    before = sorted(folder.iterdir())
    ran = cli("merge", punk, "--output_dir", folder)
    assert ran == Ran(
        1,
        "",
        f"musicgen-dreamboothing: {folder} holds something else (it has no valid merge.json); "
        "choose another --output_dir\n",
    )
    assert sorted(folder.iterdir()) == before


def test_what_cannot_be_merged_is_told(tiny: Path, tmp_path: Path, cli: Cli) -> None:
    ran = cli("merge", tiny, "--output_dir", tmp_path / "merged")
    assert f"{tiny} is no adapter, and none is named behind it: there is nothing to merge" in ran.err
    assert "give an output folder: merge RUN [ADAPTER:STRENGTH ...] --output_dir DIR" in cli("merge", tiny).err
    ran = cli("merge", f"{adapter_at(tmp_path / 'punk', tiny)}:0", "--output_dir", tmp_path / "merged")
    assert "note: nothing changed: every strength is 0" in ran.out


@SLOW
def test_it_is_a_base_to_train_on(tiny: Path, tmp_path: Path, prepared: Path, cli: Cli) -> None:
    merge(model=str(adapter_at(tmp_path / "punk", tiny)), output_dir=str(tmp_path / "merged"))
    ran = cli(*train_words(prepared, tmp_path / "run", tmp_path / "merged"), "--max_steps", 1)
    assert ran.code == 0, ran.err
    small = ("--clap_model_name_or_path", "none", "--prompts", "punk", "--neutral_prompts", "a waltz", "--seconds", 0.5)
    ran = cli("evaluate", tmp_path / "run", *small)
    assert ran.code == 0, ran.err
