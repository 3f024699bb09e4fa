"""`push`: a finished run, or another folder of this program, to the Hub with a card that plays it."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from musicgen_dreamboothing.arguments import PushArguments, check_values
from musicgen_dreamboothing.console import UserError, log, quiet_libraries
from musicgen_dreamboothing.data.run_record import RunRecord, read_record
from musicgen_dreamboothing.hub import Source
from musicgen_dreamboothing.model.adapter import SavedAdapter, read_adapter
from musicgen_dreamboothing.model.checkpoint import Checkpoint, load_checkpoint
from musicgen_dreamboothing.model.merging import Merger
from musicgen_dreamboothing.sharing.card import write_card
from musicgen_dreamboothing.sharing.licence import licence_of
from musicgen_dreamboothing.sharing.publication import Publication, republish_adapter
from musicgen_dreamboothing.sharing.repository import CARD, Repository
from musicgen_dreamboothing.sharing.runs import open_repository, upload_files
from musicgen_dreamboothing.training.card_facts import facts_of_record, listening_of

PRIVATE = "--private"


@dataclass(frozen=True)
class PushResult:
    """The address on the Hub, None with `list_only`, and the paths that went there."""

    url: str | None
    files: list[str]


@quiet_libraries()
def push(options: PushArguments) -> PushResult:
    """Uploads a folder; what goes up is listed first. Files on the Hub that others wrote are never overwritten.

    Raises:
        UserError: the folder holds nothing to share, its base cannot be read, or the repository cannot be written to.
    """
    check_values(options)
    folder = Path(options.run)
    record = read_record(folder)
    _check(folder, record)
    repository = None
    if not options.list_only:
        repository = open_repository(
            options.hub_model_id, token=options.token, private=options.private or None, private_option=PRIVATE
        )
    with tempfile.TemporaryDirectory() as staging:
        publication = _publication(options, folder, record, Path(staging), repository)
        _list_files(publication)
        if repository is None:
            return PushResult(None, list(publication.files))
        url = upload_files(publication.files, repository)
    log(f"Uploaded to {url}")
    return PushResult(url, list(publication.files))


def _check(folder: Path, record: RunRecord | None) -> None:
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; push takes the folder of a run")
    if record is not None and not record.finished:
        raise UserError(f"the run in {folder} is not finished; the same train command finishes it")


def _publication(
    options: PushArguments, folder: Path, record: RunRecord | None, staging: Path, repository: Repository | None
) -> Publication:
    """The files, with a new card for adapters and runs; other folders have one already."""
    publication = Publication.of(folder)
    adapter = read_adapter(str(folder))
    if adapter is None and record is None:
        if CARD not in publication.files:
            raise UserError(
                f"{folder} has neither run.json nor {CARD}: write a card first, with the licence of its base"
            )
        return publication
    checkpoint = _base(options, adapter, record)
    licence = licence_of(checkpoint)
    name = options.hub_model_id if repository is None else repository.name
    if adapter is not None:
        _check_adapter(checkpoint, adapter)
        key_word = None if record is None else record.options.get("instance_prompt")
        republish_adapter(publication, folder, staging, adapter, checkpoint, key_word, licence)
    facts = facts_of_record(record, name, is_adapter=adapter is not None, songs_licence=options.songs_licence)
    listening = listening_of(folder, options.players)
    publication.add_players(listening)
    url = None if repository is None else repository.url
    write_card(staging, facts, checkpoint, licence, listening=listening, url=url)
    publication.files[CARD] = staging / CARD
    return publication


def _base(options: PushArguments, adapter: SavedAdapter | None, record: RunRecord | None) -> Checkpoint:
    """The base that the folder's weights belong to, at its revision."""
    if adapter is not None:
        name, revision = adapter.config.base_model_name_or_path, adapter.config.revision
    else:
        assert record is not None
        name, revision = record.base_model, record.base_revision
    if options.base_model is not None:
        name, revision = options.base_model, None
    if not name:
        raise UserError("the adapter does not say what it was trained on; name its base with --base_model")
    revision = None if Path(name).is_dir() else revision
    try:
        return load_checkpoint(Source(str(name), revision, options.cache_dir, options.token))
    except UserError as error:
        raise UserError(f"the base cannot be read: {error}. If it has moved, name it with --base_model") from error


def _check_adapter(checkpoint: Checkpoint, adapter: SavedAdapter) -> None:
    """Refuses an adapter that does not fit its base, or changes nothing."""
    if not Merger(checkpoint, adapter).active_layers[0]:
        raise UserError(f"the adapter {adapter.name} changes nothing: all its updates are zero. Was it trained?")


def _list_files(publication: Publication) -> None:
    sizes = {path: file.stat().st_size for path, file in publication.files.items()}
    log(f"{len(sizes)} files, {sum(sizes.values()) / 1e6:.1f} MB:")
    for path, size in sizes.items():
        log(f"  {path}  {size / 1e6:.2f} MB")
