"""Bytes to sound and sound to bytes: decode, resample, cut into blocks, write.

A wave is a float32 array `[C, S]`: C channels (1 or 2) of S samples, full scale at -1 and 1.
This room knows nothing about models or datasets.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from errno import EINVAL
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from uuid import uuid4

import av
import numpy as np
import soundfile
import soxr
from av.container import InputContainer
from numpy.typing import NDArray

__all__ = [
    "AUDIO_SUFFIXES",
    "WRITTEN_SUFFIXES",
    "AudioError",
    "AudioWriteError",
    "Wave",
    "blocks",
    "decode",
    "is_silent",
    "resample",
    "stream",
    "to_channels",
    "write",
]

Wave = NDArray[np.float32]

_SOUND = "aac ac3 aif aifc aiff amr ape au caf flac m4a m4b mka mp2 mp3 oga ogg opus tta w64 wav wma wv"
_PICTURES_AND_SOUND = "3gp asf avi flv m4v mkv mov mp4 mpeg mpg ogv ts webm wmv"
AUDIO_SUFFIXES: frozenset[str] = frozenset(f".{suffix}" for suffix in f"{_SOUND} {_PICTURES_AND_SOUND}".split())

_ENCODINGS = {".flac": ("FLAC", "PCM_16"), ".ogg": ("OGG", "VORBIS"), ".wav": ("WAV", "PCM_16")}
WRITTEN_SUFFIXES: frozenset[str] = frozenset(_ENCODINGS)

_WRITE_SAMPLES = 16_384  # libsndfile keeps a whole Vorbis write on the C stack: long ones crash the process


class AudioError(ValueError):
    """A file that cannot be read or written as audio; the message is one line that names the file."""


class AudioWriteError(AudioError):
    """The file system refuses a file: no fault of the sound."""


class _Piece(NamedTuple):
    wave: Wave  # [C, n]
    rate: int  # Hz


def stream(
    source: Path | str | bytes,
    rate: int,
    *,
    name: str | None = None,
    block_seconds: float = 10.0,
    on_damage: Callable[[str], None] | None = None,
) -> Iterator[Wave]:
    """Yields the first sound track of a file as waves `[C, n]` at `rate` Hz, each about `block_seconds` long.

    `source` is a path, or the bytes of a file, of any container libav knows, videos included. C is that of the
    track's first frame: 1 stays 1, 2 stays 2, more are mixed down to 2 (see `_down_mix`). Samples are not clipped.
    Memory does not grow with the length of the file.

    What is damaged is left out and the rest is yielded. `on_damage` is called once, after the last block, with a line
    that says what is missing. A cut-off end shows only where a header states the length: in mp3, FLAC, m4a and WebM,
    but not in Ogg, raw AAC and most WAV files.

    Raises `AudioError`, at the first block, where there is no sound to decode, and at any block that holds NaN or
    infinite samples. `name` stands for the file in messages, where `source` is bytes or a temporary path.
    """
    label = _label(source, name)
    with _opened(source, label) as container:
        track = _Track(container, label)
        samples = 0
        for rate_in, run in groupby(_same_channels(track.pieces()), key=lambda piece: piece.rate):
            block_size = max(1, round(block_seconds * rate_in))
            whole = (_finite(block, label) for block in blocks((piece.wave for piece in run), block_size))
            for block in _resampled(whole, rate_in, rate):
                samples += block.shape[1]
                yield block
        if not samples:
            raise AudioError(f"{label}: is shorter than one sample at {rate} Hz")
        if on_damage and (damage := track.damage()):
            on_damage(damage)


def decode(
    source: Path | str | bytes,
    rate: int,
    *,
    name: str | None = None,
    on_damage: Callable[[str], None] | None = None,
) -> Wave:
    """The whole of a file as one wave `[C, S]` at `rate` Hz: the blocks of `stream`, joined, with its errors."""
    return np.concatenate(list(stream(source, rate, name=name, on_damage=on_damage)), axis=-1)


def blocks(pieces: Iterable[Wave], size: int) -> Iterator[Wave]:
    """Re-cuts waves `[C, n]` of any lengths into blocks `[C, size]`; the last one is shorter where they do not fit.

    Holds no more than one block and the piece it is cutting. Raises ValueError where `size` is below 1.
    """
    if size < 1:
        raise ValueError(f"a block holds at least 1 sample, not {size}")
    held: list[Wave] = []
    missing = size
    for piece in pieces:
        while piece.shape[-1] >= missing:
            yield np.concatenate([*held, piece[:, :missing]], axis=-1)
            piece, held, missing = piece[:, missing:], [], size
        if piece.shape[-1]:
            held.append(piece)
            missing -= piece.shape[-1]
    if held:
        yield np.concatenate(held, axis=-1)


def to_channels(wave: Wave, channels: int) -> Wave:
    """`[1 or 2, S]` -> `[channels, S]`: mono is the mean of both sides, stereo is mono twice.

    Raises ValueError for any other number of channels, in or out.
    """
    if len(wave) == channels:
        return wave
    if (len(wave), channels) == (2, 1):
        mono: Wave = wave.mean(axis=0, keepdims=True, dtype=np.float32)
        return mono
    if (len(wave), channels) == (1, 2):
        return np.repeat(wave, 2, axis=0)
    raise ValueError(f"{len(wave)} channels cannot become {channels}: only 1 and 2 convert into each other")


def is_silent(wave: Wave, threshold_db: float = -60.0) -> bool:
    """Whether the peak of `[C, S]` stays below `threshold_db` dBFS; a wave without samples is silent."""
    return float(np.abs(wave).max(initial=0.0)) < 10 ** (threshold_db / 20)


def resample(wave: Wave, rate_in: int, rate_out: int) -> Wave:
    """`[C, S]` at `rate_in` Hz -> `[C, S * rate_out / rate_in]` at `rate_out` Hz; the same array where they agree."""
    if rate_in == rate_out:
        return wave
    return _channels_first(soxr.resample(np.ascontiguousarray(wave.T), rate_in, rate_out, quality="HQ"))


def write(path: Path, wave: Wave, rate: int) -> None:
    """Writes `[C, S]` at `rate` Hz as .wav or .flac (16 bit) or .ogg (Vorbis), whole or not at all.

    Samples beyond full scale are clipped. The sound of two equal waves is equal, and the bytes too but for .ogg, where
    libsndfile draws a random stream number. Raises `AudioError` for another suffix, NaN or infinite samples or a rate
    the format cannot hold, `AudioWriteError` where the file system refuses (full, read-only, missing folder).
    """
    label = _label(path, None)
    if path.suffix.lower() not in _ENCODINGS:
        raise AudioError(f"{label}: cannot write {path.suffix or 'no suffix'}, only {', '.join(sorted(_ENCODINGS))}")
    if wave.ndim != 2:
        raise AudioError(f"{label}: a wave is [channels, samples], not of shape {list(wave.shape)}")
    file_format, subtype = _ENCODINGS[path.suffix.lower()]
    try:
        encoded = _encoded(_finite(wave, label), rate, file_format, subtype)
    except soundfile.SoundFileError as error:
        raise AudioError(f"{label}: cannot hold this sound at {rate} Hz ({_reason(error)})") from error
    _put(path, encoded, label)


def _label(source: Path | str | bytes, name: str | None) -> str:
    """How messages name the file: always one printable line."""
    label = name or ("audio bytes" if isinstance(source, bytes) else str(source))
    return label if label.isprintable() else repr(label)


def _reason(error: Exception) -> str:
    """The one-line text of an error, without the number and file name that libav and the system put around it."""
    text = getattr(error, "strerror", None) or getattr(error, "error_string", None) or str(error)
    return " ".join(text.split()).rstrip(".") or type(error).__name__


class _File:
    """A file as PyAV reads it. A failed seek is answered in libav's way, with a negative number: PyAV would print an
    exception, or keep it and raise it at some later call.

    libav gets the file, not its name, in which it would take `a:b.mp3` for an address; the name only tells the suffix.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.file = file
        self.name = name
        self.read = file.read
        self.tell = file.tell

    def seek(self, offset: int, whence: int) -> int:
        try:
            return self.file.seek(offset, whence)
        except (OSError, ValueError):
            return -EINVAL


