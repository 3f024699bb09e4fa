"""The loss of an update is the same however its clips are split, and a piece is the same whoever draws it."""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from conftest import Ran, read_checkpoint, train_words
from safetensors.torch import load_file
from torch.utils.data import Dataset
from transformers import set_seed

from musicgen_dreamboothing.arguments import TrainArguments
from musicgen_dreamboothing.data.tokens.tables import ROW_FEATURES
from musicgen_dreamboothing.data.tokens.text_states import STATE_FEATURES
from musicgen_dreamboothing.model.adapter import LoraSettings, add_adapter
from musicgen_dreamboothing.model.checkpoint import Checkpoint
from musicgen_dreamboothing.model.delay import IGNORED, ignore_prompt, training_steps
from musicgen_dreamboothing.model.loading import load_language_model
from musicgen_dreamboothing.training.collator import Collator
from musicgen_dreamboothing.training.dataset import ClipDataset, Drawing, EpochSampler
from musicgen_dreamboothing.training.trainer import CodebookTrainer, codebook_metrics

CPU = torch.device("cpu")
Folders = Callable[[str], Path]
Piece = dict[str, Any]


class Pieces(Dataset[Piece]):
    """Ready pieces, addressed as `ClipDataset` is: epoch * length + clip."""

    def __init__(self, pieces: list[Piece]) -> None:
        self.pieces = pieces

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, index: int) -> Piece:
        return self.pieces[index % len(self.pieces)]


