"""How a training begins, goes on and ends: from an adapter, for longer, with what fails at its end."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import Ran, read_checkpoint, tables_in
from hub import LocalHub
from peft import LoHaConfig, LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import MusicgenForConditionalGeneration, TrainerControl, TrainerState, get_scheduler
from transformers.integrations import TensorBoardCallback

from musicgen_dreamboothing import cli
from musicgen_dreamboothing.arguments import EvaluateArguments, TrainArguments, parse
from musicgen_dreamboothing.cli import main
from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.data.run_record import read_record
from musicgen_dreamboothing.device import check_device
from musicgen_dreamboothing.evaluation.metrics.embedding import is_cached
from musicgen_dreamboothing.generation.guidance import Sampling
from musicgen_dreamboothing.model.adapter import attach_adapter, has_learned, read_adapter
from musicgen_dreamboothing.model.loading import load_language_model
from musicgen_dreamboothing.model.saved_adapter import read_initial_adapter, start_from_adapter
from musicgen_dreamboothing.training import saving, setup, style
from musicgen_dreamboothing.training.final_report import final_report
from musicgen_dreamboothing.training.longer import LongerSchedule, is_done
from musicgen_dreamboothing.training.record import changed_options
from musicgen_dreamboothing.training.samples import Sampler
from musicgen_dreamboothing.training.trackers import guard_trackers

Cli = Callable[..., Ran]
CPU = torch.device("cpu")
WEIGHTS = "adapter_model.safetensors"
# Two updates an epoch, evaluated before and after the training.
SMALL = [
    *("--max_train_samples", 4, "--max_eval_samples", 2, "--gradient_accumulation_steps", 1, "--learning_rate", 0.01),
    *("--eval_strategy", "no", "--instance_prompt", "punk"),
    *("--disable_tqdm", "true"),
]


def words(data: Path, folder: Path, base: Path | None = None) -> list[object]:
    """A `train` command of two epochs; the base is the adapter's if not given."""
    given = ("--model_name_or_path", base) if base else ()
    return ["train", "--dataset_name", data, "--output_dir", folder, "--num_train_epochs", 2, *given, *SMALL]


def options_of(*given: object) -> TrainArguments:
    return parse(TrainArguments, "train", "", ["--output_dir", "out", *map(str, given)])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, prepared: Path) -> Path:
    return shutil.copytree(prepared, tmp_path_factory.mktemp("start") / "data")


@pytest.fixture(scope="module")
def finished(data: Path, tiny: Path) -> Path:
    """A run of two epochs, four updates."""
    folder = data.parent / "finished"
    assert main([str(word) for word in words(data, folder, tiny)]) == 0
    return folder


class Interrupting(setup.Lines):
    """Ctrl-C at the end of the third update."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt


# --- training longer


def test_more_epochs_go_on_with_the_schedule_of_the_longer_run(
    cli: Cli, finished: Path, data: Path, tiny: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    ran = cli(*words(data, folder, tiny), "--num_train_epochs", 4)
    assert ran.code == 0, ran.err
    assert f"Resuming from {folder}/checkpoint-4\n" in ran.out
    told = "8 updates instead of 4: from update 5 on the learning rate follows the linear schedule of 8 updates"
    assert f"{told} (0.00e+00 -> 5.00e-03)\n" in ran.out
    assert re.search(r"^Held-out loss \d\.\d{4} before, ", ran.out, flags=re.MULTILINE)
    record = read_record(folder)
    assert record is not None
    assert (record.finished, record.options["num_train_epochs"]) == (True, 4)
    assert (record.summary["updates"], record.summary["epochs"], record.summary["went_on_from"]) == (8, 4, 4)
    rates = {line["step"]: line["learning_rate"] for line in record.log if "learning_rate" in line}
    assert list(rates) == list(range(1, 9))
    assert [rates[step] for step in (4, 5, 6, 8)] == pytest.approx([0.0025, 0.005, 0.00375, 0.00125])
    state = torch.load(folder / "checkpoint-8" / "optimizer.pt", weights_only=True)["state"]
    assert {int(moments["step"]) for moments in state.values()} == {8}
    before, after = load_file(finished / WEIGHTS), load_file(folder / WEIGHTS)
    assert not any(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["--num_train_epochs", 1], "holds a run that is longer already: 2 are done, and --num_train_epochs is 1;"),
        (["--max_steps", 3], "holds a run that is longer already: 4 are done, and --max_steps is 3; choose more,"),
        (["--num_train_epochs", 3, "--lora_r", 4], "holds a run with other options: lora_r (16 -> 4);"),
    ],
)
def test_what_no_longer_run_is(
    cli: Cli, finished: Path, data: Path, tiny: Path, changes: list[object], told: str
) -> None:
    ran = cli(*words(data, finished, tiny), *changes)
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
    assert told in ran.err


def test_as_many_updates_as_are_done_are_no_longer_run(cli: Cli, finished: Path, data: Path, tiny: Path) -> None:
    ran = cli(*words(data, finished, tiny), "--max_steps", 4)
    assert ran == Ran(0, f"{finished} already holds this run, finished; --restart true trains it again\n", "")


def test_without_a_checkpoint_the_way_on_is_named(
    cli: Cli, finished: Path, data: Path, tiny: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoint-*"))
    ran = cli(*words(data, folder, tiny), "--num_train_epochs", 4)
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert "without checkpoints (--save_strategy no), which cannot be trained longer" in ran.err
    assert f"--init_adapter {folder} with another --output_dir" in ran.err


def test_updates_whose_checkpoint_is_gone_are_told(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `--save_total_limit 1` leaves it where an earlier checkpoint is the best."""
    folder = shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoint-4"))
    record = read_record(folder)
    assert record is not None
    assert not is_done(record, options_of("--num_train_epochs", 4), folder)
    assert capsys.readouterr().out == "the checkpoint of update 4 is gone: updates 3 to 4 are trained again\n"


