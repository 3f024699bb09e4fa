"""The checkpoints of a training in the order of its own style metric, and in that of the report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from scipy.stats import spearmanr

from musicgen_dreamboothing.arguments import DemoArguments, EvaluateArguments
from musicgen_dreamboothing.data.prepare import prepare
from musicgen_dreamboothing.demo.recipe import Recipe, prepare_options, train_options
from musicgen_dreamboothing.evaluation.evaluate import evaluate
from musicgen_dreamboothing.training.settings import with_values
from musicgen_dreamboothing.training.train import train

SECONDS = 4.0  # of a clip
STYLE = {"metric_for_best_model": "style", "load_best_model_at_end": True, "greater_is_better": False}


@pytest.mark.slow
def test_the_style_metric_ranks_checkpoints_as_the_report_does(tmp_path: Path) -> None:
    recipe, run, prepared = Recipe(updates=120), tmp_path / "run", tmp_path / "prepared"
    prepare(prepare_options(recipe, prepared))
    options = train_options(recipe, prepared, run, DemoArguments())
    more = {"save_total_limit": None, "sample_seconds": SECONDS, "clap_model_name_or_path": "none"}
    train(with_values(options, **STYLE, **more))
    log = json.loads((run / "run.json").read_text())["log"]
    metric = {line["step"]: line["eval_style"] for line in log if line.get("eval_style") and line["step"]}
    steps = sorted(metric)
    assert len(steps) == 6
    report = {step: reported_distance(run, prepared, recipe, step) for step in steps}
    print("update, style metric, distance in the report:", [(step, metric[step], report[step]) for step in steps])
    assert spearmanr([metric[step] for step in steps], [report[step] for step in steps]).statistic >= 0.8
    best = min(metric, key=lambda step: metric[step])
    assert report[best] <= min(report.values()) + 0.1 * (max(report.values()) - min(report.values()))


def reported_distance(run: Path, prepared: Path, recipe: Recipe, step: int) -> float:
    """`style_distance` of a checkpoint with the report's own prompts and takes."""
    folder, base = run.with_name(f"of-{step}"), run.with_name("base-clips")
    shutil.copytree(run / f"checkpoint-{step}", folder)
    shutil.copy(run / "run.json", folder)
    if base.exists():  # the base's clips are made once
        shutil.copytree(base, folder / "evaluation" / "base")
    options = EvaluateArguments(
        run=str(folder),
        data=str(prepared),
        seconds=SECONDS,
        neutral_prompts=["folk music in e minor"],
        clap_model_name_or_path="none",
        base_model=str(recipe.base),
    )
    figures = {figure.key: figure.tuned for figure in evaluate(options).evaluation.figures}
    shutil.copytree(folder / "evaluation" / "base", base, dirs_exist_ok=True)
    distance = figures["style_distance"]
    assert distance is not None
    return distance
