"""`evaluate`: a run beside its base, by ear and by numbers; and what a training does with those numbers."""

from __future__ import annotations

import contextlib
import io
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import yaml
from conftest import Ran, precision_of_cpu, read_checkpoint, tables_in, tone_song, train_words
from test_encoder import write_hubert

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.arguments import EvaluateArguments
from musicgen_dreamboothing.cli import main
from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.evaluation.clips import ClipPlan, EvaluatedClip, generate_clips, load_clips
from musicgen_dreamboothing.evaluation.collect import EvaluationData
from musicgen_dreamboothing.evaluation.evaluate import evaluate
from musicgen_dreamboothing.evaluation.figures import collapsed_prompts
from musicgen_dreamboothing.evaluation.figures import figures_of as compute_figures
from musicgen_dreamboothing.evaluation.metrics import copies
from musicgen_dreamboothing.evaluation.metrics.embedding import SignalEmbedder
from musicgen_dreamboothing.evaluation.plan import style_prompts, usual_prompts
from musicgen_dreamboothing.evaluation.references import Excerpts
from musicgen_dreamboothing.evaluation.report import read_report
from musicgen_dreamboothing.evaluation.result import NEUTRAL, STYLE
from musicgen_dreamboothing.files import folder_lock
from musicgen_dreamboothing.model import codec
from musicgen_dreamboothing.model.checkpoint import load_codec

Cli = Callable[..., Ran]
SOON = ["--seconds", 1, "--variations", 2, "--song_excerpts", 8, "--clap_model_name_or_path", "none"]
TWO_PROMPTS = ["--prompts", "punk at 120 bpm in a minor", "punk", "--neutral_prompts", "a quiet song"]
EXTRAS = ["--blind", "true", "--save_embeddings", "true"]
USUAL = [prompt.format(word="punk") for prompt in usual_prompts()[STYLE]]
QUICK = ["--learning_rate", 0.01, "--seed", 3]
ROUNDING = {"float32": 1e-5, "bfloat16": 2**-8}  # of a loss that is computed in another order; bf16 has 8 bits


def evaluate_words(run: Path, *more: object) -> list[object]:
    return ["evaluate", run, *SOON, *TWO_PROMPTS, *more]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, prepared: Path, tiny: Path) -> Path:
    """A folder with prepared songs and a run on them that was evaluated; what was printed is in `said.txt`."""
    root = tmp_path_factory.mktemp("evaluated")
    shutil.copytree(prepared, root / "songs")
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main([str(word) for word in [*train_words(root / "songs", root / "run", tiny), *QUICK]]) == 0
        assert main([str(word) for word in evaluate_words(root / "run", *EXTRAS)]) == 0
    (root / "said.txt").write_text(said.getvalue())
    return root


def report_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "evaluation" / "report.json").read_text())
    return found


def figures_of(run: Path) -> dict[str, dict[str, Any]]:
    return {figure["key"]: figure for figure in report_of(run)["figures"]}


# What is found


