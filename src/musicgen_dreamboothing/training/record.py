"""`run.json`: what a run was asked to do, and whether it is done."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from musicgen_dreamboothing.arguments import DataArguments, LoraArguments, ModelArguments, TrainArguments
from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.data.files import write_json
from musicgen_dreamboothing.model.checkpoint import Checkpoint

FILE = "run.json"
SECRET = {"token", "hub_token"}
# Options that may change between two parts of the same run.
INDIFFERENT = SECRET | {"cache_dir", "preprocessing_num_workers", "encode_batch_size", "overwrite_cache"}
# transformers' options that the weights depend on; ours all count, but for those above.
TELLING = (
    *("num_train_epochs", "max_steps", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
    *("optim", "optim_args", "weight_decay", "dataloader_drop_last"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "seed", "data_seed", "dtype"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "dataset_name", "max_train_samples"),
    *("eval_fraction", "crop_seconds", "random_crop", "caption_dropout", "quantization"),
)


@dataclass
class RunRecord:
    """The contents of `run.json`; `data` is a fingerprint of clips and captions, `base_revision` one of the base.

    `split` says how the batch was split: another one would add up in another order.
    """

    options: dict[str, Any]
    base_model: str
    base_revision: str | None
    data: str
    split: dict[str, Any] = field(default_factory=dict)
    finished: bool = False
    summary: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        write_json(folder / FILE, dataclasses.asdict(self))


def read_record(folder: Path) -> RunRecord | None:
    """The record of an earlier run in this folder; a file of another kind counts as none."""
    try:
        return RunRecord(**json.loads((folder / FILE).read_text(encoding="utf-8")))
    except (OSError, json.JSONDecodeError, TypeError):
        return None


def discard_record(folder: Path) -> None:
    """Forgets the run in this folder."""
    (folder / FILE).unlink(missing_ok=True)


def telling_options(options: TrainArguments) -> dict[str, Any]:
    """The options that a run's result depends on, as JSON values."""
    ours = [entry.name for kind in (ModelArguments, DataArguments, LoraArguments) for entry in dataclasses.fields(kind)]
    names = sorted({*ours, *TELLING} - INDIFFERENT)
    return {name: _plain(getattr(options, name)) for name in names}


def changed_options(options: TrainArguments) -> dict[str, Any]:
    """The telling options that differ from their defaults, for the card."""
    defaults = {entry.name: entry.default for entry in dataclasses.fields(TrainArguments)}
    return {name: value for name, value in telling_options(options).items() if value != _plain(defaults.get(name))}


def check_same_data(folder: Path, record: RunRecord) -> None:
    """Refuses to continue a run with other clips or captions than it began with.

    Raises:
        UserError: they have changed since.
    """
    earlier = read_record(folder)
    if earlier is not None and earlier.data != record.data:
        raise UserError(
            f"songs or captions have changed since the run in {folder} began; "
            "choose another --output_dir, or discard that run with --restart true"
        )


def check_same_base(record: RunRecord, checkpoint: Checkpoint, folder: Path) -> None:
    """Refuses to continue, or to hand back, a run on a folder that holds other weights by now.

    Raises:
        UserError: they have changed since.
    """
    if checkpoint.is_local and record.base_revision != checkpoint.identity:
        raise UserError(
            f"the weights in {checkpoint.name} have changed since the run in {folder} began; "
            "choose another --output_dir, or discard that run with --restart true"
        )


def _plain(value: Any) -> Any:
    value = getattr(value, "value", value)  # an enumeration's
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def check_same_run(record: RunRecord, options: TrainArguments, folder: Path) -> None:
    """Refuses to continue a run with other options than it began with.

    Raises:
        UserError: names the options that differ.
    """
    usual = {entry.name: _plain(entry.default) for entry in dataclasses.fields(options)}
    before, now = usual | record.options, telling_options(options)  # older records lack newer options
    changed = [f"{name} ({before.get(name)} -> {now[name]})" for name in now if before.get(name) != now[name]]
    if changed:
        raise UserError(
            f"{folder} holds a run with other options: {', '.join(changed)}; "
            "choose another --output_dir, or discard that run with --restart true"
        )
