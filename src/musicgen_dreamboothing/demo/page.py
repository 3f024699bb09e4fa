"""The demo's page: before and after to hear and to see, in one HTML file that needs nothing beside it."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from PIL import Image
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.data.run_record import RunRecord, read_record
from musicgen_dreamboothing.files import write_text
from musicgen_dreamboothing.hub import Source
from musicgen_dreamboothing.model.checkpoint import load_checkpoint
from musicgen_dreamboothing.pages import data_uri
from musicgen_dreamboothing.sharing.licence import licence_notice, licence_of
from musicgen_dreamboothing.training.checkpoints import last_checkpoint

PICTURE_RATE = 16_000  # Hz: half of it is the top of a picture
WINDOW, HOP, FFT, MELS = 1024, 160, 4096, 128  # samples, samples, samples, rows of a picture
RANGE_DB = 70.0
PALETTE = ("#0b0d14", "#1d2545", "#2f5d7c", "#58a99a", "#d9c77a", "#fdf6df")  # from silence to the loudest
CURVE_WIDTH, CURVE_HEIGHT = 640, 220  # of the drawing, in its own units


@dataclass(frozen=True)
class Pair:
    """One prompt, twice: the files of its clips, and whether it asks for the new style."""

    before: Path
    after: Path
    prompt: str
    is_new: bool


@dataclass(frozen=True)
class Curve:
    """The losses of a run as points of a drawing, its x axis the updates.

    Attributes:
        training: corners of the line, `x,y x,y`.
        held_out: the same for held-out songs.
        dots: the evaluations `(x, y)`.
        ticks: heights of round losses, with what stands beside them.
        updates: at the right end.
    """

    training: str
    held_out: str
    dots: list[tuple[float, float]]
    ticks: list[tuple[float, str]]
    updates: int


def write_page(folder: Path, run: Path, pairs: list[Pair], word: str, commands: list[tuple[str, str]]) -> Path:
    """Writes `index.html`, and a picture beside every clip. All figures are those of the run's `run.json`."""
    record = read_record(run)
    if record is None or not record.finished:
        raise ValueError(f"{run} holds no finished run")
    history = _history(run)
    template = files("musicgen_dreamboothing.assets").joinpath("demo.html.jinja").read_text(encoding="utf-8")
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=True)
    text = environment.from_string(template).render(
        word=word,
        groups=[
            (f"New: {word}", [_shown(pair) for pair in pairs if pair.is_new]),
            ("What it could do before", [_shown(pair) for pair in pairs if not pair.is_new]),
        ],
        summary=record.summary,
        losses=_losses(record, history),
        curve=_curve(history),
        adapter_mb=(run / "adapter_model.safetensors").stat().st_size / 1e6,
        base_mb=(Path(record.base_model) / "model.safetensors").stat().st_size / 1e6,
        base=Path(record.base_model).name,
        rank=record.options["lora_r"],
        commands=commands,
        notice=_notice(record),
        width=CURVE_WIDTH,
        height=CURVE_HEIGHT,
    )
    write_text(folder / "index.html", text)
    return folder / "index.html"


def _notice(record: RunRecord) -> str:
    checkpoint = load_checkpoint(Source(record.base_model))
    return licence_notice(Path(record.base_model).name, licence_of(checkpoint))


def _shown(pair: Pair) -> dict[str, Any]:
    """What the template needs of a pair: sounds and pictures as data in the page itself."""
    sides = [
        {
            "name": name,
            "sound": data_uri("audio/wav", clip.read_bytes()),
            "picture": data_uri("image/png", _write_picture(clip)),
        }
        for name, clip in (("before", pair.before), ("after", pair.after))
    ]
    return {"prompt": pair.prompt, "sides": sides}


def _write_picture(clip: Path) -> bytes:
    """Draws a clip into the .png of the same name, and returns the bytes."""
    content = picture(audio.decode(clip, PICTURE_RATE))
    clip.with_suffix(".png").write_bytes(content)
    return content


def picture(wave: audio.Wave) -> bytes:
    """A log-mel spectrogram of `[C, S]` at `PICTURE_RATE` as PNG: time to the right, 10 ms a column, pitch upwards."""
    filters = mel_filter_bank(FFT // 2 + 1, MELS, 0, PICTURE_RATE / 2, PICTURE_RATE)
    window = window_function(WINDOW, "hann")
    db = spectrogram(wave.mean(0), window, WINDOW, HOP, FFT, power=2.0, mel_filters=filters, log_mel="dB")
    loudest = max(float(db.max()), 0.0)  # silence stays dark
    shades = np.clip((db - loudest) / RANGE_DB + 1, 0, 1) * 255
    image = Image.fromarray(np.ascontiguousarray(shades[::-1]).astype(np.uint8))
    image.putpalette(_palette())
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True)
    return content.getvalue()


def _palette() -> list[int]:
    """256 colours, red green blue after each other."""
    stops = np.array([[int(colour[place : place + 2], 16) for place in (1, 3, 5)] for colour in PALETTE])
    places, steps = np.linspace(0, 1, len(stops)), np.linspace(0, 1, 256)
    colours = np.stack([np.interp(steps, places, channel) for channel in stops.T], axis=1)
    return [int(value) for value in colours.round().ravel()]


def _history(run: Path) -> list[dict[str, float]]:
    """The log of a run, which its last checkpoint keeps; empty where somebody has removed that."""
    checkpoint = last_checkpoint(run)
    if checkpoint is None:
        return []
    lines: list[dict[str, float]] = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))[
        "log_history"
    ]
    return lines


def _losses(record: RunRecord, history: list[dict[str, float]]) -> list[tuple[str, float | None, float | None]]:
    """Rows of the table: name, before, after; the mean first, then every codebook."""
    first: dict[str, float] = next((line for line in history if "eval_loss" in line and line["step"] == 0), {})
    names = {"mean of the codebooks": "eval_loss"}
    names |= {f"codebook {key[9:]}": key for key in record.summary if key.startswith("eval_ce_q")}
    before = first | {"eval_loss": record.summary["loss_before"]}
    return [(name, before.get(key), record.summary.get(key)) for name, key in names.items()]


def _curve(history: list[dict[str, float]]) -> Curve | None:
    training = [(line["step"], line["loss"]) for line in history if "loss" in line]
    held_out = [(line["step"], line["eval_loss"]) for line in history if "eval_loss" in line]
    if not training or not held_out:
        return None
    losses, updates = [loss for _, loss in training + held_out], int(training[-1][0])
    low, high = min(losses), max(losses)
    span = max(high - low, 0.01)

    def place(step: float, loss: float) -> tuple[float, float]:
        return round(step / updates * CURVE_WIDTH, 1), round((high - loss) / span * CURVE_HEIGHT, 1)

    def line(points: list[tuple[float, float]]) -> str:
        return " ".join(f"{x},{y}" for x, y in points)

    dots = [place(*point) for point in held_out]
    ticks = [(place(0, loss)[1], f"{loss:.2f}") for loss in np.linspace(high, low, 4)]
    return Curve(line([place(*point) for point in training]), line(dots), dots, ticks, updates)
