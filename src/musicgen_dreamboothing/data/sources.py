"""Where songs come from: a folder, one file, a dataset on the Hub or one saved on disk."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]  # httpx's, old or new

from musicgen_dreamboothing.audio import AUDIO_SUFFIXES
from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.data.song import EVAL, TRAIN, Song

CLIPS, SONGS = "clips", "songs.jsonl"  # where `clips.py` puts what it makes of songs
METADATA_FILES = ("metadata.jsonl", "metadata.csv")
CAPTION_NAMES = ("text", "caption", "description", "prompt")  # in `song.json`
TEXT = "utf-8-sig"  # people's files: Notepad and Excel put a byte order mark in front


@dataclass(frozen=True)
class Columns:
    """Which columns and splits of a dataset to read; None takes the usual ones."""

    audio: str | None = None
    text: str | None = None
    config: str | None = None
    train_split: str = "train"
    eval_split: str | None = None


def find_songs(where: str, columns: Columns, *, token: str | None = None, cache_dir: str | None = None) -> list[Song]:
    """The songs at a path or Hub id, in a fixed order.

    Raises:
        UserError: nothing is there, or it has no such column or split, or holds no audio.
    """
    path = Path(where).expanduser()
    if path.is_file():
        return [_song_of_file(path, path.name, _sidecar(path), TRAIN)]
    if path.is_dir():
        return _songs_of_folder(path, columns, cache_dir)
    if _looks_like_path(where):
        raise UserError(f"no such folder: {path}; give a folder of songs, a saved dataset or a Hub dataset id")
    return _songs_of_hub(where, columns, token, cache_dir)


def _looks_like_path(where: str) -> bool:
    return where.startswith((".", "/", "~", "\\")) or where.count("/") > 1 or "\\" in where or where.endswith("/")


def _songs_of_folder(folder: Path, columns: Columns, cache_dir: str | None) -> list[Song]:
    if (folder / "state.json").exists() or (folder / "dataset_dict.json").exists():
        return _songs_of_dataset(datasets.load_from_disk(str(folder)), columns, str(folder))
    there = [path for path in folder.rglob("*") if path.is_file() and not _is_our_clip(path, folder)]
    there = [path for path in there if not path.name.startswith("._")]  # what macOS writes beside songs on other disks
    files = sorted(path for path in there if path.suffix.lower() in AUDIO_SUFFIXES)
    if not files and any(path.suffix == ".parquet" for path in there):
        loaded = datasets.load_dataset("parquet", data_dir=str(folder), cache_dir=cache_dir)
        return _songs_of_dataset(loaded, columns, str(folder))
    if not files:
        known = ", ".join(sorted(suffix.lstrip(".") for suffix in AUDIO_SUFFIXES))
        raise UserError(f"no audio files in {folder}; songs may be {known}")
    captions = _captions_of_metadata(folder, columns.text)
    songs = [_song_of_listed_file(path, folder, captions, columns) for path in files]
    if columns.eval_split and all(song.split == TRAIN for song in songs):
        raise UserError(f"no songs in {folder / columns.eval_split}; --eval_split_name takes a sub-folder of {folder}")
    return songs


def _is_our_clip(path: Path, folder: Path) -> bool:
    """Whether an earlier `prepare` cut this file: people put their output folders among their songs."""
    return path.parent.name == CLIPS and path.parent != folder and (path.parent.parent / SONGS).exists()


def _song_of_listed_file(path: Path, folder: Path, captions: dict[str, str], columns: Columns) -> Song:
    name = path.relative_to(folder).as_posix()
    is_eval = columns.eval_split is not None and name.startswith(f"{columns.eval_split}/")
    return _song_of_file(path, name, _sidecar(path) or captions.get(name), EVAL if is_eval else TRAIN)


def _song_of_file(path: Path, name: str, caption: str | None, split: str) -> Song:
    status, place = path.stat(), path.absolute()  # processes that read it may stand in another folder
    return Song(name, lambda: place, caption, split, f"{status.st_size}-{status.st_mtime_ns}")


def _sidecar(song: Path) -> str | None:
    """The caption in `song.txt` or `song.json`, on one line."""
    path, data = song.with_suffix(".txt"), song.with_suffix(".json")
    text = path.read_text(encoding=TEXT, errors="replace") if path.is_file() else ""
    if not text.strip() and data.is_file():
        text = _caption_of_json(data)
    return " ".join(text.split()) or None


def _caption_of_json(path: Path) -> str:
    """The caption among what other trainers and players keep beside a song; a file without one says nothing."""
    try:
        values = json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON ({error.msg}, line {error.lineno}); mend it and run again") from error
    if isinstance(values, str):
        return values
    found = (values.get(name) for name in CAPTION_NAMES) if isinstance(values, dict) else iter(())
    return next((text for text in found if isinstance(text, str) and text.strip()), "")


def _captions_of_metadata(folder: Path, column: str | None) -> dict[str, str]:
    """Captions by file name, from the metadata files of an audiofolder; each speaks of what is beside and below it."""
    captions = {}
    for path in sorted(path for name in METADATA_FILES for path in folder.rglob(name)):
        place = path.parent.relative_to(folder)
        for row in _metadata_rows(path, column):
            if caption := row.get(column or "text"):
                captions[(place / str(row["file_name"])).as_posix()] = str(caption)
    return captions


def _metadata_rows(path: Path, column: str | None) -> list[dict[str, Any]]:
    if path.suffix == ".csv":
        rows: list[dict[str, Any]] = list(csv.DictReader(io.StringIO(_read_text(path), newline="")))
    else:
        rows = read_json_lines(path)
    for wanted in filter(None, ("file_name", column)):
        if rows and wanted not in rows[0]:
            raise UserError(f"no column {wanted!r} in {path}; it has {', '.join(rows[0])}")
    return [row for row in rows if row.get("file_name")]


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding=TEXT)
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8 and run again") from error


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; an error names the line, for people edit these files."""
    return [row for _, row in numbered_json_lines(path)]


