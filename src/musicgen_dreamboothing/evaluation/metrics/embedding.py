"""Embeddings of sounds: CLAP's where it can be loaded, else statistics of the signal."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from huggingface_hub import try_to_load_from_cache
from numpy.typing import NDArray

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.audio import Wave
from musicgen_dreamboothing.console import UserError, log
from musicgen_dreamboothing.evaluation.metrics import signal

if TYPE_CHECKING:
    import torch

    from musicgen_dreamboothing.pretrained.clap import Tagger

Array = NDArray[np.float64]
Sounds = Sequence[tuple[Wave, int]]  # waves `[C, S]` with their rates in Hz

SIGNAL = "signal statistics (no CLAP)"
NONE = "none"  # the option for these

RATE = 16_000  # Hz; mel bands end at half of it
MOST_CLIPS = 100  # of the reference, or a few less: every n-th
FEW_CLIPS, PIECE_SECONDS = 24, 4.0  # below so many, pieces of clips tell how sounds vary
SMOOTHING_STEPS = 40  # of the spectrogram, 0.4 s: wide compared with the steps between windows
STEPS_HZ = 20  # how often the smoothed spectrogram is read
PATCH_BANDS, PATCH_HZ = 16, 10
PATCH_DIMENSIONS = 64
MOST_PATCHES = 1000  # that the directions of windows are learned from


class Embedder(Protocol):
    """Turns sounds into vectors whose cosine and distance measure how alike they sound.

    Attributes:
        name: in reports.
        is_clap: whether texts have vectors, too.
        step_seconds: the least useful distance of windows.
    """

    @property
    def name(self) -> str: ...
    @property
    def is_clap(self) -> bool: ...
    @property
    def step_seconds(self) -> float: ...

    def embed(self, waves: Sounds) -> Array:
        """One vector for each sound, `[N, P]`."""

    def embed_windows(self, wave: Wave, rate: int, seconds: float, hop_seconds: float) -> tuple[Array, Array]:
        """Windows of one sound: vectors of length 1 `[W, P]`, and their starts in seconds `[W]`.

        A sound that is shorter than a window is one window. P differs from that of `embed`.
        """

    def embed_text(self, texts: Sequence[str]) -> Array | None:
        """Texts in the space of `embed`, `[N, P]`; None if it has no text encoder."""

    def tag_probabilities(self, vectors: Array) -> Array | None:
        """Probabilities of genres for embedded sounds, `[N, L]`, rows sum to 1; None if it has no text encoder."""


class ClapEmbedder:
    """CLAP at 48 kHz; all vectors have length 1.

    Args:
        tagger: a loaded model.
        model: its folder or Hub id.
        genres: the labels of `tag_probabilities`; by default those of the package.
    """

    is_clap = True
    step_seconds = 0.5  # a pass of the network for each window

    def __init__(self, tagger: Tagger, model: str, genres: Sequence[str] | None = None) -> None:
        self.name = f"CLAP {model}"
        self._tagger = tagger
        self._given = genres

    def embed(self, waves: Sounds) -> Array:
        return self._tagger.embed(waves).astype(np.float64)

    def embed_windows(self, wave: Wave, rate: int, seconds: float, hop_seconds: float) -> tuple[Array, Array]:
        mono = audio.resample(audio.to_channels(wave, 1), rate, self._tagger.rate)
        starts = _starts(mono.shape[1] / self._tagger.rate, seconds, hop_seconds)
        cuts = [(round(start * self._tagger.rate), round((start + seconds) * self._tagger.rate)) for start in starts]
        return self.embed([(mono[:, begin:end], self._tagger.rate) for begin, end in cuts]), starts

    def embed_text(self, texts: Sequence[str]) -> Array:
        return self._tagger.embed_text(texts).astype(np.float64)

    @cached_property
    def genres(self) -> tuple[str, ...]:
        """The labels, in the order of `tag_probabilities`."""
        from musicgen_dreamboothing.pretrained.clap import read_labels

        return tuple(self._given or read_labels()["genres"])

    @cached_property
    def _genre_rows(self) -> Array:
        """Each genre as the mean over all templates, `[L, P]`."""
        from musicgen_dreamboothing.pretrained.clap import GROUPS, TEMPLATES

        nouns = [GROUPS["genres"].noun.format(genre) for genre in self.genres]
        rows = self.embed_text([template.format(noun) for noun in nouns for template in TEMPLATES])
        return _unit(rows.reshape(len(nouns), len(TEMPLATES), -1).mean(axis=1))

    def tag_probabilities(self, vectors: Array) -> Array:
        """Softmax over genres with the temperature CLAP was trained with (Wu et al. 2022, section 2)."""
        likeness = self._tagger.scale * (vectors @ self._genre_rows.T)
        odds = np.exp(likeness - likeness.max(axis=1, keepdims=True))
        probabilities: Array = odds / odds.sum(axis=1, keepdims=True)
        return probabilities


class SignalEmbedder:
    """The fallback without CLAP: statistics of the signal, relative to reference clips (the training songs).

    Sounds are points of a `signal.Space`, with one more coordinate that is the same for all: it changes no distance,
    but makes cosines meaningful.

    Windows need more detail, as songs of one style have the same statistics: 16 mel bands ten times a second,
    standardised, projected on their 64 principal components, and scaled to variance 1.

    Args:
        reference: waves with their rates; few clips are cut into pieces.
    """

    name = SIGNAL
    is_clap = False
    step_seconds = 0.05

    def __init__(self, reference: Sounds) -> None:
        chosen = reference[:: 1 + len(reference) // MOST_CLIPS]
        pieces = chosen if len(chosen) >= FEW_CLIPS else [piece for sound in chosen for piece in _cut(*sound)]
        if len(pieces) < 2:
            pieces = [(half, rate) for wave, rate in pieces for half in np.array_split(wave, 2, axis=1)]
        rows = np.stack([_statistics(*piece) for piece in pieces])
        self._space = signal.Space.fit(rows)
        self._distance = float(np.sqrt((self._space.project(rows) ** 2).sum(axis=1).mean()))
        self._spectrograms = [_spectrogram(*sound) for sound in chosen]
        self._patch_space = cache(self._fit_patches)

    def embed(self, waves: Sounds) -> Array:
        rows = self._space.project(np.stack([_statistics(*sound) for sound in waves]))
        return np.column_stack([rows, np.full(len(rows), self._distance)])

    def embed_windows(self, wave: Wave, rate: int, seconds: float, hop_seconds: float) -> tuple[Array, Array]:
        size, hop = round(seconds * STEPS_HZ), max(1, round(hop_seconds * STEPS_HZ))
        patches = _patches(_spectrogram(wave, rate), size, hop)
        space, deviations = self._patch_space(size)
        return _unit(space.project(patches) / deviations), np.arange(len(patches)) * hop / STEPS_HZ

    def _fit_patches(self, size: int) -> tuple[signal.Space, Array]:
        """The space of windows of so many steps, and the deviation of each of its directions."""
        hop = max(1, sum(map(len, self._spectrograms)) // MOST_PATCHES)
        rows = np.concatenate([_patches(spectrogram, size, hop) for spectrogram in self._spectrograms])
        space = signal.Space.fit(rows, PATCH_DIMENSIONS)
        return space, space.project(rows).std(axis=0) + 1e-9

    def embed_text(self, texts: Sequence[str]) -> None:
        return None

    def tag_probabilities(self, vectors: Array) -> None:
        return None


def is_cached(model: str, cache_dir: str | None = None) -> bool:
    """Whether a CLAP model needs no download; "none" never does."""
    if model == NONE or Path(model).is_dir():
        return True
    from musicgen_dreamboothing.pretrained.clap import SAFETENSORS

    revision = SAFETENSORS[model].revision if model in SAFETENSORS else None
    layouts = ("model.safetensors", "model.safetensors.index.json")
    return any(isinstance(try_to_load_from_cache(model, name, cache_dir, revision), str) for name in layouts)


def load_embedder(
    model: str | None,
    reference: Sounds,
    *,
    cache_dir: str | None = None,
    token: str | None = None,
    device: torch.device | None = None,
) -> Embedder:
    """CLAP if it can be loaded, else, with a message, `SignalEmbedder`.

    Args:
        model: a folder or Hub id; None or "none" for `SignalEmbedder`.
        reference: the sounds that `SignalEmbedder` is fitted on.
        cache_dir, token: for the Hub.
        device: of CLAP; the best one by default.
    """
    if model is None or model == NONE:
        return SignalEmbedder(reference)
    from musicgen_dreamboothing.pretrained.clap import load_tagger

    try:
        tagger = load_tagger(model, {}, cache_dir=cache_dir, token=token, device=device)
        return ClapEmbedder(tagger, tagger.name)
    except UserError as error:
        log(f"sounds are compared by signal statistics instead of CLAP: {error}")
        return SignalEmbedder(reference)


def _starts(length: float, seconds: float, hop_seconds: float) -> Array:
    """Starts in seconds of windows that lie inside a sound; there is at least one."""
    return np.arange(1 + max(0, int((length - seconds) / hop_seconds + 1e-6)), dtype=np.float64) * hop_seconds


def _cut(wave: Wave, rate: int) -> list[tuple[Wave, int]]:
    """Complete pieces of a sound, or all of it if it is shorter than one."""
    size = round(PIECE_SECONDS * rate)
    return [(wave[:, start : start + size], rate) for start in range(0, max(1, wave.shape[1] - size + 1), size)]


def _mono(wave: Wave, rate: int) -> NDArray[np.float32]:
    """`[C, S]` -> `[S]` at `RATE`: the bands of one sound differ a little between rates."""
    return audio.resample(audio.to_channels(wave, 1), rate, RATE)[0]


def _statistics(wave: Wave, rate: int) -> Array:
    return signal.embed(_mono(wave, rate), RATE)


def _spectrogram(wave: Wave, rate: int) -> Array:
    """Mel bands in dB, smoothed over time, `[T, PATCH_BANDS]` at 20 Hz."""
    bands = signal.mel_db(_mono(wave, rate), RATE)
    bands = bands.reshape(len(bands), PATCH_BANDS, -1).mean(axis=2)
    half = SMOOTHING_STEPS // 2
    padded = np.pad(bands, ((half, half), (0, 0)), mode="edge")
    weights = np.hanning(2 * half + 3)[1:-1] / (half + 1)
    moments = np.arange(0, len(bands), signal.ENVELOPE_HZ // STEPS_HZ)
    return np.stack([weights @ padded[moment : moment + len(weights)] for moment in moments])


def _patches(spectrogram: Array, size: int, hop: int) -> Array:
    """Windows of `size` steps as rows `[W, D]`; short spectrograms are padded with their last step."""
    padded = np.pad(spectrogram, ((0, max(0, size - len(spectrogram))), (0, 0)), mode="edge")
    view = np.lib.stride_tricks.sliding_window_view(padded, size, axis=0)[::hop, :, :: STEPS_HZ // PATCH_HZ]
    return view.reshape(len(view), -1)


def _unit(rows: Array) -> Array:
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.asarray(rows / np.maximum(lengths, 1e-9), np.float64)
