"""Stereo from end to end: what is on one side of a song stays there, and each side has its own loss."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SAMPLING_RATE, read_checkpoint, tables_in, tone_song, train_words

from musicgen_dreamboothing import Generator, audio
from musicgen_dreamboothing.cli import main
from musicgen_dreamboothing.data.tokens.tables import Tables
from musicgen_dreamboothing.generation.decoding import Sampling
from musicgen_dreamboothing.model import codec
from musicgen_dreamboothing.model.checkpoint import load_codec
from musicgen_dreamboothing.model.delay import undo_delay
from musicgen_dreamboothing.training.collator import Collator
from musicgen_dreamboothing.training.dataset import ClipDataset, Drawing

CPU = torch.device("cpu")
SIDES = ("left", "right")
SECONDS = 2
PITCHES = {"left": 440.0, "right": 660.0}


def marker(song: str) -> np.ndarray:
    """A stereo song `[2, S]` with a tone that comes and goes on the side that it is named after, and silence beside."""
    time = np.arange(SECONDS * SAMPLING_RATE) / SAMPLING_RATE
    wave = np.zeros((2, len(time)), np.float32)
    wave[SIDES.index(song)] = 0.5 * np.sin(2 * np.pi * PITCHES[song] * time) * (0.6 + 0.4 * np.sin(6 * np.pi * time))
    return wave


@pytest.fixture(scope="module")
def base(checkpoints: Callable[[str], Path]) -> Path:
    return checkpoints("text-stereo")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """A run that has learned both marker songs by heart and held out a mono song; what was printed is in `said.txt`.

    Songs are brought to one loudness, as by default.
    """
    root = tmp_path_factory.mktemp("stereo")
    songs = root / "songs"
    waves = {f"train/{song}": marker(song) for song in SIDES} | {"test/mono": tone_song(SECONDS, 0)}
    for name, wave in waves.items():
        path = songs / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        audio.write(path, wave, SAMPLING_RATE)
        path.with_suffix(".txt").write_text(path.stem)
    words = [
        *train_words(songs, root / "run", base),
        *(
            "--eval_split_name",
            "test",
            "--use_lora",
            "false",
            "--learning_rate",
            0.01,
            "--lr_scheduler_type",
            "constant",
        ),
        *("--num_train_epochs", 16, "--early_stopping_patience", 0, "--gradient_accumulation_steps", 1),
        *("--random_crop", "false", "--eval_strategy", "no", "--save_strategy", "no", "--logging_steps", 8),
    ]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main([str(word) for word in words]) == 0
    (root / "run" / "said.txt").write_text(said.getvalue())
    return root / "run"


@pytest.fixture(scope="module")
def tables(run: Path, base: Path) -> Tables:
    return tables_in(run / "data", base)


@pytest.fixture(scope="module")
def codes(tables: Tables) -> dict[str, torch.Tensor]:
    """The stored codes `[K, T]` of each song."""
    rows = [*tables.train.with_format("numpy"), *tables.held_out.with_format("numpy")]
    return {Path(row["source"]).stem: torch.from_numpy(np.asarray(row["codes"]).astype(np.int64)) for row in rows}


def variety(codes: torch.Tensor) -> list[int]:
    """Numbers of different codes on both sides of `[K, T]`: the silence of a side has few."""
    return [sum(len(row.unique()) for row in codes[side::2]) for side in (0, 1)]


def is_on(side: str, values: list[float]) -> bool:
    own, other = values if side == "left" else reversed(values)
    return own > 2 * other


@pytest.mark.parametrize("song", SIDES)
def test_tokens_keep_a_tone_on_its_side(codes: dict[str, torch.Tensor], base: Path, song: str) -> None:
    assert is_on(song, variety(codes[song]))
    model = load_codec(read_checkpoint(base), CPU)
    silence = codec.encode(model, torch.zeros(1, 2, SECONDS * SAMPLING_RATE), read_checkpoint(base))[0, ::2]
    assert torch.equal(codes[song][SIDES.index(song) ^ 1 :: 2], silence)


def test_a_mono_song_is_the_same_on_both_sides(codes: dict[str, torch.Tensor], base: Path) -> None:
    assert torch.equal(codes["mono"][0::2], codes["mono"][1::2])
    left, right = codec.decode_clip(load_codec(read_checkpoint(base), CPU), codes["mono"], read_checkpoint(base))
    assert np.array_equal(left, right)
    assert left.std() > 0.01


def test_a_training_batch_keeps_the_sides(codes: dict[str, torch.Tensor], tables: Tables, base: Path) -> None:
    """Labels without the delay are the stored codes: each codebook stands in its side's row."""
    checkpoint = read_checkpoint(base)
    pieces = ClipDataset(tables.train, tables.captions, checkpoint, Drawing())
    batch = Collator(checkpoint.pad_token_id)([pieces[index] for index in range(len(pieces))])
    assert [Path(name).stem for name in tables.train["source"]] == [*SIDES]
    for labels, song in zip(batch["labels"], SIDES, strict=True):
        frames = codes[song].shape[-1] - max(checkpoint.delay)
        assert torch.equal(undo_delay(labels, checkpoint.delay), codes[song][:, :frames])


