"""Files of demucs models: finds, downloads and reads them without executing anything that they ask for.

demucs publishes safetensors; the class that such a file names is compared with a list before demucs looks it up. Its
older `.th` files are pickles: a published name never leads to one, and one that is given by path is read by torch's
restricted unpickler, which knows tensors, the same classes, fractions and numbers of numpy.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError, safe_open

from musicgen_dreamboothing.console import UserError

if TYPE_CHECKING:
    from demucs.apply import BagOfModels

WEIGHTS = (".safetensors", ".th")
BAG = ".yaml"
UNREADABLE = (  # what torch, safetensors, yaml and demucs raise for other files
    *(AssertionError, AttributeError, EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError),
    *(SafetensorError, yaml.YAMLError),
)


def files_digest(model: str, cache_dir: str | None, *settings: Any) -> str:
    """A short hash of demucs' version, some settings and a model's files, which are read but not loaded."""
    with _explained(model):
        bag, paths = _files(model, cache_dir)
        from demucs import __version__

        digest = hashlib.blake2b(json.dumps([__version__, *settings, bag]).encode(), digest_size=8)
        for path in paths:
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()


def load_bag(model: str, cache_dir: str | None) -> BagOfModels:
    """All models of a bag in fp32, on the CPU."""
    with _explained(model):
        bag, paths = _files(model, cache_dir)
        from demucs.apply import BagOfModels

        models = BagOfModels([_read(path) for path in paths], bag.get("weights"), bag.get("segment"))
        return models.float().eval().requires_grad_(False)


@contextmanager
def _explained(model: str) -> Iterator[None]:
    """Turns errors of a model's files into a `UserError`."""
    try:
        yield
    except pickle.UnpicklingError as error:
        raise UserError(f"{model} is no demucs model, or asks for code of its own, which is never run") from error
    except UNREADABLE as error:
        raise UserError(f"{model} can't be read as a demucs model ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".:")


def _files(model: str, cache_dir: str | None) -> tuple[dict[str, Any], list[Path]]:
    """The description of a bag, empty for a model alone, and the files of its models."""
    if importlib.util.find_spec("demucs") is None:
        raise UserError("separation needs: pip install 'musicgen-dreamboothing[separation]'")
    path = Path(model)
    if path.is_dir():
        path = _only_model(path)
    elif not path.is_file():
        return _published(model, cache_dir)
    if path.suffix not in (BAG, *WEIGHTS):
        raise UserError(f"{path} is no demucs model; those end in {', '.join((BAG, *WEIGHTS))}")
    if path.suffix != BAG:
        return {}, [path]
    bag = yaml.safe_load(path.read_text(encoding="utf-8"))
    return bag, [_weights(path.parent, str(signature)) for signature in bag["models"]]


def _only_model(folder: Path) -> Path:
    """A folder's bag, or else its only model."""
    bags = sorted(folder.glob(f"*{BAG}"))
    models = bags or sorted(path for path in folder.iterdir() if path.suffix in WEIGHTS)
    if len(models) != 1:
        names = ", ".join(path.name for path in models) or f"no {BAG}, {' or '.join(WEIGHTS)}"
        raise UserError(f"{folder} has to hold one demucs model, but holds {names}; give the path of one such file")
    return models[0]


def _weights(folder: Path, signature: str) -> Path:
    """The file of one model in a bag: `SIGNATURE.safetensors`, `SIGNATURE.th` or `SIGNATURE-CHECKSUM.th`."""
    for path in sorted(folder.glob(f"{signature}*")):
        if path.suffix in WEIGHTS and path.stem.split("-")[0] == signature:
            return path
    raise UserError(f"{folder} lacks {signature}{WEIGHTS[0]}, which its bag of models names")


def _published(name: str, cache_dir: str | None) -> tuple[dict[str, Any], list[Path]]:
    from demucs.hf import DEFAULT_NAMESPACE, hf_repo_name
    from demucs.pretrained import REMOTE_ROOT

    names = sorted(path.stem for path in REMOTE_ROOT.glob("*.yaml") if not path.stem.endswith("_q"))  # see _safetensors
    if name not in names:
        raise UserError(f"no demucs model {name!r}; possible are a folder, a file, and {', '.join(names)}")
    repository = f"{DEFAULT_NAMESPACE}/{hf_repo_name(name)}"
    try:
        path = Path(hf_hub_download(repository, f"{name}.yaml", cache_dir=cache_dir))
        bag = yaml.safe_load(path.read_text(encoding="utf-8"))
        files = [f"{signature}.safetensors" for signature in bag["models"]]
        return bag, [Path(hf_hub_download(repository, file, cache_dir=cache_dir)) for file in files]
    except OSError as error:  # all that the Hub's client raises
        raise UserError(
            f"the weights of {name} are not in the cache and can't be downloaded ({_reason(error)}). Fix: run it once "
            f"with a network, or give a folder with the files of huggingface.co/{repository}"
        ) from error


def _read(path: Path) -> Any:
    """One model on the CPU; its class must be one of these."""
    from demucs.demucs import Demucs
    from demucs.hdemucs import HDemucs
    from demucs.htdemucs import HTDemucs

    classes = (Demucs, HDemucs, HTDemucs)
    return _safetensors(path, classes) if path.suffix == ".safetensors" else _pickle(path, classes)


def _safetensors(path: Path, classes: tuple[type[Any], ...]) -> Any:
    """demucs itself would import and call whatever the file names as its class."""
    from demucs.hf import load_safetensors_model

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    if metadata.get("klass") not in [f"{known.__module__}.{known.__qualname__}" for known in classes]:
        raise ValueError(f"its class {metadata.get('klass')} is unknown")
    if "structure" in metadata:
        raise ValueError("its weights are quantised by diffq")
    return load_safetensors_model(path)


def _pickle(path: Path, classes: tuple[type[Any], ...]) -> Any:
    from demucs.states import load_model

    # Published files hold numbers of numpy in their training records, some under the module name before numpy 2.
    scalar = np.float64(0).__reduce__()[0]
    numbers: list[Any] = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    numbers += [np.dtype, *(type(np.dtype(name)) for name in ("bool", "int64", "float32", "float64")), Fraction]
    with torch.serialization.safe_globals([*classes, *numbers]):
        package = torch.load(path, map_location="cpu", weights_only=True)
    if package["klass"] not in classes:
        raise ValueError(f"its class {package['klass']} is unknown")
    if "__quantized" in package["state"]:
        raise ValueError("its weights are quantised by diffq")
    return load_model(package)
