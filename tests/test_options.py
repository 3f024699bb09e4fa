"""Values of options: the ranges beside them, odd values, and options without an effect; no model is loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest

from musicgen_dreamboothing.arguments import VERBS, check_values, parse
from musicgen_dreamboothing.arguments.checking import rule_of
from musicgen_dreamboothing.console import UserError

LONG = "long " * 4000
ODD = ["nan", "inf", "-inf", "-1", "0", "0.5", "1e30", "9" * 21, "9" * 5000, "", " ", "none", "true", "[]", "{}"]
ODD += ['{"a": 1}', "[1]", LONG, "пусто 🎸", "\n", "a\nb", "\udce9", "%s", "--", "-x", "../..", "1,2", "/dev/null"]
WORDS = {
    "prepare": ["songs", "--output_dir", "data"],
    "doctor": ["data"],
    "train": ["--dataset_name", "songs", "--output_dir", "run"],
    "generate": ["model", "punk"],
    "evaluate": ["run"],
    "demo": [],
}


def outcome(verb: str, words: list[str]) -> str:
    """The error of a command's options, or an empty text."""
    try:
        check_values(parse(VERBS[verb], verb, "", words))
    except UserError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    import sys, traceback, collections

    seen = collections.Counter()
    for verb, target in VERBS.items():
        if len(sys.argv) > 1 and verb not in sys.argv[1:]:
            continue
        for entry in dataclasses.fields(target):
            if not entry.init:
                continue
            for value in ODD:
                words = [value] if entry.metadata.get("positional") else [*WORDS[verb], f"--{entry.name}={value}"]
                try:
                    o = outcome(verb, words)
                    if "\n" in o or len(o) > 400:
                        print("MULTI", verb, entry.name, repr(value[:20]), repr(o[:300]))
                except BaseException as e:
                    key = (verb, entry.name, type(e).__name__)
                    seen[key] += 1
                    if seen[key] == 1:
                        print(verb, entry.name, repr(value[:30]), type(e).__name__, str(e)[:100])
                        traceback.print_exc(limit=-2)
