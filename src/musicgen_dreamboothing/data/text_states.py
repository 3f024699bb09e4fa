"""Text states of captions: T5 runs once for each distinct text.

`tokens/captions` holds the states of captions, `tokens/words` those of the key-word and of what it is compared with.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from accelerate import PartialState
from tqdm.auto import tqdm

from musicgen_dreamboothing.data.arrow_tables import save_table
from musicgen_dreamboothing.data.layout import TOKENS
from musicgen_dreamboothing.model import text
from musicgen_dreamboothing.model.checkpoint import Checkpoint, load_text_encoder, load_tokenizer
from musicgen_dreamboothing.model.device import release_memory

CAPTIONS, WORDS = "captions", "words"

CAPTION_FEATURES = datasets.Features(
    {
        "text": datasets.Value("string"),
        "states": datasets.List(datasets.List(datasets.Value("float16"))),  # [L, D]
    }
)


def update_states(tokens: Path, tables: dict[str, list[str]], checkpoint: Checkpoint) -> int:
    """Encodes new texts and drops those that nobody uses, table by table; returns how many captions were new."""
    known = {name: _known_states(tokens / name) for name in tables}
    missing = {
        name: [text for text in dict.fromkeys(texts) if text not in known[name]] for name, texts in tables.items()
    }
    new = list(dict.fromkeys(text for texts in missing.values() for text in texts))
    fresh = dict(_encode_captions(new, checkpoint)) if new else {}
    for name, texts in tables.items():
        if missing[name] or len(known[name]) != len(set(texts)):
            _save_states(tokens / name, list(dict.fromkeys(texts)), known[name], fresh)
    return len(missing[CAPTIONS])


def _known_states(folder: Path) -> dict[str, tuple[datasets.Dataset, int]]:
    """Where the states of each text stand."""
    if not folder.exists():
        return {}
    table = datasets.load_from_disk(str(folder))
    return {text: (table, row) for row, text in enumerate(table["text"])}


def _save_states(
    folder: Path, texts: list[str], known: dict[str, tuple[datasets.Dataset, int]], fresh: dict[str, np.ndarray]
) -> None:
    def examples() -> Iterator[dict[str, Any]]:
        for one in texts:
            if one in fresh:
                states = fresh[one]
            else:
                table, row = known[one]
                states = table[row]["states"]
            yield {"text": one, "states": np.asarray(states, np.float16)}  # arrow mixes no lists with arrays

    save_table(examples(), CAPTION_FEATURES, folder)


def word_states(folder: Path) -> dict[str, np.ndarray]:
    """Text states `[L, D_text]` of `texts_of` the key-word; none in a folder without key-word or text states."""
    table = folder / TOKENS / WORDS
    if not table.exists():
        return {}
    rows = datasets.load_from_disk(str(table)).with_format("numpy")
    return {str(row["text"]): np.asarray(row["states"]) for row in rows}


def _encode_captions(captions: list[str], checkpoint: Checkpoint) -> Iterator[tuple[str, np.ndarray]]:
    encoder = load_text_encoder(checkpoint, PartialState().device)
    pairs = text.encode_captions(load_tokenizer(checkpoint), encoder, captions)
    yield from tqdm(pairs, total=len(captions), unit="caption", desc="captions")
    del encoder
    release_memory()
