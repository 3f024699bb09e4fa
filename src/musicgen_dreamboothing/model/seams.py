"""Every use of a private, undocumented or prototype part of another library, with the reason.

Nothing else in this package touches such parts. They were read in torch 2.13.0, transformers 5.23.0,
peft 0.21.2, accelerate 1.15.0 and bitsandbytes 0.50.2; pyproject.toml has an upper bound for each of them.
`SEAMS` lists what must exist; tests/test_seams.py names the library, the part and what depends on it when one is gone.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.nn.attention.bias import causal_lower_right  # prototype
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from transformers.models.encodec.modeling_encodec import EncodecConv1d

__all__ = ["SEAMS", "TRAINER_METHODS", "Seam", "TorchDispatchMode", "causal_lower_right", "tree_leaves"]


class Seam(NamedTuple):
    """A part of another library that must exist.

    Attributes:
        owner: dotted path of the module or class.
        name: of its attribute; of a class also one that its code sets on `self`.
        reason: what depends on it.
    """

    owner: str
    name: str
    reason: str


# Methods of transformers' Trainer that training/ overrides or calls; all but the last two are overridden.
TRAINER_METHODS = (
    *("_evaluate", "_finalize_training", "_get_dataloader", "_get_num_items_in_batch", "_get_train_sampler"),
    *("_load_callback_state", "_run_epoch", "_save", "_save_checkpoint", "_save_rng_state"),
    *(
        "compute_loss",
        "create_accelerator_and_postprocess",
        "create_optimizer",
        "get_optimizer_cls_and_kwargs",
        "evaluation_loop",
        "get_batch_samples",
        "log",
    ),
    *("prediction_step", "training_step", "_maybe_log_save_evaluate", "_prepare_inputs"),
)
_TEXT = "transformers.models.musicgen.modeling_musicgen"
_MELODY = "transformers.models.musicgen_melody.modeling_musicgen_melody"
_ENCODEC = "transformers.models.encodec.modeling_encodec"
SEAMS = (
    Seam("torch", "_weight_int8pack_mm", "int8 decoding on a CPU"),
    Seam("torch.cpu", "_is_avx512_bf16_supported", "the precision on a CPU (device.cpu_has_bf16_units)"),
    Seam("torch.UntypedStorage", "_cdata", "light recomputation and the estimate of memory"),
    Seam("torch.utils._python_dispatch", "TorchDispatchMode", "the estimate of memory"),
    Seam("torch.utils._pytree", "tree_leaves", "the estimate of memory"),
    Seam("torch.nn.attention.bias", "causal_lower_right", "the shared prefix of melody models on a GPU"),
    Seam("torch.utils.data.DataLoader", "_get_iterator", "Ctrl-C with dataloader workers"),
    Seam("torch.optim.lr_scheduler.LRScheduler", "_last_lr", "training longer than planned"),
    Seam("transformers.TrainingArguments", "_n_gpu", "training on one of several GPUs without accelerate launch"),
    Seam("transformers.Trainer", "loss_is_scaled_for_ga", "gradient accumulation"),
    Seam("transformers.Trainer", "_tr_loss", "resuming a run that was stopped in an evaluation"),
    *(Seam("transformers.Trainer", name, "the training loop, resuming and saving") for name in TRAINER_METHODS),
    Seam("transformers.PreTrainedModel", "_keep_in_fp32_modules_strict", "the text encoder in fp32"),
    Seam("transformers.PreTrainedConfig", "_attn_implementation", "the estimate of memory and the shared prefix"),
    Seam("transformers.initialization", "no_init_weights", "checking an adapter without loading its base"),
    Seam("transformers.utils.hub", "_raise_exceptions_for_missing_entries", "finding files of a checkpoint"),
    Seam("transformers.activations", "GELUActivation", "light recomputation, which looks for classes of this module"),
    Seam(_MELODY, "MusicgenMelodyAttention", "the shared prefix of melody models"),
    Seam(_MELODY, "eager_attention_forward", "the shared prefix of melody models"),
    Seam(f"{_MELODY}.MusicgenMelodySinusoidalPositionalEmbedding", "make_weights", "decoding"),
    Seam(
        f"{_TEXT}.MusicgenSinusoidalPositionalEmbedding",
        "make_weights",
        "decoding",
    ),
    Seam(f"{_ENCODEC}.EncodecConv1d", "_pad1d", "encoding songs on a CPU"),
    Seam(_ENCODEC, "EncodecResnetBlock", "encoding songs on a CPU"),
    Seam(_ENCODEC, "EncodecLSTM", "encoding songs"),
    Seam("peft.tuners.lora.LoraLayer", "cast_input_dtype_enabled", "adapters that compute in 16 bits"),
    Seam("peft.tuners.lora.LoraLayer", "merged_adapters", "merging an adapter"),
    Seam("peft.tuners.lora.LoraLayer", "lora_A", "decoding with an adapter"),
    Seam("peft.tuners.lora.LoraLayer", "lora_embedding_A", "decoding with an adapter"),
    Seam("peft.tuners.lora.LoraLayer", "scaling", "decoding with an adapter"),
    Seam("peft.tuners.lora.LoraLayer", "lora_variant", "decoding with an adapter"),
    Seam("peft.tuners.lora.LoraLayer", "use_dora", "adapters that compute in 16 bits"),
    Seam("accelerate.Accelerator", "autocast_handler", "fp16 training of an adapter"),
    Seam("bitsandbytes.nn.modules.Linear4bit", "support_avx512bf16_for_cpu", "training on an nf4 base on a CPU"),
    Seam("bitsandbytes.nn.modules.Linear8bitLt", "state", "training on an int8 base"),
    Seam("bitsandbytes.MatmulLtState", "CB", "training on an int8 base"),
    Seam("bitsandbytes.MatmulLtState", "SCB", "training on an int8 base"),
)


def replace_class(module: nn.Module, new_class: type[nn.Module]) -> None:
    """Gives a module another `forward` and leaves weights, hooks and names as they are."""
    assert issubclass(new_class, type(module)), (new_class, type(module))
    module.__class__ = new_class


# torch


def storage_id(tensor: torch.Tensor | torch.UntypedStorage) -> int:
    """The same number for all tensors that share memory, also on the meta device, where `data_ptr()` is 0."""
    storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else tensor
    return storage._cdata


def int8_product(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """`x` bf16 `[N, in]` times int8 weights `[out, in]` with a scale for each output -> `[N, out]`, on a CPU."""
    return torch._weight_int8pack_mm(x, weight, scale)


def set_last_rates(scheduler: Any, rates: list[Any]) -> None:
    """What `get_last_lr()` of a scheduler returns; only `step()` sets it otherwise."""
    scheduler._last_lr = rates


def wrap_worker_start(loader: Any, wrap: Callable[[Callable[[], Any]], Callable[[], Any]]) -> None:
    """Wraps the method of torch's DataLoader that starts its workers; no hook runs around it."""
    loader._get_iterator = wrap(loader._get_iterator)