@pytest.mark.parametrize(
    ("name", "warmup", "special"),
    [
        ("linear", 0, {}),
        ("linear", 3, {}),
        ("cosine", 2, {}),
        ("polynomial", 0, {}),
        ("constant_with_warmup", 9, {}),
        ("cosine_with_min_lr", 0, {"min_lr": 1e-4}),
    ],
)
def test_a_schedule_goes_on_as_if_it_had_been_the_longer_one(
    name: str, warmup: int, special: dict[str, float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def scheduled(updates: int) -> tuple[Any, Any]:
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=0.1)
        return optimizer, get_scheduler(name, optimizer, warmup, updates, scheduler_specific_kwargs=special)

    def rates(optimizer: Any, scheduler: Any, updates: int) -> list[float]:
        found = []
        for _ in range(updates):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return found

    whole = rates(*scheduled(12), 12)
    optimizer, scheduler = scheduled(6)
    rates(optimizer, scheduler, 6)
    longer, its_scheduler = scheduled(12)
    longer.load_state_dict(optimizer.state_dict())
    its_scheduler.load_state_dict(scheduler.state_dict())
    for step in (0, 6, 7):
        (tmp_path / f"step_{step:04d}").mkdir()
    state = TrainerState(max_steps=12, global_step=6, is_world_process_zero=True)
    arguments = options_of("--lr_scheduler_type", name)
    callback = LongerSchedule(6, tmp_path)
    callback.on_train_begin(arguments, state, TrainerControl(), optimizer=longer, lr_scheduler=its_scheduler)
    assert rates(longer, its_scheduler, 6) == pytest.approx(whole[6:])
    assert f"the {name} schedule of 12 updates" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_0000", "step_0006"]  # 7 was on the old schedule


# --- from an adapter


def test_a_run_begins_where_an_adapter_ended(cli: Cli, finished: Path, data: Path, tiny: Path, tmp_path: Path) -> None:
    ran = cli(*words(data, tmp_path / "run"), "--init_adapter", finished)
    assert ran.code == 0, ran.err
    assert f"Starting from the adapter {finished}: LoRA of rank 16, alpha 16\n" in ran.out
    earlier, record = read_record(finished), read_record(tmp_path / "run")
    assert earlier is not None
    assert record is not None
    assert record.base_model == str(tiny)  # the adapter's
    assert record.summary["loss_before"] == pytest.approx(earlier.summary["eval_loss"], abs=1e-3)
    assert record.log[1]["learning_rate"] == 0.01  # a fresh schedule
    assert record.options["init_adapter"] == str(finished)
    assert record.init_adapter is not None
    assert record.init_adapter["revision"]
    card = (tmp_path / "run" / "README.md").read_text()
    assert "The training began from the adapter `finished`." in card
    assert str(finished) not in card
    ran = cli("generate", tmp_path / "run", "punk", "--seconds", 0.2, "--output_dir", tmp_path / "out")
    assert ran.code == 0, ran.err


def test_a_run_from_an_adapter_goes_on_without_it(
    cli: Cli, finished: Path, data: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, adapter = tmp_path / "run", shutil.copytree(finished, tmp_path / "adapter")
    command = [*words(data, folder), "--init_adapter", adapter, "--save_strategy", "steps", "--save_steps", 1]
    monkeypatch.setattr(setup, "Lines", Interrupting)
    assert cli(*command).code == 130
    monkeypatch.undo()
    began = read_record(folder)
    ran = cli(*words(data, folder, tiny))
    assert ran.code == 1
    assert f"holds a run with other options: init_adapter ({adapter} -> None)" in ran.err
    shutil.rmtree(adapter)
    ran = cli(*command)
    assert ran.code == 0, ran.err
    assert "Resuming from" in ran.out
    record = read_record(folder)
    assert began is not None
    assert record is not None
    assert record.init_adapter == began.init_adapter
    assert cli(*command).out.startswith(f"{folder} already holds this run, finished")


def test_an_initial_adapter_that_learns_nothing_is_told(cli: Cli, finished: Path, data: Path, tmp_path: Path) -> None:
    ran = cli(*words(data, tmp_path / "run"), "--init_adapter", finished, "--learning_rate", 0, "--max_steps", 1)
    assert ran.code == 1
    assert ran.err.endswith("the adapter learned nothing: it is still the initial adapter; train for more updates\n")


@pytest.mark.parametrize(
    "more", [("--quantization", "nf4"), ("--freeze_text_encoder", "false"), ("--use_dora", "false", "--lora_r", 16)]
)
def test_what_an_initial_adapter_goes_with(
    cli: Cli, finished: Path, data: Path, tmp_path: Path, more: tuple[object, ...]
) -> None:
    ran = cli(*words(data, tmp_path / "run"), "--init_adapter", finished, "--max_steps", 1, *more)
    assert ran.code == 0, ran.err
    names = set(load_file(tmp_path / "run" / WEIGHTS))
    assert any(".text_encoder." in name for name in names) == ("--freeze_text_encoder" in more)
    assert set(load_file(finished / WEIGHTS)) <= names


def plain_adapter(base: Path, folder: Path, config: Any) -> Path:
    """An adapter by PEFT alone, on transformers' own model, which changes something."""
    model = get_peft_model(MusicgenForConditionalGeneration.from_pretrained(base), config)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if any(part in name for part in ("lora_B", "lora_embedding_A", "hada_w1_a")):
                weight.normal_(std=0.05)
    model.save_pretrained(folder)
    return folder


PLAIN = {
    "task": LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="SEQ_2_SEQ_LM", lora_dropout=0.1),
    "dora": LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "fc1"], use_dora=True),
    "ranks": LoraConfig(
        r=4,
        target_modules=["q_proj", "fc1"],
        rank_pattern={"fc1": 8},
        alpha_pattern={"fc1": 32},
        layers_to_transform=[0],
        layers_pattern="layers",
    ),
    "text": LoraConfig(r=4, use_rslora=True, target_modules="all-linear"),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_adapters_of_plain_peft_are_begun_from(kind: str, tiny: Path, tmp_path: Path) -> None:
    folder = plain_adapter(tiny, tmp_path / kind, PLAIN[kind])
    with_text = kind == "text"

    def model() -> Any:
        return load_language_model(read_checkpoint(tiny), torch.float32, CPU, with_text_encoder=with_text)

    begun = start_from_adapter(model(), read_initial_adapter(str(folder)), with_text_encoder=with_text)
    played = attach_adapter(model(), read_adapter(str(folder)))
    own, its = (get_peft_model_state_dict(one, save_embedding_layers=False) for one in (begun, played))
    assert own.keys() == its.keys()
    assert all(torch.equal(own[name], its[name]) for name in own)
    scales = [
        {
            name: layer.scaling
            for name, layer in one.named_modules()
            if isinstance(getattr(layer, "scaling", None), dict)
        }
        for one in (begun, played)
    ]
    assert scales[0] == scales[1]
    trained = [weight for name, weight in begun.named_parameters() if weight.requires_grad]
    assert sum(weight.numel() for weight in trained) == sum(weight.numel() for weight in own.values())
    assert not has_learned(begun)
    with torch.no_grad():
        trained[0].add_(0.1)
    assert has_learned(begun)


