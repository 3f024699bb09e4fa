"""Memory of a training step: its estimate, recomputation, the plan, and what happens when it runs out."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import Ran, read_checkpoint, tone_song, train_words
from peft import PeftModel
from random_checkpoint import SAMPLING_RATE
from safetensors.torch import load_file
from transformers import MusicgenForConditionalGeneration

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.arguments import TrainArguments, parse
from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.model import footprint, language_model
from musicgen_dreamboothing.model.adapter import LoraSettings, add_adapter, trained_parameters
from musicgen_dreamboothing.model.delay import IGNORED, training_steps
from musicgen_dreamboothing.model.footprint import Estimator, Live, Step, measure
from musicgen_dreamboothing.model.footprint_cache import cache_file
from musicgen_dreamboothing.model.loading import load_language_model
from musicgen_dreamboothing.model.quantized import Int8Linear, keep_trainable
from musicgen_dreamboothing.model.recompute import use_full_recompute
from musicgen_dreamboothing.model.seams import is_bitsandbytes
from musicgen_dreamboothing.training import plan
from musicgen_dreamboothing.training.plan import CONTEXT, make_plan, parse_memory, policies_of, sizes_of
from musicgen_dreamboothing.training.trainer import CodebookTrainer

CPU = torch.device("cpu")
POLICIES = ("none", "light", "full")
FRAMES = 150

Cli = Callable[..., Ran]
Folders = Callable[[str], Path]


def adapted(
    folder: Path, policy: str, dtype: torch.dtype = torch.float32, quantization: str = "none", **settings: Any
) -> Any:
    """A model ready to train, its adapter with updates that are not zero."""
    model = load_language_model(read_checkpoint(folder), dtype, CPU, quantization=quantization)
    if policy == "light":
        model.use_light_recompute()
    torch.manual_seed(0)
    wrapped = add_adapter(model, LoraSettings(**settings))
    for _, parameter in trained_parameters(wrapped):
        parameter.data.normal_(0, 0.05)
    if policy == "full":
        use_full_recompute(wrapped)
    return wrapped.train()


def batch_for(folder: Path, clips: int = 2, frames: int = FRAMES, tokens: int = 32) -> dict[str, torch.Tensor]:
    checkpoint, draw = read_checkpoint(folder), torch.Generator().manual_seed(1)
    codes = torch.randint(checkpoint.codebook_size, (clips, checkpoint.codebooks, frames), generator=draw)
    inputs, labels = training_steps(codes, checkpoint.delay, checkpoint.start_token_id)
    return {
        "codes": inputs,
        "labels": labels,
        "text_states": torch.randn(clips, tokens, checkpoint.config.text_encoder.hidden_size, generator=draw),
        "text_mask": torch.ones(clips, tokens, dtype=torch.long),
        "keep_caption": torch.tensor([True] * (clips - 1) + [False]),
    }


def gradients(model: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    outputs = model(**batch)
    (outputs.nll.sum(0) / outputs.count.sum(0)).mean().backward()
    return {name: parameter.grad.clone() for name, parameter in trained_parameters(model)}


# Recomputation


@pytest.mark.parametrize("policy", ["light", "full"])
@pytest.mark.parametrize("kind", ["text", "melody-stereo"])
def test_recomputation_gives_the_same_gradients(kind: str, policy: str, checkpoints: Folders) -> None:
    batch = batch_for(checkpoints(kind))
    expected, found = (gradients(adapted(checkpoints(kind), name), batch) for name in ("none", policy))
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())
    assert max(gradient.abs().max() for gradient in expected.values()) > 1e-4


def test_light_recomputation_runs_under_autocast_as_the_forward_pass_did(checkpoints: Folders) -> None:
    batch = batch_for(checkpoints("text"))
    found = []
    for policy in ("none", "light"):
        model = adapted(checkpoints("text"), policy)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model(**batch)
        (outputs.nll.sum(0) / outputs.count.sum(0)).mean().backward()
        found.append({name: parameter.grad for name, parameter in trained_parameters(model)})
    assert all(torch.equal(found[1][name], gradient) for name, gradient in found[0].items())


def test_each_policy_saves_less_than_the_one_before(checkpoints: Folders) -> None:
    kept, peaks = zip(
        *(measure(adapted(checkpoints("text"), policy), batch_for(checkpoints("text"))) for policy in POLICIES),
        strict=True,
    )
    assert kept[0] > 1.3 * kept[1] > 1.3 * kept[2]
    assert peaks[0] > peaks[1] > peaks[2]


def test_logits_are_computed_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and gradients do not depend on how many there are at once; memory does."""
    torch.manual_seed(0)
    hidden, heads = torch.randn(2, 90, 8), torch.nn.ModuleList(torch.nn.Linear(8, 5000, bias=False) for _ in "ab")
    labels = torch.randint(5000, (2, 2, 90))
    labels[1, 1, 40:] = IGNORED
    found = []
    for rows in (10_000, 14):
        monkeypatch.setattr(language_model, "LOGITS_AT_ONCE", rows)
        given = hidden.clone().requires_grad_()
        with Live([given, labels, *heads.parameters()]) as live:
            sums = language_model._summed_cross_entropy(given, heads, labels)
            sums.sum().backward()
        found.append((sums, given.grad, live.peak))
    whole, parts = found
    assert torch.allclose(parts[0], whole[0])
    assert torch.allclose(parts[1], whole[1], atol=1e-6)
    assert parts[2] < whole[2] / 5


