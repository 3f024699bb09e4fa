"""`train`: songs or tokens in, a fine-tuned model out; killed, resumed, refused, and read by plain PEFT."""

from __future__ import annotations

import contextlib
import io
import json
import re
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from conftest import SAMPLING_RATE, Ran, prepare_words, tables_in, tone_song, train_words
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file, save_file
from test_prepare import audio_dataset
from transformers import AutoModelForTextToWaveform, AutoProcessor, MusicgenForConditionalGeneration

from musicgen_dreamboothing import Generator, audio
from musicgen_dreamboothing.arguments import RENAMED, RETIRED, TrainArguments, parse
from musicgen_dreamboothing.cli import main
from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.files import folder_lock
from musicgen_dreamboothing.hub import weights_fingerprint
from musicgen_dreamboothing.training import setup

Cli = Callable[..., Ran]
ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "finetune_musicgen.py"
CONFIG_2024 = ROOT / "tests" / "data" / "config_2024.json"
# One update of four clips, and nothing but it.
ONCE = [
    *("--max_steps", 1, "--max_train_samples", 4, "--max_eval_samples", 2, "--gradient_checkpointing", "false"),
    *("--eval_on_start", "false", "--eval_strategy", "no", "--save_strategy", "no"),
]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def parsed(*words: object) -> TrainArguments:
    return parse(TrainArguments, "train", "", [str(word) for word in words])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """The tiny checkpoint, with a card that states a licence."""
    folder = shutil.copytree(tiny, tmp_path_factory.mktemp("base") / "tiny-musicgen")
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# Tiny\n")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """A prepared folder: four songs of four clips each."""
    root = tmp_path_factory.mktemp("data")
    (root / "songs").mkdir()
    for number in range(4):
        audio.write(root / "songs" / f"song-{number}.wav", tone_song(8.0, number), SAMPLING_RATE)
        (root / "songs" / f"song-{number}.txt").write_text(f"tune {number}")
    assert main([str(word) for word in prepare_words(root / "songs", root / "prepared", base)]) == 0
    return root / "prepared"


@pytest.fixture
def albums(tmp_path: Path) -> Path:
    """Four songs of one clip each, in two sub-folders."""
    for number in range(4):
        path = tmp_path / "songs" / f"album {number % 2}" / f"song {number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        audio.write(path, tone_song(2.0, number, channels=1 + number % 2), SAMPLING_RATE)
    return tmp_path / "songs"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, data: Path, base: Path) -> tuple[Path, str]:
    """A run of two epochs with evaluation, and what it said."""
    folder = tmp_path_factory.mktemp("finished") / "my run"
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main([str(word) for word in train_words(data, folder, base)]) == 0
    return folder, said.getvalue()


# --- options


def test_the_example_is_understood() -> None:
    options = parsed(ROOT / "example_configs" / "punk.json")
    assert options.model_name_or_path == "facebook/musicgen-melody"
    assert (options.dataset_name, options.dataset_config_name) == ("ylacombe/tiny-punk", "default")
    assert (options.train_split_name, options.target_audio_column_name) == ("clean", "others")
    assert (options.instance_prompt, options.output_dir, options.use_lora) == ("punk", "runs/punk", True)
    assert (options.num_train_epochs, options.learning_rate, options.adam_beta2, options.seed) == (4, 2e-4, 0.99, 42)
    assert (options.per_device_train_batch_size, options.gradient_accumulation_steps) == (2, 8)
    assert (options.eval_strategy, options.save_strategy, options.report_to) == ("epoch", "epoch", [])


def test_values_of_files(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "output_dir": "out",
        "use_lora": False,
        "do_train": True,
        "max_train_samples": None,
        "report_to": ["tensorboard", "wandb"],
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr": 1e-5},
        "instance_prompt": "--loud-- = -metal-",
        "max_steps": -1,
        "learning_rate": 2e-4,
        "warmup_steps": 0.1,
    }
    (tmp_path / "a.json").write_text("\ufeff" + json.dumps(values, indent="\t"))  # YAML forbids such tabs
    (tmp_path / "b.yaml").write_text(yaml.safe_dump(values).replace("0.0002", "2e-4"))
    for name in ("a.json", "b.yaml"):
        options = parsed(tmp_path / name)
        assert (options.use_lora, options.do_train, options.max_train_samples) == (False, True, None)
        assert options.report_to == ["tensorboard", "wandb"]
        assert options.lr_scheduler_kwargs == {"min_lr": 1e-5}
        assert options.instance_prompt == "--loud-- = -metal-"
        assert (options.max_steps, options.learning_rate, options.warmup_steps) == (-1, 2e-4, 0.1)