def _binary(source: Path | str | bytes) -> BinaryIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    return open(source, "rb")


@contextmanager
def _opened(source: Path | str | bytes, label: str) -> Iterator[InputContainer]:
    try:
        opened = _binary(source)
    except (OSError, ValueError) as error:
        raise AudioError(f"{label}: {_reason(error)}") from error
    with opened:
        file = _File(opened, label if isinstance(source, bytes) else str(source))
        try:
            # Tags are often not UTF-8. A playlist posing as music must not open other files or addresses.
            options = {"protocol_whitelist": "none"}
            container = av.open(file, "r", metadata_errors="replace", container_options=options)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise AudioError(f"{label}: not a readable audio file ({_reason(error)})") from error
        with container:
            yield container


class _Track:
    """The first sound track of a container, and the account of what could not be read from it."""

    def __init__(self, container: InputContainer, label: str) -> None:
        if not container.streams.audio:
            raise AudioError(f"{label}: has no sound track")
        self.container = container
        self.track = container.streams.audio[0]
        self.label = label
        self.seconds = 0.0  # decoded so far
        self.skipped = 0  # packets
        self.stopped = ""  # why reading ended before the end of the file

    def pieces(self) -> Iterator[_Piece]:
        """Waves as the file has them, frame by frame. Raises `AudioError` where there was not a single one."""
        for packet in self._packets():
            for piece in self._decoded(packet):
                self.seconds += piece.wave.shape[1] / piece.rate
                yield piece
        if not self.seconds:
            lacks_sound = not (self.skipped or self.stopped)
            raise AudioError(f"{self.label}: {'holds no samples' if lacks_sound else 'nothing in it can be decoded'}")

    def _packets(self) -> Iterator[av.Packet[av.AudioStream]]:
        try:
            yield from self.container.demux(self.track)
        except (av.FFmpegError, OSError) as error:
            self.stopped = _reason(error)

    def _decoded(self, packet: av.Packet[av.AudioStream]) -> list[_Piece]:
        try:
            frames = [frame for frame in self.track.decode(packet) if frame.samples and frame.sample_rate]
            return [_Piece(_wave(frame), frame.sample_rate) for frame in frames]
        except (av.FFmpegError, ValueError):  # ValueError: a sample format or layout that PyAV does not convert
            self.skipped += 1
            return []

    def damage(self) -> str:
        """One line on what is missing, empty where nothing is."""
        faults = []
        if self.skipped:
            faults.append(f"damaged packets left out: {self.skipped}")
        if self.stopped:
            faults.append(f"reading stopped at {self.seconds:.1f} s ({self.stopped})")
        elif self._stated_seconds() - self.seconds > max(0.25, 0.01 * self.seconds):  # above encoder delays, estimates
            faults.append(f"{self.seconds:.1f} s decoded of the {self._stated_seconds():.1f} s in its header")
        return f"{self.label}: {', '.join(faults)}" if faults else ""

    def _stated_seconds(self) -> float:
        """The length the header gives, 0 where it gives none: a video's may be that of its pictures."""
        if self.container.format.name == "aac":  # without a header: libav guesses from the first frames' bit rate
            return 0.0
        if self.track.duration is not None and self.track.time_base is not None:
            return float(self.track.duration * self.track.time_base)
        if len(self.container.streams) == 1 and self.container.duration is not None:
            return self.container.duration / av.time_base
        return 0.0


