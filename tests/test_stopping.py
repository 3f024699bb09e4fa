"""A training that is stopped says where, saves all of it, and ends as one that was not."""

from __future__ import annotations

import dataclasses
import importlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import Ran, read_checkpoint, train_words
from safetensors.torch import load_file
from transformers import Seq2SeqTrainingArguments

from musicgen_dreamboothing.arguments import PATIENCE, SHORT_EPOCHS, TrainArguments, parse
from musicgen_dreamboothing.arguments.trainer_options import IDLE, SUPPORTED, UNSUPPORTED
from musicgen_dreamboothing.cli import FUNCTIONS
from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.generation.decoding import CodeStream
from musicgen_dreamboothing.signals import Stopped, StopRequest
from musicgen_dreamboothing.training import model, settings, setup, train
from musicgen_dreamboothing.training.batch_split import BatchSplit, settle_split, shared_among
from musicgen_dreamboothing.training.checkpoints import checkpoints_after, last_checkpoint
from musicgen_dreamboothing.training.settings import Settings
from musicgen_dreamboothing.training.stopping import StoppableTrainer
from musicgen_dreamboothing.training.trainer import CodebookTrainer

Cli = Callable[..., Ran]
SLOW = pytest.mark.slow
NUMBERS = [signal.SIGINT, signal.SIGTERM]
# Two epochs of three updates, in which everything random is at work; evaluated and saved by epoch.
OPTIONS: list[object] = [
    *("--lora_dropout", 0.2, "--caption_dropout", 0.5, "--learning_rate", 2e-3, "--crop_seconds", 1),
    *("--continuation_fraction", 0.5),
    *("--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 2, "--recompute", "none"),
    *("--load_best_model_at_end", "true", "--dataloader_num_workers", 0),
]
PATIENT = ["--learning_rate", 0.3, "--num_train_epochs", 5, "--early_stopping_patience"]
# An only clip is memorised: the loss on held-out songs is lowest after some epochs, of one update each.
OVERFITTING: list[object] = [
    *("--max_train_samples", 1, "--num_train_epochs", 24, "--learning_rate", 0.02, "--lr_scheduler_type", "constant"),
    *("--gradient_accumulation_steps", 1, "--caption_dropout", 0, "--random_crop", "false", "--lora_dropout", 0),
    *("--load_best_model_at_end", "false", "--eval_on_start", "false", "--recompute", "none"),
]
BY_STEPS = ["--eval_strategy", "steps", "--save_strategy", "steps"]
PLAYED: list[object] = ["--sample_prompts", "punk", "--sample_seconds", 0.2, "--sample_steps", 2]


def words_of(data: Path, folder: Path, base: Path, *options: object) -> list[object]:
    return [*train_words(data, folder, base), *OPTIONS, *options]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def history(folder: Path) -> list[dict[str, float]]:
    """The log of a run, without what depends on the clock or on where the last part of the run began."""
    log = json.loads((folder / "run.json").read_text())["log"]
    lines = [{key: line[key] for key in ("step", "loss", "eval_loss", "epoch") if key in line} for line in log]
    return [line for line in lines if "loss" in line or "eval_loss" in line]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, prepared: Path, tiny: Path) -> Path:
    from musicgen_dreamboothing.cli import main

    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert main([str(word) for word in words_of(prepared, folder, tiny)]) == 0
    return folder


def stop_at(
    monkeypatch: pytest.MonkeyPatch, event: str, step: int, number: int = signal.SIGTERM, times: int = 1
) -> None:
    """Sends this process and its workers a signal at an event of the training, once it has made so many updates."""
    left = [times]

    class Sender(setup.Lines):
        pass

    def send(self: Any, args: Any, state: Any, control: Any, **rest: Any) -> None:
        if state.global_step == step:
            while left[0]:
                left[0] -= 1
                for child in multiprocessing.active_children():
                    os.kill(child.pid or 0, number)
                os.kill(os.getpid(), number)

    setattr(Sender, event, send)
    monkeypatch.setattr(setup, "Lines", Sender)


