"""EnCodec: waveforms to codes and back. Stereo checkpoints encode left and right separately."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize
from transformers import EncodecModel
from transformers.models.encodec.modeling_encodec import EncodecLSTM

from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.model.checkpoint import Checkpoint
from musicgen_dreamboothing.model.convolutions import ChannelsLast

# Frames that the convolutions of the encoder process at once. The first layers have 64 channels at the sampling rate: a
# quarter of a GB each for 30 s. In chunks a CPU is faster, and both CPU and GPU need less memory.
CPU_FRAMES, GPU_FRAMES = 100, 1500


@torch.inference_mode()
def encode(codec: EncodecModel, waves: torch.Tensor, checkpoint: Checkpoint) -> torch.Tensor:
    """Waveforms of equal length to codes.

    Args:
        codec: the checkpoint's EnCodec.
        waves: `[B, C, S]` at the codec's rate, C the checkpoint's audio channels, S a multiple of the hop length: then
            codes do not depend on the batch.
        checkpoint: the number of codebooks is compared with it.

    Returns:
        int64 codes `[B, K, T]`, T = S / hop length.
    """
    waves = waves.to(codec.device)
    codes = torch.stack([_encode_mono(codec, waves[:, [channel]]) for channel in range(waves.shape[1])], dim=2)
    codes = codes.flatten(1, 2)  # [B, k, channel, T] -> left and right of each codebook side by side
    if codes.shape[1] != checkpoint.codebooks:
        raise UserError(
            f"the codec of {checkpoint.name} gives {codes.shape[1]} codebooks, its decoder needs {checkpoint.codebooks}"
        )
    return codes


def _encode_mono(codec: EncodecModel, wave: torch.Tensor) -> torch.Tensor:
    """`[B, 1, S]` -> `[B, k, T]`."""
    if not _is_local(codec) or codec.config.normalize:
        codes = codec.encode(wave).audio_codes  # [frames, B, k, T]; one frame unless the codec works in chunks
        return codes[0]
    layers = list(codec.encoder.layers)
    split = next(place for place, layer in enumerate(layers) if isinstance(layer, EncodecLSTM))
    with parametrize.cached():  # or each stretch would make the normalised weights again
        hidden = _convolve(layers[:split], wave, codec.config.hop_length)
        for layer in layers[split:]:
            hidden = layer(hidden)
        return codec.quantizer.encode(hidden, codec.config.target_bandwidths[0]).transpose(0, 1)


def _convolve(layers: list[nn.Module], wave: torch.Tensor, hop: int) -> torch.Tensor:
    """`[B, 1, S]` -> `[B, D, T]` in chunks with their receptive field as margins, which are cut off again."""
    on_cpu = wave.device.type == "cpu"
    clips = 1 if on_cpu else len(wave)
    frames = CPU_FRAMES if on_cpu else max(1, GPU_FRAMES // clips)
    convolved = ChannelsLast(layers) if on_cpu else nn.Sequential(*layers)
    reach = -(-_encoder_reach(layers) // hop)
    total = wave.shape[-1] // hop
    convolved_clips = []
    for part in wave.split(clips):
        chunks = []
        for begin in range(0, total, frames):
            end, start = min(total, begin + frames), max(0, begin - reach)
            hidden = convolved(part[..., start * hop : min(total, end + reach) * hop])
            chunks.append(hidden[..., begin - start : end - start])
        convolved_clips.append(torch.cat(chunks, dim=-1))
    return torch.cat(convolved_clips)


def _encoder_reach(layers: list[nn.Module]) -> int:
    """The receptive field of an encoder's convolutions to each side, in samples, at most."""
    samples, step = 0, 1  # of the layer at hand, in samples of the sound
    for layer in (layer for part in layers for layer in part.modules() if isinstance(layer, nn.Conv1d)):
        samples += (layer.kernel_size[0] - 1) * layer.dilation[0] * step
        step *= layer.stride[0]
    return samples


def _is_local(codec: EncodecModel) -> bool:
    """Whether all layers but LSTMs have a bounded receptive field, so that a clip can be processed in chunks."""
    return codec.config.norm_type == "weight_norm" and codec.config.chunk_length is None


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


def decode_clip(codec: EncodecModel, codes: torch.Tensor, checkpoint: Checkpoint) -> np.ndarray:
    """Codes `[K, T]` of one clip to its wave `[C, S]`; clips are decoded one by one to save memory."""
    return decode(codec, codes[None], checkpoint)[0].numpy()


