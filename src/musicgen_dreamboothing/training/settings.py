"""Settings of a training, resolved once from options, base, songs and processes, before a model is loaded.

Nothing here or later writes to the options that a caller passed: `with_values` copies them.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import IntervalStrategy
from transformers.trainer_utils import SaveStrategy

from musicgen_dreamboothing.arguments import PATIENCE, SHORT_EPOCHS, TrainArguments
from musicgen_dreamboothing.data.captions.captions import key_phrase
from musicgen_dreamboothing.data.layout import is_prepared
from musicgen_dreamboothing.data.prepare import prepare_songs, refresh
from musicgen_dreamboothing.data.run_record import RunRecord
from musicgen_dreamboothing.data.tokens.melodies import melody_source
from musicgen_dreamboothing.data.tokens.tables import Tables, load_tables
from musicgen_dreamboothing.device import parse_dtype, return_freed_memory
from musicgen_dreamboothing.model.adapter import SavedAdapter
from musicgen_dreamboothing.model.checkpoint import Checkpoint
from musicgen_dreamboothing.model.seams import use_one_gpu
from musicgen_dreamboothing.training.batch_split import BatchSplit, settle_split
from musicgen_dreamboothing.training.checkpoints import last_checkpoint
from musicgen_dreamboothing.training.prior import prior_tables
from musicgen_dreamboothing.training.record import result_options
from musicgen_dreamboothing.training.summary import log_data, log_stopping

LIBRARIES = ("musicgen-dreamboothing", "torch", "transformers", "peft", "accelerate", "datasets")


@dataclass(frozen=True)
class Settings:
    """All that a training depends on.

    Attributes:
        options: as the user gave them, with what an initial adapter decides.
        checkpoint: the base.
        initial: the adapter to begin from.
        prepared: folder with clips and tokens.
        tables: clips to train on and held-out clips.
        prior: clips of the class, with prior preservation.
        split: how the clips of an update are computed.
        resume: the checkpoint that the run continues from.
    """

    options: TrainArguments
    checkpoint: Checkpoint
    initial: SavedAdapter | None
    prepared: Path
    tables: Tables
    prior: Tables | None
    split: BatchSplit
    resume: Path | None

    @property
    def folder(self) -> Path:
        return Path(str(self.options.output_dir))

    @property
    def key_phrase(self) -> str:
        return key_phrase(self.options.instance_prompt, self.options.class_prompt)

    @property
    def has_held_out(self) -> bool:
        return len(self.tables.held_out) > 0

    @property
    def evaluates(self) -> bool:
        """Whether there is something to evaluate by: held-out songs, or the distance to those that are trained on."""
        return self.has_held_out or self.options.measures_style

    @property
    def epochs(self) -> float:
        """Passes over all clips that are planned."""
        if self.options.max_steps <= 0:
            return float(self.options.num_train_epochs)
        split = self.split
        clips = split.per_device_train_batch_size * split.gradient_accumulation_steps * split.processes
        return self.options.max_steps * clips / len(self.tables.train)

    @property
    def stops_by_default(self) -> bool:
        """Whether early stopping is on without being asked for: in long runs, evaluated and saved as by default."""
        options = self.options
        by_epoch = options.eval_strategy == IntervalStrategy.EPOCH and options.save_strategy == SaveStrategy.EPOCH
        is_usual = options.early_stopping_patience is None and by_epoch and not options.eval_delay
        return is_usual and self.evaluates and self.epochs > SHORT_EPOCHS

    @property
    def patience(self) -> int:
        """Evaluations without improvement after which the training stops; 0 for none."""
        if self.stops_by_default:
            return PATIENCE
        return (self.options.early_stopping_patience or 0) if self.evaluates else 0

    @property
    def dtype(self) -> torch.dtype:
        """Of the base: all weights of a full fine-tune are the optimizer's, which needs fp32."""
        return parse_dtype(self.options.dtype, self.options.device) if self.options.use_lora else torch.float32

    def trainer_arguments(self) -> TrainArguments:
        """The options as transformers' Trainer needs them: without what this package does itself."""
        values: dict[str, Any] = {
            "per_device_train_batch_size": self.split.per_device_train_batch_size,
            "gradient_accumulation_steps": self.split.gradient_accumulation_steps,
            "recompute": self.split.recompute,
            "label_names": ["labels"],
            "push_to_hub": False,  # it would upload the songs
            "enable_jit_checkpoint": False,  # it would save in the middle of an update
            "torch_compile": False,  # layers are compiled one by one
            "torch_compile_backend": None,
            "torch_compile_mode": None,
        }
        if self.resume is not None:
            values |= {"eval_on_start": False}  # the log has that evaluation
        if self.stops_by_default:  # transformers has checked the rest of it: by epoch, evaluations meet checkpoints
            metric = self.options.metric_for_best_model or "loss"
            values |= {"load_best_model_at_end": True, "metric_for_best_model": metric, "greater_is_better": False}
        if not self.evaluates:
            values |= {"eval_strategy": IntervalStrategy.NO, "eval_on_start": False, "load_best_model_at_end": False}
        arguments = with_values(self.options, **values)
        if arguments.n_gpu > 1:
            use_one_gpu(arguments)
        return arguments

    def record(self) -> RunRecord:
        """The contents of `run.json` at the start of the run."""
        return RunRecord(
            result_options(self.options),
            self.checkpoint.name,
            self.checkpoint.identity,
            self.tables.fingerprint + (self.prior.fingerprint if self.prior is not None else ""),
            asdict(self.split),
            str(self.prepared.resolve()),
            clips=self.tables.split.to_json(),
            versions={name: version(name) for name in LIBRARIES},
        )


