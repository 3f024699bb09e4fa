"""Decodes files with libav, and with libsndfile where libav reads nothing or stops before the end."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EINVAL
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import av
import numpy as np
import soundfile
from av.container import InputContainer
from numpy.typing import NDArray

from musicgen_dreamboothing.audio import mp3
from musicgen_dreamboothing.audio.waves import AudioError, Wave, error_text

_TAGS = (b"ID3", b"TAG", b"APETAGEX")  # in the middle of MP3 files that were joined: no sound is lost
_FRAMES = 65_536  # that libsndfile reads at once
_UNKNOWN_FRAMES = 2**48  # libsndfile gives 2^63 - 1 where it does not know the length
_LEAST_MISSING = 0.25  # seconds: above encoder delays
_LEAST_SHARE = 0.01  # of what was decoded

# Only these containers state a length in their header; for others libav counts, or guesses from a bit rate.
_STATED_OF_TRACK = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "flac", "wv", "tta", "ape"})
_STATED_OF_PCM = frozenset({"wav", "w64", "aiff", "au", "caf"})
_STATED_OF_FILE = frozenset({"matroska,webm", "flv"})

# Names of channels in libav.
_LEFT = frozenset({"FL", "BL", "FLC", "SL", "TFL", "TBL", "DL", "WL", "SDL", "TSL", "BFL", "SSL", "TTL"})
_RIGHT = frozenset({"FR", "BR", "FRC", "SR", "TFR", "TBR", "DR", "WR", "SDR", "TSR", "BFR", "SSR", "TTR"})


class Piece(NamedTuple):
    """Some samples, as they are in the file."""

    wave: Wave  # [1 or 2, n]
    rate: int  # Hz


@contextmanager
def opened(source: Path | str | bytes, label: str) -> Iterator[Reader]:
    """A reader of a path or of the bytes of a file. Raises `AudioError` where the file cannot be opened."""
    try:
        file: BinaryIO = io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")  # noqa: SIM115
    except (OSError, ValueError) as error:
        raise AudioError(f"{label}: {error_text(error)}") from error
    with file:
        yield Reader(file, label if isinstance(source, bytes) else str(source), label)


class Reader:
    """The first audio track of a file, and what could not be read from it."""

    def __init__(self, file: BinaryIO, name: str, label: str) -> None:
        self.file, self.name, self.label = file, name, label
        self.seconds = 0.0  # decoded so far
        self.skipped = 0  # packets that could not be decoded
        self.skipped_before = 0  # those of them before the part that is read, such as a track of a cue sheet
        self.stopped = ""  # why reading ended before the end of the file
        self.stated = 0.0  # seconds that the header states; 0 without, or where that is the length of its pictures
        self._skipped_last = 0  # packets since the last one that was decoded
        self._last_rate = 0

    def pieces(self) -> Iterator[Piece]:
        """The samples of the file. Raises `AudioError` where neither library reads a single one."""
        try:
            yield from self._by_libav()
        except AudioError:  # before the first piece
            sound = self._libsndfile()
            if sound is None:
                raise
            self.skipped, self.stopped = 0, ""
            yield from self._by_libsndfile(sound)
            if not self.seconds:
                raise
        else:
            yield from self._rest()

    def missing(self, end: float | None = None) -> str:
        """One phrase on what could not be read, up to `end` seconds; empty where nothing is missing."""
        faults = []
        if self.skipped > self.skipped_before:
            faults.append(f"damaged packets left out: {self.skipped - self.skipped_before}")
        if self.stopped:
            faults.append(f"reading stopped at {self.seconds:.1f} s ({self.stopped})")
        elif self._lacks(self.stated if end is None else end):
            total = f"{self.stated:.1f} s in its header" if end is None else f"{end:.1f} s where its track ends"
            faults.append(f"{self.seconds:.1f} s decoded of the {total}")
        return ", ".join(faults)

    def _lacks(self, seconds: float) -> bool:
        return seconds - self.seconds > max(_LEAST_MISSING, _LEAST_SHARE * self.seconds)

    def _by_libav(self) -> Iterator[Piece]:
        with self._container() as container:
            if not container.streams.audio:
                raise AudioError(f"{self.label}: has no sound track")
            track = container.streams.audio[0]
            for packet in self._packets(container, track):
                for piece in self._decoded(track, packet):
                    yield self._counted(piece)
            if not self.seconds:
                is_empty = not (self.skipped or self.stopped)
                raise AudioError(f"{self.label}: {'holds no samples' if is_empty else 'nothing in it can be decoded'}")
            self.stated = self._stated_seconds(container, track)

    @contextmanager
    def _container(self) -> Iterator[InputContainer]:
        try:
            # Tags are often not UTF-8. A playlist posing as music must not open other files or addresses.
            options = {"protocol_whitelist": "none"}
            container = av.open(_File(self.file, self.name), "r", metadata_errors="replace", container_options=options)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise AudioError(f"{self.label}: not a readable audio file ({error_text(error)})") from error
        with container:
            yield container

    def _packets(self, container: InputContainer, track: av.AudioStream) -> Iterator[av.Packet[av.AudioStream]]:
        try:
            yield from container.demux(track)
        except (av.FFmpegError, OSError) as error:
            self.stopped = error_text(error)

    def _decoded(self, track: av.AudioStream, packet: av.Packet[av.AudioStream]) -> list[Piece]:
        try:
            frames = [frame for frame in track.decode(packet) if frame.samples and frame.sample_rate]
            pieces = [Piece(_wave(frame), frame.sample_rate) for frame in frames]
        except (av.FFmpegError, ValueError):  # ValueError: a sample format or layout that PyAV does not convert
            if not bytes(packet).startswith(_TAGS):
                self.skipped += 1
                self._skipped_last += 1
            return []
        if pieces:
            self._skipped_last = 0
        return pieces

    def _counted(self, piece: Piece) -> Piece:
        self.seconds += piece.wave.shape[1] / piece.rate
        self._last_rate = piece.rate
        return piece

    def _stated_seconds(self, container: InputContainer, track: av.AudioStream) -> float:
        name, of_track = container.format.name, 0.0
        if track.duration is not None and track.time_base is not None:
            of_track = float(track.duration * track.time_base)
        if name == "mp3":
            return mp3.stated_seconds(self.file)
        if name in _STATED_OF_TRACK or (name in _STATED_OF_PCM and track.codec_context.name.startswith("pcm_")):
            return of_track
        # Here a length of the track is the estimate that libav makes where the header states none.
        is_stated = name in _STATED_OF_FILE and not of_track and len(container.streams) == 1
        return container.duration / av.time_base if is_stated and container.duration is not None else 0.0

    def _rest(self) -> Iterator[Piece]:
        """What libsndfile reads behind the point where libav stopped, if libav decoded all before it."""
        has_stopped = bool(self.stopped or self._skipped_last) and self.skipped == self._skipped_last
        sound = self._libsndfile() if has_stopped else None
        if sound is None or sound.samplerate != self._last_rate or not self._lacks(sound.frames / sound.samplerate):
            return
        faults, before = (self.skipped, self.stopped), self.seconds
        self.skipped, self.stopped = 0, ""
        yield from self._by_libsndfile(sound, round(before * sound.samplerate))
        if self.seconds == before:
            self.skipped, self.stopped = faults

    def _libsndfile(self) -> soundfile.SoundFile | None:
        """The file as libsndfile opens it; None where it does not."""
        try:
            self.file.seek(0)
            return soundfile.SoundFile(self.file)
        except (soundfile.SoundFileError, OSError, TypeError):  # TypeError: for `.raw`, of any content
            return None

    def _by_libsndfile(self, sound: soundfile.SoundFile, first: int = 0) -> Iterator[Piece]:
        """The samples from the frame `first` on."""
        with sound:
            try:
                if first:
                    sound.seek(first)
                while len(frames := sound.read(_FRAMES, dtype="float32", always_2d=True)):
                    yield self._counted(Piece(_to_wave(frames.T, [""] * sound.channels), sound.samplerate))
            except soundfile.SoundFileError as error:
                self.stopped = error_text(error)
            is_stated = sound.frames < _UNKNOWN_FRAMES and sound.format not in ("MPEG", "MP3")  # there an estimate
            self.stated = sound.frames / sound.samplerate if is_stated else 0.0


class _File:
    """A file for PyAV; libav would take a name such as `a:b.mp3` for an address, so `name` only gives the suffix.

    A failed seek returns a negative number, as in libav: PyAV would print an exception, or raise it at a later call.
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