@pytest.mark.parametrize(
    ("event", "step", "number", "stopped_at"),
    [
        ("on_step_begin", 3, signal.SIGINT, 4),  # at the beginning of an epoch
        ("on_substep_end", 1, signal.SIGTERM, 2),  # between two micro-batches
        pytest.param("on_pre_optimizer_step", 4, signal.SIGTERM, 5, marks=SLOW),
        ("on_step_end", 3, signal.SIGINT, 3),  # the last one of an epoch
        ("on_prediction_step", 3, signal.SIGTERM, 3),  # in the middle of the evaluation
        pytest.param("on_evaluate", 3, signal.SIGTERM, 3, marks=SLOW),
        ("on_save", 3, signal.SIGINT, 3),
        pytest.param("on_epoch_begin", 3, signal.SIGTERM, 3, marks=SLOW),
        ("on_step_end", 6, signal.SIGTERM, 6),  # the last one
        ("on_prediction_step", 6, signal.SIGINT, 6),
    ],
)
def test_a_stopped_run_ends_as_if_it_had_not_been(
    cli: Cli,
    prepared: Path,
    tiny: Path,
    tmp_path: Path,
    uninterrupted: Path,
    monkeypatch: pytest.MonkeyPatch,
    event: str,
    step: int,
    number: int,
    stopped_at: int,
) -> None:
    before = [signal.getsignal(each) for each in NUMBERS]
    words = words_of(prepared, tmp_path / "run", tiny)
    stop_at(monkeypatch, event, step, number)
    ran = cli(*words)
    assert ran.code == 128 + number
    told = f"stopped at update {stopped_at} of 6 and saved checkpoint-{stopped_at}; the same command resumes"
    assert ran.err == f"musicgen-dreamboothing: {told}\n"
    assert [signal.getsignal(each) for each in NUMBERS] == before
    assert not (tmp_path / "run" / "adapter_model.safetensors").exists()
    monkeypatch.undo()
    ran = cli(*words)
    assert ran.code == 0, ran.err
    assert f"Resuming from {tmp_path}/run/checkpoint-{stopped_at}\n" in ran.out
    assert history(tmp_path / "run") == history(uninterrupted)
    assert_same(weights(tmp_path / "run"), weights(uninterrupted))
    kept = [
        json.loads((folder / "run.json").read_text())["summary"]["kept"] for folder in (tmp_path / "run", uninterrupted)
    ]
    assert kept[0] == kept[1]
    assert len(list((tmp_path / "run").glob("checkpoint-*"))) == 2  # --save_total_limit


def test_samples_are_left_at_once_and_made_when_the_run_goes_on(
    cli: Cli, prepared: Path, tiny: Path, tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*words_of(prepared, tmp_path / "run", tiny), *PLAYED]
    made = tmp_path / "run" / "samples" / "step_0002"
    advance, steps = CodeStream.advance, []

    def stop_at_update_2(stream: CodeStream) -> None:
        steps.append(stream.done)
        if len(steps) == 20:  # a sample has 13 of them
            os.kill(os.getpid(), signal.SIGTERM)
        advance(stream)

    monkeypatch.setattr(CodeStream, "advance", stop_at_update_2)
    ran = cli(*words)
    assert (ran.code, len(steps)) == (143, 20)
    assert "stopped at update 2 of 6 and saved checkpoint-2;" in ran.err
    assert not made.exists()
    monkeypatch.undo()
    assert cli(*words).code == 0
    assert {path.name for path in made.iterdir()} == {"00_punk.wav", "00_punk.png", "samples.json"}
    assert_same(weights(tmp_path / "run"), weights(uninterrupted))


