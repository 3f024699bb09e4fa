"""EnCodec in audiocraft and in transformers: names of weights and settings, both ways.

Only what MusicGen and AudioGen use is known: weight normalisation, a residual quantiser without a codebook projection,
and one bandwidth.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from transformers import EncodecConfig

from musicgen_dreamboothing.console import UserError

GAIN, DIRECTION = "parametrizations.weight.original0", "parametrizations.weight.original1"
# transformers' names of settings by those of audiocraft's `seanet`
SEANET = {
    "dimension": "hidden_size",
    "n_filters": "num_filters",
    "n_residual_layers": "num_residual_layers",
    "ratios": "upsampling_ratios",
    "kernel_size": "kernel_size",
    "residual_kernel_size": "residual_kernel_size",
    "last_kernel_size": "last_kernel_size",
    "dilation_base": "dilation_growth_rate",
    "pad_mode": "pad_mode",
    "compress": "compress",
    "lstm": "num_lstm_layers",
}


def codec_settings(config: EncodecConfig, template: dict[str, Any], quantizers: int) -> dict[str, Any]:
    """The `xp.cfg` of an EnCodec of these settings.

    Args:
        config: of the codec. `pad_mode` is taken from it: audiocraft's default is another, which gives other codes.
        template: all keys of that file, with audiocraft's values.
        quantizers: number of codebooks in its weights.

    Raises:
        UserError: audiocraft has no such codec.
    """
    if config.norm_type != "weight_norm" or config.codebook_dim != config.hidden_size:
        raise UserError(
            f"audiocraft has no codec with norm_type {config.norm_type!r} and codebooks of width {config.codebook_dim} "
            f"for states of width {config.hidden_size}; it takes weight_norm and equal widths"
        )
    channels, rate = config.audio_channels, config.sampling_rate
    causal, normalize = bool(config.use_causal_conv), bool(config.normalize)
    settings = template | {"sample_rate": rate, "channels": channels}
    settings["encodec"] |= {"sample_rate": rate, "channels": channels, "causal": causal, "renormalize": normalize}
    settings["seanet"] |= {theirs: getattr(config, ours) for theirs, ours in SEANET.items()}
    settings["seanet"] |= {"channels": channels, "causal": causal, "true_skip": not config.use_conv_shortcut}
    settings["seanet"]["ratios"] = list(config.upsampling_ratios)
    settings["seanet"]["decoder"]["trim_right_ratio"] = config.trim_right_ratio
    settings["rvq"] |= {"n_q": quantizers, "bins": config.codebook_size}
    return settings


def codec_config(settings: Mapping[str, Any]) -> EncodecConfig:
    """The configuration of the codec that an `xp.cfg` describes.

    Raises:
        UserError: settings are missing, or of a codec that transformers lacks.
    """
    try:
        seanet, quantizer, model = settings["seanet"], settings["rvq"], settings["encodec"]
        rate = _number(model["sample_rate"], settings, "sample_rate")
        channels = _number(model["channels"], settings, "channels")
        values = {ours: seanet[theirs] for theirs, ours in SEANET.items()}
        causal = seanet["causal"] if isinstance(seanet["causal"], bool) else bool(model["causal"])
        trim = seanet.get("decoder", {}).get("trim_right_ratio", 1.0)
        skip, norm, codebooks, bins = seanet["true_skip"], seanet["norm"], quantizer["n_q"], quantizer["bins"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"the codec's xp.cfg lacks {error}; export it with audiocraft (audiocraft.utils.export)"
        ) from error
    if norm != "weight_norm":
        raise UserError(f"the codec has the norm {norm!r}; MusicGen's and AudioGen's have weight_norm")
    hop = 1
    for ratio in values["upsampling_ratios"]:
        hop *= ratio
    bandwidth = codebooks * (int(bins) - 1).bit_length() * -(-rate // hop) / 1000  # kbit/s, of all codebooks
    return EncodecConfig(
        **values,
        sampling_rate=rate,
        audio_channels=channels,
        use_causal_conv=causal,
        normalize=bool(model.get("renormalize", False)),
        use_conv_shortcut=not skip,
        trim_right_ratio=trim,
        norm_type=norm,
        codebook_size=bins,
        codebook_dim=values["hidden_size"],
        target_bandwidths=[bandwidth],
        chunk_length_s=None,
    )


def _number(value: Any, settings: Mapping[str, Any], name: str) -> int:
    """A number, or that which an interpolation such as `${sample_rate}` stands for."""
    return int(settings[name] if isinstance(value, str) and value.startswith("${") else value)


def codec_to_audiocraft(weights: Mapping[str, Any], config: EncodecConfig) -> dict[str, torch.Tensor]:
    """audiocraft's state dict from transformers' weights, which are named as in `EncodecModel`."""
    transposed = _transposed(config)
    return {_to_audiocraft(name, transposed): weights[name][...].clone() for name in weights}


def _to_audiocraft(name: str, transposed: set[str]) -> str:
    name = name.replace(GAIN, "weight_g").replace(DIRECTION, "weight_v")
    name = re.sub(r"^quantizer\.layers\.(\d+)\.codebook\.", r"quantizer.vq.layers.\1._codebook.", name)
    name = re.sub(r"^(encoder|decoder)\.layers\.", r"\1.model.", name)
    kind = "convtr" if ".".join(name.split(".")[:3]) in transposed else "conv"
    return re.sub(r"\.conv\.(?=weight|bias)", f".{kind}.{kind}.", name)


def codec_from_audiocraft(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """transformers' weights from audiocraft's state dict."""
    weights = {}
    for theirs, tensor in state.items():
        name = re.sub(r"^quantizer\.vq\.layers\.(\d+)\._codebook\.", r"quantizer.layers.\1.codebook.", theirs)
        name = re.sub(r"^(encoder|decoder)\.model\.", r"\1.layers.", name)
        name = re.sub(r"\.(conv\.conv|convtr\.convtr)\.(?=weight|bias)", ".conv.", name)
        weights[name.replace("weight_g", GAIN).replace("weight_v", DIRECTION)] = tensor
    return weights


def _transposed(config: EncodecConfig) -> set[str]:
    """The decoder's transposed convolutions: after a convolution and the LSTM, each ratio has an activation, one of
    these, and its residual blocks."""
    step = 2 + config.num_residual_layers
    return {f"decoder.model.{3 + step * number}" for number in range(len(config.upsampling_ratios))}
