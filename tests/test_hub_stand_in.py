"""The Hub's stand-in as the real clients see it, from processes that have nothing but its environment.

Run as a script, this file is the client: it does one of its errands and prints what came of it as JSON.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub import LocalHub
from safetensors.numpy import save

LORA = {
    "README.md": b"---\nlicense: mit\n---\n# A LoRA\n",
    "adapter_config.json": b'{"r": 8}',
    "adapter_model.safetensors": save({"weight": np.arange(524_288, dtype=np.float32)}),
    "samples/a drum.flac": b"fLaC drum",
}
CARD = b"""---
configs:
- config_name: default
  data_files:
  - {split: train, path: data/train-*.parquet}
  - {split: test, path: data/test-*.parquet}
- config_name: loops
  data_files: loops/*.parquet
dataset_info:
  config_name: default
  features:
  - {name: audio, dtype: audio}
  - {name: text, dtype: string}
---
"""
FOLDER = {
    "drum.flac": b"fLaC drum",
    "more/flute.flac": b"fLaC flute",
    "metadata.jsonl": b'{"file_name": "drum.flac", "text": "a drum"}\n'
    b'{"file_name": "more/flute.flac", "text": "a flute"}\n',
}


def parquet(*names: str) -> bytes:
    """A parquet file of songs, their audio stored the way `datasets` does."""
    audio = [{"bytes": b"fLaC " + name.encode(), "path": f"{name}.flac"} for name in names]
    kept = io.BytesIO()
    pq.write_table(pa.table({"audio": audio, "text": [f"a {name}" for name in names]}), kept)
    return kept.getvalue()


def failure(action: Callable[[], object]) -> list[object]:
    """The name of the error that an action ends with, and the status of the answer."""
    with ThreadPoolExecutor() as pool:
        error = pool.submit(action).exception()
    return [type(error).__name__, getattr(getattr(error, "response", None), "status_code", None)]


def songs_of(repo: str, *config: str) -> dict[str, list[list[str]]]:
    """Load a dataset: the bytes and the text of the songs in each split."""
    from datasets import Audio, load_dataset

    def song(row: Mapping[str, Any]) -> list[str]:
        data = row["audio"]["bytes"] or Path(row["audio"]["path"]).read_bytes()
        return [data.decode(), row["text"]]

    splits = load_dataset(repo, *config).cast_column("audio", Audio(decode=False))
    return {str(split): [song(row) for row in rows] for split, rows in splits.items()}


def load_songs(_: Path) -> dict[str, Any]:
    """Load datasets of every layout."""
    from datasets import Audio

    # The original cannot so much as note a path without torchcodec.
    Audio.encode_example = lambda _, path: {"bytes": None, "path": path}
    return {
        "parquet": songs_of("someone/songs"),
        "config": songs_of("someone/songs", "loops"),
        "folder": songs_of("someone/folder"),
        "missing": failure(lambda: songs_of("someone/nothing")),
    }


def push_and_load(work: Path) -> dict[str, Any]:
    """Push a folder to a new repository, push it again, change it, and load what was first pushed."""
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    api, repo, folder = HfApi(), "someone/lora", work / "lora"
    made = api.create_repo(repo, private=True)
    api.create_repo(repo, exist_ok=True)
    first, again = (api.upload_folder(repo_id=repo, folder_path=folder) for _ in range(2))
    api.upload_folder(repo_id=repo, folder_path=folder / "samples", delete_patterns="adapter*")
    return {
        "made": [api.whoami()["name"], made.repo_id, made.repo_type],
        "commits": [first.oid, again.oid],
        "lfs": [file.lfs.sha256 for file in api.get_paths_info(repo, list(LORA), revision=first.oid) if file.lfs],
        "snapshot": snapshot_download(repo, revision=first.oid),
        "file": hf_hub_download(repo, "a drum.flac"),
    }


def fail(work: Path) -> dict[str, Any]:
    """Ask for what is not there, for what is not allowed, and for other hosts."""
    from huggingface_hub import HfApi, get_session, hf_hub_download

    api, nobody, stranger, repo = HfApi(), HfApi(token=False), HfApi(token="hf_wrong"), "someone/open"
    card = b"---\na: [\n---\n"
    return {
        "no repo": failure(lambda: hf_hub_download("someone/nothing", "config.json")),
        "no file": failure(lambda: hf_hub_download(repo, "nothing.json")),
        "no revision": failure(lambda: hf_hub_download(repo, "README.md", revision="v9")),
        "private": failure(lambda: nobody.model_info("someone/secret")),
        "wrong token": failure(lambda: stranger.model_info(repo)),
        "create unsigned": failure(lambda: nobody.create_repo("someone/new")),
        "push unsigned": failure(lambda: nobody.upload_folder(repo_id=repo, folder_path=work / "lora")),
        "create elsewhere": failure(lambda: api.create_repo("another/new")),
        "create twice": failure(lambda: api.create_repo(repo)),
        "write elsewhere": failure(lambda: api.auth_check("another/open", write=True)),
        "write": api.auth_check(repo, write=True),
        "race": failure(lambda: api.delete_file("README.md", repo, parent_commit=api.model_info("someone/lora").sha)),
        "bad card": failure(lambda: api.upload_file(repo_id=repo, path_or_fileobj=card, path_in_repo="README.md")),
        "other host": get_session().get("http://example.org/").status_code,
        "other host, https": failure(lambda: get_session().get("https://example.org/")),
    }


def fail_unsigned(work: Path) -> dict[str, Any]:
    """Push without a token, as somebody who never signed in."""
    from huggingface_hub import HfApi, get_token

    pushed = failure(lambda: HfApi().upload_folder(repo_id="someone/open", folder_path=work / "lora"))
    return {"token": get_token(), "pushed": pushed}


def client(work: Path, errands: list[str]) -> None:
    """Do the errands, and tell what came of them and for which hosts a socket was meant."""
    hosts: set[str] = set()

    def listen(event: str, args: tuple[Any, ...]) -> None:
        if event == "socket.getaddrinfo":
            hosts.add(str(args[0]))
        elif event == "socket.connect" and isinstance(args[1], tuple):
            hosts.add(str(args[1][0]))

    sys.addaudithook(listen)
    seen = {errand: globals()[errand](work) for errand in errands}
    print(json.dumps({**seen, "hosts": sorted(hosts)}))


@dataclass
class Visit:
    """A hub that clients have used, and what they told."""

    hub: LocalHub
    work: Path

    def run(self, *errands: str, signed_in: bool = True) -> Any:
        environment = {**os.environ, **self.hub.environment(self.work / "home", signed_in=signed_in)}
        command = [sys.executable, __file__, str(self.work), *errands]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def visit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visit]:
    work = tmp_path_factory.mktemp("client")
    for path, data in LORA.items():
        (work / "lora" / path).parent.mkdir(parents=True, exist_ok=True)
        (work / "lora" / path).write_bytes(data)
    songs = {"data/train-0.parquet": parquet("drum", "flute"), "data/test-0.parquet": parquet("harp")}
    with LocalHub() as hub:
        hub.add("someone/open", {"README.md": b"# Open\n"})
        hub.add("another/open", {"README.md": b"# Open\n"})
        hub.add("someone/secret", {"README.md": b"# Secret\n"}, private=True)
        hub.add("someone/songs", {"README.md": CARD, "loops/0.parquet": parquet("loop"), **songs}, repo_type="dataset")
        hub.add("someone/folder", FOLDER, repo_type="dataset")
        yield Visit(hub, work)


@pytest.fixture(scope="module")
def seen(visit: Visit) -> Any:
    return visit.run("push_and_load", "load_songs", "fail")


def test_a_pushed_folder_comes_back_the_same(seen: Any) -> None:
    told = seen["push_and_load"]
    assert told["made"] == ["someone", "someone/lora", "model"]
    snapshot = Path(told["snapshot"])
    there = {path.relative_to(snapshot).as_posix(): path.read_bytes() for path in snapshot.rglob("*") if path.is_file()}
    assert there == LORA
    assert Path(told["file"]).read_bytes() == LORA["samples/a drum.flac"]


def test_large_files_are_in_lfs(visit: Visit, seen: Any) -> None:
    weights = hashlib.sha256(LORA["adapter_model.safetensors"]).hexdigest()
    drum = hashlib.sha256(LORA["samples/a drum.flac"]).hexdigest()
    assert sorted(seen["push_and_load"]["lfs"]) == sorted([weights, drum])
    assert weights in visit.hub.objects


@pytest.mark.usefixtures("seen")
def test_the_hub_tells_what_it_was_given(visit: Visit) -> None:
    kept = {"README.md", "samples/a drum.flac"}
    drum = {"a drum.flac": LORA["samples/a drum.flac"]}
    assert visit.hub.files("someone/lora") == {path: LORA[path] for path in kept} | drum
    assert visit.hub.private("someone/lora")
    assert not visit.hub.private("someone/songs", "dataset")
    with pytest.raises(KeyError):
        visit.hub.files("someone/new")


def test_unchanged_files_make_no_commit(seen: Any) -> None:
    first, again = seen["push_and_load"]["commits"]
    assert first == again


def test_datasets_loads_every_layout(seen: Any) -> None:
    drum, flute = ["fLaC drum", "a drum"], ["fLaC flute", "a flute"]
    told = seen["load_songs"]
    assert told["parquet"] == {"train": [drum, flute], "test": [["fLaC harp", "a harp"]]}
    assert told["config"] == {"train": [["fLaC loop", "a loop"]]}
    assert told["folder"] == {"train": [drum, flute]}


def test_what_is_missing_raises_the_error_of_its_kind(seen: Any) -> None:
    told = seen["fail"]
    assert told["no repo"] == ["RepositoryNotFoundError", 404]
    assert told["no file"] == ["RemoteEntryNotFoundError", 404]
    assert told["no revision"] == ["RevisionNotFoundError", 404]
    assert seen["load_songs"]["missing"] == ["DatasetNotFoundError", None]


def test_what_is_not_allowed_fails(seen: Any) -> None:
    told = seen["fail"]
    assert told["private"] == told["push unsigned"] == ["RepositoryNotFoundError", 401]
    assert told["wrong token"] == told["create unsigned"] == ["HfHubHTTPError", 401]
    assert told["create elsewhere"] == ["HfHubHTTPError", 403]
    assert told["create twice"] == ["HfHubHTTPError", 409]
    assert told["write elsewhere"] == ["HfHubHTTPError", 403]
    assert told["write"] is None
    assert told["race"] == ["HfHubHTTPError", 412]
    assert told["bad card"][0] == "ValueError"


def test_nothing_leaves_for_other_hosts(visit: Visit, seen: Any) -> None:
    assert seen["hosts"] == ["127.0.0.1"]
    assert seen["fail"]["other host"] == 403
    assert seen["fail"]["other host, https"][0] == "ProxyError"
    assert visit.hub.strangers == ["GET http://example.org/", "CONNECT example.org:443"]


def test_without_a_token_nothing_is_pushed(visit: Visit) -> None:
    told = visit.run("fail_unsigned", signed_in=False)
    assert told["fail_unsigned"] == {"token": None, "pushed": ["RepositoryNotFoundError", 401]}
    assert visit.hub.files("someone/open") == {"README.md": b"# Open\n"}


if __name__ == "__main__":
    client(Path(sys.argv[1]), sys.argv[2:])
