"""The decode engine gives transformers' own logits, step by step, and all of its ways give the same music."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import KINDS, read_checkpoint
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn import functional
from transformers import LogitsProcessor, LogitsProcessorList, TopPLogitsWarper

from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.device import is_out_of_memory
from musicgen_dreamboothing.generation import codes as drawing
from musicgen_dreamboothing.generation import products
from musicgen_dreamboothing.generation.decoding import CodeStream, GraphedCodeStream, sample
from musicgen_dreamboothing.generation.engine import Decoder, Stack
from musicgen_dreamboothing.generation.generator import Generator
from musicgen_dreamboothing.generation.guidance import Sampling, TextRows, guided_conditioning
from musicgen_dreamboothing.model import codec, text
from musicgen_dreamboothing.model.adapter import LoraSettings, add_adapter
from musicgen_dreamboothing.model.delay import training_steps
from musicgen_dreamboothing.model.loading import load_language_model
from musicgen_dreamboothing.model.merging import Merger, merged_in_place
from musicgen_dreamboothing.model.quantized import Int8Linear

PROMPTS = ("punk", "a slow waltz for two guitars")
STEPS = 9

Folders = Callable[[str], Path]


@pytest.fixture(scope="module")
def loaded(checkpoints: Folders) -> Callable[[str], Generator]:
    """A generator on the base checkpoint of a kind, loaded once, with the text states of the prompts."""
    made: dict[str, Generator] = {}

    def get(kind: str) -> Generator:
        if kind not in made:
            made[kind] = Generator(checkpoints(kind), device="cpu", dtype="float32")
            made[kind]._encode(PROMPTS)
        return made[kind]

    return get


def states_of(generator: Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the prompts; in the melody family of the first one, twice, as only equal lengths share a batch."""
    prompts = PROMPTS[:1] * 2 if generator.checkpoint.is_melody else PROMPTS
    return text.pad_states([generator._states[prompt] for prompt in prompts])


def conditioning_of(model: Any, states: torch.Tensor, mask: torch.Tensor, sampling: Sampling) -> Any:
    """Of captions, and of the null condition under guidance."""
    return guided_conditioning(model, TextRows(states, mask, torch.ones(len(states), dtype=torch.bool)), sampling)


def some_codes(generator: Generator, seed: int = 0) -> torch.Tensor:
    """Inputs of a few steps `[2, K, S]`, as teacher forcing gives them."""
    checkpoint = generator.checkpoint
    drawn = torch.randint(
        checkpoint.codebook_size,
        (2, checkpoint.codebooks, STEPS),
        generator=torch.Generator().manual_seed(seed),
    )
    return training_steps(drawn, checkpoint.delay, checkpoint.start_token_id)[0]


class Forcing(LogitsProcessor):
    """Keeps the logits that `generate` computes and makes it draw given codes."""

    def __init__(self, codes: torch.Tensor) -> None:
        self.codes, self.kept = codes, []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.kept.append(scores.clone())
        forced = self.codes[..., min(len(self.kept), self.codes.shape[-1] - 1)].flatten()
        forced = forced.clamp(max=scores.shape[-1] - 1)  # pads come of the delay pattern by themselves
        repeats = len(scores) // len(forced)  # captioned and null rows under guidance
        return torch.full_like(scores, -1e9).scatter(1, forced.repeat(repeats)[:, None], 0.0)


def their_logits(static_cache: Any, generator: Generator, codes: torch.Tensor, scale: float) -> torch.Tensor:
    """Logits `[S, B, K, V]` that transformers' own `generate` computes behind the codes of each step."""
    prompts = PROMPTS[:1] * 2 if generator.checkpoint.is_melody else PROMPTS
    ids, mask = text.tokenize(generator._tokenizer, list(prompts))
    forcing = Forcing(codes)
    static_cache.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=False,
        guidance_scale=scale,
        max_new_tokens=STEPS + 9,  # its end, where codebooks fall silent one after the other, is not looked at
        logits_processor=LogitsProcessorList([forcing]),
    )
    logits = torch.stack(forcing.kept[:STEPS])
    logits = logits.view(STEPS, -1, generator.checkpoint.codebooks, logits.shape[-1])
    if scale == 1:
        return logits
    captioned, null = logits.chunk(2, dim=1)
    return null + scale * (captioned - null)


