"""A repository on the Hub, in which only files that this program uploaded are ever replaced or deleted.

A marker file in the repository lists them with their hashes; all other files, and listed ones that have changed since,
stay. Every commit names its parent, so that the Hub refuses it where somebody else has pushed in between.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]  # httpx's, old or new
from huggingface_hub.hf_api import RepoFile
from tqdm.auto import tqdm

from musicgen_dreamboothing.console import UserError, first_names, log, plural

MARKER = ".musicgen-dreamboothing.json"
CARD = "README.md"
MADE_BY_THE_HUB = (".gitattributes", MARKER)
STUB_BYTES = 1000  # of a card that the website made
BATCH_FILES, BATCH_BYTES = 500, 2_000_000_000  # of one commit; the Hub takes minutes for thousands of files
HTTP_CONFLICT = 412  # somebody else has pushed since the parent commit

Digests = dict[str, list[str]]  # by path: git blob id and SHA-256; the Hub lists one of them
Operations = list[CommitOperationAdd | CommitOperationDelete]


@dataclass(frozen=True)
class Repository:
    """A repository as requested."""

    name: str  # with or without its owner
    kind: str  # `model` or `dataset`
    private: bool | None  # the requested visibility; None keeps that of an existing one
    token: str | None  # None for the stored login
    option: str  # that names it
    private_option: str  # that chooses the visibility

    @property
    def api(self) -> HfApi:
        return HfApi(token=self.token)

    @property
    def title(self) -> str:
        return f"the {self.kind} {self.name!r} on the Hub"

    @property
    def url(self) -> str:
        return f"{self.api.endpoint}/{'datasets/' if self.kind == 'dataset' else ''}{self.name}"


@dataclass(frozen=True)
class _Contents:
    """What a repository holds."""

    head: str | None  # the commit of this listing
    remote: dict[str, str]  # the hash of each file, as the Hub lists it
    ours: Digests  # of the files that this program uploaded, as the marker lists them
    is_complete: bool = True  # whether the upload that wrote the marker has finished


@dataclass(frozen=True)
class _Plan:
    """What an upload changes."""

    added: list[str]  # paths that are uploaded
    deleted: list[str]  # paths of ours that are no longer in the upload
    marker: Digests  # what is ours afterwards
    notes: list[str]  # lines for the user


def open_repository(repository: Repository) -> Repository:
    """Makes sure that a repository exists, may be written to and is ours or empty; returns it with its full name.

    Called before the work, so that a missing login does not show hours later.

    Raises:
        UserError: it can't be written to, it holds files of others, or it is public though a private one was requested.
    """
    api, kind = repository.api, repository.kind
    try:
        name = api.create_repo(repository.name, repo_type=kind, private=repository.private, exist_ok=True).repo_id
        api.auth_check(name, repo_type=kind, write=True)
    except (HTTPError, HFValidationError, OSError) as error:
        raise UserError(
            f"can't write to {repository.title} ({_reason(error)}); try `hf auth login` or another {repository.option}"
        ) from error
    repository = replace(repository, name=name)
    _read_contents(repository, is_first=True)
    return repository


def upload(repository: Repository, files: Mapping[str, Path], message: str) -> str:
    """Uploads files by their paths in the repository, deletes what is ours and not among them; returns its address.

    Many files are uploaded in several commits, in the order of `files`. A marker that lists all of them comes first, so
    that the next run continues an interrupted upload.

    Raises:
        UserError: the upload failed, or would change what others wrote.
    """
    contents = _read_contents(repository)
    digests = {path: _digests(file) for path, file in files.items()}
    plan = _plan(repository, contents, digests)
    for note in plan.notes:
        log(note)
    if plan.added or plan.deleted or plan.marker != contents.ours or not contents.is_complete:
        _commit_all(repository, files, contents, digests, plan, message)
    return repository.url


def _read_contents(repository: Repository, *, is_first: bool = False) -> _Contents:
    """Lists a repository, and refuses one that is not ours or has another visibility than requested."""
    api, kind = repository.api, repository.kind
    with _user_errors(f"can't read {repository.title}"):
        info: Any = api.repo_info(repository.name, repo_type=kind)
        tree = api.list_repo_tree(repository.name, repo_type=kind, revision=info.sha, recursive=True)
        files = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    if info.disabled:
        raise UserError(f"{repository.title} is disabled; choose another {repository.option}")
    remote = {path: file.lfs.sha256 if file.lfs else file.blob_id for path, file in files.items()}
    contents = _Contents(info.sha, remote, {})
    if MARKER in remote:
        contents = _with_marker(contents, repository)
    else:
        if CARD in remote and files[CARD].size <= STUB_BYTES and _is_stub(_read_text(repository, CARD, info.sha)):
            contents = replace(contents, ours={CARD: [remote[CARD]]})
            if is_first:
                log(f"note: {CARD} in {repository.title} holds only metadata, and will be replaced")
        if others := [path for path in remote if path not in (*MADE_BY_THE_HUB, *contents.ours)]:
            raise UserError(
                f"{repository.title} holds files that this program did not upload ({first_names(others)}); choose "
                f"another {repository.option}, or delete them there"
            )
    _check_visibility(repository, is_private=bool(info.private), is_first=is_first)
    return contents


def _check_visibility(repository: Repository, *, is_private: bool, is_first: bool) -> None:
    """`create_repo` ignores the requested visibility where a repository exists."""
    if repository.private and not is_private:
        raise UserError(
            f"{repository.title} is public, and {repository.private_option} asks for a private one; make it private in "
            f"its settings there, choose another {repository.option}, or set {repository.private_option} false"
        )
    if repository.private is False and is_private and is_first:
        log(f"note: {repository.title} is private and stays private; its settings there make it public")


def _with_marker(contents: _Contents, repository: Repository) -> _Contents:
    text = _read_text(repository, MARKER, contents.head)
    try:
        marker = json.loads(text)
        ours = {str(path): [str(digest) for digest in digests] for path, digests in marker["files"].items()}
        return replace(contents, ours=ours, is_complete=bool(marker["complete"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{MARKER} in {repository.title} was changed there and no longer says which files this program uploaded; "
            f"restore it from the history there, or choose another {repository.option}"
        ) from error


class _NoBar(tqdm):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "disable": True})


def _read_text(repository: Repository, path: str, revision: str | None) -> str:
    where: dict[str, Any] = {"repo_type": repository.kind, "revision": revision, "tqdm_class": _NoBar}
    with _user_errors(f"can't read {path} in {repository.title}"), TemporaryDirectory() as folder:
        file = repository.api.hf_hub_download(repository.name, path, local_dir=folder, **where)
        return Path(file).read_text(encoding="utf-8", errors="replace")


def _is_stub(card: str) -> bool:
    """Whether a card holds nothing but metadata, as the website makes one for a new repository."""
    return not re.sub(r"\A---\n.*?\n---\s*\Z", "", card.replace("\r\n", "\n"), flags=re.DOTALL).strip()


def _digests(file: Path) -> list[str]:
    """The two hashes by which the Hub may list a file: git's blob id, and SHA-256 of a file in LFS or Xet storage."""
    # Not for security: git's blob ids are SHA-1.
    blob, sha256 = hashlib.sha1(b"blob %d\0" % file.stat().st_size, usedforsecurity=False), hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            blob.update(block)
            sha256.update(block)
    return [blob.hexdigest(), sha256.hexdigest()]