def _wave(frame: av.AudioFrame) -> Wave:
    """A decoded frame of any sample format as `[1 or 2, n]`."""
    layout = frame.layout
    if frame.format.is_planar and layout.nb_channels >= 8:  # where PyAV 18 counts planes beyond the last, and crashes
        (frame,) = av.AudioResampler(format=frame.format.packed).resample(frame)
    samples = frame.to_ndarray()  # [C, n], or [1, n * C] where the channels alternate
    if not frame.format.is_planar:
        samples = samples.reshape(-1, layout.nb_channels).T
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is found later, and named
        wave = _to_float(samples)
        return wave if len(wave) <= 2 else _down_mix(wave, [channel.name for channel in layout.channels])


def _to_float(samples: NDArray[Any]) -> Wave:
    """Integer samples brought to [-1, 1); float ones as they are, beyond full scale too."""
    if samples.dtype == np.uint8:
        return samples.astype(np.float32) / np.float32(128) - np.float32(1)
    if samples.dtype.kind == "i":
        return samples.astype(np.float32) / np.float32(2 ** (8 * samples.itemsize - 1))
    return samples.astype(np.float32)


_LEFT = frozenset({"FL", "BL", "FLC", "SL", "TFL", "TBL", "DL", "WL", "SDL", "TSL", "BFL", "SSL", "TTL"})
_RIGHT = frozenset({"FR", "BR", "FRC", "SR", "TFR", "TBR", "DR", "WR", "SDR", "TSR", "BFR", "SSR", "TTR"})


