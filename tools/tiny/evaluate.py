"""Judges a trained tiny checkpoint by its sound, and says so in a table and a JSON file.

    python tools/tiny/evaluate.py MODEL --data DATA --output FILE.json
    python tools/tiny/evaluate.py MODEL --data DATA --output FILE.json --adapter RUN --songs SONGS

DATA and SONGS are what `render.py` wrote. Means over clips have a 95 % bootstrap interval, Fréchet distances one over
splits of the songs. Beside each figure of generated music stand the same on real held-out music, as it is and through
the codec, and what chance would give.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from figures import mel_distance, si_sdr
from frechet import frechet_distance
from rhythm import pulse, tempo, tempo_matches
from tqdm import tqdm

from musicgen_dreamboothing import Generator, audio
from musicgen_dreamboothing.data.captions.captions import with_instance_prompt
from musicgen_dreamboothing.evaluation.metrics.signal import Space, embed
from musicgen_dreamboothing.evaluation.metrics.statistics import bootstrap
from musicgen_dreamboothing.generation.guidance import Sampling
from musicgen_dreamboothing.hub import Source, weights_fingerprint
from musicgen_dreamboothing.model import codec, text
from musicgen_dreamboothing.model.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_codec,
    load_text_encoder,
    load_tokenizer,
)
from musicgen_dreamboothing.model.delay import training_steps
from musicgen_dreamboothing.model.loading import load_language_model
from musicgen_dreamboothing.training.collator import Collator

SECONDS = 8.0
CPU = torch.device("cpu")
RIDGE = 0.1  # of the classifier's covariance, towards a round one
SPLITS = 40  # of the songs in halves
KEYWORD = "punk"
Figure = dict[str, Any]


@dataclass(frozen=True)
class Clip:
    """A wave `[S]` and what its caption says of it."""

    wave: np.ndarray
    style: str
    bpm: float
    source: str = ""  # the song it was cut from


def main() -> None:
    """Everything that can be said of the checkpoint; with an adapter, that too."""
    options = _options()
    torch.set_num_threads(options.threads)
    data = Path(options.data)
    checkpoint = load_checkpoint(Source(options.model))
    rate = checkpoint.sampling_rate
    captions = _rows(data, "valid")
    held_out = _rows(data, "valid", options.valid)
    real = [Clip(_read(data / row["file"], rate), row["style"], row["bpm"]) for row in held_out]
    train = [
        Clip(_read(data / row["file"], rate), row["style"], row["bpm"]) for row in _rows(data, "train", options.train)
    ]
    codes, decoded = through_codec(checkpoint, [clip.wave for clip in real])
    again = [Clip(wave, clip.style, clip.bpm) for wave, clip in zip(decoded, real, strict=True)]
    classifier = Classifier.fit(_embeddings(train, rate), [clip.style for clip in train])

    figures: Figure = {"sampling": vars(_sampling(options)), "seeds": options.seeds, "threads": options.threads}
    figures["weights"] = weights_fingerprint(Path(options.model))
    figures["codec"] = codec_figures(real, again, rate)
    figures["cross_entropy"] = cross_entropy(checkpoint, codes, [row["caption"] for row in held_out])
    generator = Generator(options.model, device="cpu")
    made = generate(generator, [captions[n % len(captions)] for n in range(options.clips)], options)
    sets = {"original": real, "through codec": again, "generated": made}
    figures["music"] = {name: music_figures(clips, classifier, rate) for name, clips in sets.items()}
    figures["seconds_for_one_clip"] = seconds_for_one_clip(generator, captions[0]["caption"], options)
    if options.adapter:
        figures["adapter"] = adapter_figures(generator, checkpoint, train, options)
    _write(Path(options.output), figures)
    print_table(figures)


def through_codec(checkpoint: Checkpoint, waves: Sequence[np.ndarray]) -> tuple[list[torch.Tensor], list[np.ndarray]]:
    """Codes `[K, T]` and decoded waves `[S]`, cut to whole frames."""
    encodec = load_codec(checkpoint, CPU)
    codes, decoded = [], []
    for wave in tqdm(waves, desc="codec", unit="clip"):
        whole = wave[: len(wave) // checkpoint.hop_length * checkpoint.hop_length]
        channels = torch.from_numpy(np.repeat(whole[None], checkpoint.audio_channels, axis=0))
        found = codec.encode(encodec, channels[None], checkpoint)
        codes.append(found[0])
        decoded.append(codec.decode(encodec, found, checkpoint)[0].mean(0).numpy())
    return codes, decoded


def codec_figures(real: list[Clip], again: list[Clip], rate: int) -> Figure:
    """SI-SDR and mel distance, both in dB, in all and for each style."""
    pairs = [
        (torch.from_numpy(copy.wave)[None], torch.from_numpy(clip.wave[: len(copy.wave)])[None])
        for copy, clip in zip(again, real, strict=True)
    ]
    values = {
        "si_sdr_db": [float(si_sdr(made, true)) for made, true in pairs],
        "mel_distance_db": [float(mel_distance(made, true, rate)) for made, true in pairs],
    }
    return {name: _by_style(found, real) for name, found in values.items()}


@torch.inference_mode()
def cross_entropy(checkpoint: Checkpoint, codes: list[torch.Tensor], captions: list[str]) -> Figure:
    """Mean nats a code of each codebook under teacher forcing, with captions, without, and what captions save."""
    states = dict(text.encode_captions(load_tokenizer(checkpoint), load_text_encoder(checkpoint, CPU), captions))
    model = load_language_model(checkpoint, torch.float32, CPU)
    collate = Collator(checkpoint.pad_token_id)
    means: dict[str, list[np.ndarray]] = {"captioned": [], "null": []}
    for clip, caption in zip(tqdm(codes, desc="cross-entropy", unit="clip"), captions, strict=True):
        inputs, labels = training_steps(clip, checkpoint.delay, checkpoint.start_token_id)
        piece = {"codes": inputs, "labels": labels, "text_states": states[caption]}
        batch = collate([piece | {"keep_caption": True}, piece | {"keep_caption": False}])
        loss = model(**batch)
        for name, row in zip(means, (loss.nll / loss.count).numpy(), strict=True):
            means[name].append(row)
    captioned, null = np.array(means["captioned"]), np.array(means["null"])  # [N, K]
    found = {"captioned": captioned, "null": null, "saved": null - captioned}
    return {
        f"codebook {k + 1}": {name: _figure(values[:, k]) for name, values in found.items()}
        for k in range(captioned.shape[1])
    }


@dataclass(frozen=True)
class Classifier:
    """Linear discriminant analysis (Fisher 1936) on standardised embeddings, its covariance shrunk."""

    space: Space
    styles: list[str]
    weights: np.ndarray  # [P, styles]
    bias: np.ndarray  # [styles]

    @classmethod
    def fit(cls, embeddings: np.ndarray, styles: list[str]) -> Classifier:
        """From embeddings `[N, D]` and the style of each."""
        space = Space.fit(embeddings, dimensions=40)
        rows, names = space.project(embeddings), sorted(set(styles))
        means = np.stack([rows[np.array(styles) == name].mean(0) for name in names])  # [styles, P]
        within = rows - means[[names.index(style) for style in styles]]
        covariance = within.T @ within / len(rows)
        width = len(covariance)
        shrunk = (1 - RIDGE) * covariance + (RIDGE * np.trace(covariance) / width + 1e-6) * np.eye(width)
        weights = np.linalg.solve(shrunk, means.T)
        return cls(space, names, weights, -0.5 * (means.T * weights).sum(0))

    def classify(self, embeddings: np.ndarray) -> list[str]:
        """The likeliest style of each row of `[N, D]`."""
        return [self.styles[n] for n in (self.space.project(embeddings) @ self.weights + self.bias).argmax(1)]


def generate(generator: Generator, rows: list[Figure], options: argparse.Namespace) -> list[Clip]:
    """A clip for each row's caption; the rows are dealt out to the seeds in equal parts."""
    made = []
    for seed, numbers in zip(options.seeds, np.array_split(np.arange(len(rows)), len(options.seeds)), strict=True):
        part = [rows[number] for number in numbers]
        # Equal captions have equal clips unless they are variations, so each occurrence takes the next one.
        counts = {row["caption"]: sum(other["caption"] == row["caption"] for other in part) for row in part}
        waves: dict[str, list[np.ndarray]] = {caption: [] for caption in counts}
        for times in sorted(set(counts.values())):
            prompts = [caption for caption, count in counts.items() if count == times]
            for clip in generator.generate(
                prompts, seconds=SECONDS, variations=times, seed=seed, sampling=_sampling(options)
            ):
                waves[clip.prompt].append(clip.wave.mean(0))
        made += [Clip(waves[row["caption"]].pop(0), row["style"], row["bpm"]) for row in part]
    return made


