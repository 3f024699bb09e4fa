"""Messages on options that do not exist: most are misspelt, belong to another verb, or have another name."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping
from typing import Any

DASHES = "-\u2010\u2011\u2012\u2013\u2014\u2212"  # hyphens, dashes and the minus sign that editors make of "--"
SUGGESTIONS = 4
CLOSE, REMOTE = 0.85, 0.6  # similarities of `difflib`


def explain_unknown(word: str, target: type[Any], verbs: Mapping[str, type[Any]]) -> str:
    """One sentence on a word of the command line that is no option of a verb.

    Args:
        word: as it was written.
        target: dataclass of the verb's options.
        verbs: the dataclass of each verb.
    """
    if word[:1] not in DASHES or not word.strip(DASHES):
        return f"{word!r} belongs to no option"
    flag = word.split("=")[0]
    name = flag.strip(DASHES).replace("-", "_").lower()
    options = _options(target)
    if name in options:
        if options[name].metadata.get("positional"):
            return f"{flag} is given by its place, without a name"
        return f"{flag!r} is no option: write --{name}"
    positive = name.removeprefix("no_")
    if positive in options:  # --no_ exists where the default is true
        if options[positive].type in ("bool", "bool | None", bool, bool | None):
            return f"{flag} does not exist: write --{positive} false"
        return f"{flag} does not exist: --{positive} is not true or false"
    owners = [verb for verb, other in verbs.items() if positive in _options(other)]
    if owners:
        return f"{flag} is an option of {' and '.join(owners)} only{_list(_with_words(positive, options))}"
    return f"unknown option {flag}{_list(_suggestions(positive, options))}"


def _list(names: list[str]) -> str:
    return f" (similar: {', '.join(f'--{name}' for name in names[:SUGGESTIONS])})" if names else ""


def _options(target: type[Any]) -> dict[str, dataclasses.Field[Any]]:
    return {entry.name: entry for entry in dataclasses.fields(target) if entry.init}


def _suggestions(name: str, options: Mapping[str, dataclasses.Field[Any]]) -> list[str]:
    """Similar names first, then names by their initials, with the same words, or with these words in their help."""
    names = _named(options)
    if close := difflib.get_close_matches(name, names, n=1, cutoff=CLOSE):
        return close
    initials = [known for known in names if "".join(part[0] for part in known.split("_") if part) == name]
    described = [
        known for known in names if _words(name) <= _words(f"{known} {options[known].metadata.get('help', '')}")
    ]
    related = list(dict.fromkeys([*initials, *_with_words(name, options), *described]))
    return related or difflib.get_close_matches(name, names, n=1, cutoff=REMOTE)


def _named(options: Mapping[str, dataclasses.Field[Any]]) -> list[str]:
    return [name for name, entry in options.items() if not entry.metadata.get("positional")]


def _with_words(name: str, options: Mapping[str, dataclasses.Field[Any]]) -> list[str]:
    """The options that have all words of a name in theirs: those that begin with it, then the short ones."""
    found = [known for known in _named(options) if _words(name) <= _words(known)]
    return sorted(found, key=lambda known: (not known.startswith(name), len(known)))


def _words(text: str) -> set[str]:
    """The words of a name or a sentence, without the s of a plural."""
    return {word.removesuffix("s") for word in re.findall(r"[a-z0-9]+", text.lower())}
