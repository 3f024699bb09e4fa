"""Whether time per clip and memory stay flat as a folder or a song grows: `prepare` and `train` on 100 and 1,000 clips.

    python benchmarks/growth.py
    python benchmarks/growth.py --clips 10 50 250
    python benchmarks/growth.py --clips 200 2000 --add_metadata   # 20 and 200 songs: measured, described, examined
    python benchmarks/growth.py --song_minutes 2 10 40   # one stereo song each, cut by a worker of `prepare`

Songs of two-second clips and the built-in tiny checkpoint. What a command takes for two clips is taken off, so that
the start of a process is not what is compared; one epoch is trained, with four clips at once.

One should see milliseconds a clip and peak memory of each command, with their ratios to those of the fewest clips; of
long songs seconds a minute and peak memory of the worker, by the clock and with `--cut bars --add_metadata true`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import _common

WRITE = "songs"
WRITE_LONG, CLOCK, BARS = "long song", "clock", "bars, described"
LONG_RATE, PIECE_SECONDS = 44_100, 30
CLIP_SECONDS, CLIPS_A_SONG, FEWEST = 2, 10, 2


def main() -> None:
    options = _options()
    _common.play(options, _measure_songs if options.song_minutes else _measure, _work)


def _work(options: argparse.Namespace) -> dict[str, float] | None:
    if options.variant in (CLOCK, BARS):
        return _cut_long(Path(options.folder), options.variant)
    write = _write_long if options.variant == WRITE_LONG else _write
    return write(Path(options.folder), options.number)


def _options() -> argparse.Namespace:
    parser = _common.options(__doc__)
    parser.add_argument("--clips", type=int, nargs="+", default=[100, 1000])
    parser.add_argument(
        "--add_metadata", action="store_true", help="measure, describe (without a CLAP) and examine; without a training"
    )
    parser.add_argument("--song_minutes", type=float, nargs="+", help="cut one song of each length, and nothing else")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--number", type=float, help=argparse.SUPPRESS)
    return parser.parse_args()


def _measure(options: argparse.Namespace) -> None:
    about = _common.run_variant(__file__, _common.PROBE)
    found = {clips: _run(clips, options.add_metadata) for clips in (FEWEST, *options.clips)}
    rows = []
    for verb in found[FEWEST]:
        start = found[FEWEST][verb][0]
        first: dict[str, float] = {}
        for clips in options.clips:
            seconds, gigabytes = found[clips][verb]
            row = {"ms/clip": 1000 * (seconds - start) / (clips - FEWEST), "peak GB": gigabytes}
            first = first or row
            ratios = {"time": row["ms/clip"] / first["ms/clip"], "memory": row["peak GB"] / first["peak GB"]}
            rows.append({"command": verb, "clips": clips, **row, **ratios})
    _common.show(f"growth on {about['device']}", rows)
    case = " ".join([*map(str, options.clips), *(["described"] if options.add_metadata else [])])
    path = _common.keep(about, "growth", case, {"rows": rows})
    print(f"kept in {path.parent.name}/{path.name}")


def _run(clips: int, described: bool) -> dict[str, tuple[float, float]]:
    """(seconds, peak GB) of the commands."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _common.run_variant(__file__, WRITE, "--folder", name, "--number", str(clips))
        base = ["--model_name_or_path", folder / "base", "--instance_prompt", "noise"]
        cut = ["--max_duration_in_seconds", CLIP_SECONDS, "--min_duration_in_seconds", 1]
        sizes = ["--per_device_train_batch_size", 4, "--gradient_accumulation_steps", 1, "--recompute", "none"]
        quiet = ["--eval_strategy", "no", "--save_strategy", "no", "--eval_fraction", 0, "--final_report", "false"]
        whole = ["--add_metadata", "true", "--clap_model_name_or_path", folder / "none"]
        whole += ["--preprocessing_num_workers", 1]  # in the process that is measured
        words = {
            "prepare": [
                *(folder / "songs", "--output_dir", folder / "prepared", *base, *cut),
                *(whole if described else ["--doctor", "false"]),
            ],
            "train": [
                *("--dataset_name", folder / "prepared", "--output_dir", folder / "run", *base, *cut),
                *("--num_train_epochs", 1, "--logging_steps", 50, *sizes, *quiet),
            ],
        }
        if described:
            del words["train"]
        return {verb: _timed(verb, [str(word) for word in options]) for verb, options in words.items()}