def music_figures(clips: list[Clip], classifier: Classifier | None, rate: int) -> Figure:
    """Style, tempo and pulse of clips; `chance` is the share of tempi that match other clips' captions."""
    tempi = [tempo(clip.wave, rate) for clip in clips]
    matches = [tempo_matches(found, clip.bpm) for found, clip in zip(tempi, clips, strict=True)]
    pulses = [pulse(clip.wave, rate, seed=0) for clip in clips]
    figures = {"tempo": _by_style(matches, clips), "pulse": _by_style(pulses, clips)}
    others = [
        (tempi[one], clips[other].bpm) for one in range(len(clips)) for other in range(len(clips)) if one != other
    ]
    chance = np.mean([tempo_matches(found, bpm) for found, bpm in others])
    figures["tempo"]["chance"] = {"mean": float(chance)}
    if classifier:
        found = classifier.classify(_embeddings(clips, rate))
        right = [style == clip.style for style, clip in zip(found, clips, strict=True)]
        figures["style"] = _by_style(right, clips) | {"chance": {"mean": 1 / len(classifier.styles)}}
    return figures


def seconds_for_one_clip(generator: Generator, caption: str, options: argparse.Namespace) -> float:
    """The median of three, after the clips that were made before."""
    taken = []
    for seed in range(3):
        began = time.perf_counter()
        list(generator.generate([caption], seconds=SECONDS, seed=seed, sampling=_sampling(options), progress=False))
        taken.append(time.perf_counter() - began)
    return sorted(taken)[1]


