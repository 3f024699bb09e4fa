"""The described clips to the Hub, as a dataset that anybody with `datasets`, or this program, can load again."""

from __future__ import annotations

from pathlib import Path

from musicgen_dreamboothing.data.clips import listed_clips
from musicgen_dreamboothing.data.layout import CLIPS, METADATA
from musicgen_dreamboothing.data.repository import CARD, Repository, open_repository, upload


def open_dataset(name: str, *, token: str | None, private: bool) -> Repository:
    """Makes sure that a dataset repository exists, may be written to and is ours or empty.

    Raises:
        UserError: it is not, or nobody is logged in; called before hours of work.
    """
    options = ("--push_metadata_repo_id", "--push_metadata_private")
    return open_repository(Repository(name, "dataset", private, token, *options))


def push_clips(folder: Path, dataset: Repository) -> str:
    """Uploads the clips that are listed in the metadata, and returns the dataset's address.

    Raises:
        UserError: the upload failed, or would change what others wrote.
    """
    names = [str(row["file_name"]) for row in listed_clips(folder) if "file_name" in row]
    paths = {name: folder / CLIPS / name for name in [*names, METADATA, CARD]}  # what names the clips comes last
    files = {name: path for name, path in paths.items() if path.is_file()}
    return upload(dataset, files, "Clips with captions")
