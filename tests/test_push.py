"""The Hub, in the shape of its stand-in: songs come from there, runs go there and come back."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from conftest import SAMPLING_RATE, Ran, prepare_words, tone_song, train_words
from hub import LocalHub
from test_audio import sound_file
from test_prepare import audio_dataset, captions

from musicgen_dreamboothing import audio

Cli = Callable[..., Ran]
# Runs each command; an empty token is that of somebody who never signed in.
CLIENT = """
import json, os, sys, torch
torch.set_num_threads(1)
from musicgen_dreamboothing.cli import main
def fewer(folder, *words):
    # the person deletes the first line of the metadata
    path = os.path.join(folder, "clips", "metadata.jsonl")
    lines = open(path).read().splitlines(True)
    open(path, "w").writelines(lines[1:])
    return main(words)

def find(name, cache):
    from musicgen_dreamboothing.data.songs.song import Columns
    from musicgen_dreamboothing.data.songs.sources import find_songs
    songs = find_songs(name, Columns(), cache_dir=cache).songs
    print(json.dumps({song.name: song.caption for song in songs}))
    return 0

def load(name, cache):
    import datasets
    datasets.Audio.encode_example = lambda _, path: {"bytes": None, "path": path}  # the real one asks for torchcodec
    rows = datasets.load_dataset(name, split="train", cache_dir=cache)
    rows = rows.cast_column("audio", datasets.Audio(decode=False))
    sizes = [os.path.getsize(row["audio"]["path"]) for row in rows]
    print(json.dumps([rows["text"][:], rows["source"][:], sizes]))
    return 0

for token, *words in json.loads(sys.argv[1]):
    os.environ["HF_TOKEN"] = os.environ["HUGGING_FACE_HUB_TOKEN"] = token
    for stream in (sys.stdout, sys.stderr):
        print("<command>", file=stream, flush=True)
    run = {"fewer": fewer, "find": find, "load": load}.get(words[0])
    print("<code>", run(*words[1:]) if run else main(words), flush=True)
"""


@dataclass(frozen=True)
class Visit:
    """A hub, and how the commands went that used it."""

    hub: LocalHub
    work: Path
    ran: dict[str, Ran]


CARD = b"""---
configs:
- config_name: a
  data_files: [{split: clean, path: a.parquet}]
- config_name: b
  data_files: [{split: clean, path: b.parquet}]
