"""The checkpoints of a run: `checkpoint-<update>` folders, of which the newest may be incomplete after a kill."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

from peft.utils import SAFETENSORS_WEIGHTS_NAME as ADAPTER
from safetensors import SafetensorError, safe_open
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import ADAPTER_CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run."""
    return max((path for path in _checkpoints(folder) if _is_complete(path)), key=step_of, default=None)


def checkpoints_after(folder: Path, checkpoint: Path | None) -> list[Path]:
    """Checkpoints that are newer than this one; all of them without one."""
    last = step_of(checkpoint) if checkpoint is not None else -1
    return sorted((path for path in _checkpoints(folder) if step_of(path) > last), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The update behind which a checkpoint was written."""
    return int(checkpoint.name.rsplit("-", 1)[1])


def discard_checkpoints(folder: Path) -> None:
    """Removes the checkpoints of an earlier run."""
    for path in _checkpoints(folder):
        shutil.rmtree(path)


def _checkpoints(folder: Path) -> list[Path]:
    paths = folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    return [path for path in paths if path.is_dir() and path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-").isdecimal()]


def _is_complete(checkpoint: Path) -> bool:
    """Whether weights, optimizer, schedule and state (which is written last) are there, each to its end."""
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
        return _has_weights(checkpoint) and all(
            zipfile.is_zipfile(checkpoint / name)  # `torch.save` writes the table of its zip last
            for name in (OPTIMIZER_NAME, SCHEDULER_NAME)
        )
    except (OSError, ValueError, SafetensorError, KeyError):
        return False


def _has_weights(checkpoint: Path) -> bool:
    """Whether the adapter or the model is there; safetensors compares a file's length with its header."""
    index = checkpoint / SAFE_WEIGHTS_INDEX_NAME
    if (checkpoint / ADAPTER_CONFIG_NAME).exists():
        json.loads((checkpoint / ADAPTER_CONFIG_NAME).read_text(encoding="utf-8"))
        names = {ADAPTER}
    elif index.exists():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    else:
        names = {SAFE_WEIGHTS_NAME}
    for name in names:
        with safe_open(checkpoint / name, "pt"):
            pass
    return True
