"""`evaluate`: a run beside its base, by ear and by numbers; and what a training does with those numbers."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import Ran, prepare_words, read_checkpoint, tables_in, tone_song, train_words

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.cli import main
from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.evaluation.report import read_report
from musicgen_dreamboothing.evaluation.result import NEUTRAL, STYLE
from musicgen_dreamboothing.files import folder_lock
from musicgen_dreamboothing.model import codec
from musicgen_dreamboothing.model.checkpoint import load_codec

Cli = Callable[..., Ran]
SOON = ["--seconds", 1, "--variations", 2, "--song_excerpts", 8, "--clap_model_name_or_path", "none"]
TWO_PROMPTS = ["--prompts", "punk at 120 bpm in a minor", "punk", "--neutral_prompts", "a quiet song"]
QUICK = ["--learning_rate", 0.01, "--seed", 3]
ROUNDING = {"float32": 1e-4, "bfloat16": 2**-8}  # of a loss that is computed in another order; bf16 has 8 bits


def evaluate_words(run: Path, *more: object) -> list[object]:
    return ["evaluate", run, *SOON, *TWO_PROMPTS, *more]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, prepared: Path, tiny: Path, precision: str) -> Path:
    """A folder with prepared songs and a run on them that was evaluated; what was said is in `said.txt`."""
    root = tmp_path_factory.mktemp("evaluated")
    shutil.copytree(prepared, root / "songs")
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main([str(word) for word in [*train_words(root / "songs", root / "run", tiny), *QUICK]]) == 0
        assert main([str(word) for word in evaluate_words(root / "run", "--blind", "true")]) == 0
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
    assert all(f"- {sentence}" in said for sentence in report["verdict"])
    assert "did it learn?  musicgen-dreamboothing evaluate" in said  # a CPU isn't kept busy with it unasked
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
    assert len(report["nearest"]) == 4
    assert {curve["title"] for curve in report["curves"]} == {"loss while training", "loss on held-out songs"}
    assert "no network" not in said
    assert (finished / "run" / "evaluation" / "report.html").stat().st_size > 10_000
    assert read_report(finished / "run" / "evaluation").verdict == report["verdict"]


def test_the_loss_is_that_of_the_training(finished: Path, precision: str) -> None:
    """Base and adapter, over the songs that this run held out.

    Training computes the adapter beside the base, `evaluate` merges it into the base: equal up to rounding.
    """
    tolerance = ROUNDING[precision]
    summary = json.loads((finished / "run" / "run.json").read_text())["summary"]
    loss = figures_of(finished / "run")["loss"]
    assert loss["base"] == pytest.approx(summary["loss_before"], rel=tolerance)
    assert loss["tuned"] == pytest.approx(summary["eval_loss"], rel=tolerance)
    for number in range(1, 5):
        assert figures_of(finished / "run")[f"ce_q{number}"]["tuned"] == pytest.approx(
            summary[f"eval_ce_q{number}"], rel=tolerance
        )
    assert loss["change"] is None  # one song was held out: drawing it again would feign certainty


def test_every_figure_has_a_value_or_a_reason(finished: Path) -> None:
    figures = figures_of(finished / "run")
    texts = files("musicgen_dreamboothing.assets").joinpath("figures.yaml").read_text(encoding="utf-8")
    wanted = yaml.safe_load(texts).keys() - {"ce_q"} | {f"ce_q{number}" for number in range(1, 5)}
    assert wanted == figures.keys()
    explained = (Path(__file__).parent.parent / "docs" / "evaluation.md").read_text(encoding="utf-8")
    missing = [key for key in wanted if f"`{key}`" not in explained and not key.startswith("ce_q")]
    assert not missing
    for figure in figures.values():
        assert (figure["tuned"] is None) == bool(figure["reason"]), figure["key"]
        assert figure["meaning"]
        assert figure["source"]
        assert figure["title"]
    assert {key for key, figure in figures.items() if figure["reason"]} == {
        "text_score",
        "tag_divergence",
    }


def test_the_same_call_makes_nothing_twice(cli: Cli, finished: Path, tmp_path: Path) -> None:
    root = shutil.copytree(finished, tmp_path / "copy")
    words = evaluate_words(root / "run", "--data", root / "songs")
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*.wav")}
    report = report_of(root / "run")
    ran = cli(*words)
    assert ran.code == 0, ran.err
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.wav")} == before
    assert report_of(root / "run") == report
    gone = next(iter(sorted((root / "run" / "evaluation" / "tuned").glob("*.npy"))))
    codes = np.load(gone)
    gone.unlink()  # as a kill leaves it
    assert "tuned: 1 clip of 1 s" in cli(*words).out
    assert np.array_equal(np.load(gone), codes)
    assert "tuned: 6 clips of 1 s" in cli(*words, "--seed", 5).out
    assert (
        report_of(root / "run")["pairs"] != report["pairs"] or report_of(root / "run")["figures"] != report["figures"]
    )


def test_a_copy_of_a_song_is_flagged_and_laid_beside_it(cli: Cli, finished: Path, tiny: Path, tmp_path: Path) -> None:
    """In the place of a generated clip stands one that was trained on."""
    root = shutil.copytree(finished, tmp_path / "copy")
    assert not any(one["is_copy"] for one in report_of(root / "run")["nearest"])
    rows = tables_in(root / "songs", tiny, "punk").train
    held_out = json.loads((root / "run" / "evaluation" / "report.json").read_text())["notes"]
    row = next(row for row in rows if not any(row["source"] in note for note in held_out))
    checkpoint = read_checkpoint(tiny)
    codes = np.asarray(row["codes"])
    wave = codec.decode(
        load_codec(checkpoint, torch.device("cpu")), torch.from_numpy(codes.astype(np.int64))[None], checkpoint
    )
    fake = sorted((root / "run" / "evaluation" / "tuned").glob("punk-395f2bc2_0.*"))
    assert [path.suffix for path in fake] == [".npy", ".wav"]
    np.save(fake[0], codes)
    audio.write(fake[1], wave[0].numpy(), checkpoint.sampling_rate)
    ran = cli(*evaluate_words(root / "run", "--data", root / "songs"))
    assert ran.code == 0, ran.err
    copies = [one for one in report_of(root / "run")["nearest"] if one["is_copy"]]
    assert [(one["prompt"], one["song"]) for one in copies] == [("punk", row["source"])]
    assert copies[0]["song_at"] == pytest.approx(row["start"], abs=0.1)
    assert (root / "run" / "evaluation" / copies[0]["clip_file"]).is_file()
    assert row["source"] in ran.out  # the verdict names the song
    song = root / "songs" / "clips" / row["file_name"]
    song.unlink()
    ran = cli(*evaluate_words(root / "run", "--data", root / "songs"))
    assert ran.code == 0, ran.err
    assert f"note: the report can't play {song.name}: the clip is gone or has changed since the training\n" in ran.out
    (copy,) = [one for one in report_of(root / "run")["nearest"] if one["is_copy"]]
    assert (copy["clip_file"], copy["song"]) == ("", row["source"])


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


def test_without_held_out_songs_figures_say_what_they_lack(
    cli: Cli, prepared: Path, tiny: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(prepared, tmp_path / "songs")
    quick = ["--max_steps", 1, "--eval_fraction", 0, "--early_stopping_patience", 1]
    trained = cli(*train_words(data, tmp_path / "run", tiny), *QUICK, *quick)
    assert trained.code == 0, trained.err
    assert "--early_stopping_patience has no part in this training: without held-out songs" in trained.out
    ran = cli(*evaluate_words(tmp_path / "run"))
    assert ran.code == 0, ran.err
    figures = figures_of(tmp_path / "run")
    assert figures["loss"]["reason"].startswith("no song was held out")
    assert figures["style_gap_closed"]["reason"]
    assert figures["style_distance"]["tuned"] is not None


def test_a_full_fine_tune_is_compared_with_the_base_of_its_record(
    cli: Cli, prepared: Path, tiny: Path, tmp_path: Path, precision: str
) -> None:
    """All weights are trained in fp32; `evaluate` rounds them to the precision that it computes in."""
    data = shutil.copytree(prepared, tmp_path / "songs")
    quick = ["--max_steps", 2, "--use_lora", "false", "--save_strategy", "no"]
    assert cli(*train_words(data, tmp_path / "run", tiny), *quick).code == 0
    ran = cli(*evaluate_words(tmp_path / "run"))
    assert ran.code == 0, ran.err
    summary = json.loads((tmp_path / "run" / "run.json").read_text())["summary"]
    loss = figures_of(tmp_path / "run")["loss"]
    assert (loss["base"], loss["tuned"]) == pytest.approx(
        (summary["loss_before"], summary["eval_loss"]), rel=ROUNDING[precision]
    )


@pytest.mark.parametrize(
    ("lengths", "unknown"),
    [
        ([2.0], {"style_distance", "style_gap_closed", "neutral_distance", "kernel_distance", "diversity"}),
        ([2.0, 2.0], {"style_distance", "style_gap_closed", "kernel_distance"}),
        ([2.0] * 6, {"style_distance", "style_gap_closed", "kernel_distance"}),
    ],
    ids=["one clip", "one recording twice", "one recording six times"],
)
def test_what_too_few_songs_do_not_tell_has_a_reason(
    cli: Cli, tiny: Path, tmp_path: Path, lengths: list[float], unknown: set[str]
) -> None:
    """Of equal songs every draw of the bootstrap is one song: there is no distance between songs to divide by."""
    for number, seconds in enumerate(lengths):
        (tmp_path / "songs").mkdir(exist_ok=True)
        audio.write(tmp_path / "songs" / f"{number}.wav", tone_song(seconds, 3), 16_000)
    words = train_words(tmp_path / "songs", tmp_path / "run", tiny)
    assert cli(*words, "--max_steps", 1).code == 0
    alone = ["--seconds", 2]
    alone += ["--neutral_prompts", "a quiet song", "--variations", 1, "--prompts", "punk", "slow punk"]
    ran = cli("evaluate", tmp_path / "run", *SOON, *alone)
    assert ran.code == 0, ran.err
    figures = figures_of(tmp_path / "run")
    assert {key for key in unknown if figures[key]["tuned"] is not None} == set()
    assert all(figures[key]["reason"] for key in unknown)
    assert "can't be told from so few songs" in figures["style_distance"]["reason"]
    assert (tmp_path / "run" / "evaluation" / "report.html").is_file()


def test_captions_are_played_as_they_are(cli: Cli, songs: Path, tiny: Path, tmp_path: Path) -> None:
    """Only the usual prompts have a place for the key-word."""
    for path in songs.rglob("*.wav"):
        path.with_suffix(".txt").write_text("{live} 100%")
    assert cli(*train_words(songs, tmp_path / "run", tiny), "--max_steps", 1, "--eval_on_start", "false").code == 0
    ran = cli("evaluate", tmp_path / "run", *SOON, "--neutral_prompts", "a quiet song")
    assert ran.code == 0, ran.err
    played = {pair["prompt"] for pair in report_of(tmp_path / "run")["pairs"]}
    assert played >= {"punk, {live} 100%", "punk", "punk, fast and loud, 160 bpm in c major"}


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


def test_the_best_by_style_is_kept_and_an_end_is_found(cli: Cli, prepared: Path, tiny: Path, tmp_path: Path) -> None:
    data = shutil.copytree(prepared, tmp_path / "songs")
    words = [*train_words(data, tmp_path / "run", tiny), "--max_steps", 8, "--learning_rate", 1e-9, "--seed", 3]
    words += ["--eval_strategy", "steps", "--eval_steps", 1, "--save_strategy", "steps", "--save_steps", 1]
    words += ["--metric_for_best_model", "style", "--early_stopping_patience", 2, "--sample_seconds", 1]
    ran = cli(*words, "--clap_model_name_or_path", "none", "--final_report", "true")
    assert ran.code == 0, ran.err
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    found = {line["step"]: line["eval_style"] for line in record["log"] if "eval_style" in line}
    assert 0 in found
    after = {step: value for step, value in found.items() if step}
    best = min(after, key=lambda step: after[step])
    stopped = record["summary"]["updates"]
    assert f"(update {best} of 8) were kept: eval_style" in record["summary"]["kept"]
    assert record["summary"]["kept"] in ran.out
    assert stopped == min(8, best + 2)  # nothing learns at this rate, so the first evaluations are as good as any
    assert "distance to your songs" in ran.out
    report = report_of(tmp_path / "run")  # made at the end, by itself
    assert report["best"] == record["summary"]["kept"]
    assert "distance to your songs" in {curve["title"] for curve in report["curves"]}


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
        (["--early_stopping_patience", 1, "--eval_strategy", "no"], "choose --eval_strategy epoch or steps"),
        (["--early_stopping_patience", 0], "--early_stopping_patience 0 must be at least 1"),
        (["--sample_prompts", "no-such-file.txt"], "no-such-file.txt"),
    ],
)
def test_options_of_a_training_that_are_wrong(
    cli: Cli, prepared: Path, tiny: Path, tmp_path: Path, words: list[object], told: str
) -> None:
    ran = cli(*train_words(prepared, tmp_path / "run", tiny), *words)
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert told in ran.err


def test_songs_without_a_key_word_have_no_style_to_play(cli: Cli, tmp_path: Path, tiny: Path, songs: Path) -> None:
    for path in songs.rglob("*.wav"):
        path.with_suffix(".txt").write_text("slow tones")
    words = [
        word for word in prepare_words(songs, tmp_path / "data", tiny) if word not in ("--instance_prompt", "punk")
    ]
    assert cli(*words).code == 0
    train = [
        word
        for word in train_words(tmp_path / "data", tmp_path / "run", tiny)
        if word not in ("--instance_prompt", "punk")
    ]
    ran = cli(*train, "--metric_for_best_model", "style")
    assert ran.code == 1
    assert "give --instance_prompt or --sample_prompts" in ran.err