def test_a_run_is_compared_with_its_base(finished: Path) -> None:
    said, report = (finished / "said.txt").read_text(), report_of(finished / "run")
    assert len(report["verdict"]) == 3
    assert not (finished / "run" / "evaluation" / "melody").exists()  # the base takes no melodies
    assert all(f"- {sentence}" in said for sentence in report["verdict"])
    assert "Evaluate:  musicgen-dreamboothing evaluate" in said  # a CPU isn't kept busy with it unasked
    assert [(pair["prompt"], pair["kind"], pair["variation"]) for pair in report["pairs"]] == [
        *[(prompt, STYLE, number) for prompt in TWO_PROMPTS[1:3] for number in (0, 1)],
        *[("a quiet song", NEUTRAL, number) for number in (0, 1)],
    ]
    for pair in report["pairs"]:
        waves = [
            audio.decode(finished / "run" / "evaluation" / pair[side], 16_000) for side in ("base_file", "tuned_file")
        ]
        assert waves[0].shape == waves[1].shape
        assert not np.array_equal(*waves)
    assert report["pairs"][0]["notes"].keys() == {"tempo", "key"}
    assert report["embedding"].startswith("signal statistics")
    assert report["nearest"] == []  # clips of 1 s have no likeness of 2 s
    assert report["originality"]["base"] == {"clips": 6, "by_codes": 0, "by_sound": 0, "flagged": 0}
    assert report["originality"]["not_checked"] == [
        "by codes and by sound, because clips of 1 s are too short to tell a copy from a riff"
    ]
    assert {curve["title"] for curve in report["curves"]} == {"loss while training", "loss on held-out songs"}
    assert "no network" not in said
    assert (finished / "run" / "evaluation" / "report.html").stat().st_size > 10_000
    assert read_report(finished / "run" / "evaluation").verdict == report["verdict"]


def losses_agree(run: Path, tolerance: float) -> None:
    """The losses of base and run are those of the training, over the songs that this run held out."""
    summary = json.loads((run / "run.json").read_text())["summary"]
    figures = figures_of(run)
    assert figures["loss"]["base"] == pytest.approx(summary["loss_before"], rel=tolerance)
    assert figures["loss"]["tuned"] == pytest.approx(summary["eval_loss"], rel=tolerance)
    for number in range(1, 5):
        assert figures[f"ce_q{number}"]["tuned"] == pytest.approx(summary[f"eval_ce_q{number}"], rel=2 * tolerance)


def test_the_loss_is_that_of_the_training(finished: Path) -> None:
    """Training computes the adapter beside the base, `evaluate` merges it into the base: equal up to rounding."""
    losses_agree(finished / "run", ROUNDING["float32"])
    loss = figures_of(finished / "run")["loss"]
    assert loss["scope"] == "1 held-out song"
    assert loss["change"][1] < 0


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "use_lora"), [("float32", "false"), ("bfloat16", "true")])
def test_so_it_is_in_bf16_and_of_a_full_fine_tune(
    cli: Cli, prepared: Path, tiny: Path, tmp_path: Path, dtype: str, use_lora: str
) -> None:
    data = shutil.copytree(prepared, tmp_path / "songs")
    quick = ["--max_steps", 2, "--use_lora", use_lora, "--save_strategy", "no"]
    with precision_of_cpu(dtype):
        assert cli(*train_words(data, tmp_path / "run", tiny), *quick).code == 0
        ran = cli(*evaluate_words(tmp_path / "run", "--variations", 1))
    assert ran.code == 0, ran.err
    losses_agree(tmp_path / "run", ROUNDING[dtype])


def test_every_figure_has_a_value_or_a_reason(finished: Path) -> None:
    figures = figures_of(finished / "run")
    texts = files("musicgen_dreamboothing.assets").joinpath("figures.yaml").read_text(encoding="utf-8")
    parts = [name for name in yaml.safe_load(texts) if name.endswith("_part")]
    books = {f"{name.removesuffix('part')}q{number}" for name in parts for number in range(1, 5)}
    wanted = yaml.safe_load(texts).keys() - set(parts) | books
    assert wanted - {"melody_adherence"} == figures.keys()  # that one is of melody checkpoints
    explained = (Path(__file__).parent.parent / "docs" / "evaluation.md").read_text(encoding="utf-8")
    missing = [key for key in wanted if f"`{key}`" not in explained and "_q" not in key]
    assert not missing
    for figure in figures.values():
        assert (figure["tuned"] is None) == bool(figure["reason"]), figure["key"]
        assert figure["meaning"]
        assert figure["source"]
        assert figure["title"]
    without_clap = {"text_score", "neutral_text_score", "tag_divergence"}
    of_long_clips = {"tempo_adherence", "tempo_level", "key_adherence", "chroma_adherence"}
    missing = without_clap | of_long_clips | {"frechet_distance", "near_copies", "style_gap_closed"}
    assert {key for key, figure in figures.items() if figure["reason"]} == missing
    assert {figures[key]["reason"] for key in of_long_clips} == {"it takes clips of 5 s", "it takes clips of 3 s"}


