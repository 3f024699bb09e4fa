"""What only a GPU can show: captured steps make the music of plain ones, and steps take what the plan says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import KINDS, read_checkpoint

from musicgen_dreamboothing.device import release_memory
from musicgen_dreamboothing.generation import windows
from musicgen_dreamboothing.generation.decoding import CodeStream, GraphedCodeStream
from musicgen_dreamboothing.generation.generator import Generator
from musicgen_dreamboothing.generation.guidance import Sampling
from musicgen_dreamboothing.generation.requests import GenerationRequest
from musicgen_dreamboothing.model import text
from musicgen_dreamboothing.model.adapter import LoraSettings, add_adapter
from musicgen_dreamboothing.model.footprint import Estimator, Step
from musicgen_dreamboothing.model.loading import load_language_model
from musicgen_dreamboothing.model.recompute import use_full_recompute

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

PROMPTS = ("punk", "a slow waltz for two guitars")
SAMPLINGS = [
    Sampling(),
    Sampling(guidance_scale=1, temperature=0.8, top_p=0.9),
    Sampling(temperature=0),
    Sampling(top_k=0),
]


def streams(generator: Generator, frames: int, sampling: Sampling) -> tuple[CodeStream, CodeStream]:
    """The same clips step by step, and captured."""
    generator._encode(PROMPTS)
    states, mask = text.pad_states([generator._states[prompt] for prompt in PROMPTS])
    arguments = (generator._stack, generator.checkpoint, states, mask)
    options = {"frames": frames, "seeds": [1, 2], "sampling": sampling}
    return CodeStream(*arguments, **options), GraphedCodeStream(*arguments, **options)


@pytest.mark.parametrize("frames", [1, 60])
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_captured_steps_draw_the_same_codes(
    kind: str, sampling: Sampling, frames: int, checkpoints: Callable[[str], Path]
) -> None:
    generator = Generator(checkpoints(kind), device="cuda", dtype="float32")
    for _ in range(2):  # one batch after the other
        plain, captured = streams(generator, frames, sampling)
        while plain.done < plain.steps:  # in turns: neither may disturb the other
            plain.advance()
            captured.advance()
        assert torch.equal(plain.sequence, captured.sequence)


def test_two_captured_streams_do_not_disturb_each_other(checkpoints: Callable[[str], Path]) -> None:
    generator = Generator(checkpoints("text"), device="cuda", dtype="float32")
    (plain, one), (_, other) = (streams(generator, 60, Sampling()) for _ in range(2))
    while one.done < one.steps:
        one.advance()
        other.advance()
    assert torch.equal(one.sequence, other.sequence)
    assert torch.equal(plain.finish(), one.codes(0, 60))


@pytest.mark.parametrize("kind", ["text", "melody"])
def test_a_captured_step_does_not_wait_for_the_host(kind: str, checkpoints: Callable[[str], Path]) -> None:
    _, captured = streams(Generator(checkpoints(kind), device="cuda"), 30, Sampling())
    captured.advance()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.inference_mode():
            captured._draw()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("policy", ["none", "light", "full"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", ["text", "melody"])
def test_the_estimate_is_what_a_step_takes(
    kind: str, dtype: torch.dtype, policy: str, checkpoints: Callable[[str], Path]
) -> None:
    """Within 15 %, of a batch that is large enough for the allocator's rounding not to count."""
    checkpoint, device = read_checkpoint(checkpoints(kind)), torch.device("cuda")
    clips, frames = 16, 1503
    expected = Estimator(checkpoint, Step(frames, dtype)).footprint(policy, clips)
    base = load_language_model(checkpoint, dtype, device)
    if policy == "light":
        base.use_light_recompute()
    model = add_adapter(base, LoraSettings()).train()
    if policy == "full":
        use_full_recompute(model)
    codes = torch.zeros(clips, checkpoint.codebooks, frames, dtype=torch.long, device=device)
    captions = torch.ones(clips, 32, dtype=torch.long, device=device)
    states = torch.zeros(clips, 32, checkpoint.config.text_encoder.hidden_size, device=device)
    kept = torch.ones(clips, dtype=torch.bool, device=device)
    batch = {"codes": codes, "labels": codes, "text_mask": captions, "text_states": states, "keep_caption": kept}
    for _ in range(2):  # the first one makes gradients and the libraries' own room
        release_memory()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        outputs = model(**batch)
        (outputs.nll.sum(0) / outputs.count.sum(0)).mean().backward()
        peak = torch.cuda.max_memory_allocated() - before
    assert abs(peak - expected.kept - expected.scratch) < 0.15 * peak


@pytest.mark.parametrize("kind", ["text", "melody-stereo"])
def test_captured_steps_continue_a_prompt_over_windows(
    kind: str, checkpoints: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "TRAINED_SECONDS", 1.0)
    monkeypatch.setattr(windows, "STRIDE_SECONDS", 0.6)
    plain, captured = (
        Generator(checkpoints(kind), device="cuda", dtype="float32", cuda_graphs=graphs) for graphs in (False, True)
    )
    codes = torch.randint(plain.checkpoint.codebook_size, (plain.checkpoint.codebooks, 15))
    melody = np.array([9, 4, 7], np.uint8) if plain.checkpoint.is_melody else None
    requests = [
        GenerationRequest(PROMPTS[0], prompt_codes=codes, melody=melody, negative_prompt="dub"),
        GenerationRequest(PROMPTS[1], prompt_codes=codes, melody=melody),
    ]
    ours, theirs = (list(generator.codes(requests, seconds=1.5, progress=False)) for generator in (captured, plain))
    for (_, one), (_, other) in zip(ours, theirs, strict=True):
        assert torch.equal(one[:, :15], codes)
        assert torch.equal(one, other)
