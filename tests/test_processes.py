"""A run that goes on with another number of processes, after a stop that one of them was asked for."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Ran, train_words
from safetensors.torch import load_file

Cli = Callable[..., Ran]
# Asks for a stop in update 3 of 4, the first one of the second epoch; of two processes only the second.
STOPPING = """
import os, signal, sys, torch
torch.set_num_threads(1)
from musicgen_dreamboothing.training import setup, train

class Stopping(setup.Lines):
    def on_step_begin(self, args, state, control, **rest):
        if state.global_step == 2 and args.process_index == args.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)

if os.environ["STOPS"] == "true":
    setup.Lines = Stopping
from musicgen_dreamboothing.cli import main
sys.exit(main(sys.argv[1:]))
"""


def words_of(data: Path, folder: Path, base: Path) -> list[object]:
    """Eleven clips, eight to an update: the last one of an epoch has three, of which a process gets one or two."""
    return [
        *train_words(data, folder, base),
        *("--dtype", "float32", "--use_cpu", "true", "--max_train_samples", 11),
        *("--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 4, "--recompute", "none"),
    ]


def launched(processes: int, words: list[object], *, stops: bool, folder: Path) -> Ran:
    script = folder / "stopping.py"
    script.write_text(STOPPING)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launch = f"--num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port {port}"
    many = ["--multi_gpu", "--num_processes", str(processes)]
    starter = ["-m", "accelerate.commands.launch", *launch.split(), *many] if processes > 1 else []
    done = subprocess.run(
        [sys.executable, *starter, str(script), *map(str, words)],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "STOPS": str(stops).lower()},
        capture_output=True,
        text=True,
        check=False,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, prepared: Path, tiny: Path) -> Path:
    from musicgen_dreamboothing.cli import main

    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert main([str(word) for word in words_of(prepared, folder, tiny)]) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("before", "now"), [(1, 2), (2, 1)])
def test_a_run_resumes_with_another_number_of_processes(
    prepared: Path, tiny: Path, tmp_path: Path, uninterrupted: Path, before: int, now: int
) -> None:
    words = words_of(prepared, tmp_path / "run", tiny)
    if before == 2:  # the same clips in each update
        words[words.index("--gradient_accumulation_steps", 20) + 1] = 2
    stopped = launched(before, words, stops=True, folder=tmp_path)
    assert stopped.code == 143 if before == 1 else stopped.code != 0
    assert stopped.err.count("musicgen-dreamboothing: stopped at update 3 of 4 and saved checkpoint-3; the same") == 1
    states = {path.name for path in (tmp_path / "run" / "checkpoint-3").glob("rng_state*")}
    assert states == ({"rng_state.pth"} if before == 1 else {"rng_state_0.pth", "rng_state_1.pth"})
    went_on = launched(now, words, stops=False, folder=tmp_path)
    assert went_on.code == 0, went_on.err
    assert f"Resuming from {tmp_path}/run/checkpoint-3\n" in went_on.out
    assert "each update keeps its 8 clips, as 2 at once," in went_on.out
    one, other = (json.loads((folder / "run.json").read_text()) for folder in (tmp_path / "run", uninterrupted))
    assert one["split"]["processes"] == now
    for key in ("step", "epoch", "learning_rate", "loss", "eval_loss"):
        lines = [[line[key] for line in run["log"] if key in line and "train_loss" not in line] for run in (one, other)]
        assert lines[0] == pytest.approx(lines[1], rel=1e-5), key
    weights, expected = (load_file(run / "adapter_model.safetensors") for run in (tmp_path / "run", uninterrupted))
    assert weights.keys() == expected.keys()
    assert all(torch.allclose(weights[name], expected[name], atol=1e-5) for name in expected)