# The estimate


@pytest.mark.parametrize(
    ("kind", "policy"),
    [
        *(("text", policy) for policy in POLICIES),
        *(("melody", "light"), ("melody", "none"), ("text-stereo", "full"), ("melody-stereo", "full")),
    ],
)
def test_the_estimate_is_what_a_step_takes(kind: str, policy: str, checkpoints: Folders) -> None:
    """Compares the tensors of a real step with the estimate from sizes alone."""
    folder = checkpoints(kind)
    model, batch = adapted(folder, policy), batch_for(folder, clips=3)
    kept, peak = measure(model, batch)
    found = Estimator(read_checkpoint(folder), Step(FRAMES)).footprint(policy, 3)
    trained = sum(parameter.numel() for _, parameter in trained_parameters(model))
    total = sum(parameter.numel() for parameter in model.parameters())
    assert found.trained == 16 * trained
    assert found.base == 4 * (total - trained)
    assert abs(found.kept / kept - 1) < 0.15
    assert abs((found.kept + found.scratch) / peak - 1) < 0.15


@pytest.mark.parametrize(
    "changes",
    [
        {"lora": None},
        {"dtype": torch.bfloat16},
        {"lora": LoraSettings(r=4, targets="attention", use_dora=True)},
        {"with_text_encoder": True},
    ],
)
def test_the_estimate_knows_the_options(changes: dict[str, Any], checkpoints: Folders) -> None:
    folder = checkpoints("text")
    step = Step(FRAMES, **changes)
    model = load_language_model(
        read_checkpoint(folder), step.dtype, CPU, with_text_encoder=step.with_text_encoder
    ).train()
    if step.lora is not None:
        model = add_adapter(model, step.lora, with_text_encoder=step.with_text_encoder).train()
    batch = batch_for(folder)
    if step.with_text_encoder:
        del batch["text_states"]
        batch["input_ids"] = batch["text_mask"]
    kept, peak = measure(model, batch)
    found = Estimator(read_checkpoint(folder), step).footprint("none", 2)
    assert abs(found.kept / kept - 1) < 0.15
    assert abs((found.kept + found.scratch) / peak - 1) < 0.15


@pytest.mark.parametrize(("name", "policy"), [("nf4", "light"), ("int8", "none"), ("int8", "full")])
def test_the_estimate_knows_a_quantised_base(name: str, policy: str, checkpoints: Folders) -> None:
    """Including what bitsandbytes would save where no hook for saved tensors sees it."""
    pytest.importorskip("bitsandbytes")
    folder = checkpoints("melody")
    kept, peak = measure(adapted(folder, policy, quantization=name), batch_for(folder, clips=3))
    found = Estimator(read_checkpoint(folder), Step(FRAMES, quantization=name)).footprint(policy, 3)
    assert abs(found.kept / kept - 1) < 0.15
    assert abs((found.kept + found.scratch) / peak - 1) < 0.15


