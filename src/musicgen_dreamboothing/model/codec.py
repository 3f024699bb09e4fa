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

# Frames that convolutions process at once. The first layers of the encoder have 64 channels at the sampling rate: a
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
    if codec.device.type == "cpu" and _is_local(codec):
        return torch.stack([_decode_in_chunks(codec, clip, checkpoint) for clip in codes])
    waves = [
        codec.decode(codes[None, :, channel::channels], [None] * codes.shape[0]).audio_values
        for channel in range(channels)
    ]
    return torch.cat(waves, dim=1).float().cpu()


def _decode_in_chunks(codec: EncodecModel, codes: torch.Tensor, checkpoint: Checkpoint) -> torch.Tensor:
    """`[K, T]` -> `[C, S]`."""
    decoder = StreamDecoder(codec, checkpoint)
    chunks = codes.split(CPU_FRAMES, dim=-1)
    waves = [decoder.push(chunk, last=number == len(chunks)) for number, chunk in enumerate(chunks, 1)]
    return torch.cat(waves, dim=-1)


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


class _Frames:
    """The latest of a growing row of frames `[..., T]`, numbered from the beginning of the clip."""

    def __init__(self) -> None:
        self._latest: torch.Tensor | None = None
        self._begin = 0  # of the latest ones
        self.end = 0

    def append(self, frames: torch.Tensor) -> None:
        """Adds frames at the end."""
        self._latest = frames if self._latest is None else torch.cat([self._latest, frames], dim=-1)
        self.end += frames.shape[-1]

    def read(self, begin: int, end: int) -> torch.Tensor:
        """Frames `begin` to `end`; the ones before are forgotten."""
        assert self._latest is not None
        self._latest, self._begin = self._latest[..., begin - self._begin :], begin
        return self._latest[..., : end - begin]


class _Side:
    """One channel of a `StreamDecoder`."""

    def __init__(self, codec: EncodecModel) -> None:
        self._codec = codec
        self._first, self._lstm, *rest = codec.decoder.layers
        self._first_reach = _decoder_reach([self._first])
        self._rest_reach = _decoder_reach(rest)
        self._rest = ChannelsLast(rest) if codec.device.type == "cpu" else nn.Sequential(*rest)
        self._codes, self._hidden = _Frames(), _Frames()  # [k, T], and outputs of the LSTM [1, D, T]
        self._state: tuple[torch.Tensor, torch.Tensor] | None = None
        self._decoded = 0  # frames that the last layer is done with

    @property
    def lookahead(self) -> int:
        return self._first_reach + self._rest_reach

    def push(self, codes: torch.Tensor, last: bool) -> torch.Tensor:
        """`[k, T]` -> `[1, S]`."""
        self._codes.append(codes)
        self._run_lstm(self._codes.end if last else self._codes.end - self._first_reach)
        return self._decode(self._hidden.end if last else self._hidden.end - self._rest_reach)

    def _run_lstm(self, end: int) -> None:
        """Runs the first convolution and the LSTM up to a frame."""
        done = self._hidden.end
        if end <= done:
            return
        begin = max(0, done - self._first_reach)
        window = self._codes.read(begin, end + self._first_reach)
        hidden = self._first(self._codec.quantizer.decode(window[:, None]))
        hidden = hidden[..., done - begin : end - begin].permute(2, 0, 1)
        output, self._state = self._lstm.lstm(hidden, self._state)
        self._hidden.append((output + hidden).permute(1, 2, 0))

    def _decode(self, end: int) -> torch.Tensor:
        """Runs the other layers up to a frame: `[1, S]`."""
        if end <= self._decoded:
            return torch.zeros(1, 0)
        begin = max(0, self._decoded - self._rest_reach)
        hidden = self._hidden.read(begin, end + self._rest_reach)
        frames, decoded = hidden.shape[-1], self._rest(hidden)
        hop = decoded.shape[-1] // frames
        wave = decoded[0, :, (self._decoded - begin) * hop : (end - begin) * hop]
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
