"""What many tests share: tiny checkpoints, songs, a prepared folder, and ways to run the command line."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# Nothing here may reach a network; a test that needs a Hub brings its own (tests/hub.py).
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # tests started in the background of a shell
    signal.signal(signal.SIGINT, signal.default_int_handler)
if "PYTEST_XDIST_WORKER" not in os.environ:  # footprints: measured once for all workers, and not the user's own
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="musicgen-dreamboothing-tests-")
    atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)
os.environ["OMP_NUM_THREADS"] = "1"  # tiny models: a second thread costs twice the time it saves

import datasets
import torch
from random_checkpoint import SAMPLING_RATE, write_tiny_checkpoint

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.cli import main
from musicgen_dreamboothing.console import printed
from musicgen_dreamboothing.data.layout import is_prepared
from musicgen_dreamboothing.data.tokens.arrow_tables import read_rows
from musicgen_dreamboothing.data.tokens.store import CODE_FEATURES, clip_rows, codes_name
from musicgen_dreamboothing.data.tokens.tables import Tables, load_tables
from musicgen_dreamboothing.data.tokens.text_states import STATE_FEATURES, states_folder
from musicgen_dreamboothing.hub import Source
from musicgen_dreamboothing.model.checkpoint import MELODY, TEXT, Checkpoint, load_checkpoint

torch.set_num_threads(1)  # tiny models: a second thread costs twice the time it saves
gc.freeze()  # Trainer collects garbage often; what the imports left is not worth 0.3 s each time

KINDS = {
    "text": (TEXT, 1),
    "text-stereo": (TEXT, 2),
    "melody": (MELODY, 1),
    "melody-stereo": (MELODY, 2),
}

# `make test` hands out whole files, in order: long ones first, so that no core is left with one of them at the end.
LONG_FILES = (
    "train",
    "evaluate",
    "memory",
    "demo",
    "split",
    "stopping",
    "readme",
    "describe",
    "adapter",
    "loading",
    "push",
)


PRECISIONS = ("float32", "bfloat16")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--precision", choices=PRECISIONS, default=PRECISIONS[0], help="what --dtype auto means on the CPU"
    )


@contextmanager
def precision_of_cpu(name: str) -> Iterator[None]:
    """Lets `--dtype auto` choose one of `PRECISIONS`, whatever this CPU has: without bf16 units bf16 is emulated."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("musicgen_dreamboothing.device.cpu_has_bf16_units", lambda: name == "bfloat16")
        yield


@pytest.fixture(scope="session", autouse=True)
def printed_lines() -> Iterator[None]:
    """Lines of progress are printed in all tests, also where these call functions instead of the command line."""
    with printed():
        yield


@pytest.fixture(scope="session", autouse=True)
def usual_precision(pytestconfig: pytest.Config) -> Iterator[str]:
    """The precision of all tests that do not choose one: the same on every CPU."""
    name = pytestconfig.getoption("--precision")
    with precision_of_cpu(name):
        yield name


