"""Tables on disk, as folders for `datasets.load_from_disk`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets

from musicgen_dreamboothing.data.files import replace_folder

WRITE_BATCH = 64  # rows that are in memory until they are written


def save_table(examples: Iterator[dict[str, Any]], features: datasets.Features, folder: Path) -> None:
    """Writes rows as a folder for `load_from_disk`, in one move and with one batch of rows in memory."""
    fresh = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    scratch = folder.with_name(f"{folder.name}.arrow")
    writer = datasets.arrow_writer.ArrowWriter(path=str(scratch), features=features, writer_batch_size=WRITE_BATCH)
    with writer:
        for example in examples:
            writer.write(example)
        writer.finalize()
    table = datasets.Dataset.from_file(str(scratch))
    with _quiet_bars():
        table.save_to_disk(str(fresh))
    replace_folder(fresh, folder)
    scratch.unlink()


@contextmanager
def _quiet_bars() -> Iterator[None]:
    """Hides the progress bars of `datasets` for tables that are written in a moment."""
    were_shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if were_shown:
            datasets.enable_progress_bars()