def random_pieces(checkpoint: Checkpoint, lengths: tuple[int, ...], *, prompts: bool = False) -> Pieces:
    """Pieces of different lengths with captions of different lengths; every third one without its caption.

    With `prompts` every other piece continues a prompt of half its length.
    """
    rng = np.random.default_rng(0)
    pieces = []
    for number, frames in enumerate(lengths):
        codes = torch.from_numpy(rng.integers(0, checkpoint.codebook_size, (checkpoint.codebooks, frames)))
        inputs, labels = training_steps(codes, checkpoint.delay, checkpoint.start_token_id)
        if prompts and number % 2:
            labels = ignore_prompt(labels, checkpoint.delay, frames // 2)
        width = checkpoint.config.text_encoder.hidden_size
        states = rng.standard_normal((3 + 2 * number, width)).astype(np.float16)
        pieces.append(
            {"codes": inputs, "labels": labels, "text_states": states, "keep_caption": number % 3 > 0, "caption": ""}
        )
    return Pieces(pieces)


def language_model(folder: Path, adapted: bool = True) -> Any:
    """A fresh model, the same each time; with an adapter whose B is not zero, so that A has gradients too."""
    model = load_language_model(read_checkpoint(folder), torch.float32, CPU)
    if not adapted:
        return model
    set_seed(0)
    wrapped = add_adapter(model, LoraSettings(r=4))
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_B" in name or "lora_embedding_B" in name:
                weight.normal_(std=0.05)
    return wrapped


def trainer_for(
    model: Any, pieces: Pieces, folder: Path, evaluated: Pieces | None = None, **options: Any
) -> CodebookTrainer:
    usual = {
        "output_dir": str(folder),
        "use_cpu": True,
        "num_train_epochs": 1,
        "optim": "sgd",  # Adam's first update is the gradient's sign, which a rounding can turn
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "eval_strategy": "no",
        "eval_on_start": False,
        "save_strategy": "no",
        "disable_tqdm": True,
        "label_names": ["labels"],
    }
    arguments = TrainArguments(**{**usual, **options})
    checkpoint = read_checkpoint(Path(model.config._name_or_path))
    return CodebookTrainer(
        model,
        arguments,
        data_collator=Collator(checkpoint.pad_token_id),
        train_dataset=pieces,
        eval_dataset=evaluated,
    )


def trained(
    folder: Path, pieces: Pieces, split: tuple[int, int], output: Path, adapted: bool = True
) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    """The log of an epoch with this (batch size, accumulation), and the weights after it."""
    trainer = trainer_for(
        language_model(folder, adapted),
        pieces,
        output,
        per_device_train_batch_size=split[0],
        gradient_accumulation_steps=split[1],
    )
    trainer.train()
    log = [line for line in trainer.state.log_history if "loss" in line]
    weights = {name: weight.detach() for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    return log, weights


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, weight in first.items():
        assert torch.allclose(weight, second[name], atol=1e-5), name


# However it is split


@pytest.mark.parametrize(
    ("kind", "adapted", "prompts"),
    [
        pytest.param("text", True, False, marks=pytest.mark.slow),
        ("melody-stereo", True, True),
        ("text", False, False),
    ],
)
def test_an_update_is_the_same_however_its_clips_are_split(
    kind: str, adapted: bool, prompts: bool, checkpoints: Folders, tmp_path: Path
) -> None:
    folder = checkpoints(kind)
    pieces = random_pieces(read_checkpoint(folder), (4, 19, 7, 11, 5, 16, 8, 13), prompts=prompts)
    logs, weights = trained(folder, pieces, (8, 1), tmp_path, adapted)
    assert len(logs) == 1
    for split in ((1, 8), (2, 4)):
        other_logs, other_weights = trained(folder, pieces, split, tmp_path, adapted)
        for key in ("loss", "grad_norm", "ce_q1", "ppl_q4"):
            assert other_logs[0][key] == pytest.approx(logs[0][key], rel=1e-5), key
        assert_same(other_weights, weights)


def test_a_short_last_window_weighs_as_one_batch_of_its_clips(checkpoints: Folders, tmp_path: Path) -> None:
    """Six clips in updates of four: the second update has two, in one micro-batch or in two."""
    melody = checkpoints("melody")
    pieces = random_pieces(read_checkpoint(melody), (4, 19, 7, 11, 5, 16))
    whole_logs, whole = trained(melody, pieces, (4, 1), tmp_path)
    assert len(whole_logs) == 2
    for split in ((1, 4), (2, 2)):
        logs, weights = trained(melody, pieces, split, tmp_path)
        assert [line["loss"] for line in logs] == pytest.approx([line["loss"] for line in whole_logs], rel=1e-5)
        assert_same(weights, whole)


@pytest.mark.parametrize(("kind", "prompts"), [("text", True), ("melody-stereo", False)])
def test_the_logged_loss_is_the_papers(kind: str, prompts: bool, checkpoints: Folders, tmp_path: Path) -> None:
    """Mean over codebooks of the mean over all valid steps of that codebook in the update; not a mean of means."""
    folder = checkpoints(kind)
    pieces = random_pieces(read_checkpoint(folder), (4, 19, 7, 11), prompts=prompts)
    logs, _ = trained(folder, pieces, (1, 4), tmp_path)
    model = language_model(folder)
    with torch.no_grad():
        outputs = [model(**Collator(64)([piece])) for piece in pieces.pieces]
    nll, count = (torch.cat([output[key] for output in outputs]) for key in ("nll", "count"))
    by_codebook = nll.sum(0) / count.sum(0)
    assert logs[0]["loss"] == pytest.approx(by_codebook.mean().item(), rel=1e-5)
    assert logs[0]["loss"] != pytest.approx((nll / count).mean().item(), rel=1e-4)
    names = [key for key in logs[0] if key.startswith("ce_q")]
    assert names == [f"ce_q{number}" for number in range(1, len(by_codebook) + 1)]
    assert [logs[0][name] for name in names] == pytest.approx(by_codebook.tolist(), rel=1e-5)
    assert logs[0]["ppl_q2"] == pytest.approx(math.exp(by_codebook[1].item()), rel=1e-4)
    assert logs[0]["ppl"] == pytest.approx(math.exp(logs[0]["loss"]), rel=1e-4)


def test_lines_of_the_log_do_not_run_into_each_other(tiny: Path, tmp_path: Path) -> None:
    """Each line's codebooks are those of its own updates, also where a line covers several."""
    pieces = random_pieces(read_checkpoint(tiny), (9, 9, 9, 9))

    def logged(every: int) -> list[float]:
        options = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "logging_steps": every}
        trainer = trainer_for(language_model(tiny), pieces, tmp_path, **options)
        trainer.train()
        return [line["ce_q1"] for line in trainer.state.log_history if "loss" in line]

    each = logged(1)
    assert logged(2) == pytest.approx([(each[0] + each[1]) / 2, (each[2] + each[3]) / 2], rel=1e-5)


TWO = ["--dtype", "float32", "--seed", 3, "--use_cpu", "true", "--num_train_epochs", 1]
TWO += ["--normalize_loudness", "false"]  # as the songs of the fixture are prepared
TWO += ["--max_train_samples", 11, "--continuation_fraction", 0.5]


@pytest.fixture(scope="module", autouse=True)
def two_processes(
    prepared: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A training under `accelerate launch` and its folder; it is mostly imports, so it runs beside the other tests.

    The launcher's --cpu would start one process only: for more it asks for MPI.
    """
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launch = f"--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --main_process_port {port}"
    words = train_words(prepared.parent / "songs", folder / "run", tiny)
    words += [*TWO, "--per_device_train_batch_size", 2]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "accelerate.commands.launch", *launch.split(), "--dynamo_backend", "no"),
                *("-m", "musicgen_dreamboothing", *map(str, words)),
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
        )
        yield folder, process
        process.terminate()
        process.wait()


# What is trained


@pytest.mark.parametrize("kind", ["text-stereo", "melody"])
def test_an_adapter_learns_and_its_base_stays_bit_equal(kind: str, checkpoints: Folders, tmp_path: Path) -> None:
    """With AdamW and the defaults of `train`; B begins at zero, so A moves from the second update on."""
    folder = checkpoints(kind)
    set_seed(0)
    model = add_adapter(load_language_model(read_checkpoint(folder), torch.float32, CPU), LoraSettings())
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    pieces = random_pieces(read_checkpoint(folder), (9, 12, 15, 8))
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "optim": "adamw_torch"}
    trainer_for(model, pieces, tmp_path, **options).train()
    changed = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert changed == {name for name in before if "lora_" in name}
    assert {name for name, weight in model.named_parameters() if weight.requires_grad} == changed


@pytest.mark.parametrize("kind", ["text", pytest.param("melody-stereo", marks=pytest.mark.slow)])
def test_a_full_fine_tune_keeps_the_encoders_and_moves_the_rest(
    kind: str, prepared: Path, checkpoints: Folders, tmp_path: Path, cli: Callable[..., Ran]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(prepared, data)
    quick = ["--max_train_samples", 4, "--num_train_epochs", 1, "--eval_strategy", "no", "--eval_on_start", "false"]
    words = [*train_words(data, tmp_path / "run", checkpoints(kind)), *quick, "--use_lora", "false"]
    ran = cli(*words, "--eval_fraction", 0, "--save_strategy", "no")
    assert ran.code == 0, ran.err
    base, tuned = (load_file(path / "model.safetensors") for path in (checkpoints(kind), tmp_path / "run"))
    assert base.keys() == tuned.keys()
    moved = {name for name in base if not torch.equal(base[name], tuned[name])}
    assert moved == {name for name in base if not name.startswith(("text_encoder.", "audio_encoder."))}


@pytest.mark.parametrize("adapted", [True, False])
def test_only_a_full_fine_tune_is_autocast(
    adapted: bool, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where fp16 needs a loss scaler, which brings autocast with it; a CPU has it for bf16."""
    build = CodebookTrainer._build_accelerator_args
    mixed = {"mixed_precision": "bf16"}
    monkeypatch.setattr(
        CodebookTrainer, "_build_accelerator_args", lambda trainer, **options: build(trainer, **options) | mixed
    )
    model, seen = language_model(tiny, adapted), []
    part = model.decoder.model.decoder.layers[0]
    part.register_forward_hook(lambda *rest: seen.append(torch.is_autocast_enabled("cpu")))
    pieces = random_pieces(read_checkpoint(tiny), (9, 9))
    trainer = trainer_for(model, pieces, tmp_path, pieces, use_lora=adapted)
    trainer.train()
    trainer.evaluate()
    assert seen == [not adapted] * len(seen)
    assert len(seen) > 1


# Evaluation


@pytest.mark.parametrize("kind", ["text", "melody"])
def test_evaluation_is_an_exact_mean_whatever_its_batches(kind: str, checkpoints: Folders, tmp_path: Path) -> None:
    folder = checkpoints(kind)
    held_out = random_pieces(read_checkpoint(folder), (5, 21, 8, 13, 4))
    model = language_model(folder)
    with torch.no_grad():
        outputs = [model(**Collator(64)([piece])) for piece in held_out.pieces]
    nll, count = (torch.cat([output[key] for output in outputs]).sum(0) for key in ("nll", "count"))
    expected = {f"eval_{key}": value for key, value in codebook_metrics(nll, count).items()}
    assert expected["eval_loss"] == pytest.approx((nll / count).mean().item())
    assert [key for key in expected if "_q" in key] == [
        f"eval_{what}_q{number}" for number in (1, 2, 3, 4) for what in ("ce", "ppl")
    ]
    for batch_size in (1, 2, 3, 8):
        trainer = trainer_for(model, held_out, tmp_path, held_out, per_device_eval_batch_size=batch_size)
        found = trainer.evaluate()
        assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-5)


# Pieces


Tables = tuple[datasets.Dataset, datasets.Dataset]


def tables_of(*rows: tuple[int, float, float]) -> Tables:
    """Token tables of clips, each given as song, start and seconds.

    Frame t of song s has code 20_000 s + t in every codebook, so that codes tell where they are from.
    """
    clips = []
    for song, start, seconds in rows:
        first = 20_000 * song + round(start * 50)
        codes = np.tile(np.arange(first, first + round(seconds * 50)), (4, 1)).tolist()
        place = {"source": f"song {song}", "start": start, "seconds": seconds}
        clips.append({**place, "text": f"clip at {start}", "variants": [], "digest": "", "codes": codes})
    columns = {name: feature for name, feature in ROW_FEATURES.items() if name not in ("file_name", "melody")}
    codes_column = {"codes": datasets.List(datasets.List(datasets.Value("uint16")))}
    features = datasets.Features({**columns, "digest": datasets.Value("string"), **codes_column})
    captions = sorted({clip["text"] for clip in clips})
    states = [[[float(number)] * 3] * (number + 1) for number, _ in enumerate(captions)]
    return (
        datasets.Dataset.from_list(clips, features=features),
        datasets.Dataset.from_dict(
            {"text": captions, "states": states, "length": [len(state) for state in states]}, features=STATE_FEATURES
        ),
    )


@pytest.fixture
def tables() -> Tables:
    """Two songs of 5.5 s and 4 s in clips that stand in no order."""
    return tables_of((1, 0.0, 2.0), (0, 0.0, 2.0), (1, 2.0, 2.0), (0, 4.0, 1.5), (0, 2.0, 2.0))


def pieces_of(tables: Tables, tiny: Path, **drawing: Any) -> ClipDataset:
    return ClipDataset(*tables, read_checkpoint(tiny), Drawing(**drawing))


def frames_of(piece: Piece) -> list[int]:
    """The frames that a piece holds: codebook 1 is not delayed."""
    labels = piece["labels"][0].tolist()
    return [int(label) for label in labels]


def same(first: Piece, second: Piece) -> bool:
    tensors = all(torch.equal(first[key], second[key]) for key in ("codes", "labels"))
    return tensors and all(first[key] == second[key] for key in ("caption", "keep_caption"))


def test_a_piece_depends_on_seed_epoch_and_clip_alone(tables: Tables, tiny: Path) -> None:
    drawing = {"crop_frames": 20, "random_crop": True, "caption_dropout": 0.5}
    first, again, other = (pieces_of(tables, tiny, seed=seed, **drawing) for seed in (1, 1, 2))
    backwards = {index: again[index] for index in reversed(range(15))}
    assert all(same(first[index], backwards[index]) for index in range(15))
    assert any(not same(first[index], first[index + 5]) for index in range(5))  # the next epoch
    assert any(not same(first[index], other[index]) for index in range(5))
    starts = {frames_of(first[5 * epoch + 1])[0] for epoch in range(40)}
    assert len(starts) > 10  # other crops in other epochs


def test_pieces_run_across_clips_of_a_song_and_never_into_another(tables: Tables, tiny: Path) -> None:
    pieces = pieces_of(tables, tiny, crop_frames=60, random_crop=True)
    crossed = set()
    for index in range(5 * 30):
        frames = frames_of(pieces[index])
        assert frames == list(range(frames[0], frames[0] + 63))  # 60, and max(delay) more
        song, first = divmod(frames[0], 20_000)
        assert first + 63 <= (275, 200)[song]
        crossed |= {border for border in (100, 200) if first < border < first + 63}
    assert crossed == {100, 200}


def test_pieces_do_not_jump_over_a_clip_that_was_deleted(tiny: Path) -> None:
    """Song 0 lacks its middle; what is left of song 1 begins at the second at which song 0 ends."""
    tables = tables_of((0, 0.0, 2.0), (0, 4.0, 2.0), (1, 6.0, 2.0))
    pieces = pieces_of(tables, tiny, crop_frames=60, random_crop=True)
    for index in range(3 * 20):
        frames = frames_of(pieces[index])
        assert frames == list(range(frames[0], frames[0] + 63))


def test_every_frame_of_a_song_is_drawn(tables: Tables, tiny: Path) -> None:
    pieces = pieces_of(tables, tiny, crop_frames=20, random_crop=True)
    seen = {frame for index in range(5 * 60) for frame in frames_of(pieces[index])}
    assert seen == {*range(275), *range(20_000, 20_200)}


@pytest.mark.parametrize(("crop", "expected"), [(None, 103), (20, 23), (100, 103), (197, 200), (198, 200), (900, 200)])
def test_a_crop_has_max_delay_frames_more_where_there_is_room(
    crop: int | None, expected: int, tables: Tables, tiny: Path
) -> None:
    """By default a piece is as long as the longest clip; rows 0 and 2 are of the second song, which has 200 frames."""
    for epoch in range(3):
        piece = pieces_of(tables, tiny, crop_frames=crop, random_crop=True)[5 * epoch]
        assert piece["codes"].shape == piece["labels"].shape == (4, expected)
        valid = (piece["labels"] != IGNORED).sum(-1).tolist()
        assert valid == [expected - shift for shift in (0, 1, 2, 3)]
        if crop and crop + 3 <= 200:
            assert valid[-1] == crop  # nothing of the crop is lost to the delay


def test_without_random_crops_pieces_begin_where_clips_do(tables: Tables, tiny: Path) -> None:
    pieces = pieces_of(tables, tiny, crop_frames=20)
    assert [frames_of(pieces[index])[0] for index in range(5)] == [20_000, 0, 20_100, 200, 100]
    assert all(same(pieces[index], pieces[index + 5]) for index in range(5))


def test_evaluation_takes_clips_as_they_are(tables: Tables, tiny: Path) -> None:
    pieces = pieces_of(tables, tiny)
    assert [len(frames_of(pieces[index])) for index in range(5)] == [100, 100, 100, 75, 100]
    assert [pieces[index]["caption"] for index in range(5)] == [
        "clip at 0.0", "clip at 0.0", "clip at 2.0", "clip at 4.0", "clip at 2.0",
    ]  # fmt: skip


@pytest.mark.parametrize(("rate", "least", "most"), [(0.0, 100, 100), (0.2, 70, 90), (1.0, 0, 0)])
def test_captions_are_dropped_at_the_rate_that_was_asked_for(
    rate: float, least: int, most: int, tables: Tables, tiny: Path
) -> None:
    pieces = pieces_of(tables, tiny, crop_frames=4, random_crop=True, caption_dropout=rate)
    assert least <= sum(pieces[index]["keep_caption"] for index in range(100)) <= most


def prompt_of(piece: Piece) -> int:
    """Frames at the beginning of a piece that have no label in the first codebook."""
    return int((piece["labels"][0] == IGNORED).sum())


@pytest.mark.parametrize(("fraction", "least", "most"), [(0.5, 12, 28), (1.0, 40, 40)])
def test_a_share_of_pieces_continues_a_prompt_and_all_else_stays(
    fraction: float, least: int, most: int, tiny: Path
) -> None:
    """Songs of 8 s: prompts are 100 frames to two thirds of the piece, drawn anew in every epoch."""
    tables = tables_of(*((song, 0.0, 8.0) for song in range(3)))
    drawing = {"crop_frames": 297, "random_crop": True, "caption_dropout": 0.5, "vary_captions": True, "seed": 1}
    plain, prompted = (pieces_of(tables, tiny, continuation_fraction=share, **drawing) for share in (0.0, fraction))
    prompts = []
    for index in range(40):
        usual, piece = plain[index], prompted[index]
        prompt = prompt_of(piece)
        expected = ignore_prompt(usual["labels"], (0, 1, 2, 3), prompt)
        assert same(piece, {**usual, "labels": expected})
        prompts += [prompt] * (prompt > 0)
    assert least <= len(prompts) <= most
    assert 100 <= min(prompts) < 120 < 180 < max(prompts) <= 200
    assert prompt_of(plain[0]) == 0


@pytest.mark.parametrize(("crop", "prompt"), [(147, 100), (87, 60), (1, 2)])
def test_the_prompt_of_a_short_piece_is_two_thirds_of_it(crop: int, prompt: int, tables: Tables, tiny: Path) -> None:
    pieces = pieces_of(tables, tiny, crop_frames=crop, random_crop=True, continuation_fraction=1.0)
    for index in range(20):
        labels = pieces[index]["labels"]
        assert labels.shape[1] == crop + 3
        assert (labels != IGNORED).sum(1).tolist() == [max(crop + 3 - prompt - shift, 0) for shift in (0, 1, 2, 3)]


def test_a_piece_has_the_states_of_its_caption(tables: Tables, tiny: Path) -> None:
    pieces = pieces_of(tables, tiny)
    shapes = {pieces[index]["caption"]: pieces[index]["text_states"].shape for index in range(5)}
    assert shapes == {"clip at 0.0": (1, 3), "clip at 2.0": (2, 3), "clip at 4.0": (3, 3)}


def test_each_epoch_has_every_clip_once_in_an_order_of_its_own() -> None:
    sampler, twin = EpochSampler(7, seed=1), EpochSampler(7, seed=1)
    orders = []
    for epoch in range(3):
        sampler.epoch = twin.epoch = epoch
        order = list(sampler)
        assert order == list(twin)
        assert sorted(order) == list(range(7 * epoch, 7 * epoch + 7))
        orders.append([index % 7 for index in order])
    assert len(sampler) == 7
    assert orders[0] != orders[1] != orders[2]


def test_the_trainer_tells_the_epoch(tiny: Path, tmp_path: Path) -> None:
    asked: list[int] = []

    class Remembering(Pieces):
        def __getitem__(self, index: int) -> Piece:
            asked.append(index)
            return super().__getitem__(index)

    pieces = Remembering(random_pieces(read_checkpoint(tiny), (5, 6, 7)).pieces)
    options = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "num_train_epochs": 3}
    trainer_for(language_model(tiny), pieces, tmp_path, **options).train()
    assert [sorted(asked[first : first + 3]) for first in (0, 3, 6)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


# Last, for it waits for the processes that began with the first test.


def test_two_processes_equal_one_with_twice_the_batch(
    two_processes: tuple[Path, subprocess.Popen[str]],
    prepared: Path,
    tiny: Path,
    tmp_path: Path,
    cli: Callable[..., Ran],
) -> None:
    """11 clips, four to a micro-batch, two micro-batches to an update.

    The last update of the epoch has one, in which a process gets a single clip that is its own.
    """
    one = cli(*train_words(prepared, tmp_path / "run", tiny), *TWO, "--per_device_train_batch_size", 4)
    assert one.code == 0, one.err
    folder, process = two_processes
    code, log = process.wait(), (folder / "log").read_text()
    assert code == 0, log
    assert log.count("Training on 11 clips") == 1  # one process speaks
    single, double = (json.loads((path / "run" / "run.json").read_text())["summary"] for path in (tmp_path, folder))
    assert single["updates"] == double["updates"] == 2
    for key in ("train_loss", "eval_loss", "eval_ce_q4", "audio_seconds"):
        assert double[key] == pytest.approx(single[key], rel=1e-5), key
    assert_same(*(load_file(path / "run" / "adapter_model.safetensors") for path in (tmp_path, folder)))
