"""Finds out what `MODEL` and `--adapter NAME:STRENGTH` name: one base, and adapters that were made for it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from musicgen_dreamboothing.console import UserError, plural
from musicgen_dreamboothing.hub import Source, weights_fingerprint
from musicgen_dreamboothing.model.adapter import SavedAdapter, read_adapter
from musicgen_dreamboothing.model.checkpoint import Checkpoint, load_checkpoint
from musicgen_dreamboothing.model.strengths import AS_TRAINED, AnyStrength, Strength, as_strength, split_strength

AdapterName = str | Path | tuple[str | Path, AnyStrength]  # "punk", "punk:0.8" or ("punk", 0.8)
OF_CODEBOOK = re.compile(r"decoder\.(?:lm_heads|model\.decoder\.embed_tokens)\.(\d+)\.")


@dataclass(frozen=True)
class Mix:
    """A base, and the adapters on it with their strengths, in the order in which they were named."""

    checkpoint: Checkpoint
    adapters: tuple[SavedAdapter, ...]
    strengths: tuple[Strength, ...]

    @property
    def single(self) -> SavedAdapter | None:
        """The only adapter, as it was trained; None for any other mix."""
        return self.adapters[0] if self.strengths == (AS_TRAINED,) else None

    def __str__(self) -> str:
        return ", ".join(f"{saved.name}:{one}" for saved, one in zip(self.adapters, self.strengths, strict=True))


def read_mix(model: Source, adapters: Sequence[AdapterName] = (), base_model: str | None = None) -> Mix:
    """Reads adapters and the configuration of their base, no weights of the base.

    Args:
        model: a base, a full fine-tune, or an adapter, perhaps with a strength behind its name.
        adapters: others, on the base that `model` is or has.
        base_model: where the base of all adapters is, if it is not where their adapter_config.json says.

    Raises:
        UserError: something is not there, or an adapter was made for another base.
    """
    name, strength = split_strength(model.name)
    model = replace(model, name=name)
    first = read_adapter(model.name, **model.arguments())
    if first is None and strength is not None:
        raise UserError(f"no adapter at {name!r}, and only adapters have a strength (:{strength})")
    named = [_read(entry, model) for entry in adapters]
    if first is None:
        checkpoint = load_checkpoint(model)
    else:
        checkpoint = _base_of(first, model, base_model)
        named.insert(0, (first, strength or AS_TRAINED))
    for saved, _ in named if len(named) > 1 or first is None else ():
        _check_base(saved, checkpoint, base_is_given=base_model is not None)
    return Mix(checkpoint, tuple(saved for saved, _ in named), tuple(strength for _, strength in named))


def _read(entry: AdapterName, model: Source) -> tuple[SavedAdapter, Strength]:
    if isinstance(entry, tuple):
        name, strength = str(entry[0]), as_strength(entry[1])
    else:
        name, given = split_strength(str(entry))
        strength = given or AS_TRAINED
    saved = read_adapter(name, **replace(model, name=name, revision=None).arguments())
    if saved is None:
        raise UserError(f"no adapter at {name!r}: --adapter takes a folder or Hub id with an adapter_config.json")
    return saved, strength


def _base_of(saved: SavedAdapter, model: Source, base_model: str | None) -> Checkpoint:
    base = base_model or str(saved.config.base_model_name_or_path)
    revision = saved.config.revision if base_model is None else None
    try:
        return load_checkpoint(replace(model, name=base, revision=revision))
    except UserError as error:
        raise UserError(
            f"the adapter {model.name} needs its base: {error}; or name the base with --base_model"
        ) from error


def _check_base(saved: SavedAdapter, checkpoint: Checkpoint, *, base_is_given: bool) -> None:
    codebooks = {int(match[1]) + 1 for name in saved.weights if (match := OF_CODEBOOK.search(name))}
    if codebooks and max(codebooks) != checkpoint.codebooks:
        raise UserError(
            f"the adapter {saved.name} has layers for {plural(max(codebooks), 'codebook')}, but {checkpoint.name} has "
            f"{checkpoint.codebooks}: mono checkpoints have 4 and stereo ones 8, and adapters of both do not mix"
        )
    made_for = saved.config.base_model_name_or_path
    if made_for and not base_is_given and not _is_same(str(made_for), checkpoint.name):
        raise UserError(
            f"the adapter {saved.name} was made for {made_for}, and the base here is {checkpoint.name}; adapters of "
            f"other bases do not mix. If both are one checkpoint in two places: --base_model {checkpoint.name}"
        )


def _is_same(first: str, second: str) -> bool:
    """Whether two names are one checkpoint: one Hub id, one folder, or folders with the same weights."""
    if first == second:
        return True
    folders = Path(first), Path(second)
    if not all(folder.is_dir() for folder in folders):
        return False
    if folders[0].resolve() == folders[1].resolve():
        return True
    return weights_fingerprint(folders[0]) == weights_fingerprint(folders[1])
