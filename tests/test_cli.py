"""The command line: help, errors of one line, exit codes, and that nothing heavy is imported before it is needed."""

from __future__ import annotations

import dataclasses
import errno
import importlib
import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Ran, prepare_words
from huggingface_hub.errors import HTTPError
from safetensors import SafetensorError
from transformers import Seq2SeqTrainingArguments

import musicgen_dreamboothing
from musicgen_dreamboothing import __version__, arguments, cli
from musicgen_dreamboothing.arguments.trainer_options import SUPPORTED
from musicgen_dreamboothing.audio import AudioError
from musicgen_dreamboothing.cli import FUNCTIONS
from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.data import prepare

Cli = Callable[..., Ran]
LIGHT = """
import sys
import musicgen_dreamboothing
from musicgen_dreamboothing.cli import main
print([main(words) for words in ([], ["--help"], ["-h"], ["help"], ["--version"], ["trian"])])
print([name for name in ("av", "datasets", "numpy", "torch", "transformers", "yaml") if name in sys.modules])
"""


def python(*words: str) -> Ran:
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    return Ran(done.returncode, done.stdout, done.stderr)


def test_nothing_heavy_is_imported_for_help() -> None:
    ran = python("-c", LIGHT)
    assert ran.err == (
        "musicgen-dreamboothing: unknown command 'trian'; did you mean train? "
        "Commands: prepare, doctor, train, generate, evaluate, merge, warm-start, export, import, extract, push, demo\n"
    )
    assert ran.out.splitlines()[-2:] == ["[0, 0, 0, 0, 0, 1]", "[]"]


def test_the_package_is_a_program() -> None:
    assert python("-m", "musicgen_dreamboothing", "-V") == Ran(0, f"{__version__}\n", "")


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_help_names_every_verb(run: Cli, words: list[str]) -> None:
    ran = run(*words)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(f"musicgen-dreamboothing {__version__}: ")
    assert all(f"\n  {verb} " in ran.out for verb in arguments.VERBS)
    assert ran.out.endswith("All options of a verb: musicgen-dreamboothing VERB --help\n")


@pytest.fixture
def run(cli: Cli) -> Cli:  # the module has this name here
    return cli


@pytest.mark.parametrize("verb", arguments.VERBS)
def test_help_of_a_verb_names_every_option(verb: str, capfd: pytest.CaptureFixture[str]) -> None:
    """`train --help` leaves out transformers' options that have no effect here; `--help_all` lists them too."""

    def help_text(word: str) -> str:
        with pytest.raises(SystemExit) as ended:
            cli.main([verb, word])
        out, err = capfd.readouterr()
        assert (ended.value.code, err) == (0, "")
        assert out.startswith(f"usage: musicgen-dreamboothing {verb} ")
        assert cli.ABOUT[verb] in " ".join(out.split())
        return out

    shown, everything = help_text("--help"), help_text("--help_all" if verb == "train" else "--help")
    inherited = {entry.name for entry in dataclasses.fields(Seq2SeqTrainingArguments)}
    for entry in dataclasses.fields(arguments.VERBS[verb]):
        if entry.init:
            flag = entry.name if entry.metadata.get("positional") else f"--{entry.name} "
            assert flag in everything
            assert entry.metadata["help"]
            has_effect = verb != "train" or entry.name in SUPPORTED or entry.name not in inherited
            assert (flag in shown) == has_effect, entry.name


def test_the_version(run: Cli) -> None:
    assert run("--version") == run("-V") == Ran(0, f"{__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["generat"],
            "unknown command 'generat'; did you mean generate? "
            "Commands: prepare, doctor, train, generate, evaluate, merge, warm-start, export, import, extract, push, "
            "demo",
        ),
        (
            ["demo", "--sed", "1"],
            "unknown option --sed (similar: --seed); see musicgen-dreamboothing demo --help",
        ),
        (["demo", "--seed"], "argument --seed: expected one argument; see musicgen-dreamboothing demo --help"),
        (["demo", "--seed", "x"], "argument --seed: invalid int value: 'x'; see musicgen-dreamboothing demo --help"),
        (
            ["train", "--no_doctor"],
            "--no_doctor is an option of prepare only; see musicgen-dreamboothing train --help",
        ),
        (["demo", "songs"], "'songs' is neither an option nor a .json, .yaml or .yml file of options"),
        (["prepare"], "the following arguments are required: songs; see musicgen-dreamboothing prepare --help"),
        (["prepare", "songs"], "give an output folder: prepare SONGS --output_dir DIR"),
        (["prepare", "a", "b"], "'b' belongs to no option; see musicgen-dreamboothing prepare --help"),
        (["train"], "give an output folder: --output_dir DIR"),
    ],
)
def test_wrong_words_are_told_in_one_line(run: Cli, words: list[str], told: str) -> None:
    assert run(*words) == Ran(1, "", f"musicgen-dreamboothing: {told}\n")


