"""The doctor's report: one HTML page with pictures and players inside."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.analysis import defects
from musicgen_dreamboothing.analysis.sound import Sound
from musicgen_dreamboothing.data.doctor.advice import advice, codec_quality
from musicgen_dreamboothing.data.doctor.examination import Clip, Examination, PreviewedClip
from musicgen_dreamboothing.data.doctor.findings import Finding, findings
from musicgen_dreamboothing.data.doctor.summary import key_figures, some
from musicgen_dreamboothing.data.songs.song import TRAIN
from musicgen_dreamboothing.files import write_text
from musicgen_dreamboothing.pages import COARSE, FINE, data_uri, loudest_power, mp3, render, spectrogram

PLAYERS, PLAYERS_EACH, PLAYER_SECONDS = 24, 6, 8.0  # on the page, in one finding; some 90 KB each
NAMES = 60  # that one finding lists
STRIP_POINTS, STRIP_HEIGHT = 240, 40  # of a song's drawing
LABELS = {"fix": "Fix this first", "listen": "Listen and decide", "note": "Good to know"}
COUNTED = {"fix": "to fix", "listen": "to listen to", "note": "to know"}


@dataclass(frozen=True)
class _Player:
    """A clip with its sound as a data URI."""

    name: str
    sound: str


def write_report(examination: Examination, path: Path) -> None:
    """Writes the page; 200 clips take less than 8 MB."""
    results = findings(examination)
    players = _players(examination, results)
    severity_of = {name: finding.severity for finding in reversed(results) for name in finding.clips}  # the worst
    readable = {clip.file_name for clip, _ in examination.readable}
    text = render(
        "report.html.jinja",
        name=examination.folder.resolve().name,
        facts=[(name, value) for name, value in key_figures(examination) if value and name != "codec"],
        counts=[(key, sum(one.severity == key for one in results), words) for key, words in COUNTED.items()],
        advice=advice(examination),
        findings=list(zip(results, players, strict=True)),
        severities=LABELS,
        named=NAMES,
        shown=sum(map(len, players)),
        concerned=len(readable.intersection(severity_of)),
        player_seconds=PLAYER_SECONDS,
        previews=[_preview(preview, examination.rate) for preview in examination.previews],
        songs=_songs(examination),
        strip=(STRIP_POINTS, STRIP_HEIGHT),
        rows=[_row(clip, examination.rate, severity_of) for clip in examination.clips],
        limits=defects,
    )
    write_text(path, text)


def _players(examination: Examination, results: list[Finding]) -> list[list[_Player]]:
    """Players for each finding; no clip twice, and not too many."""
    clips = {clip.file_name: (clip, sound) for clip, sound in examination.readable}
    players: list[list[_Player]] = []
    for finding in results:
        count = min(PLAYERS_EACH, PLAYERS - sum(map(len, players)))
        chosen = [clips.pop(name) for name in [name for name in finding.clips if name in clips][:count]]
        players.append([_Player(clip.file_name, _excerpt(examination, clip, sound)) for clip, sound in chosen])
    return players


def _excerpt(examination: Examination, clip: Clip, sound: Sound) -> str:
    """The middle of a clip as a data URI, in mono unless the finding is about its channels."""
    wave = audio.decode(examination.path(clip), examination.rate)
    samples = round(PLAYER_SECONDS * examination.rate)
    start = max(0, wave.shape[1] - samples) // 2
    channels = 1 if sound.channels in defects.SOUND_CHANNELS else len(wave)
    return mp3(audio.to_channels(wave[:, start : start + samples], channels), examination.rate, COARSE)


def _preview(preview: PreviewedClip, rate: int) -> dict[str, Any]:
    """A codec preview for the template; both pictures have the same scale of brightness."""
    loudest = loudest_power(preview.original)
    sides = [
        {
            "name": name,
            "sound": mp3(wave, rate, FINE),
            "picture": data_uri("image/png", spectrogram(wave, rate, loudest)),
        }
        for name, wave in (("original", preview.original), ("through the codec", preview.coded))
    ]
    return {"preview": preview, "sides": sides, "quality": codec_quality(preview.mel_db)}


def _songs(examination: Examination) -> list[dict[str, Any]]:
    """Each song with its level over time, on one scale for all."""
    highest = max((max(sound.strip) for _, sound in examination.readable), default=0.0) or 1.0
    songs: dict[str, list[tuple[Clip, Sound]]] = {}
    for clip, sound in examination.readable:
        songs.setdefault(clip.source, []).append((clip, sound))
    return [_song(source, sorted(clips, key=lambda pair: pair[0].start), highest) for source, clips in songs.items()]


def _song(source: str, clips: list[tuple[Clip, Sound]], highest: float) -> dict[str, Any]:
    loudness = [sound.lufs for _, sound in clips if sound.lufs is not None]
    tempi = [clip.tempo for clip, _ in clips if clip.tempo]
    return {
        "source": source,
        "held_out": clips[0][0].split != TRAIN,
        "clips": len(clips),
        "seconds": sum(sound.seconds for _, sound in clips),
        "lufs": float(np.median(loudness)) if loudness else None,
        "tempo": float(np.median(tempi)) if tempi else None,
        "keys": some(dict.fromkeys(clip.key for clip, _ in clips if clip.key), 2),
        "outline": _outline(np.concatenate([sound.strip for _, sound in clips]) / highest),
    }


def _outline(strip: np.ndarray) -> str:
    """The corners of a drawing of levels from 0 to 1, mirrored at the middle, `x,y x,y`."""
    points = min(STRIP_POINTS, len(strip))
    starts = np.arange(points) * len(strip) // points
    heights = np.sqrt(np.maximum.reduceat(strip, starts)) * STRIP_HEIGHT / 2  # square root: quiet parts stay visible
    xs = np.linspace(0, STRIP_POINTS, points)
    upper, lower = STRIP_HEIGHT / 2 - heights, STRIP_HEIGHT / 2 + heights
    corners = [*zip(xs, upper, strict=True), *zip(xs[::-1], lower[::-1], strict=True)]
    return " ".join(f"{x:.4g},{y:.3g}" for x, y in corners)


def _row(clip: Clip, rate: int, severity_of: dict[str, Any]) -> dict[str, Any]:
    """A line of the table, with the cells that are beyond their limit."""
    sound = clip.sound
    beyond = {
        "clipping": sound.clipping > defects.CLIPPED_SHARE,
        "silence": sound.silence > defects.SILENT_SHARE,
        "offset": sound.offset > defects.OFFSET,
        "channels": sound.channels not in defects.SOUND_CHANNELS,
        "bandwidth": sound.bandwidth < defects.NARROW_SHARE * rate / 2,
    } if sound else {}  # fmt: skip
    return {"clip": clip, "sound": sound, "beyond": beyond, "severity": severity_of.get(clip.file_name, "")}