def adapter_figures(
    generator: Generator, checkpoint: Checkpoint, train: list[Clip], options: argparse.Namespace
) -> Figure:
    """How much nearer to the style the adapter brings the music, in Fréchet distances.

    The songs are split in halves, again and again. The distance of generated clips to one half is compared with that
    of the other half, `own`: the style's own spread; `own through codec` is what a perfect model would reach with this
    codec. All sets have as many clips, for few clips make the distance larger. Generated clips are drawn with
    replacement in each split, so that the intervals hold for other songs and other clips.
    """
    rate, songs = checkpoint.sampling_rate, Path(options.songs)
    folders = (songs, songs / "validation")
    real = [clip for folder in folders for clip in song_clips(folder, rate)]
    prompts = song_prompts([path for folder in folders for path in sorted(folder.glob("*.txt"))])
    rows = [prompts[n % len(prompts)] for n in range(options.adapter_clips)]
    adapted = Generator(options.adapter, base_model=options.model, device="cpu")
    made = {"before": generate(generator, rows, options), "after": generate(adapted, rows, options)}
    _, decoded = through_codec(checkpoint, [clip.wave for clip in real])
    again = [replace(clip, wave=wave) for wave, clip in zip(decoded, real, strict=True)]
    space = Space.fit(_embeddings([*train, *real], rate))
    sets = {**made, "own": real, "own through codec": again}
    points = {name: space.project(_embeddings(clips, rate)) for name, clips in sets.items()}
    found = [split_distances(points, [clip.source for clip in real], seed) for seed in range(SPLITS)]
    closed = {
        name: [(d["before"] - d["after"]) / (d["before"] - d[name]) for d in found]
        for name in ("own", "own through codec")
    }
    return {
        "clips_in_a_set": len(rows),
        "songs": len(prompts),
        "frechet": {name: _spread_over_splits([distances[name] for distances in found]) for name in sets},
        "gap_closed": {name: _spread_over_splits(values) for name, values in closed.items()},
        "music": {name: music_figures(clips, None, rate) for name, clips in sets.items()},
    }


