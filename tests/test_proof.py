"""The proof of the demo: several seeds, both ways, and a run too long, each trained and judged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from musicgen_dreamboothing.arguments import DemoArguments
from musicgen_dreamboothing.data.prepare import prepare
from musicgen_dreamboothing.demo.proof import LONG, PLAIN, PRIOR, Proved, conclusions, prove
from musicgen_dreamboothing.demo.recipe import Recipe, evaluate_options, prepare_options, train_options
from musicgen_dreamboothing.evaluation.evaluate import evaluate
from musicgen_dreamboothing.training.train import train

SMALL = Recipe(
    new=("punk",), known=("a ballad",), judged=((), ()), takes=2, seconds=2.0,
    updates=2, seeds=1, too_long=3, known_styles=("ballad", "folk"), class_clips=2,
)  # fmt: skip


def test_each_run_is_trained_and_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepared, run, options = tmp_path / "prepared", tmp_path / "run", DemoArguments(seed=5)
    prepare(prepare_options(SMALL, prepared))
    train(train_options(SMALL, prepared, run, options))
    judged = evaluate(evaluate_options(SMALL, prepared, run, options))
    assert judged is not None
    capsys.readouterr()
    found = prove(SMALL, prepared, tmp_path / "proof", options, (run, judged.evaluation))
    assert [(one.way, one.seed, one.updates, one.clips) for one in found] == [
        (PLAIN, 5, 2, 2),
        (PRIOR, 5, 2, 2),
        (LONG, 5, 6, 2),
    ]
    said = capsys.readouterr().out
    assert f": {run}\n" not in said  # the demo's own run is that of the first seed
    assert all(line in said for line in conclusions(found))
    assert len({one.loss for one in found}) == 3  # as many trainings
    assert len({one.loss_before for one in found}) == 1  # of one base
    kept = json.loads((tmp_path / "proof" / "proof.json").read_text())
    assert [one["loss"] for one in kept] == [one.loss for one in found]
    with_prior = json.loads((tmp_path / "proof" / "with-prior-5" / "run.json").read_text())["options"]
    assert with_prior["with_prior_preservation"]
    assert all(
        (tmp_path / "proof" / name / "evaluation" / "report.html").is_file() for name in ("with-prior-5", "too-long-5")
    )


def row(way: str, seed: int, **changed: float) -> Proved:
    usual = Proved(way, seed, 240, 13.0, 2.0, 0.8, (0.7, 0.9), 30.0, (20.0, 40.0), 0, 20)
    return replace(usual, **changed)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ([row(PLAIN, 0)], "held-out loss went down in 1 of 1 runs"),
        ([row(PLAIN, 0), row(PLAIN, 1, loss=14.0)], "held-out loss went down in 1 of 2 runs"),
        (
            [row(PLAIN, 0), row(PRIOR, 0, gone=0.59)],
            "clips went 60 % of the way to held-out songs or more in 1 of 2 runs",
        ),
        ([row(PLAIN, 0, copies=1), row(LONG, 0, copies=9)], "near-copies of songs: 1 of 20 clips"),
        ([row(PLAIN, 0), row(LONG, 0, copies=9, updates=4800)], "near-copies after 4800 updates: 9 of 20 clips"),
        (
            [row(PLAIN, 0), row(PRIOR, 0, drift=10.0), row(PLAIN, 1), row(PRIOR, 1, drift=32.0)],
            "other music drifted less with prior preservation with 1 of 2 seeds: 21.0 with it, 30.0 without",
        ),
    ],
)
def test_conclusions_say_what_was_found(found: list[Proved], told: str) -> None:
    assert told in conclusions(found)
