"""Reads checkpoints that audiocraft or programs around it wrote, without running anything in them.

`torch.load(weights_only=True)` builds tensors, containers and numbers only. A training checkpoint holds its
configuration as an object of omegaconf; its few classes, which hold plain values, are allowed where it is installed.
"""

from __future__ import annotations

import importlib.util
import re
import typing
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import is_zipfile

import torch
import yaml

from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.model.weight_files import damaged, imports, refused

STATES = (("fsdp_best_state", "model"), ("best_state", "model"), ("best_state",), ("state_dict",), ("model",), ("lm",))
SEPARATE = "condition_provider"  # which some programs save beside the language model
OMEGACONF = {
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.nodes.AnyNode",
    "omegaconf.base.Metadata",
    "omegaconf.base.ContainerMetadata",
}
BUILT_IN = {f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("dict", "list", "int", "long")}
PLAIN = BUILT_IN | {"typing.Any"}
EXPORT_FIRST = "Where it comes from, export it with audiocraft (audiocraft.utils.export)"
WRAPPERS = re.compile(r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|mha)\.")
ALLOWED = OMEGACONF | PLAIN | {"collections.defaultdict"}


@dataclass(frozen=True)
class Package:
    """The contents of a checkpoint.

    Attributes:
        state: tensors by their names.
        settings: `xp.cfg`, with interpolations such as `${sample_rate}` as texts; empty without one.
        pretrained: name of the published model that the file stands for, instead of tensors.
    """

    state: dict[str, torch.Tensor] = field(repr=False)
    settings: dict[str, Any] = field(default_factory=dict)
    pretrained: str | None = None


def read_package(path: Path) -> Package:
    """Reads a file of audiocraft: exported, of a training, or a plain state dict.

    Raises:
        UserError: it is damaged, holds no weights, or asks for more than tensors and plain values.
    """
    content = _load(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a dictionary of weights")
    if isinstance(content.get("pretrained"), str):
        return Package({}, {}, content["pretrained"])
    state = dict(_state_of(content))
    if isinstance(separate := content.get(SEPARATE), dict):
        state |= {f"{SEPARATE}.{name}": tensor for name, tensor in separate.items()}
    tensors = {
        str(name): tensor
        for name, tensor in state.items()
        if isinstance(tensor, torch.Tensor) and (tensor.is_floating_point() or tensor.dtype == torch.bool)
    }
    if not tensors:
        keys = ", ".join(map(str, list(content)[:5]))
        raise UserError(f"{path} holds no weights; it has {keys or 'nothing'}")
    return Package(tensors, _settings_of(content.get("xp.cfg"), path))


def _state_of(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The best weights of a training, or what else there is."""
    for names in STATES:
        inner: Any = content
        for name in names:
            inner = inner.get(name) if isinstance(inner, dict) else None
        if isinstance(inner, dict) and any(isinstance(value, torch.Tensor) for value in inner.values()):
            return inner
    return content


def _settings_of(value: Any, path: Path) -> dict[str, Any]:
    try:
        if isinstance(value, str):
            value = yaml.safe_load(value)
        elif value is not None and not isinstance(value, dict):
            from omegaconf import OmegaConf  # it was needed to read the file

            value = OmegaConf.to_container(value, resolve=False)
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"xp.cfg of {path} cannot be read: {' '.join(str(error).split())}") from error
    return value if isinstance(value, dict) else {}


def _load(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's warnings about files that will be refused
        try:
            return _unpickle(path)
        except UnpicklingError as error:
            unsafe = {name for name in imports(path) if not _is_known(name)}
            if unsafe - ALLOWED or not unsafe & OMEGACONF:
                raise refused(path, error, EXPORT_FIRST) from error
        if importlib.util.find_spec("omegaconf") is None:
            raise UserError(
                f"{path} is a checkpoint of a training, whose configuration is an object of omegaconf; to read it: "
                "pip install 'musicgen-dreamboothing[audiocraft]'"
            )
        try:
            with torch.serialization.safe_globals(_omegaconf_classes()):
                return _unpickle(path)
        except UnpicklingError as error:
            raise refused(path, error, EXPORT_FIRST) from error


def _is_known(name: str) -> bool:
    """Whether torch's restricted unpickler knows an import anyway."""
    return bool(re.match(r"torch\.|collections\.OrderedDict$", name))


def _unpickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise damaged(path, error) from error


def _omegaconf_classes() -> list[Any]:
    from omegaconf import DictConfig, ListConfig
    from omegaconf.base import ContainerMetadata, Metadata
    from omegaconf.nodes import AnyNode

    return [DictConfig, ListConfig, AnyNode, Metadata, ContainerMetadata, defaultdict, dict, list, int, typing.Any]


def language_model_state(state: Mapping[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """The language model's weights under audiocraft's own names, without prefixes of what it was wrapped in.

    Raises:
        UserError: there is no language model.
    """
    names = {WRAPPERS.sub("", name): tensor for name, tensor in state.items()}
    first = "emb.0.weight"
    prefixes = [name.removesuffix(first) for name in names if re.search(rf"(^|\.){re.escape(first)}$", name)]
    prefix = next((prefix for prefix in prefixes if f"{prefix}out_norm.weight" in names), None)
    if prefix is None:
        shown = ", ".join(list(names)[:3])
        raise UserError(f"{path} is not a MusicGen of audiocraft: it has no {first} and out_norm.weight, but {shown}")
    return dict(_without(names, prefix))


def _without(names: Mapping[str, torch.Tensor], prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in names.items():
        if name.startswith(prefix):
            yield name.removeprefix(prefix), tensor
        elif name.startswith(SEPARATE):
            yield name, tensor
