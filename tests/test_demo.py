"""The demo, run from a built wheel outside the checkout: what is not in the wheel is not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import soundfile

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_wheel_holds_code_assets_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "musicgen_dreamboothing/assets/model_card.md.jinja" in names
    assert "musicgen_dreamboothing/py.typed" in names
    assert {name.split("/")[0] for name in names} == {
        "musicgen_dreamboothing",
        "musicgen_dreamboothing-0.1.0.dist-info",
    }


def test_demo_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "musicgen_dreamboothing", "demo", "--output_dir", "here"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    here = tmp_path / "here"
    assert all(f"[{step}/6]" in done.stdout for step in range(1, 7))
    assert "active in 29 of 29 layers" in done.stdout
    assert "musicgen-dreamboothing train --dataset_name YOUR_SONGS" in done.stdout
    for name in ("generated", "generated-plain"):
        files = sorted((here / name).glob("*.wav"))
        assert len(files) == 2
        assert all(soundfile.info(file).duration >= 5 for file in files)
    summary = json.loads((here / "run" / "run.json").read_text())["summary"]
    assert summary["eval_loss"] < summary["loss_before"]
