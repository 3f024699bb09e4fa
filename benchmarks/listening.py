"""How often tempo, beats, bars and key of a song are heard rightly, on pieces whose truth is known.

    python benchmarks/listening.py                  # 240 pieces, about five minutes
    python benchmarks/listening.py --pieces 24      # a quick look
    python benchmarks/listening.py --fit            # fits the weights of listening/rhythm.py anew and prints them

Pieces are synthesised (_pieces.py) over 60-190 bpm and all keys. Weights and constants were chosen on the pieces of
seeds 1 and 2; figures are of seed 3, which nothing was chosen on. A tempo is right within 4 %, half or double is wrong;
a key is near if it is the relative one or a fifth away; a beat is right within 70 ms.

One should see a table of shares in percent, another by style, and the seconds that a minute of music takes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import Any

import _common
import numpy as np
from _pieces import RATE, TONICS, Piece, pieces
from numpy.typing import NDArray

from musicgen_dreamboothing.analysis.key import Key, find_key
from musicgen_dreamboothing.analysis.rhythm import (
    STEPS_PER_SECOND,
    Bars,
    Rhythm,
    bars,
    candidates,
    find_rhythm,
    signals_of,
)

Array = NDArray[np.float64]

SEED, FITTED_SEEDS = 3, (1, 2)
TEMPO_TOLERANCE, BEAT_SECONDS = 0.04, 0.07
STEPS, LEARNING_RATE = 4000, 0.05
SHRINKAGE = 3.0  # with less, one is sure of wrong tempi in pieces of another composer


def main() -> None:
    _common.play(_options(), lambda options: _fit(options.pieces) if options.fit else _compare(options))


def _options() -> argparse.Namespace:
    parser = _common.options(__doc__)
    parser.add_argument("--pieces", type=int, default=240, help="how many; with --fit, of either seed")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--fit", action="store_true", help="fit the weights anew")
    return parser.parse_args()


def _compare(options: argparse.Namespace) -> None:
    about = _common.run_variant(__file__, _common.PROBE, *_common.ON_THE_CPU)
    heard = [judged(piece) for piece in pieces(options.pieces, options.seed)]
    styles = sorted({one["style"] for one in heard})
    by_style = [{"style": style} | shares([one for one in heard if one["style"] == style]) for style in styles]
    rows = [{"what": name, "value": value} for name, value in (shares(heard) | trust(heard) | cost(heard)).items()]
    _common.show(f"listening: {options.pieces} pieces of seed {options.seed}, percent", rows)
    _common.show("by style, percent", by_style)
    case = f"{options.pieces} pieces, seed {options.seed}"
    path = _common.keep(about, "listening", case, {"rows": rows, "styles": by_style})
    print(f"kept in {path.parent.name}/{path.name}")


def judged(piece: Piece) -> dict[str, Any]:
    """What is heard in a piece, held against the truth."""
    started = time.perf_counter()
    rhythm = find_rhythm(piece.wave, RATE)
    between = time.perf_counter()
    key = find_key(piece.wave, RATE)
    ended = time.perf_counter()
    return {
        "style": piece.style,
        "minutes": piece.wave.shape[1] / RATE / 60,
        "rhythm_seconds": between - started,
        "key_seconds": ended - between,
        **_rhythm_judged(rhythm, piece),
        **_key_judged(key, piece),
    }


def _rhythm_judged(rhythm: Rhythm | None, piece: Piece) -> dict[str, Any]:
    if rhythm is None:
        return {"tempo": False, "tempo_sure": False, "meter": False, "beats": 0.0, "downbeats": 0.0}
    return {
        "tempo": abs(rhythm.tempo / piece.tempo - 1) < TEMPO_TOLERANCE,
        "tempo_sure": rhythm.is_sure,
        "meter": rhythm.beats_per_bar == piece.beats_per_bar,
        "beats": f_measure(rhythm.beats, piece.beats),
        "downbeats": f_measure(rhythm.downbeats, piece.downbeats),
    }


def _key_judged(key: Key | None, piece: Piece) -> dict[str, Any]:
    if key is None:
        return {"key": False, "key_near": False, "key_sure": False, "cents": None}
    return {
        "key": (key.tonic, key.mode) == (piece.tonic, piece.mode),
        "key_near": is_near(key, piece.tonic, piece.mode),
        "key_sure": key.is_sure,
        "cents": abs((key.cents - piece.cents + 50) % 100 - 50),
    }


def f_measure(found: Sequence[float], true: Array) -> float:
    """Of beats within 70 ms (Davies et al. 2009, "Evaluation methods for musical audio beat tracking algorithms")."""
    if not len(found) or not len(true):
        return 0.0
    distances = np.abs(np.asarray(found)[:, None] - true)
    hits = min(int((distances.min(axis=axis) <= BEAT_SECONDS).sum()) for axis in (0, 1))
    return 2 * hits / (len(found) + len(true))


def is_near(key: Key, tonic: str, mode: str) -> bool:
    """The key itself, a fifth up or down, or the relative key."""
    steps = (TONICS.index(key.tonic) - TONICS.index(tonic)) % 12
    return steps in (0, 5, 7) if key.mode == mode else steps == (9 if mode == "major" else 3)


def shares(heard: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Percentages of what is right."""
    names = ("tempo", "beats", "meter", "downbeats", "key", "key_near")
    return {"pieces": len(heard)} | {name: 100 * statistics.fmean(one[name] for one in heard) for name in names}


