"""The described clips to the Hub, as a dataset that anybody with `datasets`, or this program, can load again."""

from __future__ import annotations

from pathlib import Path

from musicgen_dreamboothing.sharing.repository import CARD, Repository, open_repository, upload


def open_dataset(name: str, *, token: str | None, private: bool) -> Repository:
    """Makes sure that a dataset repository exists, may be written to and is ours or empty.

    Raises:
        UserError: it is not, or nobody is logged in; called before hours of work.
    """
    options = ("--push_metadata_repo_id", "--push_metadata_private")
    return open_repository(Repository(name, "dataset", private, token, *options))


def push_clips(folder: Path, names: list[str], dataset: Repository) -> str:
    """Uploads files of a folder of clips, with its card, and returns the dataset's address.

    Args:
        folder: holds the clips.
        names: of the files, those last that name the others.
        dataset: where to.

    Raises:
        UserError: the upload failed, or would change what others wrote.
    """
    files = {name: folder / name for name in [*names, CARD] if (folder / name).is_file()}
    return upload(dataset, files, "Clips with captions")