def _down_mix(wave: Wave, names: list[str]) -> Wave:
    """`[C > 2, n]` -> `[2, n]` after ITU-R BS.775, with libav's channel names (FL, FC, LFE, SR...).

    Front channels count 1 on their side, all others 1/sqrt(2) on theirs, or on both where they are in the middle or
    have no known place; LFE is left out. Each side is divided by its sum, so that nothing can clip.
    """
    weights = np.array([_sides(name) for name in names]).T  # [2, C]
    weights /= np.maximum(1.0, weights.sum(axis=1, keepdims=True))
    return weights.astype(np.float32) @ wave


def _sides(name: str) -> tuple[float, float]:
    """The weights of one channel in left and right."""
    if name.startswith("LFE"):
        return 0.0, 0.0
    weight = 1.0 if name in ("FL", "FR") else 0.5**0.5
    left, right = name in _LEFT, name in _RIGHT
    return (0.0 if right else weight), (0.0 if left else weight)


def _same_channels(pieces: Iterable[_Piece]) -> Iterator[_Piece]:
    """Brings all pieces to the channels of the first: radio recordings change between mono and stereo on the way."""
    channels = 0
    for wave, rate in pieces:
        channels = channels or len(wave)
        yield _Piece(to_channels(wave, channels), rate)


def _resampled(waves: Iterable[Wave], rate_in: int, rate_out: int) -> Iterator[Wave]:
    """One continuous sound `[C, n]` piece by piece from `rate_in` to `rate_out` Hz, without seams."""
    if rate_in == rate_out:
        yield from waves
        return
    resampler = None
    for wave in waves:
        resampler = resampler or soxr.ResampleStream(rate_in, rate_out, len(wave), quality="HQ")
        yield from _if_any(resampler.resample_chunk(np.ascontiguousarray(wave.T)))
    if resampler:
        yield from _if_any(resampler.resample_chunk(np.empty((0, len(wave)), np.float32), last=True))


def _if_any(frames: NDArray[np.float32]) -> Iterator[Wave]:
    """soxr returns `[0, C]` as long as its filter is filling."""
    if len(frames):
        yield _channels_first(frames)


def _channels_first(frames: NDArray[np.float32]) -> Wave:
    return np.ascontiguousarray(frames.T)


def _finite(wave: Wave, label: str) -> Wave:
    if not np.isfinite(wave).all():
        raise AudioError(f"{label}: holds NaN or infinite samples")
    return wave


def _encoded(wave: Wave, rate: int, file_format: str, subtype: str) -> bytes:
    """The bytes of the file. Encoded in memory, since libsndfile hides what the file system says."""
    memory = io.BytesIO()
    with soundfile.SoundFile(memory, "w", rate, len(wave), subtype, format=file_format) as file:
        for start in range(0, wave.shape[1], _WRITE_SAMPLES):
            file.write(np.clip(wave[:, start : start + _WRITE_SAMPLES], -1.0, 1.0).T)
    return memory.getvalue()


def _put(path: Path, content: bytes, label: str) -> None:
    """Writes under another name in the same folder, then renames: no one ever sees half a file."""
    temporary = path.with_name(f".{uuid4().hex}.part")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        raise AudioWriteError(f"{label}: cannot be written ({_reason(error)})") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
