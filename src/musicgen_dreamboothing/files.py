"""Atomic writes of files, their hashes, and locks on folders."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from musicgen_dreamboothing.console import UserError, log


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary path, which replaces the file at the end; its name is that of no other process."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that replaces `folder` at the end; after an error it is removed."""
    folder = folder.resolve()
    temporary, earlier = (folder.with_name(f".{folder.name}.{os.getpid()}.{kind}") for kind in ("tmp", "old"))
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if folder.exists():
            folder.rename(earlier)
        temporary.rename(folder)
        shutil.rmtree(earlier, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file in one move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _replacing(path) as temporary:
        # Names of files may hold bytes that are not UTF-8: this is how JSON writes their surrogates.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_array(path: Path, values: np.ndarray) -> None:
    """Writes an array as .npy in one move."""
    with _replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, values)


def write_json(path: Path, value: Any) -> None:
    """Writes a value as readable JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_json_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes one JSON object a line."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def digest(path: Path) -> str:
    """A short hash of a file's bytes; an unchanged file is read once per process."""
    status = path.stat()
    return _digest(path.absolute(), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=100_000)
def _digest(path: Path, size: int, changed: int) -> str:
    hashed = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            hashed.update(block)
    return hashed.hexdigest()


@contextmanager
def folder_lock(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Locks an existing folder for this run; under `accelerate launch` the main process holds the lock.

    With `wait` it waits for another run that holds the lock, instead of failing.

    Raises:
        UserError: another run holds it, or its name is not UTF-8, which Arrow does not support.
    """
    if any("\ud800" <= letter <= "\udfff" for letter in str(folder.absolute())):
        raise UserError(f"the name {str(folder)!a} is not UTF-8; choose another --output_dir")
    from accelerate import PartialState  # takes long to import, and few who write files need it

    if not PartialState().is_main_process:
        yield
        return
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        if not wait:
            raise UserError(f"{folder} is in use by another run; wait for it or choose another --output_dir") from error
        log(f"waiting for another run that is preparing {folder}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
