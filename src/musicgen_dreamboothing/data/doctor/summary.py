"""The doctor's findings for a terminal: at most 40 lines of 100 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

import numpy as np

from musicgen_dreamboothing.console import plural
from musicgen_dreamboothing.data.doctor.advice import advice
from musicgen_dreamboothing.data.doctor.examination import Examination
from musicgen_dreamboothing.data.doctor.findings import Finding, findings
from musicgen_dreamboothing.data.songs.song import TRAIN

COLUMNS, LINES = 100, 40
NAMES = 3  # clips or songs named in one finding
MARKS = {"fix": "!!", "listen": "! ", "note": "  "}


def lines(examination: Examination) -> list[str]:
    """Key figures, the worst findings, and advice."""
    facts = [f"{name:11}{value}" for name, value in key_figures(examination) if value]
    head = [*(_cut(line) for line in (f"Doctor: {examination.folder}", *facts)), ""]
    tail = ["", *(line for sentence in advice(examination) for line in _wrap(sentence, "- ", "  "))]
    blocks = [_block(finding) for finding in findings(examination)]
    ends = np.cumsum([len(block) for block in blocks])
    shown = blocks[: int((ends <= LINES - len(head) - len(tail) - 1).sum())]
    body = [line for block in shown for line in block] if blocks else ["Nothing wrong was found."]
    if left := len(blocks) - len(shown):
        body.append(f"... and {plural(left, 'finding')} more in the report")
    return (head + body + tail)[:LINES]


def _block(finding: Finding) -> list[str]:
    """The lines of one finding."""
    mark = MARKS[finding.severity]
    if finding.clips:
        head = [f"{mark} {finding.title}: {some(finding.where, NAMES)}"]
    else:  # of songs, each with a sentence
        more = [f"and {len(finding.where) - NAMES} more"] if len(finding.where) > NAMES else []
        head = [f"{mark} {finding.title}:", *(f"     {place}" for place in [*finding.where[:NAMES], *more])]
    return [*map(_cut, head), *_wrap(finding.remedy, "   ", "   ")]


def _cut(line: str) -> str:
    """A line that fits, without control characters: file names may hold any."""
    line = "".join(letter if letter.isprintable() else "?" for letter in line)
    return line if len(line) <= COLUMNS else f"{line[: COLUMNS - 4]} ..."


def some(names: Iterable[str], most: int) -> str:
    """`a, b, c and 2 more`."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _wrap(text: str, first: str, then: str) -> list[str]:
    return [_cut(line) for line in textwrap.wrap(text, COLUMNS, initial_indent=first, subsequent_indent=then)]


def key_figures(examination: Examination) -> list[tuple[str, str]]:
    """The folder in a few figures: name and value, which may be empty."""
    sounds = [sound for _, sound in examination.readable]
    scores = [f"{preview.mel_db:.1f} / {preview.si_sdr_db:.1f}" for preview in examination.previews]
    return [
        ("music", _amount(examination)),
        ("loudness", _span(examination.loudness, "LUFS", 1)),
        ("peaks", _span([sound.peak_db for sound in sounds], "dBFS", 1)),
        ("bandwidth", _span([sound.bandwidth / 1000 for sound in sounds], "kHz", 1)),
        ("tempo", _span([clip.tempo for clip in examination.clips if clip.tempo], "bpm", 0)),
        ("keys", some(sorted({clip.key for clip in examination.clips if clip.key}), 5)),
        ("vocals", _vocals(examination)),
        ("codec", f"mel distance / SI-SDR in dB: {', '.join(scores)}" if scores else ""),
    ]


def _amount(examination: Examination) -> str:
    songs = {clip.source for clip, _ in examination.readable}
    minutes = examination.minutes
    length = f"{minutes / 60:.1f} hours" if minutes >= 90 else f"{minutes:.1f} minutes"
    held_out = sum(sound.seconds for clip, sound in examination.readable if clip.split != TRAIN) / 60
    parts = [f"{length} in {plural(len(examination.readable), 'clip')} of {plural(len(songs), 'song')}"]
    if held_out:
        parts.append(f"{held_out:.1f} minutes of them held out")
    if skipped := sum(bool(song.skipped) for song in examination.songs):
        parts.append(f"{plural(skipped, 'song')} skipped")
    if silent := sum(song.silent for song in examination.songs):
        parts.append(f"{plural(silent, 'silent clip')} left out")
    return ", ".join(parts)


def _span(values: list[float], unit: str, digits: int) -> str:
    """The median, and the lowest and highest value where these differ."""
    if not values:
        return ""
    low, median, high = (f"{value:.{digits}f}" for value in (min(values), float(np.median(values)), max(values)))
    return f"{median} {unit}" if low == high else f"{median} {unit} (median), {low} to {high}"


def _vocals(examination: Examination) -> str:
    """In how many clips somebody sings; where it is unknown, that is stated."""
    known = [clip.vocals for clip in examination.clips if clip.vocals is not None]
    if not known:
        return "unknown: --add_metadata true with a CLAP model detects them"
    text = f"in {sum(known)} of {plural(len(examination.clips), 'clip')}"
    unclear = len(examination.clips) - len(known)
    return f"{text}, {unclear} unclear" if unclear else text
