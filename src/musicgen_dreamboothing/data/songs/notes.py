"""An account of the rows of a dataset that could not be used, in one line for each reason."""

from __future__ import annotations

from collections import defaultdict

from musicgen_dreamboothing.console import plural

SHOWN = 3  # names in a line
NO_TEXT = "whose caption is no text and is left out"


class RowNotes:
    """Collects names by reason."""

    def __init__(self) -> None:
        self._rows: defaultdict[tuple[str, str], list[str]] = defaultdict(list)

    def add(self, reason: str, row: str, *, noun: str = "row") -> None:
        """`reason` stands behind the count and the noun: "3 rows without audio"."""
        self._rows[noun, reason].append(row)

    def add_no_text(self, row: str) -> None:
        """A row whose caption is a number, say; the song itself is used."""
        self.add(NO_TEXT, row)

    def lines(self) -> list[str]:
        """
        >>> notes = RowNotes()
        >>> for row in range(4):
        ...     notes.add("without audio", f"train/{row}")
        >>> notes.lines()
        ['4 rows without audio: train/0, train/1, train/2, ...']
        """
        return [
            f"{plural(len(rows), noun)} {reason}: {', '.join([*rows[:SHOWN], *(['...'] if rows[SHOWN:] else [])])}"
            for (noun, reason), rows in self._rows.items()
        ]
