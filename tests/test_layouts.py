"""Published checkpoints load as they are, and what cannot be loaded is refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import KINDS
from layouts import VALUES, Layout, mixed_layouts, write_layout

from musicgen_dreamboothing.model import codec, text
from musicgen_dreamboothing.model.checkpoint import (
    Checkpoint,
    Source,
    load_checkpoint,
    load_codec,
    load_text_encoder,
    load_tokenizer,
)
from musicgen_dreamboothing.model.language_model import load_language_model

Folders = Callable[[str], Path]
CPU = torch.device("cpu")
CAPTIONS = ["80s punk, loud drums!", "a slow piano"]
MIXED = list(mixed_layouts(24))


def open_layout(layout: Layout, reference: Path, root: Path) -> Checkpoint:
    name, cache = write_layout(layout, reference, root)
    return load_checkpoint(Source(name, cache_dir=None if cache is None else str(cache)))


def outputs(checkpoint: Checkpoint, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """What each part of a checkpoint computes."""
    ids, mask = text.tokenize(load_tokenizer(checkpoint), CAPTIONS)
    encoder = load_text_encoder(checkpoint, CPU)
    model = load_language_model(checkpoint, dtype, CPU)
    generator = torch.Generator().manual_seed(0)
    waves = torch.randn(2, checkpoint.audio_channels, checkpoint.sampling_rate // 5, generator=generator)
    codes = codec.encode(load_codec(checkpoint, CPU), waves, checkpoint)
    with torch.inference_mode():
        states = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        keep = torch.ones(len(ids), dtype=torch.bool)
        logits = model.logits(model.states(codes.long(), mask, keep, states))
    return {"ids": ids, "states": states, "codes": codes, "logits": logits}


def test_the_layouts_cover_all_values() -> None:
    for name, values in VALUES.items():
        assert {getattr(layout, name) for layout in MIXED} == set(values)


@pytest.mark.parametrize("layout", MIXED, ids=lambda layout: layout.label)
def test_every_layout_gives_the_same_numbers(layout: Layout, checkpoints: Folders, tmp_path: Path) -> None:
    reference = checkpoints(layout.kind)
    checkpoint = open_layout(layout, reference, tmp_path / "layout")
    plain = open_layout(Layout(kind=layout.kind, dtype=layout.dtype), reference, tmp_path / "plain")
    dtype = torch.bfloat16 if MIXED.index(layout) % 2 else torch.float32
    expected = outputs(plain, dtype)
    for name, values in outputs(checkpoint, dtype).items():
        assert torch.equal(values, expected[name]), name
