"""Reads options from a command line, or from a JSON or YAML file, into their dataclass."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_type_hints

import yaml
from transformers import HfArgumentParser

from musicgen_dreamboothing.arguments.checking import rule_of
from musicgen_dreamboothing.arguments.data import DataArguments, DoctorArguments, ModelArguments, PrepareArguments
from musicgen_dreamboothing.arguments.demo import DemoArguments
from musicgen_dreamboothing.arguments.evaluate import EvaluateArguments
from musicgen_dreamboothing.arguments.export import ExportArguments, ExtractArguments, ImportArguments
from musicgen_dreamboothing.arguments.generate import GenerateArguments
from musicgen_dreamboothing.arguments.merge import MergeArguments
from musicgen_dreamboothing.arguments.old_names import modernise
from musicgen_dreamboothing.arguments.push import PushArguments
from musicgen_dreamboothing.arguments.train import LoraArguments, RunArguments, TrainArguments
from musicgen_dreamboothing.arguments.trainer_options import GROUPS
from musicgen_dreamboothing.arguments.unknown import explain_unknown
from musicgen_dreamboothing.arguments.warm_start import WarmStartArguments
from musicgen_dreamboothing.console import UserError, one_line

Arguments = TypeVar("Arguments")


VERBS: dict[str, type[Any]] = {
    "prepare": PrepareArguments,
    "doctor": DoctorArguments,
    "train": TrainArguments,
    "generate": GenerateArguments,
    "evaluate": EvaluateArguments,
    "merge": MergeArguments,
    "warm-start": WarmStartArguments,
    "export": ExportArguments,
    "import": ImportArguments,
    "extract": ExtractArguments,
    "push": PushArguments,
    "demo": DemoArguments,
}

# Titles of the groups of `train --help`: ours, and what is left of transformers'.
OURS = {"training": RunArguments, "base": ModelArguments, "adapter": LoraArguments, "songs and captions": DataArguments}
OTHERS = "other options of transformers (without effect here, or refused)"


class _Parser(HfArgumentParser):
    """Errs in one line, and suggests options where one is unknown."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{one_line(message)}; see {self.prog} --help")

    def parse(self, words: Sequence[str]) -> Any:
        """One instance of the parser's dataclass."""
        known, unknown = self.parse_known_intermixed_args(list(words))
        target = self.dataclass_types[0]
        if unknown:
            raise UserError(f"{explain_unknown(unknown[0], target, VERBS)}; see {self.prog} --help")
        names = {entry.name for entry in dataclasses.fields(target) if entry.init}
        return target(**{name: value for name, value in vars(known).items() if name in names})


def parser(target: type[Any], verb: str, about: str, *, show_all: bool = False) -> _Parser:
    """The parser of one verb; fields marked as positional are taken by place.

    Args:
        target: dataclass of the options.
        verb: name of the command.
        about: its description.
        show_all: whether `--help` lists transformers' options that have no effect here or are refused.
    """
    groups = _groups(target)
    positional = " ".join(entry.name for entry in dataclasses.fields(target) if entry.metadata.get("positional"))
    made = _Parser(
        [
            _for_argparse(target, title, names, is_hidden=title == OTHERS and not show_all)
            for title, names in groups.items()
        ],
        prog=f"musicgen-dreamboothing {verb}",
        usage=f"musicgen-dreamboothing {verb} {'[FILE]' if _takes_file(target) else positional} [--option value ...]",
        description=about,
        allow_abbrev=False,
    )
    if OTHERS in groups and not show_all:
        made.add_argument("--help_all", action="store_true", help="List transformers' other options too, and exit.")
    for entry in dataclasses.fields(target):
        if entry.metadata.get("positional"):
            many = "list" in str(entry.type)
            made.add_argument(entry.name, nargs="*" if many else None, help=entry.metadata["help"])
        elif entry.metadata.get("repeated"):
            made.add_argument(f"--{entry.name}", action="append", default=[], help=entry.metadata["help"])
    made.dataclass_types = [target]
    return made


