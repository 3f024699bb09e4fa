"""The described clips to the Hub, as a dataset that anybody with `datasets`, or this program, can load again."""

from __future__ import annotations

import glob
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]  # httpx's, old or new

from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.data.clips import listed_clips
from musicgen_dreamboothing.data.layout import CLIPS, METADATA

CARD = "README.md"


def open_dataset(name: str, *, token: str | None, private: bool) -> str:
    """Makes sure that a dataset repository is there and may be written, and returns its full id.

    Raises:
        UserError: it may not, or nobody is logged in; called before hours of listening.
    """
    try:
        return HfApi(token=token).create_repo(name, repo_type="dataset", private=private, exist_ok=True).repo_id
    except (HTTPError, HFValidationError, OSError) as error:
        raise UserError(
            f"can't write to the dataset {name!r} on the Hub ({_reason(error)}); try `hf auth login` or another "
            "--push_metadata_repo_id"
        ) from error


def push_clips(folder: Path, name: str, *, token: str | None) -> str:
    """Uploads the clips that are listed in the metadata, and returns the dataset's address.

    Raises:
        UserError: the upload failed.
    """
    listed = [str(row["file_name"]) for row in listed_clips(folder) if "file_name" in row]
    try:
        commit = HfApi(token=token).upload_folder(
            repo_id=name,
            repo_type="dataset",
            folder_path=folder / CLIPS,
            allow_patterns=[METADATA, CARD, *map(glob.escape, listed)],
            delete_patterns="*.flac",  # clips that are no longer listed
            commit_message="Clips with captions",
        )
    except (HTTPError, OSError) as error:
        raise UserError(
            f"the upload to {name} failed ({_reason(error)}); all is done in {folder}: run the same command to retry"
        ) from error
    return str(commit.repo_url)


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