@pytest.mark.parametrize("text_encoder", ["frozen", pytest.param("trained", marks=pytest.mark.slow)])
def test_a_plain_adapter_is_trained_on(cli: Cli, data: Path, tiny: Path, tmp_path: Path, text_encoder: str) -> None:
    folder = plain_adapter(tiny, tmp_path / "plain", PLAIN["task"])
    freeze = ("--freeze_text_encoder", "false") if text_encoder == "trained" else ()
    command = [*words(data, tmp_path / "run", tiny), "--init_adapter", folder, "--max_steps", 1, *freeze]
    ran = cli(*command)
    assert ran.code == 0, ran.err
    assert "LoRA of rank 4, alpha 8" in ran.out
    assert cli(*command).out.startswith(f"{tmp_path}/run already holds this run")
    base = MusicgenForConditionalGeneration.from_pretrained(tiny)
    tuned = PeftModel.from_pretrained(base, tmp_path / "run")
    saved = load_file(tmp_path / "run" / WEIGHTS)
    assert get_peft_model_state_dict(tuned, save_embedding_layers=False).keys() == saved.keys()


def spoilt(kind: str, base: Path, folder: Path) -> str:
    """The name of an adapter that cannot be begun from."""
    if kind == "loha":
        return str(plain_adapter(base, folder, LoHaConfig(r=4, target_modules=["q_proj"])))
    if kind in ("zero", "nan", "torn", "pissa", "bias"):
        config = LoraConfig(r=4, target_modules=["q_proj"], bias="lora_only" if kind == "bias" else "none")
        plain_adapter(base, folder, config)
        state = load_file(folder / WEIGHTS)
        factor = {"zero": 0.0, "nan": float("nan")}.get(kind, 1.0)
        save_file(
            {name: weight * (factor if "lora_B" in name else 1) for name, weight in state.items()}, folder / WEIGHTS
        )
    if kind == "torn":
        (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100])
    if kind == "pissa":
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"init_lora_weights": "pissa"}))
    if kind == "json":
        folder.mkdir()
        (folder / "adapter_config.json").write_text("{")
    if kind == "whole":
        return str(base)
    return str(folder)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("nothing", "run/adapter"),
        (
            "whole",
            "holds no adapter: there is no adapter_config.json in it; train a full fine-tune further with --model",
        ),
        ("json", "adapter_config.json of "),
        ("torn", "the weights of the adapter "),
        ("zero", "changes nothing: all its updates are zero"),
        ("nan", "holds weights that are not finite"),
        ("loha", "is an adapter of the kind LOHA; --init_adapter takes LoRA"),
        ("bias", "holds more than LoRA weights (bias), which is not supported"),
        ("pissa", "belong to a base changed by 'pissa'; take an adapter that was converted to plain LoRA"),
    ],
)
def test_adapters_that_cannot_be_begun_from(
    cli: Cli, data: Path, tiny: Path, tmp_path: Path, kind: str, told: str
) -> None:
    (tmp_path / "run").mkdir()
    name = spoilt(kind, tiny, tmp_path / "run" / "adapter")
    ran = cli(*words(data, tmp_path / "out", tiny), "--init_adapter", name)
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
    assert told in ran.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["--lora_r", 8], "--lora_r 8 contradicts the adapter {}, which has 16; leave it out"),
        (["--lora_targets", "attention"], "--lora_targets attention contradicts the adapter {}, which has all"),
        (["--use_dora", "true"], "--use_dora True contradicts the adapter {}, which has False"),
        (["--lora_init", "pissa"], "--lora_init pissa contradicts the adapter {}, which has default"),
        (["--use_lora", "false"], "--init_adapter continues a LoRA adapter, which --use_lora false would not train"),
        (["--output_dir", "{}"], "--init_adapter {} lies in --output_dir, where the result goes"),
        (["--output_dir", "{}", "--restart", "true"], "--init_adapter {} lies in --output_dir"),
        (["--model_name_or_path", "melody"], "the adapter {} does not fit "),
        (["--model_name_or_path", "nowhere"], "no model at "),
    ],
)
def test_options_that_contradict_an_initial_adapter(
    cli: Cli,
    finished: Path,
    data: Path,
    tmp_path: Path,
    checkpoints: Callable[[str], Path],
    changes: list[object],
    told: str,
) -> None:
    given = [checkpoints("melody") if word == "melody" else str(word).format(finished) for word in changes]
    ran = cli(*words(data, tmp_path / "out"), "--init_adapter", finished, *given)
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert told.format(finished) in ran.err
    assert not (tmp_path / "out").exists()
    assert (finished / WEIGHTS).exists()


