"""A stand-in of the Hugging Face Hub, so that tests push and load with the real clients and without a network.

``huggingface_hub`` reads ``HF_ENDPOINT`` once, when it is imported, so the code under test has to run in a process
of its own that starts with the variables of :meth:`LocalHub.environment`::

    with LocalHub() as hub:
        subprocess.run(command, env={**os.environ, **hub.environment(tmp_path)}, check=True)
        assert "adapter_config.json" in hub.files("someone/lora")

Model and dataset repositories live in memory, each with one branch (``main``) and all its commits.
A repository has the large files in LFS whose names match the patterns that the Hub has for all (``*.flac``,
``*.safetensors``, ...); there is no Xet. Nor are there further branches or tags, or spaces. Each pull request
(``refs/pr/1``) is the same as ``main``. A gated repo lists its files and gives none: nobody has been granted access.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

_ON = ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_UPDATE_CHECK", "HF_HUB_DISABLE_PROGRESS_BARS")
_OFF = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HUGGINGFACE_CO_STAGING")
_FOLDERS = {"HF_HUB_CACHE": "hub", "HF_DATASETS_CACHE": "datasets", "HF_MODULES_CACHE": "modules"}
_FOLDERS |= {"HF_ASSETS_CACHE": "assets", "HF_XET_CACHE": "xet", "HF_TOKEN_PATH": "token"}

LFS = (".flac", ".safetensors", ".parquet", ".bin")  # of the patterns in the Hub's .gitattributes, some


class HubError(Exception):
    """An error answer; the client picks its exception by `code`."""

    def __init__(self, status: int, message: str, code: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message, "X-Error-Code": code, **(headers or {})}


@dataclass
class Repo:
    """A repository: the files of every commit, the last of which is the head of ``main``."""

    name: str
    kind: str
    private: bool = False
    gated: bool = False
    disabled: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.commit({})

    @property
    def page(self) -> str:
        """Where a browser would find the repository."""
        return f"/{self.name}" if self.kind == "model" else f"/{self.kind}s/{self.name}"

    @property
    def head(self) -> str:
        """The id of the last commit."""
        return next(reversed(self.commits))

    def commit(self, files: dict[str, bytes], sha: str | None = None) -> str:
        """Make `files` the new head; like git's, its id depends on all that came before, unless it is given."""
        told = [self.page, *self.commits, *(path + blob_id(data) for path, data in files.items())]
        sha = sha or hashlib.sha1("\n".join(told).encode()).hexdigest()
        self.commits[sha] = files
        return sha

    def at(self, revision: str) -> tuple[str, dict[str, bytes]]:
        """The commit that `revision` names, and its files."""
        sha = self.head if revision == "main" or revision.startswith("refs/pr/") else revision
        if sha not in self.commits:
            raise HubError(404, "Invalid rev id", "RevisionNotFound")
        return sha, self.commits[sha]


def blob_id(data: bytes) -> str:
    """The id git gives a file: the client compares it with its own to leave out unchanged files."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def is_lfs(path: str) -> bool:
    """Whether the Hub keeps a file apart from git: its listing then has the SHA-256 beside git's id of a pointer."""
    return path.endswith(LFS)


def listed(path: str, data: bytes) -> dict[str, Any]:
    """A file in the words of the tree listing."""
    if not is_lfs(path):
        return {"type": "file", "path": path, "oid": blob_id(data), "size": len(data)}
    sha = hashlib.sha256(data).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha}\nsize {len(data)}\n".encode()
    lfs = {"oid": sha, "size": len(data), "pointerSize": len(pointer)}
    return {"type": "file", "path": path, "oid": blob_id(pointer), "size": len(data), "lfs": lfs}


def entries(files: Mapping[str, bytes]) -> dict[str, dict[str, Any]]:
    """The files and folders of a commit by path, in the words of the tree listing."""
    found: dict[str, dict[str, Any]] = {}
    for path, data in sorted(files.items()):
        for folder in map(str, reversed(PurePosixPath(path).parents[:-1])):
            found[folder] = {"type": "directory", "path": folder, "oid": blob_id(folder.encode()), "size": 0}
        found[path] = listed(path, data)
    return found


