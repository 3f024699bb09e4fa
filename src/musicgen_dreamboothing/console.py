"""What is said to a person: progress lines, and the errors that are one line long."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

REASON_LETTERS = 200  # of an error that is passed on in a line


class UserError(Exception):
    """Something the person can mend: names the value, what was possible and the next step.

    The command line prints its text as one line, without a traceback.
    """


def say(text: str) -> None:
    """Prints a line at once; under `accelerate launch` only the main process speaks.

    Where nobody reads the output any more (`| head`), the work goes on without a word: it may have taken hours.
    """
    if int(os.environ.get("RANK", "0")) == 0:
        try:
            print(text, flush=True)
        except BrokenPipeError:
            discard_output(sys.stdout)


def discard_output(stream: TextIO) -> None:
    """Sends what is still printed nowhere, so that neither the next line nor the interpreter's end fails."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def print_any_text() -> None:
    """Lets the console show letters that its encoding lacks as `\\u0439` instead of failing at them."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not in a notebook, whose streams take everything
            stream.reconfigure(errors="backslashreplace")


def plural(count: int, noun: str) -> str:
    """`1 clip`, `2 clips`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


@contextmanager
def optional(failure: str) -> Iterator[None]:
    """For parts that a finished training can do without: whatever goes wrong in them is one line, `failure: reason`."""
    try:
        yield
    except Exception as error:
        say(f"{failure}: {reason_of(error)}")


def reason_of(error: Exception) -> str:
    """An exception in one line of limited length, with its class where it was not meant for users."""
    text = " ".join(str(error).split())
    if not isinstance(error, UserError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= REASON_LETTERS else f"{text[:REASON_LETTERS]}…"