@pytest.mark.parametrize("song", SIDES)
def test_codes_are_decoded_side_by_side(codes: dict[str, torch.Tensor], base: Path, song: str) -> None:
    """Each side is what the mono codec makes of its codebooks alone, whatever is on the other side."""
    model = load_codec(read_checkpoint(base), CPU)
    wave = codec.decode_clip(model, codes[song], read_checkpoint(base))
    for side, decoded in enumerate(wave):
        with torch.no_grad():
            alone = model.decode(codes[song][None, None, side::2], [None]).audio_values[0, 0]
        np.testing.assert_allclose(decoded, alone.numpy(), atol=1e-6)
    assert is_on(song, list(wave.std(axis=1)))


@pytest.mark.parametrize("song", SIDES)
def test_what_was_learned_is_generated_on_its_side(run: Path, song: str) -> None:
    (clip,) = Generator(run).generate([f"punk, {song}"], seconds=1, sampling=Sampling(top_k=1), progress=False)
    assert is_on(song, list(clip.wave.std(axis=1)))


def test_the_loss_of_each_side_is_reported(run: Path) -> None:
    said, number = (run / "said.txt").read_text(), r"\d+\.\d{3}"
    books = " ".join([number] * 4)
    for kind in ("held-out", "training"):
        assert re.search(rf"  {kind}  loss \d\.\d{{4}}  \(left {books}, right {books}\)", said)
    summary = json.loads((run / "run.json").read_text())["summary"]
    left, right = (summary[f"eval_ce_{side}"] for side in SIDES)
    assert re.search(rf"Held-out loss .* after \(left {left:.4f}, right {right:.4f}\)\n", said)
    for side, loss in enumerate((left, right)):
        assert loss == pytest.approx(np.mean([summary[f"eval_ce_q{book}"] for book in range(side + 1, 9, 2)]))
    assert (left + right) / 2 == pytest.approx(summary["eval_loss"])
    assert f"| eval_ce_left | {left:.4f} |" in (run / "README.md").read_text()


@pytest.mark.slow
def test_the_report_has_the_loss_of_each_side(run: Path) -> None:
    words = ["evaluate", run, "--seconds", 0.5, "--variations", 2, "--clap_model_name_or_path", "none"]
    assert main([str(word) for word in [*words, "--prompts", "punk", "--neutral_prompts", "a song"]]) == 0
    report = json.loads((run / "evaluation" / "report.json").read_text())
    figures = {figure["key"]: figure for figure in report["figures"]}
    summary = json.loads((run / "run.json").read_text())["summary"]
    for side in SIDES:
        assert figures[f"ce_{side}"]["tuned"] == pytest.approx(summary[f"eval_ce_{side}"], rel=1e-4)
        assert figures[f"ce_{side}"]["title"] == f"loss, {side} channel"
    assert figures["ppl_q4"]["title"] == "perplexity, codebook 4 of 8 (right)"
    page = (run / "evaluation" / "report.html").read_text()
    assert "loss, left channel" in page