FULL = os.strerror(errno.ENOSPC)


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (KeyboardInterrupt(), 130, "stopped; what is done is saved, and the same command resumes from there"),
        (UserError("no such thing"), 1, "no such thing"),
        (AudioError("a.wav: holds no samples"), 1, "a.wav: holds no samples"),
        (OSError(errno.ENOSPC, FULL, "x"), 1, f"the disk is full ([Errno 28] {FULL}: 'x'); free some space and run "),
        (SafetensorError(f"I/O error: {FULL} (os error 28)"), 1, f"the disk is full (I/O error: {FULL} (os error 28))"),
        (
            RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
            1,
            "the disk is full (",
        ),
        (PermissionError(errno.EACCES, "no", "/x"), 1, "not allowed to write or read /x; choose another folder"),
        (OSError(errno.EROFS, "read-only", "/x"), 1, "not allowed to write or read /x; choose another folder"),
        (NotADirectoryError(errno.ENOTDIR, "no", "/x"), 1, "/x is a file, not a folder; choose another folder"),
        (torch.OutOfMemoryError("CUDA out of memory"), 1, "out of memory; try --encode_batch_size 1 "),
        (
            RuntimeError("MPS backend out of memory (MPS)"),
            1,
            "out of memory; try --encode_batch_size 1 ",
        ),
        (MemoryError(), 1, "out of memory; try --encode_batch_size 1 "),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 5000), 1, "the name 'xxxxx"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
            1,
            "out of memory; try --encode_batch_size 1 ",
        ),
        (HTTPError("[Errno 111] Connection refused"), 1, "[Errno 111] Connection refused"),
        (OSError("We couldn't connect to\nhttps://hf.co"), 1, "We couldn't connect to https://hf.co"),
    ],
)
def test_what_a_person_can_mend_is_one_line(
    run: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, told: str
) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(prepare, "prepare", fail)
    ran = run(*prepare_words(tmp_path, tmp_path, tmp_path))
    assert (ran.code, ran.out) == (code, "")
    assert ran.err.startswith(f"musicgen-dreamboothing: {told}")
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["prepare", "songs", "--output_dir", "data"], "--encode_batch_size 1"),
        (["doctor", "data"], "--preview false"),
        (["train", "--plan"], "--quantization nf4"),
        (["generate", "model", "punk"], "--batch_size 1"),
        (["evaluate", "run"], "--batch_size 1"),
        (["demo"], "close other programs"),
    ],
)
def test_lack_of_memory_has_advice_for_the_verb(
    run: Cli, monkeypatch: pytest.MonkeyPatch, words: list[str], advice: str
) -> None:
    def fail(_: object) -> None:
        raise MemoryError

    module = importlib.import_module(f"musicgen_dreamboothing.{FUNCTIONS[words[0]]}")
    monkeypatch.setattr(module, words[0], fail)
    ran = run(*words)
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert ran.err.startswith("musicgen-dreamboothing: out of memory; ")
    assert advice in ran.err


