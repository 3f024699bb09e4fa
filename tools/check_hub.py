"""Which of the published MusicGen checkpoints would load here: reads metadata from the Hub, and no weights.

    make check-hub
    python tools/check_hub.py facebook/musicgen-small someone/musicgen-punk

Prints a line for each repository: the commit, how its weights are stored, what becomes of its `generation_config.json`
and tokenizer, and whether its names and sizes fit. Needs a network and some 30 MB of the Hub's cache. Names and sizes
of safetensors come from the files' headers; of pickled files there is only the index with its names.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, NotASafetensorsRepoError, SafetensorsParsingError
from transformers import AutoModelForTextToWaveform

from musicgen_dreamboothing.console import UserError, quiet_loading
from musicgen_dreamboothing.hub import Source
from musicgen_dreamboothing.model.building import build_model
from musicgen_dreamboothing.model.checkpoint import Checkpoint, load_checkpoint, load_tokenizer
from musicgen_dreamboothing.model.weight_files import INDEX, LAYOUTS, find_file, first_line

SIZES = ("small", "medium", "large", "melody", "melody-large")
PUBLISHED = [f"facebook/musicgen-{stereo}{size}" for stereo in ("", "stereo-") for size in SIZES]
TOKENIZERS = ("tokenizer.json", "spiece.model")


@dataclass(frozen=True)
class Row:
    """What is known of a repository; `verdict` begins with `loads`, or says why it does not."""

    name: str
    commit: str = "-"
    model: str = "-"
    weights: str = "-"
    tokenizer: str = "-"
    generation: str = "-"
    verdict: str = "loads"


def main(words: list[str] | None = None) -> int:
    """0 if all repositories would load, else 1."""
    parser = argparse.ArgumentParser(description="Which MusicGen checkpoints of the Hub would load.")
    parser.add_argument("repositories", nargs="*", default=PUBLISHED)
    api, rows = HfApi(), []
    for name in parser.parse_args(words).repositories:
        try:
            info = api.model_info(name)
        except (HfHubHTTPError, HFValidationError) as error:
            rows.append(Row(name, verdict=first_line(error)))
        except Exception as error:  # its class depends on the HTTP library that huggingface_hub has chosen
            print(f"check_hub: the Hub cannot be reached ({first_line(error)}); run this with a network")
            return 1
        else:
            rows.append(inspect(api, name, info.sha, [file.rfilename for file in info.siblings]))
    show(rows)
    return 0 if all(row.verdict.startswith("loads") for row in rows) else 1


def inspect(api: HfApi, name: str, commit: str, files: list[str]) -> Row:
    """Puts a repository through the loader, with weights that have names and sizes only."""
    layout = next((layout for layout in LAYOUTS if layout in files), None)
    seen: dict[str, str] = {
        "commit": commit[:8],
        "weights": layout or "none",
        "tokenizer": next((file for file in TOKENIZERS if file in files), "none"),
        "generation": "present" if "generation_config.json" in files else "absent",
    }
    try:
        checkpoint = load_checkpoint(Source(name, revision=commit))
        seen["model"] = f"{checkpoint.config.model_type}, {checkpoint.codebooks} codebooks"
        seen["generation"] = generation_config(checkpoint)
        load_tokenizer(checkpoint)
        if layout is None:
            raise UserError(f"it has neither {LAYOUTS[0]} nor {LAYOUTS[2]}")
        weights, stored = stored_weights(api, checkpoint, layout, files)
        seen["weights"] = f"{layout.removesuffix(INDEX)}{' in shards' if layout.endswith(INDEX) else ''}, {stored}"
        if weights is None:
            seen["verdict"] = "loads if its weights have the right names"
        else:
            build_model(checkpoint.model_class, checkpoint.config, weights, name, dtype=torch.float32)
    except (UserError, HfHubHTTPError, NotASafetensorsRepoError, SafetensorsParsingError) as error:
        seen["verdict"] = first_line(error)
    return Row(name, **seen)


def generation_config(checkpoint: Checkpoint) -> str:
    """What the repository says of generation: nothing here depends on it."""
    path = find_file(checkpoint.name, "generation_config.json", checkpoint.source.arguments())
    if path is None:
        return "absent"
    try:
        return "flagged" if json.loads(path.read_text(encoding="utf-8")).get("_from_model_config") else "without flag"
    except (ValueError, AttributeError):
        return "broken"


def stored_weights(
    api: HfApi, checkpoint: Checkpoint, layout: str, files: list[str]
) -> tuple[dict[str, torch.Tensor] | None, str]:
    """Weights without memory under their names in the files, None if these are unknown; and how they are stored."""
    index = read_index(checkpoint, layout, files) if layout.endswith(INDEX) else None
    if ".safetensors" in layout:
        metadata = api.get_safetensors_metadata(checkpoint.name, revision=checkpoint.revision)
        tensors = [item for file in metadata.files_metadata.values() for item in file.tensors.items()]
        stored = ", ".join(f"{count / 1e9:.2f}B {dtype}" for dtype, count in metadata.parameter_count.items())
        return {key: weightless(tensor.shape) for key, tensor in tensors}, stored
    if index is None:
        return None, "names and sizes unread"
    shapes = expected_shapes(checkpoint)
    weights = {key: weightless(shapes.get(current_name(key), [1])) for key in index["weight_map"]}
    return weights, f"{index['metadata']['total_size'] / 1e9:.1f} GB, sizes unread"


def read_index(checkpoint: Checkpoint, layout: str, files: list[str]) -> dict[str, Any]:
    """The index of a sharded checkpoint, all shards of which are among the `files`."""
    path = find_file(checkpoint.name, layout, checkpoint.source.arguments())
    if path is None:
        raise UserError(f"{layout} cannot be downloaded")
    index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    missing = sorted(set(index["weight_map"].values()) - set(files))
    if missing:
        raise UserError(f"it lacks {', '.join(missing)}, which {layout} names")
    return index


def weightless(shape: list[int]) -> torch.Tensor:
    """One zero that stands in all places of a tensor."""
    return torch.zeros(()).expand(shape)


def expected_shapes(checkpoint: Checkpoint) -> dict[str, list[int]]:
    """The sizes of a model's weights by their names in it."""
    with torch.device("meta"), quiet_loading():
        model: Any = AutoModelForTextToWaveform.from_config(checkpoint.config)
    return {key: list(tensor.shape) for key, tensor in model.state_dict().items()}


def current_name(key: str) -> str:
    """A weight's name in today's models: weight norm was stored as `weight_g` and `weight_v`."""
    for number, old in enumerate(("weight_g", "weight_v")):
        key = key.replace(f".{old}", f".parametrizations.weight.original{number}")
    return key


def show(rows: list[Row]) -> None:
    """Prints a table."""
    titles = Row("repository", "commit", "model", "weights", "tokenizer", "generation_config", "verdict")
    table = [[*vars(row).values()] for row in (titles, *rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]) - 1)]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, [*widths, 0], strict=True)).rstrip())


if __name__ == "__main__":
    sys.exit(main())
