"""Captions in metadata tables as audiofolders and spreadsheets have them: JSON lines, CSV, TSV or parquet."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from musicgen_dreamboothing.console import first_names, one_line, plural
from musicgen_dreamboothing.data.songs.columns import find_column, text_column
from musicgen_dreamboothing.data.songs.names import NameIndex, printable
from musicgen_dreamboothing.data.songs.scan import NAMED, Listing
from musicgen_dreamboothing.data.songs.sidecars import CAPTION_NAMES, METADATA_FILES
from musicgen_dreamboothing.data.songs.song import MELODY_FILE
from musicgen_dreamboothing.data.songs.textfiles import caption_of, json_object, numbered_lines, read_text

FILE_NAMES = ("file_name", "filename", "file", "file_path", "filepath", "path", "audio", "audio_file", "audio_path")
DELIMITERS = ",;\t|"


class ForeignTableError(ValueError):
    """A metadata file that names no songs: of another program, or broken as a whole."""


@dataclass(frozen=True)
class Row:
    """One line of a table: the file as it is written there, and its caption."""

    line: int
    file: str
    caption: str | None
    melody: str | None = None  # another recording, relative to the table


@dataclass
class Captions:
    """Captions and melody files by the names of songs, and what could not be used of the tables, in lines."""

    by_name: dict[str, str] = field(default_factory=dict)
    melodies: dict[str, Path] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def captions_of_tables(
    listing: Listing, names: Iterable[str], column: str | None, melody: str | None = None
) -> Captions:
    """Captions of songs from the metadata tables of a listing; each table describes songs beside and below it.

    Args:
        listing: of the folder.
        names: of all songs, files and tracks, relative to the root.
        column: of the captions; None takes the first of the usual ones.
        melody: column of the melody files; None takes `melody_file_name`.

    Raises:
        UserError: a table is not text, or lacks the requested column.
    """
    captions, known, foreign = Captions(), set(names), list[str]()
    by_precedence = METADATA_FILES[::-1]
    tables = [
        (len(folder.parts), by_precedence.index(name.lower()), folder / name)
        for folder, files in listing.files.items()
        for name in files
        if name.lower() in by_precedence
    ]
    for *_, path in sorted(tables):  # those nearest to the songs come last and are preferred
        try:
            rows, faults = _read_table(path, column, melody or MELODY_FILE)
        except ForeignTableError as error:
            foreign.append(f"{listing.name(path)} ({error})")
            continue
        _join(rows, path, listing, known, captions)
        if faults:
            captions.notes.append(f"{plural(len(faults), 'line')} of {listing.name(path)} not used:")
            captions.notes += [f"  {fault}" for fault in faults[:NAMED]]
            captions.notes += [f"  and {len(faults) - NAMED} more"] if len(faults) > NAMED else []
    if foreign:
        captions.notes.append(f"{plural(len(foreign), 'metadata file')} not used: {first_names(foreign)}")
    return captions


def _join(rows: list[Row], path: Path, listing: Listing, known: set[str], captions: Captions) -> None:
    """Adds the caption of each song; of several rows that fit a song, those with the nearest name count."""
    place, label = path.parent.relative_to(listing.root).as_posix(), listing.name(path)
    prefix = "" if place == "." else f"{printable(place)}/"
    index = NameIndex(name.removeprefix(prefix) for name in known if name.startswith(prefix))
    matches = [index.find(row.file) for row in rows]
    nearest: dict[str, int] = {}
    for name, distance in filter(None, matches):
        nearest[name] = min(distance, nearest.get(name, distance))
    rows_of, lost, repeated = defaultdict[str, list[Row]](list), list[str](), list[str]()
    for row, match in zip(rows, matches, strict=True):
        if match is None or match[1] > nearest[match[0]]:
            lost.append(printable(row.file))
        else:
            rows_of[match[0]].append(row)
    for name, own in rows_of.items():
        texts = [row.caption for row in own if row.caption]
        if texts:
            captions.by_name[prefix + name] = texts[-1]
        if melodies := [melody for row in own if row.melody and (melody := path.parent / row.melody).is_file()]:
            captions.melodies[prefix + name] = melodies[-1]
        if len(set(texts)) > 1:
            repeated.append(f"{name} (lines {', '.join(str(row.line) for row in own)})")
    if lost and not listing.is_single_song:
        captions.notes.append(f"{len(lost)} of {plural(len(rows), 'row')} of {label} fit no song: {first_names(lost)}")
    if repeated:
        captions.notes.append(
            f"{plural(len(repeated), 'song')} with several captions in {label}, the last is used: "
            f"{first_names(repeated)}"
        )


# --- reading


Faults = list[tuple[int, str]]  # numbers of lines, and what is wrong with each


def _read_table(path: Path, column: str | None, melody: str) -> tuple[list[Row], list[str]]:
    """The rows of a table, and one line for each row that is broken.

    Raises:
        ForeignTableError: it has no column with files, or is broken as a whole.
        UserError: it is not text, or lacks the requested column.
    """
    suffix, faults = path.suffix.lower(), Faults()
    if suffix == ".parquet":
        rows = list(_parquet_rows(path, column, melody))
    else:
        rows = list((_json_rows if suffix == ".jsonl" else _csv_rows)(path, faults))
    columns = list(dict.fromkeys(str(name) for _, row in rows for name in row))
    if not rows:
        if faults:
            raise ForeignTableError(f"no usable line; line {faults[0][0]}: {faults[0][1]}")
        return [], []
    file, text = _file_column(columns), text_column(columns, column, str(path))
    read = list(_read_rows(rows, file, text, find_column(columns, [melody]), faults))
    return read, [f"line {line}: {fault}" for line, fault in sorted(faults)]


def _read_rows(
    rows: list[tuple[int, dict[str, Any]]], file: str, text: str | None, melody: str | None, faults: Faults
) -> Iterator[Row]:
    for line, row in rows:
        name = row.get(file)
        try:
            caption = caption_of(row.get(text)) if text is not None else None
            if isinstance(name, str) and name.strip():
                other = row.get(melody) if melody is not None else None
                yield Row(line, name.strip(), caption, other.strip() if isinstance(other, str) else None)
            elif name is not None and name != "":
                raise ValueError(f"{file} must be text, not {name!r:.40}")
            elif caption:
                raise ValueError(f"{file} is empty")
        except ValueError as error:
            faults.append((line, str(error)))


def _file_column(columns: list[str]) -> str:
    file = find_column(columns, FILE_NAMES)
    if file is None:
        raise ForeignTableError(f"no column file_name; it has {', '.join(map(printable, columns[:8]))}")
    return file


def _json_rows(path: Path, faults: Faults) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in numbered_lines(path):
        try:
            yield number, json_object(line)
        except ValueError as error:
            faults.append((number, str(error)))


def _parquet_rows(path: Path, column: str | None, melody: str) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        names = pa.parquet.read_schema(path).names
        columns = (_file_column(names), text_column(names, column, str(path)), find_column(names, [melody]))
        rows = pa.parquet.read_table(path, columns=[name for name in columns if name is not None]).to_pylist()
    except ForeignTableError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ForeignTableError(f"can't be read: {one_line(str(error), 80)}") from error
    yield from enumerate(rows, start=1)


def _csv_rows(path: Path, faults: Faults) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a text table whose first line names the columns, each with the number of its line."""
    lines = read_text(path).split("\n")
    first = next((number for number, line in enumerate(lines) if line.strip()), len(lines))
    delimiter = "\t" if path.suffix.lower() == ".tsv" else None
    if first < len(lines) and (excel := lines[first].strip().lower()).startswith("sep=") and len(excel) == 5:
        delimiter, first = excel[-1], first + 1  # Excel's note to itself
    records = _records(lines, first, delimiter or _delimiter("".join(lines[first : first + 1])), faults)
    header = _without_empty_end(next(records, (0, list[str]()))[1])
    for line, cells in records:
        count = max(len(_without_empty_end(cells)), min(len(cells), len(header)))
        if not any(cell.strip() for cell in cells):
            continue
        if count == len(header):
            yield line, dict(zip(header, cells, strict=False))  # empty cells may follow
        else:
            is_longer = count > len(header)
            hint = " (a caption with commas needs quotation marks)" if is_longer and delimiter is None else ""
            faults.append((line, f"{plural(len(cells), 'value')} for {plural(len(header), 'column')}{hint}"))


