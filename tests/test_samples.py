"""Samples while training: the base, what it becomes and what is saved are heard, and the training takes no notice."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import KINDS, read_checkpoint, train_words
from PIL import Image
from random_checkpoint import SAMPLING_RATE
from safetensors.torch import load_file
from transformers import TrainerControl, TrainerState

from musicgen_dreamboothing.cli import main
from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.generation.decoding import CodeStream
from musicgen_dreamboothing.generation.generator import Generator
from musicgen_dreamboothing.model.adapter import LoraSettings, add_adapter
from musicgen_dreamboothing.model.loading import load_language_model
from musicgen_dreamboothing.training import samples as module
from musicgen_dreamboothing.training.samples import (
    SampleCallback,
    Sampler,
    file_stem,
    read_prompts,
    sample_prompts_of,
)

Folders = Callable[[str], Path]
PROMPTS = ["punk", "A slow waltz!"]
SECONDS = 0.1  # 5 frames
CPU = torch.device("cpu")


def sampler_for(folder: Path, checkpoint: Path, **options: Any) -> Sampler:
    return Sampler(read_checkpoint(checkpoint), PROMPTS, SECONDS, 1, folder, **options)


def tuned_model(folder: Path, **options: Any) -> Any:
    """A model with an adapter that changes it, in training mode; the same each time."""
    settings = LoraSettings(dropout=0.5, targets=options.pop("targets", "all"))
    torch.manual_seed(0)
    base = load_language_model(read_checkpoint(folder), torch.float32, CPU, **options)
    adapted = add_adapter(base, settings, with_text_encoder=options.get("with_text_encoder", False))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.normal_(0, 0.2)
    return adapted.train()


def whole_model(folder: Path) -> Any:
    return load_language_model(read_checkpoint(folder), torch.float32, CPU, with_text_encoder=True).train()


def run(
    folder: Path, data: Path, base: Path, *words: object, every: int | None = None, at_start: bool = True
) -> tuple[Path, str]:
    """Trains for two updates, at a rate at which each of them is heard; played where `every` is given."""
    usual = ("--max_steps", 2, "--learning_rate", 0.05, "--dtype", "float32", "--eval_strategy", "no", "--seed", 1)
    less = ("--eval_on_start", "false", "--save_strategy", "no", "--recompute", "none", "--max_train_samples", 4)
    playing = ("--sample_prompts", *PROMPTS, "--sample_steps", every, "--sample_seconds", SECONDS)
    played = (*playing, "--sample_at_start", at_start) if every is not None else ()
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main([str(word) for word in (*train_words(data, folder, base), *usual, *less, *played, *words)]) == 0
    return folder, said.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, prepared: Path) -> Path:
    """A copy of the prepared folder, which trainings bring up to date."""
    return shutil.copytree(prepared, tmp_path_factory.mktemp("samples") / "data")


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory, data: Path, tiny: Path) -> tuple[Path, str]:
    """A run that TensorBoard heard, and what it said."""
    folder = tmp_path_factory.mktemp("heard") / "out"
    return run(folder, data, tiny, "--report_to", "tensorboard", every=1)


def wave_of(path: Path) -> np.ndarray:
    return soundfile.read(path, dtype="float32", always_2d=True)[0]


def assert_played(step: Path, model: Path) -> None:
    """The files of a step sound as `generate` makes a folder sound."""
    clips = Generator(model, device="cpu", dtype="float32").generate(PROMPTS, seconds=SECONDS, seed=1, progress=False)
    for number, clip in enumerate(clips):
        heard = wave_of(step / f"{file_stem(number, clip.prompt)}.wav")
        assert np.abs(heard - np.clip(clip.wave.T, -1, 1)).max() < 1e-3


def all_weights(model: torch.nn.Module) -> dict[str, tuple[Any, ...]]:
    return {
        name: (weight.detach().clone(), weight.requires_grad, weight.data_ptr(), weight.grad)
        for name, weight in [*model.named_parameters(), *model.named_buffers()]
    }


# What is played


def test_prompts_are_those_that_were_asked_for() -> None:
    old = {
        "add_audio_samples_to_wandb": True,
        "num_samples_to_generate": 2,
        "full_generation_sample_text": "80s blues track.",
        "report_to": ["wandb"],
        "held_out_captions": ["punk, fast", "punk, slow", "punk, loud"],
    }
    published = ["punk, fast", "punk, slow", "80s blues track."]
    assert sample_prompts_of([], **old) == published
    assert sample_prompts_of([], **{**old, "full_generation_sample_text": None}) == published[:2]
    assert sample_prompts_of([], **{**old, "held_out_captions": ["punk", "punk"]}) == ["punk", "80s blues track."]
    assert sample_prompts_of([], **{**old, "add_audio_samples_to_wandb": False}) == []
    assert sample_prompts_of([], **{**old, "report_to": ["tensorboard"]}) == []
    assert sample_prompts_of(["a", "b", "a"], **old) == ["a", "b"]


def test_prompts_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("\ufeffpunk\n\n  slow waltz \npunk\n", encoding="utf-8")
    assert read_prompts([str(path)]) == ["punk", "slow waltz"]
    assert read_prompts([str(path), "waltz"]) == [str(path), "waltz"]
    for content in (b" \n", "é".encode("latin-1")):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"--sample_prompts .*prompts\.txt"):
            read_prompts([str(path)])
    with pytest.raises(UserError, match="No such file"):
        read_prompts([str(tmp_path / "none.txt")])


@pytest.mark.parametrize(
    ("prompt", "stem"),
    [("80s Punk, loud!", "07_80s-punk-loud"), ("音楽", "07_prompt"), ("../../x", "07_x"), ("a" * 99, "07_" + "a" * 40)],
)
def test_names_of_files_are_safe(prompt: str, stem: str) -> None:
    assert file_stem(7, prompt) == stem


# What it leaves behind


@pytest.mark.parametrize(
    "words",
    [
        ("--lora_dropout", 0.5, "--recompute", "light"),
        pytest.param(("--use_dora", "true", "--dtype", "bfloat16"), marks=pytest.mark.slow),
        pytest.param(
            ("--use_lora", "false", "--freeze_text_encoder", "false", "--recompute", "full"), marks=pytest.mark.slow
        ),
    ],
    ids=lambda words: words[0],
)
def test_a_training_with_samples_ends_with_the_same_weights(
    words: tuple[object, ...], data: Path, tiny: Path, tmp_path: Path
) -> None:
    plain, _ = run(tmp_path / "plain", data, tiny, *words)
    played, _ = run(tmp_path / "played", data, tiny, *words, every=1)
    (file,) = [path.name for path in plain.glob("*model.safetensors")]
    one, other = load_file(plain / file), load_file(played / file)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert len({path.read_bytes() for path in played.glob("samples/*/00_punk.wav")}) == 3


@pytest.mark.parametrize(
    "kind",
    [
        *("text", "melody-stereo", "nf4"),
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("attention", "text-encoder", "whole", "int8")),
    ],
)
def test_nothing_moves_while_a_model_is_played(
    kind: str, checkpoints: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = module.load_codec

    def drawing(*rest: Any) -> Any:
        random.random(), np.random.rand(), torch.rand(1)
        return load(*rest)

    monkeypatch.setattr(module, "load_codec", drawing)
    folder = checkpoints(kind if kind in KINDS else "text")
    if kind in ("nf4", "int8"):
        pytest.importorskip("bitsandbytes")
        model = tuned_model(folder, quantization=kind)
    elif kind == "whole":
        model = whole_model(folder)
    else:
        targets = "attention" if kind == "attention" else "all"
        model = tuned_model(folder, targets=targets, with_text_encoder=kind == "text-encoder")
    positions = model.decoder.model.decoder.embed_positions
    positions.weights = positions.weights[:4]  # the table has to grow, as it would for 41 s
    first = next(model.decoder.parameters())
    first.grad = torch.ones_like(first)
    before, modes = all_weights(model), [part.training for part in model.modules()]
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    assert len(sampler_for(tmp_path, folder).make(model, ["punk"])) == 1
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states[1:]
    assert [part.training for part in model.modules()] == modes
    after = all_weights(model)
    assert before.keys() == after.keys()
    for name, (weight, learns, place, gradient) in before.items():
        assert torch.equal(after[name][0], weight), name
        assert after[name][1:] == (learns, place, gradient), name
    assert not any(weight.is_inference() for weight in [*model.parameters(), *model.buffers()])


# What is heard


def test_before_during_and_after(heard: tuple[Path, str], tiny: Path) -> None:
    folder, said = heard
    steps = sorted((folder / "samples").iterdir())
    assert [step.name for step in steps] == ["step_0000", "step_0001", "step_0002"]
    assert_played(steps[0], tiny)
    assert_played(steps[2], folder)
    names = ["00_punk", "01_a-slow-waltz"]
    for step in steps:
        files = sorted(path.name for path in step.iterdir())
        assert files == sorted([*(f"{name}.wav" for name in names), *(f"{name}.png" for name in names), "samples.json"])
        for name in names:
            assert len(wave_of(step / f"{name}.wav")) == SECONDS * SAMPLING_RATE
            with Image.open(step / f"{name}.png") as picture:
                assert picture.height == 160
    assert len({(step / "00_punk.wav").read_bytes() for step in steps}) == 3
    assert said.count("playing 2 samples of 0.1 s at update ") == 3


def test_a_changed_text_encoder_is_heard(checkpoints: Folders, tmp_path: Path) -> None:
    """Its states are made anew each time; those of a frozen one are kept."""
    model = tuned_model(checkpoints("text"), targets=r"text_encoder\..*\.(q|v)", with_text_encoder=True)
    sampler = sampler_for(tmp_path, checkpoints("text"))
    (one,) = sampler.make(model, ["punk"])
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.mul_(-20)
    (other,) = sampler.make(model, ["punk"])
    assert not torch.equal(one.codes, other.codes)


@pytest.mark.parametrize("kind", ["text-stereo", "melody"])
def test_clips_come_prompt_by_prompt_and_do_not_depend_on_their_neighbours(
    kind: str, checkpoints: Folders, tmp_path: Path
) -> None:
    model, sampler = tuned_model(checkpoints(kind)), sampler_for(tmp_path, checkpoints(kind))
    clips = sampler.make(model, PROMPTS, 2, 0.2, 5)
    assert [(clip.prompt, clip.variation) for clip in clips] == [
        (prompt, take) for prompt in PROMPTS for take in (0, 1)
    ]
    assert all(clip.wave.shape == (sampler.checkpoint.audio_channels, 3200) for clip in clips)
    (alone,) = sampler.make(model, PROMPTS[1:], 1, 0.2, 5)
    assert torch.equal(alone.codes, clips[2].codes)
    assert not torch.equal(alone.codes, clips[3].codes)


def test_the_base_below_an_adapter_can_be_played(tiny: Path, tmp_path: Path) -> None:
    model, sampler = tuned_model(tiny), sampler_for(tmp_path, tiny)
    learns = [weight.requires_grad for weight in model.parameters()]
    base = sampler.make(load_language_model(sampler.checkpoint, torch.float32, CPU), ["punk"])[0].codes
    assert torch.equal(sampler.make(model, ["punk"], base=True)[0].codes, base)
    assert not torch.equal(sampler.make(model, ["punk"])[0].codes, base)
    assert [weight.requires_grad for weight in model.parameters()] == learns
    with pytest.raises(UserError, match="only before it"):
        sampler.make(whole_model(tiny), ["punk"], base=True)


def test_the_end_is_played_with_the_weights_that_are_saved(
    data: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best ones here: those of the first update."""
    losses = iter([1.0, 2.0, 3.0])

    def found(prediction: Any, **sides: Any) -> dict[str, float]:
        return {"loss": next(losses)}

    monkeypatch.setattr("musicgen_dreamboothing.training.trainer.evaluation_metrics", found)
    steps = ("--eval_strategy", "steps", "--eval_steps", 1, "--save_strategy", "steps", "--save_steps", 1)
    words = (*steps, "--load_best_model_at_end", "true", "--eval_fraction", 0.25)
    folder, _ = run(tmp_path / "out", data, tiny, *words, every=1, at_start=False)
    assert [path.name for path in (folder / "samples").iterdir()] == ["step_0001"]
    assert_played(folder / "samples" / "step_0001", folder)