def test_words_behind_a_file_win(tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text("output_dir: out\nseed: 1\nevaluation_strategy: epoch\ninstance_prompt: punk\n")
    options = parsed(tmp_path / "a.yml", "--seed=2", "--eval_strategy", "no", "--instance-prompt", "-metal-")
    assert (options.seed, options.eval_strategy, options.instance_prompt) == (2, "no", "-metal-")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        (
            "a.json",
            '{"output_dir": "o", "lerning_rate": 1}',
            "unknown option --lerning_rate (similar: --learning_rate)",
        ),
        ("a.json", '{"output_dir": "o", "seed": }', "{} can't be read: Expecting value: line 1 column 29"),
        ("a.json", '["--seed", 1]', "{} must hold one mapping of option names to values"),
        ("a.json", '{"output_dir": "o", "seed": "many"}', "argument --seed: invalid int value: 'many'; see"),
        ("a.yaml", "a: b: c", "{} can't be read: mapping values are not allowed here"),
        ("b.json", "", "no file of options at {}"),
        ("a.toml", "seed = 1", "'{}' is neither an option nor a .json, .yaml or .yml file of options"),
    ],
)
def test_files_that_are_wrong(cli: Cli, tmp_path: Path, name: str, content: str, told: str) -> None:
    if content:
        (tmp_path / name).write_text(content)
    ran = cli("train", tmp_path / name)
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert ran.err.startswith(f"musicgen-dreamboothing: {told.format(tmp_path / name)}")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--output_dir", "o"], "give the songs: train --dataset_name SONGS --instance_prompt WORD --output_dir DIR"),
        (["--dataset_name", "o"], "give an output folder: --output_dir DIR"),
        (["--output_dir", "o", "--lora_dropuot", "0"], "unknown option --lora_dropuot (similar: --lora_dropout)"),
        (
            ["--output_dir", "o", "--eval_strategy", "never"],
            "--eval_strategy 'never' is unknown; it takes no, steps, epoch",
        ),
        (
            ["--output_dir", "o", "--dataset_name", "o", "--caption_dropout", "2"],
            "--caption_dropout 2 must be at least 0 and at most 1",
        ),
        (
            ["--output_dir", "o", "--dataset_name", "o", "--report_to", "x"],
            "--report_to: x is not supported, only azure_ml",
        ),
        (
            ["--output_dir", "o", "--dataset_name", "o", "--lora_r", "0"],
            "--lora_r 0 must be at least 1 and ",
        ),
        (
            ["--output_dir", "o", "--dataset_name", "o", "--neftune_noise_alpha", "5"],
            "--neftune_noise_alpha is not supported",
        ),
        (
            ["--output_dir", "o", "--dataset_name", "o", "--crop_seconds", "-1"],
            "--crop_seconds -1 must be above 0 and at most 3600",
        ),
    ],
)
def test_options_that_are_wrong(cli: Cli, words: list[str], told: str) -> None:
    ran = cli("train", *words)
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
    assert ran.err.startswith(f"musicgen-dreamboothing: {told}")


@pytest.mark.parametrize("tracker", ["wandb", "trackio", "tensorboard"])
def test_a_tracker_that_is_missing_is_named(cli: Cli, monkeypatch: pytest.MonkeyPatch, tracker: str) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    ran = cli("train", "--output_dir", "o", "--dataset_name", "o", "--report_to", tracker)
    told = f"--report_to {tracker} needs: pip install 'musicgen-dreamboothing[{tracker}]'"
    assert ran == Ran(1, "", f"musicgen-dreamboothing: {told}\n")


@pytest.mark.slow  # each name is tested by itself in test_punk_json
def test_a_file_from_2024_runs_as_it_is(cli: Cli, tmp_path: Path, checkpoints: Callable[[str], Path]) -> None:
    datasets.DatasetDict({"clean": audio_dataset(list(range(4)))}).save_to_disk(str(tmp_path / "saved"))
    here = ("--dataset_name", tmp_path / "saved", "--output_dir", tmp_path / "run", "--report_to", "none")
    small = ("--pad_token_id", 64, "--decoder_start_token_id", 64, "--dataloader_num_workers", 0, "--max_steps", 2)
    ran = cli("train", CONFIG_2024, *here, *small, "--model_name_or_path", checkpoints("melody"))
    assert ran.code == 0, ran.err
    for name in json.loads(CONFIG_2024.read_text()):
        lines = [line for line in ran.out.splitlines() if line.startswith(f"option {name} ")]
        if name in RENAMED:
            assert lines == [f"option {name} is now called {RENAMED[name]}"]
        elif name in RETIRED:
            assert lines == [f"option {name} is gone; its successor is {RETIRED[name]}"]
        else:
            assert lines == []
    assert "--eval_split_name clean is the training split; songs are held out of it instead" in ran.out
    assert "note: --predict_with_generate has no effect here\n" in ran.out
    assert "Evaluating on 1 clip of 1 held-out song: clean/00000" in ran.out
    options = json.loads((tmp_path / "run" / "run.json").read_text())["options"]
    assert (options["warmup_steps"], options["seed"], options["learning_rate"]) == (0.1, 456, 2e-4)


def test_old_names_are_those_of_other_verbs(cli: Cli, tmp_path: Path) -> None:
    """`guidance_scale` is retired from `train` and alive in `generate`."""
    ran = cli("generate", tmp_path, "a prompt", "--guidance_scale", 1, "--output_dir", tmp_path / "out")
    assert ran.code == 1
    assert "guidance_scale" not in ran.out + ran.err


def test_every_successor_is_an_option() -> None:
    names = vars(parsed("--output_dir", "out"))
    assert set(RENAMED.values()) <= set(names)
    assert not set(RENAMED) & set(names)
    assert parsed("--output_dir", "out", "--use_auth_token").token is None
    assert parsed("--output_dir", "out", "--use_auth_token", "hf_x").token == "hf_x"