@pytest.mark.parametrize(
    ("event", "told"),
    [
        ("on_train_begin", "stopped before the first update; the same command begins again"),
        ("on_prediction_step", "stopped before the first update; the same command begins again"),
        ("on_epoch_begin", "stopped before the first update; the same command begins again"),
    ],
)
def test_before_the_first_update_there_is_nothing_to_save(
    cli: Cli, prepared: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, event: str, told: str
) -> None:
    stop_at(monkeypatch, event, 0)
    ran = cli(*words_of(prepared, tmp_path / "run", tiny))
    assert (ran.code, ran.err) == (143, f"musicgen-dreamboothing: {told}\n")
    assert not list((tmp_path / "run").glob("checkpoint-*"))


@pytest.mark.parametrize(
    ("module", "place"), [(model, "check_key_word"), (setup, "trainable_model"), (settings, "load_tables")]
)
def test_a_preparation_is_left_at_once(
    cli: Cli, prepared: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, place: str
) -> None:
    monkeypatch.setattr(module, place, lambda *rest, **more: os.kill(os.getpid(), signal.SIGTERM))
    ran = cli(*words_of(prepared, tmp_path / "run", tiny))
    told = "stopped; the same command resumes from the last checkpoint"
    assert (ran.code, ran.err) == (143, f"musicgen-dreamboothing: {told}\n")


