"""What the doctor's figures mean: findings, each with its meaning and a remedy, and advice on the whole."""

from __future__ import annotations

from collections import Counter
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
from musicgen_dreamboothing.data.songs.song import TRAIN
from musicgen_dreamboothing.data.songs.song_audio import INVALID

Severity = Literal["mend", "listen", "know"]

QUIETER = 10.0  # LU below the middle clip
ALIKE = 6.0  # LU between the quiet and the loud tenth: more is a spread that training hears
NAMED_COPIES = 6  # of a group of clips that are the same
LARGEST_SHARE = 0.5  # of the music in one song
# Minutes to learn from, what they are enough for, and how often they should be heard.
AMOUNTS = (
    (3.0, "very little: the model will copy it rather than learn from it; add songs, ten minutes go a long way", 2),
    (8.0, "enough for a colour, not for a style; more songs help more than more epochs", 3),
    (90.0, "enough for a style", 4),
    (float("inf"), "plenty", 2),
)
# Mel distances in dB in words: a rule of thumb, there is no standard for it.
CODEC_WORDS = (
    (2.5, "hardly any difference: the codec is no limit here"),
    (5.0, "close: fine detail in the treble is lost, the music is not"),
    (float("inf"), "audibly rougher: no training makes the model sound better than these copies"),
)


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing.

    Attributes:
        severity: `mend` before training, `listen` and decide, or just `know`.
        title: what was found and how often.
        where: songs, clips or groups of clips.
        clips: file names of the clips that it is about.
        meaning: what it does to a training.
        remedy: what to do.
    """

    severity: Severity
    title: str
    where: tuple[str, ...]
    clips: tuple[str, ...]
    meaning: str
    remedy: str


def findings(examination: Examination) -> list[Finding]:
    """All of them, the worst first."""
    rules: list[Callable[[Examination], Iterable[Finding]]] = [_files, _captions, _sounds, _sides, _loudness, _repeats]
    order: list[Severity] = ["mend", "listen", "know"]
    found = [finding for rule in rules for finding in rule(examination)]
    return sorted(found, key=lambda finding: order.index(finding.severity))


def _about(
    clips: Sequence[Clip], severity: Severity, title: str, meaning: str, remedy: str, *, where: Sequence[str] = ()
) -> list[Finding]:
    """A finding about some clips; none where there are none. `{}` in the title stands for their number."""
    names = tuple(clip.file_name for clip in clips)
    title = title.format(plural(len(clips), "clip"))
    return [Finding(severity, title, tuple(where) or names, names, meaning, remedy)] if clips else []


def _files(examination: Examination) -> list[Finding]:
    """What could not be read, or only in part."""
    broken = [clip for clip in examination.clips if clip.broken]
    damaged = [clip for clip, sound in examination.heard if sound.damage]
    skipped = [song.skipped for song in examination.songs if song.skipped]
    hurt = [song.damage for song in examination.songs if song.damage and not song.skipped]
    notes = [song.note for song in examination.songs if song.note and not song.skipped]
    return [
        *_about(
            broken,
            "mend",
            "{} can't be read",
            "They are listed in the metadata, but nobody can hear them.",
            "Run prepare again to cut them anew, or delete their lines.",
            where=[f"{clip.file_name}: {_reason(clip)}" for clip in broken],
        ),
        *_about(
            damaged,
            "listen",
            "{} with damaged data",
            "A part of each file can't be decoded and is left out; the music jumps there.",
            "Run prepare again on an undamaged copy of the song.",
        ),
        *_songs(skipped, "listen", "skipped", "Nothing is learned of it.", "Repair it and run prepare again."),
        *_songs(hurt, "listen", "damaged", "What could be decoded is used.", "Look for a better copy."),
        *_songs(notes, "know", "with a remark", "It was made when the song was cut.", "Nothing, if you agree."),
        *_levels(examination),
    ]


def _levels(examination: Examination) -> list[Finding]:
    """What was done about the samples of songs when they were cut, and what could not be done."""
    used = [song for song in examination.songs if song.clips]
    invalid = [f"{song.source}: {plural(song.invalid, 'clip')}" for song in used if song.invalid]
    offsets = [f"{song.source}: up to {song.offset:.1%} of its peak" for song in used if song.offset]
    soft = [f"{song.source}: by {song.soft_by:.1f} LU" for song in used if song.soft_by > AUDIBLY_SOFT]
    return [
        *_songs(
            invalid,
            "listen",
            "with clips left out because of invalid samples",
            f"They hold {INVALID}: no sound, but the error of some tool.",
            "Export these songs again if these clips are to be trained on.",
        ),
        *_songs(
            soft,
            "know",
            "below the target loudness because of single peaks",
            "More gain would clip them. The model learns that they are softer than the others.",
            "Nothing, or use a limiter on them and run prepare again.",
        ),
        *_songs(
            offsets,
            "know",
            "from which a DC offset was removed",
            "The wave did not swing around zero. Clips and loudness are those of the song without it.",
            "Nothing.",
        ),
    ]


def _reason(clip: Clip) -> str:
    return (clip.broken or "").removeprefix(f"{clip.file_name}: ")


def _songs(reasons: list[str], severity: Severity, what: str, meaning: str, remedy: str) -> list[Finding]:
    if not reasons:
        return []
    return [Finding(severity, f"{plural(len(reasons), 'song')} {what}", tuple(reasons), (), meaning, remedy)]


def _captions(examination: Examination) -> list[Finding]:
    return [
        *_about(
            [clip for clip in examination.clips if not clip.text],
            "mend",
            "{} without a caption",
            "No words will call up what is learned from them.",
            "Write their text in clips/metadata.jsonl, or give an --instance_prompt.",
        ),
        *_about(
            _with_fault(examination, "too long"),
            "listen",
            "{} with a caption that is too long",
            f"It is {FAULTS['too long']}: what stands behind that is not learned.",
            "Shorten it in clips/metadata.jsonl: a sentence does.",
        ),
        *_about(
            _with_fault(examination, "unknown letters"),
            "mend",
            "{} with a caption in unknown letters",
            f"It is {FAULTS['unknown letters']}.",
            "Write it in English, or at least in Latin letters, in clips/metadata.jsonl.",
        ),
        *_about(
            [clip for clip in examination.clips if clip.vocals],
            "listen",
            "{} with somebody singing",
            "MusicGen was trained on instrumentals: it turns voices into a murmur.",
            "Run prepare with --audio_separation true to take the vocals out.",
        ),
    ]


def _with_fault(examination: Examination, fault: Fault) -> list[Clip]:
    faults = examination.caption_faults
    return [clip for clip in examination.clips if fault in map(faults.get, (clip.text, *clip.variants))]


def _sounds(examination: Examination) -> list[Finding]:
    narrow = _which(examination, lambda sound: sound.bandwidth < defects.NARROW_SHARE * examination.rate / 2)
    edges = sorted({round(clip.sound.bandwidth / 1000, 1) for clip in narrow if clip.sound})
    span = " to ".join(f"{edge:g}" for edge in dict.fromkeys([*edges[:1], *edges[-1:]]))
    return [
        *_about(
            _which(examination, lambda sound: sound.clipping > defects.CLIPPED_SHARE),
            "listen",
            "Clipping in {}",
            "The tops of the waves are cut off. The model learns the crackle as part of the style.",
            "If it isn't meant, use a master that is less loud; turning it down now doesn't help.",
        ),
        *_about(
            _which(examination, lambda sound: sound.silence > defects.SILENT_SHARE),
            "mend",
            "{} mostly silent",
            "The model learns to play nothing under the caption of the song.",
            "Delete their lines in clips/metadata.jsonl.",
        ),
        *_about(
            _which(examination, lambda sound: sound.offset > defects.OFFSET),
            "listen",
            "{} off centre (DC offset)",
            "The wave doesn't swing around zero: it clicks where it begins and ends, and wastes headroom.",
            "Run prepare again, which removes it from songs; clips of your own need a high-pass at 20 Hz in an editor.",
        ),
        *_about(
            narrow,
            "listen",
            f"No treble above {span} kHz in {{}}",
            "They come from small mp3 files or an old converter, and the model learns their dullness.",
            "Look for better copies; an equaliser can't bring back what isn't there.",
        ),
    ]


def _which(examination: Examination, is_so: Callable[[Sound], bool]) -> list[Clip]:
    return [clip for clip, sound in examination.heard if is_so(sound)]


def _sides(examination: Examination) -> list[Finding]:
    return [
        *_about(
            _which(examination, lambda sound: sound.channels == "inverted"),
            "mend",
            "{} with one side upside down",
            "Left and right cancel each other: a mono model hears next to nothing of them.",
            "Invert one channel of the song in any editor and prepare it again.",
        ),
        *_about(
            _which(examination, lambda sound: sound.channels in ("left only", "right only")),
            "listen",
            "{} with one dead side",
            "Only one of two channels has sound: half as loud in mono, lopsided in stereo.",
            "Turn the song into mono, or mend the cable and record it again.",
        ),
        *_about(
            _which(examination, lambda sound: sound.channels == "out of phase"),
            "listen",
            "{} partly out of phase",
            "Left and right work against each other: parts of the music vanish in mono.",
            "Listen to them in mono. If the bass is gone, invert one channel.",
        ),
        *_about(
            _which(examination, lambda sound: sound.channels == "twin"),
            "know",
            "{} in stereo with two equal sides",
            "They are mono in fact: nothing is lost for a mono model, and a stereo one learns no width from them.",
            "Nothing, unless you train a stereo model.",
        ),
    ]


def _loudness(examination: Examination) -> list[Finding]:
    found = _loudnesses(examination)
    middle = float(np.median(found)) if found else 0.0
    return _about(
        _which(examination, lambda sound: sound.lufs is not None and sound.lufs < middle - QUIETER),
        "listen",
        "{} far quieter than the others",
        f"They lie more than {QUIETER:g} LU below the middle one of {middle:.1f} LUFS: the model learns to fade.",
        "If it is a fade or a pause, delete their lines in clips/metadata.jsonl.",
    )


def _loudnesses(examination: Examination) -> list[float]:
    return [sound.lufs for _, sound in examination.heard if sound.lufs is not None]


def _repeats(examination: Examination) -> list[Finding]:
    """The same take more than once: in both splits, in two songs, in one."""
    apart: list[Duplicate] = []
    across: list[Duplicate] = []
    within: list[Duplicate] = []
    for pair in examination.duplicates:
        one, other = examination.clips[pair.a], examination.clips[pair.b]
        kind = apart if one.split != other.split else across if one.source != other.source else within
        kind.append(pair)
    return [
        *_same(
            examination,
            apart,
            "mend",
            "{} both trained on and held out",
            "The held-out loss will look better than it is.",
            "Remove one of the copies.",
        ),
        *_same(
            examination,
            across,
            "listen",
            "{} that are one take in several songs",
            "What is there twice is learned twice as hard.",
            "Remove one of the copies, unless it is meant.",
        ),
        *_same(
            examination,
            within,
            "know",
            "{} that repeat each other within a song",
            "A loop or a copied part: it is heard more often than the rest.",
            "Delete some of their lines if the song is to count no more than others.",
        ),
    ]


def _same(
    examination: Examination, pairs: list[Duplicate], severity: Severity, title: str, meaning: str, remedy: str
) -> list[Finding]:
    groups = [[examination.clips[clip] for clip in group] for group in _groups(pairs)]
    where = [_equal(clip.file_name for clip in group) for group in groups]
    return _about([clip for group in groups for clip in group], severity, title, meaning, remedy, where=where)


def _equal(names: Iterable[str]) -> str:
    """`a = b = c and 2 more`: a loop may repeat in hundreds of clips."""
    names = list(names)
    more = f" and {len(names) - NAMED_COPIES} more" if len(names) > NAMED_COPIES else ""
    return " = ".join(names[:NAMED_COPIES]) + more


def _groups(pairs: Iterable[Duplicate]) -> list[list[int]]:
    """Clips that hang together, by number."""
    groups: dict[int, set[int]] = {}
    for pair in pairs:
        one, other = groups.setdefault(pair.a, {pair.a}), groups.setdefault(pair.b, {pair.b})
        if one is not other:
            one |= other
            groups |= dict.fromkeys(other, one)
    return sorted({min(group): sorted(group) for group in groups.values()}.values())


def advice(examination: Examination) -> list[str]:
    """What to do with so much music of this kind, in sentences."""
    rules = [_amount, _alike, _words, _weights, _treble, _ceiling]
    return [line for rule in rules for line in rule(examination)]


def _amount(examination: Examination) -> list[str]:
    minutes = sum(sound.seconds for clip, sound in examination.heard if clip.split == TRAIN) / 60
    _, words, epochs = next(amount for amount in AMOUNTS if minutes < amount[0])
    return [f"{_minutes(minutes)} to learn from: {words}. {epochs} epochs are a good start."]


def _minutes(minutes: float) -> str:
    return plural(round(minutes), "minute") if minutes >= 1 else plural(round(60 * minutes), "second")


def _alike(examination: Examination) -> list[str]:
    found = _loudnesses(examination)
    if not found:
        return ["No clip is loud enough to have a loudness: check the songs."]
    low, high = np.quantile(found, [0.1, 0.9])
    if high - low <= ALIKE:
        return []
    return [
        f"Loudness differs by {high - low:.0f} LU from clip to clip. --normalize_loudness true brings songs to one "
        "level; what is left is their own dynamics."
    ]


def _words(examination: Examination) -> list[str]:
    captions = Counter(clip.text for clip in examination.clips)
    if len(examination.clips) < 2 or len(captions) > 1 or not next(iter(captions)):
        return []
    return [
        "All captions are the same, so one phrase will mean everything. --add_metadata true tells the clips apart, "
        "or describe them in clips/metadata.jsonl."
    ]


def _weights(examination: Examination) -> list[str]:
    seconds: dict[str, float] = {}
    for clip, sound in examination.heard:
        seconds[clip.source] = seconds.get(clip.source, 0.0) + sound.seconds
    song = max(seconds, key=lambda song: seconds[song])
    share = seconds[song] / sum(seconds.values())
    if len(seconds) < 3 or share <= LARGEST_SHARE:
        return []
    return [f"{song} is {share:.0%} of all music: the model will sound like that song."]


def _treble(examination: Examination) -> list[str]:
    middle = float(np.median([sound.bandwidth for _, sound in examination.heard]))
    if middle >= defects.NARROW_SHARE * examination.rate / 2:
        return []
    return [f"Most clips have nothing above {middle / 1000:.1f} kHz, so neither will what the model plays."]


def _ceiling(examination: Examination) -> list[str]:
    if not examination.previews:
        return []
    mean = float(np.mean([coded.mel_db for coded in examination.previews]))
    return [f"The codec alone changes this music by {mean:.1f} dB (mel distance): {codec_word(mean)}."]


def codec_word(mel_db: float) -> str:
    """A mel distance in words."""
    return next(words for limit, words in CODEC_WORDS if mel_db < limit)
