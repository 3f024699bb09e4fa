"""Reads options from a command line, or from a JSON or YAML file, into their dataclass."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from transformers import HfArgumentParser

from musicgen_dreamboothing.arguments.data import PrepareArguments
from musicgen_dreamboothing.arguments.generate import GenerateArguments
from musicgen_dreamboothing.arguments.old_names import modernise
from musicgen_dreamboothing.arguments.train import TrainArguments
from musicgen_dreamboothing.console import UserError

Arguments = TypeVar("Arguments")


class _Parser(HfArgumentParser):
    """Names the nearest option where one is unknown, and errs in one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")

    def parse(self, words: Sequence[str]) -> Any:
        """One instance of the parser's dataclass."""
        known, unknown = self.parse_known_intermixed_args(list(words))
        for word in unknown:
            raise UserError(self._unknown(word))
        target = self.dataclass_types[0]
        names = {entry.name for entry in dataclasses.fields(target) if entry.init}
        try:
            return target(**{name: value for name, value in vars(known).items() if name in names})
        except (ValueError, ImportError) as error:  # what transformers finds wrong with its own options
            raise UserError(" ".join(str(error).split())) from error

    def _unknown(self, word: str) -> str:
        if not word.startswith("--"):
            return f"{word!r} belongs to no option; see {self.prog} --help"
        name = word.split("=")[0]
        field = name.removeprefix("--").replace("-", "_").removeprefix("no_")
        verbs = {"prepare": PrepareArguments, "train": TrainArguments, "generate": GenerateArguments}
        owners = [
            verb for verb, target in verbs.items() if field in {entry.name for entry in dataclasses.fields(target)}
        ]
        if owners and field not in {entry.name for entry in dataclasses.fields(self.dataclass_types[0])}:
            return f"{name} is an option of {' and '.join(owners)} only; see {self.prog} --help"
        options = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
        near = difflib.get_close_matches(name, options, n=1, cutoff=0.0)
        return f"unknown option {name}; the nearest is {near[0]} (all: {self.prog} --help)"


def parser(target: type[Any], verb: str, about: str) -> _Parser:
    """The parser of one verb; fields marked as positional are taken by place."""
    made = _Parser(
        _without_positionals(target),
        prog=f"musicgen-dreamboothing {verb}",
        description=about,
        allow_abbrev=False,
    )
    for entry in dataclasses.fields(target):
        if entry.metadata.get("positional"):
            many = "list" in str(entry.type)
            made.add_argument(entry.name, nargs="*" if many else None, help=entry.metadata["help"])
    made.dataclass_types = [target]
    return made


def _without_positionals(target: type[Any]) -> type[Any]:
    """A look-alike of the dataclass for HfArgumentParser, which knows only `--options`."""
    hidden = [entry.name for entry in dataclasses.fields(target) if entry.metadata.get("positional")]
    if not hidden:
        return target
    kept = [
        (entry.name, entry.type, _same_field(entry)) for entry in dataclasses.fields(target) if entry.name not in hidden
    ]
    made = dataclasses.make_dataclass(target.__name__, kept)
    made.__module__ = target.__module__
    return made


def _same_field(entry: dataclasses.Field[Any]) -> Any:
    if entry.default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=entry.default_factory, metadata=entry.metadata)
    return dataclasses.field(default=entry.default, metadata=entry.metadata)


def parse(target: type[Arguments], verb: str, about: str, words: Sequence[str]) -> Arguments:
    """Reads the words of a command line: `[FILE] [--option value ...]`, options winning over the file."""
    made = parser(target, verb, about)
    words = list(words)
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