def with_values(options: TrainArguments, **values: Any) -> TrainArguments:
    """A copy of options with other values, which are not checked again."""
    changed = copy.copy(options)
    for name, value in values.items():
        setattr(changed, name, value)
    return changed


def resolve_settings(options: TrainArguments, checkpoint: Checkpoint, initial: SavedAdapter | None) -> Settings:
    """Prepares the songs, splits them, and decides how an update is computed; see `Settings`.

    Raises:
        UserError: the songs cannot be used, or the run cannot continue with them or with this number of processes.
    """
    prepared, rows = _prepared_songs(options, checkpoint)
    tables = load_tables(
        prepared,
        rows,
        checkpoint,
        eval_fraction=options.eval_fraction,
        seed=options.seed,
        limits=(options.max_train_samples, options.max_eval_samples),
        text_states=options.freeze_text_encoder,
        key_phrase=key_phrase(options.instance_prompt, options.class_prompt),
        word_dropout=options.word_dropout,
        melody=melody_source(options, checkpoint),
        workers=options.preprocessing_num_workers,
    )
    log_data(tables, options)
    prior = None
    if options.with_prior_preservation:
        prior = prior_tables(options, checkpoint, prepared, options.crop_seconds or max(tables.train["seconds"]))
    return_freed_memory()  # the plan counts what is free
    resume = last_checkpoint(Path(str(options.output_dir)))
    split = settle_split(options, checkpoint, [tables] if prior is None else [tables, prior], resume)
    settings = Settings(options, checkpoint, initial, prepared, tables, prior, split, resume)
    log_stopping(settings.stops_by_default, options.metric_for_best_model)
    return settings


def _prepared_songs(options: TrainArguments, checkpoint: Checkpoint) -> tuple[Path, list[dict[str, Any]]]:
    """The prepared folder, brought up to date, and the rows of its clips."""
    songs = Path(str(options.dataset_name)).expanduser()
    if is_prepared(songs):
        done = refresh(songs, options, checkpoint, text_states=options.freeze_text_encoder)
    else:
        folder = Path(options.prepared_dir or f"{options.output_dir}/data")
        name = str(options.dataset_name)
        done = prepare_songs(name, folder, options, checkpoint, text_states=options.freeze_text_encoder)
    return done.folder, done.rows
