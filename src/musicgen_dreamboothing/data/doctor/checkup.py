"""`doctor`: examines a prepared folder, logs a summary, and writes `report.html`."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.arguments import DoctorArguments, check_values, note_unused
from musicgen_dreamboothing.audio import Wave
from musicgen_dreamboothing.console import UserError, log, quiet_libraries
from musicgen_dreamboothing.data.doctor.advice import advice
from musicgen_dreamboothing.data.doctor.examination import Preview, examine
from musicgen_dreamboothing.data.doctor.findings import Finding, findings
from musicgen_dreamboothing.data.doctor.page import write_report
from musicgen_dreamboothing.data.doctor.summary import lines
from musicgen_dreamboothing.data.layout import CLIPS, TOKENS
from musicgen_dreamboothing.data.tokens.store import read_info
from musicgen_dreamboothing.device import best_device
from musicgen_dreamboothing.hub import Source
from musicgen_dreamboothing.model import codec
from musicgen_dreamboothing.model.checkpoint import Checkpoint, load_checkpoint, load_codec, load_tokenizer

REPORT = "report.html"
DEFAULT_RATE = 32_000  # Hz, of all published MusicGen codecs


@dataclass(frozen=True)
class Diagnosis:
    """The path of the report, and what it shows: findings, the worst first, and advice in sentences."""

    report: Path
    findings: tuple[Finding, ...] = field(default=(), repr=False)
    advice: tuple[str, ...] = field(default=(), repr=False)


@quiet_libraries()
def doctor(options: DoctorArguments) -> Diagnosis:
    """Examines a folder that `prepare` made.

    Raises:
        UserError: it is not a prepared folder, or none of its clips can be read.
    """
    check_values(options)
    note_unused(options)
    folder = Path(options.folder)
    checkpoint = _checkpoint_of(folder, options) if options.preview else None
    return check_up(folder, checkpoint, workers=options.preprocessing_num_workers)


def check_up(folder: Path, checkpoint: Checkpoint | None, *, workers: int) -> Diagnosis:
    """The same for a loaded checkpoint; None leaves out the codec preview and the check of captions."""
    rate = checkpoint.sampling_rate if checkpoint else _rate_of(folder)
    preview = _preview(checkpoint) if checkpoint else None
    tokenizer = load_tokenizer(checkpoint) if checkpoint else None
    examination = examine(folder, preview=preview, rate=rate, workers=workers, tokenizer=tokenizer)
    for line in lines(examination):
        log(line)
    write_report(examination, folder / REPORT)
    log(f"Report with players: {folder / REPORT}")
    return Diagnosis(folder / REPORT, tuple(findings(examination)), tuple(advice(examination)))


def _rate_of(folder: Path) -> int:
    """The rate of the first readable clip in Hz: without a codec there is no other rate to judge the clips by."""
    for path in sorted((folder / CLIPS).glob("*.flac")):
        with suppress(soundfile.SoundFileError):
            return int(soundfile.info(path).samplerate)
    return DEFAULT_RATE


def _checkpoint_of(folder: Path, options: DoctorArguments) -> Checkpoint | None:
    """The checkpoint that encoded the folder's tokens; a note where it is not available."""
    name = options.model_name_or_path or read_info(folder / TOKENS).get("model")
    if name is None:
        log("note: no codec preview, as the folder has no tokens yet. Fix: --model_name_or_path names the base model")
        return None
    try:
        return load_checkpoint(Source(name, cache_dir=options.cache_dir, token=options.token))
    except UserError as error:
        log(f"note: no codec preview: {error}")
        return None


def _preview(checkpoint: Checkpoint) -> Preview:
    """A function that encodes and decodes a wave `[C, S]` at the codec's rate; it loads the codec on its first call."""
    loaded: list[Any] = []

    def preview(wave: Wave) -> Wave:
        if not loaded:
            loaded.append(load_codec(checkpoint, best_device()))
        channels = audio.to_channels(wave, checkpoint.audio_channels)
        padded = np.pad(channels, ((0, 0), (0, -channels.shape[1] % checkpoint.hop_length)))
        codes = codec.encode(loaded[0], torch.from_numpy(padded)[None], checkpoint)
        decoded: Wave = codec.decode(loaded[0], codes, checkpoint)[0].numpy()
        return decoded[:, : wave.shape[1]]

    return preview