def is_listed(entry: Mapping[str, Any], folder: PurePosixPath, *, deep: bool) -> bool:
    """Whether a listing of `folder`, with all below it if `deep`, has this entry; of a file, that is the file."""
    path = PurePosixPath(entry["path"])
    if path == folder:
        return bool(entry["type"] == "file")
    return folder in path.parents if deep else folder == path.parent


def changed(
    files: dict[str, bytes], operations: list[dict[str, Any]], objects: Mapping[str, bytes]
) -> dict[str, bytes]:
    """The files after the operations of a commit; those in LFS are among the `objects` that were uploaded before."""
    for key, value in ((operation["key"], operation["value"]) for operation in operations):
        if key == "file":
            files = {**files, value["path"]: base64.b64decode(value["content"])}
        elif key == "lfsFile":
            if len(objects.get(value["oid"], b"")) != value["size"]:
                raise HubError(400, f"The LFS object of {value['path']} was not uploaded")
            files = {**files, value["path"]: objects[value["oid"]]}
        elif key in ("deletedFile", "deletedFolder"):
            gone = PurePosixPath(value["path"])
            files = {path: data for path, data in files.items() if not PurePosixPath(path).is_relative_to(gone)}
        else:
            raise HubError(501, f"The stand-in has no {key}")
    return files


class LocalHub:
    """The Hub on a free port of 127.0.0.1, with one user who may write to the repositories of their own name."""

    user = "someone"
    token = "hf_stand_in"

    def __init__(self) -> None:
        self.requests: list[str] = []  # all that was asked, as "GET /path"
        self.strangers: list[str] = []  # what was meant for other hosts, and refused
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[str, bytes] = {}  # in LFS, by SHA-256
        self.lock = threading.Lock()
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> LocalHub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def environment(self, home: Path, *, signed_in: bool = True) -> dict[str, str]:
        """Variables, to lay over the test's own, that give a process this Hub only and keep its files in `home`.

        What it asks of other hosts comes here as well, as to a proxy, without so much as a name look-up.
        """
        token = self.token if signed_in else ""
        proxies = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), self.endpoint) | {"no_proxy": "127.0.0.1"}
        # Folders and "0" are spelled out although they are the defaults: the developer's shell may have others.
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": token,
            "HUGGING_FACE_HUB_TOKEN": token,
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0",
            "HF_HOME": str(home),
            **{name: str(home / folder) for name, folder in _FOLDERS.items()},
            **dict.fromkeys(_ON, "1"),
            **dict.fromkeys(_OFF, "0"),
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # else `datasets` asks a bucket of Amazon's
            "DISABLE_SAFETENSORS_CONVERSION": "1",  # else `transformers` asks a space
            **proxies,
            **{name.upper(): value for name, value in proxies.items()},
        }

    def add(
        self,
        repo_id: str,
        files: Mapping[str, bytes],
        *,
        repo_type: str = "model",
        private: bool = False,
        gated: bool = False,
        disabled: bool = False,
        commit: str | None = None,
    ) -> str:
        """Commit `files` beside those the repository has, making it if need be; returns the commit's id.

        With `commit` it has the id of a commit on the real Hub.
        """
        with self.lock:
            repo = self.repos.setdefault((repo_type, repo_id), Repo(repo_id, repo_type, private, gated, disabled))
            return repo.commit({**repo.commits[repo.head], **files}, commit)

    def files(self, repo_id: str, repo_type: str = "model") -> dict[str, bytes]:
        """The files at the head of ``main``; a KeyError tells that there is no such repository."""
        repo = self.repos[repo_type, repo_id]
        return dict(repo.commits[repo.head])

    def private(self, repo_id: str, repo_type: str = "model") -> bool:
        """Whether the repository is private."""
        return self.repos[repo_type, repo_id].private


class _Server(ThreadingHTTPServer):
    def __init__(self, hub: LocalHub) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub


class _Handler(BaseHTTPRequestHandler):
    """One connection to the hub, which stays open from request to request."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet, else each answer waits for the client's delayed acknowledgement

    @property
    def hub(self) -> LocalHub:
        return cast("_Server", self.server).hub

    def _serve(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        self.token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.hub.requests.append(f"{self.command} {self.path}")
        try:
            self._check()
            self._dispatch()
        except HubError as error:
            self._answer({"error": str(error)}, error.status, error.headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_CONNECT = _serve  # noqa: N815 - the names are http.server's

    def _check(self) -> None:
        # `datasets` puts "datasets-server." before the endpoint's host, even if that is an address.
        if not self.path.startswith(("/", self.hub.endpoint.replace("://", "://datasets-server."))):
            self.hub.strangers.append(f"{self.command} {self.path}")
            raise HubError(403, "Not a request to the Hub")
        if self.token not in ("", self.hub.token):
            raise HubError(401, "Invalid credentials in Authorization header")

    def _dispatch(self) -> None:
        for method, pattern, action in _ROUTES:
            found = re.fullmatch(pattern, urlsplit(self.path).path)
            if found and method == self.command.replace("HEAD", "GET"):
                self.pieces = {name: unquote(piece) for name, piece in found.groupdict().items() if piece}
                return action(self)
        raise HubError(404, "The stand-in has no such page")

    def _answer(self, content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        """Send bytes as they are, anything else as JSON."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing on stderr: the hub keeps the requests."""

    def _repo(self) -> Repo:
        repo = self.hub.repos.get((self.pieces.get("kind", "models")[:-1], self.pieces["repo"]))
        if repo is None:
            raise HubError(404, "Repository not found", "RepoNotFound")
        if repo.private and not self.token:
            # Over https the client takes any 401 for a missing repository; over http it has to be told.
            raise HubError(401, "Invalid username or password.", "RepoNotFound")
        return repo

    def _files(self) -> tuple[str, dict[str, bytes]]:
        return self._repo().at(self.pieces.get("revision", "main"))

    def _writable(self) -> Repo:
        repo = self._repo()
        self._may_write(repo.name, "RepoNotFound")
        if self.pieces["revision"] != "main" or "create_pr" in self.query:
            raise HubError(501, "The stand-in has no further branches and no pull requests")
        return repo

    def _may_write(self, name: str, code: str = "") -> None:
        if not self.token:
            raise HubError(401, "Invalid username or password.", code)
        if not name.startswith(f"{self.hub.user}/"):
            raise HubError(403, "You don't have the rights to write to this namespace")

    def _validate_yaml(self) -> None:
        """Judge the metadata of a README.md, by its syntax only: the Hub knows the fields as well."""
        block = re.match(r"---\n(.*?)\n---\s", json.loads(self.body)["content"] + "\n", re.DOTALL)
        warnings = [] if block else [{"message": "empty or missing yaml metadata in repo card"}]
        try:
            yaml.safe_load(block[1] if block else "")
        except yaml.YAMLError as error:
            return self._answer({"errors": [{"message": str(error)}], "warnings": warnings}, 400)
        return self._answer({"errors": [], "warnings": warnings})

    def _create(self) -> None:
        asked = json.loads(self.body)
        kind, name = asked.get("type", "model"), f"{asked.get('organization') or self.hub.user}/{asked['name']}"
        self._may_write(name)
        new = Repo(name, kind, asked.get("private") or asked.get("visibility") == "private")
        with self.hub.lock:
            there = self.hub.repos.setdefault((kind, name), new) is not new
        # With exist_ok the client passes over the 409, and still reads the url.
        told = {"error": f"You already created this {kind} repo"} if there else {}
        self._answer({"url": self.hub.endpoint + new.page, **told}, 409 if there else 200)

    def _info(self) -> None:
        repo, (sha, files) = self._repo(), self._files()
        siblings = [{"rfilename": path, "size": len(data), "blobId": blob_id(data)} for path, data in files.items()]
        about = {"id": repo.name, "sha": sha, "private": repo.private, "gated": "auto" if repo.gated else False}
        self._answer({**about, "disabled": repo.disabled, "siblings": siblings})

    def _settings(self) -> None:
        self._may_write(self._repo().name)
        self._repo().private = json.loads(self.body)["visibility"] == "private"
        self._answer({"private": self._repo().private})

    def _may_push(self) -> None:
        self._may_write(self._repo().name)
        self._answer({})

    def _tree(self) -> None:
        found, folder = entries(self._files()[1]), PurePosixPath(self.pieces.get("path", ""))
        if "path" in self.pieces and str(folder) not in found:
            raise HubError(404, "Entry not found", "EntryNotFound")
        deep = self.query.get("recursive") == "true"
        self._answer([entry for entry in found.values() if is_listed(entry, folder, deep=deep)])

    def _preupload(self) -> None:
        """Say how to upload each file: within the commit, or to LFS before it."""
        repo = self._writable()
        there = repo.commits[repo.head]
        known = {path: listed(path, data) for path, data in there.items()}
        oids = {path: entry["lfs"]["oid"] if "lfs" in entry else entry["oid"] for path, entry in known.items()}
        paths = [file["path"] for file in json.loads(self.body)["files"]]
        modes = {path: "lfs" if is_lfs(path) else "regular" for path in paths}
        self._answer(
            {
                "files": [
                    {"path": path, "oid": oids.get(path), "uploadMode": modes[path], "shouldIgnore": False}
                    for path in paths
                ]
            }
        )

    def _lfs_batch(self) -> None:
        """Say where to put the objects that are not here yet."""
        self._may_write(self._repo().name)
        asked = json.loads(self.body)
        if asked["operation"] != "upload" or asked["hash_algo"] != "sha256":
            raise HubError(501, "The stand-in takes uploads to LFS only")
        objects = [{"oid": one["oid"], "size": one["size"]} for one in asked["objects"]]
        for one in objects:
            if one["oid"] not in self.hub.objects:
                one["actions"] = {"upload": {"href": f"{self.hub.endpoint}/lfs/{one['oid']}"}}
        self._answer({"transfer": "basic", "objects": objects})

    def _put_object(self) -> None:
        if hashlib.sha256(self.body).hexdigest() != self.pieces["oid"]:
            raise HubError(400, "The object has another SHA-256")
        with self.hub.lock:
            self.hub.objects[self.pieces["oid"]] = self.body
        self._answer({})

    def _commit(self) -> None:
        repo = self._writable()
        header, *operations = [json.loads(line) for line in self.body.splitlines()]
        with self.hub.lock:
            if header["value"].get("parentCommit", repo.head) != repo.head:
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            sha = repo.commit(changed(repo.commits[repo.head], operations, self.hub.objects))
        self._answer({"commitOid": sha, "commitUrl": f"{self.hub.endpoint}{repo.page}/commit/{sha}"})

    def _resolve(self) -> None:
        (sha, files), path = self._files(), self.pieces["path"]
        if self._repo().gated:
            raise HubError(403 if self.token else 401, "Access to this repository is restricted.", "GatedRepo")
        if path not in files:
            raise HubError(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": sha})
        entry = listed(path, files[path])
        headers = {"X-Repo-Commit": sha, "ETag": f'"{entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]}"'}
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is None:
            return self._answer(files[path], headers=headers)
        first, last = int(asked[1]), min(int(asked[2]), len(files[path]) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(files[path])}"
        return self._answer(files[path][first : last + 1], 206, headers)


_ID, _REVISION = "(?P<repo>[^/]+(?:/[^/]+)?)", "(?P<revision>[^/]+)"
_REPO = f"/api/(?P<kind>models|datasets)/{_ID}"
_ROUTES = (
    ("POST", "/api/validate-yaml", _Handler._validate_yaml),
    ("POST", "/api/repos/create", _Handler._create),
    ("PUT", f"{_REPO}/settings", _Handler._settings),
    ("GET", f"{_REPO}/auth-check/write", _Handler._may_push),
    ("GET", f"{_REPO}(?:/revision/{_REVISION})?", _Handler._info),
    ("GET", f"{_REPO}/tree/{_REVISION}(?:/(?P<path>.+))?", _Handler._tree),
    ("POST", f"{_REPO}/preupload/{_REVISION}", _Handler._preupload),
    ("POST", f"{_REPO}/commit/{_REVISION}", _Handler._commit),
    ("POST", f"(?:/(?P<kind>datasets))?/{_ID}.git/info/lfs/objects/batch", _Handler._lfs_batch),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", _Handler._put_object),
    ("GET", f"(?:/(?P<kind>datasets))?/{_ID}/resolve/{_REVISION}/(?P<path>.+)", _Handler._resolve),
)
