"""Songs of a dataset on disk: saved by `datasets`, or Parquet, Arrow or tar files in a folder.

Only the columns with songs and captions are read, from Arrow: nothing is decoded, whatever types the others have.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from musicgen_dreamboothing.audio import AudioError
from musicgen_dreamboothing.console import UserError, one_line
from musicgen_dreamboothing.data.songs.archives import count_samples, songs_of_archives
from musicgen_dreamboothing.data.songs.columns import (
    RowNotes,
    UnusableCellError,
    audio_column,
    audio_of_cell,
    declared_features,
    fingerprint_of_cell,
    label_names,
    may_hold_songs,
    melody_column,
    text_column,
    values_of_text,
)
from musicgen_dreamboothing.data.songs.melody_files import paired
from musicgen_dreamboothing.data.songs.scan import Listing, is_hidden
from musicgen_dreamboothing.data.songs.song import EVAL, TRAIN, Collection, Columns, Song
from musicgen_dreamboothing.data.songs.textfiles import caption_of

READERS = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset"}  # of `datasets`, by suffix
SAVED, SAVED_SPLITS, INFO = "state.json", "dataset_dict.json", "dataset_info.json"

Splits = Mapping[str, Sequence[Path]]


@dataclass(frozen=True)
class Place:
    """Where a dataset is."""

    name: str  # in messages
    folders: tuple[Path, ...]  # against which relative paths in its cells are resolved
    cache_dir: str | None = None  # for what `datasets` converts; None is its own
    token: str | None = None  # for the Hub


@dataclass(frozen=True)
class _Table:
    """The columns of one split."""

    schema: pa.Schema
    audio: str
    text: str | None
    labels: list[str] | None  # names of the classes, where the text column holds ClassLabels
    melody: str | None = None  # with other recordings of the songs


def is_saved_dataset(folder: Path) -> bool:
    """Whether `Dataset.save_to_disk` or `DatasetDict.save_to_disk` made this folder."""
    return (folder / SAVED).exists() or (folder / SAVED_SPLITS).exists()


def is_table(path: str) -> bool:
    """Whether a file holds rows of a dataset; `metadata.parquet` describes the audio files beside it."""
    return path.endswith(tuple(READERS)) and not path.endswith("metadata.parquet")


def tables_of(listing: Listing) -> list[Path]:
    """The Parquet, Arrow and tar files in a folder and below it, but for those in what this program made."""
    paths = (folder / name for folder, names in listing.files.items() for name in names if not is_hidden(name))
    return sorted(path for path in paths if is_table(path.name) and path.is_file())


def hold_songs(tables: Iterable[Path], columns: Columns) -> bool:
    """Whether any of some tables has a column with songs, so that it goes before audio files beside it.

    Tar files do not count: beside songs they are more often a copy of them than a dataset.
    """
    files = (file for file in tables if file.suffix != ".tar")
    return any(may_hold_songs(schema, columns.audio) for file in files for schema in _schemas([file]).values())


def songs_of_saved_dataset(folder: Path, columns: Columns, name: str | None = None) -> Collection:
    """The songs of a dataset that was saved with `save_to_disk`."""
    if (folder / SAVED_SPLITS).exists():
        splits = {split: _saved_files(folder / split) for split in _entry(folder / SAVED_SPLITS, "splits")}
    else:
        splits = {columns.train_split: _saved_files(folder)}
    return songs_of_splits(splits, columns, Place(name or str(folder), (folder, Path())))


def _saved_files(folder: Path) -> list[Path]:
    files = [folder / file["filename"] for file in _entry(folder / SAVED, "_data_files")]
    for file in files:
        if not file.is_file():
            raise UserError(f"{file} is missing; copy the whole folder that save_to_disk wrote")
    return files


def _entry(path: Path, key: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} can't be read ({error}); save the dataset again with save_to_disk") from error


def songs_of_table_file(file: Path, columns: Columns, cache_dir: str | None) -> Collection:
    """The songs of one Parquet, Arrow or tar file."""
    place = Place(str(file), (file.parent, Path()), cache_dir)
    return songs_of_splits({columns.train_split: [file]}, columns, place)


def songs_of_tables(
    folder: Path, tables: Sequence[Path], columns: Columns, cache_dir: str | None, name: str
) -> Collection:
    """The songs of a folder with Parquet, Arrow or tar files, such as the clone of a dataset repository."""
    place = Place(name, (folder, Path()), cache_dir)
    try:
        splits = _splits_of_folder(folder, tables, columns, place)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"{place.name} can't be read as a dataset: {one_line(str(error))}") from error
    return songs_of_splits(splits, columns, place)


def _splits_of_folder(folder: Path, tables: Sequence[Path], columns: Columns, place: Place) -> Splits:
    if (folder / INFO).exists() and (cached := _cached_splits(folder)):
        return cached
    splits = files_by_split(str(folder), columns.config, [table.name for table in tables], place)
    allowed = set(map(os.path.abspath, tables))
    listed = {
        split: [Path(file) for file in files if os.path.abspath(file) in allowed] for split, files in splits.items()
    }
    return {split: files for split, files in listed.items() if files}


def _cached_splits(folder: Path) -> dict[str, list[Path]]:
    """The splits of a folder in the cache of `datasets`; files of other names hold what was computed from them."""
    info = json.loads((folder / INFO).read_text(encoding="utf-8"))
    splits = info.get("splits") or {}  # the file has other contents in old repositories
    patterns = ("*-{}.arrow", "*-{}-?????-of-?????.arrow")
    files = {split: sorted(path for p in patterns for path in folder.glob(p.format(split))) for split in splits}
    return {split: paths for split, paths in files.items() if paths}


def files_by_split(source: str, config: str | None, present: Iterable[str], place: Place) -> dict[str, list[str]]:
    """The files of each split, by the README of a dataset repository or else by the names of files and folders.

    Args:
        source: a folder or a Hub id.
        config: the configuration; one that is not declared may be a sub-folder.
        present: the names of the existing tables.
        place: of the dataset.
    """
    hub: dict[str, Any] = {"token": place.token, "cache_dir": place.cache_dir}
    try:
        builder = datasets.load_dataset_builder(source, config, **hub)
    except (ValueError, datasets.exceptions.DataFilesNotFoundError) as error:
        if "BuilderConfig" in str(error) or "Config name is missing" in str(error):
            builder = _builder_of_folder(source, config, place.name, hub)
        else:  # the README declares files that are not there, or a type that this version of `datasets` does not know
            builder = _builder_by_names(source, present, hub)
    files = _as_lists(builder)
    if not all(map(is_table, (file for paths in files.values() for file in paths))):
        files = _as_lists(_builder_by_names(source, present, hub))
    return files


def _as_lists(builder: Any) -> dict[str, list[str]]:
    return {str(split): list(map(str, paths)) for split, paths in (builder.config.data_files or {}).items()}


def _builder_of_folder(source: str, config: str | None, name: str, hub: Mapping[str, Any]) -> Any:
    """With the name of a sub-folder in the place of a configuration."""
    names = ", ".join(datasets.get_dataset_config_names(source, token=hub["token"]))
    if config is None:
        raise UserError(f"{name} has several configurations; choose one with --dataset_config_name: {names}")
    try:
        return datasets.load_dataset_builder(source, data_dir=config, **hub)
    except (FileNotFoundError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"no configuration {config!r} in {name}; --dataset_config_name takes {names}") from error


def _builder_by_names(source: str, present: Iterable[str], hub: Mapping[str, Any]) -> Any:
    """Without the README, with the reader for most of the files."""
    suffixes = [Path(path).suffix for path in present]
    reader = READERS[max(READERS, key=suffixes.count)]
    return datasets.load_dataset_builder(
        reader, data_dir=source if Path(source).is_dir() else f"hf://datasets/{source}", **hub
    )


def requested_splits(columns: Columns, present: Iterable[str], name: str) -> list[tuple[str, str]]:
    """The splits to read, each with its role, `train` or `eval`; `train+validation` stands for both."""
    present = list(present)
    requested: list[tuple[str, str]] = []
    for choice, role in ((columns.train_split, TRAIN), (columns.eval_split or "", EVAL)):
        requested += [(split, role) for split in ([choice] if choice in present else choice.split("+")) if choice]
    for split, _ in requested:
        if split not in present:
            raise UserError(f"no split {split!r} in {name}; it has {', '.join(present) or 'none'}")
        if (split, TRAIN) in requested and (split, EVAL) in requested:
            raise UserError(
                f"split {split!r} is in --train_split_name {columns.train_split} and in --eval_split_name "
                f"{columns.eval_split}; leave it out of one of them"
            )
    return list(dict.fromkeys(requested))


def songs_of_splits(splits: Splits, columns: Columns, place: Place) -> Collection:
    """The songs in the files of the requested splits.

    Raises:
        UserError: there is no such split or column, a file cannot be read, or no row has audio.
    """
    songs, notes = [], []
    for split, role in requested_splits(columns, splits, place.name):
        collection = _songs_of_files(splits[split], split, role, columns, place)
        songs += collection.songs
        notes += collection.notes
    if not songs:
        raise UserError(f"no row of {place.name} has audio that can be read" + "".join(f"; {note}" for note in notes))
    return Collection(songs, notes)


def _songs_of_files(files: Sequence[Path], split: str, role: str, columns: Columns, place: Place) -> Collection:
    if any(file.suffix == ".tar" for file in files):
        return songs_of_archives(files, split, role, columns, place.folders[0], place.name)
    notes = RowNotes()
    schemas = _schemas(files, notes)
    if not schemas:
        return Collection([], notes.lines())
    schema = _joined(schemas.values())
    text = text_column(schema.names, columns.text, place.name)
    labels = label_names(declared_features(schema).get(text or ""))
    audio = audio_column(schema, columns.audio, place.name)
    melody = melody_column(schema, columns.melody, audio, place.name) if columns.with_melodies else None
    table = _Table(schema, audio, text, labels, melody)
    arrow_files = list(_arrow_files(schemas, table, notes, place))
    return Collection(list(_songs_of_table(arrow_files, table, split, role, place, notes)), notes.lines())


def _schemas(files: Sequence[Path], notes: RowNotes | None = None) -> dict[Path, pa.Schema]:
    """The columns of each file; a file that cannot be read is noted and left out."""
    schemas = {}
    for file in files:
        try:
            schemas[file] = pq.read_schema(file) if file.suffix == ".parquet" else _arrow_table(file).schema
        except (OSError, pa.ArrowException) as error:
            if notes is not None:
                notes.add("can't be read", f"{file.name} ({one_line(str(error))})", noun="file")
    return schemas


def _joined(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """All columns that any of the files has, as the first that has it stores it."""
    schemas = list(schemas)
    fields = {field.name: field for schema in reversed(schemas) for field in schema}
    order = dict.fromkeys(name for schema in schemas for name in schema.names)
    return pa.schema([fields[name] for name in order], metadata=schemas[0].metadata)


def _arrow_files(schemas: Mapping[Path, pa.Schema], table: _Table, notes: RowNotes, place: Place) -> Iterator[Path]:
    """Files from which single rows can be drawn. Of Parquet the requested columns go to the cache of `datasets`."""
    usable = []
    for file, schema in schemas.items():
        if table.audio in schema.names:
            usable.append(file)
        else:
            notes.add(f"without a column {table.audio!r}", file.name, noun="file")
    columns = [name for name in dict.fromkeys((table.audio, table.text, table.melody)) if name is not None]
    for requested, group in groupby(usable, key=lambda file: [n for n in columns if n in schemas[file].names]):
        files = list(group)
        yield from _converted(files, requested, table, place) if files[0].suffix == ".parquet" else files


def _converted(files: Sequence[Path], requested: list[str], table: _Table, place: Place) -> Iterator[Path]:
    # What is stored, without what `datasets` would make of it: Audio is a struct of bytes and a path.
    kinds = [(name, table.schema.field(name).type) for name in requested]
    stored = pa.schema([(name, kind.value_type if pa.types.is_dictionary(kind) else kind) for name, kind in kinds])
    try:
        rows = datasets.load_dataset(
            "parquet",
            data_files=[str(file) for file in files],
            columns=requested,
            features=datasets.Features.from_arrow_schema(stored),
            split="train",
            cache_dir=place.cache_dir,
        )
    except datasets.exceptions.DatasetsError as error:
        reason = one_line(str(error.__cause__ or error))
        raise UserError(f"the Parquet files of {place.name} can't be read: {reason}; download them again") from error
    return (Path(file["filename"]) for file in rows.cache_files)


@lru_cache(maxsize=256)  # mapped, not read: the files stay on disk
def _arrow_table(file: Path) -> pa.Table:
    mapped = pa.memory_map(str(file))
    try:
        return pa.ipc.open_stream(mapped).read_all()
    except pa.ArrowInvalid:
        return pa.ipc.open_file(mapped).read_all()


def _songs_of_table(
    files: Sequence[Path], table: _Table, split: str, role: str, place: Place, notes: RowNotes
) -> Iterator[Song]:
    number = 0
    for file in files:
        content = _arrow_table(file)
        sounds, texts = content.column(table.audio), [None] * len(content)
        if table.text in content.column_names:
            texts = values_of_text(content.column(table.text))
        for row, text in enumerate(texts):
            name = f"{split}/{number:06d}"
            number += 1
            try:
                fingerprint = fingerprint_of_cell(sounds[row], place.folders)
            except UnusableCellError as error:
                notes.add(error.reason, f"{name} ({error.detail})" if error.detail else name)
                continue
            try:
                caption = caption_of(text, table.labels)
            except ValueError:  # a number, say
                notes.add("whose caption is no text and is left out", name)
                caption = None
            song = Song(name, partial(_read, file, table.audio, row, place.folders, name), caption, role, fingerprint)
            yield _with_melody(song, file, table, row, place) if table.melody in content.column_names else song


def _with_melody(song: Song, file: Path, table: _Table, row: int, place: Place) -> Song:
    """A song with the recording in its row that has its melody; as it is where there is none."""
    assert table.melody is not None
    try:
        fingerprint = fingerprint_of_cell(_arrow_table(file).column(table.melody)[row], place.folders)
    except UnusableCellError:
        return song
    name = f"{song.name} ({table.melody})"
    read = partial(_read, file, table.melody, row, place.folders, name)
    return paired(song, Song(name, read, None, song.split, fingerprint))


def _read(file: Path, column: str, row: int, folders: tuple[Path, ...], name: str) -> Path | bytes:
    """As `audio_of_cell`; a file that has changed since it was listed is an error of this song only."""
    try:
        return audio_of_cell(_arrow_table(file).column(column)[row], folders)
    except UnusableCellError as error:
        raise AudioError(f"{name} is a row {error}") from error
    except (OSError, OverflowError, pa.ArrowException, soundfile.SoundFileError) as error:
        raise AudioError(f"{name} can't be read ({one_line(str(error))})") from error


def count_rows(file: Path) -> int:
    """How many songs a file of a dataset can have."""
    if file.suffix == ".tar":
        return count_samples(file)
    return pq.read_metadata(file).num_rows if file.suffix == ".parquet" else len(_arrow_table(file))
