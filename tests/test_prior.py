"""Prior preservation: the class beside the songs, as clips that the base made, as a person's own songs, or by KL."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SAMPLING_RATE, Ran, read_checkpoint, tone_song, train_words
from safetensors.torch import load_file
from test_training_loss import Pieces, assert_same, language_model, random_pieces, trainer_for

from musicgen_dreamboothing import Generator, audio
from musicgen_dreamboothing.arguments import TrainArguments
from musicgen_dreamboothing.model.footprint import Estimator, Step
from musicgen_dreamboothing.training.collator import IS_PRIOR, Collator
from musicgen_dreamboothing.training.dataset import INSTANCE, PRIOR
from musicgen_dreamboothing.training.prior import prior_tables

Cli = Callable[..., Ran]
Folders = Callable[[str], Path]
SONGS, CLASS = (4, 19, 7, 11), (9, 5, 14, 8)  # frames
QUICK = ["--max_steps", 2, "--save_strategy", "no", "--eval_strategy", "no", "--eval_on_start", "false", "--seed", 5]
PRESERVE = ["--with_prior_preservation", "true", "--class_prompt", "rock"]


def pairs(folder: Path) -> Pieces:
    checkpoint = read_checkpoint(folder)
    songs, prior = random_pieces(checkpoint, SONGS), random_pieces(checkpoint, CLASS)
    return Pieces([{INSTANCE: a, PRIOR: b} for a, b in zip(songs.pieces, prior.pieces, strict=True)])


def trained(folder: Path, output: Path, split: tuple[int, int], **options: Any) -> tuple[dict[str, float], Any]:
    """The log line of the one update that four pairs make, and the weights behind it."""
    sizes = {"per_device_train_batch_size": split[0], "gradient_accumulation_steps": split[1]}
    trainer = trainer_for(language_model(folder), pairs(folder), output, **sizes, **options)
    trainer.train()
    weights = {name: weight.detach() for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    return next(line for line in trainer.state.log_history if "loss" in line), weights


def mean_loss(model: Any, pieces: list[Any]) -> float:
    with torch.no_grad():
        outputs = model(**Collator(64)(pieces))
    return float((outputs.nll.sum(0) / outputs.count.sum(0)).mean())


# The loss


@pytest.mark.parametrize(("kind", "prior"), [("text", "clips"), ("melody-stereo", "kl")])
def test_an_update_is_the_same_however_its_pairs_are_split(
    kind: str, prior: str, checkpoints: Folders, tmp_path: Path
) -> None:
    folder = checkpoints(kind)
    log, weights = trained(folder, tmp_path, (4, 1), prior=prior, prior_loss_weight=0.5)
    for split in ((1, 4), (2, 2)):
        other_log, other = trained(folder, tmp_path, split, prior=prior, prior_loss_weight=0.5)
        for key in ("loss", "instance_loss", "prior_loss", "grad_norm", "ce_q1"):
            assert other_log[key] == pytest.approx(log[key], rel=1e-5), key
        assert_same(other, weights)


@pytest.mark.parametrize("weight", [0.5])
def test_the_loss_is_that_of_the_songs_and_the_weighted_one_of_their_class(
    weight: float, tiny: Path, tmp_path: Path
) -> None:
    log, _ = trained(tiny, tmp_path, (2, 2), prior_loss_weight=weight)
    model, pieces = language_model(tiny), pairs(tiny).pieces
    songs, prior = (mean_loss(model, [pair[part] for pair in pieces]) for part in (INSTANCE, PRIOR))
    assert log["instance_loss"] == pytest.approx(songs, rel=1e-5)
    assert log["prior_loss"] == pytest.approx(prior, rel=1e-5)
    assert log["loss"] == pytest.approx(songs + weight * prior, rel=1e-5)
    assert log["ppl"] == pytest.approx(np.exp(songs), rel=1e-4)  # figures of the codebooks are those of the songs


def test_without_weight_the_class_changes_nothing(tiny: Path, tmp_path: Path) -> None:
    _, weights = trained(tiny, tmp_path, (2, 2), prior_loss_weight=0.0)
    alone = trainer_for(
        language_model(tiny),
        random_pieces(read_checkpoint(tiny), SONGS),
        tmp_path,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
    )
    alone.train()
    assert_same(weights, {name: p.detach() for name, p in alone.model.named_parameters() if p.requires_grad})


@pytest.mark.parametrize("kind", ["text", "melody"])
def test_the_divergence_is_that_of_the_distributions_with_and_without_the_adapter(
    kind: str, checkpoints: Folders, tmp_path: Path
) -> None:
    folder = checkpoints(kind)
    log, _ = trained(folder, tmp_path, (4, 1), prior="kl")
    model, pieces = language_model(folder), [pair[PRIOR] for pair in pairs(folder).pieces]
    batch = Collator(64)(pieces)
    labels = batch.pop("labels")

    def distributions() -> torch.Tensor:
        base = model.get_base_model()
        return base.logits(base.states(**batch)).log_softmax(-1)  # [B, K, S, V]

    with torch.no_grad():
        found = distributions()
        with model.disable_adapter():
            wanted = distributions()
    apart = (wanted.exp() * (wanted - found)).sum(-1)
    valid = labels >= 0
    by_codebook = (apart * valid).sum((0, 2)) / valid.sum((0, 2))
    assert log["prior_loss"] > 1e-3
    assert log["prior_loss"] == pytest.approx(float(by_codebook.mean()), rel=1e-4)


def test_the_divergence_of_an_untrained_adapter_is_nothing_and_pulls_nowhere(tiny: Path) -> None:
    from musicgen_dreamboothing.model.adapter import LoraSettings, add_adapter

    model = add_adapter(language_model(tiny, adapted=False), LoraSettings(r=4))
    batch = Collator(64)([pair[PRIOR] for pair in pairs(tiny).pieces])
    rows = {name: values for name, values in batch.items() if name != "labels"}
    with torch.no_grad(), model.disable_adapter():
        said = model.get_base_model().states(**rows)
    loss = model(**batch, base_states=said).nll.sum()
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-4)
    gradients = [p.grad for p in model.parameters() if p.requires_grad and p.grad is not None]
    assert gradients
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e-4


def test_pairs_are_batched_songs_first(tiny: Path) -> None:
    pieces = pairs(tiny).pieces
    batch = Collator(64)(pieces)
    assert batch[IS_PRIOR].tolist() == [False] * 4 + [True] * 4
    alone = Collator(64)([pair[PRIOR] for pair in pieces])
    assert torch.equal(batch["codes"][4:, :, :14], alone["codes"])


# The clips of the class


def options_for(data: Path, base: Path, output: Path, **more: Any) -> TrainArguments:
    return TrainArguments(
        dataset_name=str(data),
        output_dir=str(output),
        model_name_or_path=str(base),
        use_cpu=True,
        with_prior_preservation=True,
        class_prompt="rock",
        **more,
    )


def test_class_clips_are_made_once_and_each_depends_on_nothing_but_its_number(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, data = read_checkpoint(tiny), tmp_path / "data"

    def made(clips: int, **more: Any) -> list[Any]:
        options = options_for(data, tiny, tmp_path / "run", num_class_clips=clips, **more)
        return prior_tables(options, checkpoint, data, 1.0).train["codes"]

    five = made(5)
    assert np.asarray(five).shape == (5, checkpoint.codebooks, round(checkpoint.frame_rate))
    assert len({json.dumps(codes) for codes in five}) == 5
    assert "the base makes 5 clips of 'rock', once" in capsys.readouterr().out
    files = {path: path.stat().st_mtime_ns for path in (data / "class").glob("*/*.npy")}
    next(path for path in files if path.name == "00001.npy").unlink()
    assert made(3) == five[:3]  # the missing one is made again, alone, and is the same
    assert "the base makes 1 clip of" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setattr(Generator, "__init__", None)  # no model is needed for what is there
        assert made(5) == five
    assert made(2, seed=7) != five[:2]


def test_a_run_with_clips_of_the_class(cli: Cli, prepared: Path, tiny: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(prepared, data)

    def run(name: str, *words: object) -> Ran:
        ran = cli(*train_words(data, tmp_path / name, tiny), *QUICK, "--num_class_clips", 3, *words)
        assert ran.code == 0, ran.err
        return ran

    told = run("with", *PRESERVE).out
    assert "the base makes 3 clips of 'rock', once" in told
    assert "with class clips" in told  # the plan knows of them
    assert "the base makes" not in run("again", *PRESERVE).out
    run("kl", *PRESERVE, "--prior", "kl")
    run("without")
    found = {
        name: load_file(tmp_path / name / "adapter_model.safetensors") for name in ("with", "again", "kl", "without")
    }
    assert_same(found["with"], found["again"])
    for other in ("kl", "without"):
        assert any(not torch.equal(found["with"][key], found[other][key]) for key in found["with"])
    refused = cli(*train_words(data, tmp_path / "with", tiny), *QUICK, *PRESERVE, "--prior_loss_weight", 0.3)
    assert refused.code == 1
    assert "prior_loss_weight" in refused.err


def test_songs_of_the_class_may_be_a_persons_own(cli: Cli, prepared: Path, tiny: Path, tmp_path: Path) -> None:
    data, own = tmp_path / "data", tmp_path / "own"
    shutil.copytree(prepared, data)
    own.mkdir()
    for number in range(2):
        audio.write(own / f"rock {number}.wav", tone_song(4.0, 40 + number), SAMPLING_RATE)
    words = [*train_words(data, tmp_path / "run", tiny), *QUICK, *PRESERVE, "--class_data_dir", own]
    lengths = ("--max_duration_in_seconds", 3, "--min_duration_in_seconds", 1)
    ran = cli(*words, "--normalize_loudness", "false", *lengths)
    assert ran.code == 0, ran.err
    assert "is prepared already" not in ran.out  # these options cut the songs of the class
    assert "songs of the class 'rock':" in ran.out
    assert ", 3.1 s a clip:" in ran.out  # the plan of the memory, with the delay; clips of the style have 2 s
    assert "4 clips from 2 songs" in ran.out
    lines = (data / "class" / "own" / "clips" / "metadata.jsonl").read_text().splitlines()
    assert {json.loads(line)["text"] for line in lines} == {"rock"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--with_prior_preservation", "true"], "--class_prompt rock"),
        ([*PRESERVE, "--prior", "both"], "it takes clips, kl"),
        ([*PRESERVE, "--num_class_clips", 0], "--num_class_clips 0 must be at least 1"),
        ([*PRESERVE, "--prior_loss_weight", -1], "--prior_loss_weight -1 must be at least 0"),
        ([*PRESERVE, "--prior", "kl", "--use_lora", "false"], "--use_lora false has none"),
        ([*PRESERVE, "--prior", "kl", "--lora_init", "olora"], "--lora_init olora changes; choose one"),
        ([*PRESERVE, "--class_data_dir", "no-such-folder"], "no-such-folder"),
    ],
)
def test_options_that_do_not_go_together(
    cli: Cli, prepared: Path, tiny: Path, tmp_path: Path, words: list[object], told: str
) -> None:
    ran = cli(*train_words(prepared, tmp_path / "run", tiny), *QUICK, *words)
    assert ran.code == 1
    assert told in ran.err
    assert len(ran.err.splitlines()) == 1


# Memory


@pytest.mark.parametrize("divergence", [False, True])
def test_the_plan_counts_a_clip_of_the_class_for_each_of_the_songs(divergence: bool, tiny: Path) -> None:
    checkpoint = read_checkpoint(tiny)
    alone = Estimator(checkpoint, Step(64)).footprint("none", 4)
    both = Estimator(checkpoint, Step(64, with_prior=True, with_divergence=divergence)).footprint("none", 2)
    assert both.kept == pytest.approx(alone.kept, rel=0.15)
