"""How an option is declared: its default, its help, the values it takes, and where it has an effect."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

WAIT = 12 * 3600  # seconds: the main process downloads and prepares for hours, the others wait for it
RULE = "rule"  # key in the metadata of a dataclass field
LARGEST_SEED = 2**32 - 1  # numpy's limit
LONGEST_SECONDS = 3600  # of a clip; the models were trained on 30 s
LARGEST_BATCH = 4096
MOST_WORKERS = 256


@dataclass(frozen=True)
class Rule:
    """Which values an option takes, and when it has an effect. Floats are always finite.

    Attributes:
        at_least, above, at_most, below: limits of a number.
        choices: the only values of a text, or of each text of a list.
        may_be_empty: an empty text is a value; elsewhere it is refused.
        required: the error where the option is missing (its default is an empty text).
        needs: the option has an effect only where one of these holds: `--cut bars`, or `--plan` for any true value.
            Conditions on options that a verb lacks do not count.
        unless: the option has no effect where this holds.
        for_songs: the option has no effect with a folder that is prepared already.
        ignored: the option never has an effect.
    """

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    may_be_empty: bool = False
    required: str = ""
    needs: tuple[str, ...] = ()
    unless: str = ""
    for_songs: bool = False
    ignored: bool = False

    @property
    def range(self) -> str:
        """The limits in words, e.g. `above 0 and at most 1`; empty without any."""
        limits = {"at least": self.at_least, "above": self.above, "at most": self.at_most, "below": self.below}
        return " and ".join(f"{word} {limit:.12g}" for word, limit in limits.items() if limit is not None)

    def allows(self, number: float) -> bool:
        """Whether a number, which may be NaN, is finite and within the limits."""
        return (
            abs(number) < float("inf")
            and (self.at_least is None or number >= self.at_least)
            and (self.above is None or number > self.above)
            and (self.at_most is None or number <= self.at_most)
            and (self.below is None or number < self.below)
        )


def option(default: Any, text: str, *, positional: bool = False, repeated: bool = False, **rule: Any) -> Any:
    """A field with its default, its line in `--help`, and its `Rule`, whose attributes are the other arguments.

    Args:
        default: value without the option; a list is copied.
        text: what it means.
        positional: whether it is given by its place instead of `--name`.
        repeated: whether a list is given as `--name a --name b` instead of `--name a b`.
    """
    metadata = {"help": text, "positional": positional, "repeated": repeated, RULE: Rule(**rule)}
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata, kw_only=not positional)
    return field(default=default, metadata=metadata, kw_only=not positional)
