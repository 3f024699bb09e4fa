"""Sounds and their spectrograms for the trackers of a training: wandb, TensorBoard, Trackio.

Which of them listen is known from the trainer's callbacks; transformers puts one there for each of `--report_to`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from musicgen_dreamboothing.console import best_effort

STEP = "train/global_step"  # what transformers' callbacks draw their curves over


@dataclass(frozen=True)
class Sample:
    """A clip that was made in a training, with the picture of its spectrogram.

    Attributes:
        prompt: what was asked for.
        step: the update whose weights made it; 0 is the base.
        audio: .wav file.
        picture: .png file.
    """

    prompt: str
    step: int
    audio: Path
    picture: Path


def log_samples(callbacks: Iterable[TrainerCallback], samples: Sequence[Sample], step: int) -> None:
    """Shows the samples of one step to every tracker among the callbacks; on the main process only."""
    if not samples:
        return
    for callback in callbacks:
        if isinstance(callback, WandbCallback):
            _to_wandb(samples, step)
        elif isinstance(callback, TensorBoardCallback):
            _to_tensorboard(callback.tb_writer, samples, step)
        elif isinstance(callback, TrackioCallback):
            _to_trackio(samples, step)


def log_before_and_after(
    callbacks: Iterable[TrainerCallback], before: Sequence[Sample], after: Sequence[Sample], step: int
) -> None:
    """Shows both side by side. TensorBoard has no tables; it has a slider over the steps of each prompt."""
    for callback in callbacks:
        if isinstance(callback, WandbCallback):
            _pairs_to_wandb(before, after, step)
        elif isinstance(callback, TrackioCallback):
            _pairs_to_trackio(before, after, step)


def _to_wandb(samples: Sequence[Sample], step: int) -> None:
    import wandb

    rows = [[sample.step, sample.prompt, *_wandb_media(sample)] for sample in samples]
    table = wandb.Table(columns=["step", "prompt", "audio", "spectrogram"], data=rows)
    wandb.log({"samples/played": table, STEP: step})


def _pairs_to_wandb(before: Sequence[Sample], after: Sequence[Sample], step: int) -> None:
    import wandb

    columns: list[str | int] = ["prompt", "before", "after", "spectrogram before", "spectrogram after"]
    rows = []
    for old, new in zip(before, after, strict=True):
        sounds, pictures = zip(_wandb_media(old), _wandb_media(new), strict=True)
        rows.append([old.prompt, *sounds, *pictures])
    wandb.log({"samples/before_after": wandb.Table(columns=columns, data=rows), STEP: step})


def _wandb_media(sample: Sample) -> tuple[Any, Any]:
    import wandb

    caption = f"{sample.prompt} (update {sample.step})"
    return wandb.Audio(str(sample.audio), caption=caption), wandb.Image(str(sample.picture), caption=caption)


def _to_tensorboard(writer: Any, samples: Sequence[Sample], step: int) -> None:
    """torch's writer takes one channel of sound only."""
    for sample in samples:
        wave, rate = soundfile.read(sample.audio, dtype="float32", always_2d=True)
        writer.add_audio(f"samples/{sample.audio.stem}", wave.mean(axis=1), step, sample_rate=rate)
        picture = np.asarray(Image.open(sample.picture).convert("RGB"))
        writer.add_image(f"spectrograms/{sample.picture.stem}", picture, step, dataformats="HWC")
    writer.flush()


def _to_trackio(samples: Sequence[Sample], step: int) -> None:
    """A player for each prompt: in the cells of Trackio's tables there is room for pictures, not for sounds."""
    import trackio

    logs: dict[str, Any] = {STEP: step}
    for sample in samples:
        logs[f"samples/{sample.audio.stem}"] = trackio.Audio(str(sample.audio), caption=sample.prompt)
        logs[f"spectrograms/{sample.picture.stem}"] = trackio.Image(str(sample.picture), caption=sample.prompt)
    trackio.log(logs)


def _pairs_to_trackio(before: Sequence[Sample], after: Sequence[Sample], step: int) -> None:
    import trackio

    rows = [
        [old.prompt, trackio.Image(str(old.picture)), trackio.Image(str(new.picture))]
        for old, new in zip(before, after, strict=True)
    ]
    trackio.log({"samples/before_after": trackio.Table(columns=["prompt", "before", "after"], data=rows), STEP: step})


def guard_trackers(callbacks: Iterable[TrainerCallback]) -> None:
    """Lets a training end well where a tracker fails at its last line or while it closes: no network, a full disk."""
    for callback in callbacks:
        if type(callback).__module__.startswith("transformers.integrations"):
            name = type(callback).__name__.removesuffix("Callback")
            for event in ("on_log", "on_train_end"):
                setattr(callback, event, _guarded(getattr(callback, event), f"the tracker {name} failed"))


def _guarded(event: Callable[..., Any], failure: str) -> Callable[..., None]:
    """An event of a tracker in which an error is reported once, and which does nothing from then on."""
    failed = False

    def guarded(*args: Any, **kwargs: Any) -> None:
        nonlocal failed
        if failed:
            return
        failed = True  # until the event has come to its end
        with best_effort(failure):
            event(*args, **kwargs)
            failed = False

    return guarded
