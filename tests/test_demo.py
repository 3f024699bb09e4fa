"""The demo, run from a built wheel outside the checkout: what is not in the wheel is not there."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
from pages import Page, needs_nothing
from PIL import Image

from musicgen_dreamboothing.demo.page import MELS, picture

ROOT = Path(__file__).parent.parent
DEMO = """
from pathlib import Path
from musicgen_dreamboothing.arguments import DemoArguments
from musicgen_dreamboothing.demo.chain import Recipe, demo
demo(DemoArguments(output_dir=str(Path("here").resolve())), Recipe(seconds=2.0, updates=8))
"""


@dataclass(frozen=True)
class Shown:
    """A finished demo: its folder, its page, what was said in its first run and in its second."""

    folder: Path
    page: str
    first: str
    second: str
    kept: bool  # whether the second run left the adapter and all clips alone


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def shown(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """The demo with few updates and short clips, twice."""
    home = tmp_path_factory.mktemp("demo")
    zipfile.ZipFile(wheel).extractall(home / "installed")
    first = run_demo(home)
    times = times_of_results(home / "here")
    second = run_demo(home)
    page = (home / "here" / "index.html").read_text(encoding="utf-8")
    return Shown(home / "here", page, first, second, times_of_results(home / "here") == times)


def run_demo(home: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-c", DEMO],
        cwd=home,
        env={**os.environ, "PYTHONPATH": str(home / "installed")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def times_of_results(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for name in ("*/*.wav", "run/*.*") for path in folder.glob(name)}


def test_wheel_holds_code_assets_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "musicgen_dreamboothing/assets/model_card.md.jinja" in names
    assert "musicgen_dreamboothing/assets/demo.html.jinja" in names
    assert "musicgen_dreamboothing/py.typed" in names
    assert {name.split("/")[0] for name in names} == {
        "musicgen_dreamboothing",
        "musicgen_dreamboothing-0.1.0.dist-info",
    }


def test_the_chain_says_its_steps_and_what_comes_next(shown: Shown) -> None:
    assert all(f"[{step}/7]" in shown.first for step in range(1, 8))
    assert re.search(r"active in (\d+) of \1 layers", shown.first)
    assert re.search(r"Evaluating on \d+ clips? of \d+ held-out songs?: validation/", shown.first)
    assert "musicgen-dreamboothing train --dataset_name YOUR_SONGS" in shown.first
    assert (shown.folder / "index.html").as_uri() in shown.first
    assert re.search(r"teaching or luck\? 3 seeds.*\n  musicgen-dreamboothing demo .*--proof true", shown.first)
    verdict = json.loads((shown.folder / "run" / "evaluation" / "report.json").read_text())["verdict"]
    assert all(f"- {sentence}" in shown.first for sentence in verdict)
    assert (shown.folder / "run" / "evaluation" / "report.html").is_file()
    for name, count, seconds in (("before", 4, 2), ("after", 4, 2), ("plain", 2, 5)):
        clips = sorted((shown.folder / name).glob("*.wav"))
        assert len(clips) == count
        assert all(soundfile.info(clip).duration >= seconds for clip in clips)


def test_the_adapter_learns_and_names_its_base(shown: Shown) -> None:
    summary = json.loads((shown.folder / "run" / "run.json").read_text())["summary"]
    assert summary["eval_loss"] < summary["loss_before"]
    base = json.loads((shown.folder / "run" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert (Path(base) / "model.safetensors").is_file()


def test_before_and_after_differ(shown: Shown) -> None:
    for before in sorted((shown.folder / "before").glob("*.wav")):
        after = shown.folder / "after" / before.name
        assert not np.array_equal(soundfile.read(before)[0], soundfile.read(after)[0])


def test_the_page_is_one_file(shown: Shown) -> None:
    places = re.findall(r"""(?:src|href|action|data|poster)\s*=\s*["']([^"']*)""", shown.page)
    assert len(places) == 16
    assert all(place.startswith("data:") for place in places)
    assert not re.search(r"https?:|url\(|@import|<script|<link|<iframe|\son\w+=", shown.page)
    needs_nothing(Page(shown.page), scripts=0)


def test_the_page_holds_the_clips_and_their_pictures(shown: Shown) -> None:
    sounds = re.findall(r'<audio controls[^>]* src="data:audio/wav;base64,([^"]*)"', shown.page)
    pictures = re.findall(r'<img src="data:image/png;base64,([^"]*)" alt="Spectrogram [^"]+"', shown.page)
    befores = sorted((shown.folder / "before").glob("*.wav"))
    clips = [path for before in befores for path in (before, shown.folder / "after" / before.name)]
    assert [base64.b64decode(sound) for sound in sounds] == [clip.read_bytes() for clip in clips]
    assert [base64.b64decode(drawn) for drawn in pictures] == [c.with_suffix(".png").read_bytes() for c in clips]


def test_the_figures_are_those_of_the_run(shown: Shown) -> None:
    record = json.loads((shown.folder / "run" / "run.json").read_text())
    summary = record["summary"]
    cells = re.findall(r"<td>(.*?)</td>", shown.page)
    after = [value for name, value in summary.items() if name == "eval_loss" or name.startswith("eval_ce_q")]
    assert cells[: 2 * len(after)][1::2] == [f"{value:.3f}" for value in after]
    assert cells[0] == f"{summary['loss_before']:.3f}"
    assert "–" not in cells
    assert cells[2 * len(after) : -2] == [
        str(summary["updates"]),
        f"{summary['seconds']:.0f}",
        f"{summary['x_real_time']:.1f}x real time",
        f"{summary['peak_gb']:.2f} GB",
    ]
    adapter = shown.folder / "run" / "adapter_model.safetensors"
    assert cells[-2] == f"{adapter.stat().st_size / 1e6:.1f} MB"
    assert f">{summary['updates']} updates</text>" in shown.page
    assert str(shown.folder.parent) not in shown.page  # paths are nobody's business


def test_a_second_run_trains_and_plays_nothing_again(shown: Shown) -> None:
    assert "holds this run already, finished" in shown.second
    assert shown.second.count("holds these clips already") == 3
    assert "held-out loss" not in shown.second
    assert shown.kept


def test_a_picture_shows_pitch_upwards_and_silence_dark() -> None:
    times = np.arange(16_000) / 16_000
    tone = np.sin(2 * np.pi * 6000 * times).astype(np.float32)[None]
    image = Image.open(io.BytesIO(picture(tone)))
    shades = np.asarray(image)
    assert shades.shape[0] == MELS
    assert 5 <= shades.mean(axis=1).argmax() < MELS // 4  # rows count from the top, which is 8 kHz
    assert np.asarray(Image.open(io.BytesIO(picture(0 * tone)))).max() == 0