@pytest.mark.slow
def test_a_base_of_another_name_is_noted_and_one_that_is_gone_is_told(
    cli: Cli, finished: Path, data: Path, tiny: Path, tmp_path: Path
) -> None:
    adapter, base = shutil.copytree(finished, tmp_path / "adapter"), shutil.copytree(tiny, tmp_path / "base")
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(tmp_path / "gone")}))
    ran = cli(*words(data, tmp_path / "run"), "--init_adapter", adapter)
    assert ran.code == 1
    assert f"The adapter {adapter} names this base; --model_name_or_path wins" in ran.err
    command = [*words(data, tmp_path / "run", base), "--init_adapter", adapter, "--plan", "--memory", "8GB"]
    ran = cli(*command)
    assert ran.code == 0, ran.err
    assert f"note: the adapter was made for {tmp_path}/gone, and the base of this run is {base}\n" in ran.out


# --- a full fine-tune has its own defaults


@pytest.mark.parametrize(
    ("given", "rate", "decay"),
    [
        ((), 2e-4, 0.1),
        (("--use_lora", "false"), 1e-5, 0.01),
        (("--use_lora", "false", "--learning_rate", 2e-4), 2e-4, 0.01),
        (("--use_lora", "false", "--weight_decay", 0.1), 1e-5, 0.1),
        (("--learning_rate", 1e-5), 1e-5, 0.1),
    ],
)
def test_rate_and_decay_by_default(given: tuple[object, ...], rate: float, decay: float) -> None:
    options = options_of(*given)
    assert (options.learning_rate, options.weight_decay) == (rate, decay)
    shown = changed_options(options)
    assert ("learning_rate" in shown, "weight_decay" in shown) == (rate != 2e-4, decay != 0.1)


