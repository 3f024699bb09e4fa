"""`doctor`: examines a prepared folder, says on one screen what hurts, and writes `report.html`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.arguments import DoctorArguments, check_values, note_unused
from musicgen_dreamboothing.audio import Wave
from musicgen_dreamboothing.console import UserError, log, quiet_libraries
from musicgen_dreamboothing.data.doctor.examination import examine
from musicgen_dreamboothing.data.doctor.report import lines, write_report
from musicgen_dreamboothing.data.layout import CLIPS, TOKENS
from musicgen_dreamboothing.data.tokens.store import read_info
from musicgen_dreamboothing.device import best_device
from musicgen_dreamboothing.hub import Source
from musicgen_dreamboothing.model import codec
from musicgen_dreamboothing.model.checkpoint import Checkpoint, load_checkpoint, load_codec, load_tokenizer

REPORT = "report.html"
USUAL_RATE = 32_000  # Hz, of all published MusicGen codecs; where no clip can tell


@quiet_libraries()
def doctor(options: DoctorArguments) -> Path:
    """Examines a folder that `prepare` made, and returns the path of the report.

    Raises:
        UserError: it is no prepared folder, or none of its clips can be read.
    """
    check_values(options)
    note_unused(options)
    folder = Path(options.folder)
    checkpoint = _codec_of(folder, options) if options.preview else None
    return check_up(folder, checkpoint, workers=options.preprocessing_num_workers)


def check_up(folder: Path, checkpoint: Checkpoint | None, *, workers: int) -> Path:
    """The same for a checkpoint that is at hand; without one the codec is not previewed."""
    rate = checkpoint.sampling_rate if checkpoint else _rate_of(folder)
    preview = _preview(checkpoint) if checkpoint else None
    tokenizer = load_tokenizer(checkpoint) if checkpoint else None
    examination = examine(folder, preview=preview, rate=rate, workers=workers, tokenizer=tokenizer)
    for line in lines(examination):
        log(line)
    write_report(examination, folder / REPORT)
    log(f"all of it, to listen to: {folder / REPORT}")
    return folder / REPORT


def _rate_of(folder: Path) -> int:
    """That of the first clip that can be read, in Hz: what a codec of another rate would lose is no fault of these."""
    for path in sorted((folder / CLIPS).glob("*.flac")):
        with suppress(soundfile.SoundFileError):
            return int(soundfile.info(path).samplerate)
    return USUAL_RATE


def _codec_of(folder: Path, options: DoctorArguments) -> Checkpoint | None:
    """The checkpoint that the folder's tokens are made with; a person is told where it can't be had."""
    name = options.model_name_or_path or read_info(folder / TOKENS).get("model")
    if name is None:
        log("the codec is not previewed: the folder has no tokens yet; --model_name_or_path says whose codec to take")
        return None
    try:
        return load_checkpoint(Source(name, cache_dir=options.cache_dir, token=options.token))
    except UserError as error:
        log(f"the codec is not previewed: {error}")
        return None


def _preview(checkpoint: Checkpoint) -> Callable[[Wave], Wave]:
    """What the codec makes of a wave `[C, S]` at its rate; it is loaded at the first one."""
    loaded: list[Any] = []

    def preview(wave: Wave) -> Wave:
        if not loaded:
            loaded.append(load_codec(checkpoint, best_device()))
        heard = audio.to_channels(wave, checkpoint.audio_channels)
        whole = np.pad(heard, ((0, 0), (0, -heard.shape[1] % checkpoint.hop_length)))
        codes = codec.encode(loaded[0], torch.from_numpy(whole)[None], checkpoint)
        coded: Wave = codec.decode(loaded[0], codes, checkpoint)[0].numpy()
        return coded[:, : wave.shape[1]]

    return preview
