"""LoRA adapters on the language model: target layers, precision, and files."""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from peft import (
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
)
from peft.tuners import loha, lokr
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import load_peft_weights, set_peft_model_state_dict
from torch import nn
from torch.nn import functional

from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.model import seams
from musicgen_dreamboothing.model.header import save_with_header

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
LORA, LOHA, LOKR = "lora", "loha", "lokr"
LYCORIS = {LOHA: LoHaConfig, LOKR: LoKrConfig}  # of linear layers only, not of embeddings
WEIGHTS = ("lora_", "hada_", "lokr_")  # how the names of an adapter's own weights begin, below those of their layers
INITIALISATIONS = ("default", "gaussian", "orthogonal", "olora", "pissa", "pissa_niter_16")
# Initialisations that leave the base as it is. Others (PiSSA, OLoRA, CorDA, LoftQ, ...) change it: their raw
# weights do not fit the original one.
PLAIN_INITIALISATIONS = (True, False, None, "gaussian", "orthogonal", "eva")
SPLITTING = re.compile(r"olora|pissa(_niter_[1-9]\d*)?")  # these move a part of the base into the adapter

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class LoraSettings:
    """The options of PEFT's configurations that can be chosen.

    Attributes:
        kind: `lora`; or `loha` or `lokr`, for which only rank, alpha and targets count.
        targets: `all`, `attention`, or a regular expression over full module names.
        init: one of `INITIALISATIONS`; `pissa_niter_` with any number. PEFT's others need data (EVA, CorDA, LoRA-GA) or
            a quantised base (LoftQ).
    """

    r: int = 16
    alpha: int = 16
    dropout: float = 0.0
    targets: str = "all"
    use_dora: bool = False
    use_rslora: bool = False
    init: str = "default"
    kind: str = LORA


def _configuration(settings: LoraSettings, *, with_text_encoder: bool) -> PeftConfig:
    pattern = target_pattern(settings.targets, with_text_encoder=with_text_encoder, kind=settings.kind)
    if settings.kind in LYCORIS:
        return LYCORIS[settings.kind](r=settings.r, alpha=settings.alpha, target_modules=pattern)
    return LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=pattern,
        use_dora=settings.use_dora,
        use_rslora=settings.use_rslora,
        init_lora_weights=True if settings.init == "default" else settings.init,
    )


def add_adapter(model: nn.Module, settings: LoraSettings, *, with_text_encoder: bool = False) -> PeftModel:
    """Wraps the language model with a fresh adapter: fp32 weights, arithmetic in the base's precision.

    Raises:
        UserError: PEFT refuses the settings: targets that match no layer, a rank that is not positive, ...
    """
    check_settings(settings)
    config = _configuration(settings, with_text_encoder=with_text_encoder)
    try:
        wrapped = get_peft_model(model, config)
    except (TypeError, ValueError, re.error) as error:  # TypeError: LoHa or LoKr on embeddings
        raise UserError(
            f"such an adapter is invalid: {' '.join(str(error).split())} (--lora_targets takes "
            f"{', '.join(PRESETS)}, or a regular expression over names such as decoder.model.decoder.layers.0.fc1)"
        ) from error
    if with_text_encoder and not any(".text_encoder." in name for name, _ in trained_parameters(wrapped)):
        raise UserError(
            f"--freeze_text_encoder false, but --lora_targets {settings.targets!r} names no layer of the text encoder, "
            "such as text_encoder.encoder.block.0.layer.0.SelfAttention.q"
        )
    # What PiSSA and OLoRA took out of the base; `as_saved` adds it again.
    wrapped.initial_adapter = adapter_weights(wrapped) if SPLITTING.fullmatch(settings.init) else None
    wrapped.initial_digest = None  # of the saved adapter that a training starts from (`saved_adapter`)
    compute_in_base_precision(wrapped)
    return wrapped


def attach_adapter(
    model: nn.Module, saved: SavedAdapter, config: LoraConfig | None = None, *, load: bool = True, **options: Any
) -> PeftModel:
    """Wraps a model with a saved adapter.

    Args:
        model: the base.
        saved: the adapter.
        config: for training: its dropout and targets; layers of a text encoder that the adapter lacks are fresh. None
            freezes the adapter.
        load: whether to load the weights; otherwise only their names and sizes are compared.
        options: for PEFT.

    Raises:
        UserError: names or sizes of the adapter's weights do not fit this base.
    """
    is_lora = isinstance(saved.config, LoraConfig)
    if is_lora and saved.config.init_lora_weights not in PLAIN_INITIALISATIONS:
        raise UserError(
            f"the adapter {saved.name} belongs to a base that {saved.config.init_lora_weights} has changed, as a "
            "checkpoint of an unfinished training does; use the finished run, which holds it for the original base"
        )
    trains, config = config is not None, copy.deepcopy(config or saved.config)
    # With a task PEFT would add a wrapper that expects the inputs of another kind of model.
    config.task_type, config.base_model_name_or_path = None, None
    if is_lora:
        config.init_lora_weights = True
    config.inference_mode = not trains
    made_for = f"; it was made for {base}" if (base := saved.config.base_model_name_or_path) else ""
    option = "--model_name_or_path" if trains else "--base_model"
    misfit = UserError(
        f"the adapter {saved.name} does not fit {getattr(model, 'name_or_path', 'this base')}: its weights have other "
        f"names or sizes{made_for}. Name its base with {option}"
    )
    # Adapters made elsewhere may hold copies of embeddings too; the base has those itself.
    weights = {name: weight for name, weight in saved.weights.items() if is_adapter_weight(name)}
    try:
        wrapped = get_peft_model(model, config, **options)
        sizes = {
            name: weight.shape
            for name, weight in get_peft_model_state_dict(wrapped, save_embedding_layers=False).items()
            if ".text_encoder." not in name or saved.trains_text_encoder or not trains
        }
        if {name: weight.shape for name, weight in weights.items()} != sizes:
            raise misfit
        if load:
            set_peft_model_state_dict(wrapped, weights, **options)
    except (RuntimeError, ValueError) as error:
        raise misfit from error
    return wrapped


