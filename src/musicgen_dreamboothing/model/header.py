"""Metadata in the header of a safetensors file, in a fixed order.

`safetensors` writes metadata in a random order, so that the same adapter would be another file each time it is saved.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

SIZE_BYTES = 8  # little-endian length of the header, at the start of the file
ALIGNMENT = 8  # of the header's length
METADATA = "__metadata__"


def save_with_header(weights: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Writes contiguous tensors; `format: pt`, which transformers asks for, is added to their metadata."""
    save_file(dict(weights), path, metadata={"format": "pt"})
    content = path.read_bytes()
    end = SIZE_BYTES + int.from_bytes(content[:SIZE_BYTES], "little")
    header = json.loads(content[SIZE_BYTES:end])
    header = {METADATA: dict(sorted({**metadata, "format": "pt"}.items()))} | {
        name: entry for name, entry in header.items() if name != METADATA
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    path.write_bytes(len(text).to_bytes(SIZE_BYTES, "little") + text + content[end:])
