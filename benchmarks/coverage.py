"""How often the intervals of an evaluation hold the truth: simulated evaluations by songs, prompts, takes and effect.

    python benchmarks/coverage.py

Songs, prompts and takes are normal in twelve dimensions, with what differs between songs, between excerpts of a song,
between prompts and between takes of a prompt; base and fine-tuned model share a part of each prompt. The truth is the
figure of 1,200 songs and prompts, or, with one or two songs, of very many excerpts of these. `shown` is how often the
share of the way was given at all; where it was, `closed` is how often its interval held the truth.
"""

from __future__ import annotations

import argparse
import json
import zlib
from pathlib import Path

import numpy as np

from musicgen_dreamboothing.evaluation.metrics.statistics import Estimate
from musicgen_dreamboothing.evaluation.metrics.style import style_change, style_distance

RESULT = Path(__file__).parent / "results" / "coverage.json"
DIMENSIONS = 12
SCALE = 1 / np.sqrt(1 + np.arange(DIMENSIONS))  # of each dimension: a few directions hold most
DIRECTION = np.where(np.arange(DIMENSIONS) < 4, 0.5, 0.0)  # from the songs to the base
EXCERPT, PROMPT, TAKE = 0.5, 0.5, 0.5  # deviations, of the songs' own
SHARED = 0.7  # correlation of base and fine-tuned model in a prompt
EXCERPTS, SHORT_OF_SONGS = 4, 16  # of a song; where there are one or two songs
MANY = 1200
SAME_SONGS = 50  # evaluations of the same one or two songs
EFFECTS = {"far, learned": (6.0, 1.0), "near, learned": (2.0, 1.0), "far, no change": (6.0, 6.0), "no distance": (0, 0)}


def songs_of(rng: np.random.Generator, means: np.ndarray, excerpts: int) -> np.ndarray:
    """`[S, D]` -> `[S * excerpts, D]`."""
    noise = rng.normal(size=(len(means), excerpts, DIMENSIONS)) * EXCERPT * SCALE
    return (means[:, None] + noise).reshape(-1, DIMENSIONS)


def models(rng: np.random.Generator, prompts: int, takes: int, effect: tuple[float, float]) -> list[np.ndarray]:
    """Clips of base and fine-tuned model, `[prompts * takes, D]`."""
    common = rng.normal(size=(prompts, 1, DIMENSIONS))
    both = []
    for distance, share in zip(effect, (1.0, SHARED), strict=True):
        own = rng.normal(size=(prompts, 1, DIMENSIONS))
        mean = distance * DIRECTION + PROMPT * SCALE * (share * common + np.sqrt(1 - share**2) * own)
        both.append((mean + TAKE * SCALE * rng.normal(size=(prompts, takes, DIMENSIONS))).reshape(-1, DIMENSIONS))
    return both


def names(count: int, each: int) -> list[str]:
    return [str(number) for number in range(count) for _ in range(each)]


def truth_of(rng: np.random.Generator, means: np.ndarray | None, effect: tuple[float, float]) -> tuple[float, float]:
    """Of very many prompts and songs, or of the songs with these means."""
    base, tuned = models(rng, MANY, 1, effect)
    if means is None:
        means = rng.normal(size=(MANY, DIMENSIONS)) * SCALE
    songs = songs_of(rng, means, max(1, MANY // len(means)))
    return style_distance(base, songs), style_distance(tuned, songs)


def holds(estimate: Estimate | None, truth: float) -> bool:
    return (
        estimate is not None
        and estimate.interval is not None
        and (estimate.interval[0] <= truth <= estimate.interval[1])
    )


def simulate(songs: int, prompts: int, takes: int, effect: str, evaluations: int) -> dict[str, float]:
    """Shares of simulated evaluations whose intervals hold the truth."""
    rng = np.random.default_rng(zlib.crc32(f"{songs} {prompts} {takes} {effect}".encode()))
    fixed = songs < 3
    truth = None if fixed else truth_of(rng, None, EFFECTS[effect])
    counts = dict.fromkeys(("base", "tuned", "change", "shown", "closed"), 0)
    for number in range(evaluations):
        if number % SAME_SONGS == 0 and fixed:
            means = rng.normal(size=(songs, DIMENSIONS)) * SCALE
            truth = truth_of(rng, means, EFFECTS[effect])
        elif not fixed:
            means = rng.normal(size=(songs, DIMENSIONS)) * SCALE
        assert truth is not None
        excerpts = SHORT_OF_SONGS // songs if fixed else EXCERPTS
        base, tuned = models(rng, prompts, takes, EFFECTS[effect])
        seen = style_change(
            base,
            tuned,
            songs_of(rng, means, excerpts),
            prompts=names(prompts, takes),
            song_names=names(songs, excerpts),
        )
        counts["base"] += holds(seen.base, truth[0])
        counts["tuned"] += holds(seen.tuned, truth[1])
        counts["change"] += holds(seen.change, truth[1] - truth[0])
        counts["shown"] += seen.closed is not None
        counts["closed"] += holds(seen.closed, 1 - truth[1] / truth[0])
    shown = counts.pop("shown")
    closed = counts.pop("closed")
    shares = {key: count / evaluations for key, count in counts.items()}
    return shares | {"shown": shown / evaluations, "closed": closed / shown if shown else float("nan")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluations", type=int, default=400, help="simulated for each line")
    parser.add_argument("--songs", type=int, nargs="+", default=[1, 2, 3, 5, 9, 20])
    parser.add_argument("--prompts", type=int, nargs="+", default=[3, 6, 12])
    parser.add_argument("--takes", type=int, nargs="+", default=[1, 4])
    options = parser.parse_args()
    rows = []
    heads = " ".join(f"{name:>6}" for name in ("base", "tuned", "change", "closed", "shown"))
    print(f"{'songs':>5} {'prompts':>7} {'takes':>5}  {'effect':15} {heads}")
    for songs in options.songs:
        for prompts in options.prompts:
            for takes in options.takes:
                for effect in EFFECTS:
                    row = simulate(songs, prompts, takes, effect, options.evaluations)
                    rows.append({"songs": songs, "prompts": prompts, "takes": takes, "effect": effect} | row)
                    shares = " ".join(f"{row[key]:6.3f}" for key in ("base", "tuned", "change", "closed"))
                    print(f"{songs:5} {prompts:7} {takes:5}  {effect:15} {shares} {row['shown']:6.2f}", flush=True)
    RESULT.write_text(json.dumps({"evaluations": options.evaluations, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
