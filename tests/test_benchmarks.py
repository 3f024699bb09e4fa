"""Benchmarks: each makes its table on the tiny shapes, of what it says, and files it under what has computed it."""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForTextToWaveform, AutoTokenizer

from musicgen_dreamboothing.arguments import PrepareArguments, TrainArguments, parse
from musicgen_dreamboothing.cli import main
from musicgen_dreamboothing.data.tokens.store import ENCODE_BATCH
from musicgen_dreamboothing.hub import Source
from musicgen_dreamboothing.model import codec, loading
from musicgen_dreamboothing.model.checkpoint import load_checkpoint, load_codec, load_text_encoder
from musicgen_dreamboothing.model.language_model import MelodyLM, TextLM
from musicgen_dreamboothing.model.loading import load_language_model
from musicgen_dreamboothing.model.recompute import use_full_recompute

pytestmark = pytest.mark.slow  # of scripts beside the package

ROOT = Path(__file__).parent.parent
GPU = {"device": "Some GPU", "kind": "cuda", "cpu": "Some CPU", "threads": 1}
PLAIN, FULL = "ours", "ours, recompute"
NF4 = ("ours, nf4", "ours, nf4, no recompute")


class Bench:
    """Runs benchmarks whose child processes are played in this one, on the CPU.

    Attributes:
        children: the words of each child process.
        on_gpu: whether the machine says that it has one; what computes stays the CPU.
    """

    def __init__(self, patch: pytest.MonkeyPatch, results: Path) -> None:
        self.children: list[list[str]] = []
        self.on_gpu = False
        self._patch, self._results = patch, results
        common: Any = self.module("_common")
        machine = common.machine
        patch.setattr(common, "machine", lambda name: GPU if self.on_gpu and name != "cpu" else machine("cpu"))
        patch.setattr(common, "torch_device", lambda name: torch.device("cpu"))
        patch.setattr(common, "RESULTS", results)
        for name in ("_common", "headline"):
            patch.setattr(self.module(name), "subprocess", SimpleNamespace(run=self._child, PIPE=subprocess.PIPE))

    def module(self, name: str) -> Any:
        return importlib.import_module(name)

    def run(self, name: str, *words: str) -> dict[str, Any]:
        """What the benchmark keeps, by case."""
        module = self.module(name)
        self._patch.setattr(sys, "argv", [module.__file__, *words])
        module.main()
        (path,) = self._results.glob("*.json")
        return json.loads(path.read_text())[name]

    def _child(self, command: list[str], **options: Any) -> subprocess.CompletedProcess:
        words, said = command[1:], io.StringIO()
        self.children.append(words)
        if words[0] == "-m":
            return subprocess.CompletedProcess(command, main(words[2:]))
        with self._patch.context() as patch, contextlib.redirect_stdout(said):
            patch.setattr(sys, "argv", words)
            self.module(Path(words[0]).stem).main()
        return subprocess.CompletedProcess(command, 0, said.getvalue())


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bench:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return Bench(monkeypatch, tmp_path / "results")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Lets benchmarks share their checkpoints."""
    return ("--checkpoints", str(tmp_path_factory.mktemp("checkpoints")))


@pytest.mark.parametrize("size", ["tiny", "melody-tiny"])
def test_a_written_checkpoint_is_one_that_transformers_would_write(bench: Bench, tmp_path: Path, size: str) -> None:
    shapes, folder = bench.module("_shapes"), tmp_path / "written"
    shapes.write_checkpoint(size, folder)
    model, report = AutoModelForTextToWaveform.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    model.save_pretrained(tmp_path / "theirs")
    assert shapes_in(folder) == shapes_in(tmp_path / "theirs")
    table = model.decoder.model.decoder.embed_positions
    assert torch.equal(table.weights, table.get_embedding(*table.weights.shape))
    for name, weight in model.decoder.named_parameters():
        mean, std = (1, 0) if name.endswith("norm.weight") else (0, 0 if name.endswith("bias") else 0.02)
        assert weight.mean().item() == pytest.approx(mean, abs=2e-3)
        assert weight.std().item() == pytest.approx(std, abs=2e-3)


def shapes_in(folder: Path) -> dict[str, list[int]]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - it is no dict


def test_our_loaders_read_a_written_checkpoint(bench: Bench, tmp_path: Path) -> None:
    bench.module("_shapes").write_checkpoint("tiny", tmp_path)
    checkpoint, cpu = load_checkpoint(Source(str(tmp_path))), torch.device("cpu")
    ids = torch.tensor(AutoTokenizer.from_pretrained(tmp_path)(["punk"])["input_ids"])
    states = load_text_encoder(checkpoint, cpu)(input_ids=ids).last_hidden_state
    model = load_language_model(checkpoint, torch.float32, cpu)
    found = codec.encode(load_codec(checkpoint, cpu), torch.randn(1, 1, 32_000), checkpoint)
    assert found.shape == (1, 4, 50)
    assert len(found.unique()) > 20  # the codec says different things of different moments
    mask, keep = torch.ones(1, states.shape[1], dtype=torch.long), torch.tensor([True])
    with torch.inference_mode():
        loss = model(found, found, mask, keep, text_states=states)
    assert bool(loss.nll.isfinite().all())
    assert loss.count.eq(50).all()


def test_a_checkpoint_that_stands_there_is_left_alone(bench: Bench, tmp_path: Path) -> None:
    write = bench.module("_shapes").write_checkpoint
    write("tiny", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"mine")
    write("tiny", tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == b"mine"


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """How each model that a step is made with is quantised, and what it recomputes."""
    seen: list[list[str]] = []
    load, recompute, lighten = loading.load_language_model, use_full_recompute, TextLM.use_light_recompute

    def loaded(*words: Any, **options: Any) -> Any:
        seen.append([options["quantization"]])
        return load(*words, **options)

    monkeypatch.setattr(loading, "load_language_model", loaded)
    monkeypatch.setattr(
        "musicgen_dreamboothing.model.recompute.use_full_recompute",
        lambda model: (seen[-1].append("full"), recompute(model)),
    )
    for family in (TextLM, MelodyLM):
        monkeypatch.setattr(family, "use_light_recompute", lambda model: (seen[-1].append("light"), lighten(model)))
    return seen


@pytest.mark.parametrize(("size", "on_gpu", "processes"), [("tiny", False, 8), ("melody-tiny", True, 2)])
def test_train_step_measures_the_same_step_in_every_way(
    bench: Bench, kept: tuple[str, str], ways: list[list[str]], size: str, on_gpu: bool, processes: int
) -> None:
    bench.on_gpu = on_gpu
    (case,) = bench.run("train_step", "--size", size, "--seconds", "0.5", "--steps", "1", *kept).values()
    rows = {row["variant"]: row for row in case["rows"]}
    assert list(rows) == ["published", *NF4, FULL, "ours, light", PLAIN]
    assert all(row["s/step"] > 0 and row["peak GB"] > 0 for row in rows.values())
    losses = {run["variant"]: run["losses"] for run in case["runs"]}
    assert losses[PLAIN] == pytest.approx(losses[FULL], rel=1e-3)
    assert losses[PLAIN] == pytest.approx(losses["ours, light"], rel=1e-3)
    assert losses[NF4[0]] == pytest.approx(losses[NF4[1]], rel=1e-3)
    assert ways == [["nf4", "full"], ["nf4"], ["none", "full"], ["none", "light"], ["none"]]
    assert len(bench.children) == processes  # on a GPU the machine is looked at, and one process does the rest


def test_a_variant_that_memory_does_not_hold_is_a_row(
    bench: Bench, kept: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*words: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(bench.module("train_step"), "published_step", fail)
    words = ("--size", "tiny", "--seconds", "0.1", "--steps", "1", "--only", "published", PLAIN)
    (case,) = bench.run("train_step", *words, *kept).values()
    published, ours = case["rows"]
    assert published["s/step"] == "out of memory"
    assert published["peak GB"] is None
    assert ours["s/step"] > 0
    assert ours["speed"] is None


def test_another_failure_of_a_variant_is_not_hidden(
    bench: Bench, kept: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*words: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(bench.module("train_step"), "published_step", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        bench.run("train_step", "--size", "tiny", "--only", "published", *kept)


def test_without_bitsandbytes_the_rest_is_measured(
    bench: Bench, kept: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    words = ("--size", "tiny", "--seconds", "0.1", "--steps", "1", "--only", PLAIN, *NF4)
    (case,) = bench.run("train_step", *words, *kept).values()
    assert [row["variant"] for row in case["rows"]] == [PLAIN]
    assert "musicgen-dreamboothing[quantization]" in capsys.readouterr().out


@pytest.mark.parametrize(("size", "on_gpu"), [("tiny", True), ("melody-tiny", False)])
def test_generate_compares_one_and_eight_prompts(
    bench: Bench, kept: tuple[str, str], size: str, on_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.on_gpu = on_gpu
    monkeypatch.setattr(bench.module("generate"), "LONG_ENOUGH", 0.0)
    words = ("--size", size, "--seconds", "0.1", "--transformers_seconds", "0.06")
    (case,) = bench.run("generate", *words, *kept).values()
    names = ["transformers", "transformers, 8 at once", "ours", "ours, int8", "ours, 8 at once"]
    assert [row["variant"] for row in case["rows"]] == (names if on_gpu else [names[0], *names[2:]])
    for row, run in zip(case["rows"], case["runs"], strict=True):
        assert run["clips"] == (8 if "8 at once" in row["variant"] else 1)
        assert row["clip s"] == (0.06 if "transformers" in row["variant"] else 0.1)
        assert run["ms"] == pytest.approx(1000 * run["took"] / (50 * row["clip s"] + 3), rel=1e-3)
        assert row["speed"] == pytest.approx(run["clips"] * case["rows"][0]["ms/step"] / row["ms/step"], rel=1e-3)
    assert (Path(kept[1]) / size / "model.safetensors").exists()  # for the next benchmark


def test_the_eight_prompts_have_several_lengths(bench: Bench) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bench.module("_shapes").ASSETS / "musicgen-tiny")
    prompts = bench.module("generate").PROMPTS
    assert len(set(prompts)) == 8
    assert len({len(tokenizer(prompt)["input_ids"]) for prompt in prompts}) > 4


def test_prepare_takes_batches_as_the_command_does(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = bench.module("_shapes")
    tiny = shapes.configuration("tiny")
    monkeypatch.setattr(shapes, "configuration", lambda size: tiny)
    (case,) = bench.run("prepare", "--clips", "5", "--seconds", "0.2").values()
    assert [row["batch"] for row in case["rows"]] == [1, ENCODE_BATCH]
    assert PrepareArguments().encode_batch_size == 0  # chosen by the device, as here


def test_headline_trains_on_all_minutes_and_on_nothing_else(bench: Bench, kept: tuple[str, str]) -> None:
    (case,) = bench.run("headline", "--size", "tiny", "--minutes", "0.1", "--epochs", "1", *kept).values()
    assert [row["stage"] for row in case["rows"]] == ["prepare", "train", "both"]
    assert case["train"]["clips"] == 1
    prepared, trained = (words[3:] for words in bench.children if words[0] == "-m")
    assert not parse(PrepareArguments, "prepare", "", prepared).doctor
    assert_trains_only(parse(TrainArguments, "train", "", trained))


def assert_trains_only(options: TrainArguments) -> None:
    assert options.final_report == "false"
    assert options.eval_fraction == 0
    assert options.save_strategy == "no"


def test_growth_times_the_training_alone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: dict[str, list[str]] = {}
    clock = itertools.count(1.0)

    def timed(verb: str, words: list[str]) -> tuple[float, float]:
        commands[verb] = words
        return next(clock), 1.0

    monkeypatch.setattr(bench.module("growth"), "_timed", timed)
    bench.run("growth", "--clips", "3")
    assert not parse(PrepareArguments, "prepare", "", commands["prepare"]).doctor
    assert_trains_only(parse(TrainArguments, "train", "", commands["train"]))


def test_growth_cuts_songs_of_several_lengths(bench: Bench) -> None:
    found = bench.run("growth", "--song_minutes", "0.1", "0.2")
    rows = found["songs of 0.1 0.2 minutes"]["rows"]
    assert [(row["cut"], row["minutes"]) for row in rows] == list(
        itertools.product(("clock", "bars, described"), (0.1, 0.2))
    )
    assert all(row["clips"] > 0 and row["peak GB"] > 0 for row in rows)


def test_quantization_compares_trainings_without_their_reports(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[TrainArguments] = []

    def train(options: TrainArguments) -> Any:
        asked.append(options)
        return SimpleNamespace(summary={"loss_before": 2.0}, metrics={"eval_loss": 1.0})

    monkeypatch.setattr("musicgen_dreamboothing.training.train.train", train)
    monkeypatch.setattr("musicgen_dreamboothing.data.prepare.prepare", lambda options: None)
    bench.run("quantization", "--updates", "1")
    assert [options.quantization for options in asked] == ["none", "int8", "nf4"]
    assert {options.final_report for options in asked} == {"false"}


@pytest.mark.parametrize(
    ("name", "words", "stub"),
    [
        ("products", ("--rows", "1", "--width", "8"), None),
        ("stages", (), ("_measure", lambda folder, options: [{"stage": "decode", "minutes a minute": 1.0}])),
        ("startup", ("--times", "1"), ("_start", lambda code, words: (0.1, False))),
    ],
)
def test_what_computes_on_the_cpu_is_filed_there(
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    words: tuple[str, ...],
    stub: tuple[str, Callable[..., Any]] | None,
) -> None:
    bench.on_gpu = True
    if stub is not None:
        monkeypatch.setattr(bench.module(name), *stub)
    (case,) = bench.run(name, *words).values()
    assert case["machine"]["kind"] == "cpu"


def test_melodies_of_two_adapters_are_compared(bench: Bench, tmp_path: Path) -> None:
    words = ("--steps", "2", "--tunes", "8", "--updates", "2", "--clips", "4", "--folder", str(tmp_path / "work"))
    (case,) = bench.run("melody", *words).values()
    models = ("base", "LoRA, --melody self", "LoRA, --melody none")
    assert [(row["model"], row["melodies"]) for row in case["rows"]] == [
        (model, kind) for model in models for kind in ("tunes", "songs")
    ]
    assert all(0 <= row[key] <= 1 for row in case["rows"] for key in ("asked", "shuffled"))
    assert len(case["conclusions"]) == 4
    for mode in ("self", "none"):
        record = json.loads((tmp_path / "work" / mode / "run.json").read_text())
        assert record["options"]["melody"] == mode


def test_gpu_script_covers_every_size_and_way(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in, log = tmp_path / "python", tmp_path / "log"
    stand_in.write_text(f'#!/bin/sh\nprintf "%s\\n" "$#" "$@" >> "{log}"\n')
    stand_in.chmod(0o755)
    script = ["sh", str(ROOT / "benchmarks" / "gpu.sh")]
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": str(stand_in), "TMPDIR": str(scratch)}
    subprocess.run(script, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert not list(scratch.iterdir())  # checkpoints are gone

    asked: dict[str, list[Any]] = {}
    left = log.read_text().splitlines()
    while left:
        words, left = left[1 : 1 + int(left[0])], left[1 + int(left[0]) :]
        monkeypatch.setattr(sys, "argv", words)
        asked.setdefault(Path(words[0]).stem, []).append(bench.module(Path(words[0]).stem)._options())
    steps = [(size, variant) for options in asked["train_step"] for size in options.size for variant in options.only]
    sizes = ("small", "medium", "large", "melody", "melody-large")
    assert sorted(steps) == sorted((size, way) for size in sizes for way in ("published", PLAIN, FULL, *NF4))
    (clips,) = asked["generate"]
    assert clips.seconds == 30
    assert {"transformers", "transformers, 8 at once", "ours", "ours, 8 at once"} <= set(clips.only)
    (example,) = asked["headline"]
    assert (example.size, example.minutes, example.epochs) == ("melody", 27, 4)
    (encoded,) = asked["prepare"]
    assert bench.module("prepare").CLIPS["cuda"] == (54, 30.0)
    assert encoded.clips is None