def _without_empty_end(cells: list[str]) -> list[str]:
    """Stripped cells without the empty ones at the end, which spreadsheets add."""
    stripped = [cell.strip() for cell in cells]
    return stripped[: max((place for place, cell in enumerate(stripped, start=1) if cell), default=0)]


def _delimiter(header: str) -> str:
    """What separates the columns: spreadsheets of many countries write semicolons."""

    def score(delimiter: str) -> tuple[int, int]:
        columns = [name.strip(' "') for name in header.split(delimiter)]
        return sum(find_column(columns, names) is not None for names in (FILE_NAMES, CAPTION_NAMES)), len(columns)

    return max(DELIMITERS, key=score)


def _records(lines: list[str], start: int, delimiter: str, faults: Faults) -> Iterator[tuple[int, list[str]]]:
    """The records from a line on, each with the number of its first line; a quoted cell may hold several lines.

    After a fault reading goes on with the next line: a lost quotation mark costs its own line, not the rest.
    """
    while start < len(lines):
        reader = csv.reader((f"{lines[i]}\n" for i in range(start, len(lines))), delimiter=delimiter, strict=True)
        try:
            record = next(reader)
        except csv.Error as error:
            faults.append((start + 1, f"the quotation marks don't match ({error})"))
            start += 1
            continue
        if record:
            yield start + 1, record
        start += reader.line_num
