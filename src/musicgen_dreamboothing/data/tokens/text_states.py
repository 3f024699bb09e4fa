"""Text states of captions: T5 runs once for each distinct text.

`tokens/text-<hash>` has a row for each text; the hash is of the text encoder and its tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
from accelerate import PartialState

from musicgen_dreamboothing.console import UserError, plural, progress_bar
from musicgen_dreamboothing.data.layout import TOKENS
from musicgen_dreamboothing.data.tokens.arrow_tables import append_rows, read_rows
from musicgen_dreamboothing.device import release_memory
from musicgen_dreamboothing.model import text
from musicgen_dreamboothing.model.checkpoint import Checkpoint, load_text_encoder, load_tokenizer
from musicgen_dreamboothing.model.keyword import texts_of

PART_TEXTS = 1024  # states are written after so many texts: what a kill can cost

STATE_FEATURES = datasets.Features(
    {
        "text": datasets.Value("string"),
        "states": datasets.List(datasets.List(datasets.Value("float16"))),  # [L, D]
        "length": datasets.Value("int32"),  # L
    }
)


def states_folder(folder: Path, checkpoint: Checkpoint) -> Path:
    """The folder with the text states of this checkpoint's text encoder."""
    return folder / TOKENS / f"text-{checkpoint.text_hash}"


def add_states(folder: Path, texts: Iterable[str], checkpoint: Checkpoint) -> set[str]:
    """Encodes the texts without states in a prepared folder, and returns them."""
    table = states_folder(folder, checkpoint)
    known = set(read_rows(table, STATE_FEATURES)["text"])
    missing = [one for one in dict.fromkeys(texts) if one not in known]
    if missing:
        encoded = _encode(missing, checkpoint)
        rows = ({"text": one, "states": states.astype(np.float16), "length": len(states)} for one, states in encoded)
        for _ in range(0, len(missing), PART_TEXTS):
            append_rows(table, islice(rows, PART_TEXTS), STATE_FEATURES)
        del rows, encoded
        release_memory()
    return set(missing)


def _encode(texts: list[str], checkpoint: Checkpoint) -> Iterator[tuple[str, np.ndarray]]:
    encoder = load_text_encoder(checkpoint, PartialState().device)
    pairs = text.encode_captions(load_tokenizer(checkpoint), encoder, texts)
    yield from progress_bar(pairs, total=len(texts), unit="caption", desc="captions")


def read_states(folder: Path, texts: Iterable[str], checkpoint: Checkpoint) -> datasets.Dataset:
    """A row with the states `[L, D_text]` of each distinct text.

    Raises:
        UserError: a text has none.
    """
    table = read_rows(states_folder(folder, checkpoint), STATE_FEATURES)
    row_of = {one: row for row, one in enumerate(table["text"])}
    distinct = list(dict.fromkeys(texts))
    if missing := [one for one in distinct if one not in row_of]:
        raise UserError(f"{plural(len(missing), 'caption')} of {folder} are not encoded; run the same command again")
    return table.select([row_of[one] for one in distinct])


def key_word_states(folder: Path, instance_prompt: str, checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """Text states `[L, D_text]` in 16 bits of `texts_of` the instance prompt.

    Raises:
        UserError: there are none.
    """
    rows = read_states(folder, texts_of(instance_prompt), checkpoint).with_format("numpy")
    return {str(row["text"]): np.asarray(row["states"]) for row in rows}