def _plan(repository: Repository, contents: _Contents, digests: Digests) -> _Plan:
    remote, ours = contents.remote, contents.ours
    added, unchanged, foreign = list[str](), list[str](), list[str]()
    for path, local in digests.items():
        if path not in remote or (remote[path] not in local and remote[path] in ours.get(path, [])):
            added.append(path)
        elif remote[path] not in local:
            foreign.append(path)
        elif path in ours:
            unchanged.append(path)
    if changed := [path for path in foreign if path != CARD]:
        were, them = ("was", "it") if len(changed) == 1 else ("were", "them")
        raise UserError(
            f"{first_names(changed)} in {repository.title} {were} changed there, and would be overwritten; take the "
            f"changes over and delete {them} there, or choose another {repository.option}"
        )
    notes = [f"note: {path} was edited on the Hub and stays; this run's is not uploaded" for path in foreign]
    deleted = list[str]()
    for path in ours:
        if path not in digests and path in remote:
            if remote[path] in ours[path]:
                deleted.append(path)
            else:
                notes.append(f"note: {path} was changed on the Hub and stays there")
    restored = [path for path in added if path in ours and path not in remote and contents.is_complete]
    notes += [f"note: deleted on the Hub, and uploaded again: {first_names(restored)}"] if restored else []
    return _Plan(added, deleted, {path: digests[path] for path in [*added, *unchanged]}, notes)


