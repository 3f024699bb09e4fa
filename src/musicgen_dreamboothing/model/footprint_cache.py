"""Measured footprints on disk, so that only the first training of a kind measures them.

They are in `$XDG_CACHE_HOME/musicgen-dreamboothing/footprints` or below `~/.cache`, a small JSON file for each kind of
step, and may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from musicgen_dreamboothing.files import write_json
from musicgen_dreamboothing.model.checkpoint import Checkpoint

LIBRARIES = ("torch", "transformers", "peft")  # whose versions a footprint depends on
NAMES = ("_name_or_path", "architectures", "transformers_version")  # of a configuration, which change no size


def cache_file(checkpoint: Checkpoint, step: Any) -> Path:
    """The file of a kind of step of a checkpoint: the same for all checkpoints of one shape."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    config = {name: value for name, value in checkpoint.config.to_dict().items() if name not in NAMES}
    key = json.dumps([config, repr(step), _versions()], sort_keys=True, default=str)
    name = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
    return root / "musicgen-dreamboothing" / "footprints" / f"{name}.json"


@cache
def _versions() -> list[str]:
    """Of the libraries, and a hash of this package's own code that a footprint depends on."""
    code = hashlib.blake2b(digest_size=16)
    for path in sorted(Path(__file__).parent.glob("*.py")):
        code.update(path.read_bytes())
    return [code.hexdigest(), *(version(name) for name in LIBRARIES)]


def read_cache(path: Path) -> dict[str, list[int]]:
    """Measured values by case; empty where there are none or the file is damaged."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return {str(case): [int(number) for number in numbers] for case, numbers in values.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def write_cache(path: Path, values: dict[str, list[int]]) -> None:
    """Keeps them, where the folder can be written to."""
    try:
        write_json(path, values)
    except OSError:
        return
