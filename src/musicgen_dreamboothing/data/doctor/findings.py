"""What the doctor's measurements mean: findings, whose texts are in `assets/findings.yaml`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import numpy as np
import yaml

from musicgen_dreamboothing.analysis import defects
from musicgen_dreamboothing.analysis.duplicates import Duplicate
from musicgen_dreamboothing.analysis.sound import Sound
from musicgen_dreamboothing.console import plural
from musicgen_dreamboothing.data.captions.caption_check import FAULTS
from musicgen_dreamboothing.data.doctor.examination import Clip, Examination
from musicgen_dreamboothing.data.songs.clips import AUDIBLY_SOFT
from musicgen_dreamboothing.data.songs.cutting import SongRecord
from musicgen_dreamboothing.data.songs.song_audio import INVALID

Severity = Literal["fix", "listen", "note"]

SEVERITIES: Sequence[Severity] = ("fix", "listen", "note")  # the worst first
QUIETER = 10.0  # LU below the median clip
NAMED_COPIES = 6  # of a group of equal clips

SONG_RULES: Mapping[str, Callable[[SongRecord], str | None]] = {
    "skipped": lambda song: song.skipped,
    "damaged": lambda song: None if song.skipped else song.damage,
    "remark": lambda song: None if song.skipped else song.note,
    "invalid_samples": lambda song: f"{song.source}: {plural(song.invalid, 'clip')}" if song.invalid else None,
    "soft": lambda song: f"{song.source}: by {song.soft_by:.1f} LU" if song.soft_by > AUDIBLY_SOFT else None,
    "offset_removed": lambda song: f"{song.source}: up to {song.offset:.1%} of its peak" if song.offset else None,
}
NEED_CLIPS = ("invalid_samples", "soft", "offset_removed")  # rules for songs with clips only
SOUND_RULES: Mapping[str, Callable[[Sound], bool]] = {
    "damaged_data": lambda sound: bool(sound.damage),
    "clipping": lambda sound: sound.clipping > defects.CLIPPED_SHARE,
    "silence": lambda sound: sound.silence > defects.SILENT_SHARE,
    "offset": lambda sound: sound.offset > defects.OFFSET,
    "inverted": lambda sound: sound.channels == "inverted",
    "silent_channel": lambda sound: sound.channels in ("left only", "right only"),
    "out_of_phase": lambda sound: sound.channels == "out of phase",
    "equal_channels": lambda sound: sound.channels == "twin",
}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing."""

    severity: Severity
    title: str  # what was found and how often
    where: tuple[str, ...]  # songs, clips or groups of clips
    clips: tuple[str, ...]  # file names of the clips concerned
    meaning: str  # its effect on a training
    remedy: str  # what to do


def findings(examination: Examination) -> list[Finding]:
    """All findings, the worst first."""
    rules = (_broken, _songs, _captions, _sounds, _no_treble, _quiet, _repeats)
    results = [finding for rule in rules for finding in rule(examination)]
    return sorted(results, key=lambda finding: SEVERITIES.index(finding.severity))


@cache
def _texts() -> dict[str, dict[str, Any]]:
    text = files("musicgen_dreamboothing.assets").joinpath("findings.yaml").read_text(encoding="utf-8")
    texts: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return texts


def _finding(rule: str, count: str, where: Sequence[str], clips: Sequence[str] = (), **values: Any) -> Finding:
    """A finding with its texts, in which names in braces are replaced."""
    entry = _texts()[rule]
    title, meaning, remedy = (entry[name].format(n=count, **values) for name in ("title", "meaning", "remedy"))
    return Finding(entry["severity"], title, tuple(where), tuple(clips), meaning, remedy)


def _about(rule: str, clips: Sequence[Clip], where: Sequence[str] = (), **values: Any) -> list[Finding]:
    """The finding about some clips; none without clips."""
    names = [clip.file_name for clip in clips]
    return [_finding(rule, plural(len(clips), "clip"), where or names, names, **values)] if clips else []