def test_gradients_of_several_processes_are_counted_twice(checkpoints: Folders) -> None:
    checkpoint = read_checkpoint(checkpoints("text"))
    for lora, bytes_each in ((LoraSettings(), 16), (None, 12)):
        (base, alone), (same, shared) = (
            Estimator(checkpoint, Step(FRAMES, lora=lora, shared=shared))._count_weights() for shared in (False, True)
        )
        assert (base, alone * (bytes_each + 4) // bytes_each) == (same, shared)


def test_a_base_of_fewer_bits_is_smaller(checkpoints: Folders) -> None:
    checkpoint = read_checkpoint(checkpoints("text"))
    steps = [Step(FRAMES, torch.bfloat16, name) for name in ("none", "int8", "nf4")]
    plain, int8, nf4 = (Estimator(checkpoint, step)._count_weights()[0] for step in steps)
    assert plain > int8 > nf4


def test_a_footprint_is_measured_once(
    checkpoints: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls: list[int] = []
    monkeypatch.setattr(footprint, "measure", lambda model, batch: calls.append(1) or measure(model, batch))

    def total(kind: str = "text", frames: int = 8) -> int:
        checkpoint, step = read_checkpoint(checkpoints(kind)), Step(frames)
        return Estimator(checkpoint, step, cache_file(checkpoint, step)).footprint("none", 1).total

    first, measured = total(), len(calls)
    assert measured > 0
    assert total() == first
    assert len(calls) == measured
    assert total("melody") != first
    assert total(frames=16) > first
    assert len(calls) == 3 * measured
    for path in tmp_path.rglob("*.json"):
        path.write_text("{")
    assert total() == first
    assert len(calls) == 4 * measured


def test_a_cache_that_cannot_be_written_is_no_error(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    estimator = Estimator(read_checkpoint(tiny), Step(8), tmp_path / "file" / "x.json")
    assert estimator.footprint("none", 1).total > 0


# The plan


class Line:
    """An estimator by a formula: 1 GB, and for each clip 4, 2 or 0.5 GB."""

    def footprint(self, policy: str, clips: int) -> Any:
        kept = {"none": 4, "light": 2, "full": 0.5}[policy] * clips * 1e9
        return type("Footprint", (), {"total": 1e9 + kept})()


SIZES = [16, 8, 4, 2, 1]


@pytest.mark.parametrize(
    ("gigabytes", "sizes", "expected"),
    [
        (100, SIZES, ("none", 16, 1)),
        (100, [1], ("none", 1, 16)),
        (20, SIZES, ("none", 4, 4)),
        (8, SIZES, ("none", 1, 16)),
        (5, SIZES, ("light", 1, 16)),
        (3, SIZES, ("full", 2, 8)),
        (2, SIZES, ("full", 1, 16)),
        (12, [4], ("light", 4, 4)),
    ],
)
def test_the_fastest_way_that_fits_is_taken(gigabytes: float, sizes: list[int], expected: tuple[str, int, int]) -> None:
    plan = make_plan(Line(), update_clips=16, sizes=sizes, memory=int(gigabytes * 1e9))  # type: ignore[arg-type]
    assert (plan.policy, plan.clips, plan.accumulation) == expected
    assert plan.fits


def test_a_plan_that_does_not_fit_is_the_smallest() -> None:
    plan = make_plan(Line(), update_clips=6, sizes=[3, 1], memory=int(1e9))  # type: ignore[arg-type]
    assert (plan.policy, plan.clips, plan.accumulation, plan.fits) == ("full", 1, 6, False)


@pytest.mark.parametrize(
    ("words", "sizes"),
    [
        ((), [16, 8, 4, 2, 1]),
        (("--per_device_train_batch_size", 3, "--gradient_accumulation_steps", 2), [6, 3, 2, 1]),
        (("--dataloader_drop_last", "true"), [2]),  # what is dropped depends on it
        (("--recompute", "light"), [2]),
    ],
)
def test_a_batch_is_split_where_that_changes_nothing(words: tuple[object, ...], sizes: list[int]) -> None:
    options = parse(TrainArguments, "train", "", ["--output_dir", "out", *map(str, words)])
    assert sizes_of(options, "cuda", steps=1500) == sizes
    assert sizes_of(options, "cpu", steps=1500) == (sizes if len(sizes) == 1 else [1])


@pytest.mark.parametrize(
    ("words", "device", "policies"),
    [
        ((), "cuda", ("none", "light", "full")),
        (("--torch_compile", "true"), "cuda", ("none", "full")),
        ((), "mps", ("full",)),
        (("--recompute", "light"), "cpu", ("light",)),
        (("--gradient_checkpointing", "true"), "cpu", ("full",)),
        (("--gradient_checkpointing", "false"), "cpu", ("none",)),
        (("--gradient_checkpointing", "true", "--recompute", "light"), "cpu", ("light",)),
    ],
)
def test_policies_of_options_and_devices(words: tuple[str, ...], device: str, policies: tuple[str, ...]) -> None:
    options = parse(TrainArguments, "train", "", ["--output_dir", "out", *words])
    assert policies_of(options, device) == policies
    assert policies_of(dataclasses.replace(options, seed=1), device) == policies
    assert not options.gradient_checkpointing  # Trainer has no part in it


@pytest.mark.parametrize(("use_lora", "policies"), [("true", ("none", "light", "full")), ("false", ("none", "full"))])
def test_autocast_excludes_light_recomputation(use_lora: str, policies: tuple[str, ...]) -> None:
    options = parse(TrainArguments, "train", "", ["--output_dir", "out", "--use_lora", use_lora])
    options.fp16 = True  # as on a GPU without bf16
    assert policies_of(options, "cuda") == policies


@pytest.mark.parametrize(
    ("text", "size"), [("8GB", 8e9), ("8", 8e9), (" 7.5 GiB", 7.5 * 2**30), ("900mb", 9e8), ("512MiB", 2**29)]
)
def test_sizes_of_memory_are_parsed(text: str, size: float) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["lots", "8TBs", "0GB", "-8GB", ""])
def test_an_invalid_size_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"--memory {text!r} is no size; write 8GB")):
        parse_memory(text)


