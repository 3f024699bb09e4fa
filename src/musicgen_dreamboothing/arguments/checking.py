"""The check of all options before anything is loaded, whether they come from a command line or from Python."""

from __future__ import annotations

import dataclasses
import difflib
import os
import types
from collections.abc import Iterator
from numbers import Integral, Real
from typing import Any, Union, get_args, get_origin, get_type_hints

from musicgen_dreamboothing.arguments.fields import RULE, Rule
from musicgen_dreamboothing.arguments.inherited import INHERITED
from musicgen_dreamboothing.console import UserError, log

SHOWN = 60  # characters of a value in a message
MOST_LISTED = 16  # choices in a message
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def rule_of(entry: dataclasses.Field[Any]) -> Rule:
    """The rule beside an option, or the one for transformers' option of this name."""
    return entry.metadata.get(RULE) or INHERITED.get(entry.name) or Rule()


def check_values(options: Any) -> None:
    """Checks every option by itself.

    Args:
        options: any of the dataclasses of options.

    Raises:
        UserError: names the first option whose value is impossible, with what it takes.
    """
    types_of = get_type_hints(type(options))
    for entry in dataclasses.fields(options):
        if not entry.init or (value := getattr(options, entry.name)) is None:
            continue
        name, rule, ours = _flag(entry), rule_of(entry), RULE in entry.metadata
        if rule.required and value == "":
            raise UserError(rule.required)
        if ours:
            _check_type(name, value, types_of[entry.name])
        for single in value if isinstance(value, list | tuple) else [value]:
            _check_value(name, single, rule, may_be_empty=rule.may_be_empty or not ours)


def _flag(entry: dataclasses.Field[Any]) -> str:
    return entry.name.upper() if entry.metadata.get("positional") else f"--{entry.name}"


def _check_type(name: str, value: Any, expected: Any) -> None:
    """Values from Python may be of any type; those of a command line are converted."""
    kind = _without_none(expected)
    if get_origin(kind) is list:
        of_numbers = get_args(kind) == (float,)
        items: Any = Real if of_numbers else str | os.PathLike
        if not isinstance(value, list | tuple) or not all(isinstance(item, items) for item in value):
            raise UserError(f"{name} {shown(value)} must be a list of {'numbers' if of_numbers else 'texts'}")
        return
    accepted = {int: Integral, float: Real, bool: bool, str: str | os.PathLike}.get(kind, object)
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind in (int, float)):
        raise UserError(f"{name} {shown(value)} must be {KINDS[kind]}")


def _without_none(expected: Any) -> Any:
    """`int` of `int | None`."""
    if get_origin(expected) in (Union, types.UnionType):
        return next(kind for kind in get_args(expected) if kind is not type(None))
    return expected


def _check_value(name: str, value: Any, rule: Rule, *, may_be_empty: bool) -> None:
    if isinstance(value, Real) and not isinstance(value, bool):
        if not rule.allows(value):  # type: ignore[arg-type]  # a Real of any library
            raise UserError(f"{name} {shown(value)} must be {rule.range or 'a finite number'}")
    elif isinstance(value, str):
        if not value.strip() and not may_be_empty:
            raise UserError(f"{name} is empty; give it a value or leave it out")
        if "\0" in value:
            raise UserError(f"{name} {shown(value)} contains a zero byte, which neither names nor texts may have")
        if rule.choices and value not in rule.choices:
            raise UserError(f"{name} {shown(value)} is unknown; it takes {_listed(value, rule.choices)}")


def _listed(value: str, choices: tuple[str, ...]) -> str:
    """The choices; of very many the nearest ones."""
    if len(choices) <= MOST_LISTED:
        return ", ".join(choices)
    near = difflib.get_close_matches(value, choices, n=MOST_LISTED, cutoff=0.3) or list(choices[:MOST_LISTED])
    return f"{', '.join(near)} and {len(choices) - len(near)} other names of transformers"


def shown(value: Any) -> str:
    """A value in a message: on one line, shortened in the middle."""
    text = f"{value:g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN // 2]}...{text[-SHOWN // 2 :]}"


def note_unused(options: Any, prepared: str = "") -> None:
    """Says which options were set and have no effect, one line each.

    Args:
        options: any of the dataclasses of options.
        prepared: the folder that is read instead of songs, if it is prepared already.
    """
    for line in _unused(options, prepared):
        log(f"note: {line}")


def _unused(options: Any, prepared: str) -> Iterator[str]:
    entries = {entry.name: entry for entry in dataclasses.fields(options) if entry.init}
    for name, entry in entries.items():
        rule, flag = rule_of(entry), _flag(entry)
        if getattr(options, name) == default_of(entry):
            continue
        needs = [condition for condition in rule.needs if _split(condition)[0] in entries]
        if rule.ignored:
            yield f"{flag} has no effect here"
        elif rule.for_songs and prepared:
            yield f"{flag} has no effect: {prepared} is prepared already"
        elif needs and not any(_holds(options, condition) for condition in needs):
            yield f"{flag} has no effect without {' or '.join(needs)}"
        elif rule.unless and _holds(options, rule.unless):
            yield f"{flag} has no effect with {rule.unless}"


def default_of(entry: dataclasses.Field[Any]) -> Any:
    """The value of an option that is not given."""
    return entry.default if entry.default_factory is dataclasses.MISSING else entry.default_factory()


def _holds(options: Any, condition: str) -> bool:
    """Whether options have the values of a condition such as `--cut bars`, or `--plan` for any true value."""
    name, value = _split(condition)
    actual = getattr(options, name)
    actual = getattr(actual, "value", actual)  # an enumeration's
    if not value:
        return bool(actual)
    if isinstance(actual, list):
        return value in actual
    return value == (f"{actual:g}" if isinstance(actual, float) else actual)


def _split(condition: str) -> tuple[str, str]:
    name, _, value = condition.removeprefix("--").partition(" ")
    return name, value