class StreamDecoder:
    """Decodes codes as they come, into the wave that `decode` gives for all of them, up to rounding.

    The LSTM after the first convolution keeps its state between pieces. All other layers have a bounded receptive
    field, so each piece is decoded with that many frames on both sides, which are cut off.
    """

    def __init__(self, codec: EncodecModel, checkpoint: Checkpoint) -> None:
        if not _is_local(codec):
            raise UserError(f"the codec of {checkpoint.name} normalises entire clips, so it can't decode pieces")
        self._codec, self._channels, self._hop = codec, checkpoint.audio_channels, checkpoint.hop_length
        self._sides = [_Side(codec) for _ in range(self._channels)]

    @property
    def lookahead(self) -> int:
        """Number of following frames that the sound of a frame depends on."""
        return self._sides[0].lookahead

    @torch.inference_mode()
    def push(self, codes: torch.Tensor, *, last: bool) -> torch.Tensor:
        """The next codes `[K, T]` -> the sound that is final now, float32 `[C, S]` on the CPU.

        Frames wait for the `lookahead` frames after them unless these codes are the last ones.
        """
        codes = codes.to(self._codec.device)
        sides = zip(self._sides, range(self._channels), strict=True)
        return torch.cat([side.push(codes[channel :: self._channels], last) for side, channel in sides]).float().cpu()


class _Side:
    """One channel of a `StreamDecoder`."""

    def __init__(self, codec: EncodecModel) -> None:
        self._codec = codec
        self._first, self._lstm, *self._rest = codec.decoder.layers
        self._first_reach = _decoder_reach([self._first])
        self._rest_reach = _decoder_reach(self._rest)
        # What is still needed: codes [k, frames] and outputs of the LSTM [1, D, frames], and their first frames.
        self._codes: torch.Tensor | None = None
        self._hidden: torch.Tensor | None = None
        self._first_code = self._first_hidden = 0
        self._state: tuple[torch.Tensor, torch.Tensor] | None = None
        self._recurrent = self._decoded = 0  # frames that the LSTM and the last layer are done with

    @property
    def lookahead(self) -> int:
        return self._first_reach + self._rest_reach

    def push(self, codes: torch.Tensor, last: bool) -> torch.Tensor:
        """`[k, T]` -> `[1, S]`."""
        self._codes = codes if self._codes is None else torch.cat([self._codes, codes], dim=-1)
        total = self._first_code + self._codes.shape[-1]
        self._run_lstm(total if last else total - self._first_reach)
        wave = self._decode(self._recurrent if last else self._recurrent - self._rest_reach)
        self._forget()
        return wave

    def _forget(self) -> None:
        """Drops what no later frame depends on, so that memory does not grow with the length of the sound."""
        if self._codes is not None:
            first = max(0, self._recurrent - self._first_reach)
            self._codes, self._first_code = self._codes[:, first - self._first_code :], first
        if self._hidden is not None:
            first = max(0, self._decoded - self._rest_reach)
            self._hidden, self._first_hidden = self._hidden[..., first - self._first_hidden :].clone(), first

    def _run_lstm(self, end: int) -> None:
        """Runs the first convolution and the LSTM up to a frame."""
        if end <= self._recurrent:
            return
        assert self._codes is not None
        begin = max(0, self._recurrent - self._first_reach)
        window = self._codes[:, begin - self._first_code : end + self._first_reach - self._first_code]
        hidden = self._first(self._codec.quantizer.decode(window[:, None]))
        hidden = hidden[..., self._recurrent - begin : end - begin].permute(2, 0, 1)
        output, self._state = self._lstm.lstm(hidden, self._state)
        new = (output + hidden).permute(1, 2, 0)
        self._hidden = new if self._hidden is None else torch.cat([self._hidden, new], dim=-1)
        self._recurrent = end

    def _decode(self, end: int) -> torch.Tensor:
        """Runs the other layers up to a frame: `[1, S]`."""
        if end <= self._decoded:
            return torch.zeros(1, 0)
        assert self._hidden is not None
        begin = max(0, self._decoded - self._rest_reach)
        hidden = self._hidden[..., begin - self._first_hidden : end + self._rest_reach - self._first_hidden]
        frames = hidden.shape[-1]
        for layer in self._rest:
            hidden = layer(hidden)
        hop = hidden.shape[-1] // frames
        wave = hidden[0, :, (self._decoded - begin) * hop : (end - begin) * hop]
        self._decoded = end
        return wave.cpu()


def _decoder_reach(layers: list[nn.Module]) -> int:
    """The receptive field of a decoder's layers to each side, in frames, at most."""
    samples = 0  # at the rate of the layer at hand, from the last one to the first
    convolutions = [layer for part in layers for layer in part.modules()]
    for layer in reversed(convolutions):
        if isinstance(layer, nn.ConvTranspose1d):
            samples = -(-samples // layer.stride[0]) + 1
        elif isinstance(layer, nn.Conv1d):
            samples += (layer.kernel_size[0] - 1) * layer.dilation[0]
    return samples
