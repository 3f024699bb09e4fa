"""LoRA adapters on the language model: where they sit, how they compute, and whether they do anything."""

from __future__ import annotations

import copy
import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils import load_peft_weights
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.model import seams

ATTENTION = r"decoder\.model\.decoder\.layers\.\d+\.(self_attn|encoder_attn)\.(q_proj|k_proj|v_proj|out_proj)"
FEED_FORWARD = r"decoder\.model\.decoder\.layers\.\d+\.(fc1|fc2)"
HEADS = r"decoder\.lm_heads\.\d+"
EMBEDDINGS = r"decoder\.model\.decoder\.embed_tokens\.\d+"
PROJECTIONS = r"(audio_)?enc_to_dec_proj"
TEXT_ENCODER = {"all": r"text_encoder\..*\.(q|k|v|o|wi|wi_0|wi_1|wo)", "attention": r"text_encoder\..*\.(q|k|v|o)"}
PRESETS = {
    "all": (ATTENTION, FEED_FORWARD, HEADS, EMBEDDINGS, PROJECTIONS),
    "attention": (ATTENTION,),
}
INITIALISATIONS = ("default", "gaussian", "orthogonal", "olora", "pissa", "pissa_niter_16")
# Initialisations after which the weights are those of a plain adapter. Others (PiSSA, OLoRA, CorDA, LoftQ, ...) change
# the base, and their raw weights mean nothing without the changed one.
PLAIN_INITIALISATIONS = (True, False, None, "gaussian", "orthogonal", "eva")
SPLITTING = re.compile(r"olora|pissa(_niter_[1-9]\d*)?")  # these take a part of the base's weights into the adapter

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class LoraSettings:
    """What PEFT's `LoraConfig` is made of.

    Attributes:
        targets: `all`, `attention`, or a regular expression over full module names.
        init: one of `INITIALISATIONS`, with any number of iterations behind `pissa_niter_`. What PEFT
            offers beyond them measures data first (EVA, CorDA, LoRA-GA) or wants a quantised base (LoftQ).
    """

    r: int = 16
    alpha: int = 16
    dropout: float = 0.0
    targets: str = "all"
    use_dora: bool = False
    use_rslora: bool = False
    init: str = "default"


def add_adapter(model: nn.Module, settings: LoraSettings, *, with_text_encoder: bool = False) -> PeftModel:
    """Wraps the language model with a fresh adapter: fp32 weights, arithmetic in the base's precision.

    Raises:
        UserError: PEFT can't make such an adapter: its targets match no layer, its rank is not positive, ...
    """
    check_settings(settings)
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=target_pattern(settings.targets, with_text_encoder=with_text_encoder),
        use_dora=settings.use_dora,
        use_rslora=settings.use_rslora,
        init_lora_weights=True if settings.init == "default" else settings.init,
    )
    try:
        wrapped = get_peft_model(model, config)
    except (ValueError, re.error) as error:
        raise UserError(
            f"such an adapter can't be made: {' '.join(str(error).split())} (--lora_targets takes "
            f"{', '.join(PRESETS)}, or a regular expression over names such as decoder.model.decoder.layers.0.fc1)"
        ) from error
    if with_text_encoder and not any(".text_encoder." in name for name, _ in trained_parameters(wrapped)):
        raise UserError(
            f"--freeze_text_encoder false, but --lora_targets {settings.targets!r} names no layer of the text encoder, "
            "such as text_encoder.encoder.block.0.layer.0.SelfAttention.q"
        )
    # What PiSSA and OLoRA took out of the base; `save_adapter` gives it back.
    wrapped.initial_adapter = adapter_weights(wrapped) if SPLITTING.fullmatch(settings.init) else None
    wrapped.initial_digest = None  # of the saved adapter that a training begins from (`saved_adapter`)
    compute_in_base_precision(wrapped)
    return wrapped


def adapter_weights(model: PeftModel) -> dict[str, torch.Tensor]:
    """A copy of the adapter's weights on the CPU, under the names of its file."""
    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: weight.detach().cpu().clone() for name, weight in weights.items()}


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter as its files hold it: PEFT's configuration, and fp32 weights on the CPU by the names of the file."""

    name: str
    config: Any
    weights: dict[str, torch.Tensor] = field(repr=False)
    revision: str | None = None  # commit on the Hub; of a folder a hash of its weights

    @property
    def trains_text_encoder(self) -> bool:
        """Whether it holds weights for the text encoder."""
        return any(".text_encoder." in key and "lora_" in key for key in self.weights)


def read_adapter(name: str, **hub: Any) -> SavedAdapter | None:
    """The adapter in a folder or on the Hub, or None where there is none.

    Args:
        name: of the folder or the repository.
        hub: keyword arguments for the Hub: revision, cache_dir, token.
    """
    config = adapter_config(name, **hub)
    if config is None:
        return None
    weights = load_peft_weights(name, device="cpu", **hub)
    return SavedAdapter(name, config, {key: weight.float() for key, weight in weights.items()})