# --- a finished run


def test_what_a_run_says(finished: tuple[Path, str], base: Path) -> None:
    folder, said = finished
    lines = said.splitlines()
    assert lines[:2] == [
        "Training on 12 clips, 0.4 minutes",
        "Evaluating on 4 clips of 1 held-out song: song-3.wav",
    ]
    assert lines[2].startswith("memory of a training step of ")
    assert re.fullmatch(r"  in all +\d\.\d\d GB of \d+\.\d\d GB", lines[8])
    assert re.fullmatch(r"4 clips an update: \d at once(, \d times)?; recompute none", lines[9])
    assert re.fullmatch(r"Adapter of 0\.05 M weights on a base of 0 M in (bfloat16|float32)", lines[10])
    number, loss = r"\d+\.\d{3}", r"\d\.\d{4}"
    books = rf"\(codebooks {number} {number} {number} {number}\)"
    training = [line for line in lines if re.fullmatch(rf"epoch \d\.\d\d  training  loss {loss}  {books}  lr .*", line)]
    held_out = [line for line in lines if re.fullmatch(rf"epoch \d\.\d\d  held-out  loss {loss}  {books}", line)]
    assert [line[:10] for line in training] == [f"epoch {x}" for x in ("0.33", "0.67", "1.00", "1.33", "1.67", "2.00")]
    assert [line[:10] for line in held_out] == ["epoch 0.00", "epoch 1.00", "epoch 2.00"]
    speed, losses, saved, licence, listen, judge = lines[-6:]
    assert len(lines) == 2 + 8 + 1 + 6 + 3 + 6
    assert re.fullmatch(r"6 updates in \d+ s, \d+\.\dx real time, peak memory of the process \d\.\d\d GB", speed)
    assert re.fullmatch(rf"Held-out loss {loss} before, {loss} after", losses)
    assert saved == f"Saved in {folder}"
    told = f"licence: the weights of {base} are cc-by-nc-4.0: what you make with them may not be used commercially"
    assert licence == told
    assert listen == f"Listen:  musicgen-dreamboothing generate '{folder}' punk --output_dir '{folder}/generated'"
    assert judge == f"Evaluate:  musicgen-dreamboothing evaluate '{folder}'"