def trust(heard: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How often one is sure, and what that is worth."""
    found: dict[str, Any] = {}
    for name in ("tempo", "key"):
        sure = [one[name] for one in heard if one[f"{name}_sure"]]
        wrong = [one for one in heard if not one[name]]
        found[f"{name}: sure"] = 100 * len(sure) / len(heard)
        found[f"{name}: right where sure"] = 100 * statistics.fmean(sure) if sure else None
        found[f"{name}: wrong"] = len(wrong)
        found[f"{name}: wrong, and unsure"] = sum(not one[f"{name}_sure"] for one in wrong)
    return found


def cost(heard: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Seconds a minute of music, and how far the tuning is off."""
    minutes = sum(one["minutes"] for one in heard)
    return {
        "cents off, median": statistics.median(one["cents"] for one in heard if one["cents"] is not None),
        "rhythm, s a minute": sum(one["rhythm_seconds"] for one in heard) / minutes,
        "key, s a minute": sum(one["key_seconds"] for one in heard) / minutes,
    }


def _fit(count: int) -> None:
    tempi, cuts = [], []
    for seed in FITTED_SEEDS:
        for piece in pieces(count, seed):
            signals, pitches = signals_of(piece.wave, RATE)
            found = candidates(signals)
            right = [abs(one.tempo / piece.tempo - 1) < TEMPO_TOLERANCE for one in found]
            tempi.append((np.array([one.evidence for one in found]), np.array(right)))
            if any(right):
                ways = bars(found[right.index(True)], signals, pitches)
                cuts.append(
                    (np.array([one.evidence for one in ways]), np.array([_is_right(one, piece) for one in ways]))
                )
    for name, cases in (("TEMPO_WEIGHTS", tempi), ("BAR_WEIGHTS", cuts)):
        print(name, softmax_weights(cases).round(2).tolist())


def _is_right(way: Bars, piece: Piece) -> bool:
    downbeats = way.beats[way.first :: way.beats_per_bar] / STEPS_PER_SECOND
    return way.beats_per_bar == piece.beats_per_bar and f_measure(downbeats.tolist(), piece.downbeats) > 0.6


def softmax_weights(cases: Sequence[tuple[Array, NDArray[np.bool_]]]) -> Array:
    """Weights `[D]` that make the right ones of each case likely: evidence `[N, D]`, which are right `[N]`.

    Maximum likelihood by gradient ascent (Adam), with a Gaussian prior on weights of standardised evidence.
    """
    cases = [(evidence, right) for evidence, right in cases if right.any()]
    scale = np.concatenate([evidence for evidence, _ in cases]).std(axis=0) + 1e-9
    cases = [(evidence / scale, right) for evidence, right in cases]
    weights, mean, square = (np.zeros(len(scale)) for _ in range(3))
    for step in range(1, STEPS + 1):
        slope = sum(_slope(weights, *case) for case in cases) - 2 * SHRINKAGE * weights
        mean, square = 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope**2
        weights += LEARNING_RATE * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-9)
    return weights / scale


def _slope(weights: Array, evidence: Array, right: NDArray[np.bool_]) -> Array:
    scores = evidence @ weights
    chances = np.exp(scores - scores.max())
    chances /= chances.sum()
    return evidence.T @ (chances * right / max(float(chances[right].sum()), 1e-12) - chances)


if __name__ == "__main__":
    main()
