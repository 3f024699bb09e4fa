"""Whether a run may be resumed: with the options, the base and the data that it began with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from musicgen_dreamboothing.arguments import LORA_DEFAULTS, DataArguments, LoraArguments, ModelArguments, TrainArguments
from musicgen_dreamboothing.console import UserError, log
from musicgen_dreamboothing.data.run_record import FILE, RunRecord, read_record
from musicgen_dreamboothing.data.tokens.melodies import NONE
from musicgen_dreamboothing.model.checkpoint import Checkpoint, load_checkpoint
from musicgen_dreamboothing.training.longer import LENGTHS

SECRET = {"token", "hub_token"}
# Options that may change between two parts of the same run.
FREE_OPTIONS = SECRET | {"cache_dir", "preprocessing_num_workers", "encode_batch_size", "overwrite_cache"}
# transformers' options that the weights depend on; ours all count, but for those above.
RESULT_OPTIONS = (
    *("num_train_epochs", "max_steps", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
    *("optim", "optim_args", "weight_decay", "dataloader_drop_last"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "seed", "data_seed", "dtype"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "dataset_name", "max_train_samples"),
    *("eval_fraction", "crop_seconds", "random_crop", "caption_dropout", "melody_dropout"),
    *("continuation_fraction", "quantization"),
    *("with_prior_preservation", "prior", "num_class_clips", "prior_loss_weight", "class_data_dir", "class_prompts"),
)


def discard_record(folder: Path) -> None:
    """Removes the record of the run in this folder."""
    (folder / FILE).unlink(missing_ok=True)


def result_options(options: TrainArguments) -> dict[str, Any]:
    """The options that a run's result depends on, as JSON values."""
    ours = [entry.name for kind in (ModelArguments, DataArguments, LoraArguments) for entry in dataclasses.fields(kind)]
    names = sorted({*ours, *RESULT_OPTIONS} - FREE_OPTIONS)
    return {name: _plain(getattr(options, name)) for name in names}


def changed_options(options: TrainArguments) -> dict[str, Any]:
    """The options of `result_options` that differ from the defaults of a LoRA training, for the card."""
    return changed_values(result_options(options))


def changed_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """`changed_options` of a record's options."""
    defaults = {entry.name: entry.default for entry in dataclasses.fields(TrainArguments)} | LORA_DEFAULTS
    defaults["melody"] = NONE
    return {name: value for name, value in values.items() if value != _plain(defaults.get(name))}


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


def base_of_run(record: RunRecord, checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """The base at the revision that a run began with: its branch on the Hub may have moved since.

    Raises:
        UserError: that revision cannot be had any more.
    """
    revision = record.base_revision
    if checkpoint.is_local or checkpoint.name != record.base_model or revision in (None, checkpoint.identity):
        return checkpoint
    try:
        recorded = load_checkpoint(
            dataclasses.replace(checkpoint.source, revision=revision),
            pad_token_id=checkpoint.pad_token_id,
            start_token_id=checkpoint.start_token_id,
        )
    except UserError as error:
        raise UserError(
            f"the run in {folder} began with revision {revision} of {checkpoint.name}, which is not available any more "
            f"({error}); choose another --output_dir, or discard that run with --restart true"
        ) from error
    log(f"{checkpoint.name} has changed since this run began; continuing with its revision {revision}")
    return recorded


def _plain(value: Any) -> Any:
    value = getattr(value, "value", value)  # an enumeration's
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def check_same_run(record: RunRecord, options: TrainArguments, folder: Path) -> None:
    """Refuses to continue a run with other options than it began with. Its length may change (`longer`).

    Raises:
        UserError: names the options that differ.
    """
    usual = {entry.name: _plain(entry.default) for entry in dataclasses.fields(options)} | {"melody": NONE}
    before, now = usual | record.options, result_options(options)  # older records lack newer options
    names = [name for name in now if name not in LENGTHS]  # a run may be trained longer
    changed = [f"{name} ({before.get(name)} -> {now[name]})" for name in names if before.get(name) != now[name]]
    if changed:
        raise UserError(
            f"{folder} holds a run with other options: {', '.join(changed)}; "
            "choose another --output_dir, or discard that run with --restart true"
        )