def test_what_a_run_leaves(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    assert sorted(path.name for path in folder.iterdir()) == [
        ".lock",
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "checkpoint-3",
        "checkpoint-6",
        "processor_config.json",
        "run.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert not [path for path in folder.rglob("*") if path.suffix in (".flac", ".wav", ".arrow", ".bin", ".pkl")]


def test_the_record_of_a_run(finished: tuple[Path, str], data: Path, base: Path) -> None:
    record = json.loads((finished[0] / "run.json").read_text())
    assert (record["finished"], record["base_model"]) == (True, str(base))
    assert record["base_revision"] == weights_fingerprint(base)
    assert record["options"]["dataset_name"] == str(data)
    assert record["options"]["gradient_accumulation_steps"] == 2
    assert not {"token", "hub_token"} & set(record["options"])
    summary = record["summary"]
    assert (summary["updates"], summary["epochs"], summary["clips"]) == (6, 2.0, 12)
    assert summary["eval_loss"] < summary["loss_before"]
    assert summary["audio_seconds"] == pytest.approx(2 * 12 * 2, rel=0.05)  # pieces are up to 3 frames longer
    mean = sum(summary[f"eval_ce_q{book}"] for book in (1, 2, 3, 4)) / 4
    assert summary["eval_loss"] == pytest.approx(mean, abs=1e-6)


def test_the_card_of_a_run(finished: tuple[Path, str]) -> None:
    text = (finished[0] / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "peft",
        "pipeline_tag": "text-to-audio",
        "license": "cc-by-nc-4.0",
        "tags": ["text-to-audio", "music", "musicgen", "lora"],
        "instance_prompt": "punk",
    }
    assert "A LoRA adapter for [MusicGen](https://arxiv.org/abs/2306.05284), `tiny-musicgen`" in body
    assert "Put **punk** into the prompt" in body
    assert "Licence: the weights of tiny-musicgen are cc-by-nc-4.0: what you make with them may not be used" in body
    assert "3 songs, 0.4 minutes; 1 more held out for evaluation. Captions such as:\n\n- punk, tune 0\n" in body
    assert "- `gradient_accumulation_steps`: 2\n" in body
    assert "- `num_train_epochs`: 2.0\n" in body
    assert "seed" not in body
    assert re.search(r"\| eval_loss \| \d\.\d{4} \|", body)
    assert str(finished[0].parent) not in text
    (code,) = re.findall(r"```python\n(.*?)```", body, flags=re.DOTALL)
    compile(code, "README.md", "exec")


def test_plain_peft_reads_the_adapter(finished: tuple[Path, str], base: Path) -> None:
    folder, _ = finished
    config = PeftConfig.from_pretrained(folder)
    assert (config.base_model_name_or_path, config.revision, config.r) == (str(base), None, 16)
    assert config.auto_mapping == {
        "base_model_class": "MusicgenForConditionalGeneration",
        "parent_library": "transformers.models.musicgen.modeling_musicgen",
    }
    plain = AutoModelForTextToWaveform.from_pretrained(config.base_model_name_or_path)
    adapted = PeftModel.from_pretrained(plain, folder)
    assert all(tensor.any() for name, tensor in weights(folder).items() if "lora_B" in name or "embedding_B" in name)
    inputs = AutoProcessor.from_pretrained(folder)(text=["punk"], padding=True, return_tensors="pt")
    codes = torch.zeros(4, 5, dtype=torch.long)
    with torch.no_grad():
        after = adapted(**inputs, decoder_input_ids=codes).logits
        with adapted.disable_adapter():
            before = adapted(**inputs, decoder_input_ids=codes).logits
    assert not torch.allclose(before, after)
    assert adapted.generate(**inputs, do_sample=True, max_new_tokens=8).shape[:2] == (1, 1)


def test_a_finished_run_is_not_trained_again(cli: Cli, finished: tuple[Path, str], data: Path, base: Path) -> None:
    folder, _ = finished
    before = (folder / "adapter_model.safetensors").stat().st_mtime_ns
    ran = cli(*train_words(data, folder, base))
    assert ran == Ran(0, f"{folder} already holds this run, finished; --restart true trains it again\n", "")
    assert (folder / "adapter_model.safetensors").stat().st_mtime_ns == before


def test_a_run_with_other_options_is_refused(cli: Cli, finished: tuple[Path, str], data: Path, base: Path) -> None:
    ran = cli(*train_words(data, finished[0], base), "--learning_rate", 1e-3, "--lora_r", 4, "--logging_steps", 5)
    assert (ran.code, ran.err) == (
        1,
        f"musicgen-dreamboothing: {finished[0]} holds a run with other options: learning_rate (0.0002 -> 0.001), "
        "lora_r (16 -> 4); choose another --output_dir, or discard that run with --restart true\n",
    )


def test_a_run_on_other_weights_of_the_same_folder_is_refused(
    cli: Cli, finished: tuple[Path, str], data: Path, base: Path, tmp_path: Path
) -> None:
    """Retrained weights have the sizes of the earlier ones."""
    folder, other = shutil.copytree(finished[0], tmp_path / "run"), shutil.copytree(base, tmp_path / "base")
    state = load_file(other / "model.safetensors")
    name = next(name for name in state if name.endswith("q_proj.weight"))
    state[name] = -state[name]
    save_file(state, other / "model.safetensors", metadata={"format": "pt"})
    record = json.loads((folder / "run.json").read_text())
    record["options"]["model_name_or_path"] = str(other)
    (folder / "run.json").write_text(json.dumps(record))
    ran = cli(*train_words(data, folder, other))
    assert (ran.code, ran.err) == (
        1,
        f"musicgen-dreamboothing: the weights in {other} have changed since the run in {folder} began; "
        "choose another --output_dir, or discard that run with --restart true\n",
    )


def test_checkpoints_of_something_else_are_left_alone(cli: Cli, tmp_path: Path, data: Path, base: Path) -> None:
    (tmp_path / "run" / "checkpoint-7").mkdir(parents=True)
    (tmp_path / "run" / "checkpoint-7" / "trainer_state.json").write_text("{}")
    ran = cli(*train_words(data, tmp_path / "run", base))
    assert ran.code == 1
    assert ran.err.endswith("/run holds checkpoints of something else; choose another --output_dir\n")
    assert (tmp_path / "run" / "checkpoint-7").is_dir()


def test_a_folder_in_use_is_left_alone(cli: Cli, finished: tuple[Path, str], data: Path, base: Path) -> None:
    with folder_lock(finished[0]):
        ran = cli(*train_words(data, finished[0], base))
    told = f"{finished[0]} is in use by another run; wait for it or choose another --output_dir"
    assert ran == Ran(1, "", f"musicgen-dreamboothing: {told}\n")


# --- seeds, and runs that were killed

KILLED = """
import os, runpy, signal, sys, torch
torch.set_num_threads(1)
from musicgen_dreamboothing.training import setup, train

class Killer(setup.Lines):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            os.kill(os.getpid(), signal.SIGKILL)

setup.Lines = Killer
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Interrupting(setup.Lines):
    """Ctrl-C at the end of the third update."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt


@pytest.fixture(scope="module", params=["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def config(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, data: Path, base: Path) -> Path:
    """A file of options in which everything random is at work: six updates in two epochs."""
    path = tmp_path_factory.mktemp("config") / "run.json"
    values = {
        "dataset_name": str(data),
        "model_name_or_path": str(base),
        "output_dir": str(path.parent / "run"),
        "instance_prompt": "punk",
        "num_train_epochs": 2,
        "gradient_accumulation_steps": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "lora_dropout": 0.2,
        "caption_dropout": 0.5,
        "continuation_fraction": 0.5,
        "crop_seconds": 1.5,
        "random_crop": True,
        "learning_rate": 2e-3,
        "disable_tqdm": True,
        "eval_strategy": "no",
        "eval_on_start": False,
        "dtype": request.param,  # the killed process chooses by itself, and has other units than it may have here
    }
    path.write_text(json.dumps(values))
    return path


@pytest.fixture(scope="module")
def uninterrupted(config: Path) -> Path:
    """The same run at one go, elsewhere."""
    folder = config.parent / "uninterrupted"
    assert main(["train", str(config), "--output_dir", str(folder)]) == 0
    return folder


def test_a_killed_run_ends_as_if_nothing_had_happened(
    config: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, SCRIPT, config], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (config.parent / "run" / "adapter_model.safetensors").exists()
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(config)])
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert ended.value.code == 0
    out, _ = capfd.readouterr()
    assert f"Resuming from {config.parent}/run/checkpoint-4\n" in out  # in the middle of the second epoch
    assert len(re.findall("  training  loss", out)) == 2
    assert_same(weights(config.parent / "run"), weights(uninterrupted))


def test_a_torn_checkpoint_is_passed_over(
    cli: Cli, config: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "Lines", Interrupting)
    ran = cli("train", config, "--output_dir", tmp_path)
    assert ran.code == 130
    assert ran.err.endswith("musicgen-dreamboothing: stopped; the same command resumes from the last checkpoint\n")
    monkeypatch.undo()
    state = tmp_path / "checkpoint-2" / "trainer_state.json"
    state.write_text(state.read_text()[:-40])
    ran = cli("train", config, "--output_dir", tmp_path)
    assert ran.code == 0
    assert f"Resuming from {tmp_path}/checkpoint-1\n" in ran.out
    assert_same(weights(tmp_path), weights(uninterrupted))


def test_a_run_does_not_go_on_with_other_captions(
    cli: Cli, config: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(data, tmp_path / "data")
    words = ("train", config, "--dataset_name", tmp_path / "data", "--output_dir", tmp_path / "run")
    monkeypatch.setattr(setup, "Lines", Interrupting)
    assert cli(*words).code == 130
    monkeypatch.undo()
    metadata = tmp_path / "data" / "clips" / "metadata.jsonl"
    metadata.write_text(metadata.read_text().replace('"text": "punk', '"text": "punk, edited', 1))
    ran = cli(*words)
    assert ran.code == 1
    assert "songs or captions have changed since the run in" in ran.err
    assert cli(*words, "--restart", "true", "--max_steps", 1).code == 0


def test_one_seed_one_result(cli: Cli, config: Path, uninterrupted: Path, tmp_path: Path) -> None:
    for name, seed in (("same", 42), ("other", 43)):
        words = ("--output_dir", tmp_path / name, "--seed", seed, "--save_strategy", "no")
        assert cli("train", config, *words).code == 0
    one, other = weights(uninterrupted), weights(tmp_path / "other")
    assert_same(one, weights(tmp_path / "same"))
    assert one.keys() == other.keys()
    assert not any(torch.equal(one[name], other[name]) for name in one)


def test_a_run_killed_while_saving_only_saves(cli: Cli, config: Path, uninterrupted: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(uninterrupted, tmp_path / "run")
    (folder / "adapter_model.safetensors").rename(folder / "half.safetensors")
    (folder / ".saving").mkdir()
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "finished": False, "summary": {}}))
    ran = cli("train", config, "--output_dir", folder)
    assert ran.code == 0
    assert f"Resuming from {folder}/checkpoint-6\n" in ran.out
    assert "  training  loss" not in ran.out
    assert_same(weights(folder), weights(uninterrupted))
    assert not (folder / ".saving").exists()


def test_restart_discards_the_earlier_run(cli: Cli, config: Path, uninterrupted: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(uninterrupted, tmp_path / "run")
    words = ("train", config, "--output_dir", folder, "--restart", "true", "--max_steps", 1)
    assert cli(*words).code == 0
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-1"]
    assert json.loads((folder / "run.json").read_text())["summary"]["updates"] == 1


def test_the_best_checkpoint_can_be_kept(cli: Cli, config: Path, tmp_path: Path) -> None:
    best = ("--load_best_model_at_end", "true", "--eval_strategy", "steps", "--eval_steps", 1, "--max_steps", 4)
    ran = cli(
        "train", config, "--output_dir", tmp_path, *best, "--learning_rate", 0.3, "--lr_scheduler_type", "constant"
    )
    assert ran.code == 0
    losses = [float(x) for x in re.findall(r"held-out  loss (\d+\.\d{4})", ran.out)]
    assert len(losses) == 4  # one for each update
    assert min(losses) < losses[3]
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["summary"]["eval_loss"] == pytest.approx(min(losses), abs=1e-4)
    evaluations = [line["step"] for line in record["log"] if "eval_loss" in line and line["step"]]
    assert evaluations == [1, 2, 3, 4]  # curves show each update's own


# --- what is trained


@pytest.mark.parametrize("kind", ["text-stereo", "melody-stereo"])
def test_every_kind_is_trained_straight_from_songs(
    cli: Cli, albums: Path, tmp_path: Path, checkpoints: Callable[[str], Path], kind: str
) -> None:
    (tmp_path / "run.yaml").write_text("max_train_samples: 3\nper_device_train_batch_size: 3\nlearning_rate: 2e-3\n")
    words = train_words(albums, tmp_path / "run", checkpoints(kind))
    ran = cli("train", tmp_path / "run.yaml", *words[1:], *ONCE[:2], *ONCE[4:])
    assert ran.code == 0, ran.err
    assert "4 clips from 4 songs" in ran.out
    assert "Training on 3 clips, 0.1 minutes\nEvaluating on 1 clip of 1 held-out song: " in ran.out
    assert (tmp_path / "run" / "data" / "clips" / "metadata.jsonl").is_file()
    heads = [name for name in weights(tmp_path / "run") if "lm_heads" in name and "lora_B" in name]
    assert len(heads) == (8 if "stereo" in kind else 4)
    config = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    family = "MusicgenMelody" if "melody" in kind else "Musicgen"
    assert config["auto_mapping"]["base_model_class"] == f"{family}ForConditionalGeneration"
    assert "The processor of a melody checkpoint needs torchaudio" in (tmp_path / "run" / "README.md").read_text() or (
        "melody" not in kind
    )
    ran = cli("generate", tmp_path / "run", "punk", "--seconds", 0.2, "--output_dir", tmp_path / "out")
    assert ran.code == 0, ran.err
    assert re.search(r"adapter .*: active in (\d+) of \1 layers", ran.out)


def test_a_batch_may_be_larger_than_the_data(cli: Cli, data: Path, base: Path, tmp_path: Path) -> None:
    batch = ("--max_train_samples", 1, "--per_device_train_batch_size", 8, "--gradient_accumulation_steps", 16)
    ran = cli(*train_words(data, tmp_path, base), *ONCE, *batch)
    assert ran.code == 0
    assert "Training on 1 clip, 0.0 minutes\n" in ran.out
    assert re.search(r"^Held-out loss \d\.\d{4} after$", ran.out, flags=re.MULTILINE)  # nothing was measured before
    assert "\n1 update in " in ran.out


# Each update takes 99 times their size off the weights.
GROWING = ("--weight_decay", 10, "--learning_rate", 10, "--lr_scheduler_type", "constant", "--max_steps", 25)


def test_a_run_that_learns_nothing_is_told(cli: Cli, data: Path, base: Path, tmp_path: Path) -> None:
    ran = cli(*train_words(data, tmp_path, base), *ONCE, "--learning_rate", 0)
    assert ran.code == 1
    assert ran.err.endswith("the adapter learned nothing: all its updates are zero; train for more updates\n")
    ran = cli(*train_words(data, tmp_path, base), "--restart", "true", *GROWING)
    assert ran.code == 1
    assert "the training diverged: weights are not finite; try a lower --learning_rate" in ran.err
    assert not (tmp_path / "adapter_model.safetensors").exists()


def whole_model(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_all_weights_are_trained_without_lora(
    cli: Cli, finished: tuple[Path, str], data: Path, base: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(finished[0], tmp_path / "run")
    ran = cli(*train_words(data, folder, base), *ONCE, "--use_lora", "false", "--restart", "true")
    assert ran.code == 0, ran.err
    assert not list(folder.glob("adapter_*"))  # the earlier run's would be taken for the result
    before, after = whole_model(base), whole_model(folder)
    assert before.keys() == after.keys()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder", "enc_to_dec_proj"}
    text = (folder / "README.md").read_text()
    assert "library_name: transformers\n" in text
    assert "A full fine-tune of [MusicGen]" in text
    model = MusicgenForConditionalGeneration.from_pretrained(folder)
    inputs = AutoProcessor.from_pretrained(folder)(text=["punk"], padding=True, return_tensors="pt")
    assert model.generate(**inputs, do_sample=True, max_new_tokens=8).shape[:2] == (1, 1)
    ran = cli("generate", folder, "punk", "--seconds", 0.2, "--output_dir", tmp_path / "out")
    assert ran.code == 0
    assert f"loaded {folder}: text model, mono, 16000 Hz" in ran.out
    # and back: a LoRA run leaves nothing of the full fine-tune
    assert cli(*train_words(data, folder, base), *ONCE, "--restart", "true").code == 0
    assert {path.name for path in folder.glob("*model*")} == {"adapter_model.safetensors"}
    assert not (folder / "config.json").exists()


def in_two_parts(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, data: Path, base: Path, root: Path, *options: object
) -> tuple[Path, Path]:
    """The folders of a run of four updates and of the same run stopped in its third one."""

    def words(name: str) -> list[object]:
        steps = (*options, "--max_steps", 4, "--save_strategy", "steps", "--save_steps", 1)
        return [*train_words(data, root / name, base), *ONCE, *steps, "--gradient_accumulation_steps", 1]

    assert cli(*words("whole")).code == 0
    monkeypatch.setattr(setup, "Lines", Interrupting)
    assert cli(*words("parts")).code == 130
    monkeypatch.undo()
    ran = cli(*words("parts"))
    assert ran.code == 0
    assert f"Resuming from {root}/parts/checkpoint-2\n" in ran.out
    return root / "whole", root / "parts"


def test_a_full_fine_tune_is_resumed(
    cli: Cli, data: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = in_two_parts(cli, monkeypatch, data, base, tmp_path, "--use_lora", "false")
    assert_same(whole_model(parts), whole_model(whole))


def test_an_adapter_that_splits_the_base_is_resumed_and_fits_the_untouched_base(
    cli: Cli, data: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = in_two_parts(cli, monkeypatch, data, base, tmp_path, "--lora_init", "pissa_niter_4")
    assert_same(weights(parts), weights(whole))
    tuned = PeftModel.from_pretrained(MusicgenForConditionalGeneration.from_pretrained(base), whole)
    assert tuned.peft_config["default"].r == 2 * 16
    before, after = whole_model(base), dict(tuned.merge_and_unload().named_parameters())
    for name, weight in before.items():
        if name.startswith("decoder") and weight.dim() == 2 and "embed_positions" not in name:
            change = (after[name] - weight).abs().max()
            assert 0 < change < 0.05, name  # four small updates; PiSSA's own part of a weight is far larger


@pytest.mark.parametrize("use_lora", ["true", "false"])
def test_the_text_encoder_can_be_trained_too(cli: Cli, data: Path, base: Path, tmp_path: Path, use_lora: str) -> None:
    options = (
        "--use_lora",
        use_lora,
        "--freeze_text_encoder",
        "false",
        "--learning_rate",
        1e-2,
        "--caption_dropout",
        0,
    )
    ran = cli(*train_words(data, tmp_path / "run", base), *ONCE, *options)
    assert ran.code == 0, ran.err
    if use_lora == "true":
        assert [name for name in weights(tmp_path / "run") if ".text_encoder." in name and "lora_B" in name]
    else:
        before, after = whole_model(base), whole_model(tmp_path / "run")
        assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith("text_encoder."))
    trained, plain = Generator(tmp_path / "run"), Generator(base)
    for generator in (trained, plain):
        assert len(list(generator.generate(["punk"], seconds=0.1, progress=False))) == 1
    assert trained._states["punk"].shape == plain._states["punk"].shape
    assert abs(trained._states["punk"] - plain._states["punk"]).max() > 1e-2


# --- continuation


def test_prompts_leave_the_held_out_loss_and_the_seconds_as_they_are(
    cli: Cli, data: Path, base: Path, tmp_path: Path
) -> None:
    def summary(fraction: float) -> dict[str, Any]:
        folder = tmp_path / str(fraction)
        options = ("--eval_on_start", "true", "--continuation_fraction", fraction)
        ran = cli(*train_words(data, folder, base), *ONCE, *options)
        assert ran.code == 0, ran.err
        return dict(json.loads((folder / "run.json").read_text())["summary"])

    whole, prompted = summary(0), summary(1)
    assert prompted["loss_before"] == whole["loss_before"]
    assert prompted["audio_seconds"] == whole["audio_seconds"]
    assert prompted["train_loss"] != pytest.approx(whole["train_loss"], rel=1e-4)


def test_a_run_is_not_continued_with_another_share_of_prompts(
    cli: Cli, finished: tuple[Path, str], data: Path, base: Path
) -> None:
    ran = cli(*train_words(data, finished[0], base), "--continuation_fraction", 0.5)
    assert ran.code == 1
    assert "holds a run with other options: continuation_fraction (0.0 -> 0.5)" in ran.err


# --- what is held out


def test_songs_are_held_out_never_single_clips(data: Path, base: Path) -> None:
    seen = set()
    for seed in range(8):
        tables = tables_in(data, base, eval_fraction=0.3, seed=seed)
        train_songs, held_out = set(tables.train["source"]), set(tables.held_out["source"])
        assert len(train_songs) == 3
        assert len(held_out) == 1
        assert not train_songs & held_out
        seen |= held_out
    assert len(seen) > 1


def test_an_evaluation_split_wins(cli: Cli, albums: Path, base: Path, tmp_path: Path) -> None:
    ran = cli(*train_words(albums, tmp_path / "run", base), *ONCE, "--eval_split_name", "album 1")
    assert ran.code == 0
    held_out = "album 1/song 1.wav, album 1/song 3.wav"
    assert f"Training on 2 clips, 0.1 minutes\nEvaluating on 2 clips of 2 held-out songs: {held_out}\n" in ran.out


def test_of_few_songs_none_is_held_out(cli: Cli, albums: Path, base: Path, tmp_path: Path) -> None:
    shutil.rmtree(albums / "album 1")
    words = [*train_words(albums, tmp_path / "run", base), *ONCE, "--eval_strategy", "epoch"]
    ran = cli(*words)
    assert ran.code == 0
    told = "note: there are too few songs to hold one out; add songs, or give --eval_split_name\n"
    assert told in ran.out
    assert "Held-out loss" not in ran.out
    assert json.loads((tmp_path / "run" / "run.json").read_text())["summary"]["loss_before"] is None
    assert "## Held-out songs" not in (tmp_path / "run" / "README.md").read_text()


def test_nothing_is_held_out_where_none_is_wanted(cli: Cli, data: Path, base: Path, tmp_path: Path) -> None:
    ran = cli(*train_words(data, tmp_path, base), *ONCE, "--eval_fraction", 0, "--eval_strategy", "epoch")
    assert ran.code == 0
    assert "Training on 4 clips, 0.1 minutes\nAdapter of " in ran.out
    assert "held out" not in ran.out
    assert "held-out" not in ran.out


@pytest.mark.parametrize("metric", ["ce_q5", "eval_ppl_q9", "ce_q0", "eval_ce_left"])
def test_the_metric_of_a_codebook_or_side_that_is_not_there_is_refused(
    cli: Cli, data: Path, base: Path, tmp_path: Path, metric: str
) -> None:
    """Else the first evaluation would end in a KeyError, after all the preparation."""
    ran = cli(*train_words(data, tmp_path / "run", base), "--metric_for_best_model", metric)
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
    assert metric in ran.err
    assert not (tmp_path / "run").exists()


def test_nothing_left_to_train_on_is_told(cli: Cli, data: Path, base: Path, tmp_path: Path) -> None:
    ran = cli(*train_words(data, tmp_path, base), "--eval_fraction", 0.99)
    told = f"{data} has no clip to train on: all 16 are for evaluation"
    assert (ran.code, ran.err) == (1, f"musicgen-dreamboothing: {told}\n")


# --- the rest


def test_captions_of_a_prepared_folder_get_the_instance_prompt(
    cli: Cli, data: Path, base: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(data, tmp_path / "data")
    words = [*train_words(copy, tmp_path / "run", base), *ONCE, "--instance_prompt", "metal"]
    assert cli(*words).code == 0
    assert "- metal, punk, tune 0\n" in (tmp_path / "run" / "README.md").read_text()
    assert set(tables_in(copy, base, "metal").captions["text"]) == {
        f"metal, punk, tune {number}" for number in range(4)
    }


def test_tensorboard_gets_the_losses(cli: Cli, data: Path, base: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    ran = cli(*train_words(data, tmp_path, base), *ONCE, "--report_to", "tensorboard")
    assert ran.code == 0, ran.err
    (events,) = tmp_path.rglob("events.out.tfevents.*")
    log = EventAccumulator(str(events.parent)).Reload()
    assert {"train/loss", "train/ce_q1", "train/ppl_q4", "eval/loss"} <= set(log.Tags()["scalars"])
    assert len(log.Scalars("train/loss")) == 1


@pytest.mark.parametrize(
    ("card", "notice"),
    [
        (None, "tiny does not state one; ask its makers before you share what you made with it"),
        ("no front matter", "tiny does not state one; ask its makers"),
        ("---\nlicense: [\n---\n", "tiny does not state one; ask its makers"),
        ("---\nlicense: apache-2.0\n---\n", "the weights of tiny are apache-2.0; it governs what you make with them"),
    ],
)
def test_the_licence_of_the_base(
    cli: Cli, data: Path, base: Path, tmp_path: Path, card: str | None, notice: str
) -> None:
    """The base's card is read; where that can't be, the run ends well all the same."""
    from musicgen_dreamboothing.hub import Source
    from musicgen_dreamboothing.model.checkpoint import load_checkpoint
    from musicgen_dreamboothing.sharing.licence import licence_notice, licence_of

    folder = shutil.copytree(base, tmp_path / "tiny")
    (folder / "README.md").unlink()
    if card is not None:
        (folder / "README.md").write_text(card)
    told = licence_notice("tiny", licence_of(load_checkpoint(Source(str(folder)))))
    assert told.startswith(f"licence: {notice}")


def test_train_without_a_dataset_of_that_name(cli: Cli, base: Path, tmp_path: Path) -> None:
    ran = cli(*train_words(tmp_path / "nothing", tmp_path / "run", base))
    assert ran.code == 1
    assert ran.err.startswith(f"musicgen-dreamboothing: no such folder: {tmp_path / 'nothing'}; give a folder of songs")


def test_options_in_python(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give an output folder: --output_dir DIR"):
        TrainArguments(dataset_name="songs")
    assert TrainArguments(output_dir=str(tmp_path), report_to="none").report_to == []


def test_a_token_is_nobody_elses_business(tmp_path: Path) -> None:
    options = TrainArguments(output_dir=str(tmp_path), token="hf_secret", hub_token="hf_other")
    for shown in (str(options), repr(options), options.to_json_string()):
        assert "hf_secret" not in shown
        assert "hf_other" not in shown


@pytest.mark.parametrize(
    ("words", "launched", "expected"),
    [
        ([], "no", ("auto", False, "no")),
        (["--bf16", "true"], "no", ("bfloat16", False, "no")),
        ([], "bf16", ("bfloat16", False, "no")),
        (["--dtype", "bfloat16"], "no", ("bfloat16", False, "no")),
        (["--dtype", "float32"], "bf16", ("bfloat16", False, "no")),
        (["--fp16", "true"], "no", ("auto", False, "no")),
        (["--dtype", "float16"], "no", ("auto", False, "no")),
    ],
)
def test_precision_is_chosen_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str], launched: str, expected: tuple[str, bool, str]
) -> None:
    """On a CPU, where fp16 can't be trained; an adapter never gets autocast over its 16-bit base."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    options = parsed("--output_dir", tmp_path, "--use_cpu", "true", *words)
    assert (options.dtype, options.bf16, options.mixed_precision) == expected


def test_a_full_fine_tune_in_bf16_is_autocast(tmp_path: Path) -> None:
    options = parsed("--output_dir", tmp_path, "--use_cpu", "true", "--use_lora", "false", "--dtype", "bfloat16")
    assert (options.bf16, options.mixed_precision) == (True, "bf16")


def test_no_text_is_cached_where_the_text_encoder_is_trained(
    cli: Cli, albums: Path, base: Path, tmp_path: Path
) -> None:
    words = [*train_words(albums, tmp_path / "run", base), "--freeze_text_encoder", "false", "--max_steps", 1]
    assert cli(*words).code == 0
    tokens = tmp_path / "run" / "data" / "tokens"
    assert [path.name.split("-")[0] for path in tokens.iterdir() if path.is_dir()] == ["codes"]
