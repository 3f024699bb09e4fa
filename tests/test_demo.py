"""The demo, run from a built wheel outside the checkout: what is not in the wheel is not there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import soundfile
from pages import Page, needs_nothing

ROOT = Path(__file__).parent.parent
DEMO = """
import shutil
from pathlib import Path
from musicgen_dreamboothing.arguments import DemoArguments
from musicgen_dreamboothing.console import printed
from musicgen_dreamboothing.demo.chain import demo
from musicgen_dreamboothing.demo.recipe import ASSETS, Recipe

def changed():
    return {path: path.stat().st_mtime_ns for name in ("**/*.wav", "run/*.*") for path in Path("here").glob(name)}

songs = Path("songs")
for name in ("01*", "02*", "03*", "validation/21*"):
    for path in ASSETS.glob(f"songs/{name}"):
        copy = songs / path.relative_to(ASSETS / "songs")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
recipe = Recipe(
    songs=songs, seconds=2.0, updates=4, variations=2, prompts=("punk in g major", "punk"), neutral_prompts=("folk",),
    classes=("folk",), class_clips=2,
)
options = DemoArguments(output_dir=str(Path("here").resolve()))
with printed():
    demo(options, recipe)
    before = changed()
    print("AGAIN")
    demo(options, recipe)
assert changed() == before
"""


@dataclass(frozen=True)
class Demo:
    """A finished demo: its folder, and what was printed in its first run and in its second."""

    folder: Path
    first: str
    second: str


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def finished(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """The demo with few songs, few updates and short clips, twice."""
    home = tmp_path_factory.mktemp("demo")
    zipfile.ZipFile(wheel).extractall(home / "installed")
    done = subprocess.run(
        [sys.executable, "-P", "-c", DEMO],
        cwd=home,
        env={**os.environ, "PYTHONPATH": str(home / "installed")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Demo(home / "here", *done.stdout.split("AGAIN"))


def test_wheel_holds_code_assets_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "musicgen_dreamboothing/assets/model_card.md.jinja" in names
    assert "musicgen_dreamboothing/assets/evaluation.html.jinja" in names
    assert "musicgen_dreamboothing/py.typed" in names
    assert {name.split("/")[0] for name in names} == {
        "musicgen_dreamboothing",
        "musicgen_dreamboothing-0.1.0.dist-info",
    }


def test_the_chain_prints_its_steps_and_the_next_commands(finished: Demo) -> None:
    assert all(f"[{step}/4]" in finished.first for step in range(1, 5))
    assert re.search(r"Evaluating on \d+ clips? of \d+ held-out songs?: validation/", finished.first)
    assert "musicgen-dreamboothing train --dataset_name YOUR_SONGS" in finished.first
    evaluation = finished.folder / "run" / "evaluation"
    address = (evaluation / "report.html").as_uri()
    assert finished.first.rstrip().endswith(f"\nopen this page in a browser: {address}")
    verdict = json.loads((evaluation / "report.json").read_text())["verdict"]
    assert all(f"- {sentence}" in finished.first for sentence in verdict)
    for folder, count, seconds in ((evaluation / "base", 6, 2), (evaluation / "tuned", 6, 2), ("plain", 2, 5)):
        clips = sorted((finished.folder / folder).glob("*.wav"))
        assert len(clips) == count
        assert all(soundfile.info(clip).duration >= seconds for clip in clips)


def test_the_adapter_learns_and_names_its_base(finished: Demo) -> None:
    summary = json.loads((finished.folder / "run" / "run.json").read_text())["summary"]
    assert summary["eval_loss"] < summary["loss_before"]
    base = json.loads((finished.folder / "run" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert (Path(base) / "model.safetensors").is_file()


def test_the_page_is_one_file_without_paths_of_this_machine(finished: Demo) -> None:
    page = (finished.folder / "run" / "evaluation" / "report.html").read_text(encoding="utf-8")
    needs_nothing(Page(page))
    assert str(finished.folder.parent) not in page


def test_a_second_run_trains_and_generates_nothing_again(finished: Demo) -> None:
    assert "already holds this run, finished" in finished.second
    assert "holds these clips already" in finished.second
    assert "held-out loss" not in finished.second
