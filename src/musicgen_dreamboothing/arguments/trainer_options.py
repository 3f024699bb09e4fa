"""transformers' own training options: which of them work here, which have no part in it, and which are refused.

Every field of `Seq2SeqTrainingArguments` stands in one of the three. One that a later version adds is refused.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from accelerate.utils import str_to_bool

from musicgen_dreamboothing.console import UserError, one_line, quiet_loggers

with quiet_loggers("bitsandbytes"):  # transformers imports it by way of peft, and it says which kernels it lacks
    from transformers import Seq2SeqTrainingArguments
    from transformers.trainer_pt_utils import AcceleratorConfig

# Options of transformers that work here, by the group in which `--help` lists them.
GROUPS: dict[str, tuple[str, ...]] = {
    "optimisation": (
        *("output_dir", "per_device_train_batch_size", "num_train_epochs", "max_steps", "gradient_accumulation_steps"),
        *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "optim", "optim_args"),
        *("weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
    ),
    "precision, memory and compilation": (
        *("bf16", "fp16", "tf32", "torch_compile", "torch_compile_backend", "torch_compile_mode"),
        *("gradient_checkpointing", "gradient_checkpointing_kwargs"),
        *("activation_checkpointing", "activation_checkpointing_kwargs", "torch_empty_cache_steps"),
    ),
    "evaluation and best checkpoint": (
        *("eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "eval_accumulation_steps"),
        *("per_device_eval_batch_size", "do_train", "do_eval"),
        *("load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
    ),
    "checkpoints": ("save_strategy", "save_steps", "save_total_limit", "resume_from_checkpoint"),
    "logging and trackers": (
        *("logging_strategy", "logging_steps", "logging_first_step", "logging_nan_inf_filter", "log_level"),
        *("log_level_replica", "log_on_each_node", "disable_tqdm", "report_to", "run_name", "project", "debug"),
        *("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "skip_memory_metrics"),
    ),
    "Hub": ("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id"),
    "seeds and devices": ("seed", "data_seed", "full_determinism", "use_cpu", "local_rank"),
    "data loading": (
        *("dataloader_drop_last", "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
        *("dataloader_prefetch_factor", "dataloader_multiprocessing_context"),
    ),
    "several processes": (
        *("ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_backend", "ddp_timeout"),
        "accelerator_config",
    ),
}
SUPPORTED = frozenset(name for names in GROUPS.values() for name in names)
# What its Trainer reads for other models, leaves to scripts, or what is done here anyway.
IDLE = frozenset(
    (
        *("predict_with_generate", "generation_max_length", "generation_num_beams", "generation_config", "use_cache"),
        *("sortish_sampler", "do_predict", "include_for_metrics", "train_sampling_strategy", "length_column_name"),
        *("prediction_loss_only", "hub_strategy", "hub_always_push", "label_names", "average_tokens_across_devices"),
        "include_num_input_tokens_seen",  # seconds of audio are counted
        *("enable_jit_checkpoint", "restore_callback_states_from_checkpoint"),  # both are always done
    )
)
SHARDED = "weights are not split over devices here; several GPUs work as copies of each other (`accelerate launch`)"
RESUMED = "a run could not be resumed where it was stopped"
OWN_LOSS = "the loss of the codebooks is computed here"
UNSUPPORTED = {
    "label_smoothing_factor": OWN_LOSS,
    "neftune_noise_alpha": OWN_LOSS,
    "use_liger_kernel": OWN_LOSS,
    "liger_kernel_config": OWN_LOSS,
    "auto_find_batch_size": "--recompute auto splits the batch as memory allows",
    "batch_eval_metrics": "held-out clips are summed up over all batches",
    "eval_do_concat_batches": "held-out clips are summed up over all batches",
    "eval_use_gather_object": "held-out clips are summed up over all batches",
    "bf16_full_eval": "it would round the weights that are saved; choose --dtype",
    "fp16_full_eval": "it would round the weights that are saved; choose --dtype",
    "optim_target_modules": "optimizers with an update for each layer have no state that is saved",
    "remove_unused_columns": "the collator reads every column",
    "hub_revision": "a run is pushed to the repository's main branch",
    "save_only_model": RESUMED,
    "save_on_each_node": "the main process alone writes a run",
    "ignore_data_skip": RESUMED,
    "dataloader_in_order": RESUMED,
    "ddp_static_graph": "a micro-batch is split where memory runs out",
    "parallelism_config": SHARDED,
    "fsdp": SHARDED,
    "fsdp_config": SHARDED,
    "deepspeed": SHARDED,
}
LAUNCHED = {
    "ACCELERATE_USE_FSDP": SHARDED,
    "ACCELERATE_USE_DEEPSPEED": SHARDED,
    "ACCELERATE_USE_MEGATRON_LM": SHARDED,
    "ACCELERATE_USE_PARALLELISM_CONFIG": SHARDED,
    "ACCELERATE_USE_SAGEMAKER": "it is not tested",
}
# Parts of `accelerator_config`: another way to deal out batches would deal out other clips to an update.
ACCELERATOR_DEFAULTS: dict[str, tuple[Any, ...]] = {
    "split_batches": (False,),
    "dispatch_batches": (None, False),
    "even_batches": (True,),
    "gradient_accumulation_kwargs": (None, {}),
    "use_configured_state": (False,),
    "use_seedable_sampler": (True, False),  # neither has a part in our sampler
    "non_blocking": (True, False),
}


def check_trainer_options(options: Any) -> None:
    """Refuses what does not work here, given as an option or to `accelerate launch`, before transformers acts on it.

    Raises:
        UserError: names the option.
    """
    for name, reason in LAUNCHED.items():
        if str_to_bool(os.environ.get(name, "false")):
            raise UserError(f"{name}, set by `accelerate config` or `launch`, is not supported: {reason}")
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if backend.lower() != "no":
        raise UserError(
            f"ACCELERATE_DYNAMO_BACKEND={backend} is not supported; --torch_compile true compiles the layers"
        )
    defaults = {entry.name: entry.default for entry in dataclasses.fields(options)}
    for name in [entry.name for entry in dataclasses.fields(Seq2SeqTrainingArguments)]:
        if name not in SUPPORTED | IDLE and not _is_default(getattr(options, name), defaults[name]):
            reason = UNSUPPORTED.get(name, "it is not tested with this version of transformers")
            raise UserError(f"--{name} is not supported: {reason}")
    _check_accelerator_config(options.accelerator_config)


def _check_accelerator_config(config: Any) -> None:
    if config is None:
        return
    if isinstance(config, AcceleratorConfig):
        config = config.to_dict()
    try:
        values = config if isinstance(config, dict) else json.loads(_text_of(str(config)))
        unknown = [name for name, value in values.items() if value not in ACCELERATOR_DEFAULTS.get(name, ())]
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"--accelerator_config {one_line(repr(config), 60)} can't be read: give JSON, or a file of it"
        ) from error
    if unknown:
        raise UserError(f"--accelerator_config {unknown[0]}={values[unknown[0]]!r} is not supported: {RESUMED}")


def _text_of(config: str) -> str:
    return config if config.lstrip().startswith("{") else Path(config).read_text(encoding="utf-8")


def _is_default(value: Any, default: Any) -> bool:
    """Whether an option is as it was; other empty values are the same as none."""
    return bool(value == default) or (not value and not default)