@torch.inference_mode()
def forced_logits(generator: Generator, conditioning: Any, codes: torch.Tensor, static_cache: bool) -> torch.Tensor:
    """Logits `[S, R, K, V]` behind given codes `[B, K, S]`."""
    decoder = Decoder(Stack(generator._model), conditioning, STEPS, static_cache=static_cache)
    steps = [torch.tensor([step]) if static_cache else step for step in range(STEPS)]
    return torch.stack([decoder.logits(codes[..., number], step) for number, step in enumerate(steps)])


def buffers_of(stream: CodeStream) -> list[torch.Tensor]:
    """Keys and values of a batch, layer by layer for each group of rows."""
    return [buffer for cache in stream._decoder._caches for buffer in cache._keys_values]


def our_logits(generator: Generator, codes: torch.Tensor, scale: float, *, static_cache: bool) -> torch.Tensor:
    """The same of the engine."""
    conditioning = conditioning_of(generator._model, *states_of(generator), Sampling(guidance_scale=scale))
    logits = forced_logits(generator, conditioning, codes, static_cache)
    if scale == 1:
        return logits
    captioned, null = logits.chunk(2, dim=1)
    return null + scale * (captioned - null)


@pytest.mark.parametrize("scale", [3.0, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_transformers_generate(
    kind: str, scale: float, loaded: Callable[[str], Generator], checkpoints: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = loaded(kind)
    checkpoint = read_checkpoint(checkpoints(kind))
    theirs_model = checkpoint.model_class.from_pretrained(checkpoint.name, dtype=torch.float32).eval()
    codes = some_codes(generator)
    theirs = their_logits(theirs_model, generator, codes, scale)
    assert theirs.std() > 0.01
    for static_cache, turned in ((False, range(0)), (True, range(0)), (False, range(1, 65))):
        monkeypatch.setattr(products, "TRANSPOSED_ROWS", turned)
        ours = our_logits(generator, codes, scale, static_cache=static_cache)
        assert torch.allclose(ours, theirs, atol=2e-5), (ours - theirs).abs().max()


@pytest.mark.parametrize("static_cache", [False, True])
@pytest.mark.parametrize("kind", ["melody", "melody-stereo"])
def test_padding_of_a_shorter_caption_has_no_effect(
    kind: str, static_cache: bool, loaded: Callable[[str], Generator]
) -> None:
    """In the melody family it stands before the codes, and the padding of a batch must not come between."""
    generator = loaded(kind)
    model, codes = generator._model, some_codes(generator)
    states, mask = text.pad_states([generator._states[prompt] for prompt in PROMPTS])
    lengths = mask.sum(-1).tolist()
    assert len(set(lengths)) == 2
    together = forced_logits(generator, conditioning_of(model, states, mask, Sampling()), codes, static_cache)
    for row, length in enumerate(lengths):
        one = slice(row, row + 1)
        alone = conditioning_of(model, states[one, :length], mask[one, :length], Sampling())
        expected = forced_logits(generator, alone, codes[one], static_cache)
        assert torch.allclose(together[:, row::2], expected, atol=2e-5)
    assert not torch.allclose(together[:, 0], together[:, 1], atol=1e-2)


@pytest.mark.parametrize("scale", [3.0, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_in_bf16_are_those_of_the_clip_alone(kind: str, scale: float, checkpoints: Folders) -> None:
    """Bit for bit, in a batch of other captions and more rows than a tile has, and wherever in it the clip stands."""
    generator = Generator(checkpoints(kind), device="cpu", dtype="bfloat16")
    prompts = ["a quiet song", "punk", *(f"punk at {number} bpm in a minor" for number in range(90, 99))]
    generator._encode(prompts)
    codes = some_codes(generator)[:1]

    def logits(batch: list[str]) -> torch.Tensor:
        states = text.pad_states([generator._states[prompt] for prompt in batch])
        conditioning = conditioning_of(generator._model, *states, Sampling(guidance_scale=scale))
        return forced_logits(generator, conditioning, codes.expand(len(batch), -1, -1), static_cache=False)

    together, rows = logits(prompts), 1 if scale == 1 else 2
    for row, prompt in enumerate(prompts[:3]):
        alone = logits([prompt])
        assert torch.equal(together[:, row :: len(prompts)], alone), prompt
        assert alone.shape[1] == rows
        assert torch.equal(logits(prompts[::-1])[:, len(prompts) - 1 - row :: len(prompts)], alone), prompt
    assert not torch.equal(together[:, 0], together[:, 1])


SAMPLINGS = [
    Sampling(),
    Sampling(guidance_scale=1, temperature=0.8, top_p=0.9),
    Sampling(temperature=0),
    Sampling(top_k=0),
]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("kind", ["text", "melody-stereo"])
def test_steps_with_a_static_cache_draw_the_same_codes(
    kind: str, sampling: Sampling, loaded: Callable[[str], Generator]
) -> None:
    """What a CUDA graph would replay, step by step as the plain loop."""
    generator = loaded(kind)
    states, mask = text.pad_states([generator._states[prompt] for prompt in PROMPTS])
    arguments = (generator._stack, generator.checkpoint, states, mask)
    plain, counted = (
        stream(*arguments, frames=STEPS, seeds=[1, 2], sampling=sampling) for stream in (CodeStream, GraphedCodeStream)
    )
    for _ in range(plain.steps):
        plain.advance()
        with torch.inference_mode():
            counted._draw()
    assert torch.equal(plain.sequence, counted.sequence)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("kind", ["text", "melody"])
def test_a_captured_step_reads_nothing_on_the_host(
    kind: str, sampling: Sampling, loaded: Callable[[str], Generator]
) -> None:
    """Whatever reads a number off a tensor would make the host wait, and raises where tensors have no content."""
    generator = loaded(kind)
    states, mask = text.pad_states([generator._states[prompt] for prompt in PROMPTS])
    arguments = (generator._stack, generator.checkpoint, states, mask)
    stream = GraphedCodeStream(*arguments, frames=STEPS, seeds=[1, 2], sampling=sampling)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        stream._draw()
        with pytest.raises(DataDependentOutputException):
            stream._draw(check=True)


def test_a_step_allocates_nothing_that_grows(loaded: Callable[[str], Generator]) -> None:
    """Keys and values stay where they are."""
    generator = loaded("text")
    stream = CodeStream(
        generator._stack, generator.checkpoint, *states_of(generator), frames=STEPS, seeds=[1, 2], sampling=Sampling()
    )
    places = [buffer.data_ptr() for buffer in buffers_of(stream)]
    for _ in range(stream.steps):
        stream.advance()
    assert places == [buffer.data_ptr() for buffer in buffers_of(stream)]
    assert all(buffer.abs().sum(-1).ne(0).all() for buffer in buffers_of(stream))


@pytest.mark.parametrize("quantization", ["none", "int8"])
@pytest.mark.parametrize("kind", ["text-stereo", "melody"])
def test_joined_weights_are_in_memory_once(kind: str, quantization: str, checkpoints: Folders) -> None:
    """The joint weights are the memory of the model's own modules, which compute what they did."""
    generator = Generator(checkpoints(kind), device="cpu", dtype="float32", quantization=quantization)
    model, plain = generator._model, Generator(checkpoints(kind), device="cpu", dtype="float32")._model
    for layer in model.decoder.model.decoder.layers:
        own = layer.self_attn
        assert len({part.weight.untyped_storage().data_ptr() for part in (own.q_proj, own.k_proj, own.v_proj)}) == 1
    assert len({head.weight.untyped_storage().data_ptr() for head in model.decoder.lm_heads}) == 1
    weights = [
        [weight for name, weight in sorted(part.state_dict().items()) if "lm_heads" in name or "embed" in name]
        for part in (model.decoder, plain.decoder)
    ]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*weights, strict=True))


# As much at once as memory holds


def test_a_batch_is_halved_when_memory_runs_out(
    loaded: Callable[[str], Generator], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = loaded("text")
    options: dict[str, Any] = {"seconds": 0.1, "variations": 5, "progress": False}
    expected = [clip.codes for clip in generator.generate(PROMPTS[:1], **options)]
    static_cache, sizes = generator._code_stream, []

    def narrow(states: torch.Tensor, *rest: Any) -> CodeStream:
        sizes.append(len(states))
        if len(states) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return static_cache(states, *rest)

    monkeypatch.setattr(generator, "_code_stream", narrow)
    made = [clip.codes for clip in generator.generate(PROMPTS[:1], batch_size=5, **options)]
    assert sizes == [5, 2, 2, 1]
    assert "no memory for 5 clips at once; continuing with 2" in capsys.readouterr().out
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(made, expected, strict=True))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("CUDA out of memory. Tried to allocate 20 GiB", True),
        ("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory", True),
        ("CUDA error: an illegal memory access was encountered", False),
    ],
)
def test_out_of_memory_errors_are_recognised(words: str, expected: bool) -> None:
    assert is_out_of_memory(RuntimeError(words)) == expected
    later = RuntimeError("CUDA error: operation failed due to a previous error during capture")
    later.__context__ = RuntimeError(words)  # as a CUDA graph does, which is ended behind a failure
    assert is_out_of_memory(later) == expected


def test_one_clip_without_memory_is_an_error(
    loaded: Callable[[str], Generator], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*rest: Any) -> CodeStream:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(loaded("text"), "_code_stream", full)
    with pytest.raises(torch.OutOfMemoryError):
        list(loaded("text").generate(PROMPTS[:1], seconds=0.1, progress=False))


@pytest.mark.parametrize("kind", ["text", "melody"])
def test_the_batch_fits_into_free_memory(
    kind: str, loaded: Callable[[str], Generator], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = loaded(kind)
    stream = generator._code_stream(*states_of(generator), 50, [1, 2], Sampling())
    a_clip = sum(buffer.nbytes for buffer in buffers_of(stream)) / 2
    for clips in (0.5, 3, 1000):
        monkeypatch.setattr(drawing, "free_memory", lambda device, clips=clips: int(a_clip * clips / 0.5) + 1)
        longest = max(len(generator._states[prompt]) for prompt in PROMPTS)
        expected = {0.5: 1, 3: 3 if not generator.checkpoint.is_melody or longest == 1 else None, 1000: 24}[clips]
        found = generator._fitting_batch(50, Sampling())
        assert found == expected if expected is not None else found in (2, 3)


def test_batches_have_one_size(loaded: Callable[[str], Generator], monkeypatch: pytest.MonkeyPatch) -> None:
    """A last batch of one clip would take as many steps as a full one."""
    generator, sizes = loaded("text"), list[int]()
    made = generator._code_stream

    def recording(*words: Any, **options: Any) -> Any:
        sizes.append(len(words[3]))
        return made(*words, **options)

    monkeypatch.setattr(generator, "_code_stream", recording)
    clips = [(PROMPTS[0], number) for number in range(25)]
    assert len(list(generator.codes(clips, seconds=0.1, progress=False))) == 25
    assert sizes == [13, 12]
    list(generator.codes(clips[:5], seconds=0.1, batch_size=4, progress=False))
    assert sizes[2:] == [3, 2]


# Streaming


@pytest.mark.parametrize("piece", [0.04, 0.3, 5.0])
@pytest.mark.parametrize("kind", ["text", "melody-stereo"])
def test_a_stream_is_the_clip_in_pieces(kind: str, piece: float, loaded: Callable[[str], Generator]) -> None:
    generator = loaded(kind)
    (clip,) = generator.generate(PROMPTS[:1], seconds=1.0, seed=3, progress=False)
    pieces = list(generator.stream(PROMPTS[0], seconds=1.0, seed=3, piece=piece))
    static_cache = np.concatenate(pieces, axis=1)
    assert static_cache.shape == clip.wave.shape
    assert np.abs(clip.wave).max() > 1e-3
    assert np.abs(static_cache - clip.wave).max() < 1e-5 * np.abs(clip.wave).max() + 1e-7
    assert (len(pieces) > 2) == (piece < 1)


def test_the_first_piece_of_a_stream_comes_early(loaded: Callable[[str], Generator]) -> None:
    generator = loaded("text")
    made: list[int] = []
    static_cache = generator._code_stream

    class Counting(CodeStream):
        def advance(self) -> None:
            super().advance()
            made.append(1)

    generator._code_stream = lambda states, mask, frames, seeds, sampling: Counting(  # type: ignore[method-assign]
        generator._stack, generator.checkpoint, states, mask, frames=frames, seeds=seeds, sampling=sampling
    )
    try:
        first = next(generator.stream(PROMPTS[0], seconds=4.0))
    finally:
        generator._code_stream = static_cache  # type: ignore[method-assign]
    rate = generator.checkpoint.frame_rate
    assert first.shape[1] >= generator.checkpoint.sampling_rate
    assert rate < len(made) <= 1.4 * rate


def test_streamed_frames_are_final_after_the_lookahead(loaded: Callable[[str], Generator]) -> None:
    checkpoint = loaded("text").checkpoint
    decoder = codec.StreamDecoder(loaded("text")._loaded_codec(), checkpoint)
    codes = torch.randint(checkpoint.codebook_size, (checkpoint.codebooks, 30))
    first = decoder.push(codes[:, :20], last=False)
    assert first.shape[1] == (20 - decoder.lookahead) * checkpoint.hop_length
    rest = decoder.push(codes[:, 20:], last=True)
    assert first.shape[1] + rest.shape[1] == 30 * checkpoint.hop_length


# In the middle of a training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merging_in_place_restores_the_base(dtype: torch.dtype, checkpoints: Folders) -> None:
    generator = Generator(checkpoints("text"), device="cpu", dtype="float32")
    generator._encode(PROMPTS)
    base = load_language_model(generator.checkpoint, dtype, torch.device("cpu"))
    torch.manual_seed(0)
    adapted = add_adapter(base, LoraSettings())
    before = {name: weight.clone() for name, weight in adapted.named_parameters()}
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                before[name] = weight.normal_(0, 0.1).clone()  # well above the rounding of bf16
    codes = some_codes(generator)

    def logits(model: Any) -> torch.Tensor:
        generator._model = model
        return our_logits(generator, codes, 3.0, static_cache=False)

    plain, beside = logits(load_language_model(generator.checkpoint, dtype, torch.device("cpu"))), logits(base)
    with merged_in_place(adapted, generator.checkpoint) as merged:
        inside = logits(merged)
        changed = [name for name, weight in adapted.named_parameters() if not torch.equal(weight, before[name])]
    assert changed
    assert (inside - beside).norm() < (1e-4 if dtype == torch.float32 else 0.1) * (inside - plain).norm()
    assert all(torch.equal(weight, before[name]) for name, weight in adapted.named_parameters())
    assert torch.equal(logits(base), beside)


@pytest.mark.parametrize("state", ["merged", "off"])
def test_a_merged_or_disabled_adapter_is_decoded_as_a_plain_model(state: str, checkpoints: Folders) -> None:
    """Below adapters that compute nothing the engine finds the base's own layers, and joins them."""
    checkpoint = read_checkpoint(checkpoints("text"))
    adapted = add_adapter(load_language_model(checkpoint, torch.float32, torch.device("cpu")), LoraSettings())
    with merged_in_place(adapted, checkpoint) if state == "merged" else adapted.disable_adapter():
        Stack(adapted.get_base_model())
        own = adapted.get_base_model().decoder.model.decoder.layers[0].self_attn
        places = {part.weight.untyped_storage().data_ptr() for part in (own.q_proj, own.k_proj, own.v_proj)}
        assert len(places) == 1


@pytest.mark.parametrize("settings", [LoraSettings(), LoraSettings(use_dora=True), LoraSettings(init="pissa")])
def test_a_merge_that_fails_restores_the_base(
    settings: LoraSettings, checkpoints: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = read_checkpoint(checkpoints("text"))
    adapted = add_adapter(load_language_model(checkpoint, torch.bfloat16, torch.device("cpu")), settings)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name or "lora_embedding_B" in name:
                weight.normal_(0, 0.1)
    before = {name: weight.clone() for name, weight in adapted.named_parameters()}
    usual, done = Merger.merged, []

    def full(merger: Merger, name: str, entry: Any) -> torch.Tensor:
        done.append(name)
        if len(done) == 10:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return usual(merger, name, entry)

    monkeypatch.setattr(Merger, "merged", full)
    with contextlib.suppress(torch.OutOfMemoryError), merged_in_place(adapted, checkpoint):
        raise AssertionError("nothing is played")
    assert len(done) == 10
    assert all(torch.equal(weight, before[name]) for name, weight in adapted.named_parameters())


# Weights in 8 bits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_weights_compute_nearly_the_same(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(256, 300, dtype=dtype)
    with torch.no_grad():
        linear.weight[7] = 0  # a row without any weight has no scale
    x = torch.randn(2, 3, 256, dtype=dtype)
    exact = functional.linear(x.double(), linear.weight.double(), linear.bias.double())
    found = Int8Linear.of(linear.weight.detach(), linear.bias)(x)
    assert (found.shape, found.dtype) == (exact.shape, dtype)
    assert (found.double() - exact).norm() < 0.015 * exact.norm()
    assert torch.allclose(found[..., 7].double(), linear.bias[7].double())


def test_int8_weights_are_small_and_keep_most_codes(checkpoints: Folders) -> None:
    plain = Generator(checkpoints("text"), device="cpu", dtype="float32")
    small = Generator(checkpoints("text"), device="cpu", dtype="float32", quantization="int8")
    kinds = {type(module) for module in small._model.decoder.model.decoder.layers.modules()}
    assert Int8Linear in kinds
    assert torch.nn.Linear not in kinds
    for generator in (plain, small):
        generator._encode(PROMPTS)
    codes = some_codes(plain)
    theirs, ours = (our_logits(generator, codes, 3.0, static_cache=False) for generator in (plain, small))
    assert 0 < (ours - theirs).norm() < 0.1 * theirs.norm()


def test_an_unknown_quantisation_is_refused(checkpoints: Folders) -> None:
    with pytest.raises(UserError, match="--quantization 'int3' is unknown; it takes none, nf4, int8"):
        Generator(checkpoints("text"), quantization="int3")


# The fewest codes that matter


def test_top_p_draws_from_the_fewest_codes_with_that_probability() -> None:
    """Against transformers' own warper."""
    logits = torch.randn(7, 50, generator=torch.Generator().manual_seed(0)) * 2
    noise = torch.linspace(0, 0.9999, 400)
    for top_p in (0.05, 0.5, 0.9, 1.0):
        kept = TopPLogitsWarper(top_p)(None, logits.clone()).isfinite()
        drawn = sample(logits[:, None].expand(-1, 400, -1), noise.expand(7, -1), Sampling(top_p=top_p, top_k=0))
        chances = torch.softmax(logits.masked_fill(~kept, -torch.inf), dim=-1)
        for row in range(7):
            frequencies = torch.bincount(drawn[row], minlength=50) / 400
            assert set(drawn[row].tolist()) <= set(kept[row].nonzero()[:, 0].tolist())
            assert torch.allclose(frequencies, chances[row], atol=6e-3)
