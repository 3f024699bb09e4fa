"""The published shapes with random weights: T5-base, EnCodec 32 kHz and the decoders of all sizes.

The tiny ones have small encoders too: they are for a quick look.
"""

from __future__ import annotations

import math
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from transformers import (
    EncodecConfig,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    MusicgenMelodyConfig,
    MusicgenMelodyDecoderConfig,
    MusicgenMelodyForConditionalGeneration,
    T5Config,
)

from musicgen_dreamboothing.demo.recipe import ASSETS

SIZES = {  # width, layers and heads of the decoder; melody models have no cross-attention
    "tiny": (64, 2, 2),
    "melody-tiny": (64, 2, 2),
    "small": (1024, 24, 16),
    "medium": (1536, 48, 24),
    "large": (2048, 48, 32),
    "melody": (1536, 48, 24),
    "melody-large": (2048, 48, 32),
}
T5_BASE = {"d_model": 768, "d_ff": 3072, "d_kv": 64, "num_layers": 12, "num_heads": 12}
T5_TINY = {"d_model": 32, "d_ff": 64, "d_kv": 16, "num_layers": 2, "num_heads": 2}
FILTERS = {"num_filters": 64}  # of the codec
FILTERS_TINY = {"num_filters": 8, "hidden_size": 32}
STANDARD_DEVIATION = 0.02
PLACES = 1 << 20  # in the noise, where a weight may begin


def is_melody(size: str) -> bool:
    return size.startswith("melody")


def configuration(size: str) -> MusicgenConfig | MusicgenMelodyConfig:
    """What stands in the config.json of `facebook/musicgen-SIZE`."""
    is_tiny = size.endswith("tiny")
    text = T5Config(**(T5_TINY if is_tiny else T5_BASE), decoder_start_token_id=0)
    codec = EncodecConfig(
        **(FILTERS_TINY if is_tiny else FILTERS),
        sampling_rate=32_000,
        upsampling_ratios=[8, 5, 4, 4],
        codebook_size=2048,
        target_bandwidths=[2.2],
        use_causal_conv=False,
        use_conv_shortcut=False,
    )
    width, layers, heads = SIZES[size]
    shape: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "ffn_dim": 4 * width,
    }
    parts = {"text_encoder": text, "audio_encoder": codec}
    if is_melody(size):
        return MusicgenMelodyConfig(**parts, decoder=MusicgenMelodyDecoderConfig(**shape))
    return MusicgenConfig(**parts, decoder=MusicgenDecoderConfig(**shape))


def write_checkpoint(size: str, folder: Path) -> None:
    """A checkpoint with random weights in fp32, as the published ones are, with the built-in tokenizer.

    No model is built in memory: all weights are views of one block of random numbers, each from another place on. To
    draw billions of them, and to copy them, would take minutes. One that already stands there is left alone.
    """
    if (folder / "config.json").exists():  # written last
        return
    folder.mkdir(parents=True, exist_ok=True)
    family = MusicgenMelodyForConditionalGeneration if is_melody(size) else MusicgenForConditionalGeneration
    with torch.device("meta"):
        model = family(configuration(size))
    model.config.decoder.decoder_start_token_id = model.config.decoder.pad_token_id
    for path in (ASSETS / "musicgen-tiny").glob("tokenizer*"):
        shutil.copyfile(path, folder / path.name)
    save_file(_weights(model), folder / "model.safetensors", metadata={"format": "pt"})
    model.generation_config.save_pretrained(folder)
    model.config.save_pretrained(folder)


def _weights(model: Any) -> dict[str, NDArray[np.float32]]:
    """A value for each weight of a model without any. What is shared by modules stands there once."""
    tensors = dict(model.named_parameters()) | model.audio_encoder.state_dict(prefix="audio_encoder.")
    largest = max(tensor.numel() for tensor in tensors.values())
    noise = STANDARD_DEVIATION * np.random.default_rng(0).standard_normal(largest + PLACES, dtype=np.float32)
    return {name: _values(name, tuple(tensor.shape), noise) for name, tensor in tensors.items()}


def _values(name: str, shape: tuple[int, ...], noise: NDArray[np.float32]) -> NDArray[np.float32]:
    """Noise for matrices, 1 for scales (the codec's `original0` too, the length of its kernels), 0 for biases."""
    if len(shape) > 1 and not name.endswith("original0"):
        first = zlib.crc32(name.encode()) % PLACES
        return noise[first : first + math.prod(shape)].reshape(shape)
    is_zero = "bias" in name or name.endswith("cluster_size")
    return np.full(shape, 0 if is_zero else 1, np.float32)
