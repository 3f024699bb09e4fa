"""`merge`: adapters in, a model that transformers plays without PEFT out."""

from __future__ import annotations

import json
import shlex
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from musicgen_dreamboothing.arguments import MergeArguments, check_values
from musicgen_dreamboothing.console import UserError, log, plural, quiet_libraries
from musicgen_dreamboothing.files import new_folder, write_json
from musicgen_dreamboothing.hub import Source, weights_fingerprint
from musicgen_dreamboothing.model.adapter import SavedAdapter
from musicgen_dreamboothing.model.merged_checkpoint import write_merged_checkpoint
from musicgen_dreamboothing.model.mix_sources import Mix, read_mix
from musicgen_dreamboothing.model.mixing import Mixer
from musicgen_dreamboothing.model.strengths import blended
from musicgen_dreamboothing.sharing.card import write_merged_card
from musicgen_dreamboothing.sharing.licence import licence_notice, licence_of

PROVENANCE = "merge.json"


@dataclass(frozen=True)
class MergedAdapter:
    """One adapter of a merge: Hub id or the last part of its folder's path, commit or hash of its weights, strength."""

    name: str
    revision: str | None
    strength: str


@dataclass(frozen=True)
class Provenance:
    """What a merged model was made from.

    Attributes:
        base: Hub id, or the last part of its folder's path.
        revision: its commit on the Hub, or a hash of the weights in its folder.
        adapters: all that were merged.
        kept: share of the update that is left after rounding (`merged_checkpoint.Rounding.kept`).
    """

    base: str
    revision: str | None
    adapters: tuple[MergedAdapter, ...]
    kept: float | None = None


@dataclass(frozen=True)
class Merged:
    """A merged model in a folder, and what it was made from."""

    folder: Path
    provenance: Provenance


@quiet_libraries()
def merge(options: MergeArguments) -> Merged:
    """Writes a base with adapters merged into it; the same call again finds it finished.

    Raises:
        UserError: there is no adapter, adapters do not fit, or the folder holds something else.
    """
    check_values(options)
    folder = Path(options.output_dir)
    earlier = _provenance_in(folder)
    mix = _mix_of(options)
    checkpoint = mix.checkpoint
    provenance = Provenance(
        _shared_name(checkpoint.name), checkpoint.identity, tuple(map(_part, mix.adapters, mix.strengths))
    )
    if earlier is not None and replace(earlier, kept=None) == provenance:
        log(f"{folder} already holds this model")
        return Merged(folder, earlier)
    mixer = Mixer(checkpoint, mix.adapters, mix.strengths)
    licence = licence_of(checkpoint)
    with new_folder(folder) as temporary:
        provenance = replace(provenance, kept=write_merged_checkpoint(checkpoint, mixer, temporary))
        write_json(temporary / PROVENANCE, asdict(provenance))
        write_merged_card(temporary, folder.resolve().name, provenance, checkpoint, licence)
    _report(folder, mix, provenance, licence)
    return Merged(folder, provenance)


def _mix_of(options: MergeArguments) -> Mix:
    source = Source(options.model, options.model_revision, options.cache_dir, options.token)
    mix = read_mix(source, options.adapters, options.base_model)
    if not mix.adapters:
        raise UserError(f"{options.model} is no adapter, and none is named behind it: there is nothing to merge")
    return replace(mix, strengths=tuple(blended(mix.strengths))) if options.blend else mix


def _provenance_in(folder: Path) -> Provenance | None:
    """What the model in a folder was made from; None for a folder that is empty or not there.

    Raises:
        UserError: the folder holds something that this verb did not write.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    with suppress(OSError, ValueError, TypeError, KeyError):
        content: dict[str, Any] = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
        adapters = tuple(MergedAdapter(**adapter) for adapter in content["adapters"])
        return Provenance(**{**content, "adapters": adapters})
    raise UserError(f"{folder} holds something else (it has no valid {PROVENANCE}); choose another --output_dir")


def _part(saved: SavedAdapter, strength: object) -> MergedAdapter:
    folder = Path(saved.name)
    if folder.is_dir():
        return MergedAdapter(_shared_name(saved.name), weights_fingerprint(folder), str(strength))
    return MergedAdapter(saved.name, saved.revision, str(strength))


def _shared_name(name: str) -> str:
    """A Hub id as it is; paths are private."""
    return Path(name).resolve().name if Path(name).is_dir() else name


def _report(folder: Path, mix: Mix, provenance: Provenance, licence: str | None) -> None:
    log(f"Merged {plural(len(mix.adapters), 'adapter')} into {mix.checkpoint.name}: {mix}")
    if provenance.kept is None:
        log("note: nothing changed: every strength is 0")
    else:
        log(f"{provenance.kept:.2%} of the update is left after rounding to the precision of the base")
    log(f"Saved in {folder}")
    log(licence_notice(provenance.base, licence))
    log(f'Play:  musicgen-dreamboothing generate {shlex.quote(str(folder))} "PROMPT"')