@pytest.fixture(scope="module", params=["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs a test, and the fixtures of its module that ask for it, in fp32 and in bf16."""
    with precision_of_cpu(request.param):
        yield request.param


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    names = {f"test_{name}.py": place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: names.get(item.path.name, len(names)))


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the folder of a tiny random checkpoint of one of `KINDS`, made once."""
    root = tmp_path_factory.mktemp("checkpoints")

    def folder(kind: str) -> Path:
        family, channels = KINDS[kind]
        path = root / kind
        return path if path.exists() else write_tiny_checkpoint(path, family=family, audio_channels=channels)

    return folder


@pytest.fixture(scope="session")
def tiny(checkpoints: Callable[[str], Path]) -> Path:
    """The tiny text checkpoint, mono."""
    return checkpoints("text")


def read_checkpoint(folder: Path) -> Checkpoint:
    return load_checkpoint(Source(str(folder)))


def tone_song(seconds: float, seed: int, channels: int = 1, rate: int = SAMPLING_RATE) -> np.ndarray:
    """A cheap song: a few tones that change every half second, over noise. `[C, S]`, peak below 1."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    notes = rng.choice([110.0, 147.0, 220.0, 330.0, 494.0, 880.0], size=(channels, int(seconds * 2) + 1))
    pitch = notes[:, (time * 2).astype(int)]
    return (0.4 * np.sin(2 * np.pi * np.cumsum(pitch, axis=1) / rate) + 0.05 * rng.standard_normal(pitch.shape)).astype(
        np.float32
    )


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    """Four songs in sub-folders, one of them stereo, one with a caption beside it: 26 s in all."""
    folder = tmp_path / "songs"
    for number, seconds in enumerate((9.0, 7.0, 6.0, 4.0)):
        path = folder / f"album {number % 2}" / f"song {number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        audio.write(path, tone_song(seconds, number, channels=1 + number % 2), SAMPLING_RATE)
    (folder / "album 0" / "song 0.txt").write_text("slow tones\nover noise")
    return folder


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Runs a command in this process: `cli("train", "--output_dir", folder)`."""

    def run(*words: object) -> Ran:
        capfd.readouterr()
        code = main([str(word) for word in words])
        out, err = capfd.readouterr()
        return Ran(code, out, err)

    return run


def run_process(*words: object, env: dict[str, str] | None = None, cwd: Path | None = None) -> Ran:
    """Runs a command in a process of its own: the words behind `python -m musicgen_dreamboothing`."""
    done = subprocess.run(
        [sys.executable, "-m", "musicgen_dreamboothing", *map(str, words)],
        env={**os.environ, **(env or {})},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def prepare_words(songs: Path, folder: Path, checkpoint: Path) -> list[object]:
    """A `prepare` command that suits the tiny songs: clips of 2 s, at least 1 s, at the level of the songs."""
    return [
        *("prepare", songs, "--output_dir", folder, "--model_name_or_path", checkpoint),
        *("--instance_prompt", "punk", "--max_duration_in_seconds", 2, "--min_duration_in_seconds", 1),
        *("--normalize_loudness", "false", "--doctor", "false"),
    ]


def tables_in(
    folder: Path,
    base: Path,
    *prompts: str,
    eval_fraction: float = 0.0,
    seed: int = 0,
    **options: Any,
) -> Tables:
    """The token tables that a run on a prepared folder reads; `prompts` are its key-word and the noun behind it."""
    rows, checkpoint = clip_rows(folder, *prompts), read_checkpoint(base)
    return load_tables(folder, rows, checkpoint, eval_fraction=eval_fraction, seed=seed, **options)


def stored_codes(folder: Path, base: Path | None = None) -> datasets.Dataset:
    """All codes that a prepared folder has for the codec of `base`, or for the only one."""
    pattern = "codes-*" if base is None else codes_name(read_checkpoint(base))
    (table,) = (folder / "tokens").glob(pattern)
    return read_rows(table, CODE_FEATURES)


def stored_states(folder: Path, base: Path | None = None) -> datasets.Dataset:
    """All text states that a prepared folder has for the text encoder of `base`, or for the only one."""
    pattern = "text-*" if base is None else states_folder(folder, read_checkpoint(base)).name
    (table,) = (folder / "tokens").glob(pattern)
    return read_rows(table, STATE_FEATURES)


def train_words(data: Path, folder: Path, checkpoint: Path) -> list[object]:
    """A `train` command that lasts a second or two: two epochs of small batches."""
    lengths = ("--max_duration_in_seconds", 2, "--min_duration_in_seconds", 1)
    return [
        *("train", "--dataset_name", data, "--output_dir", folder, "--model_name_or_path", checkpoint),
        *("--instance_prompt", "punk", *(() if is_prepared(data) else lengths)),
        *("--num_train_epochs", 2, "--gradient_accumulation_steps", 2, "--disable_tqdm", "true"),
    ]


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A prepared folder for the tiny text checkpoint; tests read it, copies are theirs to change."""
    root = tmp_path_factory.mktemp("prepared")
    for number, seconds in enumerate((8.0, 8.0, 8.0, 8.0)):
        path = root / "songs" / f"song-{number}.wav"
        path.parent.mkdir(exist_ok=True)
        audio.write(path, tone_song(seconds, number), SAMPLING_RATE)
    code = main([str(word) for word in prepare_words(root / "songs", root / "data", tiny)])
    assert code == 0
    return root / "data"
