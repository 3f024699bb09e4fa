"""Messages: progress lines of the logger `musicgen_dreamboothing`, and errors of one line."""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

LIBRARIES = ("transformers", "huggingface_hub", "peft", "bitsandbytes")
LOGGER = logging.getLogger("musicgen_dreamboothing")
REASON_LETTERS = 200  # of an error that is passed on in a line


class UserError(Exception):
    """An error that the user can correct: names the value, what is possible and the next step.

    The command line prints its text as one line, without a traceback.
    """


class _Lines(logging.Handler):
    """Prints messages as plain lines. Where nobody reads the output any more (`| head`), the work goes on silently."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(record.getMessage(), flush=True)
        except BrokenPipeError:
            discard_output(sys.stdout)


@contextmanager
def printed() -> Iterator[None]:
    """Prints what `log` is given, as the command line does, and shows progress bars."""
    if any(isinstance(handler, _Lines) for handler in LOGGER.handlers):
        yield
        return
    handler, level, propagates = _Lines(), LOGGER.level, LOGGER.propagate
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(level)
        LOGGER.propagate = propagates


def log(text: str) -> None:
    """A line on the progress of the work, at level INFO of the logger `musicgen_dreamboothing`.

    A program that calls this package sees it where it asks for that level. Under `accelerate launch` only the main
    process logs.
    """
    if int(os.environ.get("RANK", "0")) == 0:
        LOGGER.info("%s", text)


def is_verbose() -> bool:
    """Whether the lines of `log` are shown; progress bars are shown only then."""
    return LOGGER.isEnabledFor(logging.INFO)


def progress_bar(items: Iterable[Any] | None = None, *, disable: bool = False, **options: Any) -> Any:
    """A bar of tqdm with these options; hidden where nobody asked for the lines of `log`."""
    from tqdm.auto import tqdm

    return tqdm(items, disable=disable or not is_verbose(), **options)


@contextmanager
def quiet_loggers(*names: str) -> Iterator[None]:
    """Hides what loggers report below an error; their levels are restored."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hides the notes of libraries to developers; around each public function, as a decorator.

    Such notes are deprecations, attempts to reach the Hub, and a line for each product with int8 weights. The libraries
    have to be imported before: transformers sets its level while it is.
    """
    with quiet_loggers(*LIBRARIES), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor")  # torch's compiler looks at it
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|torch)\.")
        yield


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Hides transformers' reports and progress bars of loading."""
    from transformers.utils import logging  # not before it is needed: it takes a second

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


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


def one_line(text: str, longest: int = 300) -> str:
    """A text without line breaks, cut to so many characters: it may hold a value of any length."""
    text = " ".join(text.split())
    return text if len(text) <= longest else f"{text[:longest]}..."


def first_names(names: Sequence[str], most: int = 4) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def plural(count: int, noun: str) -> str:
    """`1 clip`, `2 clips`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


@contextmanager
def best_effort(failure: str) -> Iterator[None]:
    """For parts that a finished training can do without: whatever goes wrong in them is one line, `failure: reason`."""
    try:
        yield
    except Exception as error:
        log(f"{failure}: {reason_of(error)}")


def reason_of(error: Exception) -> str:
    """An exception in one line of limited length, with its class where it was not meant for users."""
    text = " ".join(str(error).split())
    if not isinstance(error, UserError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= REASON_LETTERS else f"{text[:REASON_LETTERS]}…"
