"""An evaluation's data with given embeddings, for tests of figures."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from musicgen_dreamboothing.evaluation.collect import EvaluationData, Vectors


def clips_of(vectors: np.ndarray, takes: int, kind: str) -> list[Any]:
    rng = np.random.default_rng(0)
    return [
        SimpleNamespace(
            prompt=f"{kind} {row // takes}",
            kind=kind,
            variation=row % takes,
            wave=0.1 * rng.standard_normal((1, 800)).astype(np.float32),
            rate=16_000,
        )
        for row in range(len(vectors))
    ]


def data_of(
    base: np.ndarray, tuned: np.ndarray, songs: np.ndarray, takes: int = 4, kind: str = "style"
) -> EvaluationData:
    """Clips of one kind, `takes` of each prompt, and two clips of each song, with these embeddings."""
    waves = [(clip.wave, clip.rate) for clip in clips_of(songs, 1, kind)]
    excerpts = SimpleNamespace(waves=waves, songs=[f"song {row // 2}" for row in range(len(songs))])
    embedder: Any = SimpleNamespace(
        name="CLAP some/clap.v2",
        is_clap=False,
        embed_text=lambda texts: None,
        tag_probabilities=lambda vectors: None,
    )
    data = EvaluationData(clips_of(base, takes, kind), clips_of(tuned, takes, kind), excerpts, None, None, embedder)  # type: ignore[arg-type]
    data.__dict__.update(vectors=Vectors(base, tuned, songs, None), adherence=([], []))
    return data