def adapter_weights(model: PeftModel) -> dict[str, torch.Tensor]:
    """A copy of the adapter's weights on the CPU, under the names of its file."""
    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: weight.detach().cpu().clone() for name, weight in weights.items()}


@dataclass(frozen=True)
class SavedAdapter:
    """PEFT's configuration, and fp32 weights on the CPU by the names in the adapter's file."""

    name: str
    config: Any
    weights: dict[str, torch.Tensor] = field(repr=False)
    revision: str | None = None  # commit on the Hub; of a folder a hash of its weights

    @property
    def trains_text_encoder(self) -> bool:
        """Whether it holds weights for the text encoder."""
        return any(".text_encoder." in key and is_adapter_weight(key) for key in self.weights)

    @property
    def is_plain_lora(self) -> bool:
        """Whether it adds s·B·A·x beside a layer: LoRA without DoRA."""
        return isinstance(self.config, LoraConfig) and not self.config.use_dora


def is_adapter_weight(name: str) -> bool:
    """Whether a weight in the file of an adapter is its own, and not a copy of the base's."""
    return any(f".{part}" in name for part in WEIGHTS)


def read_adapter(name: str, **hub: Any) -> SavedAdapter | None:
    """The adapter in a folder or repository, or None; `hub`: revision, cache_dir, token."""
    config = adapter_config(name, **hub)
    if config is None:
        return None
    weights = load_peft_weights(name, device="cpu", **hub)
    return SavedAdapter(name, config, {key: weight.float() for key, weight in weights.items()})


def as_saved(model: PeftModel) -> SavedAdapter:
    """A trained adapter of `add_adapter` as one for the original base.

    PiSSA (Meng et al. 2024) and OLoRA (Büyükakyüz 2024) train W - s·B₀A₀ + s·BA. The change of W is
    s·[B, -B₀][A; A₀], a plain adapter of twice the rank. PEFT's own conversion
    (`path_initial_model_for_weight_conversion`) leaves out adapted embeddings.
    """
    config, weights = copy.deepcopy(model.peft_config["default"]), adapter_weights(model)
    if (initial := model.initial_adapter) is not None:
        weights = {name: _with_initial(name, weight, initial[name]) for name, weight in weights.items()}
        scale = 2**0.5 if config.use_rslora else 2  # alpha grows as the rank does, so that s stays
        config.init_lora_weights, config.r, config.lora_alpha = True, 2 * config.r, scale * config.lora_alpha
    config.inference_mode = True
    return SavedAdapter("in training", config, weights)


def save_adapter(model: PeftModel, folder: Path, header: Mapping[str, str] | None = None) -> None:
    """Writes a trained adapter of `add_adapter` for the original base; `header` goes into its file's metadata."""
    saved = as_saved(model)
    saved.config.save_pretrained(folder)
    save_with_header(
        saved.weights, folder / "adapter_model.safetensors", {**(header or {}), "rank": str(saved.config.r)}
    )


def _with_initial(name: str, weight: torch.Tensor, initial: torch.Tensor) -> torch.Tensor:
    """A `[r, in]` with A₀ below it, B `[out, r]` with -B₀ beside it."""
    is_a = ".lora_A." in name or name.endswith("lora_embedding_A")
    return torch.cat([weight, initial if is_a else -initial], dim=0 if is_a else 1).contiguous()


def has_learned(model: PeftModel) -> bool:
    """Whether the training changed what the model computes."""
    if model.initial_digest is not None:
        return weights_digest(model) != model.initial_digest
    initial = model.initial_adapter
    if initial is None:
        return count_active(model)[0] > 0
    return any(not torch.equal(weight, initial[name]) for name, weight in adapter_weights(model).items())


