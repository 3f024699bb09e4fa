"""A run to the Hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from musicgen_dreamboothing.sharing import repository
from musicgen_dreamboothing.sharing.repository import CARD, Repository

# Not songs, tokens, checkpoints, logs or `run.json`, which holds paths.
SHARED = (
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
    CARD,
)


def open_repository(
    name: str, *, token: str | None, private: bool | None, private_option: str = "--hub_private_repo"
) -> Repository:
    """Makes sure that a model repository exists, may be written to and is ours or empty; else a UserError."""
    return repository.open_repository(Repository(name, "model", private, token, "--hub_model_id", private_option))


def upload(folder: Path, target: Repository) -> str:
    """Uploads a run and returns its address."""
    paths = [path for pattern in SHARED for path in sorted(folder.glob(pattern)) if path.is_file()]
    return upload_files({path.name: path for path in paths}, target)


def upload_files(files: Mapping[str, Path], target: Repository) -> str:
    """Uploads files by their paths in the repository, and returns its address."""
    return repository.upload(target, files, "Fine-tuned MusicGen")
