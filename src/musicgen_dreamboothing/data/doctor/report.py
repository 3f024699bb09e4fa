"""The doctor's findings to read: some lines in a terminal, and one page that needs nothing beside it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.analysis import defects
from musicgen_dreamboothing.analysis.sound import Sound
from musicgen_dreamboothing.console import plural
from musicgen_dreamboothing.data.doctor.examination import Clip, Coded, Examination
from musicgen_dreamboothing.data.doctor.findings import Finding, advice, codec_word, findings
from musicgen_dreamboothing.files import write_text
from musicgen_dreamboothing.pages import COARSE, FINE, data_uri, loudest_power, mp3, render, spectrogram

COLUMNS, LINES = 100, 40  # of the screen
FEW = 3  # clips or songs that one finding names on it
PLAYERS, PLAYERS_EACH, PLAYER_SECONDS = 24, 6, 8.0  # of the page, of one finding; some 90 KB each
NAMES = 60  # that one finding lists on the page
STRIP_POINTS, STRIP_HEIGHT = 240, 40  # of a song's drawing
SEVERITIES = {"mend": "Mend this first", "listen": "Listen and decide", "know": "Good to know"}
COUNTED = {"mend": "to mend", "listen": "to listen to", "know": "to know"}


def lines(examination: Examination) -> list[str]:
    """What matters most, for one screen: at most 40 lines of 100 columns."""
    found, words = findings(examination), advice(examination)
    head = [*_summary(examination), ""]
    tail = ["", *(line for sentence in words for line in _wrapped(sentence, "- ", "  "))]
    room = LINES - len(head) - len(tail) - 1
    body = [_finding_lines(finding) for finding in found]
    shown = _fitting(body, room)
    left = [f"... and {plural(len(body) - len(shown), 'finding')} more in the report"] if len(shown) < len(body) else []
    none = [] if found else ["Nothing wrong was found."]
    return (head + none + [line for block in shown for line in block] + left + tail)[:LINES]


def _fitting(blocks: list[list[str]], room: int) -> list[list[str]]:
    """The first blocks that fit."""
    ends = np.cumsum([len(block) for block in blocks])
    return blocks[: int((ends <= room).sum())]


def _finding_lines(finding: Finding) -> list[str]:
    mark = {"mend": "!!", "listen": "! ", "know": "  "}[finding.severity]
    if finding.clips:
        head = [f"{mark} {finding.title}: {_some(finding.where, FEW)}"]
    else:  # of songs, each with a sentence
        more = [f"and {len(finding.where) - FEW} more"] if len(finding.where) > FEW else []
        head = [f"{mark} {finding.title}:", *(f"     {place}" for place in [*finding.where[:FEW], *more])]
    return [*map(_cut, head), *_wrapped(finding.remedy, "   ", "   ")]


def _cut(line: str) -> str:
    """A line that fits, without what would move the cursor: file names may hold anything."""
    line = "".join(letter if letter.isprintable() else "?" for letter in line)
    return line if len(line) <= COLUMNS else f"{line[: COLUMNS - 4]} ..."


def _some(names: Iterable[str], most: int) -> str:
    """`a, b, c and 2 more`."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _wrapped(text: str, first: str, then: str) -> list[str]:
    return [_cut(line) for line in textwrap.wrap(text, COLUMNS, initial_indent=first, subsequent_indent=then)]


def _summary(examination: Examination) -> list[str]:
    rows = [f"{name:11}{value}" for name, value in _facts(examination) if value]
    return [_cut(line) for line in (f"Doctor: {examination.folder}", *rows)]


def _facts(examination: Examination) -> list[tuple[str, str]]:
    """The whole in a few figures: name and value."""
    sounds = [sound for _, sound in examination.heard]
    loud = [sound.lufs for sound in sounds if sound.lufs is not None]
    tempi = [clip.tempo for clip in examination.clips if clip.tempo]
    keys = sorted({clip.key for clip in examination.clips if clip.key})
    return [
        ("music", _amount(examination)),
        ("loudness", _span(loud, "LUFS", 1)),
        ("peaks", _span([sound.peak_db for sound in sounds], "dBFS", 1)),
        ("bandwidth", _span([sound.bandwidth / 1000 for sound in sounds], "kHz", 1)),
        ("tempo", _span(tempi, "bpm", 0)),
        ("keys", _some(keys, 5)),
        ("voices", _voices(examination)),
        ("codec", _of_codec(examination)),
    ]