def test_a_full_fine_tune_says_its_rate(cli: Cli, tiny: Path) -> None:
    ran = cli(
        "train", "--plan", "--model_name_or_path", tiny, "--memory", "8GB", "--crop_seconds", 1, "--use_lora", "false"
    )
    assert ran.code == 0, ran.err
    assert ran.out.startswith("Full fine-tune: learning rate 1e-05, weight decay 0.01\n")


# --- the end


def fail(error: Exception) -> Callable[..., Any]:
    def failing(*args: Any, **kwargs: Any) -> Any:
        raise error

    return failing


ERRORS = [
    (UserError("no clip was made"), "no clip was made"),
    (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\n 2 GiB"),
        "OutOfMemoryError: CUDA out of memory. T",
    ),
    (OSError(28, "No space left on device"), "OSError: [Errno 28] No space left on device"),
    (MemoryError(), "MemoryError"),
    (KeyError("tempo"), "KeyError: 'tempo'"),
]


@pytest.mark.parametrize(("error", "reason"), ERRORS)
def test_a_report_that_fails_is_one_line_with_its_command(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("musicgen_dreamboothing.evaluation.evaluate.evaluate", fail(error))
    given = ("--final_report", "true", "--quantization", "nf4", "--clap_model_name_or_path", "someone/clap")
    options = options_of(*given, "--token", "hf_secret")
    final_report(Path("my run"), options)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"the run is finished and saved, but its report failed ({reason}")
    command = "musicgen-dreamboothing evaluate 'my run' --clap_model_name_or_path someone/clap --quantization nf4"
    assert line.endswith(f"to repeat it: {command}")


