"""Measures every clip of a prepared folder once; the measurements are stored in `doctor.json`.

`findings.py` and `advice.py` interpret them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.analysis import defects
from musicgen_dreamboothing.analysis.duplicates import Duplicate, find_duplicates
from musicgen_dreamboothing.analysis.loudness import peak
from musicgen_dreamboothing.analysis.similarity import mel_distance, si_sdr
from musicgen_dreamboothing.analysis.sound import Sound, measure_file
from musicgen_dreamboothing.audio import Wave
from musicgen_dreamboothing.console import UserError, progress_bar
from musicgen_dreamboothing.data.captions.caption_check import Fault, caption_faults
from musicgen_dreamboothing.data.layout import CLIPS, METADATA
from musicgen_dreamboothing.data.songs.clips import listed_clips, read_records
from musicgen_dreamboothing.data.songs.cutting import SongRecord
from musicgen_dreamboothing.data.songs.song import TRAIN
from musicgen_dreamboothing.files import digest, write_text
from musicgen_dreamboothing.workers import in_processes

CACHE = "doctor.json"
VERSION = 1  # of the measurements: another number measures all clips again
SAVE_EVERY = 64  # clips: what a kill can cost
PREVIEWS, PREVIEW_SECONDS = 3, 10.0

Preview = Callable[[Wave], Wave]


@dataclass(frozen=True)
class Clip:
    """One line of the metadata, and the measurements of its file."""

    file_name: str  # in `clips/`
    source: str  # the song that it was cut from
    split: str  # `train` or `eval`
    start: float  # in the song, seconds
    text: str  # its caption
    tempo: float | None  # bpm
    key: str | None  # such as `A minor`
    tags: tuple[str, ...]  # genres, moods and instruments
    vocals: bool | None  # whether somebody sings; None where it is unknown
    sound: Sound | None  # None where the file could not be read
    broken: str | None  # why it could not
    variants: tuple[str, ...] = ()  # its other captions


@dataclass(frozen=True)
class PreviewedClip:
    """A part of a clip before and after the codec, `[C, S]` both, and their distance in dB."""

    clip: Clip
    original: Wave
    coded: Wave
    mel_db: float
    si_sdr_db: float


@dataclass(frozen=True)
class Examination:
    """Everything that was measured in a prepared folder."""

    folder: Path  # where it is
    rate: int  # at which its clips were decoded, in Hz: that of the codec
    clips: tuple[Clip, ...]  # in the order of the metadata, unreadable ones too
    songs: tuple[SongRecord, ...]  # records of the songs that were cut
    duplicates: tuple[Duplicate, ...]  # pairs of `clips`, by number
    previews: tuple[PreviewedClip, ...]  # some clips before and after the codec
    # captions that the text encoder reads only in part
    caption_faults: Mapping[str, Fault] = field(default_factory=dict)

    @property
    def readable(self) -> list[tuple[Clip, Sound]]:
        """The clips that could be read."""
        return [(clip, clip.sound) for clip in self.clips if clip.sound]

    @property
    def loudness(self) -> list[float]:
        """LUFS, of the clips that have a loudness."""
        return [sound.lufs for _, sound in self.readable if sound.lufs is not None]

    @property
    def minutes(self) -> float:
        """Of readable music, in all splits."""
        return sum(sound.seconds for _, sound in self.readable) / 60

    def path(self, clip: Clip) -> Path:
        """Of a clip's file."""
        return self.folder / CLIPS / clip.file_name