def _amount(examination: Examination) -> str:
    songs = {clip.source for clip, _ in examination.heard}
    minutes = examination.minutes
    length = f"{minutes / 60:.1f} hours" if minutes >= 90 else f"{minutes:.1f} minutes"
    held = sum(sound.seconds for clip, sound in examination.heard if clip.split != "train") / 60
    parts = [f"{length} in {plural(len(examination.heard), 'clip')} of {plural(len(songs), 'song')}"]
    if held:
        parts.append(f"{held:.1f} minutes of them held out")
    if skipped := sum(bool(song.skipped) for song in examination.songs):
        parts.append(f"{plural(skipped, 'song')} skipped")
    if silent := sum(song.silent for song in examination.songs):
        parts.append(f"{plural(silent, 'silent clip')} left out")
    return ", ".join(parts)


def _span(values: list[float], unit: str, digits: int) -> str:
    """The middle one, and the least and the most where these differ."""
    if not values:
        return ""
    low, middle, high = (f"{value:.{digits}f}" for value in (min(values), float(np.median(values)), max(values)))
    return f"{middle} {unit}" if low == high else f"{middle} {unit} in the middle, from {low} to {high}"


def _voices(examination: Examination) -> str:
    """In how many clips somebody sings; who can't know it says so, for silence would pass for none."""
    heard = [clip.vocals for clip in examination.clips if clip.vocals is not None]
    if not heard:
        return "not listened for: it takes --add_metadata true and a CLAP that hears them"
    unclear = len(examination.clips) - len(heard)
    singing = f"somebody sings in {sum(heard)} of {plural(len(examination.clips), 'clip')}"
    return f"{singing}, {unclear} unclear" if unclear else singing


def _of_codec(examination: Examination) -> str:
    scores = [f"{coded.mel_db:.1f} / {coded.si_sdr_db:.1f}" for coded in examination.previews]
    return f"mel distance / SI-SDR in dB: {', '.join(scores)}" if scores else ""


@dataclass(frozen=True)
class _Player:
    """A sound that can be heard on the page."""

    name: str
    sound: str  # data URI


def write_report(examination: Examination, path: Path) -> None:
    """Writes the page with pictures and players inside, in one move; 200 clips take less than 8 MB."""
    found = findings(examination)
    players, flagged = _players(examination, found), _flagged(found)
    text = render(
        "report.html.jinja",
        name=examination.folder.resolve().name,
        facts=[(name, value) for name, value in _facts(examination) if value and name != "codec"],
        counts=[(key, sum(one.severity == key for one in found), words) for key, words in COUNTED.items()],
        advice=advice(examination),
        findings=[(finding, players.get(number, [])) for number, finding in enumerate(found)],
        severities=SEVERITIES,
        named=NAMES,
        heard=sum(map(len, players.values())),
        concerned=len({name for finding in found for name in finding.clips} & _readable(examination)),
        player_seconds=PLAYER_SECONDS,
        previews=[_shown(coded, examination.rate) for coded in examination.previews],
        songs=_songs(examination),
        strip=(STRIP_POINTS, STRIP_HEIGHT),
        rows=[_row(clip, examination.rate, flagged) for clip in examination.clips],
        limits=defects,
    )
    write_text(path, text)


def _readable(examination: Examination) -> set[str]:
    return {clip.file_name for clip, _ in examination.heard}


def _players(examination: Examination, found: list[Finding]) -> dict[int, list[_Player]]:
    """For each finding, by number, the sounds that go with it; no clip twice, and not too many."""
    clips = {clip.file_name: (clip, sound) for clip, sound in examination.heard}
    players: dict[int, list[_Player]] = {}
    for number, finding in enumerate(found):
        room = min(PLAYERS_EACH, PLAYERS - sum(map(len, players.values())))
        chosen = [clips.pop(name) for name in [name for name in finding.clips if name in clips][:room]]
        players[number] = [_Player(clip.file_name, _excerpt(examination, clip, sound)) for clip, sound in chosen]
    return players


