"""The published example of 2024, as it is: a Hub has a dataset, a base and a CLAP under the names in it."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import random_checkpoint
import torch
from conftest import Ran, tone_song
from hub import LocalHub
from random_checkpoint import SAMPLING_RATE, write_tiny_checkpoint
from test_audio import sound_file
from test_datasets import AUDIO, TEXT, table
from test_samples import wandb_records
from test_tags import write_tiny_clap

from musicgen_dreamboothing.arguments import RENAMED, RETIRED, TrainArguments, parse
from musicgen_dreamboothing.model.checkpoint import MELODY
from musicgen_dreamboothing.pretrained.clap import SAFETENSORS

ROOT = Path(__file__).parent.parent
PUNK = ROOT / "tests" / "data" / "punk_2024.json"
README = """---
configs:
- config_name: default
  data_files: [{split: clean, path: data/clean-*}]
---
"""
SONGS, SECONDS = 3, 1.5
CLAP_COMMIT = SAFETENSORS["laion/larger_clap_music"].revision


@torch.no_grad()
def _random_codebooks(model: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for level in model.audio_encoder.quantizer.layers:
        level.codebook.embed.normal_(generator=generator)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tiny_punk(path: Path) -> bytes:
    """Songs in five columns of sounds, of which four cannot be decoded."""
    noise = [{"bytes": b"cannot be decoded", "path": None}] * SONGS
    columns: dict[str, Any] = dict.fromkeys(("audio", "vocals", "bass", "drums"), noise)
    songs = [sound_file(tone_song(SECONDS, seed), SAMPLING_RATE) for seed in range(SONGS)]
    columns["others"] = [{"bytes": song, "path": None} for song in songs]
    columns["title"] = [f"title {seed}" for seed in range(SONGS)]
    pq.write_table(table(columns, **{name: TEXT if name == "title" else AUDIO for name in columns}), path)
    return path.read_bytes()


@dataclass(frozen=True)
class Finished:
    """How the run went, where it stood, and what its hub has now."""

    ran: Ran
    work: Path
    hub: LocalHub


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    """`python finetune_musicgen.py punk.json`, with nothing added."""
    work = tmp_path_factory.mktemp("punk")
    with pytest.MonkeyPatch.context() as patch, LocalHub() as hub:
        patch.setattr(random_checkpoint, "CODEBOOK_SIZE", 2048)  # the file names 2048 as padding
        patch.setattr(random_checkpoint, "BITS_PER_CODE", 11)
        patch.setattr(random_checkpoint, "_spread_codebooks", _random_codebooks)
        hub.add("facebook/musicgen-melody", files_of(write_tiny_checkpoint(work / "base", family=MELODY)))
        hub.add("laion/larger_clap_music", files_of(write_tiny_clap(work / "clap")), commit=CLAP_COMMIT)
        hub.add("laion/larger_clap_music", {"model.safetensors": b"other weights, which came later"})
        data = {"README.md": README.encode(), "data/clean-00000-of-00001.parquet": tiny_punk(work / "punk.parquet")}
        hub.add("ylacombe/tiny-punk", data, repo_type="dataset")
        wandb = {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
        wandb |= {f"WANDB{name}_DIR": str(work) for name in ("", "_DATA", "_CACHE", "_CONFIG")}
        done = subprocess.run(
            [sys.executable, str(ROOT / "finetune_musicgen.py"), str(PUNK)],
            env={**os.environ, **hub.environment(work / "home"), **wandb},
            cwd=work,
            capture_output=True,
            text=True,
            check=False,
        )
        yield Finished(Ran(done.returncode, done.stdout, done.stderr), work, hub)


@pytest.mark.slow
def test_it_ends_well(finished: Finished) -> None:
    assert finished.ran.code == 0, finished.ran.err
    options = json.loads(PUNK.read_text())
    record = json.loads((finished.work / "punk_tmp" / "run.json").read_text())
    assert record["finished"]
    assert (record["base_model"], record["summary"]["updates"]) == ("facebook/musicgen-melody", 4)
    for name in ("dataset_name", "instance_prompt", "num_train_epochs", "learning_rate", "seed", "add_metadata"):
        assert record["options"][name] == options[name]


@pytest.mark.slow
def test_each_old_name_is_told_in_one_line(finished: Finished) -> None:
    lines = finished.ran.out.splitlines()
    for name in json.loads(PUNK.read_text()):
        told = [line for line in lines if line.startswith(f"option {name} ")]
        if name in RENAMED:
            assert told == [f"option {name} is now called {RENAMED[name]}"]
        elif name in RETIRED:
            assert told == [f"option {name} is gone; its successor is {RETIRED[name]}"]
        else:
            assert told == []
    assert "note: --predict_with_generate has no effect here" in lines


@pytest.mark.slow
def test_songs_are_described_and_one_is_held_out(finished: Finished) -> None:
    lines = (finished.work / "punk_tmp" / "data" / "clips" / "metadata.jsonl").read_text().splitlines()
    clips = [json.loads(line) for line in lines]
    assert [clip["source"] for clip in clips] == [f"clean/00000{row}" for row in range(SONGS)]
    assert all(clip["text"].startswith("punk") and "genres" in clip["tags"] for clip in clips)
    assert "--eval_split_name clean is the training split; songs are held out of it instead" in finished.ran.out
    assert "Evaluating on 1 clip of 1 held-out song: clean/" in finished.ran.out
    assert "can't be loaded" not in finished.ran.out  # the CLAP has listened


@pytest.mark.slow
def test_weights_that_are_not_the_published_ones_are_noticed(finished: Finished) -> None:
    """The stand-in's are random; they are read from the commit that is pinned, and the commit is recorded."""
    note = "note: the weights of laion/larger_clap_music are not those that this version knows (SHA-256 "
    assert note in finished.ran.out
    lines = (finished.work / "punk_tmp" / "data" / "heard.jsonl").read_text().splitlines()
    assert {json.loads(line)["model"] for line in lines} == {f"laion/larger_clap_music@{CLAP_COMMIT[:7]}"}