# What can come between


def test_what_is_there_is_not_made_again(tiny: Path, tmp_path: Path) -> None:
    model, sampler = tuned_model(tiny), sampler_for(tmp_path, tiny)
    first = sampler.play(model, 3)
    times = [sample.audio.stat().st_mtime_ns for sample in first]
    assert sampler.play(None, 3) == first  # type: ignore[arg-type]  # the model isn't even looked at
    assert [sample.audio.stat().st_mtime_ns for sample in first] == times
    first[1].picture.unlink()
    assert sampler.play(model, 3) == first
    assert first[1].picture.exists()
    longer = Sampler(sampler.checkpoint, PROMPTS, 2 * SECONDS, 1, tmp_path)
    assert len(wave_of(longer.play(model, 3)[0].audio)) == 2 * SECONDS * SAMPLING_RATE
    assert json.loads((tmp_path / "step_0003" / "samples.json").read_text())["prompts"]["00_punk.wav"] == "punk"


def test_an_interrupt_leaves_no_torn_file(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, sampler = tuned_model(tiny), sampler_for(tmp_path, tiny)
    before = all_weights(model)

    replace = module.os.replace

    def interrupt(*rest: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    def replace_sounds(source: Path, target: Path) -> None:
        (interrupt if target.suffix == ".png" else replace)(source, target)

    places: list[tuple[Any, str, Any]] = [
        (CodeStream, "advance", interrupt),
        (module, "spectrogram", interrupt),
        (module.os, "replace", replace_sounds),
    ]
    for target, name, instead in places:
        with monkeypatch.context() as patch:
            patch.setattr(target, name, instead)
            with contextlib.suppress(KeyboardInterrupt):
                sampler.play(model, 1)
                pytest.fail("nothing was interrupted")
        assert not [path for path in tmp_path.rglob("*") if path.suffix not in ("", ".wav")]
    assert all(torch.equal(weight[0], before[name][0]) for name, weight in all_weights(model).items())
    assert all(soundfile.info(path).frames for path in tmp_path.rglob("*.wav"))
    assert all(sample.audio.exists() and sample.picture.exists() for sample in sampler.play(model, 1))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), "out of memory for a single clip"),
        (UserError("the prompt changes nothing in this model"), "the prompt changes nothing in this model"),
    ],
)
def test_where_nothing_can_be_played_a_line_says_so(
    error: Exception,
    told: str,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(self: Any) -> None:
        raise error

    monkeypatch.setattr(CodeStream, "advance", fail)
    callback = SampleCallback(sampler_for(tmp_path / "samples", tiny), 1, True, [])
    options, model = SimpleNamespace(load_best_model_at_end=False), tuned_model(tiny)
    weights = all_weights(model)
    for step, event in enumerate((callback.on_train_begin, callback.on_step_end, callback.on_train_end)):
        event(options, TrainerState(global_step=step, max_steps=2), TrainerControl(), model=model)
        assert f"no samples at update {step}: {told}" in capsys.readouterr().out.splitlines()[-1]
    assert not (tmp_path / "samples").exists()
    assert all(torch.equal(weight[0], weights[name][0]) for name, weight in all_weights(model).items())


def test_half_the_memory_gives_the_same_clips(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, sampler = tuned_model(tiny), sampler_for(tmp_path, tiny)
    whole = sampler.make(model, PROMPTS)
    advance = CodeStream.advance

    def narrow(self: CodeStream) -> None:
        if len(self.sequence) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        advance(self)

    monkeypatch.setattr(CodeStream, "advance", narrow)
    halves = sampler.make(model, PROMPTS)
    assert all(torch.equal(one.codes, other.codes) for one, other in zip(whole, halves, strict=True))


def test_only_the_main_process_plays(tiny: Path, tmp_path: Path) -> None:
    callback = SampleCallback(sampler_for(tmp_path / "samples", tiny), 1, True, [])
    state, options = (
        TrainerState(is_world_process_zero=False, max_steps=9),
        SimpleNamespace(load_best_model_at_end=False),
    )
    for event in (callback.on_train_begin, callback.on_epoch_begin, callback.on_step_end, callback.on_train_end):
        event(options, state, TrainerControl(), model=None)
    assert not (tmp_path / "samples").exists()


# Trackers


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """wandb and Trackio write here, and speak to nobody."""
    for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "TRACKIO_DIR"):
        (tmp_path / "trackers").mkdir(exist_ok=True)
        monkeypatch.setenv(name, str(tmp_path / "trackers"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    return tmp_path / "trackers"


def test_tensorboard_plays_every_step(heard: tuple[Path, str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, _ = heard
    (events,) = folder.rglob("events.out.tfevents.*")
    log = EventAccumulator(str(events.parent)).Reload()
    for name in ("00_punk", "01_a-slow-waltz"):
        sounds = log.Audio(f"samples/{name}")
        assert [sound.step for sound in sounds] == [0, 1, 2]
        for sound in sounds:
            wave = soundfile.read(io.BytesIO(sound.encoded_audio_string), dtype="float32")[0]
            own = wave_of(folder / "samples" / f"step_{sound.step:04d}" / f"{name}.wav")[:, 0]
            assert np.abs(wave - own).max() < 1e-3
        assert [picture.step for picture in log.Images(f"spectrograms/{name}")] == [0, 1, 2]


def wandb_records(path: Path) -> Iterator[Any]:
    """What stands in the file of an offline run: LevelDB's log of protocol buffers, in blocks of 32 KB."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, record = path.read_bytes(), 7, b""  # wandb's own mark comes first
    while place + 7 <= len(content):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, size, kind = struct.unpack_from("<IHB", content, place)
        place += 7 + size
        record += content[place - size : place]
        if kind in (1, 4):  # whole, or the last piece of one
            yield Record.FromString(record)
            record = b""


@pytest.mark.slow
def test_wandb_shows_every_step_and_before_beside_after(data: Path, tiny: Path, tmp_path: Path, offline: Path) -> None:
    wandb = pytest.importorskip("wandb")
    folder, _ = run(tmp_path / "out", data, tiny, "--report_to", "wandb", every=1)
    wandb.finish()
    wandb.teardown()  # only then all is in the file
    (log,) = offline.glob("wandb/offline-run-*/run-*.wandb")
    records = list(wandb_records(log))
    history = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in records
    ]
    shown = [line for line in history if any(key.startswith("samples/") for key in line)]
    assert [line["train/global_step"] for line in shown] == [0, 1, 2, 2]
    assert [line.get("samples/before_after/_type") for line in shown] == [None, None, None, "table-file"]

    tables = [record.artifact.manifest.contents for record in records if record.artifact.name]
    files = {step: sorted((folder / "samples" / f"step_{step:04d}").glob("0*")) for step in range(3)}
    for entries, steps in zip(tables, ([0], [1], [2], [0, 2]), strict=True):
        logged = {entry.digest for entry in entries if entry.path.startswith("media/")}
        made = [hashlib.md5(file.read_bytes()).digest() for step in steps for file in files[step]]
        assert logged == {base64.b64encode(digest).decode() for digest in made}
        (table,) = [json.loads(Path(entry.local_path).read_text()) for entry in entries if "media/" not in entry.path]
        prompts = table["columns"].index("prompt")
        assert [row[prompts] for row in table["data"]] == PROMPTS
    assert table["columns"][1:3] == ["before", "after"]
    for row in table["data"]:
        assert [cell["_type"] for cell in row[1:]] == ["audio-file", "audio-file", "image-file", "image-file"]
        assert [cell["caption"] for cell in row[1:3]] == [f"{row[0]} (update 0)", f"{row[0]} (update 2)"]


def test_trackio_plays_every_step(data: Path, tiny: Path, tmp_path: Path, offline: Path) -> None:
    pytest.importorskip("trackio")
    folder, _ = run(tmp_path / "out", data, tiny, "--report_to", "trackio", "--project", "samples", every=1)
    from trackio.sqlite_storage import SQLiteStorage

    (name,) = SQLiteStorage.get_runs("samples")
    logs = [line for line in SQLiteStorage.get_logs("samples", name) if any(key.startswith("samples/") for key in line)]
    assert [line["train/global_step"] for line in logs] == [0, 1, 2, 2]
    for line in logs[:3]:
        for stem in ("00_punk", "01_a-slow-waltz"):
            for key, kind in ((f"samples/{stem}", "wav"), (f"spectrograms/{stem}", "png")):
                made = folder / "samples" / f"step_{line['train/global_step']:04d}" / f"{stem}.{kind}"
                copy = offline / "media" / line[key]["file_path"]
                assert copy.read_bytes() == made.read_bytes()
    pairs = logs[3]["samples/before_after"]["_value"]
    assert [row["prompt"] for row in pairs] == PROMPTS
    assert all(row[side]["_type"] == "trackio.image" for row in pairs for side in ("before", "after"))
