"""A run to the Hub: the folder that works here works there."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]  # httpx's, old or new

from musicgen_dreamboothing.console import UserError

# What a reader needs; songs, tokens, checkpoints, logs and `run.json` with its paths stay at home.
SHARED = (
    "README.md",
    "adapter_config.json",
    "adapter_model*.safetensors",
    "model*.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "spiece.model",
)


def open_repository(name: str, *, token: str | None, private: bool | None) -> str:
    """Makes sure that a model repository is there and may be written, and returns its full id.

    Called before a training: that nobody is logged in should not come out hours later.
    """
    try:
        return HfApi(token=token).create_repo(name, private=private, exist_ok=True).repo_id
    except (HTTPError, HFValidationError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"can't write to {name!r} on the Hub ({reason}); try `hf auth login` or another --hub_model_id"
        ) from error


def upload(folder: Path, name: str, *, token: str | None) -> str:
    """Uploads a run and returns its address."""
    try:
        commit = HfApi(token=token).upload_folder(
            repo_id=name, folder_path=folder, allow_patterns=list(SHARED), commit_message="Fine-tuned MusicGen"
        )
    except (HTTPError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"the upload to {name} failed ({reason}); the run is whole in {folder}: train again to retry"
        ) from error
    return str(commit.repo_url)