def test_embeddings_are_written_for_other_tools(finished: Path) -> None:
    folder = finished / "run" / "evaluation" / "embeddings"
    counts = {path.name: len(list(path.glob("*.*"))) for path in folder.iterdir() if path.is_dir()}
    assert counts == {"base": 6, "tuned": 6, "songs": 8, "held_out": 8}
    (rows,) = {np.load(path).shape for path in folder.glob("*/embeddings/*/*.npy")}
    assert rows[0] == 1


@pytest.fixture(scope="module")
def again(finished: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same call on a copy, where one clip lacks its codes and another one is a clip that was trained on."""
    root = shutil.copytree(finished, tmp_path_factory.mktemp("again") / "copy")
    evaluation, checkpoint = root / "run" / "evaluation", read_checkpoint(tiny)
    held_out = report_of(root / "run")["notes"]
    rows = tables_in(root / "songs", tiny, "punk").train
    row = next(row for row in rows if not any(row["source"] in note for note in held_out))
    codes = torch.from_numpy(np.asarray(row["codes"]).astype(np.int64))
    fake = evaluation / "tuned" / "punk-395f2bc2_0.wav"
    assert fake.is_file()
    wave = codec.decode_clip(load_codec(checkpoint, torch.device("cpu")), codes, checkpoint)
    audio.write(fake, wave, checkpoint.sampling_rate)
    np.save(fake.with_suffix(".npy"), row["codes"])
    lost = next(path for path in sorted((evaluation / "tuned").glob("*.npy")) if path.stem != fake.stem)
    codes_lost = np.load(lost)
    lost.unlink()  # as a killed run leaves it
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*.wav") if path.stem != lost.stem}
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr(copies, "LEAST_SECONDS", 1.0)  # the training clips last 2 s
        patch.setattr(copies, "FEW_SECONDS", 0.0)
        assert main([str(word) for word in evaluate_words(root / "run", "--data", root / "songs")]) == 0
    return {"root": root, "row": row, "said": said.getvalue(), "before": before, "lost": lost, "codes": codes_lost}


def test_only_what_is_missing_is_generated_again(finished: Path, again: dict[str, Any]) -> None:
    assert "tuned: 1 clip of 1 s" in again["said"]
    assert np.array_equal(np.load(again["lost"]), again["codes"])
    assert {path: path.stat().st_mtime_ns for path in again["before"]} == again["before"]
    assert figures_of(again["root"] / "run")["loss"] == figures_of(finished / "run")["loss"]


def test_a_copy_of_a_song_is_flagged_and_put_beside_it(
    cli: Cli, finished: Path, again: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "LEAST_SECONDS", 1.0)
    monkeypatch.setattr(copies, "FEW_SECONDS", 0.0)
    root, row = again["root"], again["row"]
    assert not any(one["is_copy"] for one in report_of(finished / "run")["nearest"])
    (copy,) = [one for one in report_of(root / "run")["nearest"] if one["is_copy"]]
    assert (copy["prompt"], copy["song"]) == ("punk", row["source"])
    assert copy["song_at"] == pytest.approx(row["start"], abs=0.1)
    assert (root / "run" / "evaluation" / copy["clip_file"]).is_file()
    counts = report_of(root / "run")["originality"]
    assert (counts["base"]["flagged"], counts["tuned"]["flagged"]) == (0, 1)
    assert (counts["style_clips"], counts["neutral_clips"]) == (4, 2)
    assert row["source"] in again["said"]  # the verdict names the song
    song = root / "songs" / "clips" / row["file_name"]
    song.unlink()
    ran = cli(*evaluate_words(root / "run", "--data", root / "songs"))
    assert ran.code == 0, ran.err
    assert f"note: the report can't play {song.name}: the clip is gone or has changed since the training\n" in ran.out
    (copy,) = [one for one in report_of(root / "run")["nearest"] if one["is_copy"]]
    assert (copy["clip_file"], copy["song"]) == ("", row["source"])


class StubGenerator:
    """Generates clips of zeros and counts them."""

    dtype, quantization = torch.float32, "none"
    checkpoint = SimpleNamespace(sampling_rate=16_000)

    def __init__(self) -> None:
        self.count = 0

    def codes(self, clips: list[Any], **options: Any) -> Any:
        self.count += len(clips)
        return ((clip, torch.zeros(4, 50, dtype=torch.int64)) for clip in clips)

    def decode(self, codes: torch.Tensor) -> np.ndarray:
        return np.zeros((1, 16_000), np.float32)


def test_clips_of_other_weights_and_settings_are_generated_anew(tmp_path: Path) -> None:
    generator: Any = StubGenerator()
    plan = ClipPlan((("punk", STYLE), ("Punk!", STYLE), ("a waltz", NEUTRAL)), 2, 1.0, 0)
    for weights, changed, count in (("a", plan, 6), ("a", plan, 6), ("b", plan, 12), ("b", replace(plan, seed=1), 18)):
        generate_clips(generator, tmp_path, changed, weights, None)
        assert generator.count == count
    assert [clip.prompt for clip in load_clips(tmp_path, plan, 16_000)] == [prompt for prompt, _ in plan.clips]
    next(tmp_path.glob("*.wav")).unlink()
    generate_clips(generator, tmp_path, replace(plan, seed=1), "b", None)
    assert generator.count == 19


def test_two_evaluations_at_once_end_in_one_line(cli: Cli, finished: Path) -> None:
    with folder_lock(finished / "run" / "evaluation"):
        ran = cli(*evaluate_words(finished / "run"))
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert "evaluation is in use by another run; wait for it or choose another --output_dir" in ran.err


def test_answers_of_the_blind_page_are_counted(cli: Cli, finished: Path, tmp_path: Path) -> None:
    folder = finished / "run" / "evaluation"
    assert (folder / "blind.html").is_file()
    key = json.loads((folder / "blind_key.json").read_text())
    rows = {
        str(pair["pair"]): dict.fromkeys(("prompt", "style"), next(side for side in "AB" if pair[side] == "tuned"))
        for pair in key["pairs"]
    }
    answers = tmp_path / "answers.json"
    answers.write_text(json.dumps({"test": key["test"], "answers": rows}))
    ran = cli("evaluate", finished / "run", "--answers", answers)
    assert ran.code == 0, ran.err
    assert "punk" in ran.out
    assert "6" in ran.out
    answers.write_text("{}")
    assert cli("evaluate", finished / "run", "--answers", answers).code == 1


@pytest.mark.slow
def test_without_held_out_songs_figures_have_reasons(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    """And captions are prompts as they are: only the usual prompts have a place for the `instance_prompt`."""
    songs = tmp_path / "songs"
    songs.mkdir()
    for number in range(3):
        audio.write(songs / f"{number}.wav", tone_song(2.0, number), 16_000)
        (songs / f"{number}.txt").write_text("{live} 100%")
    quick = ["--max_steps", 1, "--eval_fraction", 0, "--early_stopping_patience", 1, "--eval_on_start", "false"]
    trained = cli(*train_words(songs, tmp_path / "run", tiny), *quick)
    assert trained.code == 0, trained.err
    assert "--early_stopping_patience" in trained.out
    ran = cli("evaluate", tmp_path / "run", *SOON, "--variations", 1, "--neutral_prompts", "a quiet song")
    assert ran.code == 0, ran.err
    prompts = {pair["prompt"] for pair in report_of(tmp_path / "run")["pairs"]}
    assert prompts >= {"punk, {live} 100%", "punk", "punk, fast and loud, 160 bpm in c major"}
    figures = figures_of(tmp_path / "run")
    assert figures["loss"]["reason"].startswith("no song was held out")
    assert figures["style_gap_closed"]["reason"]
    assert figures["style_distance"]["tuned"] is not None


@pytest.mark.parametrize(
    ("trained", "held_out"),
    [
        pytest.param(trained, held_out, marks=[] if trained in (1, 3) else pytest.mark.slow)
        for trained, held_out in [(1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 2), (4, 1), (5, 0)]
    ],
)
def test_any_number_of_songs_is_evaluated(finished: Path, tmp_path: Path, trained: int, held_out: int) -> None:
    """From one song on: whatever can't be said has a reason, and nothing is divided by nothing.

    The clips of a run are those that it names: here each of its clips becomes a song.
    """
    run = shutil.copytree(finished / "run", tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    clips = record["clips"]
    source = clips["columns"].index("source")
    rows = [[*row[:source], f"{number}.wav", *row[source + 1 :]] for number, row in enumerate(clips["train"])]
    clips["train"], clips["held_out"] = rows[:trained], rows[trained : trained + held_out]
    assert (len(clips["train"]), len(clips["held_out"])) == (trained, held_out)
    (run / "run.json").write_text(json.dumps(record))
    evaluated = evaluate(
        EvaluateArguments(
            run=str(run),
            data=str(finished / "songs"),
            prompts=["punk at 120 bpm in a minor", "punk"],
            neutral_prompts=["a quiet song"],
            seconds=1.0,
            variations=2,
            song_excerpts=8,
            clap_model_name_or_path="none",
        )
    )
    figures = {figure.key: figure for figure in evaluated.evaluation.figures}
    for figure in figures.values():
        assert (figure.tuned is None) == bool(figure.reason), figure.key
        values = (figure.base, figure.tuned, *(figure.change or ()), *(figure.tuned_interval or ()))
        assert all(math.isfinite(value) for value in values if value is not None), figure.key
    songs = trained + held_out
    assert figures["style_distance"].scope == ("" if songs > 2 else f"{songs} song{'s' if songs > 1 else ''}")
    assert (figures["loss"].tuned is None) == (not held_out)
    assert len(evaluated.evaluation.verdict) == 3


@pytest.mark.slow
def test_an_only_clip_leaves_figures_without_values(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "songs").mkdir()
    audio.write(tmp_path / "songs" / "0.wav", tone_song(2.0, 3), 16_000)
    assert cli(*train_words(tmp_path / "songs", tmp_path / "run", tiny), "--max_steps", 1).code == 0
    prompts = ["--neutral_prompts", "a quiet song", "--variations", 1, "--prompts", "punk", "slow punk"]
    ran = cli("evaluate", tmp_path / "run", *SOON, "--seconds", 2, *prompts)
    assert ran.code == 0, ran.err
    figures = figures_of(tmp_path / "run")
    for key in ("style_distance", "style_gap_closed", "kernel_distance", "diversity", "drift"):
        assert figures[key]["tuned"] is None
        assert figures[key]["reason"]
    assert (tmp_path / "run" / "evaluation" / "report.html").is_file()


@pytest.mark.parametrize("count", [2, 6])
def test_copies_of_one_song_are_too_few_songs(count: int) -> None:
    """There is no distance between songs to divide by."""
    song = tone_song(2.0, 3)
    excerpts = Excerpts([(song, 16_000)] * count, [f"{number}.wav" for number in range(count)])
    base, tuned = (
        [
            EvaluatedClip(prompt, STYLE, 0, Path("x.wav"), np.zeros((4, 9), int), tone_song(2.0, seed + number), 16_000)
            for number, prompt in enumerate(("punk", "slow punk"))
        ]
        for seed in (10, 20)
    )
    data = EvaluationData(base, tuned, excerpts, None, None, SignalEmbedder())
    figures = {figure.key: figure for figure in compute_figures(data)}
    for key in ("style_distance", "style_gap_closed"):
        assert figures[key].tuned is None
        assert "too few songs" in figures[key].reason
    assert figures["kernel_distance"].tuned is not None  # without an interval
    assert figures["kernel_distance"].tuned_interval is None
    assert collapsed_prompts(data) == []


# What is wrong


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "required: run"),
        (["no-such-run"], "holds no run"),
        (["{run}", "--variations", 0], "--variations 0 must be at least 1"),
        (["{run}", "--seconds", -1], "--seconds -1 must be above 0"),
        (["{run}", "--data", "elsewhere"], "not in elsewhere; name their folder: --data DIR"),
        (["{run}", "--answers", "none.json"], "none.json"),
        (["{run}", "--base_model", "no/such-base"], "no/such-base"),
        (["{run}", "--embedder", "no-such-model"], "no audio encoder at 'no-such-model'"),
        (["{run}", "--save_embeddings", "{run}"], "holds other files; choose a folder that is new or empty"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(cli: Cli, finished: Path, words: list[object], told: str) -> None:
    ran = cli("evaluate", *[str(word).format(run=finished / "run") for word in words])
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert told in ran.err


def test_an_unfinished_run_is_not_judged(cli: Cli, finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished / "run", tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"finished": False}))
    assert "is not finished" in cli("evaluate", run).err


# What a training does with it


def test_the_best_by_style_is_kept_and_training_stops_early(
    cli: Cli, prepared: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluate_quickly(options: EvaluateArguments) -> None:
        evaluate(replace(options, seconds=0.5, neutral_prompts=["song"]))

    monkeypatch.setattr("musicgen_dreamboothing.evaluation.evaluate.evaluate", evaluate_quickly)
    data = shutil.copytree(prepared, tmp_path / "songs")
    words = [*train_words(data, tmp_path / "run", tiny), "--max_steps", 3, "--learning_rate", 1e-9, "--seed", 3]
    words += ["--eval_strategy", "steps", "--eval_steps", 1, "--save_strategy", "steps", "--save_steps", 1]
    words += ["--metric_for_best_model", "style", "--early_stopping_patience", 1, "--sample_seconds", 0.5]
    ran = cli(*words, "--clap_model_name_or_path", "none", "--final_report", "true")
    assert ran.code == 0, ran.err
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    distances = {line["step"]: line["eval_style"] for line in record["log"] if "eval_style" in line}
    assert 0 in distances
    after = {step: value for step, value in distances.items() if step}
    best = min(after, key=lambda step: after[step])
    assert f"(update {best} of 3) were saved: eval_style" in record["summary"]["kept"]
    assert record["summary"]["kept"] in ran.out
    assert record["summary"]["updates"] == min(3, best + 1)  # nothing learns at this rate
    assert "distance to your songs" in ran.out
    report = report_of(tmp_path / "run")  # made at the end of the training
    assert report["best"] == record["summary"]["kept"]
    assert "distance to your songs" in {curve["title"] for curve in report["curves"]}
    figure = figures_of(tmp_path / "run")["style_distance"]  # of the same prompts, seeds, takes and songs
    assert figure["tuned"] == pytest.approx(distances[best], abs=0.01)


def test_a_report_that_fails_takes_nothing_from_a_finished_run(
    cli: Cli, prepared: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluate(options: object) -> None:
        raise UserError("the disk is full")

    monkeypatch.setattr("musicgen_dreamboothing.evaluation.evaluate.evaluate", evaluate)
    data = shutil.copytree(prepared, tmp_path / "songs")
    ran = cli(*train_words(data, tmp_path / "run", tiny), "--max_steps", 1, "--final_report", "true")
    assert ran.code == 0, ran.err
    assert "the run is finished and saved, but its report failed (the disk is full); to repeat it: " in ran.out
    assert json.loads((tmp_path / "run" / "run.json").read_text())["finished"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--final_report", "yes"], "--final_report 'yes' is unknown; it takes auto, true, false"),
        (["--sample_steps", -1], "--sample_steps -1 must be at least 0"),
        (["--early_stopping_patience", 1, "--eval_strategy", "no"], "set --eval_strategy epoch or steps"),
        (["--early_stopping_patience", 1, "--save_strategy", "no"], "requires the save and eval strategy to match"),
        (["--early_stopping_patience", -1], "--early_stopping_patience -1 must be at least 0"),
        (["--sample_prompts", "no-such-file.txt"], "no-such-file.txt"),
    ],
)
def test_options_of_a_training_that_are_wrong(
    cli: Cli, prepared: Path, tiny: Path, tmp_path: Path, words: list[object], told: str
) -> None:
    ran = cli(*train_words(prepared, tmp_path / "run", tiny), *words)
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert told in ran.err


def test_another_encoder_compares_sounds_and_leaves_figures_of_words_out(
    cli: Cli, finished: Path, tmp_path: Path
) -> None:
    model = write_hubert(tmp_path / "hubert")
    shutil.copytree(finished / "run" / "evaluation", tmp_path / "evaluation")
    words = evaluate_words(finished / "run", "--embedder", model, "--output_dir", tmp_path / "evaluation")
    ran = cli(*words, "--data", finished / "songs")
    assert ran.code == 0, ran.err
    report = json.loads((tmp_path / "evaluation" / "report.json").read_text())
    figures = {figure["key"]: figure for figure in report["figures"]}
    assert report["embedding"] == str(model)
    assert figures["style_distance"]["tuned"] is not None
    assert figures["text_score"]["reason"] == f"{model} embeds no words; CLAP does"
    assert figures["tag_divergence"]["reason"] == f"{model} recognises no genres; CLAP does"
    assert not any("signal" in note for note in report["notes"])


@pytest.mark.parametrize(
    ("word", "held_out", "prompts"),
    [
        ("punk", ["a", "b", "a", "c", "d"], ["a", "b", "c", *USUAL[:5]]),
        ("punk", [], ["t", *USUAL[:7]]),
        ("punk", ["punk"], USUAL[:8]),  # each once
        ("", ["a", "a"], ["a"]),
        ("", list("abcdefghij"), list("abcdefgh")),
    ],
)
def test_prompts_of_the_style(word: str, held_out: list[str], prompts: list[str]) -> None:
    tables: Any = SimpleNamespace(
        train=datasets.Dataset.from_dict({"text": ["t"]}), held_out=datasets.Dataset.from_dict({"text": held_out})
    )
    assert style_prompts(word, tables) == prompts


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_the_style_is_measured_from_one_song_on(cli: Cli, tmp_path: Path, tiny: Path, count: int) -> None:
    """Of so few songs none is held out: the distance to those that are trained on is the only evaluation."""
    (tmp_path / "songs").mkdir()
    for number in range(count):
        audio.write(tmp_path / "songs" / f"{number}.wav", tone_song(8.0, number), 16_000)
    words = train_words(tmp_path / "songs", tmp_path / "run", tiny)
    quick = ["--sample_seconds", 0.5, "--clap_model_name_or_path", "none"]
    ran = cli(*words, "--metric_for_best_model", "style", *quick)
    assert ran.code == 0, ran.err
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    distances = [line["eval_style"] for line in record["log"] if "eval_style" in line]
    assert len(distances) == 3  # before, and after each epoch
    assert ran.out.count("distance to your songs ") == 3
    assert f"eval_style {min(distances[1:]):.4f} was the lowest of 2 evaluations" in record["summary"]["kept"]
    assert "has no effect" not in ran.out
