"""Append-only tables: a folder of Arrow files that are written atomically and mapped into memory by readers.

As no file is changed or deleted, runs can share a table.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

WRITE_BATCH = 64  # rows in memory until they are written
FILE, UNFINISHED = "[0-9]*-[0-9]*.arrow", "[0-9]*-[0-9]*.unfinished"


def append_rows(folder: Path, rows: Iterable[dict[str, Any]], features: datasets.Features, process: int = 0) -> None:
    """Writes rows as the next file of a table; processes that append at the same time have different numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = [int(path.name.split("-")[0]) for path in folder.glob(f"[0-9]*-{process}.arrow")]
    path = folder / f"{max(numbers, default=-1) + 1:06d}-{process}.arrow"
    unfinished = path.with_suffix(".unfinished")
    with datasets.arrow_writer.ArrowWriter(
        path=str(unfinished), features=features, writer_batch_size=WRITE_BATCH
    ) as writer:
        for row in rows:
            writer.write(row)
        writer.finalize()
    os.replace(unfinished, path)


def read_rows(folder: Path, features: datasets.Features) -> datasets.Dataset:
    """All rows of a table in the order of writing; none if there is no such folder.

    Files that are damaged or have other columns are ignored: their rows count as missing and are made again.
    """
    tables = []
    for path in sorted(folder.glob(FILE)):
        with suppress(pa.ArrowInvalid, OSError):
            table = datasets.Dataset.from_file(str(path))
            if table.features == features:
                tables.append(table)
    return datasets.concatenate_datasets(tables) if tables else _without_rows(features)


def delete_unfinished(folder: Path) -> None:
    """Deletes the unfinished files of killed runs; nobody may be appending."""
    for path in folder.glob(UNFINISHED):
        path.unlink()


def join_rows(
    table: datasets.Dataset, places: Sequence[int], rows: Sequence[dict[str, Any]], features: datasets.Features
) -> datasets.Dataset:
    """The rows of the table at `places`, which may repeat, with the columns of `rows` added; the table stays on disk.

    `features` are those of the added columns.
    """
    order, columns = list[int](), [dict.fromkeys(features)] * len(table)
    repeated, taken = list[datasets.Dataset](), set[int]()
    for place, row in zip(places, rows, strict=True):
        if place in taken:
            order.append(len(columns))
            columns.append(row)
            repeated.append(table.select(range(place, place + 1)))
        else:
            order.append(place)
            columns[place] = row
            taken.add(place)
    if not rows:
        return _without_rows(datasets.Features({**table.features, **features}))
    stored = datasets.concatenate_datasets([table, *repeated])
    # In blocks of the same lengths: a slice of a longer block would be pickled as the whole block for worker processes.
    ends = np.cumsum([len(chunk) for chunk in stored.data.column(0).chunks]).tolist()
    added = [datasets.Dataset.from_list(columns[a:b], features) for a, b in pairwise([0, *ends])]
    return datasets.concatenate_datasets([stored, datasets.concatenate_datasets(added)], axis=1).select(order)


def _without_rows(features: datasets.Features) -> datasets.Dataset:
    return datasets.Dataset.from_dict({name: [] for name in features}, features=features)
