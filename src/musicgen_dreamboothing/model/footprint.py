"""How much memory a training step takes, found by walking through it without weights.

The real classes run forward and backward on torch's `meta` device, where tensors have sizes and no content, while every
piece of memory that a step would hold is counted. Two depths and a few batches are walked; memory is linear in both,
but that a melody model computes its prefix once for all clips as soon as there are two of them.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from musicgen_dreamboothing.model.adapter import LoraSettings, add_adapter, trained_parameters
from musicgen_dreamboothing.model.checkpoint import Checkpoint
from musicgen_dreamboothing.model.language_model import MelodyLM, PlaceholderEncoder, TextLM
from musicgen_dreamboothing.model.recompute import use_full_recompute
from musicgen_dreamboothing.model.seams import TorchDispatchMode, set_attention, storage_id, tree_leaves

DEPTHS = (1, 2)  # layers of the decoder that are walked
BATCHES = (2, 3)  # clips, for any number above them
CAPTION_TOKENS = 32  # more than most captions have
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # of a weight, its share of an 8-bit scale, and of that scale's own


@dataclass(frozen=True)
class Step:
    """What a training step is made of.

    Attributes:
        frames: steps of the delayed codes S.
        dtype: precision of the base and its arithmetic.
        quantization: of the base: none, nf4 or int8.
        lora: settings of the adapter; None trains all weights, in fp32.
        with_text_encoder: whether it is trained, too.
        caption_tokens: of the longest caption.
        with_prior: whether each clip comes with one of its class.
        with_divergence: whether that one is compared with what the base says of it.
        shared: whether several processes train; each holds its gradients twice, once in the buckets that travel.
    """

    frames: int
    dtype: torch.dtype = torch.float32
    quantization: str = "none"
    lora: LoraSettings | None = field(default_factory=LoraSettings)
    with_text_encoder: bool = False
    caption_tokens: int = CAPTION_TOKENS
    with_prior: bool = False
    with_divergence: bool = False
    shared: bool = False


@dataclass(frozen=True)
class Footprint:
    """Bytes of one training step, part by part.

    Attributes:
        base: the frozen weights; of a full fine-tune all of them.
        trained: weights of the adapter, and of all that is trained gradients and AdamW's two moments.
        kept: what the forward pass keeps for the backward pass.
        scratch: what comes on top of it where the step is at its peak.
    """

    base: int
    trained: int
    kept: int
    scratch: int

    @property
    def total(self) -> int:
        """The peak, without what a process needs before it loads a model."""
        return self.base + self.trained + self.kept + self.scratch


class Estimator:
    """Footprints of one kind of step, for any recompute policy and number of clips."""

    def __init__(self, checkpoint: Checkpoint, step: Step) -> None:
        self._checkpoint, self._step = checkpoint, step
        self._layers = int(checkpoint.config.decoder.num_hidden_layers)
        self._models: dict[tuple[str, int], Any] = {}
        self._walks: dict[tuple[str, int, int], tuple[int, int]] = {}
        self._weights: tuple[int, int] | None = None

    def footprint(self, policy: str, clips: int) -> Footprint:
        """The memory of a step on so many clips at once."""
        kept, peak = (self._extrapolated(policy, clips, place) for place in (0, 1))
        if self._weights is None:
            self._weights = self._count_weights()
        unpacked = 0
        if self._step.quantization != "none":  # a weight of the feed-forward layers as it is multiplied
            unpacked = int(self._checkpoint.config.decoder.ffn_dim) * self._width * self._step.dtype.itemsize
        return Footprint(*self._weights, kept, max(0, peak - kept) + unpacked)

    @property
    def _width(self) -> int:
        return int(self._checkpoint.config.decoder.hidden_size)

    def _extrapolated(self, policy: str, clips: int, place: int) -> int:
        """From two depths and two batches to all layers and any batch."""

        def at(depth: int) -> int:
            if clips <= BATCHES[0]:
                return self._walk(policy, depth, clips)[place]
            few, more = (self._walk(policy, depth, batch)[place] for batch in BATCHES)
            return few + (clips - BATCHES[0]) * (more - few)

        shallow, deep = (at(depth) for depth in DEPTHS)
        return shallow + (self._layers - DEPTHS[0]) * (deep - shallow)

    def _walk(self, policy: str, depth: int, clips: int) -> tuple[int, int]:
        """(bytes kept, bytes at the peak)."""
        case = (policy, depth, clips)
        if case not in self._walks:
            with _sizes_only(self._step.dtype if self._step.lora else torch.float32):
                if case[:2] not in self._models:
                    self._models[case[:2]] = self._prepared_model(policy, depth)
                self._walks[case] = walked(self._models[case[:2]], self._batch(clips))
        return self._walks[case]

    def _prepared_model(self, policy: str, depth: int) -> Any:
        model = self._model(depth)
        if policy == "light":
            model.use_light_recompute()
        if policy == "full":
            use_full_recompute(model)
        return model.train()

    def _model(self, depth: int) -> Any:
        """The model that is trained, with so many layers."""
        config = copy.deepcopy(self._checkpoint.config)
        config.decoder.num_hidden_layers = depth
        config.decoder.dropout = config.decoder.attention_dropout = config.decoder.activation_dropout = 0.0
        for part in (config.decoder, config.text_encoder):
            set_attention(part, FUSED)
        family = MelodyLM if self._checkpoint.is_melody else TextLM
        parts: dict[str, Any] = {"audio_encoder": PlaceholderEncoder(config.audio_encoder)}
        if not self._step.with_text_encoder:
            parts["text_encoder"] = PlaceholderEncoder(config.text_encoder)
        model = family(config, **parts)
        model.text_encoder.float()  # as it is loaded
        if self._step.lora is None:
            return model
        plain = replace(self._step.lora, init="default")  # others look at the weights, and there are none
        return add_adapter(model, plain, with_text_encoder=self._step.with_text_encoder)

    def _batch(self, clips: int) -> dict[str, torch.Tensor]:
        """What the collator gives."""
        rows = 2 * clips if self._step.with_prior else clips
        codes = torch.zeros(rows, self._checkpoint.codebooks, self._step.frames, dtype=torch.long)
        captions = torch.ones(rows, self._step.caption_tokens, dtype=torch.long)
        batch = {"codes": codes, "labels": codes, "text_mask": captions}
        batch["keep_caption"] = torch.ones(rows, dtype=torch.bool)
        if self._step.with_divergence:
            batch["base_states"] = torch.zeros(clips, self._step.frames, self._width, dtype=self._step.dtype)
        if self._step.with_text_encoder:
            return batch | {"input_ids": captions}
        width = self._checkpoint.config.text_encoder.hidden_size
        return batch | {"text_states": torch.zeros(rows, self._step.caption_tokens, width)}

    def _count_weights(self) -> tuple[int, int]:
        """Bytes of the base, and of what is trained with its gradients and moments."""
        counts = []
        for depth in DEPTHS:
            with _sizes_only(torch.float32):
                model = self._model(depth)
                trained = sum(parameter.numel() for _, parameter in trained_parameters(model))
                total = sum(parameter.numel() for parameter in model.parameters())
                in_fp32 = sum(
                    parameter.numel()
                    for name, parameter in model.named_parameters()
                    if "text_encoder." in name and "lora_" not in name
                )
                stored = sum(
                    parameter.numel()
                    for name, parameter in model.named_parameters()
                    if ".layers." in name and "lora_" not in name and parameter.dim() == 2
                )
            counts.append((trained, total, stored, in_fp32))
        trained, total, stored, in_fp32 = (
            shallow + (self._layers - DEPTHS[0]) * (deep - shallow) for shallow, deep in zip(*counts, strict=True)
        )
        buckets = 4 * trained if self._step.shared else 0
        if self._step.lora is None:
            return 4 * total, 12 * trained + buckets
        size = self._step.dtype.itemsize
        packed = {"none": float(size), "nf4": NF4_BYTES, "int8": 1.0}[self._step.quantization]
        kept = size * (total - trained - stored - in_fp32) + packed * stored + 4 * in_fp32
        return int(kept), 16 * trained + buckets


def walked(model: Any, batch: dict[str, torch.Tensor]) -> tuple[int, int]:
    """Bytes that are kept behind a forward pass of ours, and at the peak of forward and backward pass.

    Weights, inputs and gradients of weights are left out.
    """
    for _, parameter in trained_parameters(model):
        parameter.grad = torch.zeros_like(parameter)  # as behind the first micro-batch; they are counted as weights are
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    with Live([*model.parameters(), *model.buffers(), *gradients, *batch.values()]) as live:
        outputs = model(**batch)
        loss = (outputs.nll.sum(0) / outputs.count.sum(0)).mean()
        kept = live.now
        loss.backward()
    return kept, live.peak


class Live(TorchDispatchMode):
    """Counts the bytes of tensors that are made inside and alive, and their peak; views of others are not counted."""

    def __init__(self, known: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen = {storage_id(tensor) for tensor in known}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        number = storage_id(storage)
        if number in self._seen:
            return
        self._seen.add(number)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, number, storage.nbytes())

    def _forget(self, name: int, size: int) -> None:
        self._seen.discard(name)
        self.now -= size


def _fused_attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any, **options: Any
) -> tuple[torch.Tensor, None]:
    """Attention as devices compute it, in one kernel; on `meta` torch would take single steps, which keep more."""
    return _Fused.apply(query, key, value).transpose(1, 2).contiguous(), None


FUSED = "sizes_of_fused_attention"
AttentionInterface.register(FUSED, _fused_attention)
AttentionMaskInterface.register(FUSED, lambda *sizes, **options: None)  # masks are small, and made by looking at them


class _Fused(torch.autograd.Function):
    """The sizes of flash attention (Dao et al. 2022): it keeps its inputs, its output and one number a row."""

    @staticmethod
    def forward(context: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        # Devices give it back as [B, S, H, D] in memory, so that heads are put together without a copy.
        found = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        rows = query.new_empty(query.shape[:-1], dtype=torch.float32)
        context.save_for_backward(query, key, value, found, rows)
        return found

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        query, key, value, _, _ = context.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


@contextmanager
def _sizes_only(dtype: torch.dtype) -> Iterator[None]:
    """New tensors have a size and no content."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            yield
    finally:
        torch.set_default_dtype(usual)