@pytest.mark.parametrize("place", ["save_run", "final_report"])
def test_behind_the_last_update_the_run_is_finished_all_the_same(
    cli: Cli,
    prepared: Path,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    uninterrupted: Path,
) -> None:
    usual = getattr(train, place)

    def stop(*rest: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        usual(*rest)

    monkeypatch.setattr(train, place, stop)
    words = words_of(prepared, tmp_path / "run", tiny)
    ran = cli(*words)
    told = f"stopped; the run is finished and saved in {tmp_path / 'run'}"
    assert (ran.code, ran.err) == (130, f"musicgen-dreamboothing: {told}\n")
    assert_same(weights(tmp_path / "run"), weights(uninterrupted))
    monkeypatch.undo()
    assert "already holds this run, finished" in cli(*words).out


def test_a_second_signal_stops_at_once(
    cli: Cli, prepared: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(monkeypatch, "on_substep_end", 4, signal.SIGINT, times=2)
    ran = cli(*words_of(prepared, tmp_path / "run", tiny))
    told = "stopped; the same command resumes from the last checkpoint"
    assert (ran.code, ran.err) == (130, f"musicgen-dreamboothing: {told}\n")
    assert ran.out.count("stopping: this update is finished and saved first; once more stops at once\n") == 1
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-3"]


@pytest.mark.parametrize(
    ("options", "event", "step", "saved"),
    [
        pytest.param(["--save_strategy", "no", "--load_best_model_at_end", "false"], "on_step_begin", 1, 2, marks=SLOW),
        pytest.param(["--max_steps", 4], "on_step_end", 4, 4, marks=SLOW),  # in the middle of an epoch
        pytest.param([*PATIENT, 1], "on_step_begin", 4, 5, marks=SLOW),
        pytest.param([*PATIENT, 2], "on_step_begin", 7, 8, marks=SLOW),
        pytest.param(["--dataloader_num_workers", 1], "on_step_begin", 3, 4, marks=SLOW),
        pytest.param(["--dataloader_num_workers", 1], "on_prediction_step", 3, 3, marks=SLOW),
        pytest.param(["--save_total_limit", 1], "on_step_begin", 3, 4, marks=SLOW),
        pytest.param([*OVERFITTING, "--crop_seconds", 2], "on_step_begin", 4, 5, marks=SLOW),
        ([*BY_STEPS, "--eval_steps", 2, "--save_steps", 2], "on_save", 2, 2),
    ],
)  # fmt: skip
def test_ways_to_save_and_to_evaluate(
    cli: Cli,
    prepared: Path,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[object],
    event: str,
    step: int,
    saved: int,
) -> None:
    words = [words_of(prepared, tmp_path / name, tiny, *options) for name in ("whole", "run")]
    assert cli(*words[0]).code == 0
    stop_at(monkeypatch, event, step)
    ran = cli(*words[1])
    assert ran.code == 143
    assert re.search(rf"stopped at update {saved} of \d+ and saved checkpoint-{saved};", ran.err)
    monkeypatch.undo()
    assert cli(*words[1]).code == 0
    assert history(tmp_path / "run") == history(tmp_path / "whole")
    assert_same(weights(tmp_path / "run"), weights(tmp_path / "whole"))


def options_of(prepared: Path, folder: Path, base: Path) -> TrainArguments:
    return parse(TrainArguments, "train", "", [str(word) for word in words_of(prepared, folder, base)[1:]])


def test_python_gets_a_keyboard_interrupt_after_saving(
    prepared: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [signal.getsignal(each) for each in NUMBERS]
    stop_at(monkeypatch, "on_substep_end", 1)
    with pytest.raises(KeyboardInterrupt, match=r"^stopped at update 2 of 6 and saved checkpoint-2;") as stopped:
        train.train(options_of(prepared, tmp_path / "run", tiny))
    assert isinstance(stopped.value, Stopped)
    assert stopped.value.number == signal.SIGTERM
    assert [signal.getsignal(each) for each in NUMBERS] == before


def test_another_thread_trains_without_handlers(prepared: Path, tiny: Path, tmp_path: Path) -> None:
    options = options_of(prepared, tmp_path / "run", tiny)
    options.max_steps, options.eval_on_start = 1, False
    thread = threading.Thread(target=train.train, args=(options,))
    thread.start()
    thread.join()
    assert (tmp_path / "run" / "adapter_model.safetensors").exists()


def test_what_is_ignored_stays_ignored(
    cli: Cli, prepared: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a shell's background job, which Ctrl-C is not meant for."""
    usual = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        stop_at(monkeypatch, "on_substep_end", 0, signal.SIGINT)
        ran = cli(*words_of(prepared, tmp_path / "run", tiny, "--max_steps", 1))
    finally:
        signal.signal(signal.SIGINT, usual)
    assert ran.code == 0, ran.err


# --- runs that are too long


def test_a_run_that_overfits_stops_and_keeps_its_best_epoch(
    cli: Cli, prepared: Path, tiny: Path, tmp_path: Path
) -> None:
    words = [*train_words(prepared, tmp_path / "run", tiny), *OVERFITTING, "--save_total_limit", 0]
    ran = cli(*words)
    assert ran.code == 0, ran.err
    said = f"Early stopping: the training ends after {PATIENCE} epochs in a row without a lower loss, and the best"
    assert ran.out.count(said) == 1
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    losses = {line["step"]: line["eval_loss"] for line in record["log"] if "eval_loss" in line}
    assert sum("eval_loss" in line for line in record["log"]) == len(losses)  # the best weights are not evaluated again
    best = min(losses, key=lambda step: losses[step])
    assert record["summary"]["eval_loss"] == losses[best]
    assert 1 < best < 24 - PATIENCE
    assert sorted(losses) == list(range(1, best + PATIENCE + 1))  # epochs have one update each
    assert f"(update {best} of 24) were saved: eval_loss" in record["summary"]["kept"]
    assert f"stopped early, at update {best + PATIENCE}" in ran.out
    assert_same(weights(tmp_path / "run"), weights(tmp_path / "run" / f"checkpoint-{best}"))
    assert "already holds this run, finished" in cli(*words).out


@pytest.mark.parametrize(
    ("options", "patience"),
    [
        ({"num_train_epochs": SHORT_EPOCHS + 1}, PATIENCE),
        ({"num_train_epochs": SHORT_EPOCHS}, 0),
        ({"max_steps": 30}, PATIENCE),  # of 8 of 20 clips: 12 epochs
        ({"max_steps": 20}, 0),
        ({"num_train_epochs": 50, "early_stopping_patience": 0}, 0),
        ({"num_train_epochs": 50, "early_stopping_patience": 2}, 2),
        ({"num_train_epochs": 2, "early_stopping_patience": 2}, 2),
        ({"num_train_epochs": 50, "eval_strategy": "steps"}, 0),
        ({"num_train_epochs": 50, "save_strategy": "no"}, 0),
        ({"num_train_epochs": 50, "eval_strategy": "no", "save_strategy": "no"}, 0),
        ({"num_train_epochs": 50, "eval_delay": 5}, 0),
        ({"num_train_epochs": 50, "metric_for_best_model": "ppl"}, PATIENCE),
    ],
)
@pytest.mark.parametrize("held_out", [0, 4])
def test_when_a_run_stops_early(tmp_path: Path, options: dict[str, Any], patience: int, held_out: int) -> None:
    made = settings_of(tmp_path, options, held_out)
    assert made.patience == (patience if held_out else 0)
    arguments = made.trainer_arguments()
    assert arguments.load_best_model_at_end == bool(held_out and (patience or options.get("metric_for_best_model")))
    if made.patience:
        assert arguments.metric_for_best_model == options.get("metric_for_best_model", "loss")
        assert arguments.greater_is_better is False
    assert made.options.load_best_model_at_end == (
        bool(options.get("early_stopping_patience")) or "metric_for_best_model" in options
    )  # nothing is written to what a caller passed


def test_the_style_needs_no_held_out_songs_to_stop_early(tmp_path: Path) -> None:
    made = settings_of(tmp_path, {"num_train_epochs": 50, "metric_for_best_model": "style"}, held_out=0)
    assert made.patience == PATIENCE
    assert made.trainer_arguments().load_best_model_at_end


def settings_of(folder: Path, options: dict[str, Any], held_out: int) -> Settings:
    """Of a run on 20 clips whose updates take 8."""
    tables: Any = SimpleNamespace(train=[0] * 20, held_out=[0] * held_out)
    arguments = TrainArguments(output_dir=str(folder), use_cpu=True, **options)
    base: Any = None
    return Settings(arguments, base, None, folder, tables, None, BatchSplit(2, 4, "none", 1), None)


# --- memory that runs out


@SLOW
@pytest.mark.parametrize("sizes", [None, [1]])
def test_a_run_whose_batch_was_halved_resumes_as_it_was(
    cli: Cli, prepared: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: list[int] | None
) -> None:
    """Killed, and resumed by a process that has memory enough, or that would plan smaller batches."""
    plain = ["--lora_dropout", 0, "--recompute", "auto" if sizes else "none"]
    words = [words_of(prepared, tmp_path / name, tiny, *plain) for name in ("whole", "run")]
    assert cli(*words[0]).code == 0
    compute, in_parts, failed = CodebookTrainer.compute_loss, CodebookTrainer._step_in_parts, []

    def run_out_once(trainer: CodebookTrainer, *rest: Any, **more: Any) -> Any:
        if not failed and trainer.model.training:
            failed.append(True)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return compute(trainer, *rest, **more)

    def killed(trainer: CodebookTrainer, *rest: Any) -> Any:
        if trainer.state.global_step == 4:
            raise SystemExit("killed")
        return in_parts(trainer, *rest)

    monkeypatch.setattr(CodebookTrainer, "compute_loss", run_out_once)
    monkeypatch.setattr(CodebookTrainer, "_step_in_parts", killed)
    with pytest.raises(SystemExit, match="killed"):
        cli(*words[1])
    monkeypatch.undo()
    parts: list[int] = []

    def noting(trainer: CodebookTrainer, *rest: Any) -> Any:
        parts.append(trainer._parts)
        return in_parts(trainer, *rest)

    monkeypatch.setattr(CodebookTrainer, "_step_in_parts", noting)
    if sizes:
        monkeypatch.setattr("musicgen_dreamboothing.training.plan.sizes_of", lambda *rest: sizes)
    ran = cli(*words[1])
    assert ran.code == 0, ran.err
    assert f"Resuming from {tmp_path}/run/checkpoint-3\n" in ran.out
    records = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("whole", "run")]
    assert records[0]["summary"]["updates"] == records[1]["summary"]["updates"] == 6
    assert records[0]["split"] == records[1]["split"]
    clips = records[0]["split"]["per_device_train_batch_size"]
    assert set(parts) == {2} if clips % 2 == 0 else min(parts) > 1  # without running out of memory once more
    one, other = weights(tmp_path / "run"), weights(tmp_path / "whole")
    assert all(torch.allclose(one[name], other[name], atol=1e-5) for name in other)


# --- checkpoints


def without(name: str) -> Callable[[Path], None]:
    return lambda checkpoint: (checkpoint / name).unlink()


def torn(name: str) -> Callable[[Path], None]:
    return lambda checkpoint: (checkpoint / name).write_bytes((checkpoint / name).read_bytes()[:-50])


FILES = ("trainer_state.json", "optimizer.pt", "scheduler.pt", "adapter_model.safetensors", "adapter_config.json")


@pytest.mark.parametrize("damage", [damage(name) for name in FILES for damage in (without, torn)])
def test_an_incomplete_checkpoint_is_passed_over(
    uninterrupted: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = shutil.copytree(uninterrupted, tmp_path / "run")
    assert last_checkpoint(folder) == folder / "checkpoint-6"
    damage(folder / "checkpoint-6")
    assert last_checkpoint(folder) == folder / "checkpoint-3"
    assert checkpoints_after(folder, folder / "checkpoint-3") == [folder / "checkpoint-6"]


def test_what_is_passed_over_is_said(cli: Cli, prepared: Path, tiny: Path, tmp_path: Path, uninterrupted: Path) -> None:
    folder = shutil.copytree(uninterrupted, tmp_path / "run")
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "finished": False}))
    (folder / "checkpoint-6" / "optimizer.pt").unlink()
    ran = cli(*words_of(prepared, folder, tiny))
    assert ran.code == 0, ran.err
    assert f"note: {folder}/checkpoint-6 is incomplete and not used\nResuming from {folder}/checkpoint-3\n" in ran.out
    assert_same(weights(folder), weights(uninterrupted))


# --- numbers of processes


@pytest.mark.parametrize(
    ("before", "now", "clips", "times", "drop_last", "shared"),
    [
        (2, 1, 2, 3, False, (2, 6)),
        (1, 2, 2, 6, False, (2, 3)),
        (1, 2, 4, 1, False, (2, 1)),
        (2, 4, 3, 2, False, (3, 1)),
        (4, 3, 3, 2, False, (2, 4)),
        (1, 2, 1, 1, False, None),
        (2, 3, 2, 1, False, None),
        (2, 1, 2, 3, True, (4, 3)),
        (1, 2, 4, 3, True, (2, 3)),
        (1, 2, 3, 2, True, None),
    ],
)
def test_clips_of_an_update_are_shared_evenly(
    before: int, now: int, clips: int, times: int, drop_last: bool, shared: tuple[int, int] | None
) -> None:
    assert shared_among(now, clips=clips, times=times, before=before, drop_last=drop_last) == shared


def test_updates_that_can_not_be_shared_are_refused(
    prepared: Path, tiny: Path, tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(uninterrupted, tmp_path / "run")
    assert json.loads((folder / "run.json").read_text())["split"]["processes"] == 1
    options = options_of(prepared, folder, tiny)
    monkeypatch.setattr(TrainArguments, "world_size", 3)
    with pytest.raises(UserError, match=r"began with 1 process, and its updates of 4 clips .* by 3; start it with 1"):
        settle_split(options, read_checkpoint(tiny), [], last_checkpoint(folder))


def test_a_signal_that_comes_while_processes_agree_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = StopRequest()
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(num_processes=2), args=SimpleNamespace(device="cpu"), stop=stop
    )
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.all_reduce", lambda *rest, **more: setattr(stop, "number", signal.SIGTERM))
    assert StoppableTrainer.agreed_signal(trainer) == 0  # type: ignore[arg-type]
    assert stop.number == signal.SIGTERM  # and the next time all hear of it


# --- options


def test_every_option_of_transformers_is_classified() -> None:
    names = {entry.name for entry in dataclasses.fields(Seq2SeqTrainingArguments)}
    assert names == SUPPORTED | IDLE | UNSUPPORTED.keys()
    assert len(names) == len(SUPPORTED) + len(IDLE) + len(UNSUPPORTED)


@pytest.mark.parametrize(
    "words",
    [
        ["--fsdp", "full_shard"],
        ["--fsdp_config", '{"version": 2}'],
        ["--deepspeed", "ds.json"],
        ["--save_only_model", "true"],
        ["--ignore_data_skip", "true"],
        ["--use_liger_kernel", "true"],
        ["--bf16_full_eval", "true"],
        ["--dataloader_in_order", "false"],
        ["--save_on_each_node", "true"],
        ["--optim_target_modules", "q_proj"],
        ["--remove_unused_columns", "true"],
        ["--ddp_static_graph", "true"],
        ["--accelerator_config", '{"split_batches": true}'],
        ["--accelerator_config", '{"dispatch_batches": true}'],
        ["--accelerator_config", '{"even_batches": false}'],
        ["--accelerator_config", '{"gradient_accumulation_kwargs": {"num_steps": 2}}'],
        ["--accelerator_config", "missing.json"],
        ["--resume_from_checkpoint", "elsewhere/checkpoint-1"],
    ],
)
def test_what_breaks_saving_or_resuming_is_refused(cli: Cli, tmp_path: Path, words: list[str]) -> None:
    ran = cli("train", "--dataset_name", tmp_path, "--output_dir", tmp_path / "run", *words)
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
    assert ran.err.startswith(f"musicgen-dreamboothing: {words[0]} ")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "name", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_PARALLELISM_CONFIG"]
)
def test_what_a_launcher_sets_is_refused_too(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "true")
    ran = cli("train", "--dataset_name", tmp_path, "--output_dir", tmp_path / "run")
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
    assert ran.err.startswith(
        f"musicgen-dreamboothing: {name}, set by `accelerate config` or `launch`, is not supported"
    )