---
"""
OWN_MODEL = {"model.safetensors": b"weights", "README.md": b"# My model\n"}
FOREST = {"2019/forest.flac": b"fLaC forest", "2020/sea.flac": b"fLaC sea", "README.md": b"# Mine\n", "notes.txt": b"x"}


def add_songs(hub: LocalHub) -> None:
    """A dataset of parquet files in two configurations, which is private, and one of plain audio files."""

    def parquet(seeds: list[int]) -> bytes:
        content = io.BytesIO()
        audio_dataset(seeds).to_parquet(content)
        return content.getvalue()

    def flac(seed: int) -> bytes:
        return sound_file(tone_song(1.0, seed), SAMPLING_RATE, "FLAC")

    tables = {"README.md": CARD, "a.parquet": parquet([0]), "b.parquet": parquet([1, 2])}
    hub.add("someone/songs", tables, repo_type="dataset", private=True)
    files = {"drum.flac": flac(3), "drum.txt": b"a drum", "more/flute.FLAC": flac(4), "big.bin": b"nobody's"}
    rows = b'{"file_name": "more/flute.FLAC", "text": "a flute"}\n'
    hub.add("someone/folder", {**files, "metadata.jsonl": rows}, repo_type="dataset")


def prepare_commands(work: Path, tiny: Path, token: str) -> dict[str, list[object]]:
    parts = {name: prepare_words(Path(f"someone/{name}"), work / name, tiny) for name in ("songs", "nothing")}
    clean = ["--dataset_config_name", "b", "--train_split_name", "clean", "--text_column_name", "mood"]
    cache = ["--cache_dir", work / "cache"]
    return {
        "no config": [token, *parts["songs"]],
        "config": [token, *parts["songs"], *clean, *cache],
        "folder": [token, "find", "someone/folder", work / "cache"],
        "no dataset": [token, *parts["nothing"]],
        "private dataset": ["", *parts["songs"]],
    }


def describe_commands(work: Path, tiny: Path, token: str) -> dict[str, list[object]]:
    """Clips are pushed, one of them is deleted by its person, and what is on the Hub is prepared elsewhere."""
    words = [*prepare_words(work / "tunes", work / "described", tiny), "--push_metadata_repo_id"]
    return {
        "unsigned clips": ["", *words, "clips"],
        "clips of others": [token, *words, "forest"],
        "clips": [token, *words, "clips"],
        "fewer clips": [token, "fewer", work / "described", *words, "clips", "--push_metadata_private", "false"],
        "from clips": [token, "find", "someone/clips", work / "cache"],
        "loaded": [token, "load", "someone/clips", work / "cache"],
    }


@pytest.fixture(scope="module")
def visit(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[Visit]:
    work = tmp_path_factory.mktemp("push")
    (work / "tunes").mkdir()
    for number in range(3):
        audio.write(work / "tunes" / f"song-{number}.wav", tone_song(2.0, number), SAMPLING_RATE)
    small = ["--max_steps", 1, "--gradient_checkpointing", "false", "--eval_strategy", "no", "--eval_on_start", "false"]
    push = [*train_words(work / "tunes", work / "my-run", tiny), *small, "--push_to_hub", "true"]
    elsewhere = [*train_words(work / "tunes", work / "unsigned", tiny), *small, "--push_to_hub", "true"]
    with LocalHub() as hub:
        add_songs(hub)
        for name in ("someone/model", "another/model"):
            hub.add(name, OWN_MODEL)
        hub.add("someone/empty", {".gitattributes": b""})
        hub.add("someone/forest", FOREST, repo_type="dataset")
        commands: dict[str, list[object]] = {
            "unsigned": ["", *elsewhere],
            "stranger": ["hf_wrong", *elsewhere],
            "another's": [hub.token, *elsewhere, "--hub_model_id", "another/run"],
            "another's model": [hub.token, *elsewhere, "--hub_model_id", "another/model"],
            "own model": [hub.token, *elsewhere, "--hub_model_id", "someone/model"],
            "public model": [hub.token, *elsewhere, "--hub_model_id", "someone/empty", "--hub_private_repo", "true"],
            "bad name": [hub.token, *elsewhere, "--hub_model_id", "my run"],
            "push": [hub.token, *push, "--hub_private_repo", "true"],
            "again": [hub.token, *push, "--hub_private_repo", "true"],
            "token": ["", *push, "--hub_model_id", "someone/second", "--hub_token", hub.token],
            "generate": [
                hub.token,
                "generate",
                "someone/my-run",
                "punk",
                "--seconds",
                0.2,
                "--output_dir",
                work / "out",
            ],
            "nothing": [hub.token, "generate", "someone/nothing", "punk", "--output_dir", work / "out"],
            **prepare_commands(work, tiny, hub.token),
            **describe_commands(work, tiny, hub.token),
        }
        done = subprocess.run(
            [sys.executable, "-c", CLIENT, json.dumps([list(map(str, words)) for words in commands.values()])],
            env={**os.environ, **hub.environment(work / "home")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        outs, errs = (stream.split("<command>\n")[1:] for stream in (done.stdout, done.stderr))
        ran = {
            name: Ran(int(out.rsplit("<code>", 1)[1]), out.rsplit("<code>", 1)[0], err)
            for name, out, err in zip(commands, outs, errs, strict=True)
        }
        yield Visit(hub, work, ran)


def test_songs_come_from_the_hub(visit: Visit) -> None:
    assert [visit.ran[name].code for name in ("config", "folder")] == [0, 0]
    assert captions(visit.work / "songs") == {"clean/000000": "punk, mood 1", "clean/000001": "punk, mood 2"}
    assert json.loads(visit.ran["folder"].out) == {"drum.flac": "a drum", "more/flute.FLAC": "a flute"}
    assert not any("big.bin" in request for request in visit.hub.requests)
    assert not (visit.work / "home" / "datasets").exists()  # all of it is in --cache_dir


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no config", "someone/songs has several configurations; choose one with --dataset_config_name: a, b"),
        (
            "no dataset",
            "no folder 'someone/nothing' here, and the Hub has no such dataset, or it is private: ",
        ),
        (
            "private dataset",
            "no folder 'someone/songs' here, and the Hub has no such dataset, or it is private: ",
        ),
    ],
)
def test_songs_that_the_hub_does_not_give(visit: Visit, name: str, message: str) -> None:
    ran = visit.ran[name]
    assert (ran.code, ran.out) == (1, "")
    assert f"musicgen-dreamboothing: {message}" in ran.err
    assert "Traceback" not in ran.err


def test_a_run_is_pushed_whole_and_nothing_else(visit: Visit) -> None:
    ran = visit.ran["push"]
    assert ran.code == 0, ran.err
    assert f"\nUploaded to {visit.hub.endpoint}/someone/my-run\nEvaluate: " in ran.out
    assert "note: the adapter will name its base " in ran.out  # which is a folder of this machine
    files = visit.hub.files("someone/my-run")
    marker = json.loads(files.pop(".musicgen-dreamboothing.json"))
    assert sorted(marker["files"]) == sorted(files)
    assert sorted(files) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for name, content in files.items():
        assert (visit.work / "my-run" / name).read_bytes() == content
    assert visit.hub.private("someone/my-run")
    assert visit.hub.strangers == []


def test_the_card_names_the_repository(visit: Visit) -> None:
    text = visit.hub.files("someone/my-run")["README.md"].decode()
    assert yaml.safe_load(text.split("---")[1])["instance_prompt"] == "punk"
    assert "\n# someone/my-run\n" in text
    assert 'repo_id = "someone/my-run"' in text
    assert str(visit.work) not in text


def test_a_finished_run_is_pushed_again_without_training(visit: Visit) -> None:
    ran = visit.ran["again"]
    assert ran.code == 0
    assert ran.err == ""
    note = ran.out.splitlines()[0]
    assert note.startswith("note: the adapter will name its base ")
    assert ran.out == (
        f"{note}\n"
        f"{visit.work}/my-run already holds this run, finished; --restart true trains it again\n"
        f"Uploaded to {visit.hub.endpoint}/someone/my-run\n"
    )


def test_a_repository_of_ones_choice(visit: Visit) -> None:
    ran = visit.ran["token"]
    assert ran.code == 0, ran.err
    assert ran.out.endswith(f"Uploaded to {visit.hub.endpoint}/someone/second\n")
    assert not visit.hub.private("someone/second")
    assert "adapter_model.safetensors" in visit.hub.files("someone/second")


def test_what_was_pushed_makes_music(visit: Visit) -> None:
    ran = visit.ran["generate"]
    assert ran.code == 0, ran.err
    assert "adapter someone/my-run: active in 29 of 29 layers" in ran.out
    assert audio.decode(visit.work / "out" / "00_punk_seed0_0.wav", SAMPLING_RATE).shape == (1, 3200)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unsigned", "can't write to the model 'unsigned' on the Hub (Client error '401 Unauthorized' for url"),
        ("stranger", "can't write to the model 'unsigned' on the Hub (Client error '401 Unauthorized' for url"),
        ("another's", "can't write to the model 'another/run' on the Hub (403 "),
        ("another's model", "can't write to the model 'another/model' on the Hub (403 "),
        ("bad name", "can't write to the model 'my run' on the Hub (Repo id must use alphanumeric chars"),
    ],
)
def test_a_missing_right_to_push_is_reported_before_the_training(visit: Visit, name: str, message: str) -> None:
    ran = visit.ran[name]
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith(f"musicgen-dreamboothing: {message}")
    assert ran.err.endswith("); try `hf auth login` or another --hub_model_id\n")
    assert ran.err.count("\n") == 1
    assert not (visit.work / "unsigned").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own model", "the model 'someone/model' on the Hub holds files that this program did not upload (README.md, "),
        (
            "public model",
            "the model 'someone/empty' on the Hub is public, and --hub_private_repo asks for a private one",
        ),
    ],
)
def test_a_repository_that_is_not_ours_is_refused_before_the_training(visit: Visit, name: str, message: str) -> None:
    ran = visit.ran[name]
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
    assert ran.err.startswith(f"musicgen-dreamboothing: {message}")
    assert not (visit.work / "unsigned").exists()
    assert visit.hub.files("someone/model") == OWN_MODEL


def test_a_dataset_of_others_is_refused_before_the_work(visit: Visit) -> None:
    ran = visit.ran["clips of others"]
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert (
        "holds files that this program did not upload (2019/forest.flac, 2020/sea.flac, README.md, notes.txt" in ran.err
    )
    assert "choose another --push_metadata_repo_id, or delete them there" in ran.err
    assert visit.hub.files("someone/forest", "dataset") == FOREST


def test_a_model_that_is_not_on_the_hub(visit: Visit) -> None:
    ran = visit.ran["nothing"]
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
    assert ran.err.startswith(
        "musicgen-dreamboothing: no folder 'someone/nothing' here, and the Hub has no such model, "
    )


def test_without_a_network_nothing_is_trained(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    ran = cli(*train_words(tmp_path, tmp_path / "run", tiny), "--push_to_hub", "true")  # HF_HUB_OFFLINE is set
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("musicgen-dreamboothing: can't write to the model 'run' on the Hub (Cannot reach ")
    assert not (tmp_path / "run").exists()


def test_described_clips_are_pushed_and_load_again(visit: Visit) -> None:
    assert [visit.ran[name].code for name in ("clips", "fewer clips")] == [0, 0], visit.ran["clips"].err
    assert f"uploaded to {visit.hub.endpoint}/datasets/someone/clips\n" in visit.ran["clips"].out
    names = ["README.md", "metadata.jsonl", "song-1-000.flac", "song-2-000.flac"]
    files = visit.hub.files("someone/clips", "dataset")
    assert (
        sorted(set(files) - {".musicgen-dreamboothing.json"}) == names
    )  # the deleted one is gone, though its file is still at home
    assert (visit.work / "described" / "clips" / "song-0-000.flac").exists()
    assert visit.hub.private("someone/clips", "dataset")  # as it was made
    assert "note: the dataset 'someone/clips' on the Hub is private and stays private" in visit.ran["fewer clips"].out
    assert json.loads(visit.ran["from clips"].out) == dict.fromkeys(names[2:], "punk")
    assert visit.ran["loaded"].code == 0, visit.ran["loaded"].err
    texts, sources, sizes = json.loads(visit.ran["loaded"].out.splitlines()[-1])
    assert (texts, sources) == (["punk", "punk"], ["song-1.wav", "song-2.wav"])
    assert sizes == [len(files[name]) for name in names[2:]]


def test_clips_are_not_worked_on_for_a_dataset_that_cannot_be_written(visit: Visit) -> None:
    ran = visit.ran["unsigned clips"]
    assert ran.code == 1
    assert "can't write to the dataset 'clips' on the Hub" in ran.err
    assert "try `hf auth login` or another --push_metadata_repo_id" in ran.err
    assert "cutting" not in ran.err
