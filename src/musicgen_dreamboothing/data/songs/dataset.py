"""Songs of a dataset: on the Hub, saved on disk, or a folder of parquet files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]  # httpx's, old or new

from musicgen_dreamboothing.audio import AUDIO_SUFFIXES
from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.data.songs.folder import songs_of_folder
from musicgen_dreamboothing.data.songs.sidecars import METADATA_FILES
from musicgen_dreamboothing.data.songs.song import EVAL, TRAIN, Collection, Columns, Song


def is_saved_dataset(folder: Path) -> bool:
    """Whether `Dataset.save_to_disk` or `DatasetDict.save_to_disk` made this folder."""
    return (folder / "state.json").exists() or (folder / "dataset_dict.json").exists()


def holds_parquet(folder: Path) -> bool:
    """Whether there are parquet files in a folder or below it."""
    return any(path.is_file() for path in folder.rglob("*.parquet"))


def songs_of_saved_dataset(folder: Path, columns: Columns) -> Collection:
    """The songs of a dataset that was saved with `save_to_disk`.

    Raises:
        UserError: it has no such split or column.
    """
    return _songs_of_dataset(datasets.load_from_disk(str(folder)), columns, str(folder))


def songs_of_parquet(folder: Path, columns: Columns, cache_dir: str | None) -> Collection:
    """The songs of a folder of parquet files, such as the clone of a dataset repository.

    Raises:
        UserError: there is no such split or column.
    """
    loaded = datasets.load_dataset("parquet", data_dir=str(folder), cache_dir=cache_dir)
    return _songs_of_dataset(loaded, columns, str(folder))


def songs_of_hub(name: str, columns: Columns, token: str | None, cache_dir: str | None) -> Collection:
    """The songs of a dataset repository on the Hub.

    Raises:
        UserError: there is no such repository, or it has no such split or column.
    """
    try:
        files = HfApi(token=token).list_repo_files(name, repo_type="dataset")
        if not any(file.endswith(".parquet") for file in files):
            return _songs_of_hub_folder(name, columns, token, cache_dir)
        loaded = datasets.load_dataset(name, columns.config, token=token, cache_dir=cache_dir)
    except (HTTPError, HFValidationError, OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join((str(error).strip().splitlines() or [type(error).__name__])[:2])
        raise UserError(f"no folder {name!r} here, and as a Hub dataset it can't be loaded: {reason}") from error
    return _songs_of_dataset(loaded, columns, name)


def _songs_of_hub_folder(name: str, columns: Columns, token: str | None, cache_dir: str | None) -> Collection:
    """A Hub dataset of plain audio files. `datasets` itself reads these only with torchcodec and FFmpeg installed."""
    wanted = [f"*{suffix}" for suffix in (*AUDIO_SUFFIXES, *(s.upper() for s in AUDIO_SUFFIXES), ".txt")]
    folder = snapshot_download(
        name,
        repo_type="dataset",
        token=token,
        cache_dir=cache_dir,
        allow_patterns=[*wanted, *METADATA_FILES, "*/metadata.*"],
    )
    return songs_of_folder(Path(folder), columns)


def _songs_of_dataset(loaded: Any, columns: Columns, name: str) -> Collection:
    splits = loaded if isinstance(loaded, dict) else {columns.train_split: loaded}
    wanted = [(columns.train_split, TRAIN)] + ([(columns.eval_split, EVAL)] if columns.eval_split else [])
    songs = []
    for split, role in wanted:
        if split not in splits:
            raise UserError(f"no split {split!r} in {name}; it has {', '.join(map(str, splits))}")
        songs += list(_songs_of_split(splits[split], split, role, columns, name))
    return Collection(songs)


def _songs_of_split(rows: Any, split: str, role: str, columns: Columns, name: str) -> Iterator[Song]:
    audio = _audio_column(rows, columns.audio, name)
    text = _text_column(rows, columns.text, name)
    if isinstance(rows.features[audio], datasets.Audio):
        rows = rows.cast_column(audio, datasets.Audio(decode=False))
    light = rows.select_columns([text]) if text else None
    for index in range(len(rows)):
        caption = light[index][text] if light is not None else None
        read = _reader(rows, audio, index)
        yield Song(
            f"{split}/{index:06d}", read, str(caption) if caption else None, role, f"{rows._fingerprint}-{index}"
        )


def _reader(rows: Any, column: str, index: int) -> Callable[[], Path | bytes]:
    return lambda: _audio_value(rows[index][column])


def _audio_value(value: Any) -> Path | bytes:
    """A cell of an audio column, undecoded: bytes, or the path of a file."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    return Path(str(value or ""))


def _audio_column(rows: Any, wanted: str | None, name: str) -> str:
    if wanted is not None:
        return _existing(wanted, rows.column_names, name)
    found = [column for column, feature in rows.features.items() if isinstance(feature, datasets.Audio)]
    if len(found) == 1:
        return found[0]
    if "audio" in rows.column_names:
        return "audio"
    raise UserError(
        f"which column of {name} holds the songs? Say it with --target_audio_column_name; "
        f"it has {', '.join(rows.column_names)}"
    )


def _text_column(rows: Any, wanted: str | None, name: str) -> str | None:
    if wanted is not None:
        return _existing(wanted, rows.column_names, name)
    return "text" if "text" in rows.column_names else None


def _existing(column: str, columns: Sequence[str], name: str) -> str:
    if column not in columns:
        raise UserError(f"no column {column!r} in {name}; it has {', '.join(columns)}")
    return column
