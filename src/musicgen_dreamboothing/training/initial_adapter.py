"""`--init_adapter`: a new run from a saved adapter, with a fresh optimizer and schedule.

Rank, scaling, targets and the kind of LoRA are the adapter's. Options that say otherwise are refused, as far as they
differ from their defaults. Dropout is a setting of the training and stays an option. "Before" is the initial adapter:
the evaluation before the first update and the samples of step 0.

A run that goes on needs the adapter no more: its checkpoints hold everything, its record the settings.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from musicgen_dreamboothing.arguments import TrainArguments
from musicgen_dreamboothing.console import UserError, log
from musicgen_dreamboothing.data.run_record import RunRecord, read_record
from musicgen_dreamboothing.model.adapter import SavedAdapter
from musicgen_dreamboothing.model.checkpoint import Checkpoint
from musicgen_dreamboothing.model.saved_adapter import check_fit, read_initial_adapter, targets_of
from musicgen_dreamboothing.training.checkpoints import last_checkpoint

SETTINGS = ("lora_r", "lora_alpha", "lora_targets", "use_dora", "use_rslora", "lora_init")
BASE = ("model_name_or_path", "model_revision")


def settle_initial_adapter(options: TrainArguments) -> tuple[SavedAdapter | None, dict[str, Any]]:
    """Reads the adapter that a run begins from, and returns it with the options that it decides.

    Raises:
        UserError: it cannot be read or trained on, or other options contradict it.
    """
    name = options.init_adapter
    if name is None:
        return None, {}
    if not options.use_lora:
        raise UserError("--init_adapter continues a LoRA adapter, which --use_lora false would not train; choose one")
    folder = Path(str(options.output_dir)).resolve()
    if Path(name).exists() and Path(name).resolve().is_relative_to(folder):
        raise UserError(
            f"--init_adapter {name} lies in --output_dir, where the result goes; choose another --output_dir"
        )
    earlier = None if options.restart else read_record(folder)
    source = _own_weights(folder, earlier) if earlier and earlier.options.get("init_adapter") == name else None
    hub = {key: value for key in ("cache_dir", "token") if (value := getattr(options, key))}
    adapter = read_initial_adapter(source or name, **hub)
    decided = _recorded(earlier) if source and earlier else _decided(adapter, with_text=not options.freeze_text_encoder)
    values = _adopted(options, adapter, decided)
    if source is None:
        kind = "DoRA" if values["use_dora"] else "rsLoRA" if values["use_rslora"] else "LoRA"
        log(f"Starting from the adapter {name}: {kind} of rank {values['lora_r']}, alpha {values['lora_alpha']}")
    return adapter, values


def check_base(adapter: SavedAdapter, checkpoint: Checkpoint, options: TrainArguments) -> None:
    """Whether the adapter fits the run's base, before songs are prepared.

    Raises:
        UserError: as of `saved_adapter.check_fit`.
    """
    check_fit(adapter, checkpoint, with_text_encoder=not options.freeze_text_encoder)
    made_for = adapter.config.base_model_name_or_path
    if made_for and not _same_name(made_for, checkpoint.name):
        log(f"note: the adapter was made for {made_for}, and the base of this run is {checkpoint.name}")


def record_of(model: Any, initial: SavedAdapter, resumed: Path | None) -> dict[str, Any]:
    """The entry in `run.json` on the initial adapter; a resumed run keeps it."""
    earlier = read_record(resumed) if resumed else None
    if earlier is not None and earlier.init_adapter is not None:
        model.initial_digest = earlier.init_adapter["digest"]
        return earlier.init_adapter
    return {"revision": initial.revision, "digest": model.initial_digest}


def _own_weights(folder: Path, earlier: RunRecord) -> str | None:
    """The weights that the run in a folder goes on with; None where it has none yet."""
    checkpoint = last_checkpoint(folder)
    if checkpoint is None and not earlier.finished:
        return None
    return str(checkpoint or folder)


def _recorded(earlier: RunRecord) -> dict[str, Any]:
    return {name: earlier.options[name] for name in (*SETTINGS, *BASE) if name in earlier.options}


def _decided(adapter: SavedAdapter, *, with_text: bool) -> dict[str, Any]:
    """The options that an adapter decides, with the base that it names."""
    config = adapter.config
    decided = {
        "lora_r": config.r,
        "lora_alpha": config.lora_alpha,
        "lora_targets": targets_of(adapter, with_text_encoder=with_text),
        "use_dora": bool(config.use_dora),
        "use_rslora": bool(config.use_rslora),
        "lora_init": "default",
    }
    if config.base_model_name_or_path:
        decided |= {"model_name_or_path": config.base_model_name_or_path, "model_revision": config.revision}
    return decided


def _adopted(options: TrainArguments, adapter: SavedAdapter, decided: dict[str, Any]) -> dict[str, Any]:
    """The values for options left at their default; a base that was named wins over the adapter's, see `check_base`."""
    defaults = {entry.name: entry.default for entry in dataclasses.fields(options)}
    values = {name: decided[name] for name in SETTINGS if name in decided}
    for name, value in values.items():
        given = getattr(options, name)
        if given not in (defaults[name], value):
            raise UserError(f"--{name} {given} contradicts the adapter {adapter.name}, which has {value}; leave it out")
    if options.model_name_or_path == defaults["model_name_or_path"]:
        free = [name for name in BASE if name in decided and getattr(options, name) == defaults[name]]
        values |= {name: decided[name] for name in free}
    return values


def _same_name(one: str, other: str) -> bool:
    """Whether two names of a base are the same folder or the same repository."""
    if Path(one).is_dir() and Path(other).is_dir():
        return Path(one).resolve() == Path(other).resolve()
    return one.rstrip("/") == other.rstrip("/")
