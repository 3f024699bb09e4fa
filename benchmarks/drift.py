"""Whether music grows louder, softer, brighter or duller from window to window, with the built-in checkpoint.

    python benchmarks/drift.py

Ten windows of each clip continue the end of the one before, by two methods: `tokens` hands over the codes as they are,
as `generate` does; `levelled` decodes each window, brings it to the loudness of the first one, and encodes its end
again. The built-in checkpoint was trained on 8 s, so its windows have 8 s and a stride of 4.8 s, in the proportion of
30 s and 17.92 s. Slopes are means over clips, with twice their standard error.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import musicgen_dreamboothing
from musicgen_dreamboothing.analysis.loudness import levelled, loudness
from musicgen_dreamboothing.generation.generator import Generator
from musicgen_dreamboothing.generation.requests import GenerationRequest
from musicgen_dreamboothing.model import codec

CHECKPOINT = Path(musicgen_dreamboothing.__file__).parent / "assets" / "musicgen-tiny"
RESULT = Path(__file__).parent / "results" / "drift.json"
PROMPTS = (
    "{style} at 107 bpm in c major",
    "{style} at 125 bpm in a minor",
    "{style} at 150 bpm in g major",
)
METHODS = ("tokens", "levelled")


def handed_over(generator: Generator, codes: torch.Tensor, overlap: int, target: float, method: str) -> torch.Tensor:
    """The prompt `[K, overlap]` of the next window, from the codes `[K, T]` of this one; `target` is in LUFS."""
    if method == "tokens":
        return codes[:, -overlap:]
    checkpoint = generator.checkpoint
    wave = levelled(generator.decode(codes), checkpoint.sampling_rate, target)
    samples = overlap * checkpoint.hop_length
    end = torch.from_numpy(np.ascontiguousarray(wave[:, -samples:], np.float32))[None]
    return codec.encode(generator._loaded_codec(), end, checkpoint)[0].cpu()


def music(generator: Generator, prompts: Sequence[str], options: argparse.Namespace, method: str) -> list[torch.Tensor]:
    """Codes `[K, T]` of one clip for each prompt."""
    rate = generator.checkpoint.frame_rate
    overlap = round((options.window - options.stride) * rate)
    requests = [GenerationRequest(prompt) for prompt in prompts]
    joined: list[torch.Tensor] = []
    targets: list[float] = []
    for number in range(options.windows):
        pairs = generator.codes(requests, seconds=options.window, seed=options.seed + number, progress=False)
        by_request = {id(request): codes for request, codes in pairs}
        drawn = [by_request[id(request)] for request in requests]
        new = [codes[:, overlap:] for codes in drawn]
        joined = [torch.cat(pair, dim=1) for pair in zip(joined, new, strict=True)] if joined else drawn
        targets = targets or [loudness(generator.decode(codes), generator.checkpoint.sampling_rate) for codes in drawn]
        requests = [
            GenerationRequest(prompt, prompt_codes=handed_over(generator, codes, overlap, target, method))
            for prompt, codes, target in zip(prompts, drawn, targets, strict=True)
        ]
        print(f"{method}: window {number + 1} of {options.windows}", flush=True)
    return joined


def brightness(wave: np.ndarray, rate: int) -> float:
    """The centre of the power spectrum in octaves above 1 Hz."""
    power = np.abs(np.fft.rfft(wave.mean(axis=0))) ** 2
    hertz = np.fft.rfftfreq(wave.shape[1], 1 / rate)
    return float(np.log2((power * hertz).sum() / power.sum()))


def figures(generator: Generator, clips: Sequence[torch.Tensor], options: argparse.Namespace) -> dict[str, object]:
    """Level in LUFS and brightness in octaves of each window's new part, and their slopes."""
    rate = generator.checkpoint.sampling_rate
    size = round(options.stride * rate)
    levels, octaves = [], []
    for codes in clips:
        wave = generator.decode(codes)
        parts = [wave[:, first : first + size] for first in range(0, size * options.windows, size)]
        levels.append([loudness(part, rate) for part in parts])
        octaves.append([brightness(part, rate) for part in parts])
    return {
        "level_lufs": np.mean(levels, axis=0).round(2).tolist(),
        "brightness_octaves": np.mean(octaves, axis=0).round(3).tolist(),
        "level_slope": slope(np.array(levels)),
        "brightness_slope": slope(np.array(octaves)),
    }


def slope(values: np.ndarray) -> list[float]:
    """Mean slope per window over clips `[clips, windows]`, and twice its standard error."""
    places = np.arange(values.shape[1]) - (values.shape[1] - 1) / 2
    slopes = values @ places / (places @ places)
    return [round(float(slopes.mean()), 4), round(float(2 * slopes.std(ddof=1) / np.sqrt(len(slopes))), 4)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=10)
    parser.add_argument("--window", type=float, default=8.0, help="seconds")
    parser.add_argument("--stride", type=float, default=4.8, help="seconds")
    parser.add_argument("--styles", nargs="+", default=["ballad", "reggae", "house", "techno"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    generator = Generator(CHECKPOINT, device="cpu", dtype="float32")
    prompts = [prompt.format(style=style) for style in options.styles for prompt in PROMPTS]
    rows = {
        method: figures(generator, music(generator, prompts, options, method), options) for method in options.methods
    }
    settings = {key: value for key, value in vars(options).items() if key != "methods"}
    print(json.dumps(rows, indent=1))
    RESULT.write_text(
        json.dumps(settings | {"clips": len(prompts), "methods": rows}, indent=1) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
