"""The melody prefix is computed once for all clips of a batch, and nothing but time and memory shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import read_checkpoint
from torch.nn.attention.bias import causal_lower_right

from musicgen_dreamboothing.model import prefix
from musicgen_dreamboothing.model.adapter import LoraSettings, add_adapter, trained_parameters
from musicgen_dreamboothing.model.delay import training_steps
from musicgen_dreamboothing.model.footprint import Estimator, Step
from musicgen_dreamboothing.model.loading import load_language_model
from musicgen_dreamboothing.model.recompute import use_full_recompute
from musicgen_dreamboothing.training.collator import Collator

CPU = torch.device("cpu")
POLICIES = ("none", "light", "full")
CHROMA = 11  # positions of the prefix
LORA, DORA = LoraSettings(r=4), LoraSettings(r=4, use_dora=True)

Folders = Callable[[str], Path]
Batch = dict[str, torch.Tensor]


def trained_model(
    folder: Path, policy: str = "none", settings: LoraSettings | None = LORA, quantization: str = "none"
) -> Any:
    """A model ready to train, its adapter with updates that are not zero; all of its weights where there is none."""
    model: Any = load_language_model(read_checkpoint(folder), torch.float32, CPU, quantization=quantization)
    if policy == "light":
        model.use_light_recompute()
    if settings is not None:
        torch.manual_seed(0)
        model = add_adapter(model, settings)
        for name, parameter in trained_parameters(model):
            if "magnitude" not in name:  # DoRA's are the norms of the base
                parameter.data.normal_(0, 0.05)
    if policy == "full":
        use_full_recompute(model)
    return model.train()


def random_clips(folder: Path, number: int, frames: int = 20) -> list[Batch]:
    """Batches of one clip each: their lengths and captions differ, every third one has lost its caption."""
    checkpoint, draw = read_checkpoint(folder), torch.Generator().manual_seed(1)
    width, clips = checkpoint.config.text_encoder.hidden_size, []
    for clip in range(number):
        shape = (checkpoint.codebooks, frames + 3 * (clip % 3))
        codes, labels = training_steps(
            torch.randint(checkpoint.codebook_size, shape, generator=draw), checkpoint.delay, checkpoint.start_token_id
        )
        states = torch.randn(3 + 5 * (clip % 4), width, generator=draw).numpy()
        clips.append({"codes": codes, "labels": labels, "text_states": states, "keep_caption": clip % 3 != 1})
    return clips


def collated(folder: Path, clips: list[Batch]) -> Batch:
    return Collator(read_checkpoint(folder).pad_token_id)(clips)


def learned(model: Any, batches: list[Batch]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Losses of all clips and codebooks, and the gradients of their sum."""
    model.zero_grad()
    losses = []
    for batch in batches:
        losses.append(model(**batch).nll)
        losses[-1].sum().backward()
    gradients = {name: parameter.grad for name, parameter in trained_parameters(model) if parameter.grad is not None}
    return torch.cat(losses).detach(), {name: gradient.clone() for name, gradient in gradients.items()}


def assert_learns_as_clip_by_clip(model: Any, folder: Path, number: int, tolerance: float = 1e-5) -> None:
    """A clip alone takes transformers' own way through the decoder."""
    clips = random_clips(folder, number)
    expected, expected_gradients = learned(model, [collated(folder, [clip]) for clip in clips])
    losses, found = learned(model, [collated(folder, clips)])
    assert torch.allclose(losses, expected, rtol=tolerance)
    assert found.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        assert torch.allclose(found[name], gradient, rtol=0, atol=tolerance * float(gradient.abs().max())), name
    reaching = [name for name in found if "audio_enc_to_dec_proj" in name and found[name].abs().max() > 1e-3]
    assert reaching  # that gets gradients through the prefix alone


