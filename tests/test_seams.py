"""Private parts of other libraries still exist: a failure names the part and what depends on it."""

from __future__ import annotations

import inspect
import re
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from transformers import Trainer

from musicgen_dreamboothing.model import seams
from musicgen_dreamboothing.model.seams import SEAMS, TRAINER_METHODS, Seam
from musicgen_dreamboothing.training.trainer import CodebookTrainer

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent


def resolve(path: str) -> Any:
    """A module, or a class in one."""
    try:
        return import_module(path)
    except ImportError:
        module, _, name = path.rpartition(".")
        return getattr(import_module(module), name)


def is_there(seam: Seam) -> bool:
    """Whether the owner has the attribute, or its source sets it (instances) or names it (keyword arguments)."""
    owner = resolve(seam.owner)
    if hasattr(owner, seam.name):
        return True
    sources = owner.__mro__[:-1] if inspect.isclass(owner) else [owner]
    prefix = r"\bself\." if inspect.isclass(owner) else r"\b"
    return any(re.search(rf"{prefix}{seam.name}\b|^    {seam.name}\b", _source(one), re.MULTILINE) for one in sources)


def _source(owner: Any) -> str:
    try:
        return inspect.getsource(owner)
    except (TypeError, OSError):
        return ""


@pytest.mark.parametrize("seam", SEAMS, ids=lambda seam: f"{seam.owner.partition('.')[0]}:{seam.name}")
def test_seam_exists(seam: Seam) -> None:
    library = seam.owner.partition(".")[0]
    pytest.importorskip(library)
    assert is_there(seam), f"{library} {version(library)}: {seam.owner}.{seam.name} is gone; needed for {seam.reason}"


@pytest.mark.parametrize("owner", ["torch.cpu", "transformers.Trainer", "peft.tuners.lora.LoraLayer"])
def test_missing_part_is_noticed(owner: str) -> None:
    assert not is_there(Seam(owner, "_no_such_attribute", ""))


def test_list_of_trainer_methods_is_complete() -> None:
    own = [cls for cls in CodebookTrainer.__mro__ if cls.__module__.startswith("musicgen_dreamboothing")]
    overridden = {name for cls in own for name in vars(cls) if callable(getattr(Trainer, name, None))}
    overridden = {name for name in overridden if not name.startswith("__")}
    assert overridden == set(TRAINER_METHODS[:-2])


def bounds() -> dict[str, SpecifierSet]:
    """What pyproject.toml allows, of each library that is needed at run time."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = project["dependencies"] + project["optional-dependencies"]["quantization"]
    return {requirement.name: requirement.specifier for requirement in map(Requirement, lines)}


@pytest.mark.parametrize("library", sorted({seam.owner.partition(".")[0] for seam in SEAMS}))
def test_library_with_seams_has_an_upper_bound_that_was_tested(library: str) -> None:
    assert any(part.operator == "<" for part in bounds()[library]), f"{library} has no upper bound in pyproject.toml"
    assert bounds()[library].contains(Version(version(library)).public), (
        f"{library} {version(library)} is out of bounds"
    )


def test_pinned_versions_are_within_the_bounds() -> None:
    allowed, pinned = bounds(), {}
    for name in ("constraints.txt", "constraints-cuda.txt"):
        lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
        pins = [Requirement(line) for line in lines if line and not line.startswith(("#", "-c"))]
        exact = [(pin.name, next(iter(pin.specifier)).version) for pin in pins]
        assert not [pin for pin in exact if pin[0] in allowed and not allowed[pin[0]].contains(pin[1])]
        pinned[name] = dict(exact)
    assert pinned["constraints-cuda.txt"] == {"torch": pinned["constraints.txt"]["torch"]}
    assert "+" not in pinned["constraints-cuda.txt"]["torch"]  # the plain release is the CUDA build


def test_storage_id_tells_shared_memory_from_own() -> None:
    for device in ("cpu", "meta"):
        tensor = torch.zeros(4, device=device)
        assert seams.storage_id(tensor) == seams.storage_id(tensor[1:]) != seams.storage_id(tensor.clone())


def test_class_is_replaced_by_a_subclass_only() -> None:
    with pytest.raises(AssertionError):
        seams.replace_class(torch.nn.Linear(1, 1), torch.nn.Conv1d)


def test_rates_are_those_that_were_set() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    seams.set_last_rates(scheduler, [0.5])
    assert scheduler.get_last_lr() == [0.5]
