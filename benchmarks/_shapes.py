"""The published shapes with random weights: T5-base, EnCodec 32 kHz and the decoders of all sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
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

SIZES = {  # width, layers and heads of the decoder; melody models have no cross-attention; tiny is for a quick look
    "tiny": (64, 2, 2),
    "small": (1024, 24, 16),
    "medium": (1536, 48, 24),
    "large": (2048, 48, 32),
    "melody": (1536, 48, 24),
    "melody-large": (2048, 48, 32),
}
FRAME_RATE = 50  # of the codec: 32 kHz / 640


def is_melody(size: str) -> bool:
    return size.startswith("melody")


def configuration(size: str) -> MusicgenConfig | MusicgenMelodyConfig:
    """What stands in the config.json of `facebook/musicgen-SIZE`."""
    text = T5Config(d_model=768, d_ff=3072, d_kv=64, num_layers=12, num_heads=12, decoder_start_token_id=0)
    codec = EncodecConfig(
        sampling_rate=32_000,
        num_filters=64,
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
    """A checkpoint with random weights, in fp32 as the published ones are."""
    torch.manual_seed(0)
    family = MusicgenMelodyForConditionalGeneration if is_melody(size) else MusicgenForConditionalGeneration
    model = family(configuration(size))
    model.config.decoder.decoder_start_token_id = model.config.decoder.pad_token_id
    model.save_pretrained(folder)