def examine(
    folder: Path,
    *,
    preview: Preview | None,
    rate: int,
    workers: int = 1,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Examination:
    """Measures all clips of a prepared folder that were not measured before; unreadable ones are listed as such.

    Args:
        folder: with `clips/metadata.jsonl`, and `songs.jsonl` if `prepare` made it.
        preview: encodes and decodes a wave `[1 or 2, S]` at `rate`; the result may be mono, and longer. None leaves
            the previews out.
        rate: of the codec, in Hz.
        workers: processes that measure.
        tokenizer: of the text encoder; None leaves out the check of captions.

    Raises:
        UserError: there is no metadata, a line of it is not JSON, or no clip in it can be read.
    """
    rows = _rows(folder)
    paths = [folder / CLIPS / row["file_name"] for row in rows]
    sounds = _sounds(folder / CACHE, paths, rate, workers)
    clips = tuple(_clip(row, sounds[path]) for row, path in zip(rows, paths, strict=True))
    if not any(clip.sound for clip in clips):
        raise UserError(f"no clip listed in {folder / CLIPS / METADATA} can be read; run prepare again")
    previews = _previews(folder, _clips_to_preview(clips), preview, rate) if preview else ()
    captions = (text for clip in clips for text in (clip.text, *clip.variants))
    faults = caption_faults(captions, tokenizer) if tokenizer else {}
    return Examination(folder, rate, clips, tuple(read_records(folder)), _duplicates(clips), previews, faults)


def _rows(folder: Path) -> list[dict[str, Any]]:
    path = folder / CLIPS / METADATA
    if not path.is_file():
        raise UserError(f"{path} is missing: {folder} is no prepared folder; prepare SONGS --output_dir DIR makes one")
    rows = [row for row in listed_clips(folder) if isinstance(row.get("file_name"), str)]
    if not rows:
        raise UserError(f"{path} lists no clip; delete the file and run prepare again")
    return rows


def _sounds(cache: Path, paths: list[Path], rate: int, workers: int) -> dict[Path, Sound | str]:
    """The measurements of each file, or why it can't be read. Equal files are measured once."""
    known, digests, unreadable = _read_cache(cache, rate), dict[Path, str](), dict[Path, str]()
    for path in paths:
        if reason := _why_unreadable(path):
            unreadable[path] = reason
        else:
            digests[path] = digest(path)
    missing = {one: path for path, one in digests.items() if one not in known}
    broken: dict[str, str] = {}
    files = [path.absolute() for path in missing.values()]
    results = in_processes(partial(measure_file, rate=rate), files, workers, unit="clip", doing="measuring")
    for number, (one, result) in enumerate(zip(missing, results, strict=True), start=1):
        if isinstance(result, Sound):
            known[one] = result
        else:
            broken[one] = result
        if number % SAVE_EVERY == 0:
            _write_cache(cache, rate, known)
    _write_cache(cache, rate, {one: known[one] for one in digests.values() if one in known})
    return unreadable | {path: known.get(one) or broken[one] for path, one in digests.items()}


def _why_unreadable(path: Path) -> str:
    """Why a file can't be opened; empty where it can."""
    try:
        if not path.is_file():
            return "is no file" if path.exists() else "the file is missing"
        path.open("rb").close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _read_cache(path: Path, rate: int) -> dict[str, Sound]:
    """Earlier measurements by digest; none where the file is of another version, or damaged."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return {one: Sound(**values) for one, values in stored[f"v{VERSION}@{rate}"].items()}
    except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError):
        return {}


def _write_cache(path: Path, rate: int, known: dict[str, Sound]) -> None:
    sounds = {f"v{VERSION}@{rate}": {one: asdict(sound) for one, sound in known.items()}}
    write_text(path, json.dumps(sounds, ensure_ascii=False))


def _clip(row: dict[str, Any], sound: Sound | str) -> Clip:
    """From a line of the metadata, which people edit: invalid values count as missing."""
    tags = row["tags"] if isinstance(row.get("tags"), dict) else {}
    groups = [tags.get(group) for group in ("genres", "moods", "instruments")]
    tempo, key, vocals = row.get("tempo") or tags.get("tempo"), row.get("key") or tags.get("key"), tags.get("vocals")
    return Clip(
        file_name=row["file_name"],
        source=str(row.get("source") or row["file_name"]),
        split=str(row.get("split") or TRAIN),
        start=_number(row.get("start")) or 0.0,
        text=str(row.get("text") or "").strip(),
        variants=tuple(map(str, row["variants"])) if isinstance(row.get("variants"), list) else (),
        tempo=_number(tempo),
        key=str(key) if key else None,
        tags=tuple(str(word) for group in groups if isinstance(group, list) for word in group),
        vocals=vocals if isinstance(vocals, bool) else None,
        sound=sound if isinstance(sound, Sound) else None,
        broken=sound if isinstance(sound, str) else None,
    )


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _duplicates(clips: Iterable[Clip]) -> tuple[Duplicate, ...]:
    empty = np.zeros(0, np.uint32)
    return tuple(find_duplicates([clip.sound.words() if clip.sound else empty for clip in clips]))


def _clips_to_preview(clips: Iterable[Clip]) -> list[Clip]:
    """Three clips without defects, from the middles of songs that are far apart in the list; always the same ones."""
    songs: dict[str, list[Clip]] = {}
    for clip in clips:
        if clip.sound and clip.sound.silence < defects.SILENT_SHARE and clip.sound.channels in defects.SOUND_CHANNELS:
            songs.setdefault(clip.source, []).append(clip)
    groups = list(songs.values())
    if len(groups) >= PREVIEWS:
        return [group[len(group) // 2] for group in _spread(groups)]
    return _spread([clip for group in groups for clip in group])


def _spread(items: list[Any]) -> list[Any]:
    """The middle items of as many equal parts."""
    count = min(PREVIEWS, len(items))
    return [items[(2 * part + 1) * len(items) // (2 * count)] for part in range(count)]


def _previews(folder: Path, clips: list[Clip], preview: Preview, rate: int) -> tuple[PreviewedClip, ...]:
    bar = progress_bar(clips, unit="clip", desc="codec preview")
    return tuple(_previewed(folder, clip, preview, rate) for clip in bar)


def _previewed(folder: Path, clip: Clip, preview: Preview, rate: int) -> PreviewedClip:
    """The middle of a clip before and after the codec; in mono if the codec is mono."""
    wave = audio.decode(folder / CLIPS / clip.file_name, rate)
    samples = min(wave.shape[1], round(PREVIEW_SECONDS * rate))
    start = (wave.shape[1] - samples) // 2
    coded = preview(wave[:, start : start + samples])
    length = min(samples, coded.shape[1])
    original, coded = audio.to_channels(wave[:, start : start + length], len(coded)), coded[:, :length]
    gain = np.float32(1 / max(peak(original), 1e-3))  # quiet music must not hide below the floor of the distance
    mel_db = mel_distance(gain * coded, gain * original, rate)
    return PreviewedClip(clip, original, coded, mel_db, si_sdr(coded, original))
