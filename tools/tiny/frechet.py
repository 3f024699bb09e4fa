"""The Fréchet distance of two sets of embeddings, for the model card of the built-in checkpoint."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SHRINKAGE = 0.1  # of covariances, towards their diagonal


def frechet_distance(a: Array, b: Array) -> float:
    """Fréchet distance of the Gaussians of two sets of vectors `[N, P]` and `[M, P]` (Heusel et al. 2017, eq. 6).

    |m_a - m_b|² + tr(C_a + C_b - 2 (C_a C_b)^½), where covariances are shrunk by a tenth towards their diagonals, which
    keeps them regular where clips are few.
    """
    covariance_a, covariance_b = _covariance(a), _covariance(b)
    root = _square_root(covariance_a)
    mixed = np.sqrt(np.clip(np.linalg.eigvalsh(root @ covariance_b @ root), 0, None)).sum()
    means = ((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum()
    return max(0.0, float(means + np.trace(covariance_a) + np.trace(covariance_b) - 2 * mixed))


def _covariance(rows: Array) -> Array:
    """Of `[N, P]`, shrunk towards its diagonal."""
    covariance = np.atleast_2d(np.cov(rows, rowvar=False))
    return (1 - SHRINKAGE) * covariance + SHRINKAGE * np.diag(np.diag(covariance))


def _square_root(symmetric: Array) -> Array:
    """The root of a positive semi-definite matrix `[P, P]`."""
    values, vectors = np.linalg.eigh(symmetric)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