# transformers and accelerate


def attention_of(config: Any) -> str:
    """The name of the attention that a model of this configuration computes with."""
    return str(config._attn_implementation)


def set_attention(config: Any, name: str) -> None:
    """Chooses a registered attention before the model is built; models refuse names that they do not know."""
    config._attn_implementation = name


def find_cached_file(name: str, file: str, **hub: Any) -> Path | None:
    """`transformers.utils.cached_file` that returns None where a checkpoint has no such file, and raises otherwise."""
    from transformers.utils import cached_file

    path = cached_file(name, file, _raise_exceptions_for_missing_entries=False, **hub)
    return None if path is None else Path(path)


def position_rows(table: Any, number: int) -> torch.Tensor:
    """The first rows `[number, D]` of MusicGen's table of positions, which is extended as its `forward` does."""
    if number > len(table.weights):
        table.make_weights(number, table.embedding_dim)
    rows: torch.Tensor = table.weights[:number]
    return rows


def pad_wave(layer: EncodecConv1d, hidden: torch.Tensor, left: int, right: int) -> torch.Tensor:
    """`[1, C, S]` padded as this convolution of EnCodec pads it, also where the wave is shorter than the padding."""
    padded: torch.Tensor = layer._pad1d(hidden, (left, right), layer.pad_mode)
    return padded


def use_one_gpu(options: Any) -> None:
    """Keeps Trainer from torch's DataParallel, which splits neither captions nor losses correctly."""
    options._n_gpu = 1


def switch_autocast_off(accelerator: Any) -> None:
    """Keeps accelerate's fp16 loss scaler and leaves out its autocast."""
    from accelerate.utils import AutocastKwargs

    accelerator.autocast_handler = AutocastKwargs(enabled=False)


# PEFT


def leave_input_precision(layer: Any) -> None:
    """Stops a LoRA layer from casting its input to the precision of its weights; PEFT has a context manager only."""
    layer.cast_input_dtype_enabled = False


def forget_merge(layer: Any) -> None:
    """Marks a LoRA layer as unmerged: its base has other weights now, so `unmerge()` would spoil them."""
    layer.merged_adapters.clear()


# bitsandbytes


def is_bitsandbytes(layer: nn.Module) -> bool:
    """Whether a layer, or the layer that it was derived from, is quantised by bitsandbytes."""
    return any(base.__module__.startswith("bitsandbytes.") for base in type(layer).__mro__)


def keep_4bit_layout(layer: Any) -> None:
    """Keeps `Linear4bit` from packing its weight for a CPU kernel without a backward pass in its first evaluation."""
    if hasattr(layer, "support_avx512bf16_for_cpu"):
        layer.support_avx512bf16_for_cpu = False


def int8_weight(state: Any, dtype: torch.dtype) -> torch.Tensor:
    """The weight `[out, in]` of a `Linear8bitLt` from its `MatmulLtState`: int8 rows and their largest values."""
    weight: torch.Tensor = state.CB.to(dtype, copy=True).mul_(state.SCB.unsqueeze(1).mul(1 / 127))
    return weight