def numbered_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The same with the number of each line, from 1."""
    for number, line in enumerate(_read_text(path).split("\n"), start=1):  # splitlines() splits captions, too
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path} line {number} is not JSON ({error.msg}); mend the line and run again") from error
        if not isinstance(row, dict):
            raise UserError(f'{path} line {number} must be an object such as {{"file_name": ..., "text": ...}}')
        yield number, row


def _songs_of_hub(name: str, columns: Columns, token: str | None, cache_dir: str | None) -> list[Song]:
    try:
        files = HfApi(token=token).list_repo_files(name, repo_type="dataset")
        if not any(file.endswith(".parquet") for file in files):
            return _songs_of_hub_folder(name, columns, token, cache_dir)
        loaded = datasets.load_dataset(name, columns.config, token=token, cache_dir=cache_dir)
    except (HTTPError, HFValidationError, OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join((str(error).strip().splitlines() or [type(error).__name__])[:2])
        raise UserError(f"no folder {name!r} here, and as a Hub dataset it can't be loaded: {reason}") from error
    return _songs_of_dataset(loaded, columns, name)


def _songs_of_hub_folder(name: str, columns: Columns, token: str | None, cache_dir: str | None) -> list[Song]:
    """A Hub dataset of plain audio files. `datasets` itself reads these only with torchcodec and FFmpeg installed."""
    wanted = [f"*{suffix}" for suffix in (*AUDIO_SUFFIXES, *(s.upper() for s in AUDIO_SUFFIXES), ".txt")]
    folder = snapshot_download(
        name,
        repo_type="dataset",
        token=token,
        cache_dir=cache_dir,
        allow_patterns=[*wanted, *METADATA_FILES, "*/metadata.*"],
    )
    return _songs_of_folder(Path(folder), columns, cache_dir)


def _songs_of_dataset(loaded: Any, columns: Columns, name: str) -> list[Song]:
    splits = loaded if isinstance(loaded, dict) else {columns.train_split: loaded}
    wanted = [(columns.train_split, TRAIN)] + ([(columns.eval_split, EVAL)] if columns.eval_split else [])
    songs = []
    for split, role in wanted:
        if split not in splits:
            raise UserError(f"no split {split!r} in {name}; it has {', '.join(map(str, splits))}")
        songs += list(_songs_of_split(splits[split], split, role, columns, name))
    return songs


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
