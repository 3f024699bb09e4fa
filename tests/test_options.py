"""Values of options: the ranges beside them, odd values, and options without an effect; no model is loaded."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from musicgen_dreamboothing import GenerateArguments, generate
from musicgen_dreamboothing.arguments import VERBS, check_values, note_unused, parse, parser
from musicgen_dreamboothing.arguments.checking import rule_of
from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.model.device import is_out_of_memory

ODD = ["nan", "inf", "-inf", "-1", "0", "0.5", "1e30", "9" * 21, "", " ", "none", "true", "[]", "{}"]
ODD += ['{"a": 1}', "long " * 4000, "пусто 🎸", "a\nb", "\udce9", "%s", "--", "../.."]
WORDS = {
    "prepare": ["songs", "--output_dir", "data"],
    "doctor": ["data"],
    "train": ["--dataset_name", "songs", "--output_dir", "run"],
    "generate": ["model", "punk"],
    "evaluate": ["run"],
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


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "train"])
def test_odd_value_of_each_option_is_taken_or_refused_in_one_line(verb: str) -> None:
    made = parser(VERBS[verb], verb, "")
    for entry in entries(verb):
        for value in ODD:
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
        ("train", "adam_epsilon", "inf", "at least 0"),
        ("train", "warmup_steps", "-1", "at least 0"),
        ("train", "seed", "-1", "at least 0"),
        ("train", "output_dir", " ", "--output_dir DIR"),
    ],
)
def test_impossible_value_names_option_and_what_is_possible(verb: str, name: str, value: str, possible: str) -> None:
    message = outcome(verb, [*WORDS[verb], f"--{name}={value}"])
    assert f"--{name}" in message
    assert possible in message


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