def split_distances(points: dict[str, np.ndarray], sources: list[str], seed: int) -> dict[str, float]:
    """Fréchet distances of all sets to one half of the songs; the real sets give the clips of the other half."""
    rng = np.random.default_rng(seed)
    names = rng.permutation(sorted(set(sources)))
    is_target = np.isin(sources, names[: len(names) // 2])
    size = len(points["before"])
    target = points["own"][is_target]
    distances = {}
    for name, rows in points.items():
        rows = rows[~is_target] if len(rows) == len(sources) else rows
        distances[name] = frechet_distance(rows[rng.integers(len(rows), size=size)], target)
    return distances


def _spread_over_splits(values: list[float]) -> Figure:
    """The mean over the splits, and where 95 % of them lie."""
    low, high = np.percentile(values, (2.5, 97.5))
    return _rounded(float(np.mean(values)), float(low), float(high))


def song_clips(folder: Path, rate: int) -> list[Clip]:
    """Clips of 8 s of all songs in a folder, each beginning 1 s after the last."""
    clips, size = [], round(SECONDS * rate)
    for path in sorted(path for path in folder.iterdir() if path.suffix in audio.AUDIO_SUFFIXES):
        wave, row = _read(path, rate), song_prompts([path.with_suffix(".txt")])[0]
        starts = range(0, len(wave) - size + 1, rate)
        clips += [Clip(wave[start : start + size], row["style"], row["bpm"], path.name) for start in starts]
    return clips


def song_prompts(captions: Iterable[Path]) -> list[Figure]:
    """Rows with caption, style and tempo, the number before 'bpm'."""
    rows = []
    for path in captions:
        caption = with_instance_prompt(KEYWORD, path.read_text())  # as the adapter was taught
        words = caption.replace(",", " ").split()
        rows.append({"caption": caption, "style": "held out", "bpm": float(words[words.index("bpm") - 1])})
    return rows


def _by_style(values: Sequence[float], clips: list[Clip]) -> Figure:
    found = {"all": _figure(values)}
    for style in sorted({clip.style for clip in clips}):
        found[style] = _figure([value for value, clip in zip(values, clips, strict=True) if clip.style == style])
    return found


def _figure(values: Sequence[float] | np.ndarray) -> Figure:
    """A mean, its interval and the number of clips behind it."""
    numbers = np.asarray(values, float)
    mean = float(numbers.mean())
    low, high = bootstrap(np.mean, numbers, seed=0) or (mean, mean)
    return _rounded(mean, low, high) | {"clips": len(numbers)}


def _rounded(mean: float, low: float, high: float) -> Figure:
    return {"mean": round(float(mean), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def _embeddings(clips: list[Clip], rate: int) -> np.ndarray:
    return np.stack([embed(clip.wave, rate) for clip in clips])


def _read(path: Path, rate: int) -> np.ndarray:
    return audio.to_channels(audio.decode(path, rate), 1)[0]


def _rows(data: Path, name: str, number: int | None = None) -> list[Figure]:
    """The first rows of a list; they go through styles and tempi in turn."""
    lines = (data / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[:number]]


def _sampling(options: argparse.Namespace) -> Sampling:
    return Sampling(options.guidance_scale, options.temperature, options.top_k)


def _write(path: Path, figures: Figure) -> None:
    """In one move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".new")
    scratch.write_text(json.dumps(figures, indent=2) + "\n")
    os.replace(scratch, path)


def print_table(figures: Figure, name: str = "") -> None:
    """Every figure of the tree in a line, with its path."""
    for key, value in figures.items():
        path = f"{name} / {key}" if name else key
        if not isinstance(value, dict):
            print(f"{path:60} {value if not isinstance(value, float) else f'{value:.3f}'}")
        elif "mean" in value:
            interval = f"  [{value['low']:.3f}, {value['high']:.3f}]" if "low" in value else ""
            print(f"{path:60} {value['mean']:8.3f}{interval}")
        else:
            print_table(value, path)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of the checkpoint")
    parser.add_argument("--data", required=True, help="what render.py wrote")
    parser.add_argument("--output", required=True, help="a JSON file")
    parser.add_argument("--adapter", help="a LoRA run on the held-out style")
    parser.add_argument("--songs", help="the held-out songs, validation/ below")
    parser.add_argument("--clips", type=int, default=60, help="generated clips; 60 are 5 styles x 3 tempi x 4")
    parser.add_argument("--adapter_clips", type=int, default=48, help="generated clips before, and after")
    parser.add_argument("--valid", type=int, help="held-out clips to use, all by default")
    parser.add_argument("--train", type=int, default=600, help="training clips that the classifier is fitted on")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="they share the clips")
    parser.add_argument("--guidance_scale", type=float, default=3.0)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top_k", type=int, default=250)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if bool(options.adapter) != bool(options.songs):
        parser.error("--adapter and --songs belong together")
    return options


if __name__ == "__main__":
    main()
