"""For each generated clip of the style the training clip that is nearest to it, by codes and by sound."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict
from functools import partial
from pathlib import Path

from musicgen_dreamboothing.arguments import EvaluateArguments
from musicgen_dreamboothing.console import log
from musicgen_dreamboothing.data.layout import CLIPS
from musicgen_dreamboothing.data.tokens.tables import Tables
from musicgen_dreamboothing.device import parse_device
from musicgen_dreamboothing.evaluation.collect import EvaluationData
from musicgen_dreamboothing.evaluation.metrics.code_index import nearest_by_tokens
from musicgen_dreamboothing.evaluation.metrics.sound_index import nearest_by_embedding
from musicgen_dreamboothing.evaluation.references import decoded_clips, training_clips
from musicgen_dreamboothing.evaluation.result import STYLE, Nearest
from musicgen_dreamboothing.files import digest
from musicgen_dreamboothing.model.checkpoint import Checkpoint, load_codec
from musicgen_dreamboothing.model.codec import decode_clip

SONGS = "songs"  # folder of the training clips that were copied
MOST_BY_SOUND = {"cpu": 64}  # training clips that are compared by sound, after the codec has decoded them
MOST_BY_SOUND_ON_A_GPU = 400


def nearest_clips(
    options: EvaluateArguments,
    data: EvaluationData,
    folder: Path,
    tables: Tables,
    prepared: Path,
    checkpoint: Checkpoint,
) -> list[Nearest]:
    """The nearest training clip by codes, or by sound where only sound reveals a copy.

    A training clip that was copied is put into `folder`, so that the report can play it.
    """
    codes, names = training_clips(tables.train)
    clips = [data.tuned[row] for row in data.rows(STYLE)]
    frame_rate = codes[0].shape[1] / tables.train["seconds"][0]
    by_codes = nearest_by_tokens([clip.codes for clip in clips], codes, names, frame_rate)
    device = parse_device(options.device)
    most = min(MOST_BY_SOUND.get(device.type, MOST_BY_SOUND_ON_A_GPU), len(tables.train))
    decode = partial(decode_clip, load_codec(checkpoint, device), checkpoint=checkpoint)
    training = decoded_clips(decode, tables.train.select(range(most)), checkpoint.sampling_rate)
    by_sound = nearest_by_embedding([(clip.wave, clip.rate) for clip in clips], training, names[:most], data.embedder)
    digests = dict(zip(tables.train["file_name"], tables.train["digest"], strict=True))
    nearest = []
    for clip, token_match, sound_match in zip(clips, by_codes, by_sound, strict=True):
        match = sound_match if sound_match.is_copy and not token_match.is_copy else token_match
        name = match.clip_file
        copy = _copied(prepared / CLIPS / name, name, digests[name], folder) if match.is_copy else ""
        shown = asdict(match) | {"clip_file": copy}
        nearest.append(Nearest(**shown, file=os.path.relpath(clip.file, folder), prompt=clip.prompt))
    return nearest


def _copied(source: Path, name: str, expected: str, folder: Path) -> str:
    """Copies a training clip beside the report; empty if it is not what it was in the training (`expected` digest)."""
    if not source.is_file() or digest(source) != expected:
        log(f"note: the report can't play {name}: the clip is gone or has changed since the training")
        return ""
    copy = f"{SONGS}/{name.replace('/', '_')}"
    try:
        (folder / SONGS).mkdir(exist_ok=True)
        shutil.copyfile(source, folder / copy)
    except OSError as error:
        log(f"note: the report can't play {source} ({error.strerror})")
        return ""
    return copy
