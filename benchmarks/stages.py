"""How many minutes of music each stage of `prepare` gets through in a minute, in one process.

    python benchmarks/stages.py                           # 6 songs of 60 s in stereo
    python benchmarks/stages.py --songs 30

Songs are synthesised (_pieces.py) and stored as FLAC; EnCodec has random weights in the shapes of the 32 kHz one. CLAP,
demucs and captioners are left out: their speed is that of their models.

One should see a table of minutes a minute.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _common

SECONDS, RATE, HOP = 60.0, 32_000, 640


def main() -> None:
    _common.play(_options(), _compare)


def _compare(options: argparse.Namespace) -> None:
    about = _common.run_variant(__file__, _common.PROBE, *_common.ON_THE_CPU)
    with tempfile.TemporaryDirectory() as name:
        rows = _measure(Path(name), options)
    _common.show(f"stages of prepare on {about['device']}: {options.songs} songs of {SECONDS:g} s", rows)
    path = _common.keep(about, "stages", f"{options.songs} x {SECONDS:g} s", {"rows": rows})
    print(f"kept in {path.parent.name}/{path.name}")


def _options() -> argparse.Namespace:
    parser = _common.options(__doc__)
    parser.add_argument("--songs", type=int, default=6)
    return parser.parse_args()


def _measure(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    import torch
    from _shapes import configuration
    from transformers import EncodecModel

    from musicgen_dreamboothing import audio
    from musicgen_dreamboothing.analysis.sound import measure
    from musicgen_dreamboothing.data.songs.cutting import Cutting, cut_song
    from musicgen_dreamboothing.data.songs.song import TRAIN, Song
    from musicgen_dreamboothing.hub import Source
    from musicgen_dreamboothing.model import codec
    from musicgen_dreamboothing.model.checkpoint import Checkpoint

    songs = _write(folder, options.songs)
    checkpoint = Checkpoint(Source("random weights"), configuration("small"))
    encodec = EncodecModel(checkpoint.config.audio_encoder).eval().requires_grad_(False)
    shape = {"rate": RATE, "hop_length": HOP, "max_seconds": 30.0, "min_seconds": 5.0}

    def cut(path: Path, **options: Any) -> None:
        cut_song(Song(path.name, lambda: path, None, TRAIN, ""), path.stem, folder, Cutting(**shape, **options))

    def encode(path: Path) -> None:
        wave = audio.to_channels(audio.decode(path, RATE), 1)
        whole = wave[:, : wave.shape[1] // HOP * HOP]
        codec.encode(encodec, torch.from_numpy(whole)[None, :, : 30 * RATE], checkpoint)

    stages: dict[str, tuple[Callable[[Path], Any], float]] = {
        "decode": (lambda path: audio.decode(path, RATE), SECONDS),
        "decode, cut, write": (cut, SECONDS),
        "the same at one loudness": (lambda path: cut(path, loudness=-14.0), SECONDS),
        "the same, tempo and key": (lambda path: cut(path, loudness=-14.0, listen=True), SECONDS),
        "examine (doctor)": (lambda path: measure(audio.decode(path, RATE), RATE), SECONDS),
        "EnCodec": (encode, 30.0),
    }
    return [{"stage": name, "minutes a minute": _speed(songs, *stage)} for name, stage in stages.items()]


def _speed(songs: list[Path], work: Callable[[Path], Any], seconds: float) -> float:
    work(songs[0])  # imports, caches
    started = time.perf_counter()
    for path in songs:
        work(path)
    return len(songs) * seconds / (time.perf_counter() - started)


def _write(folder: Path, number: int) -> list[Path]:
    import numpy as np
    from _pieces import RATE as PIECE_RATE
    from _pieces import pieces

    from musicgen_dreamboothing import audio

    paths = []
    for index, piece in enumerate(pieces(number, seed=0, seconds=(SECONDS, SECONDS))):
        mono = audio.resample(piece.wave, PIECE_RATE, 44_100)
        whole = np.resize(mono[0], int(SECONDS * 44_100))
        paths.append(folder / f"song{index}.flac")
        audio.write(paths[-1], np.stack([whole, 0.9 * whole]), 44_100)
    return paths


if __name__ == "__main__":
    main()