def _excerpt(examination: Examination, clip: Clip, sound: Sound) -> str:
    """The middle of a clip as a data URI, in mono unless its sides are what is wrong with it."""
    wave = audio.decode(examination.path(clip), examination.rate)
    samples = round(PLAYER_SECONDS * examination.rate)
    start = max(0, wave.shape[1] - samples) // 2
    sides = 1 if sound.channels in defects.SOUND_CHANNELS else len(wave)
    return mp3(audio.to_channels(wave[:, start : start + samples], sides), examination.rate, COARSE)


def _shown(coded: Coded, rate: int) -> dict[str, Any]:
    """A preview as the page wants it; both pictures have the same scale of brightness."""
    loudest = loudest_power(coded.original)
    sides = [
        {
            "name": name,
            "sound": mp3(wave, rate, FINE),
            "picture": data_uri("image/png", spectrogram(wave, rate, loudest)),
        }
        for name, wave in (("original", coded.original), ("through the codec", coded.coded))
    ]
    return {"coded": coded, "sides": sides, "word": codec_word(coded.mel_db)}


def _songs(examination: Examination) -> list[dict[str, Any]]:
    """Each song with its drawing: how loud it is over time, on one scale for all."""
    highest = max((max(sound.strip) for _, sound in examination.heard), default=0.0) or 1.0
    songs: dict[str, list[tuple[Clip, Sound]]] = {}
    for clip, sound in examination.heard:
        songs.setdefault(clip.source, []).append((clip, sound))
    return [_song(source, sorted(clips, key=lambda pair: pair[0].start), highest) for source, clips in songs.items()]


def _song(source: str, clips: list[tuple[Clip, Sound]], highest: float) -> dict[str, Any]:
    strip = np.concatenate([sound.strip for _, sound in clips]) / highest
    loud = [sound.lufs for _, sound in clips if sound.lufs is not None]
    tempi = [clip.tempo for clip, _ in clips if clip.tempo]
    return {
        "source": source,
        "held_out": clips[0][0].split != "train",
        "clips": len(clips),
        "seconds": sum(sound.seconds for _, sound in clips),
        "lufs": float(np.median(loud)) if loud else None,
        "tempo": float(np.median(tempi)) if tempi else None,
        "keys": _some(dict.fromkeys(clip.key for clip, _ in clips if clip.key), 2),
        "outline": _outline(strip),
    }


def _outline(strip: np.ndarray) -> str:
    """The corners of a drawing of levels from 0 to 1, mirrored at the middle, `x,y x,y`."""
    points = min(STRIP_POINTS, len(strip))
    starts = np.arange(points) * len(strip) // points
    heights = np.sqrt(np.maximum.reduceat(strip, starts)) * STRIP_HEIGHT / 2  # roots: quiet parts are seen, too
    xs = np.linspace(0, STRIP_POINTS, points)
    corners = [
        *zip(xs, STRIP_HEIGHT / 2 - heights, strict=True),
        *zip(xs[::-1], (STRIP_HEIGHT / 2 + heights)[::-1], strict=True),
    ]
    return " ".join(f"{x:.4g},{y:.3g}" for x, y in corners)


def _flagged(found: list[Finding]) -> dict[str, str]:
    """The worst severity of each clip."""
    return {name: finding.severity for finding in reversed(found) for name in finding.clips}


def _row(clip: Clip, rate: int, flagged: dict[str, str]) -> dict[str, Any]:
    """A line of the table, with the cells that are beyond their limit."""
    sound = clip.sound
    beyond = {
        "clipping": sound.clipping > defects.CLIPPED_SHARE,
        "silence": sound.silence > defects.SILENT_SHARE,
        "offset": sound.offset > defects.OFFSET,
        "channels": sound.channels not in defects.SOUND_CHANNELS,
        "bandwidth": sound.bandwidth < defects.NARROW_SHARE * rate / 2,
    } if sound else {}  # fmt: skip
    return {"clip": clip, "sound": sound, "beyond": beyond, "severity": flagged.get(clip.file_name, "")}
