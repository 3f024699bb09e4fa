"""One song to its clips: silence off both ends, cut by the clock or on bars, brought to one loudness, written.

A song is held in memory for ten minutes at most; a longer one is cut stretch by stretch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.audio import Wave
from musicgen_dreamboothing.data.songs.song import TRAIN, Song
from musicgen_dreamboothing.listening.defects import SILENT_SHARE, silence
from musicgen_dreamboothing.listening.key import find_key
from musicgen_dreamboothing.listening.loudness import normalised
from musicgen_dreamboothing.listening.rhythm import Rhythm, find_rhythm

STRETCH_SECONDS = 600.0
TRIM_SECONDS = 0.02  # what is silent at both ends goes in steps of this length
NEARLY = 0.02  # of a bar that may be missing at the end of a song


@dataclass(frozen=True)
class Cutting:
    """How songs are cut.

    Attributes:
        rate: of the clips, in Hz: that of the codec.
        hop_length: clips last whole codec frames.
        max_seconds: length of a clip, with bars the most that one may have.
        min_seconds: a shorter rest is left out.
        bars: bars of a clip; 0 cuts by the clock.
        loudness: in LUFS, to which songs are brought; None leaves them as they are.
        listen: whether tempo and key are measured.
    """

    rate: int
    hop_length: int
    max_seconds: float
    min_seconds: float
    bars: int = 0
    loudness: float | None = None
    listen: bool = False

    @property
    def samples(self) -> int:
        """Length of a whole clip, a multiple of the hop length."""
        return self.whole_frames(int(self.max_seconds * self.rate))

    def whole_frames(self, samples: int) -> int:
        """So many samples without those of a frame that is not whole; at least one frame."""
        return max(1, samples // self.hop_length) * self.hop_length

    @property
    def listens(self) -> bool:
        """Whether songs are listened to, which Python does, rather than just decoded, which C does."""
        return bool(self.bars) or self.listen

    @property
    def signature(self) -> str:
        """Changes whenever songs must be cut again."""
        bars = f"/{self.bars} bars" if self.bars else ""
        loudness = "" if self.loudness is None else f"/{self.loudness:g} LUFS"
        listen = "/heard" if self.listen else ""
        return f"{self.max_seconds:g}s/{self.min_seconds:g}s@{self.rate}/{self.hop_length}{bars}{loudness}{listen}"


@dataclass
class SongRecord:
    """One line of `songs.jsonl`."""

    source: str
    fingerprint: str
    cutting: str
    split: str = TRAIN
    clips: list[dict[str, Any]] = field(default_factory=list)  # file_name, start, seconds, and what was heard
    skipped: str | None = None  # why the song gave no clip
    damage: str | None = None  # what of it could not be decoded
    rest: float = 0.0  # seconds left out between clips and at the end
    silent: int = 0  # clips left out because next to nothing is heard in them
    note: str | None = None  # what else a person should know
    beats: list[float] = field(default_factory=list)  # seconds in the song, where it was listened to
    downbeats: list[float] = field(default_factory=list)

    @property
    def stem(self) -> str:
        """What the names of its clips begin with."""
        return str(self.clips[0]["file_name"]).rpartition("-")[0]

    def is_done(self, song: Song, cutting: Cutting) -> bool:
        return (self.fingerprint, self.cutting) == (song.fingerprint, cutting.signature)


@dataclass(frozen=True)
class _Stretch:
    """Some minutes of a song, and what was heard in them.

    Attributes:
        wave: `[C, S]`.
        start: where it begins in the song, in samples.
        rhythm: None where nobody listened or nothing beats.
        facts: of all its clips: tempo and key, as far as they are sure.
    """

    wave: Wave
    start: int
    rhythm: Rhythm | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def cut_song(song: Song, stem: str, folder: Path, cutting: Cutting) -> SongRecord:
    """Decodes one song and writes its clips; what is wrong with the song is put on record, not raised."""
    record = SongRecord(song.name, song.fingerprint, cutting.signature, song.split)
    try:
        _write_clips(song, stem, folder, cutting, record)
    except audio.AudioWriteError:
        raise  # a full disk is no fault of the song
    except audio.AudioError as error:
        unlink(folder, record)
        record.skipped = str(error)
    return record


def cut_named(named: tuple[Song, str], folder: Path, cutting: Cutting) -> SongRecord:
    """The same for a song with the stem of its file names, as processes are given them."""
    return cut_song(*named, folder, cutting)


def unlink(folder: Path, record: SongRecord) -> None:
    """Removes the clips of a song."""
    for clip in record.clips:
        (folder / clip["file_name"]).unlink(missing_ok=True)
    record.clips = []


def _write_clips(song: Song, stem: str, folder: Path, cutting: Cutting, record: SongRecord) -> None:
    damages: list[str] = []
    waves = audio.stream(song.read(), cutting.rate, name=song.name, on_damage=damages.append)
    is_heard = False
    for stretch in _stretches(waves, cutting):
        is_heard = True
        heard = _listened(stretch, cutting, record)
        for start, wave in _pieces(heard, cutting, record):
            if silence(wave, cutting.rate) > SILENT_SHARE:
                record.silent += 1
                continue
            file_name = f"{stem}-{len(record.clips):03d}.flac"
            wave = np.pad(wave, ((0, 0), (0, -wave.shape[1] % cutting.hop_length)))
            audio.write(folder / file_name, wave, cutting.rate)
            begin, seconds = (round(n / cutting.rate, 3) for n in (heard.start + start, wave.shape[1]))
            record.clips.append({"file_name": file_name, "start": begin, "seconds": seconds} | heard.facts)
    record.damage = damages[0] if damages else song.damage
    if not record.clips:
        record.skipped = f"{song.name}: {_why_nothing(record, cutting, is_heard)}"


def _why_nothing(record: SongRecord, cutting: Cutting, is_heard: bool) -> str:
    if record.silent or not is_heard:
        return "is silent"
    return f"lasts {record.rest:.1f} s, less than the {cutting.min_seconds:g} s of a clip"


def _stretches(waves: Iterable[Wave], cutting: Cutting) -> Iterator[_Stretch]:
    """A song without the silence at its ends, in stretches of whole clips; nothing of a song that is silent."""
    size = cutting.samples * max(1, int(STRETCH_SECONDS * cutting.rate) // cutting.samples)
    step = max(1, round(TRIM_SECONDS * cutting.rate))
    begin, trimmed = 0, audio.blocks(waves, step)
    for block in trimmed:
        if not audio.is_silent(block):
            break
        begin += block.shape[1]
    else:
        return
    held: Wave | None = None
    for wave in audio.blocks(chain([block], trimmed), size):
        if held is not None:
            yield _Stretch(held, begin)
            begin += held.shape[1]
        held = wave
    if held is not None:
        yield _Stretch(_without_tail(held, step), begin)


def _without_tail(wave: Wave, step: int) -> Wave:
    """`[C, S]` up to the last step in which something is heard."""
    end = wave.shape[1]
    while end > 0 and audio.is_silent(wave[:, max(0, end - step) : end]):
        end -= step
    return wave[:, : max(0, end)]


def _listened(stretch: _Stretch, cutting: Cutting, record: SongRecord) -> _Stretch:
    """The stretch at the wanted loudness, with what is heard in it; its beats go on record."""
    rhythm: Rhythm | None = None
    facts: dict[str, Any] = {}
    if cutting.listens:
        rhythm = find_rhythm(stretch.wave, cutting.rate)
    if rhythm is not None:
        begin = stretch.start / cutting.rate
        record.beats += [round(begin + beat, 3) for beat in rhythm.beats]
        record.downbeats += [round(begin + beat, 3) for beat in rhythm.downbeats]
    if cutting.listen:
        key = find_key(stretch.wave, cutting.rate)
        facts["tempo"] = round(rhythm.tempo, 1) if rhythm is not None and rhythm.is_sure else None
        facts["key"] = key.name if key is not None and key.is_sure else None
    wave = stretch.wave
    if cutting.loudness is not None:
        wave = normalised(wave, cutting.rate, cutting.loudness)
    return _Stretch(wave, stretch.start, rhythm, facts)


def _pieces(stretch: _Stretch, cutting: Cutting, record: SongRecord) -> Iterator[tuple[int, Wave]]:
    """Where each clip begins in the stretch (samples), and the clip; what is left out is counted."""
    grid = _bars(stretch, cutting) if cutting.bars else None
    if cutting.bars and grid is None:
        record.note = f"{record.source}: has no bars that can be told apart, so it is cut by the clock"
    spans = _by_clock(stretch, cutting) if grid is None else grid
    used = 0
    for start, end in spans:
        used += end - start
        yield start, stretch.wave[:, start:end]
    record.rest += (stretch.wave.shape[1] - used) / cutting.rate


def _by_clock(stretch: _Stretch, cutting: Cutting) -> list[tuple[int, int]]:
    total, size = stretch.wave.shape[1], cutting.samples
    spans = [(start, min(start + size, total)) for start in range(0, total, size)]
    shortest = min(size, cutting.min_seconds * cutting.rate)
    return [(start, end) for start, end in spans if end - start >= shortest]


def _bars(stretch: _Stretch, cutting: Cutting) -> list[tuple[int, int]] | None:
    """Spans that begin on a downbeat and last whole bars, all equally many but the last; None without clear bars."""
    if stretch.rhythm is None or not stretch.rhythm.is_sure or len(stretch.rhythm.downbeats) < 2:
        return None
    downbeats = np.array(stretch.rhythm.downbeats)
    bar = float(np.median(np.diff(downbeats)))
    bars = min(cutting.bars, int((cutting.samples / cutting.rate) / bar))
    if not bars:
        return None
    spans = []
    for first in range(0, len(downbeats), bars):
        start = round(downbeats[first] * cutting.rate)
        left = int((stretch.wave.shape[1] - start) / (bar * cutting.rate) + NEARLY)
        seconds = min(bars, left) * bar
        if left >= bars or seconds >= cutting.min_seconds:
            end = start + cutting.whole_frames(round(seconds * cutting.rate))
            spans.append((start, min(end, stretch.wave.shape[1])))
    return spans or None
