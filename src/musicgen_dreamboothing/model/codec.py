"""EnCodec: waveforms to codes and back. Stereo checkpoints hear left and right apart, in turn."""

from __future__ import annotations

import torch
from transformers import EncodecModel

from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.model.checkpoint import Checkpoint


@torch.inference_mode()
def encode(codec: EncodecModel, waves: torch.Tensor, checkpoint: Checkpoint) -> torch.Tensor:
    """Waveforms of equal length to codes.

    Args:
        codec: the checkpoint's EnCodec.
        waves: `[B, C, S]` at the codec's rate, C the checkpoint's audio channels. S is a multiple
            of the hop length, so that a batch gives what each clip alone would give.
        checkpoint: says how many codebooks there must be.

    Returns:
        int64 codes `[B, K, T]`, T = S / hop length.
    """
    waves = waves.to(codec.device)
    codes = torch.stack([_encode_mono(codec, waves[:, [channel]]) for channel in range(waves.shape[1])], dim=2)
    codes = codes.flatten(1, 2)  # [B, k, channel, T] -> left and right of each codebook side by side
    if codes.shape[1] != checkpoint.codebooks:
        raise UserError(
            f"the codec of {checkpoint.name} gives {codes.shape[1]} codebooks, its decoder wants {checkpoint.codebooks}"
        )
    return codes


def _encode_mono(codec: EncodecModel, wave: torch.Tensor) -> torch.Tensor:
    """`[B, 1, S]` -> `[B, k, T]`."""
    codes = codec.encode(wave).audio_codes  # [frames, B, k, T]; one frame unless the codec works in chunks
    return codes[0]


@torch.inference_mode()
def decode(codec: EncodecModel, codes: torch.Tensor, checkpoint: Checkpoint) -> torch.Tensor:
    """Codes `[B, K, T]` to waveforms `[B, C, T * hop length]`, float32 on the CPU."""
    channels = checkpoint.audio_channels
    codes = codes.to(codec.device)
    waves = [
        codec.decode(codes[None, :, channel::channels], [None] * codes.shape[0]).audio_values
        for channel in range(channels)
    ]
    return torch.cat(waves, dim=1).float().cpu()
