"""Options under the names of older versions: each is understood, with one line that names its successor."""

from __future__ import annotations

from collections.abc import Sequence

from musicgen_dreamboothing.console import log

# Names that older files carry, and what became of them.
RENAMED: dict[str, str] = {
    "evaluation_strategy": "eval_strategy",
    "use_auth_token": "token",
    "overwrite_output_dir": "restart",
    "warmup_ratio": "warmup_steps",
    "push_to_hub_token": "hub_token",
    "push_to_hub_model_id": "hub_model_id",
    "no_cuda": "use_cpu",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
}
RETIRED: dict[str, str] = {
    "include_inputs_for_metrics": "include_for_metrics; evaluation here needs neither",
    "logging_dir": "the environment variable TENSORBOARD_LOGGING_DIR",
    "group_by_length": "train_sampling_strategy; clips of one length need neither",
}
WITHOUT_SUCCESSOR = frozenset(
    (
        *("save_safetensors", "half_precision_backend", "fp16_backend", "fp16_opt_level", "use_mps_device"),
        *("jit_mode_eval", "use_ipex", "past_index", "dispatch_batches", "split_batches", "torchdynamo"),
        *("include_tokens_per_second", "ray_scope", "tpu_num_cores", "tpu_metrics_debug", "mp_parameters"),
        *("fsdp_min_num_params", "fsdp_transformer_layer_cls_to_wrap", "push_to_hub_organization"),
        *("use_legacy_prediction_loop", "config_name", "processor_name", "use_fast_tokenizer"),
    )
)


def modernise(words: Sequence[str], known: set[str]) -> list[str]:
    """Replaces the names of older versions that are not among the known ones, saying each in one line."""
    return [word for flag, values in _grouped(words) for word in _modern(flag, values, known)]


def _grouped(words: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Each `--option` with the words that follow it; words before the first stand under an empty name."""
    groups: list[tuple[str, list[str]]] = [("", [])]
    for word in words:
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            groups.append((flag, [value] if equals else []))
        else:
            groups[-1][1].append(word)
    return groups


def _modern(flag: str, values: list[str], known: set[str]) -> list[str]:
    name = flag.removeprefix("--").replace("-", "_")
    if name in known:
        return _option(flag, values)
    if name in RETIRED:
        log(f"option {name} is gone; its successor is {RETIRED[name]}")
        return values[1:]  # what follows the option's own value stands by itself
    if name in WITHOUT_SUCCESSOR:
        log(f"option {name} is gone and has no successor")
        return values[1:]
    if name in RENAMED:
        log(f"option {name} is now called {RENAMED[name]}")
        if name == "use_auth_token" and values in ([], ["true"], ["false"], ["True"], ["False"]):
            return []  # it used to switch the stored login on and off; a token itself stands there now
        return _option(f"--{RENAMED[name]}", values)
    return _option(flag, values) if flag else values


def _option(flag: str, values: list[str]) -> list[str]:
    """The words of one option; argparse would take a value such as `-metal-` for another one."""
    return [f"{flag}={values[0]}"] if len(values) == 1 and values[0].startswith("-") else [flag, *values]