def _groups(target: type[Any]) -> dict[str, list[str]]:
    """The options of a verb by the titles under which `--help` lists them; those of most verbs need no title."""
    own = ("positional", "repeated")  # declared by `parser` itself
    names = [
        entry.name
        for entry in dataclasses.fields(target)
        if entry.init and not any(entry.metadata.get(kind) for kind in own)
    ]
    if target is not TrainArguments:
        return {"": names}
    ours = {title: [entry.name for entry in dataclasses.fields(kind)] for title, kind in OURS.items()}
    inherited = {title: [name for name in group if name in names] for title, group in GROUPS.items()}
    listed = {name for group in [*ours.values(), *inherited.values()] for name in group}
    return ours | inherited | {OTHERS: [name for name in names if name not in listed]}


def _for_argparse(target: type[Any], title: str, names: Sequence[str], *, is_hidden: bool) -> type[Any]:
    """A copy of some fields of a dataclass for HfArgumentParser, which knows neither ranges nor positional fields."""
    types, entries = get_type_hints(target), {entry.name: entry for entry in dataclasses.fields(target)}
    options = [(name, types[name], _with_range(entries[name], is_hidden=is_hidden)) for name in names]
    group = {"_argument_group_name": title} if title else {}  # read by HfArgumentParser
    return dataclasses.make_dataclass(target.__name__, options, namespace=group)


def _with_range(entry: dataclasses.Field[Any], *, is_hidden: bool) -> Any:
    """The field with its range or its choices in its help, or hidden from `--help`."""
    rule = rule_of(entry)
    values = f"one of {', '.join(rule.choices)}" if rule.choices else rule.range
    text = f"{entry.metadata.get('help', '')}{f' [{values}]' if values else ''}"
    text = argparse.SUPPRESS if is_hidden else text
    if entry.default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=entry.default_factory, metadata={"help": text})
    return dataclasses.field(default=entry.default, metadata={"help": text})


def parse(target: type[Arguments], verb: str, about: str, words: Sequence[str]) -> Arguments:
    """Reads the words of a command line: `[FILE] [--option value ...]`, options winning over the file."""
    words = list(words)
    if show_all := target is TrainArguments and "--help_all" in words:
        words = ["--help"]
    made = parser(target, verb, about, show_all=show_all)
    if _takes_file(target) and words and not words[0].startswith("-"):
        words = [*words_of_file(Path(words[0])), *words[1:]]
    return made.parse(modernise(words, {entry.name for entry in dataclasses.fields(target)}))  # type: ignore[arg-type]


def _takes_file(target: type[Any]) -> bool:
    return not any(entry.metadata.get("positional") for entry in dataclasses.fields(target))


def words_of_file(path: Path) -> list[str]:
    """The options in a JSON or YAML file as the words of a command line.

    Raises:
        UserError: no such file, or it does not hold one mapping of names to values.
    """
    if path.suffix not in (".json", ".yaml", ".yml"):
        raise UserError(f"{str(path)!r} is neither an option nor a .json, .yaml or .yml file of options")
    if not path.is_file():
        raise UserError(f"no file of options at {path}")
    try:
        text = path.read_text(encoding="utf-8-sig")
        values = json.loads(text) if path.suffix == ".json" else yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:
        hint = "; in JSON a path takes / or \\\\ for each \\" if "escape" in str(error) else ""
        raise UserError(f"{path} can't be read: {' '.join(str(error).split())}{hint}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold one mapping of option names to values")
    return [word for name, value in values.items() for word in _words(str(name), value)]


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 2e-4 as text; here it is the number that JSON says it is."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _words(name: str, value: Any) -> Iterable[str]:
    if value is None:
        return []
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    if isinstance(value, dict):
        return [f"--{name}", json.dumps(value)]
    return [f"--{name}={str(value).lower() if isinstance(value, bool) else value}"]