@contextmanager
def counted_positions(model: Any) -> Iterator[list[int]]:
    """How many positions each call of the first layer's feed-forward part has seen."""
    seen: list[int] = []
    layer = next(module for name, module in model.named_modules() if name.endswith("layers.0.final_layer_norm"))
    handle = layer.register_forward_hook(lambda module, inputs, output: seen.append(output[..., 0].numel()))
    yield seen
    handle.remove()


@pytest.mark.parametrize("number", [1, 2, 5])
@pytest.mark.parametrize("gradients", [True, False])
def test_the_prefix_is_computed_once_for_all_clips(number: int, gradients: bool, checkpoints: Folders) -> None:
    folder = checkpoints("melody")
    model, batch = trained_model(folder), collated(folder, random_clips(folder, number))
    with counted_positions(model) as seen, torch.set_grad_enabled(gradients):
        model(**batch)
    assert seen == [CHROMA + number * (batch["text_mask"].shape[1] + batch["codes"].shape[2])]


@pytest.mark.parametrize(
    ("number", "settings", "policy"),
    [
        *((2, LORA, "none"), (5, LORA, "light"), (2, LORA, "full"), (5, DORA, "none"), (2, DORA, "light")),
        *((5, DORA, "full"), (5, None, "none"), (2, None, "full")),
    ],
)
def test_clips_with_a_shared_prefix_have_the_gradients_of_single_clips(
    number: int, settings: LoraSettings | None, policy: str, checkpoints: Folders
) -> None:
    folder = checkpoints("melody")
    assert_learns_as_clip_by_clip(trained_model(folder, policy, settings), folder, number)


def test_stereo_clips_share_a_prefix(checkpoints: Folders) -> None:
    folder = checkpoints("melody-stereo")
    assert_learns_as_clip_by_clip(trained_model(folder), folder, 3)


def test_clips_share_a_prefix_on_a_base_in_4_bits(checkpoints: Folders) -> None:
    pytest.importorskip("bitsandbytes")
    folder = checkpoints("melody")
    assert_learns_as_clip_by_clip(trained_model(folder, quantization="nf4"), folder, 3)


@pytest.mark.parametrize("policy", POLICIES)
def test_clips_share_a_prefix_under_autocast(policy: str, checkpoints: Folders) -> None:
    folder = checkpoints("melody")
    with torch.autocast("cpu", torch.bfloat16):
        assert_learns_as_clip_by_clip(trained_model(folder, policy), folder, 3, tolerance=0.03)


def as_on_a_gpu(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(prefix, "_mask_of_clips", lambda length, first, row: causal_lower_right(length - first, length))


@pytest.mark.parametrize("policy", POLICIES)
def test_clips_share_a_prefix_with_the_mask_of_gpus(
    policy: str, checkpoints: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_on_a_gpu(monkeypatch)
    folder = checkpoints("melody")
    assert_learns_as_clip_by_clip(trained_model(folder, policy), folder, 3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # from torch's compiler
@pytest.mark.parametrize(("policy", "on_gpu"), [("full", False), ("none", True)])
def test_compiled_layers_learn_the_same(
    policy: str, on_gpu: bool, checkpoints: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the compiler's front end alone: what Inductor makes of it takes minutes."""
    if on_gpu:
        as_on_a_gpu(monkeypatch)
    folder = checkpoints("melody")
    model = trained_model(folder, policy)
    for layer in model.get_base_model().decoder.model.decoder.layers:
        layer.compile(backend="eager", fullgraph=True)
    assert_learns_as_clip_by_clip(model, folder, 3)
    torch._dynamo.reset()


def test_a_shared_prefix_is_saved_once(checkpoints: Folders) -> None:
    """The prefix of short clips is half of the saved activations."""
    estimator = Estimator(read_checkpoint(checkpoints("melody")), Step(frames=8, caption_tokens=3))
    one, eight = (estimator.footprint("light", clips) for clips in (1, 8))
    assert eight.kept < 0.75 * 8 * one.kept
    assert eight.kept + eight.scratch < 0.75 * 8 * (one.kept + one.scratch)
