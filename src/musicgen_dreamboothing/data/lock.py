"""One run at a time in a folder. The lock is the operating system's: a killed process leaves none behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import PartialState
from filelock import FileLock, Timeout

from musicgen_dreamboothing.console import UserError, say


@contextmanager
def folder_lock(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Holds a folder for this run; of several processes under `accelerate launch` the main one holds it.

    Args:
        folder: an existing folder.
        wait: for another run that holds it, instead of ending with an error.

    Raises:
        UserError: another run holds it, or its name is no UTF-8, which Arrow files can't be in.
    """
    if any("\ud800" <= letter <= "\udfff" for letter in str(folder.absolute())):
        raise UserError(f"the name {str(folder)!a} is not UTF-8; choose another --output_dir")
    if not PartialState().is_main_process:
        yield
        return
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        if not wait:
            raise UserError(f"{folder} is in use by another run; wait for it or choose another --output_dir") from error
        say(f"waiting for another run that is preparing {folder}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
