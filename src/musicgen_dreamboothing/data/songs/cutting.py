"""Cuts one song into clips: without the silence at its ends, by the clock or on bars, with one gain for all clips.

Memory does not grow with the length of a song: it is measured block by block, analysed in sections of minutes, and cut
clip by clip.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.analysis.defects import SILENT_SHARE, silence
from musicgen_dreamboothing.analysis.key import find_key
from musicgen_dreamboothing.analysis.levels import Levels
from musicgen_dreamboothing.analysis.loudness import gain_to
from musicgen_dreamboothing.analysis.rhythm import Rhythm, find_rhythm
from musicgen_dreamboothing.audio import Wave
from musicgen_dreamboothing.data.songs.song import MELODY_FILE, STEMS_FILE, TRAIN, Song
from musicgen_dreamboothing.data.songs.song_audio import INVALID, SongAudio, Span, slices

SECTION_SECONDS = 300.0  # of a song that are analysed at once; a longer song is divided into equal sections
VERSION = 2  # of the rules in this file: another number has all songs cut again
MELODY_TOLERANCE = 0.128  # seconds, a frame of chroma, by which a recording with the melody may differ from its song
NEARLY = 0.02  # of a bar that may be missing at the end of a song


@dataclass(frozen=True)
class Cutting:
    """How songs are cut."""

    rate: int  # Hz, of the clips and the codec
    hop_length: int  # samples of a codec frame; clips last whole frames
    max_seconds: float  # length of a clip, with bars the maximum
    min_seconds: float  # a shorter rest is left out
    bars: int = 0  # of a clip; 0 cuts by the clock
    loudness: float | None = None  # target for each song, in LUFS; None keeps songs as they are, within full scale
    listen: bool = False  # whether tempo and key are measured

    @property
    def samples(self) -> int:
        """Length of a full clip, a multiple of the hop length."""
        return self.full_frames(int(self.max_seconds * self.rate))

    def full_frames(self, samples: int) -> int:
        """`samples` rounded down to full codec frames; at least one."""
        return max(1, samples // self.hop_length) * self.hop_length

    @property
    def listens(self) -> bool:
        """Whether songs are analysed, which is slow in Python, and not only decoded, which C does."""
        return bool(self.bars) or self.listen

    @property
    def signature(self) -> str:
        """Changes whenever songs must be cut again."""
        bars = f"/{self.bars} bars" if self.bars else ""
        loudness = "" if self.loudness is None else f"/{self.loudness:g} LUFS"
        listen = "/heard" if self.listen else ""
        size = f"{self.max_seconds:g}s/{self.min_seconds:g}s@{self.rate}/{self.hop_length}"
        return f"v{VERSION}/{size}{bars}{loudness}{listen}"


@dataclass
class SongRecord:
    """One line of `songs.jsonl`."""

    source: str
    fingerprint: str
    cutting: str
    split: str = TRAIN
    clips: list[dict[str, Any]] = field(default_factory=list)  # file_name, start, seconds, and what was measured
    skipped: str | None = None  # why the song gave no clip
    damage: str | None = None  # what of it could not be decoded
    rest: float = 0.0  # seconds left out between clips and at the end
    silent: int = 0  # clips left out that are mostly silent
    invalid: int = 0  # clips left out because of samples that are NaN, infinite or far beyond the rest of the song
    offset: float = 0.0  # the largest DC offset, which was removed, as a share of the song's peak
    loudness: float | None = None  # of all its clips together, in LUFS; None where it was not changed
    soft_by: float = 0.0  # LU that it stays below the loudness of the others because of its peaks
    note: str | None = None  # what else the user should know
    melody: str | None = None  # what is wrong with the recording that has its melody
    beats: list[float] = field(default_factory=list)  # seconds in the song, where it was listened to
    downbeats: list[float] = field(default_factory=list)

    @property
    def stem(self) -> str:
        """What the names of its clips begin with."""
        return str(self.clips[0]["file_name"]).rpartition("-")[0]

    @property
    def files(self) -> list[str]:
        """Names of all files in `clips/`: of its clips, and of what has their melodies."""
        return [clip[key] for clip in self.clips for key in ("file_name", MELODY_FILE, STEMS_FILE) if key in clip]

    def is_done(self, song: Song, cutting: Cutting) -> bool:
        return (self.fingerprint, self.cutting) == (song.fingerprint, cutting.signature)


@dataclass(frozen=True)
class _Section:
    """Some minutes of a song that are analysed together: samples `start` to `end`, with their rhythm, tempo and key."""

    start: int
    end: int
    rhythm: Rhythm | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def cut_song(song: Song, stem: str, folder: Path, cutting: Cutting) -> SongRecord:
    """Decodes one song and writes its clips; errors of the song are recorded, not raised."""
    record = SongRecord(song.name, song.fingerprint, cutting.signature, song.split)
    try:
        _write_clips(song, stem, folder, cutting, record)
    except audio.AudioWriteError:
        raise  # a full disk is no fault of the song
    except audio.AudioError as error:
        for name in record.files:
            (folder / name).unlink(missing_ok=True)
        record.clips, record.skipped = [], str(error)
    return record


def cut_named(named: tuple[Song, str], folder: Path, cutting: Cutting) -> SongRecord:
    """As `cut_song`, for a pair of a song and the stem of its file names."""
    return cut_song(*named, folder, cutting)


def _write_clips(song: Song, stem: str, folder: Path, cutting: Cutting, record: SongRecord) -> None:
    """Three passes over the song: its level, its rhythm and key, its clips."""
    sound = SongAudio(song, cutting.rate)
    gain = _gain(sound.levels, cutting, record)
    sections = _sections(sound.levels, cutting)
    if cutting.listens:
        sections = _analysed(sound, sections, cutting, record)
    clips = [(span, section.facts) for section in sections for span in _spans(section, cutting, record)]
    waves, written = slices(sound.waves(), [span for span, _ in clips]), list[Span]()
    for (span, facts), wave in zip(clips, waves, strict=True):
        if sound.is_invalid(span):
            record.invalid += 1
        elif silence(wave * gain, cutting.rate) > SILENT_SHARE:
            record.silent += 1
        else:
            record.clips.append(_written(wave * gain, span, facts, f"{stem}-{len(record.clips):03d}", folder, cutting))
            written.append(span)
    if song.melody is not None and written:
        _write_melodies(song, written, sound.levels.samples, folder, cutting, record)
    record.damage = sound.damage or song.damage
    record.offset = round(max(sound.levels.offset_share, song.offset), 4)
    if not record.clips:
        record.skipped = f"{song.name}: {_why_nothing(record, cutting, bool(sound.invalid))}"


def _written(
    wave: Wave, span: Span, facts: dict[str, Any], stem: str, folder: Path, cutting: Cutting
) -> dict[str, Any]:
    """Writes one clip, padded to full codec frames, and returns its entry for the record."""
    wave = np.pad(wave, ((0, 0), (0, -wave.shape[1] % cutting.hop_length)))
    audio.write(folder / f"{stem}.flac", wave, cutting.rate)
    start, seconds = (round(samples / cutting.rate, 3) for samples in (span[0], wave.shape[1]))
    return {"file_name": f"{stem}.flac", "start": start, "seconds": seconds} | facts


def _write_melodies(
    song: Song, spans: list[Span], samples: int, folder: Path, cutting: Cutting, record: SongRecord
) -> None:
    """Cuts the same spans from the recording that has the melody, as mono files beside the clips.

    A recording that can't be read, or has another length, is recorded: its clips have no melody, or silence where it
    has ended.

    Args:
        song: with its melody.
        spans: of the clips that were written.
        samples: of the song.
        folder: of the clips.
        cutting: as for the song.
        record: of the song; its clips get the names of the files.
    """
    assert song.melody is not None
    try:
        sound = SongAudio(song.melody, cutting.rate)
    except audio.AudioError as error:
        record.melody = f"not used ({error})"
        return
    difference = (sound.levels.samples - samples) / cutting.rate
    if abs(difference) > MELODY_TOLERANCE:
        record.melody = f"{abs(difference):.2f} s {'longer' if difference > 0 else 'shorter'} than the song"
    gain = np.float32(1 / max(sound.levels.peak, 1.0))
    silence = np.zeros((1, max(0, spans[-1][1] - sound.levels.samples)), np.float32)
    mono = chain((audio.to_channels(wave, 1) for wave in sound.waves()), [silence])
    for clip, wave in zip(record.clips, slices(mono, spans), strict=True):
        name = f"{Path(clip['file_name']).stem}.melody.flac"
        audio.write(folder / name, wave * gain, cutting.rate)
        clip[song.melody_column] = name


def _why_nothing(record: SongRecord, cutting: Cutting, is_invalid: bool) -> str:
    if record.invalid:
        return f"every clip that is not silent holds {INVALID}"
    if is_invalid and not record.rest:
        return f"is silent but for {INVALID}"
    if record.silent or not record.rest:
        return "is silent"
    return f"lasts {record.rest:.1f} s, less than the {cutting.min_seconds:g} s of a clip"


def _gain(levels: Levels, cutting: Cutting, record: SongRecord) -> np.float32:
    """The factor for all clips of a song; records the loudness that it then has, and what it lacks."""
    loudness = levels.loudness
    if cutting.loudness is None or not math.isfinite(loudness):
        return np.float32(1 / levels.full_scale)
    gain = gain_to(loudness, levels.peak, cutting.loudness)
    record.loudness = round(loudness + 20 * math.log10(gain), 2)
    record.soft_by = round(max(0.0, cutting.loudness - record.loudness), 2)
    return np.float32(gain)


def _sections(levels: Levels, cutting: Cutting) -> list[_Section]:
    """A song without the silence at its ends, in sections of equally many full clips; none of a silent song.

    It is one section where nothing is analysed, or where the song is short.
    """
    samples = levels.end - levels.begin
    size = max(1, samples)
    if cutting.listens:
        clips = math.ceil(samples / cutting.samples)
        parts = max(1, math.ceil(samples / (SECTION_SECONDS * cutting.rate)))
        size = cutting.samples * max(1, math.ceil(clips / parts))
    starts = range(levels.begin, levels.end, size)
    return [_Section(start, min(start + size, levels.end)) for start in starts]


def _analysed(sound: SongAudio, sections: list[_Section], cutting: Cutting, record: SongRecord) -> list[_Section]:
    """The sections with rhythm, and tempo and key where these are sure; records the beats."""
    mono = slices((audio.to_channels(wave, 1) for wave in sound.waves()), [(part.start, part.end) for part in sections])
    analysed = []
    for section, wave in zip(sections, mono, strict=True):
        rhythm, facts = find_rhythm(wave, cutting.rate), dict[str, Any]()
        if rhythm is not None:
            begin = section.start / cutting.rate
            record.beats += [round(begin + beat, 3) for beat in rhythm.beats]
            record.downbeats += [round(begin + beat, 3) for beat in rhythm.downbeats]
        if cutting.listen:
            key = find_key(wave, cutting.rate)
            facts["tempo"] = round(rhythm.tempo, 1) if rhythm is not None and rhythm.is_sure else None
            facts["key"] = key.name if key is not None and key.is_sure else None
        analysed.append(_Section(section.start, section.end, rhythm, facts))
    return analysed


def _spans(section: _Section, cutting: Cutting, record: SongRecord) -> list[Span]:
    """The clips of a section, in samples of the song; records the time that is left out."""
    spans = _by_bars(section, cutting) if cutting.bars else None
    if cutting.bars and spans is None:
        record.note = f"{record.source}: no clear bars, so it is cut by the clock"
    if spans is None:
        spans = _by_clock(section, cutting)
    record.rest += (section.end - section.start - sum(end - start for start, end in spans)) / cutting.rate
    return spans


def _by_clock(section: _Section, cutting: Cutting) -> list[Span]:
    size = cutting.samples
    spans = [(start, min(start + size, section.end)) for start in range(section.start, section.end, size)]
    shortest = min(size, cutting.min_seconds * cutting.rate)
    return [(start, end) for start, end in spans if end - start >= shortest]


def _by_bars(section: _Section, cutting: Cutting) -> list[Span] | None:
    """Spans that begin on a downbeat and last whole bars, all equally many but the last; None without clear bars."""
    if section.rhythm is None or not section.rhythm.is_sure or len(section.rhythm.downbeats) < 2:
        return None
    downbeats = np.array(section.rhythm.downbeats)
    bar = float(np.median(np.diff(downbeats)))
    bars = min(cutting.bars, int((cutting.samples / cutting.rate) / bar))
    if not bars:
        return None
    spans = []
    for first in range(0, len(downbeats), bars):
        start = section.start + round(downbeats[first] * cutting.rate)
        left = int((section.end - start) / (bar * cutting.rate) + NEARLY)
        seconds = min(bars, left) * bar
        if left >= bars or seconds >= cutting.min_seconds:
            end = start + cutting.full_frames(round(seconds * cutting.rate))
            spans.append((start, min(end, section.end)))
    return spans or None
