"""Advice on a prepared folder in general, in sentences: how much music it holds, what most of it has in common."""

from __future__ import annotations

from collections import Counter

import numpy as np

from musicgen_dreamboothing.analysis import defects
from musicgen_dreamboothing.console import plural
from musicgen_dreamboothing.data.doctor.examination import Examination
from musicgen_dreamboothing.data.songs.song import TRAIN

EVEN_LOUDNESS = 6.0  # LU between the quiet and the loud tenth
LARGEST_SHARE = 0.5  # of the music in one song
# Minutes to learn from, what they are enough for, and epochs to begin with.
AMOUNTS = (
    (3.0, "very little: the model will copy it rather than learn from it; add songs, ten minutes are much better", 2),
    (8.0, "little for a style; more songs help more than more epochs", 3),
    (90.0, "enough for a style", 4),
    (float("inf"), "plenty", 2),
)
# Mel distances in dB in words: a rule of thumb, there is no standard for it.
CODEC_QUALITY = (
    (2.5, "hardly any difference: the codec is no limit here"),
    (5.0, "close: fine detail in the treble is lost, the music is not"),
    (float("inf"), "audibly rougher: no training makes the model sound better than these copies"),
)


def advice(examination: Examination) -> list[str]:
    """What to do with so much music of this kind."""
    rules = (_amount, _loudness, _captions, _largest_song, _treble, _codec)
    return [sentence for rule in rules if (sentence := rule(examination))]


def codec_quality(mel_db: float) -> str:
    """A mel distance in words."""
    return next(words for limit, words in CODEC_QUALITY if mel_db < limit)


def _amount(examination: Examination) -> str:
    minutes = sum(sound.seconds for clip, sound in examination.readable if clip.split == TRAIN) / 60
    _, words, epochs = next(amount for amount in AMOUNTS if minutes < amount[0])
    length = plural(round(minutes), "minute") if minutes >= 1 else plural(round(60 * minutes), "second")
    return f"{length} of training music: {words}. {epochs} epochs are a good start."


def _loudness(examination: Examination) -> str:
    if not examination.loudness:
        return "All clips are below the loudness gate: check the songs."
    low, high = np.quantile(examination.loudness, [0.1, 0.9])
    if high - low <= EVEN_LOUDNESS:
        return ""
    return (
        f"Loudness differs by {high - low:.0f} LU from clip to clip. --normalize_loudness true brings songs to one "
        "level; what remains are their own dynamics."
    )


def _captions(examination: Examination) -> str:
    captions = Counter(clip.text for clip in examination.clips)
    if len(examination.clips) < 2 or len(captions) > 1 or not next(iter(captions)):
        return ""
    return (
        "All captions are the same, so one phrase will mean everything. --add_metadata true describes each clip, "
        "or describe them in clips/metadata.jsonl."
    )


def _largest_song(examination: Examination) -> str:
    seconds = Counter[str]()
    for clip, sound in examination.readable:
        seconds[clip.source] += sound.seconds  # type: ignore[assignment]
    ((song, most),) = seconds.most_common(1)
    share = most / sum(seconds.values())
    if len(seconds) < 3 or share <= LARGEST_SHARE:
        return ""
    return f"{song} is {share:.0%} of all music: the model will sound like that song."


def _treble(examination: Examination) -> str:
    median = float(np.median([sound.bandwidth for _, sound in examination.readable]))
    if median >= defects.NARROW_SHARE * examination.rate / 2:
        return ""
    return f"Most clips have nothing above {median / 1000:.1f} kHz, so neither will what the model generates."


def _codec(examination: Examination) -> str:
    if not examination.previews:
        return ""
    mean = float(np.mean([preview.mel_db for preview in examination.previews]))
    return f"The codec alone changes this music by {mean:.1f} dB (mel distance): {codec_quality(mean)}."