def as_saved(model: PeftModel) -> SavedAdapter:
    """A trained adapter of `add_adapter` as one for the untouched base, which is what its file holds.

    PiSSA (Meng et al. 2024) and OLoRA (Büyükakyüz 2024) train W - s·B₀A₀ + s·BA. The change of W is
    s·[B, -B₀][A; A₀], a plain adapter of twice the rank. PEFT's own conversion
    (`path_initial_model_for_weight_conversion`) leaves out adapted embeddings.
    """
    config, weights, initial = (
        copy.deepcopy(model.peft_config["default"]),
        adapter_weights(model),
        model.initial_adapter,
    )
    if initial is not None:
        weights = {name: _with_initial(name, now, initial[name]) for name, now in weights.items()}
        scale = 2**0.5 if config.use_rslora else 2  # alpha grows as the rank does, so that s stays
        config.init_lora_weights, config.r, config.lora_alpha = True, 2 * config.r, scale * config.lora_alpha
    config.inference_mode = True
    return SavedAdapter("in training", config, weights)


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Writes a trained adapter of `add_adapter` as one for the untouched base."""
    saved = as_saved(model)
    saved.config.save_pretrained(folder)
    save_file(saved.weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _with_initial(name: str, now: torch.Tensor, initial: torch.Tensor) -> torch.Tensor:
    """A `[r, in]` with A₀ below it, B `[out, r]` with -B₀ beside it."""
    is_a = ".lora_A." in name or name.endswith("lora_embedding_A")
    return torch.cat([now, initial if is_a else -initial], dim=0 if is_a else 1).contiguous()


def has_learned(model: PeftModel) -> bool:
    """Whether the training changed what the model computes."""
    if model.initial_digest is not None:
        return weights_digest(model) != model.initial_digest
    initial = model.initial_adapter
    if initial is None:
        return is_active(model)
    return any(not torch.equal(now, initial[name]) for name, now in adapter_weights(model).items())


def trained_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters that an optimizer would change, by name."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def check_settings(settings: LoraSettings) -> None:
    """What can be known to be wrong before a model is loaded.

    Raises:
        UserError: an unknown initialisation or a broken regular expression.
    """
    if settings.init not in INITIALISATIONS and not SPLITTING.fullmatch(settings.init):
        raise UserError(f"--lora_init {settings.init!r} is unknown; it takes {', '.join(INITIALISATIONS)}")
    if settings.use_dora and SPLITTING.fullmatch(settings.init):
        raise UserError(f"--lora_init {settings.init} changes the base, whose norms --use_dora true needs; choose one")
    try:
        re.compile(target_pattern(settings.targets))
    except re.error as error:
        raise UserError(f"--lora_targets {settings.targets!r} is no regular expression: {error}") from error


def target_pattern(targets: str, *, with_text_encoder: bool = False) -> str:
    """The regular expression of a preset; any other text is taken as one."""
    if targets not in PRESETS:
        return targets
    parts = PRESETS[targets] + ((TEXT_ENCODER[targets],) if with_text_encoder else ())
    return "|".join(f"({part})" for part in parts)


class _CastLinear(nn.Linear):
    """Keeps its weight in fp32 for the optimizer and multiplies in the input's precision."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.weight.to(x.dtype))


def compute_in_base_precision(model: nn.Module) -> None:
    """Stops PEFT from making an fp32 copy of every input of every adapted layer.

    With a 16-bit base those copies are a fifth of the peak memory. The weights stay fp32. DoRA
    normalises the merged weight and is left as PEFT computes it.
    """
    for layer in model.modules():
        if not isinstance(layer, LoraLayer) or any(layer.use_dora.values()):
            continue
        seams.leave_input_precision(layer)
        for linear in [*layer.lora_A.values(), *layer.lora_B.values()]:
            if type(linear) is nn.Linear:
                seams.replace_class(linear, _CastLinear)


def adapter_config(name: str, **arguments: Any) -> PeftConfig | None:
    """The configuration of the adapter in a folder or on the Hub, or None where there is none."""
    if Path(name).is_dir() and not (Path(name) / "adapter_config.json").exists():
        return None
    try:
        return PeftConfig.from_pretrained(name, **arguments)
    except (ValueError, OSError, HfHubHTTPError, HFValidationError):
        return None


def is_active(model: nn.Module) -> bool:
    """Whether any adapted layer's update B·A differs from zero."""
    return any(_updates(layer) for layer in model.modules() if isinstance(layer, LoraLayer))


def count_active(model: nn.Module) -> tuple[int, int]:
    """How many adapted layers have an update that is not zero, and how many there are."""
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    return sum(_updates(layer) for layer in layers), len(layers)


def _updates(layer: LoraLayer) -> bool:
    pairs = [(layer.lora_A[name].weight, layer.lora_B[name].weight) for name in layer.lora_A]
    pairs += [(layer.lora_embedding_A[name], layer.lora_embedding_B[name]) for name in layer.lora_embedding_A]
    return any(has_update(a.detach().cpu().double(), b.detach().cpu().double()) for a, b in pairs)


def has_update(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether B·A is more than rounding: "orthogonal" begins with two matrices that cancel each other out.

    The squared norm of B·A is the sum of BᵀB ∘ AAᵀ, which are no larger than the rank.
    """
    size = a.square().sum() * b.square().sum()
    return bool(((b.T @ b) * (a @ a.T)).sum() > 1e-10 * size)


def without_adapter(layer: nn.Module) -> nn.Module:
    """The layer of the base below an adapted one, or the layer itself."""
    return layer.get_base_layer() if isinstance(layer, LoraLayer) else layer


def computing_layer(layer: nn.Module) -> nn.Module:
    """The layer of the base below an adapter that is merged or switched off, else the layer itself."""
    idle = isinstance(layer, LoraLayer) and (layer.merged or layer.disable_adapters)
    return without_adapter(layer) if idle else layer


def weights_digest(model: PeftModel) -> str:
    """A hash of the adapter's weights, to tell whether a training has changed them."""
    digest = hashlib.blake2b(digest_size=8)
    for name, weight in sorted(adapter_weights(model).items()):
        digest.update(name.encode())
        digest.update(weight.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
