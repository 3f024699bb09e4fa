"""What `push` uploads: weights with a header, players beside them, and a card that says how to make them again."""

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
import yaml
from conftest import SAMPLING_RATE, Ran, tone_song, train_words
from hub import LocalHub
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from test_push import CLIENT, OWN_MODEL
from transformers import MusicgenForConditionalGeneration

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.console import quiet_loading
from musicgen_dreamboothing.evaluation.report import write_report
from musicgen_dreamboothing.evaluation.result import LOWER, STYLE, Evaluation, Figure, Pair
from musicgen_dreamboothing.files import write_json

Cli = Callable[..., Ran]
TARGETS_2024 = ["enc_to_dec_proj", "q_proj", "v_proj", "fc1", *(f"lm_heads.{n}" for n in range(4))]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A run of one update, with an evaluation report of two pairs."""
    work = tmp_path_factory.mktemp("run")
    (work / "songs").mkdir()
    for number in range(2):
        audio.write(work / "songs" / f"song-{number}.wav", tone_song(2.0, number), SAMPLING_RATE)
    small = ["--max_steps", 1, "--eval_strategy", "no", "--eval_on_start", "false"]
    from musicgen_dreamboothing.cli import main

    assert main(list(map(str, [*train_words(work / "songs", work / "punk", tiny), *small]))) == 0
    folder = work / "punk" / "evaluation"
    folder.mkdir()
    for name in ("a", "b"):
        audio.write(folder / f"{name}.wav", np.full((1, SAMPLING_RATE // 2), 0.1, np.float32), SAMPLING_RATE)
    pairs = [Pair("punk with 'loud' drums", STYLE, variation, "a.wav", "b.wav") for variation in (0, 1)]
    figures = [Figure("style_distance", "distance to your songs", LOWER, 2.0, 1.25)]
    settings = {"seed": 7, "seconds": 0.5, "variations": 2, "guidance_scale": 3.0, "temperature": 1.0, "top_k": 250}
    verdict = ["It learned the style."]
    write_report(folder, Evaluation("punk", "tiny", "punk", "signal", verdict, "", figures, pairs, [], [], settings))
    return work / "punk"


@pytest.fixture
def old_adapter(tiny: Path, tmp_path: Path) -> Path:
    """An adapter as the scripts of 2024 made them: on the composite model, targets as a list, fp32."""
    with quiet_loading():
        model = MusicgenForConditionalGeneration.from_pretrained(tiny, dtype=torch.float32)
    wrapped = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS_2024))
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    wrapped.save_pretrained(tmp_path / "old")
    return tmp_path / "old"


def pushed(hub: LocalHub, home: Path, commands: dict[str, list[object]]) -> dict[str, Ran]:
    """Runs `push` several times in one process that sees the stand-in of the Hub."""
    words = [[hub.token, "push", *map(str, command)] for command in commands.values()]
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, json.dumps(words)],
        env={**os.environ, **hub.environment(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outs, errs = (stream.split("<command>\n")[1:] for stream in (done.stdout, done.stderr))
    return {
        name: Ran(int(out.rsplit("<code>", 1)[1]), out.rsplit("<code>", 1)[0], err)
        for name, out, err in zip(commands, outs, errs, strict=True)
    }


def header(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def test_a_trained_adapter_says_what_it_is(run: Path) -> None:
    facts = header(run / "adapter_model.safetensors")
    assert facts["format"] == "pt"
    assert (facts["key_word"], facts["base_model"], facts["rank"]) == ("punk", "text", "16")


def test_nothing_goes_up_without_being_listed(cli: Cli, run: Path) -> None:
    ran = cli("push", run, "--hub_model_id", "you/punk", "--list_only")
    assert ran.code == 0, ran.err
    listed = [line.split()[0] for line in ran.out.splitlines() if line.startswith("  ")]
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors"} < set(listed)
    assert [name for name in listed if name.startswith("samples/")] == [
        f"samples/punk-with-loud-drums-{variation}-{when}.wav" for variation in (0, 1) for when in ("before", "after")
    ]
    assert not any(name.endswith(("run.json", ".html", ".flac")) for name in listed)


@pytest.mark.slow
def test_a_finished_run_is_published_with_players(run: Path, tiny: Path, old_adapter: Path, tmp_path: Path) -> None:
    licence = "my own, CC BY 4.0"
    words = [run, "--hub_model_id", "someone/punk", "--private", "--songs_licence", licence]
    with LocalHub() as hub:
        hub.add("someone/theirs", OWN_MODEL)
        ran = pushed(
            hub,
            tmp_path,
            {
                "first": words,
                "again": words,
                "theirs": [old_adapter, "--hub_model_id", "someone/theirs"],
                "old": [old_adapter, "--hub_model_id", "someone/old"],
            },
        )
        assert [one.code for one in ran.values()] == [0, 0, 1, 0], [one.err for one in ran.values()]
        out = ran["first"].out
        assert out.index("  README.md") < out.index(f"Uploaded to {hub.endpoint}/someone/punk")
        assert hub.private("someone/punk")
        files = hub.files("someone/punk")
        card = files["README.md"].decode()
        name = "punk-with-loud-drums-0-after.wav"
        assert f'<audio controls src="{hub.endpoint}/someone/punk/resolve/main/samples/{name}">' in card
        assert files[f"samples/{name}"] == (run / "evaluation" / "b.wav").read_bytes()
        check_card(card, licence)
        assert str(run.parent) not in card
        assert str(tiny.parent) not in files["adapter_config.json"].decode()
        assert sum("/someone/punk/commit/" in request for request in hub.requests) == 1
        assert "holds files that this program did not upload" in ran["theirs"].err
        assert hub.files("someone/theirs") == OWN_MODEL
        check_old(hub.files("someone/old"), old_adapter, tiny, tmp_path)


def check_card(card: str, licence: str) -> None:
    assert yaml.safe_load(card.split("---")[1])["instance_prompt"] == "punk"
    for text in (
        "It learned the style.",
        "| distance to your songs | 2 | 1.25 |",
        f"The songs: {licence}.",
        "## Strength",
        """generate someone/punk 'punk with '"'"'loud'"'"' drums' --seconds 0.5 --seed 7 --variations 2""",
        "--guidance_scale 3 --temperature 1 --top_k 250\n```",
    ):
        assert text in card


def check_old(files: dict[str, bytes], old: Path, tiny: Path, home: Path) -> None:
    card = files["README.md"].decode()
    assert "\n# someone/old\n" in card
    assert "## Trained on" not in card
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == tiny.name
    (home / "again").mkdir()
    path = home / "again" / "adapter_model.safetensors"
    path.write_bytes(files["adapter_model.safetensors"])
    assert header(path) | {"format": "pt", "rank": "4", "base_model": tiny.name} == header(path)
    with safe_open(path, framework="pt") as now, safe_open(old / path.name, framework="pt") as before:
        assert set(now.keys()) == set(before.keys())
        assert any(".lm_heads.3." in name for name in now.keys())  # noqa: SIM118 - it is no dictionary
        assert all(torch.equal(now.get_tensor(name), before.get_tensor(name)) for name in before.keys())  # noqa: SIM118


def test_samples_of_a_training_are_played_where_there_is_no_report(cli: Cli, run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("evaluation"))
    sampling = {"guidance_scale": 3.0, "temperature": 1.0, "top_k": 250}
    facts = {"seconds": 0.5, "seed": 3, "sampling": sampling, "prompts": {"00_punk.wav": "punk"}}
    for step in ("step_0000", "step_0010", "step_0002"):
        (copy / "samples" / step).mkdir(parents=True)
        (copy / "samples" / step / "00_punk.wav").write_bytes(step.encode())
        write_json(copy / "samples" / step / "samples.json", facts)
    ran = cli("push", copy, "--hub_model_id", "you/punk", "--list_only")
    assert "samples/punk-0-before.wav" in ran.out
    none = cli("push", copy, "--hub_model_id", "you/punk", "--list_only", "--players", 0)
    assert "samples/" not in none.out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"finished": False}, "is not finished; the same train command finishes it"),
        ({"clips": {"codes": 1}}, "the list of clips in run.json is damaged"),
    ],
)
def test_a_run_that_cannot_be_shared(change: dict[str, Any], message: str, cli: Cli, run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    record = json.loads((copy / "run.json").read_text())
    write_json(copy / "run.json", record | change)
    ran = cli("push", copy, "--hub_model_id", "you/punk", "--list_only")
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert message in ran.err


def test_a_folder_without_a_model(cli: Cli, tmp_path: Path) -> None:
    ran = cli("push", tmp_path, "--hub_model_id", "you/punk", "--list_only")
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert "holds no model" in ran.err