def test_plan_prints_the_memory_and_stops(
    tiny: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For any memory, without songs, an output folder or the weights."""
    monkeypatch.chdir(tmp_path)
    ran = cli("train", "--plan", "--model_name_or_path", tiny, "--memory", "8GB", "--crop_seconds", 2)
    assert ran.code == 0, ran.err
    parts = [float(size) for size in re.findall(r"(\d+\.\d\d) GB\n", ran.out)]
    assert "in all" in ran.out
    assert "GB of 8.00 GB" in ran.out
    assert "weights of the base, bfloat16" in ran.out
    assert re.search(r"16 clips an update: 16 at once; recompute none\n", ran.out)
    whole = float(re.search(r"in all +(\d+\.\d\d) GB of", ran.out)[1])  # type: ignore[index]
    assert abs(sum(parts[:5]) - whole) < 0.03
    assert whole >= CONTEXT["cuda"] / 1e9
    assert [line.split()[0] for line in ran.out.splitlines()[-3:]] == ["none", "light", "full"]
    assert list(tmp_path.iterdir()) == []


def test_the_plan_is_made_for_the_process_with_the_least_memory(
    tiny: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "gather_object", lambda found: [*found, int(2e6)])
    ran = cli("train", "--plan", "--model_name_or_path", tiny, "--recompute", "full")
    assert ran.code == 0, ran.err
    assert f"GB of {(CONTEXT['cpu'] + 2e6) / 1e9:.2f} GB" in ran.out


def test_plan_without_enough_memory_gives_advice(tiny: Path, cli: Cli) -> None:
    ran = cli("train", "--plan", "--model_name_or_path", tiny, "--memory", "300MB", "--crop_seconds", 2)
    assert ran.code == 0, ran.err
    assert "warning: this exceeds the memory; try a base in 4 bits (--quantization nf4), shorter crops" in ran.out
    assert "recompute full" in ran.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--recompute", "half"), "--recompute 'half' is unknown; it takes auto, none, light, full"),
        (("--recompute", "light", "--torch_compile", "true"), "--recompute light needs layers that are not compiled"),
        (("--quantization", "fp4"), "--quantization 'fp4' is unknown; it takes none, nf4, int8"),
        (("--quantization", "nf4", "--use_lora", "false"), "--quantization nf4 freezes the base"),
        (("--quantization", "nf4", "--lora_init", "pissa"), "--lora_init pissa changes the base"),
    ],
)
def test_contradictions_are_refused(words: tuple[str, ...], message: str, cli: Cli) -> None:
    ran = cli("train", "--dataset_name", "songs", "--output_dir", "out", *words)
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert message in ran.err


@pytest.fixture
def song(tmp_path: Path) -> Path:
    audio.write(tmp_path / "song.wav", tone_song(9.0, seed=1), SAMPLING_RATE)
    return tmp_path / "song.wav"


@pytest.mark.parametrize(
    ("words", "policy"),
    [
        pytest.param(("--memory", "452MB"), "full", marks=pytest.mark.slow),  # a process alone takes 450
        (("--memory", "8GB"), "none"),
        (("--recompute", "light"), "light"),
    ],
)
def test_a_training_uses_the_planned_policy(
    words: tuple[str, ...], policy: str, song: Path, tiny: Path, tmp_path: Path, cli: Cli, monkeypatch: Any
) -> None:
    compute, seen = CodebookTrainer.compute_loss, []

    def watching(trainer: Any, model: Any, *rest: Any, **options: Any) -> Any:
        layers = trainer.model.decoder.model.decoder.layers
        full, light = layers[0].gradient_checkpointing, trainer.model.light is not None
        seen.append("full" if full else "light" if light else "none")
        return compute(trainer, model, *rest, **options)

    monkeypatch.setattr(CodebookTrainer, "compute_loss", watching)
    more = ("--max_steps", 1, "--eval_strategy", "no", "--save_strategy", "no", "--dtype", "float32")
    ran = cli(*train_words(song, tmp_path / "out", tiny), *words, *more)
    assert ran.code == 0, ran.err
    assert set(seen) == {policy}
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["split"]["recompute"] == policy


def test_a_resumed_run_keeps_its_batch_split(
    song: Path, tiny: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other sums would round differently."""
    words = [*train_words(song, tmp_path / "out", tiny), "--max_steps", 2, "--eval_strategy", "no", "--save_steps", 1]
    words += ["--save_strategy", "steps", "--dtype", "float32", "--gradient_accumulation_steps", 2]
    words += ["--max_duration_in_seconds", 1, "--min_duration_in_seconds", 0.5]
    assert cli(*words, "--memory", "452MB").code == 0
    record = tmp_path / "out" / "run.json"
    before = json.loads(record.read_text())
    record.write_text(json.dumps(before | {"finished": False}))
    (tmp_path / "out" / "adapter_model.safetensors").unlink()
    shutil.rmtree(tmp_path / "out" / "checkpoint-2")
    ran = cli(*words, "--memory", "8GB")
    assert ran.code == 0, ran.err
    assert "Resuming from" in ran.out
    assert "memory of a training step" not in ran.out
    assert json.loads(record.read_text())["split"] == before["split"]


# Compiled layers


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # from torch's compiler
@pytest.mark.parametrize("policy", ["none", "full"])
def test_compiled_layers_learn_the_same(policy: str, tiny: Path, tmp_path: Path, cli: Cli) -> None:
    """With the compiler's front end alone: what Inductor makes of it takes minutes and rounds differently."""
    audio.write(tmp_path / "song.wav", tone_song(9.0, seed=1), SAMPLING_RATE)
    for name, more in (("plain", ()), ("compiled", ("--torch_compile", "true", "--torch_compile_backend", "eager"))):
        words = [*train_words(tmp_path / "song.wav", tmp_path / name, tiny), "--recompute", policy, "--max_steps", 2]
        ran = cli(*words, "--save_strategy", "no", "--eval_strategy", "no", "--dtype", "float32", *more)
        assert ran.code == 0, ran.err
    plain, compiled = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("plain", "compiled"))
    assert plain.keys() == compiled.keys()
    for name, weight in plain.items():
        assert torch.allclose(compiled[name], weight, atol=1e-6), name


