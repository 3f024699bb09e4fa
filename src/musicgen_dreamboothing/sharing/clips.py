"""Clips with captions to the Hub, as a dataset that `datasets` and this program can load."""

from __future__ import annotations

from pathlib import Path

from musicgen_dreamboothing.sharing.repository import CARD, Repository, open_repository, upload


def open_dataset(name: str, *, token: str | None, private: bool) -> Repository:
    """Makes sure that a dataset repository exists, may be written to and is ours or empty; else a UserError."""
    options = ("--push_metadata_repo_id", "--push_metadata_private")
    return open_repository(Repository(name, "dataset", private, token, *options))


def push_clips(folder: Path, names: list[str], dataset: Repository) -> str:
    """Uploads files of a folder of clips, with its card, and returns the dataset's address.

    Args:
        folder: holds the clips.
        names: of the files; the metadata, which names the others, comes last.
        dataset: the target.
    """
    files = {name: folder / name for name in [*names, CARD] if (folder / name).is_file()}
    return upload(dataset, files, "Clips with captions")
