"""Opens the weights of a checkpoint as lazy tensors, from safetensors or `pytorch_model*.bin`.

`.bin` files are read by torch's restricted unpickler (`weights_only=True`), which builds nothing but tensors.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickletools
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError, safe_open

from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.hub import explain_refusal
from musicgen_dreamboothing.model.seams import find_cached_file

INDEX = ".index.json"
LAYOUTS = tuple(name + end for name in ("model.safetensors", "pytorch_model.bin") for end in ("", INDEX))
AUDIOCRAFT = ("state_dict.bin", "compression_state_dict.bin")
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".th", ".ckpt", ".h5", ".msgpack", ".onnx")
REMAP_BYTES = 1 << 26  # of a mapped file that may stay in memory while its weights are converted
TENSOR_IMPORTS = re.compile(r"torch\._utils\._rebuild_|torch\.\w+Storage$|collections\.OrderedDict$")
LEGACY_PICKLES = 5  # in a file that is no zip archive: magic number, version, system, tensors, storage names
LFS_POINTER = b"version https://git-lfs"

Hub = dict[str, Any]  # keyword arguments for the loaders of transformers: revision, cache_dir, token


def find_file(name: str, file: str, hub: Hub) -> Path | None:
    """The path of a file of a checkpoint, downloaded if necessary; None if the checkpoint has no such file.

    Raises:
        UserError: the repository or the file cannot be read.
    """
    try:
        return find_cached_file(name, file, **hub)
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        reason = explain_refusal(name, error) or f"{file} of {name} cannot be read or downloaded: {first_line(error)}"
        raise UserError(reason) from error


def first_line(error: BaseException) -> str:
    """The first line of an exception's message without its full stop; two lines if the first ends in a colon."""
    lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1]).rstrip(".")


def find_weight_files(name: str, hub: Hub) -> list[Path]:
    """The weight files of a checkpoint in a folder or on the Hub: one, or all shards of its index.

    Raises:
        UserError: there are none under names of transformers, or a shard is missing.
    """
    for layout in LAYOUTS:
        path = find_file(name, layout, hub)
        if path is not None:
            return _shards(name, path, hub) if layout.endswith(INDEX) else [path]
    hint = foreign_weights(name) or "download them as well, or take a complete checkpoint"
    if not Path(name).is_dir():
        hint = f"without a network it has to be in the cache: hf download {name}"
    raise UserError(
        f"{name} has no weights that can be loaded: neither {LAYOUTS[0]} nor {LAYOUTS[2]}, in one file or in shards "
        f"with an index; {hint}"
    )


def foreign_weights(name: str) -> str:
    """A part of an error message: what a folder has instead of weights that transformers loads; empty if unknown."""
    folder = Path(name)
    if not folder.is_dir():
        return ""
    files = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in WEIGHT_SUFFIXES)
    if broken := [file for file in files if not (folder / file).exists()]:
        return f"{broken[0]} is a link to a file that is not there; download it again"
    if audiocraft := [file for file in files if file in AUDIOCRAFT]:
        return f"{audiocraft[-1]} is in audiocraft's own format; take the checkpoint in the format of transformers"
    if any(file.lower().endswith(".gguf") for file in files):
        return "GGUF files cannot be trained on; take the checkpoint that they were made from"
    if any(re.search(r"-\d{5}-of-\d{5}\.", file) for file in files):
        return f"it has shards without their index; download *{INDEX} of the repository as well"
    unknown = [file for file in files if file not in LAYOUTS]
    return f"it has {', '.join(unknown[:3])}, under names that transformers does not load" if unknown else ""


def _shards(name: str, index: Path, hub: Hub) -> list[Path]:
    broken = UserError(f"{index} is not the index of a sharded checkpoint; download it again")
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise broken from error
    if not shards or any(not isinstance(shard, str) or Path(shard).name != shard for shard in shards):
        raise broken
    paths = []
    for shard in shards:
        path = find_file(name, shard, hub)
        if path is None:
            raise UserError(
                f"{name} lacks {shard}, which {index.name} names; download it again or copy that file there"
            )
        paths.append(path)
    return paths