def test_options_that_change_nothing_are_named(cli: Cli, prepared: Path, tiny: Path, tmp_path: Path) -> None:
    idle = ["--enable_jit_checkpoint", "true", "--resume_from_checkpoint", "true", "--use_cache", "true"]
    harmless = ["--accelerator_config", '{"non_blocking": true}', "--max_steps", 1, "--eval_strategy", "no"]
    ran = cli(*words_of(prepared, tmp_path / "run", tiny, "--load_best_model_at_end", "false", *idle, *harmless))
    assert ran.code == 0, ran.err
    notes = {line for line in ran.out.splitlines() if "has no effect here" in line}
    assert notes == {"note: --enable_jit_checkpoint has no effect here", "note: --use_cache has no effect here"}


def test_processes_wait_for_hours(tmp_path: Path) -> None:
    options = TrainArguments(output_dir=str(tmp_path), use_cpu=True)
    assert options.ddp_timeout == 12 * 3600
    assert options.ddp_find_unused_parameters is False


# --- other commands


@pytest.mark.parametrize("verb", ["prepare", "doctor", "generate", "evaluate", "warm-start", "demo"])
def test_sigterm_is_a_clean_stop_of_every_command(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setattr(
        importlib.import_module(f"musicgen_dreamboothing.{FUNCTIONS[verb]}"),
        verb.replace("-", "_"),
        lambda options: os.kill(os.getpid(), signal.SIGTERM),
    )
    words = {"demo": []}.get(verb, [tmp_path])
    ran = cli(verb, *words)
    assert (ran.code, ran.out) == (143, "")
    assert ran.err.startswith("musicgen-dreamboothing: stopped; ")
    assert ran.err.count("\n") == 1
