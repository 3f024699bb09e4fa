"""Songs of a dataset repository on the Hub: its files are downloaded once and then read as a folder is.

Without a network, or with HF_HUB_OFFLINE=1, the copy in the cache is read.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
from datasets.exceptions import DatasetsError
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is httpx's, old or new
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)

from musicgen_dreamboothing.audio import AUDIO_SUFFIXES
from musicgen_dreamboothing.console import UserError, log
from musicgen_dreamboothing.data.songs.dataset import (
    INFO,
    SAVED,
    SAVED_SPLITS,
    Place,
    Splits,
    count_rows,
    files_by_split,
    hold_songs,
    is_table,
    requested_splits,
)
from musicgen_dreamboothing.data.songs.song import EVAL, TRAIN, Columns
from musicgen_dreamboothing.hub import explain_refusal, is_caused_by

SIDECARS = (".txt", ".json", ".jsonl", ".csv", ".tsv", ".caption", ".cue", ".yaml", ".yml", ".md", "metadata.parquet")
PACKED = (".zip", ".gz", ".tgz", ".bz2", ".xz", ".rar", ".7z")


@dataclass(frozen=True)
class Download:
    """What was downloaded of a dataset repository."""

    folder: Path  # of the repository in the cache
    splits: Splits | None = None  # the files of each split, where its tables are read
    archives: tuple[str, ...] = ()  # names of tar files that are not downloaded, as there are audio files


def download(name: str, columns: Columns, token: str | None, cache_dir: str | None) -> Download:
    """Brings the songs of a dataset repository on the Hub into the cache.

    Raises:
        UserError: there is no such repository, it may not be read, or it has no such configuration, split or column.
    """
    try:
        return _download(columns, Place(name, (), cache_dir, token))
    except (HTTPError, HFValidationError, OSError, ValueError, RuntimeError, DatasetsError) as error:
        if refusal := explain_refusal(name, error, "dataset"):
            raise UserError(refusal) from error
        if "Dataset scripts are no longer supported" in str(error):
            raise UserError(_nothing_to_read(name, [f"{name.rpartition('/')[2]}.py"])) from error
        if is_caused_by(error, LocalEntryNotFoundError):
            reason = "the Hub can't be reached, and the cache does not hold it; connect once, or give a folder of songs"
        else:
            reason = " ".join((str(error).strip().splitlines() or [type(error).__name__])[:2])
        raise UserError(f"no folder {name!r} here, and as a Hub dataset it can't be loaded: {reason}") from error


def _download(columns: Columns, place: Place) -> Download:
    files = _files_of_repository(place)
    if files is None:
        folder = _snapshot(place, [], only_local=True)  # what is there may be a part of the repository
        log(f"the Hub can't be reached; reading what the cache has of {place.name}")
        return Download(folder)
    audio = [file for file in files if file.lower().endswith(tuple(AUDIO_SUFFIXES))]
    if {SAVED, SAVED_SPLITS} & set(files):
        return Download(_snapshot(place, [*audio, *(f for f in files if f.endswith((".arrow", ".json")))]))
    tables = sorted(filter(is_table, files))
    if tables and (not audio or _hold_songs(tables, columns, place)):
        return _download_tables(files, audio, columns, place)
    if audio:
        folder = _snapshot(place, [*audio, *(file for file in files if file.lower().endswith(SIDECARS))])
        return Download(folder, archives=tuple(table for table in tables if table.endswith(".tar")))
    raise UserError(_nothing_to_read(place.name, files))


def _hold_songs(tables: Iterable[str], columns: Columns, place: Place) -> bool:
    """As `hold_songs`, of tables in the repository, which are downloaded one by one until one holds songs."""
    requested = (table for table in tables if not table.endswith(".tar"))
    return hold_songs((_snapshot(place, [table]) / table for table in requested), columns)


def _files_of_repository(place: Place) -> list[str] | None:
    """The files of a repository; None where the Hub cannot be reached."""
    if datasets.config.HF_HUB_OFFLINE:
        return None
    api = HfApi(token=place.token)
    try:
        api.dataset_info(place.name)  # unlike the listing, it does not retry for half a minute without a network
        return api.list_repo_files(place.name, repo_type="dataset")
    except HfHubHTTPError:
        raise  # the Hub has answered
    except (OfflineModeIsEnabled, HTTPError):
        return None


def _download_tables(files: list[str], audio: list[str], columns: Columns, place: Place) -> Download:
    """Parquet, Arrow or tar files; where songs are limited, only the first ones of the requested splits."""
    urls = files_by_split(place.name, columns.config, filter(is_table, files), place)
    remote = {split: [_path_in_repository(url) for url in files] for split, files in urls.items()}
    limits = {TRAIN: columns.max_train_songs, EVAL: columns.max_eval_songs}
    requested = requested_splits(columns, remote, place.name)
    common = ["README.md", INFO, *audio]  # cells may name audio files of the repository
    if not any(limits.values()):  # without all that the README lists it could not be read without a network
        common += [file for paths in remote.values() for file in paths]
    folder = _snapshot(place, common)
    splits = {split: list(_downloaded(remote[split], limits[role], place)) for split, role in requested}
    return Download(folder, splits)


def _downloaded(paths: Sequence[str], limit: int | None, place: Place) -> Iterator[Path]:
    """The files of a split: all, or the first ones that have more rows than `limit`, so that some can be held out."""
    if limit is None:
        folder = _snapshot(place, paths)
        yield from (folder / path for path in paths)
        return
    rows = 0
    for path in paths:
        if rows > limit:
            return
        file = _snapshot(place, [path]) / path
        rows += count_rows(file)
        yield file


def _path_in_repository(url: str) -> str:
    """`hf://datasets/someone/songs@<commit>/data/a.parquet` is `data/a.parquet`."""
    return re.sub(r"^hf://datasets/[^@]+@[^/]+/", "", url)


def _snapshot(place: Place, files: Iterable[str], *, only_local: bool = False) -> Path:
    """The folder in the cache with these files of the repository, downloaded where they are not there yet."""
    return Path(
        snapshot_download(
            place.name,
            repo_type="dataset",
            token=place.token,
            cache_dir=place.cache_dir,
            allow_patterns=[glob.escape(file) for file in files],
            local_files_only=only_local,
        )
    )


def _nothing_to_read(name: str, files: list[str]) -> str:
    script = f"{name.rpartition('/')[2]}.py"
    if script in files:
        return (
            f"{name} is a loading script ({script}), which `datasets` no longer runs; take its Parquet copy: "
            f"hf download {name} --repo-type dataset --revision refs/convert/parquet --local-dir SONGS, then give SONGS"
        )
    text = f"{name} has no audio, Parquet, Arrow or tar files; it has {', '.join(files[:5]) or 'no files'}"
    if any(file.endswith(PACKED) for file in files):
        text += f"; unpack it: hf download {name} --repo-type dataset --local-dir SONGS, unpack there, then give SONGS"
    return text