def open_weights(name: str, hub: Hub, select: Callable[[str], str | None], *, convert: bool) -> dict[str, Any]:
    """Weights by their new names, each read from its file when it is indexed (`weights[name][...]`).

    Args:
        name: folder or Hub id.
        hub: keyword arguments for the Hub.
        select: the new name of a weight, or None to leave it out.
        convert: whether weights are converted while loading, for example to 16 bits. Then files are read piece by
            piece, as pages of a mapped file would stay in memory besides the converted weights; otherwise files are
            mapped.

    Raises:
        UserError: files are missing or damaged, or hold more than tensors.
    """
    weights: dict[str, Any] = {}
    for path in find_weight_files(name, hub):
        tensors = _open_safetensors(path, convert) if path.suffix == ".safetensors" else _open_pickled(path, convert)
        weights |= {new: tensor for old, tensor in tensors.items() if (new := select(old)) is not None}
    return weights


def _open_safetensors(path: Path, convert: bool) -> dict[str, Any]:
    try:
        file = safe_open(path, framework="pt", backend="pread" if convert else "mmap")
        return {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
    except (SafetensorError, OSError) as error:
        raise damaged(path, error) from error


def _open_pickled(path: Path, convert: bool) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's warnings about files that will be refused
        if not (convert and is_zipfile(path)):
            return _unpickle(path)
        file = _RemappedFile(path)
    return {name: _Entry(file, name) for name in file.names}


def _unpickle(path: Path) -> dict[str, torch.Tensor]:
    """A `.bin` file of torch: mapped if it is a zip archive, read into memory in the older format."""
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    except UnpicklingError as error:
        raise refused(path, error) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise damaged(path, error) from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise UserError(f"{path} holds something else than a dictionary of tensors; take a checkpoint in safetensors")
    return tensors


def refused(path: Path, error: UnpicklingError, advice: str = "Take the checkpoint in safetensors") -> UserError:
    """Names the import that a file was refused for, and what to do instead."""
    reason = str(error).rpartition("WeightsUnpickler error: ")[2]
    named = re.search(r"GLOBAL ([\w.]+)", reason)
    names = [named[1]] if named else [name for name in imports(path) if not TENSOR_IMPORTS.match(name)]
    if not names:
        return damaged(path, UnpicklingError(reason))
    return UserError(
        f"{path} is refused: it asks for {names[0]}, and a pickle with more than tensors could run any program; "
        f"nothing of it was executed. {advice}"
    )


def imports(path: Path) -> list[str]:
    """The imports of a pickle, from its opcodes, without running it."""
    names: list[str] = []
    strings: list[str] = []
    with contextlib.suppress(ValueError, KeyError, IndexError, OSError, BadZipFile), _pickle_stream(path) as stream:
        for _ in range(LEGACY_PICKLES):
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name in ("GLOBAL", "INST"):
                    names.append(str(argument).replace(" ", "."))
                elif opcode.name == "STACK_GLOBAL":
                    names.append(".".join(strings[-2:]))
                elif isinstance(argument, str):
                    strings.append(argument)
    return names


@contextlib.contextmanager
def _pickle_stream(path: Path) -> Iterator[IO[bytes]]:
    if not is_zipfile(path):
        with path.open("rb") as file:
            yield file
        return
    with ZipFile(path) as archive:
        name = next((name for name in archive.namelist() if name.endswith("data.pkl")), "data.pkl")
        with archive.open(name) as file:
            yield file


def damaged(path: Path, error: BaseException) -> UserError:
    """Says why a file cannot be read."""
    reason = re.split(r"\.\s", first_line(error))[0]
    if not os.access(path, os.R_OK):
        return UserError(f"{path} cannot be read ({reason}); change its permissions")
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            return UserError(f"{path} is a Git LFS pointer and not the file itself; run `git lfs pull` in its folder")
    return UserError(f"{path} is damaged or incomplete ({reason}); delete it and download it again")


class _RemappedFile:
    """Tensors of a `.bin` file that is mapped again after every `REMAP_BYTES` to free the pages that were read."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock, self._read = path, threading.Lock(), 0  # transformers reads in several threads
        self._tensors = _unpickle(path)
        self.names = list(self._tensors)

    def read(self, name: str) -> torch.Tensor:
        with self._lock:
            if self._read > REMAP_BYTES:
                self._tensors.clear()  # before the file is mapped again
                self._tensors, self._read = _unpickle(self._path), 0
            self._read += self._tensors[name].nbytes
            return self._tensors[name].clone()


class _Entry:
    """One tensor of a file, read when it is indexed, as slices of `safetensors` are."""

    def __init__(self, file: _RemappedFile, name: str) -> None:
        self._file, self._name = file, name

    def __getitem__(self, place: Any) -> torch.Tensor:
        return self._file.read(self._name)[place]