def _timed(verb: str, words: list[str]) -> tuple[float, float]:
    """Runs a command; the peak is that of its process, as the system counted it."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "musicgen_dreamboothing", verb, *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{verb} failed: {' '.join(words)}")
    return time.perf_counter() - started, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def _measure_songs(options: argparse.Namespace) -> None:
    about = _common.run_variant(__file__, _common.PROBE, *_common.ON_THE_CPU)
    rows: list[dict[str, Any]] = []
    for variant in (CLOCK, BARS):
        for minutes in options.song_minutes:
            with tempfile.TemporaryDirectory() as name:
                _common.run_variant(__file__, WRITE_LONG, "--folder", name, "--number", str(minutes))
                rows.append(
                    {"cut": variant, "minutes": minutes, **_common.run_variant(__file__, variant, "--folder", name)}
                )
    _common.show(f"one song on {about['device']}", rows)
    path = _common.keep(about, "growth", f"songs of {_texts(options.song_minutes)} minutes", {"rows": rows})
    print(f"kept in {path.parent.name}/{path.name}")


def _texts(numbers: list[float]) -> str:
    return " ".join(f"{number:g}" for number in numbers)


def _cut_long(folder: Path, variant: str) -> dict[str, float]:
    """What a worker takes for the song in a folder: its process imports what cutting needs, and no torch."""
    import resource

    import soundfile

    from musicgen_dreamboothing.data.songs.cutting import Cutting, cut_song
    from musicgen_dreamboothing.data.songs.song import TRAIN, Song

    path, described = folder / "song.flac", variant == BARS
    song = Song(path.name, lambda: path, None, TRAIN, "1")
    started = time.perf_counter()
    record = cut_song(song, "song", folder, Cutting(32_000, 640, 30, 2, 8 * described, -14.0, described))
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
    minutes = soundfile.info(path).duration / 60
    return {"clips": len(record.clips), "s/minute": seconds / minutes, "peak GB": peak}


def _write_long(folder: Path, minutes: float) -> None:
    """A stereo song of one piece over and over, with a beat and a slow swell."""
    import numpy as np
    import soundfile

    rng, times = np.random.default_rng(0), np.arange(PIECE_SECONDS * LONG_RATE) / LONG_RATE
    beat = np.exp(-12 * (times % 0.5)) * rng.standard_normal((2, len(times)))
    tones = sum(np.sin(2 * np.pi * hertz * times) for hertz in (220.0, 277.2, 329.6))
    piece = (0.2 * beat + 0.05 * tones).T.astype(np.float32)
    with soundfile.SoundFile(folder / "song.flac", "w", LONG_RATE, 2, "PCM_16") as file:
        left = round(minutes * 60 * LONG_RATE)
        while left > 0:
            file.write(piece[:left] * (0.5 + 0.5 * np.sin(left)))
            left -= len(piece)


def _write(folder: Path, clips: float) -> None:
    """Songs of ten clips; the last one has what is left."""
    import numpy as np

    from musicgen_dreamboothing import audio
    from musicgen_dreamboothing.demo.recipe import ASSETS

    (folder / "base").symlink_to(ASSETS / "musicgen-tiny")
    (folder / "songs").mkdir()
    rng, rate, clips = np.random.default_rng(0), 16_000, int(clips)
    for number, first in enumerate(range(0, clips, CLIPS_A_SONG)):
        seconds = min(CLIPS_A_SONG, clips - first) * CLIP_SECONDS
        wave: Any = 0.1 * rng.standard_normal((1, seconds * rate))
        audio.write(folder / "songs" / f"song {number}.flac", wave.astype(np.float32), rate)


if __name__ == "__main__":
    main()