def _wave(frame: av.AudioFrame) -> Wave:
    """A decoded frame of any sample format as `[1 or 2, n]`."""
    layout = frame.layout
    if frame.format.is_planar and layout.nb_channels >= 8:  # where PyAV 18 counts planes beyond the last, and crashes
        (frame,) = av.AudioResampler(format=frame.format.packed).resample(frame)
    samples = frame.to_ndarray()  # [C, n], or [1, n * C] where the channels alternate
    if not frame.format.is_planar:
        samples = samples.reshape(-1, layout.nb_channels).T
    return _to_wave(samples, [channel.name for channel in layout.channels])


def _to_wave(samples: NDArray[Any], names: list[str]) -> Wave:
    """`[C, n]` of any sample format -> `[1 or 2, n]`; `names` are libav's for the channels, "" where unknown."""
    with np.errstate(over="ignore", invalid="ignore"):  # values that are not finite are reported later
        wave = _to_float(samples)
        return wave if len(wave) <= 2 else _down_mix(wave, names)


def _to_float(samples: NDArray[Any]) -> Wave:
    """Integer samples brought to [-1, 1); float ones as they are, beyond full scale too."""
    if samples.dtype == np.uint8:
        return samples.astype(np.float32) / np.float32(128) - np.float32(1)
    if samples.dtype.kind == "i":
        return samples.astype(np.float32) / np.float32(2 ** (8 * samples.itemsize - 1))
    return samples.astype(np.float32)


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
