"""Sentences that benchmarks/proof.py prints of its runs."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from proof import LONG, PLAIN, PRIOR, Row, conclusions


def row(way: str, seed: int, **changed: float | None) -> Row:
    usual = Row(way, seed, 240, 13.0, 2.0, 0.8, (0.7, 0.9), 30.0, (20.0, 40.0), 0, 20)
    return replace(usual, **changed)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([row(PLAIN, 0)], "held-out loss went down in 1 of 1 runs"),
        ([row(PLAIN, 0), row(PLAIN, 1, loss=14.0)], "held-out loss went down in 1 of 2 runs"),
        (
            [row(PLAIN, 0), row(PRIOR, 0, gone=0.59)],
            "clips went 60 % of the way to the songs or more in 1 of 2 runs",
        ),
        (
            [row(PLAIN, 0, gone=None, drift=None), row(PRIOR, 0)],
            "clips went 60 % of the way to the songs or more in 1 of 2 runs",
        ),
        ([row(PLAIN, 0, copies=1), row(LONG, 0, copies=9)], "near-copies of songs: 1 of 20 clips"),
        ([row(PLAIN, 0), row(LONG, 0, copies=9, updates=4800)], "near-copies after 4800 updates: 9 of 20 clips"),
        (
            [row(PLAIN, 0), row(PRIOR, 0, drift=10.0), row(PLAIN, 1), row(PRIOR, 1, drift=32.0)],
            "other music drifted less with prior preservation with 1 of 2 seeds: 21.0 with it, 30.0 without",
        ),
    ],
)
def test_conclusions(rows: list[Row], sentence: str) -> None:
    assert sentence in conclusions(rows)