@pytest.mark.parametrize(
    ("report", "option", "model", "expected"),
    [
        ("auto", "--clap_model_name_or_path", "someone/clap", "none"),
        ("true", "--clap_model_name_or_path", "someone/clap", "someone/clap"),
        ("auto", "--clap_model_name_or_path", "none", "none"),
        ("auto", "--embedder", "someone/hubert", "none"),
        ("true", "--embedder", "someone/hubert", "someone/hubert"),
    ],
)
def test_an_embedder_is_not_downloaded_unasked(
    report: str,
    option: str,
    model: str,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[EvaluateArguments] = []
    monkeypatch.setattr("musicgen_dreamboothing.evaluation.evaluate.evaluate", asked.append)
    monkeypatch.setattr(TrainArguments, "device", property(lambda options: torch.device("cuda", 0)))
    options = options_of("--final_report", report, option, model, "--quantization", "int8")
    final_report(Path("run"), options)
    chosen = [(one.embedder or one.clap_model_name_or_path, one.quantization, one.device) for one in asked]
    assert chosen == [(expected, "int8", "cuda:0")]
    out = capsys.readouterr().out
    name = "CLAP (0.8 GB)" if option == "--clap_model_name_or_path" else model
    assert (f"does without {name}, which is not downloaded unasked" in out) == (expected != model)
    assert (f"evaluate run {option} {model}" in out) == (expected != model)
    assert out.count("\n") == (expected != model)


def test_what_of_clap_is_in_the_cache(tmp_path: Path) -> None:
    assert is_cached("none")
    assert is_cached(str(tmp_path))
    assert not is_cached("someone/clap", str(tmp_path))
    snapshot = tmp_path / "models--someone--clap" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--someone--clap" / "refs").mkdir()
    (tmp_path / "models--someone--clap" / "refs" / "main").write_text("abc")
    (snapshot / "config.json").write_text("{}")
    assert not is_cached("someone/clap", str(tmp_path))
    (snapshot / "model.safetensors").write_text("")
    assert is_cached("someone/clap", str(tmp_path))


def test_weights_are_saved_whatever_else_fails(
    cli: Cli, data: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = OSError(28, "No space left on device")
    monkeypatch.setattr("musicgen_dreamboothing.training.samples._write", fail(full))
    monkeypatch.setattr(saving, "write_card", fail(ValueError("no template")))
    monkeypatch.setattr(saving, "save_processor", fail(full))
    monkeypatch.setattr("musicgen_dreamboothing.training.summary.last_evaluation", fail(RuntimeError("CUDA error")))
    monkeypatch.setattr("musicgen_dreamboothing.evaluation.evaluate.evaluate", fail(full))
    more = ("--max_steps", 1, "--sample_prompts", "punk", "--sample_seconds", 0.2, "--final_report", "true")
    ran = cli(*words(data, tmp_path, tiny), *more)
    assert (ran.code, ran.err) == (0, "")
    for line in (
        "no samples at update 0: OSError: [Errno 28] No space left on device\n",
        "no samples at update 1: OSError: [Errno 28] No space left on device\n",
        "the held-out songs were not evaluated at the end: RuntimeError: CUDA error\n",
        f"the processor of {tiny} is not beside the weights, where transformers looks for it: OSError: [Errno 28] ",
        "there is no model card: ValueError: no template\n",
        "the run is finished and saved, but its report failed (OSError: [Errno 28] ",
    ):
        assert ran.out.count(line) == 1
    assert (tmp_path / WEIGHTS).exists()
    record = read_record(tmp_path)
    assert record is not None
    assert record.finished


def test_a_tracker_that_fails_says_so_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[str] = []
    monkeypatch.setattr(TensorBoardCallback, "on_log", lambda *rest, **more: seen.append("log"))
    monkeypatch.setattr(TensorBoardCallback, "on_train_end", fail(OSError(28, "No space left on device")))
    tracker, lines = TensorBoardCallback(tb_writer=object()), setup.Lines()
    guard_trackers([tracker, lines])
    for _ in range(2):
        tracker.on_log(None, None, None)
        tracker.on_train_end(None, None, None)
    assert seen == ["log", "log"]
    assert capsys.readouterr().out == "the tracker TensorBoard failed: OSError: [Errno 28] No space left on device\n"
    assert "on_log" not in vars(lines)


# --- the distance to the songs


def test_a_distance_that_cannot_be_measured_is_no_better(
    cli: Cli, data: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    homes: list[Any] = []
    load = style.load_embedder

    def load_embedder(*rest: Any, **more: Any) -> Any:
        homes.append(more["device"])
        return load(*rest, **more)

    monkeypatch.setattr(style, "load_embedder", load_embedder)
    monkeypatch.setattr(Sampler, "make", fail(torch.OutOfMemoryError("CUDA out of memory")))
    more = ("--metric_for_best_model", "style", "--eval_strategy", "epoch", "--clap_model_name_or_path", "none")
    ran = cli(*words(data, tmp_path, tiny), *more)
    assert ran.code == 0, ran.err
    told = "the distance to your songs was not measured, which counts as no better: no memory to play; try a shorter"
    assert ran.out.count(told) == 3  # before, and after each epoch
    assert homes == [CPU]
    record = read_record(tmp_path)
    assert record is not None
    assert (record.summary["kept"], record.summary["updates"]) == ("", 4)


def test_only_the_main_process_loads_clap(
    data: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(style, "PartialState", lambda: SimpleNamespace(is_main_process=False))
    monkeypatch.setattr(style, "load_codec", fail(AssertionError()))
    monkeypatch.setattr(style, "load_embedder", fail(AssertionError()))
    checkpoint = read_checkpoint(tiny)
    sampler = Sampler(checkpoint, ["punk"], 1.0, 0, tmp_path, Sampling())
    tables = tables_in(data, tiny, "punk", eval_fraction=0.1)
    style.style_meter(options_of("--instance_prompt", "punk"), checkpoint, tables, sampler)


# --- devices and their memory


@pytest.mark.parametrize("kind", ["xpu", "hpu", "xla", "mtia"])
def test_other_accelerators_are_one_line(
    cli: Cli, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(TrainArguments, "device", property(lambda options: torch.device(kind)))
    told = f"{kind} is not supported; use --use_cpu true, or an NVIDIA, AMD or Apple GPU"
    for more in ((), ("--plan", "--memory", "8GB")):
        ran = cli(*words(tmp_path / "songs", tmp_path / "run", tiny), *more)
        assert ran == Ran(1, "", f"musicgen-dreamboothing: {told}\n")


@pytest.mark.parametrize("kind", ["cpu", "cuda", "cuda:1", "mps"])
def test_supported_devices(kind: str) -> None:
    check_device(torch.device(kind))


@pytest.mark.parametrize(
    ("given", "torch_version", "platform", "expected"),
    [
        ({}, "2.13.0", "linux", {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}),
        ({}, "2.8.0+cu126", "linux", {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}),
        ({}, "2.9.1+rocm6.4", "linux", {}),
        ({}, "2.13.0", "win32", {}),
        ({}, "2.13.0", "darwin", {}),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, "2.13.0", "linux", None),
        ({"PYTORCH_ALLOC_CONF": ""}, "2.13.0", "linux", None),
        ({"PYTORCH_HIP_ALLOC_CONF": "backend:native"}, "2.13.0", "linux", None),
    ],
)
def test_segments_grow_unless_the_user_has_decided(
    given: dict[str, str],
    torch_version: str,
    platform: str,
    expected: dict[str, str] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environment = dict(given)
    monkeypatch.setattr(cli.os, "environ", environment)
    monkeypatch.setattr(cli.sys, "platform", platform)
    monkeypatch.setattr(cli, "version", lambda package: torch_version)
    cli.ask_for_expandable_segments()
    assert environment == (given if expected is None else expected)


# --- a base on the Hub that has changed

GOES_ON = """
import sys
from pathlib import Path
from musicgen_dreamboothing.console import UserError, printed
from musicgen_dreamboothing.data.run_record import RunRecord
from musicgen_dreamboothing.model.checkpoint import load_checkpoint
from musicgen_dreamboothing.hub import Source
from musicgen_dreamboothing.training.record import base_of_run

now = load_checkpoint(Source("someone/base"))
for revision in sys.argv[1:]:
    record = RunRecord({}, "someone/base", revision, "")
    try:
        with printed():
            print(base_of_run(record, now, Path("run")).identity)
    except UserError as error:
        print(error)
"""


@pytest.mark.slow  # starts an interpreter, whose cache of the Hub is its own
def test_a_run_goes_on_with_the_revision_that_it_began_with(tiny: Path, tmp_path: Path) -> None:
    files = {name: (tiny / name).read_bytes() for name in ("config.json", "generation_config.json")}
    gone = "0" * 40
    with LocalHub() as hub:
        first = hub.add("someone/base", files)
        last = hub.add("someone/base", {"README.md": b"edited"})
        done = subprocess.run(
            [sys.executable, "-c", GOES_ON, first, last, gone],
            env={**os.environ, **hub.environment(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
    told, begun, same, refused = done.stdout.splitlines()
    assert told == f"someone/base has changed since this run began; continuing with its revision {first}"
    assert (begun, same) == (first, last)
    assert refused.startswith(
        f"the run in run began with revision {gone} of someone/base, which is not available any more"
    )
    assert refused.endswith("choose another --output_dir, or discard that run with --restart true")
