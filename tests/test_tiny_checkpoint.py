"""The built-in trained checkpoint, where random weights prove nothing: captions, guidance, learning."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Ran
from safetensors.torch import load_file
from transformers import MusicgenForConditionalGeneration

sys.path.insert(0, str(Path(__file__).parent.parent / "tools" / "tiny"))

from rhythm import tempo, tempo_matches

from musicgen_dreamboothing import Generator
from musicgen_dreamboothing.demo.recipe import ASSETS
from musicgen_dreamboothing.evaluation.metrics.signal import embed
from musicgen_dreamboothing.generation.guidance import Sampling
from musicgen_dreamboothing.hub import Source
from musicgen_dreamboothing.model.checkpoint import load_checkpoint, load_text_encoder, load_tokenizer
from musicgen_dreamboothing.model.delay import training_steps
from musicgen_dreamboothing.model.loading import load_language_model
from musicgen_dreamboothing.model.text import encode_captions
from musicgen_dreamboothing.training import setup
from musicgen_dreamboothing.training.collator import Collator

Cli = Callable[..., Ran]
BASE, SONGS = ASSETS / "musicgen-tiny", ASSETS / "songs"
FAST, SLOW = "techno at 150 bpm in e minor", "reggae at 75 bpm in c major"


@pytest.fixture(scope="module")
def generator() -> Generator:
    return Generator(BASE, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def clips(generator: Generator) -> dict[str, list[np.ndarray]]:
    """Three clips of 6 s for each of two captions, mono `[S]`."""
    made: dict[str, list[np.ndarray]] = {FAST: [], SLOW: []}
    for clip in generator.generate([FAST, SLOW], seconds=6, variations=3, progress=False):
        made[clip.prompt].append(clip.wave[0])
    return made


def test_it_is_small_and_states_its_licence() -> None:
    assert sum(path.stat().st_size for path in BASE.iterdir()) <= 15_000_000
    assert sum(path.stat().st_size for path in SONGS.rglob("*")) <= 3_000_000
    assert "license: apache-2.0" in (BASE / "README.md").read_text()
    assert len(list(SONGS.glob("*.ogg"))) == 20
    assert len(list((SONGS / "validation").glob("*.ogg"))) == 4
    assert all(path.with_suffix(".txt").is_file() for path in SONGS.rglob("*.ogg"))


def test_plain_transformers_loads_all_of_it() -> None:
    model, report = MusicgenForConditionalGeneration.from_pretrained(BASE, output_loading_info=True)
    assert not any(report.values())
    assert model.config.audio_encoder.sampling_rate == 16_000
    kinds = {
        weight.dtype for name, weight in load_file(BASE / "model.safetensors").items() if "text_encoder" not in name
    }
    assert kinds == {torch.float16}  # transformers keeps a part of T5 in fp32


def test_captions_change_the_music(clips: dict[str, list[np.ndarray]]) -> None:
    """Clips of one caption are more alike than clips of two, in timbre and rhythm."""
    points = {caption: np.stack([embed(wave, 16_000) for wave in waves]) for caption, waves in clips.items()}
    spread = np.concatenate(list(points.values())).std(0) + 1e-6
    fast, slow = points[FAST] / spread, points[SLOW] / spread
    across = np.linalg.norm(fast[:, None] - slow[None], axis=-1).min()
    within = max(np.linalg.norm(rows[:, None] - rows[None], axis=-1).max() for rows in (fast, slow))
    assert within < across


def test_the_tempo_is_that_of_the_caption(clips: dict[str, list[np.ndarray]]) -> None:
    """Of two styles that follow their captions well; its card tells how often all of them do."""
    assert sum(tempo_matches(tempo(wave, 16_000), 150) for wave in clips[FAST]) >= 2
    assert sum(tempo_matches(tempo(wave, 16_000), 75) for wave in clips[SLOW]) >= 2


def loss_of(codes: list[torch.Tensor], caption: str) -> dict[str, float]:
    """Mean cross-entropy in nats of clips' codes under this caption, and under none."""
    checkpoint = load_checkpoint(Source(str(BASE)))
    encoder = load_text_encoder(checkpoint, torch.device("cpu"))
    states = dict(encode_captions(load_tokenizer(checkpoint), encoder, [caption]))[caption]
    model = load_language_model(checkpoint, torch.float32, torch.device("cpu")).eval()
    collate = Collator(checkpoint.pad_token_id)
    pieces = [training_steps(clip, checkpoint.delay, checkpoint.start_token_id) for clip in codes]
    losses = {}
    for name, keep in (("captioned", True), ("null", False)):
        rows = [{"codes": c, "labels": t, "text_states": states, "keep_caption": keep} for c, t in pieces]
        with torch.no_grad():
            outputs = model(**collate(rows))
        losses[name] = float(outputs.nll.sum() / outputs.count.sum())
    return losses


def test_music_is_likelier_under_its_own_caption_and_guidance_makes_it_more_so(generator: Generator) -> None:
    gains = []
    for scale in (1.0, 4.0):
        sampling = Sampling(scale, 1.0, 250)
        made = generator.generate([FAST], seconds=2, variations=6, progress=False, sampling=sampling)
        codes = [clip.codes for clip in made]
        own, other = loss_of(codes, FAST), loss_of(codes, SLOW)
        assert own["captioned"] < other["captioned"]
        gains.append(own["null"] - own["captioned"])
    assert gains[0] < gains[1]


class Interrupting(setup.Lines):
    """Ctrl-C at the end of the eleventh update."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 11:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_an_adapter_learns_and_goes_on_learning_after_ctrl_c(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [
        *("train", "--dataset_name", SONGS, "--model_name_or_path", BASE, "--output_dir", tmp_path / "run"),
        *("--instance_prompt", "punk", "--eval_split_name", "validation", "--max_duration_in_seconds", 8),
        *("--max_steps", 20, "--learning_rate", 2e-3, "--crop_seconds", 4, "--per_device_train_batch_size", 4),
        *("--gradient_accumulation_steps", 1, "--gradient_checkpointing", "false", "--eval_strategy", "steps"),
        *("--eval_steps", 10, "--save_strategy", "steps", "--save_steps", 10, "--disable_tqdm", "true"),
    ]
    monkeypatch.setattr(setup, "Lines", Interrupting)
    assert cli(*words).code == 130
    monkeypatch.undo()
    ran = cli(*words)
    assert ran.code == 0, ran.err
    assert f"Resuming from {tmp_path}/run/checkpoint-10\n" in ran.out
    assert "10 updates in " in ran.out
    log = json.loads((tmp_path / "run" / "checkpoint-20" / "trainer_state.json").read_text())["log_history"]
    losses = {line["step"]: line["eval_loss"] for line in log if "eval_loss" in line}
    steps = sorted(losses)
    assert steps == [0, 10, 20]
    assert losses[0] - 0.05 > losses[10] > losses[20] + 0.05