@pytest.mark.slow
def test_wandb_has_samples_from_before_and_after(finished: Finished) -> None:
    (log,) = finished.work.glob("wandb/offline-run-*/run-*.wandb")
    items = [item for record in wandb_records(log) for item in record.history.item]
    keys = {"/".join(item.nested_key) or item.key for item in items}
    assert {"samples/before_after/_type", "train/loss", "eval/loss"} <= keys
    samples = finished.work / "punk_tmp" / "samples"
    assert sorted(path.name for path in samples.glob("step_*")) == ["step_0000", "step_0004"]
    assert len(list(samples.glob("step_0004/*80s-punk-track-with-groovy-saxophone*.wav"))) == 1


@pytest.mark.slow
def test_the_adapter_is_on_the_hub(finished: Finished) -> None:
    pushed = finished.hub.files("someone/musicgen-melody-lora-punk")
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= set(pushed)
    config = json.loads(pushed["adapter_config.json"])
    assert config["base_model_name_or_path"] == "facebook/musicgen-melody"


# --- the options of 2024, with a value that files gave them

OLD_OPTIONS: dict[str, Any] = {
    "model_name_or_path": "facebook/musicgen-small",
    "model_revision": "main",
    "cache_dir": "cache",
    "token": "hf_x",
    "trust_remote_code": False,
    "pad_token_id": 2048,
    "decoder_start_token_id": 2048,
    "freeze_text_encoder": True,
    "use_lora": True,
    "guidance_scale": 3.0,
    "clap_model_name_or_path": "laion/larger_clap_music_and_speech",
    "dataset_name": "ylacombe/tiny-punk",
    "dataset_config_name": "default",
    "train_split_name": "train+validation",
    "eval_split_name": "test",
    "target_audio_column_name": "audio",
    "text_column_name": "description",
    "instance_prompt": "punk",
    "conditional_audio_column_name": "melody",
    "max_train_samples": 8,
    "max_eval_samples": 8,
    "max_duration_in_seconds": 30.0,
    "min_duration_in_seconds": 1.0,
    "preprocessing_num_workers": 8,
    "overwrite_cache": False,
    "full_generation_sample_text": "80s blues track.",
    "add_metadata": True,
    "push_metadata_repo_id": "someone/clips",
    "num_samples_to_generate": 4,
    "add_audio_samples_to_wandb": True,
    "audio_separation": False,
    "audio_separation_batch_size": 10,
    "evaluation_strategy": "steps",
    "overwrite_output_dir": True,
    "include_inputs_for_metrics": True,
    "use_auth_token": False,
    "warmup_ratio": 0.1,
    "logging_dir": "logs",
    "config_name": "facebook/musicgen-small",
    "processor_name": "facebook/musicgen-small",
    "use_fast_tokenizer": True,
}


@pytest.mark.parametrize("name", OLD_OPTIONS)
def test_every_option_of_2024_is_understood(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    value = OLD_OPTIONS[name]
    (tmp_path / "old.json").write_text(json.dumps({"output_dir": "out", name: value}))
    options = parse(TrainArguments, "train", "", [str(tmp_path / "old.json")])
    told = [line for line in capsys.readouterr().out.splitlines() if name in line]
    names = {entry.name for entry in dataclasses.fields(TrainArguments)}
    if name in names:
        assert (getattr(options, name), told) == (value, [])
    else:
        (line,) = told
        successor = RENAMED.get(name) or RETIRED.get(name, "has no successor")
        assert line.startswith(f"option {name} ")
        assert line.endswith(successor)
        assert name == "use_auth_token" or name not in RENAMED or getattr(options, RENAMED[name]) == value
