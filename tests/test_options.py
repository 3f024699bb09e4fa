"""Values of options: the ranges beside them, odd values, and options without an effect; no model is loaded."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Ran, train_words
from hub import LocalHub

from musicgen_dreamboothing.arguments import VERBS, GenerateArguments, check_values, note_unused, parse, parser
from musicgen_dreamboothing.arguments.checking import rule_of
from musicgen_dreamboothing.console import UserError, quiet_libraries
from musicgen_dreamboothing.device import is_out_of_memory
from musicgen_dreamboothing.generation.generate import generate

ODD = ["nan", "inf", "-inf", "-1", "0", "1e30", "9" * 21, "", " ", "none", "true", "[]", "{}"]
ODD += ["long " * 4000, "пусто 🎸"]
ODDER = [*ODD, "0.5", '{"a": 1}', "a\nb", "\udce9", "%s", "--", "../.."]
WORDS = {
    "prepare": ["songs", "--output_dir", "data"],
    "doctor": ["data"],
    "train": ["--dataset_name", "songs", "--output_dir", "run"],
    "generate": ["model", "punk"],
    "evaluate": ["run"],
    "merge": ["punk", "--output_dir", "merged"],
    "warm-start": ["base", "--output_dir", "stereo"],
    "export": ["model", "--output_dir", "out"],
    "import": ["state_dict.bin", "--output_dir", "out"],
    "extract": ["tuned", "--base", "base", "--output_dir", "out"],
    "push": ["run", "--hub_model_id", "you/punk"],
    "demo": [],
}
LONGEST_MESSAGE = 500


def outcome(verb: str, words: list[str]) -> str:
    """The error of a command's options, or an empty text."""
    return refusal(parser(VERBS[verb], verb, ""), words)


def refusal(made: Any, words: list[str]) -> str:
    """The same with a parser that is made already."""
    try:
        check_values(made.parse(words))
    except UserError as error:
        return str(error)
    return ""


def entries(verb: str) -> list[dataclasses.Field[Any]]:
    return [entry for entry in dataclasses.fields(VERBS[verb]) if entry.init]


@pytest.mark.parametrize("verb", list(VERBS))
def test_odd_value_of_each_option_is_taken_or_refused_in_one_line(verb: str) -> None:
    made = parser(VERBS[verb], verb, "")
    for number, entry in enumerate(entries(verb)):
        # transformers checks all options of a training each time: there every option gets a sixth of the values
        for value in ODD[number % 6 :: 6] if verb == "train" else ODDER:
            words = [value] if entry.metadata.get("positional") else [*WORDS[verb], f"--{entry.name}={value}"]
            message = refusal(made, words)
            assert len(message) < LONGEST_MESSAGE, (entry.name, value[:30])
            assert "\n" not in message, (entry.name, value[:30])


@pytest.mark.parametrize(
    ("verb", "name", "value", "possible"),
    [
        ("generate", "variations", "999999999", "at least 1 and at most 10000"),
        ("generate", "seconds", "1e12", "above 0 and at most 3600"),
        ("generate", "seconds", "0", "above 0"),
        ("generate", "seed", "-1", "at least 0"),
        ("generate", "seed", str(2**80), "at most 4294967295"),
        ("generate", "top_p", "nan", "above 0 and at most 1"),
        ("generate", "quantization", "int4", "none, nf4, int8"),
        ("evaluate", "variations", "0", "at least 1"),
        ("evaluate", "seconds", "inf", "above 0"),
        ("prepare", "preprocessing_num_workers", "0", "at least 1"),
        ("prepare", "preprocessing_num_workers", str(10**9), "at most 256"),
        ("prepare", "max_duration_in_seconds", "inf", "at most"),
        ("prepare", "caption_variants", str(10**9), "at most"),
        ("train", "num_class_clips", str(10**12), "at most"),
        ("train", "sample_seconds", "nan", "above 0"),
        ("train", "guidance_scale", "inf", "at least 0"),
        ("train", "prior_loss_weight", "nan", "at least 0"),
        ("train", "num_samples_to_generate", "-1", "at least 0"),
        ("train", "lora_r", str(10**9), "at most 2048"),
        ("train", "lora_dropout", "1", "below 1"),
        ("train", "eval_fraction", "2", "below 1"),
        ("train", "learning_rate", "nan", "at least 0"),
        ("train", "max_grad_norm", "-1", "at least 0"),
        ("train", "adam_epsilon", "inf", "above 0"),
        ("train", "warmup_steps", "-1", "at least 0"),
        ("train", "seed", "-1", "at least 0"),
        ("train", "output_dir", " ", "--output_dir DIR"),
    ],
)
def test_impossible_value_names_option_and_what_is_possible(verb: str, name: str, value: str, possible: str) -> None:
    message = outcome(verb, [*WORDS[verb], f"--{name}={value}"])
    assert f"--{name}" in message
    assert possible in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lr_scheduler_kwargs", '{"a": 1}'], "unexpected keyword argument 'a'"),
        (["--optim_args", "x"], "--optim_args x, or"),
        (["--optim", "galore_adamw"], "galore_torch"),
        (
            ["--metric_for_best_model", "nonsense"],
            "'nonsense' is unknown; it takes style, loss, ppl",
        ),
        (["--save_strategy", "best"], "--save_strategy best needs --metric_for_best_model"),
        (["--log_level", "loud"], "--log_level 'loud' is unknown; it takes detail, debug"),
        (["--dataloader_multiprocessing_context", "thread"], "it takes fork, spawn, forkserver"),
        (["--torch_compile_mode", "fast"], "it takes default, reduce-overhead"),
        (["--torch_compile_backend", "nonsense"], "--torch_compile_backend 'nonsense' is unknown; it takes "),
    ],
)
def test_settings_of_transformers_fail_before_the_songs_are_read(
    cli: Callable[..., Ran], tmp_path: Path, words: list[str], message: str
) -> None:
    """The folder of songs does not exist."""
    ran = cli("train", "--dataset_name", tmp_path / "none", "--output_dir", tmp_path / "run", *words)
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert message in ran.err


