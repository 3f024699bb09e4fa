"""Are clips copies? Every clip of both models is searched for in the training clips, by codes and by sound."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from musicgen_dreamboothing.console import log
from musicgen_dreamboothing.data.layout import CLIPS
from musicgen_dreamboothing.data.tokens.store import read_codes, recordings_of
from musicgen_dreamboothing.data.tokens.tables import Tables
from musicgen_dreamboothing.evaluation.clips import EvaluatedClip
from musicgen_dreamboothing.evaluation.collect import EvaluationData
from musicgen_dreamboothing.evaluation.metrics.code_index import CODES, CodeIndex
from musicgen_dreamboothing.evaluation.metrics.copies import Match
from musicgen_dreamboothing.evaluation.metrics.sound_index import SOUND, SoundIndex
from musicgen_dreamboothing.evaluation.references import training_clips
from musicgen_dreamboothing.evaluation.result import NEUTRAL, STYLE, CopyCounts, Likeness, Nearest, Originality
from musicgen_dreamboothing.files import digest

SONGS = "songs"  # folder of the training clips that were copied
SEARCHES = 2  # of each clip


def nearest_clips(
    data: EvaluationData, folder: Path, tables: Tables, prepared: Path
) -> tuple[list[Nearest], Originality]:
    """The nearest training clip of each clip of the fine-tuned model, and how many clips of either are near-copies.

    A training clip that was copied is put into `folder`, so that the report can play it.
    """
    codes, names = training_clips(tables.train, _recordings(tables, prepared))
    tests = SEARCHES * len(data.tuned)
    code_index = CodeIndex(codes, names, codes[0].shape[1] / tables.train["seconds"][0], tests)
    rows = list(data.spectra)
    sound_index = SoundIndex(list(data.spectra.values()), [names[row] for row in rows], tests)
    base, tuned = (_search(code_index, sound_index, clips) for clips in (data.base, data.tuned))
    nearest = [
        _nearest(match, clip, folder, tables, prepared)
        for clip, matches in zip(data.tuned, tuned, strict=True)
        if (match := strongest(*matches)) is not None
    ]
    songs = tables.train["source"]
    return nearest, Originality(
        base=_counts(base),
        tuned=_counts(tuned),
        style_clips=len(data.rows(STYLE)),
        neutral_clips=len(data.rows(NEUTRAL)),
        clips=len(names),
        songs=len(set(songs)),
        clips_by_sound=len(rows),
        songs_by_sound=len({songs[row] for row in rows}),
        not_checked=_not_checked(tuned),
    )


def _recordings(tables: Tables, prepared: Path) -> dict[str, str]:
    """The recording of each song: the same one for an album and a single."""
    table, row_of = read_codes(prepared, tables.split.codes)
    rows = [row for row in tables.split.train if row["digest"] in row_of]
    return recordings_of(prepared, rows, table, row_of)


def _search(codes: CodeIndex, sounds: SoundIndex, clips: Sequence[EvaluatedClip]) -> list[tuple[Match, Match]]:
    by_codes = codes.search([clip.codes for clip in clips])
    return list(zip(by_codes, sounds.search([(clip.wave, clip.rate) for clip in clips]), strict=True))


def strongest(by_codes: Match, by_sound: Match) -> Likeness | None:
    """The likeness that a report shows: a copy rather than none, and one by codes rather than by sound."""
    likenesses = [match.likeness for match in (by_codes, by_sound) if match.likeness is not None]
    copies = [one for one in likenesses if one.is_copy]
    return copies[0] if copies else max(likenesses, key=lambda one: one.strength, default=None)


def _counts(matches: Sequence[tuple[Match, Match]]) -> CopyCounts:
    flagged = [one is not None and one.is_copy for one in (strongest(*pair) for pair in matches)]
    by_codes, by_sound = (sum(not pair[number].unchecked for pair in matches) for number in (0, 1))
    return CopyCounts(len(matches), by_codes, by_sound, sum(flagged))


def _not_checked(matches: Sequence[tuple[Match, Match]]) -> list[str]:
    """`by sound, because there is a single song`, each reason once."""
    ways: dict[str, dict[str, None]] = {}
    for pair in matches:
        for way, match in zip((CODES, SOUND), pair, strict=True):
            if match.unchecked:
                ways.setdefault(match.unchecked, {})[way] = None
    return [f"{' and '.join(f'by {way}' for way in names)}, because {reason}" for reason, names in ways.items()]


def _nearest(match: Likeness, clip: EvaluatedClip, folder: Path, tables: Tables, prepared: Path) -> Nearest:
    """For the report, with the training clip beside it where that was copied."""
    name = match.clip_file
    copy = ""
    if match.is_copy:
        row = list(tables.train["file_name"]).index(name)
        copy = _copied(prepared / CLIPS / name, name, tables.train["digest"][row], folder)
    shown = asdict(match) | {"clip_file": copy}
    return Nearest(**shown, file=os.path.relpath(clip.file, folder), prompt=clip.prompt, kind=clip.kind)


def _copied(source: Path, name: str, expected: str, folder: Path) -> str:
    """Copies a training clip beside the report; empty if it is not what it was in the training (`expected` digest)."""
    try:
        if not source.is_file() or digest(source) != expected:
            log(f"note: the report can't play {name}: the clip is gone or has changed since the training")
            return ""
        copy = f"{SONGS}/{name.replace('/', '_')}"
        (folder / SONGS).mkdir(exist_ok=True)
        shutil.copyfile(source, folder / copy)
    except OSError as error:
        log(f"note: the report can't play {source} ({error.strerror})")
        return ""
    return copy
