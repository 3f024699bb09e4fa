"""What the doctor's measurements mean: findings, each with its effect on a training and a remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from musicgen_dreamboothing.analysis import defects
from musicgen_dreamboothing.analysis.duplicates import Duplicate
from musicgen_dreamboothing.analysis.sound import Sound
from musicgen_dreamboothing.console import plural
from musicgen_dreamboothing.data.captions.caption_check import FAULTS, Fault
from musicgen_dreamboothing.data.doctor.examination import Clip, Examination
from musicgen_dreamboothing.data.songs.clips import AUDIBLY_SOFT
from musicgen_dreamboothing.data.songs.cutting import SongRecord
from musicgen_dreamboothing.data.songs.song_audio import INVALID

Severity = Literal["fix", "listen", "note"]

SEVERITIES: Sequence[Severity] = ("fix", "listen", "note")  # the worst first
QUIETER = 10.0  # LU below the median clip
NAMED_COPIES = 6  # of a group of equal clips


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing.

    Attributes:
        severity: `fix` before training, `listen` and decide, or a `note`.
        title: what was found and how often.
        where: songs, clips or groups of clips.
        clips: file names of the clips concerned.
        meaning: its effect on a training.
        remedy: what to do.
    """

    severity: Severity
    title: str
    where: tuple[str, ...]
    clips: tuple[str, ...]
    meaning: str
    remedy: str


@dataclass(frozen=True)
class _Rule:
    """A kind of finding; `{}` in the title stands for the number of clips or songs."""

    severity: Severity
    title: str
    meaning: str
    remedy: str

    def about_clips(self, clips: Sequence[Clip], where: Sequence[str] = ()) -> list[Finding]:
        """The finding about some clips; none without clips."""
        names = tuple(clip.file_name for clip in clips)
        title = self.title.format(plural(len(clips), "clip"))
        return [Finding(self.severity, title, tuple(where) or names, names, self.meaning, self.remedy)] if clips else []

    def about_songs(self, reasons: Sequence[str]) -> list[Finding]:
        """The finding about some songs, each with its reason; none without songs."""
        title = self.title.format(plural(len(reasons), "song"))
        return [Finding(self.severity, title, tuple(reasons), (), self.meaning, self.remedy)] if reasons else []