def test_compiled_layers_are_compiled(tiny: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda layer, **options: asked.append(options))
    audio.write(tmp_path / "song.wav", tone_song(5.0, seed=1), SAMPLING_RATE)
    words = [*train_words(tmp_path / "song.wav", tmp_path / "out", tiny), "--max_steps", 1, "--eval_strategy", "no"]
    ran = cli(*words, "--torch_compile", "true", "--torch_compile_mode", "max-autotune")
    assert ran.code == 0, ran.err
    layers = read_checkpoint(tiny).config.decoder.num_hidden_layers
    assert asked == [{"backend": "inductor", "mode": "max-autotune"}] * layers
    assert "recompute none" in ran.out


# Where memory runs out all the same


def test_a_step_without_memory_is_split_and_the_update_stays_the_same(
    song: Path, tiny: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails in the middle of the second update, during a backward pass."""

    def words(name: str, *more: object) -> list[object]:
        steps = ("--max_steps", 2, "--save_strategy", "no", "--eval_strategy", "no", "--eval_on_start", "false")
        sizes = ("--per_device_train_batch_size", 4, "--gradient_accumulation_steps", 2, "--max_train_samples", 8)
        return [
            *train_words(song, tmp_path / name, tiny),
            *(*steps, *sizes, "--dtype", "float32", "--recompute", "none", "--max_duration_in_seconds", 1),
            *("--min_duration_in_seconds", 0.5, "--learning_rate", 0.01),
            *more,
        ]

    assert cli(*words("whole")).code == 0
    compute, calls = CodebookTrainer.compute_loss, []

    def narrow(trainer: Any, model: Any, inputs: Any, *rest: Any, **options: Any) -> Any:
        calls.append(len(inputs["labels"]))
        loss = compute(trainer, model, inputs, *rest, **options)
        if len(calls) > 3 and len(inputs["labels"]) > 1:
            loss.backward()  # as if it had torn at its very end
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return loss

    monkeypatch.setattr(CodebookTrainer, "compute_loss", narrow)
    ran = cli(*words("split"))
    assert ran.code == 0, ran.err
    assert "no memory for 4 clips at once; continuing with 2, the update stays the same" in ran.out
    assert "no memory for 2 clips at once; continuing with 1, the update stays the same" in ran.out
    assert calls == [4, 4, 4, 4, 2, *[1] * 8]
    whole, split = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "split"))
    for name, weight in whole.items():
        assert torch.allclose(split[name], weight, atol=2e-5), name


def test_one_clip_without_memory_is_recomputed(
    song: Path, tiny: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = CodebookTrainer.compute_loss

    def narrow(trainer: Any, model: Any, *rest: Any, **options: Any) -> Any:
        assert (trainer.model.get_base_model().light is None) == trainer._recomputes_all
        if not trainer.model.decoder.model.decoder.layers[0].gradient_checkpointing:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return compute(trainer, model, *rest, **options)

    monkeypatch.setattr(CodebookTrainer, "compute_loss", narrow)
    words = ("--max_steps", 1, "--eval_strategy", "no", "--eval_on_start", "false", "--recompute", "light")
    ran = cli(*train_words(song, tmp_path / "out", tiny), *words)
    assert ran.code == 0, ran.err
    assert "no memory for a single clip; continuing with --recompute full, the update stays the same" in ran.out


@pytest.mark.parametrize(
    ("processes", "recomputes_all", "clips", "advice"),
    [
        (1, True, 1, "no memory for a single clip; try --quantization nf4, shorter crops"),
        (2, True, 1, "no memory for a single clip; try --quantization nf4"),
        (2, False, 4, "for 4 clips at once on one of 2 processes; the same command with --recompute full resumes from"),
        (2, True, 4, "again with --restart true --per_device_train_batch_size 2 --gradient_accumulation_steps 4"),
    ],
)
def test_out_of_memory_errors_end_with_advice(processes: int, recomputes_all: bool, clips: int, advice: str) -> None:
    trainer = CodebookTrainer.__new__(CodebookTrainer)
    trainer._parts, trainer._recomputes_all = 1, recomputes_all
    trainer.accelerator = SimpleNamespace(num_processes=processes)
    trainer.args = SimpleNamespace(gradient_accumulation_steps=2)
    with pytest.raises(UserError, match=re.escape(advice)):
        trainer._shrink(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), clips)
    with pytest.raises(ValueError, match="another"):
        trainer._shrink(ValueError("another"), clips)  # type: ignore[arg-type]


# Fewer bits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
def test_a_frozen_int8_layer_computes_what_bitsandbytes_does(training: bool, dtype: torch.dtype) -> None:
    """Both ways, with an outlier; in training and in evaluation bitsandbytes takes another way of its own."""
    nn = pytest.importorskip("bitsandbytes.nn")
    torch.manual_seed(0)
    theirs = nn.Linear8bitLt(48, 80, bias=False, has_fp16_weights=False, threshold=6.0).to("cpu").train(training)
    ours = copy.deepcopy(theirs)
    keep_trainable(torch.nn.ModuleList([ours]))
    x = torch.randn(3, 7, 48, dtype=dtype)
    x[1, 2, 3] = 20
    towards, found = torch.randn(3, 7, 80, dtype=dtype), []
    for layer in (theirs, ours):
        given = x.clone().requires_grad_()
        product = layer(given)
        product.backward(towards)
        found.append((product, given.grad))
    assert type(ours) is not type(theirs)
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_weights_are_off_by_half_a_step_at_most(dtype: torch.dtype) -> None:
    """Of the scale that is used: with another one whole rows would be too loud or too soft."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 500, bias=False, dtype=dtype)
    linear.weight.data[3] = 0
    found = Int8Linear.of(linear.weight.detach(), linear.bias)
    scale = found.scale.float()[:, None]
    off = (found.weight.float() * scale - linear.weight.float()).abs()
    assert (off <= 0.5001 * scale).all()
    assert off[3].max() == 0


@pytest.mark.parametrize("name", ["nf4", pytest.param("int8", marks=pytest.mark.slow)])
def test_an_adapter_is_trained_on_a_quantised_base_and_fits_the_plain_one(
    name: str, song: Path, tiny: Path, tmp_path: Path, cli: Cli, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("bitsandbytes")
    words = [*train_words(song, tmp_path / "out", tiny), "--quantization", name, "--learning_rate", 0.01]
    ran = cli(*words, "--save_strategy", "no", "--eval_strategy", "no", "--eval_on_start", "false", "--max_steps", 1)
    assert ran.code == 0, ran.err
    assert f"weights of the base, {name}" in ran.out
    assert not [line for line in caplog.records if line.name.startswith("bitsandbytes")]  # one for each product
    plain = MusicgenForConditionalGeneration.from_pretrained(tiny)
    tuned = PeftModel.from_pretrained(plain, tmp_path / "out")
    assert tuned.peft_config["default"].base_model_name_or_path == str(tiny)


@pytest.mark.parametrize("name", ["nf4", "int8"])
@pytest.mark.parametrize("kind", ["text", "melody"])
def test_heads_and_projections_are_not_quantised(name: str, kind: str, checkpoints: Folders) -> None:
    """Layers are, and compute nearly the same."""
    pytest.importorskip("bitsandbytes")
    checkpoint = read_checkpoint(checkpoints(kind))
    plain, stored = (load_language_model(checkpoint, torch.float32, CPU, quantization=q) for q in ("none", name))
    linear = {path for path, module in stored.named_modules() if type(module) is torch.nn.Linear}
    rounded = {path for path, module in stored.named_modules() if is_bitsandbytes(module)}
    assert linear
    assert all(".layers." in path for path in rounded)
    assert not any(".layers." in path for path in linear)
    batch = batch_for(checkpoints(kind), tokens=4)
    with torch.no_grad():
        theirs, ours = (model(**batch).nll.sum().item() for model in (plain, stored))
    assert 0 < abs(ours / theirs - 1) < 0.05


def test_an_evaluation_leaves_a_base_of_4_bits_trainable(checkpoints: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU with bf16 units, where bitsandbytes would change the order of the weights in it."""
    modules = pytest.importorskip("bitsandbytes.nn.modules")
    monkeypatch.setattr(modules, "has_avx512bf16", lambda: True)
    model = load_language_model(read_checkpoint(checkpoints("text")), torch.float32, CPU, quantization="nf4")
    stored = [module for module in model.modules() if isinstance(module, modules.Linear4bit)]
    assert stored
    batch = batch_for(checkpoints("text"), tokens=4)
    with torch.no_grad():
        model(**batch)
    assert not any(getattr(module.weight.quant_state, "packing_format_for_cpu", False) for module in stored)


def test_a_missing_library_is_named_with_its_command(
    song: Path, tiny: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    ran = cli(*train_words(song, tmp_path / "out", tiny), "--quantization", "nf4")
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert "--quantization nf4 needs: pip install 'musicgen-dreamboothing[quantization]'" in ran.err
