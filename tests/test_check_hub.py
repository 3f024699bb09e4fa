"""tools/check_hub.py: what is said of checkpoints on the Hub before anything large is downloaded."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hub import LocalHub
from layouts import Layout, write_layout

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))

import check_hub

pytestmark = pytest.mark.slow  # of scripts beside the package

LAYOUTS = {
    "facebook/musicgen-large": Layout("text", "4.31", "flagged", "weight_g", "present", "bin shards", embedding="both"),
    "facebook/musicgen-stereo-melody": Layout("melody-stereo", "4.41", "unflagged", "weight_g", dtype="float16"),
    "someone/sharded": Layout(weights="safetensors shards", generation="absent", tokenizer="spiece.model"),
    "someone/one-bin": Layout(weights="bin", generation="broken"),
}
WEIGHTS = (".safetensors", ".bin")


def add_checkpoints(hub: LocalHub, checkpoints: Callable[[str], Path], root: Path) -> None:
    for name, layout in LAYOUTS.items():
        folder = Path(write_layout(layout, checkpoints(layout.kind), root / name)[0])
        hub.add(name, {path.name: path.read_bytes() for path in folder.iterdir()})
    files = hub.files("someone/sharded")
    hub.add("someone/torn", {name: data for name, data in files.items() if "00002" not in name})
    config = files["config.json"].replace(b'"num_hidden_layers": 2', b'"num_hidden_layers": 3')
    hub.add("someone/other-config", files | {"config.json": config})
    hub.add("someone/t5", {"config.json": b'{"model_type": "t5"}'})
    hub.add("someone/weightless", {name: data for name, data in files.items() if ".safetensors" not in name})


def test_metadata_tells_what_would_load(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    names = [*LAYOUTS, "someone/torn", "someone/other-config", "someone/t5", "someone/weightless"]
    names += ["someone/nothing", "no name"]
    with LocalHub() as hub:
        add_checkpoints(hub, checkpoints, tmp_path / "made")
        done = subprocess.run(
            [sys.executable, check_hub.__file__, *names],
            env={**os.environ, **hub.environment(tmp_path / "home")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1, done.stderr
        rows = {line.split("  ")[0]: re.split(r"  +", line) for line in done.stdout.splitlines()[1:]}
        assert list(rows) == names
        large, stereo = rows["facebook/musicgen-large"], rows["facebook/musicgen-stereo-melody"]
        bin_shards = "pytorch_model.bin in shards, 0.0 GB, sizes unread"
        assert large[2:] == ["musicgen, 4 codebooks", bin_shards, "tokenizer.json", "flagged", "loads"]
        assert stereo[2] == "musicgen_melody, 8 codebooks"
        assert stereo[3:] == ["model.safetensors, 0.00B F16", "tokenizer.json", "without flag", "loads"]
        assert rows["someone/sharded"][4:] == ["spiece.model", "absent", "loads"]
        assert rows["someone/one-bin"][5:] == ["broken", "loads if its weights have the right names"]
        assert "00002" in rows["someone/torn"][-1]
        assert "lacks weights that its config.json asks for" in rows["someone/other-config"][-1]
        assert "is a 't5' model" in rows["someone/t5"][-1]
        assert "neither model.safetensors nor pytorch_model.bin" in rows["someone/weightless"][-1]
        assert "404" in rows["someone/nothing"][-1]
        fetched = [path for path in (tmp_path / "home").rglob("*") if path.name.endswith(WEIGHTS)]
        assert fetched == []
        assert not any(request.startswith("GET") and ".bin " in f"{request} " for request in hub.requests)


def test_without_a_network_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert check_hub.main([]) == 1
    said = capsys.readouterr()
    assert said.out.startswith("check_hub: the Hub cannot be reached")
    assert (said.out.count("\n"), said.err) == (1, "")


def test_the_published_checkpoints_are_ten() -> None:
    assert len(set(check_hub.PUBLISHED)) == 10
    assert "facebook/musicgen-stereo-melody-large" in check_hub.PUBLISHED
