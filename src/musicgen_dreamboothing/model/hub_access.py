"""What the Hub's refusals mean: repositories that are gated, private or missing, and tokens that it does not accept."""

from __future__ import annotations

from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

LOG_IN = "log in with `hf auth login` or pass --token"
REFUSALS = (401, 403)  # HTTP: not signed in, or without the right to read it


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