def _commit_all(
    repository: Repository,
    files: Mapping[str, Path],
    contents: _Contents,
    digests: Digests,
    plan: _Plan,
    message: str,
) -> None:
    """One commit, or several that begin with a marker of all that is coming; deletions are in the last one."""
    sizes = {path: files[path].stat().st_size for path in plan.added}
    batches = list(_batches(sizes))
    last: Operations = [CommitOperationDelete(path_in_repo=path, is_folder=False) for path in plan.deleted]
    last.append(_marker(plan.marker, is_complete=True))
    head, sent, started = contents.head, 0, time.perf_counter()
    if len(batches) > 1:
        log(f"uploading {plural(len(sizes), 'file')} ({sum(sizes.values()) / 1e9:.2f} GB) in {len(batches)} parts")
        both = {path: [*contents.ours.get(path, []), *digests[path]] for path in plan.added}
        head = _commit(repository, [_marker(contents.ours | both, is_complete=False)], head, f"{message}: file list")
    for number, batch in enumerate(batches, 1):
        operations: Operations = [CommitOperationAdd(path, files[path]) for path in batch]
        is_last = number == len(batches)
        part = "" if len(batches) == 1 else f" (part {number} of {len(batches)})"
        head = _commit(repository, operations + (last if is_last else []), head, message + part)
        sent += sum(sizes[path] for path in batch)
        if part:
            rate = sent / max(time.perf_counter() - started, 1e-3) / 1e6
            log(f"uploaded part {number} of {len(batches)}: {sent / 1e9:.2f} GB so far, {rate:.1f} MB/s")


def _batches(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Paths in their order, as many at once as fit one commit; at least one list, which may be empty."""
    batch, size = list[str](), 0
    for path, more in sizes.items():
        if batch and (len(batch) == BATCH_FILES or size + more > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(path)
        size += more
    yield batch


def _marker(ours: Digests, *, is_complete: bool) -> CommitOperationAdd:
    about = "Files that musicgen-dreamboothing uploaded: it replaces and deletes these, and no others."
    text = json.dumps({"about": about, "complete": is_complete, "files": ours}, indent=1)
    return CommitOperationAdd(MARKER, f"{text}\n".encode())


def _commit(repository: Repository, operations: Operations, parent: str | None, message: str) -> str:
    """Commits on top of `parent`, and returns the new head."""
    with _user_errors(f"the upload to {repository.title} failed", "nothing is lost here: run the same command again"):
        return repository.api.create_commit(
            repository.name, operations, repo_type=repository.kind, parent_commit=parent, commit_message=message
        ).oid


@contextmanager
def _user_errors(failure: str, advice: str = "run the same command again") -> Iterator[None]:
    try:
        yield
    except (HTTPError, OSError, ValueError, RuntimeError) as error:  # hf_xet's are of the last kind
        answer = getattr(error, "response", None)
        if answer is not None and answer.status_code == HTTP_CONFLICT:
            raise UserError(f"{failure}: somebody else pushed to it meanwhile; run the same command again") from error
        raise UserError(f"{failure} ({_reason(error)}); {advice}") from error


def _reason(error: Exception) -> str:
    """The first line of an error that is more than its status, such as `404 Client Error.`."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in lines if not re.match(r"\d{3} \w+ Error\.", line)), lines[0]).rstrip(".")
