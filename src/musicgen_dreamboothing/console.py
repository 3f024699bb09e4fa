"""What is said to a person: progress lines, and the errors that are one line long."""

from __future__ import annotations

import os


class UserError(Exception):
    """Something the person can mend: names the value, what was possible and the next step.

    The command line prints its text as one line, without a traceback.
    """


def say(text: str) -> None:
    """Prints a line at once; under `accelerate launch` only the main process speaks."""
    if int(os.environ.get("RANK", "0")) == 0:
        print(text, flush=True)


def plural(count: int, noun: str) -> str:
    """`1 clip`, `2 clips`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
