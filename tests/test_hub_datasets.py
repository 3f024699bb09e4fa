"""Songs of datasets on the Hub, in the shape of its stand-in: with and without a network and a login."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub import LocalHub
from test_datasets import AUDIO, DECLARED, cells, flac, saved_splits, shard, table, tiny_punk

from musicgen_dreamboothing.data.songs.song import Columns
from musicgen_dreamboothing.data.songs.sources import find_songs

# Finds songs in each repository, reads them, and prints what came of it.
CLIENT = """
import json, os, sys
from pathlib import Path
from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.data.songs.song import Columns
from musicgen_dreamboothing.data.songs.sources import find_songs

def visit(name, columns, token=None):
    if token is not None:
        os.environ["HF_TOKEN"] = os.environ["HUGGING_FACE_HUB_TOKEN"] = token
    try:
        found = find_songs(name, Columns(**columns))
    except UserError as error:
        return str(error)
    sizes = [len(c if isinstance(c, bytes) else c.read_bytes()) for c in (song.read() for song in found.songs)]
    return [[[song.name, song.caption, size, song.fingerprint] for song, size in zip(found.songs, sizes)], found.notes]

print(json.dumps({key: visit(*what) for key, what in json.loads(sys.argv[1]).items()}))
"""
VISITS: dict[str, tuple[str, dict[str, Any]]] = {
    "punk": (
        "someone/punk",
        {"config": "default", "train_split": "clean", "eval_split": "noisy", "audio": "others", "text": "genre"},
    ),
    "saved": ("someone/saved", {"train_split": "clean", "audio": "others"}),
    "files": ("someone/files", {}),
    "tar": ("someone/tar", {}),
    "paths": ("someone/paths", {"audio": "sound"}),
    "beside": ("someone/beside", {}),
    "foreign": ("someone/foreign", {}),
}
LIMITED: dict[str, tuple[str, dict[str, Any]]] = {
    "limited parquet": ("someone/large", {"max_train_songs": 2}),
    "limited tar": ("someone/large-tar", {"max_train_songs": 1}),
}
ARCHIVES: dict[str, tuple[str, dict[str, Any]]] = {"archives": ("someone/archives", {})}
WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "config": ("someone/punk", {"config": "live"}),
    "split": ("someone/punk", {"train_split": "train"}),
    "column": ("someone/punk", {"train_split": "clean", "audio": "choir"}),
    "gated": ("someone/gated", {}),
    "gated files": ("someone/gated-files", {}),
    "script": ("someone/script", {}),
    "packed": ("someone/packed", {}),
    "nothing": ("someone/nothing", {}),
    "empty": ("someone/empty", {}),
}
# The third value is a token, which counts from then on.
UNSIGNED: dict[str, tuple[str, dict[str, Any], str]] = {
    "unsigned private": ("someone/private", {}, ""),
    "unsigned gated": (*WRONG["gated"], ""),
    "unsigned gated files": (*WRONG["gated files"], ""),
}
STRANGER: dict[str, tuple[str, dict[str, Any], str]] = {"stranger": ("someone/files", {}, "hf_wrong")}
SIDECARS = ("a.txt", "b.json", "metadata.csv", "metadata.jsonl", "c.caption", "d.caption.txt", "e.wav.txt", "f.cue")


def bytes_of(content: pa.Table, folder: Path) -> bytes:
    pq.write_table(content, folder / "content")
    return (folder / "content").read_bytes()


def fill(hub: LocalHub, work: Path) -> None:
    """Dataset repositories of every layout."""

    def add(name: str, files: dict[str, bytes], **more: Any) -> None:
        hub.add(f"someone/{name}", files, repo_type="dataset", **more)

    punk = bytes_of(tiny_punk(), work)
    readme = DECLARED.replace("not-downloaded", "more").encode()
    add("punk", {"README.md": readme, "songs/0.parquet": punk, "more/0.parquet": punk})
    saved_splits(work / "saved", tiny_punk())
    add("saved", {path.relative_to(work / "saved").as_posix(): path.read_bytes() for path in all_files(work / "saved")})
    add("files", {"a.FLAC": flac(0), "more/b.flac": flac(1)} | dict.fromkeys(SIDECARS, b"") | {"a.txt": b"slow"})
    add("tar", {f"data/train-{n}.tar": archive(work, n) for n in range(2)})
    paths = table({"sound": ["songs/0.flac", "songs/gone.flac", "../../0.flac"]})
    add("paths", {"train.parquet": bytes_of(paths, work), "songs/0.flac": flac(0)})
    add("beside", {"demo.flac": flac(3), "data/train.parquet": bytes_of(two_songs(0), work)})
    plays = bytes_of(table({"title": ["a"], "plays": [3]}), work)
    add("foreign", {"a.flac": flac(0), "a.txt": b"slow", "plays.parquet": plays})
    add("archives", {"a.flac": flac(0), "copy.tar": archive(work, 1)})
    add("large", {f"data/train-0000{n}-of-00004.parquet": bytes_of(two_songs(n), work) for n in range(4)})
    add("large-tar", {f"train-{n}.tar": archive(work, n) for n in range(4)})
    for name, files in (
        ("gated", {"README.md": readme, "songs/0.parquet": punk}),
        ("gated-files", {"a.flac": flac(0)}),
    ):
        add(name, files, gated=True)
    add("packed", {"README.md": b"", "songs.zip": b""})
    add("script", {"script.py": b"", "README.md": b"", "songs.zip": b""})
    add("empty", {"README.md": b""})
    add("private", {"a.flac": flac(0)}, private=True)


def all_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def archive(work: Path, number: int) -> bytes:
    shard(work / "shard.tar", {"a.flac": flac(number), "a.json": b'{"text": "slow"}'})
    return (work / "shard.tar").read_bytes()


def two_songs(number: int) -> pa.Table:
    return table({"audio": cells(2 * number, 2 * number + 1)}, audio=AUDIO)


@dataclass
class Client:
    """What came of the visits of processes that know this hub only."""

    hub: LocalHub
    home: Path
    online: dict[str, Any] = field(default_factory=dict)
    offline: dict[str, Any] = field(default_factory=dict)
    disconnected: dict[str, Any] = field(default_factory=dict)

    def run(self, visits: dict[str, Any], **more: str) -> Any:
        environment = {**os.environ, **self.hub.environment(self.home), **more}
        command = [sys.executable, "-c", CLIENT, json.dumps(visits)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """All visits, first with the hub, then with what the cache has."""
    work = tmp_path_factory.mktemp("hub")
    with LocalHub() as hub:
        fill(hub, work)
        client = Client(hub, work / "home")
        client.online = client.run(VISITS | LIMITED | ARCHIVES | WRONG | UNSIGNED | STRANGER)
    client.offline = client.run(VISITS | LIMITED | {"gone": ("someone/gone", {})}, HF_HUB_OFFLINE="1")
    client.disconnected = client.run({"punk": VISITS["punk"], "gone": ("someone/gone", {})})
    return client


def test_songs_of_every_layout(client: Client) -> None:
    collection = {key: [song[:3] for song in client.online[key][0]] for key in VISITS}
    size = [len(flac(seed)) for seed in range(2)]
    assert collection == {
        "punk": [
            [f"{split}/00000{row}", caption, size[row]]
            for split in ("clean", "noisy")
            for row, caption in enumerate(("rock", "punk"))
        ],
        "saved": [["clean/000000", "slow", size[0]], ["clean/000001", None, size[1]]],
        "files": [["a.FLAC", "slow", size[0]], ["more/b.flac", None, size[1]]],
        "tar": [[f"train/data/train-{n}/a.flac", "slow", size[n]] for n in range(2)],
        "paths": [["train/000000", None, size[0]]],
        "beside": [["train/000000", None, size[0]], ["train/000001", None, size[1]]],
        "foreign": [["a.flac", "slow", size[0]]],
    }
    assert client.online["paths"][1] == [
        "2 rows whose audio file is missing: train/000001 (songs/gone.flac), train/000002 (../../0.flac)"
    ]


@pytest.mark.parametrize("key", ["tar", "paths", "beside", "foreign", "archives"])
def test_a_clone_has_the_songs_of_the_hub(client: Client, tmp_path: Path, key: str) -> None:
    name, columns = (VISITS | ARCHIVES)[key]
    stored = client.hub.files(name, "dataset")
    for path, content in stored.items():
        (tmp_path / "clone" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "clone" / path).write_bytes(content)
    collection = find_songs(str(tmp_path / "clone"), Columns(**columns), cache_dir=str(tmp_path / "cache"))
    assert [[song.name, song.caption] for song in collection.songs] == [song[:2] for song in client.online[key][0]]


def test_tables_or_audio_files_that_are_not_read_are_named(client: Client) -> None:
    assert client.online["beside"][1] == ["1 audio file not read, for the songs come from tables: demo.flac"]
    for key, name in (("foreign", "plays.parquet"), ("archives", "copy.tar")):
        assert client.online[key][1] == [f"1 table not read, for the songs come from audio files: {name}"]


@pytest.mark.parametrize("key", VISITS)
def test_what_was_downloaded_is_there_without_a_network(client: Client, key: str) -> None:
    assert client.offline[key] == client.online[key]  # with fingerprints: nothing is cut again


def test_a_hub_that_cannot_be_reached_is_no_hindrance(client: Client) -> None:
    assert client.disconnected["punk"] == client.online["punk"]
    assert client.offline["gone"] == client.disconnected["gone"]
    assert client.offline["gone"] == (
        "no folder 'someone/gone' here, and as a Hub dataset it can't be loaded: the Hub can't be reached, "
        "and the cache does not hold it; connect once, or give a folder of songs"
    )


def test_no_more_is_downloaded_than_is_trained_on(client: Client) -> None:
    for key, repo, files, songs in (("parquet", "large", 2, 4), ("tar", "large-tar", 2, 2)):
        assert len(client.online[f"limited {key}"][0]) == songs
        assert client.offline[f"limited {key}"] == client.online[f"limited {key}"]
        gets = [line for line in client.hub.requests if line.startswith("GET") and f"{repo}/resolve" in line]
        assert len({line for line in gets if line.endswith((".parquet", ".tar"))}) == files


def test_all_sidecars_come_along(client: Client) -> None:
    snapshots = client.home / "hub" / "datasets--someone--files" / "snapshots"
    assert set(SIDECARS) <= {path.name for path in snapshots.rglob("*")}


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("config", "no configuration 'live' in someone/punk; --dataset_config_name takes default"),
        ("split", "no split 'train' in someone/punk; it has clean, noisy"),
        ("column", "no column 'choir' in someone/punk; it has audio, vocals, bass, drums, cover, clip, others, genre"),
        (
            "gated",
            "the dataset someone/gated is gated: accept its conditions at {}/datasets/someone/gated, then log in",
        ),
        (
            "gated files",
            "the dataset someone/gated-files is gated: accept its conditions at {}/datasets/someone/gated-",
        ),
        ("script", "someone/script is a loading script (script.py), which `datasets` no longer runs; take its Parquet"),
        (
            "packed",
            "someone/packed has no audio, Parquet, Arrow or tar files; it has README.md, songs.zip; unpack it: ",
        ),
        ("empty", "someone/empty has no audio, Parquet, Arrow or tar files; it has README.md"),
        (
            "nothing",
            "no folder 'someone/nothing' here, and the Hub has no such dataset, or it is private: check the name, "
            "or log in with `hf auth login` or pass --token",
        ),
    ],
)
def test_what_cannot_be_read_is_reported_in_one_line(client: Client, key: str, message: str) -> None:
    assert client.online[key].startswith(message.format(client.hub.endpoint))
    assert "\n" not in client.online[key]


def test_a_missing_login_is_reported(client: Client) -> None:
    assert client.online["unsigned private"] == client.online["nothing"].replace("nothing", "private")
    for key in ("gated", "gated files"):
        assert client.online[f"unsigned {key}"] == client.online[key]
    refusal = "the Hub refuses the token for the dataset someone/files (HTTP 401): log in with `hf auth login` or pass "
    assert client.online["stranger"] == refusal + "--token"
