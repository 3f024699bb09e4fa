"""A saved LoRA adapter as the start of another training.

It may come from this package or from plain PEFT, trained on the composite model of transformers or on its parts.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from peft.utils import load_peft_weights
from torch import nn

from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.files import write_json
from musicgen_dreamboothing.hub import weights_fingerprint
from musicgen_dreamboothing.model.adapter import (
    PLAIN_INITIALISATIONS,
    PRESETS,
    TEXT_ENCODER,
    SavedAdapter,
    attach_adapter,
    compute_in_base_precision,
    has_update,
    target_pattern,
    weights_digest,
)
from musicgen_dreamboothing.model.checkpoint import Checkpoint
from musicgen_dreamboothing.model.language_model import language_model_of
from musicgen_dreamboothing.model.weight_files import find_file, first_line

CONFIG = "adapter_config.json"
# What a PEFT adapter may hold beside the two matrices of each layer
BEYOND_LORA = ("modules_to_save", "trainable_token_indices", "target_parameters", "layer_replication", "lora_bias")


def read_initial_adapter(name: str, **hub: Any) -> SavedAdapter:
    """Reads an adapter from a folder or the Hub, without a model; `hub`: cache_dir, token.

    Raises:
        UserError: there is no LoRA adapter, it cannot be read, it is not finite, or all of its updates are zero.
    """
    config, revision = _read_config(name, hub)
    try:
        weights = load_peft_weights(name, device="cpu", **hub)
    except Exception as error:  # safetensors, torch and the Hub have no common class
        raise UserError(f"the weights of the adapter {name} cannot be read: {first_line(error)}") from error
    weights = {key: weight for key, weight in weights.items() if "lora_" in key}  # copies of embeddings are the base's
    if not all(bool(torch.isfinite(weight).all()) for weight in weights.values()):
        raise UserError(f"the adapter {name} holds weights that are not finite: its training diverged")
    if not _has_updates(weights):
        raise UserError(f"the adapter {name} changes nothing: all its updates are zero. Was it trained?")
    return SavedAdapter(name, config, weights, revision)


def _read_config(name: str, hub: dict[str, Any]) -> tuple[LoraConfig, str | None]:
    """The configuration of a LoRA adapter, and its revision."""
    folder = Path(name)
    path = None if folder.exists() and not folder.is_dir() else find_file(name, CONFIG, hub)
    if path is None and not folder.exists():
        raise UserError(f"no adapter at {name!r}: no such folder, and no {CONFIG} of it on the Hub or in the cache")
    if path is None:
        is_model = (folder / "config.json").is_file()
        hint = "; train a full fine-tune further with --model_name_or_path" if is_model else ""
        raise UserError(f"{name} holds no adapter: there is no {CONFIG} in it{hint}")
    try:
        config = PeftConfig.from_pretrained(str(path.parent))
    except Exception as error:  # PEFT has no error of its own for that
        raise UserError(f"{CONFIG} of {name} cannot be read: {first_line(error)}") from error
    if not isinstance(config, LoraConfig):
        kind = getattr(config.peft_type, "value", config.peft_type)
        raise UserError(f"{name} is an adapter of the kind {kind}; --init_adapter takes LoRA (with DoRA, rsLoRA)")
    if config.init_lora_weights not in PLAIN_INITIALISATIONS:
        raise UserError(
            f"the weights of {name} belong to a base changed by {config.init_lora_weights!r}; "
            "take an adapter that was converted to plain LoRA, such as that of a finished run of this program"
        )
    extras = [extra for extra in BEYOND_LORA if getattr(config, extra)] + ["bias"] * (config.bias != "none")
    if extras:
        raise UserError(
            f"the adapter {name} holds more than LoRA weights ({', '.join(extras)}), which is not supported"
        )
    return config, weights_fingerprint(folder) if folder.is_dir() else path.parent.name


def _has_updates(weights: Mapping[str, torch.Tensor]) -> bool:
    """Whether any B·A differs from zero."""
    pairs = [
        (weight, weights.get(name.replace("lora_A", "lora_B").replace("lora_embedding_A", "lora_embedding_B")))
        for name, weight in weights.items()
        if "lora_A" in name or "lora_embedding_A" in name
    ]
    return any(has_update(a, b) for a, b in pairs if b is not None and a.dim() == 2 and len(a) == b.shape[-1])


def targets_of(adapter: SavedAdapter, *, with_text_encoder: bool = False) -> str:
    """The adapted layers as `--lora_targets` takes them: a preset's name, or a regular expression.

    Args:
        adapter: its own targets.
        with_text_encoder: adds the layers of a text encoder that is trained now and was not before.
    """
    targets = adapter.config.target_modules or ""
    pattern = targets if isinstance(targets, str) else rf"(.*\.)?({'|'.join(map(re.escape, sorted(targets)))})"
    for preset in PRESETS:
        if pattern in (target_pattern(preset), target_pattern(preset, with_text_encoder=True)):
            return preset
    adds = with_text_encoder and not adapter.trains_text_encoder
    return f"({pattern})|({TEXT_ENCODER['all']})" if adds else pattern


def check_fit(adapter: SavedAdapter, checkpoint: Checkpoint, *, with_text_encoder: bool = False) -> None:
    """Compares names and sizes of an adapter's weights with a base that is not loaded.

    Raises:
        UserError: they do not fit, or the adapter trains a text encoder that is to stay frozen.
    """
    if adapter.trains_text_encoder and not with_text_encoder:
        raise UserError(f"the adapter {adapter.name} trains the text encoder too; add --freeze_text_encoder false")
    model_class, placeholders = language_model_of(checkpoint, with_text_encoder=with_text_encoder)
    with torch.device("meta"):
        model: Any = model_class(copy.deepcopy(checkpoint.config), **placeholders)
        model.name_or_path = checkpoint.name
        attach_adapter(model, adapter, _trainable(adapter, 0.0, with_text_encoder), load=False)


def start_from_adapter(
    model: nn.Module, adapter: SavedAdapter, *, dropout: float = 0.0, with_text_encoder: bool = False
) -> PeftModel:
    """Wraps the language model with a copy of a saved adapter that can be trained: fp32 weights, as `add_adapter`.

    A text encoder that is trained now and was not before gets fresh layers.

    Raises:
        UserError: as of `check_fit`.
    """
    wrapped = attach_adapter(model, adapter, _trainable(adapter, dropout, with_text_encoder))
    wrapped.initial_adapter, wrapped.initial_digest = None, weights_digest(wrapped)
    compute_in_base_precision(wrapped)
    return wrapped


def _trainable(adapter: SavedAdapter, dropout: float, with_text_encoder: bool) -> LoraConfig:
    config = copy.deepcopy(adapter.config)
    config.lora_dropout = dropout
    if with_text_encoder and not adapter.trains_text_encoder:
        config.target_modules = target_pattern(targets_of(adapter, with_text_encoder=True), with_text_encoder=True)
    return config


def name_base(path: Path, checkpoint: Checkpoint) -> None:
    """Names the base in an adapter's configuration, by transformers' own class instead of ours.

    Args:
        path: `adapter_config.json`.
        checkpoint: the base.
    """
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = str(Path(checkpoint.name).resolve()) if checkpoint.is_local else checkpoint.name
    config["revision"] = checkpoint.revision
    family = "musicgen_melody" if checkpoint.is_melody else "musicgen"
    config["auto_mapping"] = {
        "base_model_class": checkpoint.model_class.__name__,
        "parent_library": f"transformers.models.{family}.modeling_{family}",
    }
    write_json(path, config)
