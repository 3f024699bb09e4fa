"""`evaluate --strengths`: a page with the same clips at several strengths of an adapter."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from conftest import Ran, train_words

Cli = Callable[..., Ran]
ONCE = ("--max_steps", 1, "--eval_strategy", "no", "--eval_on_start", "false", "--save_strategy", "no")
SMALL = (
    *("--clap_model_name_or_path", "none", "--prompts", "punk", "--neutral_prompts", "a waltz"),
    *("--seconds", 0.5, "--variations", 2, "--song_excerpts", 4),
)


def test_strengths_are_compared_on_one_page(tiny: Path, prepared: Path, tmp_path: Path, cli: Cli) -> None:
    run = tmp_path / "run"
    assert cli(*train_words(prepared, run, tiny), *ONCE, "--learning_rate", 0.01).code == 0
    words = ("evaluate", run, *SMALL, "--strengths", 1, 0, 0.5)
    ran = cli(*words)
    assert ran.code == 0, ran.err
    folder = run / "evaluation"
    assert f"strengths to compare: {folder / 'strengths.html'}\n" in ran.out
    content = json.loads((folder / "strengths.json").read_text())
    assert [row["strength"] for row in content["strengths"]] == [0, 0.5, 1]
    assert all(row["clips"] == 2 and np.isfinite(row["style_distance"]) for row in content["strengths"])
    page = (folder / "strengths.html").read_text()
    assert page.count("<audio") == 2 * 3
    assert '<th class="left" scope="row">0.5</th>' in page
    # strength 0 is the base of the report, 1 its run
    for strength, side in (("0", "base"), ("1", "tuned")):
        clips = sorted((folder / "strengths" / strength).glob("*.npy"))
        assert len(clips) == 2
        assert all(np.array_equal(np.load(clip), np.load(folder / side / clip.name)) for clip in clips)
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("*.wav")}
    assert cli(*words).code == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.wav")} == written


def test_strengths_need_an_adapter_on_plain_weights(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"finished": True}), encoding="utf-8")
    assert "--strengths 7 must be at least -2 and at most 3" in cli("evaluate", tmp_path, "--strengths", 7).err
