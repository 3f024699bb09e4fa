"""Where models come from: a folder or the Hub, at which commit, and what the Hub's refusals mean."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from transformers.utils import cached_file, extract_commit_hash

LOG_IN = "log in with `hf auth login` or pass --token"
REFUSALS = (401, 403)  # HTTP: not signed in, or without the right to read it
WEIGHT_PATTERNS = ("*.safetensors", "pytorch_model*.bin", "adapter_model*.bin")
SAMPLES, SAMPLE_BYTES = 256, 1 << 16  # that tell one file of weights from another; all of it up to 16 MB


@dataclass(frozen=True)
class Source:
    """Where a checkpoint comes from: the arguments that every `from_pretrained` needs."""

    name: str
    revision: str | None = None
    cache_dir: str | None = None
    token: str | None = None
    trust_remote_code: bool = False

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for transformers' loaders. `token` is left out when unset: then the stored login counts."""
        arguments: dict[str, Any] = {"revision": self.revision, "cache_dir": self.cache_dir, "token": self.token}
        arguments |= {"trust_remote_code": True} if self.trust_remote_code else {}
        return {key: value for key, value in arguments.items() if value is not None}


def name_with_commit(source: Source) -> str:
    """`owner/name@0123abc` of a checkpoint from the Hub, and the path of a folder as it is."""
    if Path(source.name).is_dir():
        return source.name
    commit = extract_commit_hash(cached_file(source.name, "config.json", **source.arguments()), None)
    return f"{source.name}@{commit[:7]}" if commit else source.name


def weights_fingerprint(folder: Path) -> str:
    """A short hash over samples of all weights in a folder, since reading gigabytes at every start takes too long."""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(path for pattern in WEIGHT_PATTERNS for path in folder.glob(pattern)):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for start in range(0, size, max(SAMPLE_BYTES, size // SAMPLES)):
                file.seek(start)
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def explain_refusal(name: str, error: BaseException, kind: str = "model") -> str | None:
    """One line with the next step where the Hub refused a repository; None for all other errors.

    Args:
        name: of the repository.
        error: what a library raised; the Hub's answer may be a cause of it.
        kind: `model` or `dataset`.
    """
    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{name}"
    if is_caused_by(error, GatedRepoError) or "is a gated dataset" in str(error):
        return (
            f"the {kind} {name} is gated: accept its conditions at {page}, "
            f"then {LOG_IN}, and run the same command again"
        )
    if is_caused_by(error, RepositoryNotFoundError):
        return f"no folder {name!r} here, and the Hub has no such {kind}, or it is private: check the name, or {LOG_IN}"
    answer = _cause(error, HfHubHTTPError)
    if isinstance(answer, HfHubHTTPError) and answer.response.status_code in REFUSALS:
        return f"the Hub refuses the token for the {kind} {name} (HTTP {answer.response.status_code}): {LOG_IN}"
    return None


def is_caused_by(error: BaseException, kind: type[BaseException]) -> bool:
    """Whether an error or one of its causes is of this kind."""
    return _cause(error, kind) is not None


def _cause(error: BaseException | None, kind: type[BaseException]) -> BaseException | None:
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error