@pytest.mark.parametrize(
    "error", [ValueError("ours: out of memory"), FileNotFoundError(errno.ENOENT, "ours", "/x"), KeyError("ours")]
)
def test_our_own_faults_keep_their_traceback(
    run: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(prepare, "prepare", fail)
    with pytest.raises(type(error), match="ours"):
        run(*prepare_words(tmp_path, tmp_path, tmp_path))


def test_every_verb_runs_its_function(run: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from musicgen_dreamboothing.demo import chain

    seen: list[object] = []
    monkeypatch.setattr(chain, "demo", seen.append)
    assert run("demo", "--seed", 3, "--restart", "true") == Ran(0, "", "")
    assert seen == [arguments.DemoArguments(seed=3, restart=True)]


def test_the_public_functions_take_options_as_keywords(tmp_path: Path) -> None:
    assert musicgen_dreamboothing.__all__ == sorted(musicgen_dreamboothing.__all__)
    for name in musicgen_dreamboothing.__all__:
        assert callable(getattr(musicgen_dreamboothing, name))
        assert name in dir(musicgen_dreamboothing)
    with pytest.raises(
        AttributeError,
        match=r"has no attribute 'trian'; it offers GenerationRequest, Generator, UserError, doctor, eval",
    ):
        musicgen_dreamboothing.trian  # noqa: B018
    parameters = inspect.signature(musicgen_dreamboothing.prepare).parameters
    assert next(iter(parameters)) == "songs"
    assert {name for name, one in parameters.items() if one.kind is not one.KEYWORD_ONLY} == {"songs"}
    with pytest.raises(UserError, match="--bars 0 must be at least 1"):
        musicgen_dreamboothing.prepare("songs", output_dir=str(tmp_path), bars=0)
    with pytest.raises(TypeError, match="unexpected keyword argument 'bras'"):
        musicgen_dreamboothing.prepare("songs", output_dir=str(tmp_path), bras=1)


LIBRARY = """
import contextlib, logging, sys
import musicgen_dreamboothing
from musicgen_dreamboothing.console import log, progress_bar
def work():
    log("a line")
    list(progress_bar(range(3), desc="a bar"))
work()
print("asked")
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(name)s %(message)s")
work()
"""


def test_a_library_call_is_silent_unless_logging_is_configured() -> None:
    done = subprocess.run([sys.executable, "-c", LIBRARY], capture_output=True, text=True, check=True)
    assert done.stdout == "asked\nmusicgen_dreamboothing a line\n"
    assert done.stderr.count("a bar: 100%") == 1


def test_torch_is_told_of_huge_pages_before_it_makes_a_tensor(tmp_path: Path) -> None:
    """Unless the person has decided."""
    code = "import os, sys\nfrom musicgen_dreamboothing.cli import main\nmain(['nothing'])\n"
    code += "print(os.environ['THP_MEM_ALLOC_ENABLE'], 'torch' in sys.modules)"
    for given, told in ((None, "1 False"), ("0", "0 False")):
        env = {key: value for key, value in os.environ.items() if key != "THP_MEM_ALLOC_ENABLE"}
        env |= {"THP_MEM_ALLOC_ENABLE": given} if given else {}
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        assert done.stdout == told + "\n"


SAYS_MUCH = """
import sys, time
from musicgen_dreamboothing import cli
from musicgen_dreamboothing.console import log
def work(verb, words):
    for line in range(3):
        log(f"line {line}")
        sys.stdin.readline()
    open(sys.argv[1], "w").write("done")
cli._run = work
sys.exit(cli.main(["prepare"]))
"""


def test_the_work_goes_on_where_nobody_reads_the_output(tmp_path: Path) -> None:
    words = [sys.executable, "-c", SAYS_MUCH, str(tmp_path / "file")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"line 0\n"
        process.stdout.close()
        process.stdin.write(b"\n\n\n")
        process.stdin.close()
        assert (process.stderr.read(), process.wait()) == (b"", 0)
    assert (tmp_path / "file").read_text() == "done"


def test_an_output_that_is_closed_before_the_help_is_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "musicgen_dreamboothing", "--help"], stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert done.stderr == b""


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_console_shows_letters_that_it_does_not_know_as_numbers(encoding: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "musicgen_dreamboothing", "\u043f"],
        env=os.environ | {"PYTHONIOENCODING": encoding},
        capture_output=True,
        check=False,
    )
    assert done.stderr.startswith(b"musicgen-dreamboothing: unknown command '\\u043f'")


def test_a_path_in_json_has_a_hint(run: Cli, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(r'{"dataset_name": "C:\Users\me"}')
    ran = run("train", tmp_path / "c.json")
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert ran.err.endswith("in JSON a path takes / or \\\\ for each \\\n")
