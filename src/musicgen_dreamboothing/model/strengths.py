"""How strongly an adapter changes each group of layers, and how `NAME:STRENGTH` on a command line is read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from musicgen_dreamboothing.console import UserError

LOWEST, HIGHEST = -2.0, 3.0
# Groups of layers with a strength of their own, by the names of their weights.
GROUPS = {
    "attention": re.compile(r"decoder\.model\.decoder\.layers\.\d+\.(self_attn|encoder_attn)\."),
    "ffn": re.compile(r"decoder\.model\.decoder\.layers\.\d+\.fc[12]\."),
    "heads": re.compile(r"decoder\.lm_heads\."),
    "embeddings": re.compile(r"decoder\.model\.decoder\.embed_tokens\."),
}
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
SUFFIX = re.compile(rf"(?:[a-z]+=)?{NUMBER}(?:,(?:[a-z]+=)?{NUMBER})*")


@dataclass(frozen=True)
class Strength:
    """Factors of an adapter's update: 0 is the base, 1 the adapter as trained.

    Attributes:
        usual: of all weights whose group is not named.
        groups: of the weights of a group, by its name in `GROUPS`.

    Raises:
        UserError: an unknown group, or a factor outside -2 to 3.
    """

    usual: float = 1.0
    groups: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for group in self.groups:
            if group not in GROUPS:
                raise UserError(f"a strength of {group!r}: there is no such group of layers; it takes {_known()}")
        for factor in (self.usual, *self.groups.values()):
            if not LOWEST <= factor <= HIGHEST:
                raise UserError(
                    f"the strength {factor:g} of an adapter must be at least {LOWEST:g} and at most {HIGHEST:g}"
                )

    def of(self, weight: str) -> float:
        """The factor of a weight by its name in the checkpoint."""
        group = next((name for name, pattern in GROUPS.items() if pattern.match(weight)), None)
        return self.groups.get(group, self.usual) if group is not None else self.usual

    def __str__(self) -> str:
        return ",".join([f"{self.usual:g}", *(f"{group}={factor:g}" for group, factor in self.groups.items())])


AS_TRAINED = Strength()
AnyStrength = float | str | Mapping[str, float] | Strength  # 0.8, "0.8,heads=0", {"heads": 0}


def _known() -> str:
    return ", ".join(f"{group}=NUMBER" for group in GROUPS)


def as_strength(value: AnyStrength) -> Strength:
    """A strength from Python.

    Raises:
        UserError: it is none.
    """
    if isinstance(value, Strength):
        return value
    if isinstance(value, str):
        if SUFFIX.fullmatch(value) is None:
            raise UserError(f"{value!r} is no strength; it takes a number, {_known()}, or several with commas")
        return _parse(value)
    if isinstance(value, Mapping):
        return Strength(groups=dict(value))
    return Strength(float(value))


def split_strength(text: str) -> tuple[str, Strength | None]:
    """A name or path, and the strength behind its last colon; None without one.

    What is a path of this machine, or does not read as a strength (`C:\\adapters\\punk`), is the name as a whole.
    """
    name, colon, suffix = text.rpartition(":")
    if not (colon and name) or SUFFIX.fullmatch(suffix) is None or Path(text).exists():
        return text, None
    return name, _parse(suffix)


def _parse(text: str) -> Strength:
    """`0.8`, `attention=0.5,ffn=1` or `0.8,heads=0`."""
    usual, groups = 1.0, {}
    for part in text.split(","):
        group, _, number = part.rpartition("=")
        if group in groups or (not group and usual != 1.0):
            raise UserError(f"the strength {text!r} names {group or 'all layers'} twice")
        if group:
            groups[group] = float(number)
        else:
            usual = float(number)
    return Strength(usual, groups)


def blended(strengths: Sequence[Strength]) -> list[Strength]:
    """Strengths in the same proportions whose absolute values add up to 1, in each group of layers."""
    groups = list(dict.fromkeys(group for strength in strengths for group in strength.groups))
    usual = sum(abs(strength.usual) for strength in strengths)
    totals = {group: sum(abs(one.groups.get(group, one.usual)) for one in strengths) for group in groups}
    return [
        Strength(
            strength.usual / (usual or 1.0),
            {group: strength.groups.get(group, strength.usual) / (totals[group] or 1.0) for group in groups},
        )
        for strength in strengths
    ]