BROKEN = _Rule(
    "fix",
    "{} can't be read",
    "They are listed in the metadata, but their files are missing or damaged.",
    "Run prepare again to cut them anew, or delete their lines.",
)
SONG_RULES: Sequence[tuple[_Rule, Callable[[SongRecord], str | None]]] = (
    (
        _Rule("listen", "{} skipped", "They are not trained on.", "Repair them and run prepare again."),
        lambda song: song.skipped,
    ),
    (
        _Rule("listen", "{} damaged", "What could be decoded is used.", "Look for a better copy."),
        lambda song: None if song.skipped else song.damage,
    ),
    (
        _Rule("note", "{} with a remark", "It was made when the song was cut.", "Nothing, if you agree."),
        lambda song: None if song.skipped else song.note,
    ),
    (
        _Rule(
            "listen",
            "{} with clips left out because of invalid samples",
            f"They hold {INVALID}: not sound, but the error of some tool.",
            "Export these songs again if these clips are to be trained on.",
        ),
        lambda song: f"{song.source}: {plural(song.invalid, 'clip')}" if song.clips and song.invalid else None,
    ),
    (
        _Rule(
            "note",
            "{} below the target loudness because of single peaks",
            "More gain would clip them. The model learns that they are softer than the others.",
            "Nothing, or use a limiter on them and run prepare again.",
        ),
        lambda song: f"{song.source}: by {song.soft_by:.1f} LU" if song.clips and song.soft_by > AUDIBLY_SOFT else None,
    ),
    (
        _Rule(
            "note",
            "{} from which a DC offset was removed",
            "The wave was not centred on zero. Clips and loudness are those of the song without it.",
            "Nothing.",
        ),
        lambda song: f"{song.source}: up to {song.offset:.1%} of its peak" if song.clips and song.offset else None,
    ),
)
CAPTION_RULES: Sequence[tuple[_Rule, Fault]] = (
    (
        _Rule(
            "listen",
            "{} with a caption that is too long",
            f"Such captions are {FAULTS['too long']}: the rest is not learned.",
            "Shorten them in clips/metadata.jsonl: a sentence is enough.",
        ),
        "too long",
    ),
    (
        _Rule(
            "fix",
            "{} with a caption in unknown letters",
            f"Such captions are {FAULTS['unknown letters']}.",
            "Write them in English, or at least in Latin letters, in clips/metadata.jsonl.",
        ),
        "unknown letters",
    ),
)
NO_CAPTION = _Rule(
    "fix",
    "{} without a caption",
    "No prompt will call up what is learned from them.",
    "Write their text in clips/metadata.jsonl, or give an --instance_prompt.",
)
VOCALS = _Rule(
    "listen",
    "{} with vocals",
    "MusicGen was trained on instrumentals: it turns voices into a murmur.",
    "Run prepare with --audio_separation true to remove the vocals.",
)
SOUND_RULES: Sequence[tuple[_Rule, Callable[[Sound], bool]]] = (
    (
        _Rule(
            "listen",
            "{} with damaged data",
            "A part of each file can't be decoded and is left out; the music jumps there.",
            "Run prepare again on an undamaged copy of the song.",
        ),
        lambda sound: bool(sound.damage),
    ),
    (
        _Rule(
            "listen",
            "Clipping in {}",
            "The peaks of the waves are cut off. The model learns the distortion as part of the style.",
            "If it is not intended, use a master that is less loud; lowering the volume now doesn't help.",
        ),
        lambda sound: sound.clipping > defects.CLIPPED_SHARE,
    ),
    (
        _Rule(
            "fix",
            "{} mostly silent",
            "The model learns to play nothing under the caption of the song.",
            "Delete their lines in clips/metadata.jsonl.",
        ),
        lambda sound: sound.silence > defects.SILENT_SHARE,
    ),
    (
        _Rule(
            "listen",
            "{} off centre (DC offset)",
            "The wave is not centred on zero: it clicks at its start and end, and wastes headroom.",
            "Run prepare again, which removes it from songs; clips of your own need a high-pass at 20 Hz in an editor.",
        ),
        lambda sound: sound.offset > defects.OFFSET,
    ),
    (
        _Rule(
            "fix",
            "{} with one channel inverted",
            "Left and right cancel each other: almost nothing of them is left in mono.",
            "Invert one channel of the song in any editor and prepare it again.",
        ),
        lambda sound: sound.channels == "inverted",
    ),
    (
        _Rule(
            "listen",
            "{} with one silent channel",
            "Only one of two channels has sound: half as loud in mono, one-sided in stereo.",
            "Convert the song to mono, or record it again.",
        ),
        lambda sound: sound.channels in ("left only", "right only"),
    ),
    (
        _Rule(
            "listen",
            "{} partly out of phase",
            "Left and right cancel in part: some of the music is lost in mono.",
            "Listen to them in mono. If the bass is missing, invert one channel.",
        ),
        lambda sound: sound.channels == "out of phase",
    ),
    (
        _Rule(
            "note",
            "{} in stereo with two equal channels",
            "They are mono: nothing is lost for a mono model, and a stereo one learns no width from them.",
            "Nothing, unless you train a stereo model.",
        ),
        lambda sound: sound.channels == "twin",
    ),
)
IN_BOTH_SPLITS = _Rule(
    "fix",
    "{} both trained on and held out",
    "The held-out loss will look better than it is.",
    "Remove one of the copies.",
)
IN_SEVERAL_SONGS = _Rule(
    "listen",
    "{} that are one recording in several songs",
    "It counts twice in training.",
    "Remove one of the copies, unless it is intended.",
)
IN_ONE_SONG = _Rule(
    "note",
    "{} that repeat each other within a song",
    "A loop or a copied part: it counts more often than the rest.",
    "Delete some of their lines if the song is to count no more than others.",
)