@pytest.mark.parametrize("value", [-1, 2.5, True, "four", float("nan")])
def test_values_from_python_are_checked_before_a_model_is_looked_for(value: Any) -> None:
    with pytest.raises(UserError, match="--variations"):
        generate(GenerateArguments(model="nowhere/at-all", prompts=["punk"], variations=value))


@pytest.mark.parametrize("verb", list(VERBS))
def test_help_shows_ranges_and_choices(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(VERBS[verb], verb, "", ["--help"])
    text = " ".join(capsys.readouterr().out.split()).replace(" ", "")
    for entry in entries(verb):
        if not entry.metadata.get("positional"):
            assert rule_of(entry).range.replace(" ", "") in text


@pytest.mark.parametrize(
    ("verb", "words", "note"),
    [
        ("prepare", ["--keep_stems", "drums"], "--keep_stems has no effect without --audio_separation"),
        ("prepare", ["--caption_variants", "7"], "--caption_variants has no effect without --add_metadata"),
        ("generate", ["--temperature", "0", "--top_k", "9"], "--top_k has no effect with --temperature 0"),
        ("train", ["--num_class_clips", "9"], "--num_class_clips has no effect without --with_prior_preservation"),
        ("train", ["--use_lora", "false", "--lora_r", "9"], "--lora_r has no effect without --use_lora"),
        ("train", ["--sample_steps", "9"], "--sample_steps has no effect without --sample_prompts"),
        ("train", ["--hub_model_id", "me/it"], "--hub_model_id has no effect without --push_to_hub"),
        ("train", ["--predict_with_generate", "true"], "--predict_with_generate has no effect here"),
    ],
)
def test_option_without_effect_is_named(
    verb: str, words: list[str], note: str, capsys: pytest.CaptureFixture[str]
) -> None:
    note_unused(parse(VERBS[verb], verb, "", [*WORDS[verb], *words]))
    notes = [line for line in capsys.readouterr().out.splitlines() if "no effect" in line]
    assert len(notes) == 1
    assert note in notes[0]


def test_options_for_songs_have_no_effect_on_a_prepared_folder(
    cli: Callable[..., Ran], prepared: Path, tiny: Path, tmp_path: Path
) -> None:
    words = [
        *train_words(prepared, tmp_path / "run", tiny),
        "--cut",
        "bars",
        "--bars",
        4,
        "--max_steps",
        1,
        "--eval_strategy",
        "no",
    ]
    ran = cli(*words, "--save_strategy", "no")
    assert ran.code == 0, ran.err
    names = re.findall(rf"^note: --(\w+) has no effect: {re.escape(str(prepared))} is prepared already$", ran.out, re.M)
    assert names == ["cut", "bars"]


def test_base_model_of_a_base_has_no_effect(cli: Callable[..., Ran], tiny: Path, tmp_path: Path) -> None:
    words = ["generate", tiny, "punk", "--seconds", 0.1, "--output_dir", tmp_path, "--base_model"]
    assert "note: --base_model has no effect: there is no adapter\n" in cli(*words, "nonsense").out


@pytest.mark.parametrize("verb", list(VERBS))
def test_conditions_of_notes_name_options_and_their_values(verb: str) -> None:
    rules = {entry.name: rule_of(entry) for entry in entries(verb)}
    for rule in rules.values():
        for condition in (*rule.needs, *filter(None, [rule.unless])):
            name, _, value = condition.removeprefix("--").partition(" ")
            assert any(name in {entry.name for entry in entries(other)} for other in VERBS)
            if value and name in rules and rules[name].choices:
                assert value in rules[name].choices


@pytest.mark.parametrize("verb", list(VERBS))
def test_defaults_give_no_note(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    note_unused(parse(VERBS[verb], verb, "", WORDS[verb]))
    assert "no effect" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("verb", "word", "advice"),
    [
        ("train", "--lora_rank", "--lora_r"),
        ("train", "--learning-rat", "--learning_rate"),
        ("train", "--lr", "--learning_rate"),
        ("train", "--seconds", "generate and evaluate only"),
        ("train", "\u2013\u2013output_dir", "write --output_dir"),
        ("train", "--no_use_dora", "write --use_dora false"),
        ("generate", "--model", "by its place"),
        ("generate", "--guidance", "--guidance_scale"),
        ("prepare", "--stems", "--keep_stems"),
        ("evaluate", "--variation", "--variations"),
    ],
)
def test_unknown_option_gets_advice(verb: str, word: str, advice: str) -> None:
    assert advice in outcome(verb, [*WORDS[verb], f"{word}=1"])


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 5.00 GB)"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("HIP error: out of memory"), True),
        (RuntimeError("UR error: UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"), True),
        (MemoryError(), True),
        (UserError("the song 'out of memory' is empty"), False),
        (ValueError("out of memory is no caption"), False),
        (RuntimeError("shapes differ"), False),
    ],
)
def test_lack_of_memory_is_recognised_by_kind(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


FROM_PYTHON = """
import sys
from musicgen_dreamboothing import Generator
from musicgen_dreamboothing.training.train import train
from musicgen_dreamboothing.arguments import TrainArguments
data, base, run = sys.argv[1:]
options = TrainArguments(
    dataset_name=data, model_name_or_path=base, output_dir=run, instance_prompt="punk", quantization="nf4", max_steps=1,
    disable_tqdm=True, eval_strategy="no", save_strategy="no",
)
train(options)
Generator(run)
"""


@pytest.mark.slow  # starts an interpreter
def test_libraries_say_nothing_to_users_of_python(prepared: Path, tiny: Path, tmp_path: Path) -> None:
    """Not even which kernels bitsandbytes lacks, which it says when transformers imports it by way of peft."""
    done = subprocess.run(
        [sys.executable, "-c", FROM_PYTHON, str(prepared), str(tiny), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    bars = re.compile(r"\d+%\|")  # of progress
    assert [line for line in re.split(r"[\r\n]+", done.stderr) if line and not bars.search(line)] == []


def test_levels_of_the_host_program_are_restored() -> None:
    logger = logging.getLogger("transformers")
    level, filters = logger.level, list(warnings.filters)
    with quiet_libraries():
        assert not logger.isEnabledFor(logging.WARNING)
    assert (logger.level, warnings.filters) == (level, filters)


REFUSED = """
import sys
from musicgen_dreamboothing.cli import main
for name in sys.argv[1:]:
    main(["generate", name, "punk"])
main(["train", "--plan", "--model_name_or_path", "someone/gated"])
"""


@pytest.mark.slow  # starts interpreters, whose cache of the Hub is their own
def test_refusals_of_the_hub_say_where_to_ask(tiny: Path, tmp_path: Path) -> None:
    config = (tiny / "config.json").read_bytes()
    with LocalHub() as hub:
        hub.add("someone/gated", {"config.json": config}, gated=True)
        hub.add("someone/private", {"config.json": config}, private=True)
        names = ["someone/gated", "someone/private", "someone/nothing"]
        done = subprocess.run(
            [sys.executable, "-c", REFUSED, *names],
            env={**os.environ, **hub.environment(tmp_path, signed_in=False)},
            capture_output=True,
            text=True,
            check=False,
        )
        page = f"{hub.endpoint}/someone/gated"
    log_in = "log in with `hf auth login` or pass --token"
    lines = [line.removeprefix("musicgen-dreamboothing: ") for line in done.stderr.splitlines()]
    gated = f"the model someone/gated is gated: accept its conditions at {page}, then {log_in}, and run the same "
    missing = "no folder 'someone/{}' here, and the Hub has no such model, or it is private: check the name, or {}"
    nothing = [missing.format(name, log_in) for name in ("private", "nothing")]
    assert lines == [f"{gated}command again", *nothing, f"{gated}command again"]
