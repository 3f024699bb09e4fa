"""Every command and every line of Python in the README runs, on tiny songs and a tiny checkpoint."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Ran

from musicgen_dreamboothing.arguments import TrainArguments, parse
from musicgen_dreamboothing.hub import Source
from musicgen_dreamboothing.model.checkpoint import Checkpoint
from musicgen_dreamboothing.model.footprint import Estimator, Step

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
OPTION = re.compile(r"--[a-z][a-z_]+")
SMALL = ["--max_duration_in_seconds", "2", "--min_duration_in_seconds", "1", "--num_train_epochs", "1"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def commands(first_word: str) -> list[list[str]]:
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith(first_word)]


def shortened(words: list[str], base: Path) -> list[str]:
    """The README's words, on the tiny checkpoint and with short clips, so that a test is over in seconds."""
    if words[0] == "generate":
        return [*words, "--seconds", "0.5"]
    if words[0] == "doctor":
        return words
    if words[0] == "evaluate":
        return [*words, "--seconds", "0.5", "--variations", "2", "--clap_model_name_or_path", "none"]
    small = SMALL[:4] if words[0] == "prepare" else SMALL
    return [*words, "--model_name_or_path", str(base), *small]


@pytest.fixture
def home(songs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the README's reader has it, with `my-songs` in it."""
    shutil.move(songs, tmp_path / "my-songs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_commands_and_python_run(
    home: Path, tiny: Path, cli: Callable[..., Ran], capfd: pytest.CaptureFixture[str]
) -> None:
    shown = commands("musicgen-dreamboothing")
    assert [words[0] for words in shown] == ["train", "generate", "prepare", "train", "doctor", "evaluate"]
    for words in shown:
        ran = cli(*shortened(words, tiny))
        assert ran.code == 0, ran.err
    assert list((home / "new-music").glob("00_punk-with-fast-drums*.wav"))
    api, snippet = blocks("python")
    api = api.replace("output_dir=", f"model_name_or_path={str(tiny)!r}, max_duration_in_seconds=2, output_dir=")
    (home / "api.py").write_text(api.replace("seconds=10", "seconds=0.5"))
    runpy.run_path("api.py")
    assert "punk bossa nova (1, 8000) 16000" in capfd.readouterr().out
    (home / "snippet.py").write_text(snippet.replace("max_new_tokens=256", "max_new_tokens=20"))
    made = runpy.run_path("snippet.py")
    assert made["audio"].shape[:2] == (2, 1)


def test_the_script_reads_the_example(monkeypatch: pytest.MonkeyPatch) -> None:
    (words,) = commands("python finetune_musicgen.py")
    monkeypatch.chdir(ROOT)
    options = parse(TrainArguments, "train", "", words[1:])
    assert (options.instance_prompt, options.num_train_epochs) == ("punk", 8)
    assert "cli import main" in (ROOT / words[0]).read_text()


def test_every_option_in_the_readme_exists() -> None:
    from musicgen_dreamboothing import arguments

    known = {"--help"}
    for verb in ("Train", "Generate", "Prepare", "Evaluate", "Demo"):
        target = getattr(arguments, f"{verb}Arguments")
        known |= {flag for action in arguments.parser(target, "", "")._actions for flag in action.option_strings}
    row = re.compile(r"`([a-z_]+\.py)( --[^`]*)?` \|$", flags=re.MULTILINE)
    benchmarks = row.findall(README)
    assert len(benchmarks) == 8
    for script, words in benchmarks:
        declared = (ROOT / "benchmarks" / script).read_text()
        assert all(f'"{flag}"' in declared for flag in OPTION.findall(words)), script
    assert set(OPTION.findall(row.sub("", README))) <= known


def test_every_room_in_the_readme_exists() -> None:
    rooms = re.findall(r"^\| `([a-z_./]+)` \|", README, flags=re.MULTILINE)
    assert len(rooms) == 14
    source = ROOT / "src" / "musicgen_dreamboothing"
    assert all((source / room).exists() for room in rooms)
    listed = {room.rstrip("/") for room in rooms}
    present = {path.name for path in source.iterdir() if not path.name.startswith(("_", "py."))}
    assert present == listed


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"(?:^|`)make ([a-z-]+)", README, flags=re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


MEMORY_SIZES = ("medium", "large", "melody", "melody-large")


@pytest.mark.parametrize(
    "size",
    ["small", *(pytest.param(size, marks=pytest.mark.slow) for size in ("medium", "large", "melody", "melody-large"))],
)
def test_the_memory_of_a_training_is_what_is_planned(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from _shapes import configuration

    config = configuration(size)
    base = Checkpoint(Source(f"facebook/musicgen-{size}"), config, config.decoder.pad_token_id)
    row = next(line for line in README.splitlines() if line.startswith(f"| `facebook/musicgen-{size}`"))
    told = [float(cell.split()[0]) for cell in row.split("|")[4:7]]
    for gigabytes, policy, quantization in zip(told, ("none", "full", "full"), ("none", "none", "nf4"), strict=True):
        step = Step(30 * 50 + 3, torch.bfloat16, quantization)
        assert gigabytes == pytest.approx(Estimator(base, step).footprint(policy, 1).total / 1e9, abs=0.051)


@pytest.mark.parametrize(
    ("figure", "benchmark", "case", "row"),
    [
        ("a training step, musicgen-small", "train_step", "small, 1 x 30 s, auto", "ours, light"),
        ("the same where memory counts", "train_step", "small, 1 x 30 s, bfloat16", "ours, recompute"),
        ("on a base of 4 bits", "train_step", "small, 1 x 30 s, bfloat16", "ours, nf4"),
        ("a step of generation, musicgen-small", "generate", "small, 4 s, auto", "ours"),
        ("the same with weights of 8 bits", "generate", "small, 4 s, auto", "ours, int8"),
        ("eight prompts at once", "generate", "small, 4 s, auto", "ours, 8 at once"),
        ("a step of generation, the tiny checkpoint", "generate", "built-in, 4 s, auto", "ours"),
        ("EnCodec, 27 minutes of songs", "prepare", "54 x 30 s", "batched"),
    ],
)
def test_figures_are_those_that_were_kept(figure: str, benchmark: str, case: str, row: str) -> None:
    (results,) = (ROOT / "benchmarks" / "results").glob("intel-*.json")
    first, *others = json.loads(results.read_text())[benchmark][case]["rows"]
    kept = next(other for other in others if row in (other.get("variant"), other.get("way")))
    told = next(line for line in README.splitlines() if line.startswith(f"| {figure}")).split("|")[3:5]
    for cell, ratio in zip(told, (kept["speed"], kept["peak GB"] / first["peak GB"]), strict=True):
        if cell.strip() != "–":
            assert float(cell.strip().removesuffix("x")) == pytest.approx(ratio, abs=0.051)
    assert any(cell.strip() != "–" for cell in told)
