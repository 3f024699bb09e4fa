"""Estimates the memory of a training step by running it without weights.

The real classes run forward and backward on torch's `meta` device, where tensors have sizes and no content, while the
bytes of all tensors alive are counted. Memory is linear in depth and batch size, so two depths and a few batches are
enough; without melodies a melody model computes its prefix once for all clips from two clips on.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from musicgen_dreamboothing.model.adapter import LoraSettings, add_adapter, trained_parameters
from musicgen_dreamboothing.model.checkpoint import Checkpoint
from musicgen_dreamboothing.model.footprint_cache import read_cache, write_cache
from musicgen_dreamboothing.model.language_model import MelodyLM, PlaceholderEncoder, TextLM
from musicgen_dreamboothing.model.recompute import use_full_recompute
from musicgen_dreamboothing.model.seams import TorchDispatchMode, set_attention, storage_id, tree_leaves

DEPTHS = (1, 2)  # numbers of decoder layers that are measured
BATCHES = (2, 3)  # numbers of clips, to extrapolate from
CAPTION_TOKENS = 32  # more than most captions have
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # of a weight, its share of an 8-bit scale, and of that scale's own


@dataclass(frozen=True)
class Step:
    """The settings that the memory of a training step depends on.

    Attributes:
        frames: steps of the delayed codes S.
        dtype: precision of the base and its arithmetic.
        quantization: of the base: none, nf4 or int8.
        lora: settings of the adapter; None trains all weights, in fp32.
        with_text_encoder: whether it is trained, too.
        caption_tokens: of the longest caption.
        with_prior: whether each clip comes with one of its class (prior preservation).
        with_divergence: whether the loss of the class clips is the divergence from the base.
        with_melody: whether clips have melodies of their own, so that they do not share a prefix.
        shared: whether several processes train: each has its gradients twice, once in the buckets that are exchanged.
    """

    frames: int
    dtype: torch.dtype = torch.float32
    quantization: str = "none"
    lora: LoraSettings | None = field(default_factory=LoraSettings)
    with_text_encoder: bool = False
    caption_tokens: int = CAPTION_TOKENS
    with_prior: bool = False
    with_divergence: bool = False
    with_melody: bool = False
    shared: bool = False


@dataclass(frozen=True)
class Footprint:
    """Bytes of one training step, part by part.

    Attributes:
        base: the frozen weights; of a full fine-tune all of them.
        trained: weights of the adapter; gradients and AdamW's two moments of all trained weights.
        kept: activations that the forward pass saves for the backward pass.
        scratch: the rest at the peak of the step.
    """

    base: int
    trained: int
    kept: int
    scratch: int

    @property
    def total(self) -> int:
        """The peak, without the memory of a process that has not loaded a model."""
        return self.base + self.trained + self.kept + self.scratch


class Estimator:
    """Footprints of one kind of step, for any recompute policy and number of clips.

    Args:
        checkpoint: the base.
        step: the kind of step.
        file: where measured values are kept for the next time; None keeps them nowhere.
    """

    def __init__(self, checkpoint: Checkpoint, step: Step, file: Path | None = None) -> None:
        self._checkpoint, self._step, self._file = checkpoint, step, file
        self._layers = int(checkpoint.config.decoder.num_hidden_layers)
        self._models: dict[tuple[str, int], Any] = {}
        self._measured = {} if file is None else read_cache(file)

    def footprint(self, policy: str, clips: int) -> Footprint:
        """The memory of a step on so many clips at once."""
        kept, peak = (self._extrapolated(policy, clips, place) for place in (0, 1))
        weights = self._once("weights", self._count_weights)
        unpacked = 0
        if self._step.quantization != "none":  # a dequantised weight of the feed-forward layers
            unpacked = int(self._checkpoint.config.decoder.ffn_dim) * self._width * self._step.dtype.itemsize
        return Footprint(weights[0], weights[1], kept, max(0, peak - kept) + unpacked)

    @property
    def _width(self) -> int:
        return int(self._checkpoint.config.decoder.hidden_size)

    def _extrapolated(self, policy: str, clips: int, place: int) -> int:
        """Extrapolates from two depths and two batches to all layers and any batch."""

        def at(depth: int) -> int:
            if clips <= BATCHES[0]:
                return self._measure(policy, depth, clips)[place]
            few, more = (self._measure(policy, depth, batch)[place] for batch in BATCHES)
            return few + (clips - BATCHES[0]) * (more - few)

        return int(self._to_all_layers(*(at(depth) for depth in DEPTHS)))

    def _once(self, case: str, measured: Callable[[], tuple[int, int]]) -> list[int]:
        """Two numbers of bytes, measured the first time."""
        if case not in self._measured:
            self._measured[case] = list(measured())
            if self._file is not None:
                write_cache(self._file, self._measured)
        return self._measured[case]

    def _measure(self, policy: str, depth: int, clips: int) -> list[int]:
        """[bytes kept, bytes at the peak]."""

        def measured() -> tuple[int, int]:
            with _sizes_only(self._step.dtype if self._step.lora else torch.float32):
                if (policy, depth) not in self._models:
                    self._models[policy, depth] = self._prepared_model(policy, depth)
                return measure(self._models[policy, depth], self._batch(clips))

        return self._once(f"{policy}, {depth} layers, {clips} clips", measured)

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
        plain = replace(self._step.lora, init="default")  # others read the weights, and there are none
        return add_adapter(model, plain, with_text_encoder=self._step.with_text_encoder)

    def _batch(self, clips: int) -> dict[str, torch.Tensor]:
        """A batch as the collator makes it."""
        rows = 2 * clips if self._step.with_prior else clips
        codes = torch.zeros(rows, self._checkpoint.codebooks, self._step.frames, dtype=torch.long)
        captions = torch.ones(rows, self._step.caption_tokens, dtype=torch.long)
        batch = {"codes": codes, "labels": codes, "text_mask": captions}
        batch["keep_caption"] = torch.ones(rows, dtype=torch.bool)
        if self._step.with_melody:
            batch["melody"] = torch.zeros(rows, self._checkpoint.config.chroma_length, dtype=torch.long)
        if self._step.with_divergence:
            batch["base_states"] = torch.zeros(clips, self._step.frames, self._width, dtype=self._step.dtype)
        if self._step.with_text_encoder:
            return batch | {"input_ids": captions}
        width = self._checkpoint.config.text_encoder.hidden_size
        return batch | {"text_states": torch.zeros(rows, self._step.caption_tokens, width)}

    def _count_weights(self) -> tuple[int, int]:
        """Bytes of the base, and of trained weights with their gradients and moments."""
        size = self._step.dtype.itemsize
        packed = {"none": float(size), "nf4": NF4_BYTES, "int8": 1.0}[self._step.quantization]
        counts = []
        for depth in DEPTHS:
            with _sizes_only(torch.float32):
                model = self._model(depth)
            trained = sum(parameter.numel() for _, parameter in trained_parameters(model))
            frozen = 0.0
            for name, parameter in model.named_parameters():
                if self._step.lora is None or "text_encoder." in name:
                    bytes_each: float = 4
                else:
                    bytes_each = packed if ".layers." in name and parameter.dim() == 2 else size
                frozen += 0 if "lora_" in name else bytes_each * parameter.numel()
            counts.append((frozen, float(trained)))
        base, all_trained = (self._to_all_layers(shallow, deep) for shallow, deep in zip(*counts, strict=True))
        moments_and_gradients = 12 + (4 if self._step.shared else 0)
        return int(base), int(all_trained) * (moments_and_gradients + (0 if self._step.lora is None else 4))

    def _to_all_layers(self, shallow: float, deep: float) -> float:
        return shallow + (self._layers - DEPTHS[0]) * (deep - shallow)


def measure(model: Any, batch: dict[str, torch.Tensor]) -> tuple[int, int]:
    """Bytes that a forward pass saves, and at the peak of the step; without weights, their gradients and inputs."""
    for _, parameter in trained_parameters(model):
        parameter.grad = torch.zeros_like(parameter)  # as after the first micro-batch; counted with the weights
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    with Live([*model.parameters(), *model.buffers(), *gradients, *batch.values()]) as live:
        outputs = model(**batch)
        loss = (outputs.nll.sum(0) / outputs.count.sum(0)).mean()
        kept = live.now
        loss.backward()
    return kept, live.peak


class Live(TorchDispatchMode):
    """Counts the bytes of living tensors that were made inside, without views, and their peak."""

    def __init__(self, known: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen = {storage_id(tensor) for tensor in known}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

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
    """Attention in one kernel, as on devices; on `meta` torch would compute and save single steps."""
    return _Fused.apply(query, key, value).transpose(1, 2).contiguous(), None


FUSED = "sizes_of_fused_attention"
AttentionInterface.register(FUSED, _fused_attention)
AttentionMaskInterface.register(FUSED, lambda *sizes, **options: None)  # small, and made from their values


class _Fused(torch.autograd.Function):
    """The sizes of flash attention (Dao et al. 2022): it saves its inputs, its output and one number per row."""

    @staticmethod
    def forward(context: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        # In memory [B, S, H, D], so that heads are joined without a copy.
        output = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        rows = query.new_empty(query.shape[:-1], dtype=torch.float32)
        context.save_for_backward(query, key, value, output, rows)
        return output

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        query, key, value, _, _ = context.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


@contextmanager
def _sizes_only(dtype: torch.dtype) -> Iterator[None]:
    """New tensors have a size and no content."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            yield
    finally:
        torch.set_default_dtype(default)
