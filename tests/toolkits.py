"""fadtk and kadtk as test oracles, without what they need to compute embeddings.

Both pin numpy below 2 and old versions of transformers and torch, so they can't be dependencies of the tests. Where
their wheels are on the path (`pip install --no-deps fadtk==1.1.0 kadtk==1.1.0`), tests run their code with stand-ins
for packages that have no part in the distances. `GOLDEN` in test_audio_distances.py was computed so.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def _package(name: str, path: Path | None = None, **attributes: Any) -> ModuleType:
    made = types.ModuleType(name)
    made.__path__ = [str(path)] if path else []
    vars(made).update(attributes)
    return made


def _mapped(function: Callable[[Any], Any], values: Any, *rest: Any, **more: Any) -> list[Any]:
    return [function(value) for value in values]


@contextmanager
def toolkit(name: str, *modules: str) -> Iterator[list[ModuleType]]:
    """Modules of fadtk or kadtk, without running the package's own `__init__`; skips the test where it isn't there."""
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"pip install --no-deps {name}==1.1.0")
    stand_ins = {
        name: _package(name, Path(found.submodule_search_locations[0])),
        f"{name}.model_loader": _package("model_loader", ModelLoader=object),
        "torchaudio": _package("torchaudio"),
        "hypy_utils": _package("hypy_utils", write=None),
        "hypy_utils.tqdm_utils": _package("tqdm_utils", tmap=_mapped, pmap=_mapped, tq=lambda values, *rest: values),
        "hypy_utils.nlp_utils": _package("nlp_utils", substr_between=None),
        "hypy_utils.logging_utils": _package("logging_utils", setup_logger=lambda: types.SimpleNamespace(info=print)),
    }
    before = dict(sys.modules)
    sys.modules.update(stand_ins)
    try:
        yield [importlib.import_module(f"{name}.{module}") for module in modules]
    finally:
        for key in set(sys.modules) - set(before):
            if key.startswith((name, "hypy_utils", "torchaudio")):
                del sys.modules[key]
        sys.modules.update(before)