def findings(examination: Examination) -> list[Finding]:
    """All findings, the worst first."""
    rules: Sequence[Callable[[Examination], Iterable[Finding]]] = (
        *(_broken, _songs, _captions, _sounds, _no_treble, _quiet, _repeats),
    )
    results = [finding for rule in rules for finding in rule(examination)]
    return sorted(results, key=lambda finding: SEVERITIES.index(finding.severity))


def _broken(examination: Examination) -> list[Finding]:
    clips = [clip for clip in examination.clips if clip.broken]
    reasons = [(clip.broken or "").removeprefix(f"{clip.file_name}: ") for clip in clips]
    return BROKEN.about_clips(
        clips, [f"{clip.file_name}: {reason}" for clip, reason in zip(clips, reasons, strict=True)]
    )


def _songs(examination: Examination) -> Iterable[Finding]:
    for rule, reason_of in SONG_RULES:
        yield from rule.about_songs([reason for song in examination.songs if (reason := reason_of(song))])


def _captions(examination: Examination) -> Iterable[Finding]:
    yield from NO_CAPTION.about_clips([clip for clip in examination.clips if not clip.text])
    faults = examination.caption_faults
    for rule, fault in CAPTION_RULES:
        yield from rule.about_clips(
            [clip for clip in examination.clips if fault in map(faults.get, (clip.text, *clip.variants))]
        )
    yield from VOCALS.about_clips([clip for clip in examination.clips if clip.vocals])


def _sounds(examination: Examination) -> Iterable[Finding]:
    for rule, is_so in SOUND_RULES:
        yield from rule.about_clips([clip for clip, sound in examination.readable if is_so(sound)])


def _no_treble(examination: Examination) -> list[Finding]:
    limit = defects.NARROW_SHARE * examination.rate / 2
    narrow = [(clip, sound) for clip, sound in examination.readable if sound.bandwidth < limit]
    edges = sorted({round(sound.bandwidth / 1000, 1) for _, sound in narrow})
    span = " to ".join(f"{edge:g}" for edge in dict.fromkeys([*edges[:1], *edges[-1:]]))
    rule = _Rule(
        "listen",
        f"No treble above {span} kHz in {{}}",
        "They come from small mp3 files or an old converter, and the model learns their dull sound.",
        "Look for better copies; an equaliser can't restore what is missing.",
    )
    return rule.about_clips([clip for clip, _ in narrow])


def _quiet(examination: Examination) -> list[Finding]:
    median = float(np.median(examination.loudness)) if examination.loudness else 0.0
    rule = _Rule(
        "listen",
        "{} far quieter than the others",
        f"They lie more than {QUIETER:g} LU below the median of {median:.1f} LUFS: the model learns to fade.",
        "If it is a fade or a pause, delete their lines in clips/metadata.jsonl.",
    )
    return rule.about_clips(
        [clip for clip, sound in examination.readable if sound.lufs is not None and sound.lufs < median - QUIETER]
    )


def _repeats(examination: Examination) -> Iterable[Finding]:
    """The same recording more than once: in both splits, in two songs, in one."""
    pairs_of: dict[_Rule, list[Duplicate]] = {IN_BOTH_SPLITS: [], IN_SEVERAL_SONGS: [], IN_ONE_SONG: []}
    for pair in examination.duplicates:
        a, b = examination.clips[pair.a], examination.clips[pair.b]
        rule = IN_BOTH_SPLITS if a.split != b.split else IN_SEVERAL_SONGS if a.source != b.source else IN_ONE_SONG
        pairs_of[rule].append(pair)
    for rule, pairs in pairs_of.items():
        groups = [[examination.clips[clip] for clip in group] for group in _groups(pairs)]
        yield from rule.about_clips([clip for group in groups for clip in group], [_names(group) for group in groups])


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