def _broken(examination: Examination) -> list[Finding]:
    clips = [clip for clip in examination.clips if clip.broken]
    reasons = [(clip.broken or "").removeprefix(f"{clip.file_name}: ") for clip in clips]
    return _about("broken", clips, [f"{clip.file_name}: {reason}" for clip, reason in zip(clips, reasons, strict=True)])


def _songs(examination: Examination) -> Iterable[Finding]:
    for rule, reason_of in SONG_RULES.items():
        songs = [song for song in examination.songs if song.clips or rule not in NEED_CLIPS]
        reasons = [reason for song in songs if (reason := reason_of(song))]
        if reasons:
            yield _finding(rule, plural(len(reasons), "song"), reasons, invalid=INVALID)


def _captions(examination: Examination) -> Iterable[Finding]:
    clips, faults = examination.clips, examination.caption_faults
    yield from _about("no_caption", [clip for clip in clips if not clip.text])
    for fault, meaning in FAULTS.items():
        faulty = [clip for clip in clips if fault in map(faults.get, (clip.text, *clip.variants))]
        yield from _about(fault.replace(" ", "_"), faulty, fault=meaning)
    yield from _about("vocals", [clip for clip in clips if clip.vocals])


def _sounds(examination: Examination) -> Iterable[Finding]:
    for rule, is_so in SOUND_RULES.items():
        yield from _about(rule, [clip for clip, sound in examination.readable if is_so(sound)])


def _no_treble(examination: Examination) -> list[Finding]:
    limit = defects.NARROW_SHARE * examination.rate / 2
    narrow = [(clip, sound) for clip, sound in examination.readable if sound.bandwidth < limit]
    edges = sorted({round(sound.bandwidth / 1000, 1) for _, sound in narrow})
    span = " to ".join(f"{edge:g}" for edge in dict.fromkeys([*edges[:1], *edges[-1:]]))
    return _about("no_treble", [clip for clip, _ in narrow], span=span)


def _quiet(examination: Examination) -> list[Finding]:
    median = float(np.median(examination.loudness)) if examination.loudness else 0.0
    limit = median - QUIETER
    clips = [clip for clip, sound in examination.readable if sound.lufs is not None and sound.lufs < limit]
    return _about("quiet", clips, limit=QUIETER, median=median)


def _repeats(examination: Examination) -> Iterable[Finding]:
    """The same recording more than once: in both splits, in two songs, in one."""
    pairs_of: dict[str, list[Duplicate]] = {"in_both_splits": [], "in_several_songs": [], "in_one_song": []}
    for pair in examination.duplicates:
        a, b = examination.clips[pair.a], examination.clips[pair.b]
        rule = "in_both_splits" if a.split != b.split else "in_several_songs" if a.source != b.source else "in_one_song"
        pairs_of[rule].append(pair)
    for rule, pairs in pairs_of.items():
        groups = [[examination.clips[clip] for clip in group] for group in _groups(pairs)]
        yield from _about(rule, [clip for group in groups for clip in group], [_names(group) for group in groups])


def _names(clips: Sequence[Clip]) -> str:
    """`a = b = c and 2 more`: a loop may repeat in hundreds of clips."""
    more = f" and {len(clips) - NAMED_COPIES} more" if len(clips) > NAMED_COPIES else ""
    return " = ".join(clip.file_name for clip in clips[:NAMED_COPIES]) + more


def _groups(pairs: Iterable[Duplicate]) -> list[list[int]]:
    """Connected clips, by number."""
    groups: dict[int, set[int]] = {}
    for pair in pairs:
        a, b = groups.setdefault(pair.a, {pair.a}), groups.setdefault(pair.b, {pair.b})
        if a is not b:
            a |= b
            groups |= dict.fromkeys(b, a)
    return sorted({min(group): sorted(group) for group in groups.values()}.values())
