"""EnCodec's throughput: as `prepare` encodes clips, against transformers on one after the other.

    python benchmarks/prepare.py                       # on a CPU 4 clips of 10 s, on a GPU 54 of 30 s
    python benchmarks/prepare.py --clips 8 --seconds 30 --batch 4

Random weights in the shapes of EnCodec 32 kHz and noise for music; nothing is downloaded. The two ways
take turns, batch by batch, so that a machine which slows down slows both; one batch is encoded beforehand and
not counted. The peak is that of one batch, on a CPU of a process of its own.

One should see a table of both ways: seconds, how many times faster than the music plays, peak memory.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import _common

WAYS = ONE_BY_ONE, BATCHED = "one by one", "batched"
TURNS = "in turns"
CLIPS = {"cuda": (54, 30.0)}  # 27 minutes, the length of the published example
CLIPS_ELSEWHERE = (4, 10.0)


def main() -> None:
    _common.play(_options(), _compare, _measured)


def _options() -> argparse.Namespace:
    parser = _common.options(__doc__)
    parser.add_argument("--clips", type=int, help="how many; default 4, on a GPU 54")
    parser.add_argument("--seconds", type=float, help="length of each; default 10, on a GPU 30")
    parser.add_argument("--batch", type=int, help="clips in a batch; default as `prepare` chooses")
    return parser.parse_args()


def _compare(options: argparse.Namespace) -> None:
    about = _common.run_variant(__file__, _common.PROBE)
    *peaks, times = _common.run_variants(__file__, about, (*WAYS, TURNS))
    rows = [
        {
            "way": way,
            "batch": peak["batch"],
            "seconds": times[way],
            "x real time": times["audio_seconds"] / times[way],
            "speed": times[ONE_BY_ONE] / times[way],
            "peak GB": peak["peak_gb"],
        }
        for way, peak in zip(WAYS, peaks, strict=True)
    ]
    case = f"{times['clips']} x {times['clip_seconds']:g} s"
    _common.show(f"EnCodec on {about['device']}: {case}", rows)
    path = _common.keep(about, "prepare", case, {"rows": rows})
    print(f"kept in {path.parent.name}/{path.name}")


def _measured(options: argparse.Namespace) -> dict[str, Any]:
    import torch
    from _shapes import configuration
    from transformers import EncodecModel

    from musicgen_dreamboothing.data.tokens.store import batch_size_of
    from musicgen_dreamboothing.device import peak_memory, release_memory, reset_peak_memory
    from musicgen_dreamboothing.hub import Source
    from musicgen_dreamboothing.model import codec
    from musicgen_dreamboothing.model.checkpoint import Checkpoint

    release_memory()  # what the other way has left
    reset_peak_memory()
    torch.manual_seed(0)
    device = _common.torch_device(options.device)
    clips, seconds = CLIPS.get(device.type, CLIPS_ELSEWHERE)
    clips, seconds = options.clips or clips, options.seconds or seconds
    batch = options.batch or batch_size_of(device)
    checkpoint = Checkpoint(Source("random weights"), configuration("small"))
    home = torch.device("cpu") if device.type == "mps" else device  # as `load_codec` decides
    model = EncodecModel(checkpoint.config.audio_encoder).eval().requires_grad_(False).to(home)
    frames = round(seconds * checkpoint.frame_rate)
    waves = torch.rand(clips, checkpoint.audio_channels, frames * checkpoint.hop_length) - 0.5

    def encode(way: str, part: torch.Tensor) -> float:
        started = time.perf_counter()
        if way == BATCHED:
            codec.encode(model, part, checkpoint).cpu()  # reading the codes waits for a GPU
        else:
            for wave in part.split(1):
                model.encode(wave.to(home)).audio_codes.cpu()
        return time.perf_counter() - started

    ways = WAYS if options.variant == TURNS else (options.variant,)
    spent = dict.fromkeys(ways, 0.0)
    for way in ways:
        encode(way, waves[:batch])
    for part in waves.split(batch) if options.variant == TURNS else ():
        for way in ways:
            spent[way] += encode(way, part)
    return spent | {
        "audio_seconds": clips * seconds,
        "clips": clips,
        "clip_seconds": seconds,
        "batch": 1 if options.variant == ONE_BY_ONE else batch,
        "peak_gb": peak_memory(device)[0],
    }


if __name__ == "__main__":
    main()
