"""How often the search by sound flags copies, and new music that is none, on a folder of songs of yours.

    python benchmarks/copies.py SONGS                   # six reports, about two minutes

Needs some 30 songs of 29 s or more, no two of them the same recording. In each report ten of them are trained on, and
36 clips of 8 s of the others are new music: one flagged clip is a false alarm. Then ten copies of each kind, at random
places: 8 s, riffs of 5 and 4 s amid other music, and 8 s at another speed on tape, which moves the pitch as well.

One should see no or few false alarms, all copies of 8 s, and half of the riffs of 4 s. A riff that a model repeats code
by code is found by its codes; this search is for what was changed.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.console import progress_bar
from musicgen_dreamboothing.evaluation.metrics.copies import TrainingClip
from musicgen_dreamboothing.evaluation.metrics.semitones import spectrogram
from musicgen_dreamboothing.evaluation.metrics.sound_index import SoundIndex

RESULT = Path(__file__).parent / "results" / "copies.json"
RATE = 16_000
SECONDS, SHORTEST, LONGEST = 8.0, 29, 45  # of a clip, and of a song
CLIP = 20  # seconds of a training clip
TRAINED, NEW, COPIES = 10, 36, 10  # songs, clips of new music, copies of each kind
RIFFS = {"riff of 5 s": 5.0, "riff of 4 s": 4.0}
SPEEDS = {"tape at 0.95": 0.95, "tape at 1.05": 1.05, "tape two semitones down": 2 ** (-2 / 12)}

Wave = NDArray[np.float32]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("songs", type=Path, help="folder of songs")
    parser.add_argument("--reports", type=int, default=6, help="how many")
    parser.add_argument("--about", default="", help="what the songs are, for the result file")
    options = parser.parse_args()
    songs = read_songs(options.songs)
    reports = [report_of(songs, seed) for seed in progress_bar(range(options.reports), unit="report", desc="searching")]
    alarms = [report.pop("false alarms") for report in reports]
    found = sum((Counter(report) for report in reports), Counter())
    result = {
        "songs": len(songs),
        "about": options.about,
        "reports": options.reports,
        "clips of new music in each": NEW,
        "reports with a false alarm": sum(alarm > 0 for alarm in alarms),
        "clips flagged falsely": sum(alarms),
        "copies flagged": {kind: found[kind] / (COPIES * options.reports) for kind in reports[0]},
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


def read_songs(folder: Path) -> dict[str, Wave]:
    """Mono waves `[1, S]` of the songs that are long enough."""
    songs = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            wave = audio.to_channels(audio.decode(path, RATE), 1)
        except audio.AudioError:
            continue
        if wave.shape[1] >= SHORTEST * RATE:
            songs[path.stem] = wave[:, : LONGEST * RATE]
    if len(songs) < 2 * TRAINED:
        raise SystemExit(f"error: {folder} has {len(songs)} songs of {SHORTEST} s or more; {2 * TRAINED} are needed")
    return songs


def report_of(songs: dict[str, Wave], seed: int) -> dict[str, int]:
    """False alarms, and how many copies of each kind were flagged."""
    rng = np.random.default_rng(seed)
    names = rng.permutation(list(songs)).tolist()
    clips, waves = [], []
    for name in names[:TRAINED]:
        for start in range(0, songs[name].shape[1] // RATE - CLIP + 1, CLIP):
            clips.append(TrainingClip(name, float(start), f"{name}-{start}"))
            waves.append(cut(songs[name], start, CLIP))
    index = SoundIndex([spectrogram(wave, RATE) for wave in waves], clips)
    others = [songs[name] for name in names[TRAINED:]]
    new = [cut(others[n % len(others)], rng.uniform(0, SHORTEST - SECONDS), SECONDS) for n in range(NEW)]
    flagged = {"false alarms": sum(flagged_song(index, wave) is not None for wave in new)}
    for kind in ("copy of 8 s", *RIFFS, *SPEEDS):
        rows = rng.integers(len(clips), size=COPIES)
        copies = [changed(kind, waves[row], others[int(rng.integers(len(others)))], rng) for row in rows]
        pairs = zip(rows, copies, strict=True)
        flagged[kind] = sum(flagged_song(index, wave) == clips[row].song for row, wave in pairs)
    return flagged


def changed(kind: str, wave: Wave, other: Wave, rng: np.random.Generator) -> Wave:
    """8 s with a copy of a part of `wave`."""
    at = rng.uniform(0, CLIP - SECONDS / min(SPEEDS.values()) - 1)
    if kind in RIFFS:
        before = rng.uniform(0, SECONDS - RIFFS[kind])
        after = SECONDS - RIFFS[kind] - before
        return np.concatenate([cut(other, 5, before), cut(wave, at, RIFFS[kind]), cut(other, 20, after)], axis=1)
    speed = SPEEDS.get(kind, 1.0)
    return cut(audio.resample(cut(wave, at, SECONDS * speed + 1), round(RATE * speed), RATE), 0, SECONDS)


def flagged_song(index: SoundIndex, wave: Wave) -> str | None:
    likeness = index.nearest(wave, RATE).likeness
    return likeness.song if likeness is not None and likeness.is_copy else None


def cut(wave: Wave, at: float, seconds: float) -> Wave:
    return wave[:, round(at * RATE) : round((at + seconds) * RATE)]


if __name__ == "__main__":
    main()
