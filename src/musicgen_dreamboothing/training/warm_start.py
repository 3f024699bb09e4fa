"""`warm-start`: a mono checkpoint in, a stereo base to train on out."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from musicgen_dreamboothing.arguments import EXACT, WarmStartArguments, check_values
from musicgen_dreamboothing.console import UserError, log, quiet_libraries
from musicgen_dreamboothing.files import new_folder
from musicgen_dreamboothing.hub import Source
from musicgen_dreamboothing.model.checkpoint import Checkpoint, load_checkpoint
from musicgen_dreamboothing.model.delay import sides_of
from musicgen_dreamboothing.model.stereo import ORIGIN, Origin, read_origin, write_stereo_checkpoint
from musicgen_dreamboothing.sharing.card import write_stereo_card
from musicgen_dreamboothing.sharing.licence import META, licence_notice, licence_of


@dataclass(frozen=True)
class WarmStartResult:
    """A stereo base in a folder, and what it was made from."""

    folder: Path
    origin: Origin


@quiet_libraries()
def warm_start(options: WarmStartArguments) -> WarmStartResult:
    """Writes a stereo base with the weights of a mono checkpoint; the same call again finds it finished.

    Raises:
        UserError: the base cannot be read or is stereo already, or the folder holds something else.
    """
    check_values(options)
    folder = Path(options.output_dir)
    _check_folder(folder)
    mono = load_checkpoint(Source(options.base, options.model_revision, options.cache_dir, options.token))
    _check_base(mono)
    origin = Origin.of(mono, options.variant)
    if read_origin(folder) == origin:
        log(f"{folder} already holds this stereo base")
        return WarmStartResult(folder, origin)
    licence = licence_of(mono)
    with new_folder(folder) as temporary:
        write_stereo_checkpoint(mono, temporary, embedding_scale=0.5 if options.variant == EXACT else 1.0)
        origin.write(temporary)
        write_stereo_card(temporary, folder.resolve().name, origin, mono, licence)
    log(f"Saved in {folder}")
    log(licence_notice(mono.name, licence))
    words = shlex.join(["--model_name_or_path", str(folder), "--output_dir", "runs/stereo"])
    log(f"Train:  musicgen-dreamboothing train --dataset_name SONGS {words}")
    return WarmStartResult(folder, origin)


def _check_folder(folder: Path) -> None:
    """Refuses a file, and a folder that this verb did not write."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; choose another --output_dir")
    if folder.is_dir() and any(folder.iterdir()) and read_origin(folder) is None:
        raise UserError(f"{folder} holds something else (it has no valid {ORIGIN}); choose another --output_dir")


def _check_base(mono: Checkpoint) -> None:
    if sides_of(mono.audio_channels):
        raise UserError(f"{mono.name} is stereo already; train on it: train --model_name_or_path {mono.name}")
    if mono.name.startswith(f"{META}-"):
        published = mono.name.replace(META, f"{META}-stereo")
        log(f"note: {published} was trained on stereo music for long; try it first as --model_name_or_path")
