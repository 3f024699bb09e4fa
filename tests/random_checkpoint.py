"""A tiny MusicGen checkpoint with random weights, in the layout of the real ones.

It makes noise, not music; tests load it from a folder as they would a published one.
"""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import torch
from transformers import (
    EncodecConfig,
    EncodecFeatureExtractor,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    MusicgenMelodyConfig,
    MusicgenMelodyDecoderConfig,
    MusicgenMelodyForConditionalGeneration,
    MusicgenProcessor,
    T5Config,
    T5Tokenizer,
)

from musicgen_dreamboothing.model.checkpoint import MELODY, TEXT

CODEBOOKS = 4  # a channel
CODEBOOK_SIZE = 64
SAMPLING_RATE = 16_000
FRAME_RATE = 50
BITS_PER_CODE = 6  # log2(CODEBOOK_SIZE)

MELODY_PROCESSOR = {
    "chroma": None,
    "feature_extractor_type": "MusicgenMelodyFeatureExtractor",
    "feature_size": 12,
    "hop_length": 4096,
    "n_fft": 16384,
    "num_chroma": 12,
    "padding_side": "right",
    "padding_value": 0.0,
    "processor_class": "MusicgenMelodyProcessor",
    "return_attention_mask": True,
    "sampling_rate": SAMPLING_RATE,
    "stem_indices": [3, 2],
}


def write_tiny_checkpoint(folder: Path, *, family: str = TEXT, audio_channels: int = 1, seed: int = 0) -> Path:
    """Writes a checkpoint with `save_pretrained` (under 2 MB) and returns its folder.

    Args:
        folder: where to.
        family: `musicgen` or `musicgen_melody`.
        audio_channels: 1, or 2 for a stereo checkpoint of 8 codebooks.
        seed: of the random weights; torch's own random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _model(family, audio_channels)
    _liven_codec(model)
    _spread_codebooks(model, seed)
    model.generation_config.update(
        do_sample=True,
        guidance_scale=3.0,
        max_length=1500,
        pad_token_id=CODEBOOK_SIZE,
        bos_token_id=CODEBOOK_SIZE,
        decoder_start_token_id=CODEBOOK_SIZE,
    )
    model.save_pretrained(folder)
    _write_processor(folder, family)
    return folder


def _model(family: str, audio_channels: int) -> Any:
    text = T5Config(
        vocab_size=len(_vocabulary()), d_model=32, d_ff=64, d_kv=16, num_heads=2, num_layers=2, decoder_start_token_id=0
    )
    codec = EncodecConfig(
        sampling_rate=SAMPLING_RATE,
        audio_channels=1,
        upsampling_ratios=[8, 5, 4, 2],
        num_filters=8,
        hidden_size=32,
        codebook_size=CODEBOOK_SIZE,
        target_bandwidths=[CODEBOOKS * FRAME_RATE * BITS_PER_CODE / 1000],
        use_causal_conv=False,
        num_lstm_layers=1,
    )
    decoder: dict[str, Any] = {
        "vocab_size": CODEBOOK_SIZE,
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "ffn_dim": 96,
        "num_codebooks": CODEBOOKS * audio_channels,
        "audio_channels": audio_channels,
        "pad_token_id": CODEBOOK_SIZE,
        "bos_token_id": CODEBOOK_SIZE,
        # transformers' own 0.02 makes a network of this width say the same whatever it is told
        "initializer_factor": 0.2,
    }
    if family == MELODY:
        return MusicgenMelodyForConditionalGeneration(
            MusicgenMelodyConfig(
                text_encoder=text,
                audio_encoder=codec,
                decoder=MusicgenMelodyDecoderConfig(**decoder),
                chroma_length=11,
                initializer_factor=0.2,
            )
        )
    return MusicgenForConditionalGeneration(
        MusicgenConfig(
            text_encoder=text, audio_encoder=codec, decoder=MusicgenDecoderConfig(**decoder), initializer_factor=0.2
        )
    )


@torch.no_grad()
def _liven_codec(model: Any) -> None:
    """Lets the codec's untrained convolutions pass on what they get: as initialised they fade it out layer by layer."""
    for name, parameter in model.audio_encoder.named_parameters():
        if name.endswith("original0"):
            parameter.mul_(1.7)
        elif name.endswith("bias") and "lstm" not in name:
            parameter.zero_()


@torch.no_grad()
def _spread_codebooks(model: Any, seed: int) -> None:
    """Fills the quantiser with what the encoder says of noises, so that different sounds get different codes.

    transformers leaves it at zero. Each level takes random residuals of the levels before it.
    """
    generator = torch.Generator().manual_seed(seed)
    volume = torch.logspace(-2, 0, 40).repeat_interleave(SAMPLING_RATE // 10)
    residual = model.audio_encoder.encoder((torch.randn(volume.shape, generator=generator) * volume)[None, None])
    residual = residual[0].T  # [frames, D]
    for level in model.audio_encoder.quantizer.layers:
        embed = residual[torch.randperm(len(residual), generator=generator)[:CODEBOOK_SIZE]]
        level.codebook.embed.copy_(embed)
        level.codebook.embed_avg.copy_(embed)
        residual = residual - embed[torch.cdist(residual, embed).argmin(-1)]


def _vocabulary() -> list[tuple[str, float]]:
    """A unigram vocabulary of single characters, T5's special tokens first."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    return special + [(character, -3.0) for character in string.ascii_letters + string.digits + string.punctuation]


def _write_processor(folder: Path, family: str) -> None:
    tokenizer = T5Tokenizer(vocab=_vocabulary(), extra_ids=0, additional_special_tokens=[])
    if family == TEXT:
        extractor = EncodecFeatureExtractor(feature_size=1, sampling_rate=SAMPLING_RATE)
        MusicgenProcessor(extractor, tokenizer).save_pretrained(folder)
        return
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(MELODY_PROCESSOR, indent=2))