def trained_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Names and parameters that require gradients."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def check_settings(settings: LoraSettings) -> None:
    """Refuses, before a model is loaded, an unknown initialisation or a broken regular expression."""
    if settings.init not in INITIALISATIONS and not SPLITTING.fullmatch(settings.init):
        raise UserError(f"--lora_init {settings.init!r} is unknown; it takes {', '.join(INITIALISATIONS)}")
    if settings.kind in LYCORIS and (
        settings.dropout or settings.use_dora or settings.use_rslora or settings.init != "default"
    ):
        raise UserError(
            f"--adapter_type {settings.kind} has rank, alpha and targets only; leave out --lora_dropout, --use_dora, "
            "--use_rslora and --lora_init"
        )
    if settings.use_dora and SPLITTING.fullmatch(settings.init):
        raise UserError(f"--lora_init {settings.init} changes the base, whose norms --use_dora true needs; choose one")
    try:
        re.compile(target_pattern(settings.targets))
    except re.error as error:
        raise UserError(f"--lora_targets {settings.targets!r} is no regular expression: {error}") from error


def target_pattern(targets: str, *, with_text_encoder: bool = False, kind: str = LORA) -> str:
    """The regular expression of a preset, for LoHa and LoKr without embeddings; any other text is taken as one."""
    if targets not in PRESETS:
        return targets
    parts = tuple(part for part in PRESETS[targets] if kind == LORA or part != EMBEDDINGS)
    parts += (TEXT_ENCODER[targets],) if with_text_encoder else ()
    return "|".join(f"({part})" for part in parts)


class _CastLinear(nn.Linear):
    """A weight in fp32 for the optimizer that is multiplied in the input's precision."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.weight.to(x.dtype))


class _LycorisLinear:
    """LoHa or LoKr with weights in fp32, whose update is multiplied in the input's precision.

    PEFT's own draws a random number at each call for a dropout of modules, which is not an option here and cannot be
    drawn where memory is estimated.
    """

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.base_layer(x)
        if self.disable_adapters or self.merged:
            return output
        (adapter,) = self.active_adapters
        return output + functional.linear(x, self.get_delta_weight(adapter).to(x.dtype))


class _LoHaLinear(_LycorisLinear, loha.Linear):
    pass


class _LoKrLinear(_LycorisLinear, lokr.Linear):
    pass


def compute_in_base_precision(model: nn.Module) -> None:
    """Stops PEFT from making an fp32 copy of every input of every adapted layer: a fifth of the peak memory.

    The weights stay fp32. DoRA normalises the merged weight, so it computes as PEFT does.
    """
    for layer in model.modules():
        if type(layer) is loha.Linear:
            seams.replace_class(layer, _LoHaLinear)
        if type(layer) is lokr.Linear:
            seams.replace_class(layer, _LoKrLinear)
        if not isinstance(layer, LoraLayer) or any(layer.use_dora.values()):
            continue
        seams.leave_input_precision(layer)
        for linear in [*layer.lora_A.values(), *layer.lora_B.values()]:
            if type(linear) is nn.Linear:
                seams.replace_class(linear, _CastLinear)


def adapter_config(name: str, **arguments: Any) -> PeftConfig | None:
    """The configuration of the adapter in a folder or repository, or None."""
    if Path(name).is_dir() and not (Path(name) / "adapter_config.json").exists():
        return None
    try:
        return PeftConfig.from_pretrained(name, **arguments)
    except (ValueError, OSError, HfHubHTTPError, HFValidationError):
        return None


def count_active(model: nn.Module) -> tuple[int, int]:
    """Numbers of adapted layers with an update that is not zero, and of all adapted layers."""
    layers = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
    return sum(_has_update(layer) for layer in layers), len(layers)


def _has_update(layer: Any) -> bool:
    if not isinstance(layer, LoraLayer):
        with torch.no_grad():
            return any(bool(layer.get_delta_weight(name).any()) for name in layer.active_adapters)
    pairs = [(layer.lora_A[name].weight, layer.lora_B[name].weight) for name in layer.lora_A]
    pairs += [(layer.lora_embedding_A[name], layer.lora_embedding_B[name]) for name in layer.lora_embedding_A]
    return any(has_update(a, b) for a, b in pairs)


def has_update(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether B·A is more than rounding: "orthogonal" starts with two matrices whose product is zero.

    The squared norm of B·A is the sum of BᵀB ∘ AAᵀ, which are no larger than the rank.
    """
    a, b = a.detach().cpu().double(), b.detach().cpu().double()
    size = a.square().sum() * b.square().sum()
    return bool(((b.T @ b) * (a @ a.T)).sum() > 1e-10 * size)


def without_adapter(layer: nn.Module) -> nn.Module:
    """The base layer of an adapted one, or the layer itself."""
    return layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer


def computing_layer(layer: nn.Module) -> nn.Module:
    """The base layer where an adapter is merged or switched off, else the layer itself."""
    idle = isinstance(layer, BaseTunerLayer) and (layer.merged or layer.disable_adapters)
    return without_adapter(layer) if idle else layer


def weights_digest(model: PeftModel) -> str:
    """A hash of the adapter's weights."""
    digest = hashlib.blake2b(digest_size=8)
    for name, weight in sorted(adapter_weights(model).items()):
        digest.update(name.encode())
        digest.update(weight.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
