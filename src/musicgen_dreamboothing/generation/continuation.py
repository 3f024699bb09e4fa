"""Sound that music continues: its end as codes, at the loudness of training, and its way back into the result."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import EncodecModel

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.analysis.levels import Levels
from musicgen_dreamboothing.analysis.loudness import gain_to
from musicgen_dreamboothing.audio import Wave
from musicgen_dreamboothing.console import UserError, log
from musicgen_dreamboothing.model import codec as codecs
from musicgen_dreamboothing.model.checkpoint import Checkpoint

TRAINED_LOUDNESS = -14.0  # LUFS of each song, to which `prepare` brings it by default
FADE_SECONDS = 0.1  # from the original to the decoded sound: their phases differ


@dataclass(frozen=True, eq=False)
class AudioPrompt:
    """The end of a sound.

    Attributes:
        codes: int64 `[K, P]` on the CPU.
        wave: the original `[C, P * hop length]` at `rate` Hz.
        gain: the factor by which `wave` was multiplied before it was encoded.
        rate: Hz.
    """

    codes: torch.Tensor
    wave: Wave
    gain: float
    rate: int

    def restored(self, pieces: Iterable[Wave], *, keep: bool) -> Iterator[Wave]:
        """The sound of a clip that begins with `codes`, at the original level.

        Args:
            pieces: the decoded clip in pieces `[C, n]`.
            keep: begin with the original, which fades into the decoded sound in its last 0.1 s; otherwise leave it out.
        """
        samples = self.wave.shape[1]
        fade = min(samples, round(FADE_SECONDS * self.rate))
        original = np.ones(samples, np.float32)  # its weight
        original[samples - fade :] = np.linspace(1, 0, fade, dtype=np.float32)
        first = 0
        for piece in pieces:
            wave, here = piece / np.float32(self.gain), slice(first, min(first + piece.shape[1], samples))
            known = max(0, here.stop - here.start)
            first += piece.shape[1]
            if known and keep:
                weight = original[here]
                wave[:, :known] = weight * self.wave[:, here] + (1 - weight) * wave[:, :known]
            yield wave if keep else wave[:, known:]


def read_audio_prompt(path: Path, seconds: float, codec: EncodecModel, checkpoint: Checkpoint) -> AudioPrompt:
    """The last seconds of a file.

    The gain is that of `prepare`: from the loudness of all of the file. The sound is resampled first, then cut to whole
    frames from the left, so that its end stays.

    Raises:
        UserError: no such file, or its end is silent or shorter than a frame.
        AudioError: it can't be decoded.
    """
    if not path.is_file():
        raise UserError(f"no file at {path} to continue; --continue_from takes audio files")
    rate, hop = checkpoint.sampling_rate, checkpoint.hop_length
    tail = _Tail(audio.stream(path, rate, on_damage=log), max(1, round(seconds * checkpoint.frame_rate)) * hop)
    levels = Levels(tail, rate)
    frames = tail.wave.shape[1] // hop
    wave = tail.wave[:, tail.wave.shape[1] - frames * hop :]
    if not frames:
        raise UserError(f"{path} is shorter than a frame of {hop} samples at {rate} Hz; nothing can continue it")
    if audio.is_silent(wave):
        raise UserError(f"the last {frames / checkpoint.frame_rate:g} s of {path} are silent; cut the silence off")
    wave = audio.to_channels(wave, checkpoint.audio_channels)
    gain = gain_to(levels.loudness, levels.peak, TRAINED_LOUDNESS)
    codes = codecs.encode(codec, torch.from_numpy(wave * np.float32(gain))[None], checkpoint)[0].cpu()
    return AudioPrompt(codes, wave, gain, rate)


class _Tail:
    """Passes waves `[C, n]` on and keeps the last samples of them in `wave`."""

    def __init__(self, waves: Iterable[Wave], samples: int) -> None:
        self._waves, self._samples = waves, samples
        self.wave: Wave = np.zeros((1, 0), np.float32)

    def __iter__(self) -> Iterator[Wave]:
        for wave in self._waves:
            before = self.wave if self.wave.shape[1] else wave[:, :0]
            self.wave = np.concatenate([before, wave], axis=1)[:, -self._samples :]
            yield wave
