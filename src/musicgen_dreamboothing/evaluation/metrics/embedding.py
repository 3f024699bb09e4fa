"""Embeddings of sounds: by CLAP or another network where it can be loaded, else statistics of the signal."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from huggingface_hub import try_to_load_from_cache
from numpy.typing import NDArray

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.analysis.loudness import levelled
from musicgen_dreamboothing.audio import Wave
from musicgen_dreamboothing.console import UserError, log
from musicgen_dreamboothing.evaluation.metrics import signal
from musicgen_dreamboothing.hub import Source

if TYPE_CHECKING:
    import torch

    from musicgen_dreamboothing.pretrained.clap import Tagger
    from musicgen_dreamboothing.pretrained.encoder import AudioEncoder

Array = NDArray[np.float64]
Sounds = Sequence[tuple[Wave, int]]  # waves `[C, S]` with their rates in Hz

SIGNAL = "signal statistics (no network)"
NONE = "none"  # the option for these
CLAP_TYPE = "clap"  # transformers' name in configurations
LOUDNESS = -20.0  # LUFS of all sounds: high enough for the floor of -60 dB, and few peaks pass full scale

RATE = 16_000  # Hz; mel bands end at half of it


class Embedder(ABC):
    """Turns sounds into vectors whose distances measure how different they sound.

    All sounds are brought to one loudness first, each as a whole, and to one channel: what differs is their sound.

    Attributes:
        name: in reports.
        note: what a report should say about it; may be empty.
    """

    name: str
    note = ""

    def embed(self, waves: Sounds) -> Array:
        """One vector for each sound, `[N, P]`."""
        return self._embed([_levelled(*sound) for sound in waves])

    def embed_text(self, texts: Sequence[str]) -> Array | None:
        """Texts in the space of `embed`, `[N, P]`; None if it has no text encoder."""
        return None

    def tag_probabilities(self, vectors: Array) -> Array | None:
        """Probabilities of genres for embedded sounds, `[N, L]`, rows sum to 1; None if it has no text encoder."""
        return None

    @abstractmethod
    def _embed(self, waves: Sounds) -> Array:
        """`embed` of waves `[1, S]` of one loudness."""


class NetworkEmbedder(Embedder):
    """A network for sounds alone, at its own rate; all vectors have length 1."""

    def __init__(self, network: Tagger | AudioEncoder, name: str) -> None:
        self.name = name
        self._network = network

    def _embed(self, waves: Sounds) -> Array:
        return self._network.embed(waves).astype(np.float64)


class ClapEmbedder(NetworkEmbedder):
    """CLAP at 48 kHz, which embeds texts too; all vectors have length 1.

    Args:
        tagger: a loaded model.
        model: its folder or Hub id.
        genres: the labels of `tag_probabilities`; by default those of the package.
    """

    def __init__(self, tagger: Tagger, model: str, genres: Sequence[str] | None = None) -> None:
        super().__init__(tagger, f"CLAP {model}")
        self._tagger = tagger
        self._given = genres

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


class SignalEmbedder(Embedder):
    """Statistics of the signal, without a network: `signal.embed`, in a fixed space."""

    name = SIGNAL
    note = (
        "Sounds were compared without a network, by statistics of the signal: timbre, its movement and rhythm. These "
        "figures can't be compared with those of papers, or of reports with another embedding."
    )

    def _embed(self, waves: Sounds) -> Array:
        return np.stack([signal.embed(_at_rate(*sound), RATE) for sound in waves])


def is_cached(model: str, cache_dir: str | None = None) -> bool:
    """Whether a model needs no download; "none" never does."""
    if model == NONE or Path(model).is_dir():
        return True
    from musicgen_dreamboothing.pretrained.clap import SAFETENSORS

    revision = SAFETENSORS[model].revision if model in SAFETENSORS else None
    layouts = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
    return any(isinstance(try_to_load_from_cache(model, name, cache_dir, revision), str) for name in layouts)


def load_embedder(
    model: str | None,
    *,
    is_chosen: bool = False,
    cache_dir: str | None = None,
    token: str | None = None,
    trust_remote_code: bool = False,
    device: torch.device | None = None,
) -> Embedder:
    """The embedder of all sounds that are compared.

    Args:
        model: a folder or Hub id; None or "none" for `SignalEmbedder`.
        is_chosen: whether `--embedder` names the model. It may then be any audio encoder and has to load; otherwise it
            is a CLAP, and with a message `SignalEmbedder` stands in where it can't be loaded.
        cache_dir, token, trust_remote_code: for the Hub; the last is for encoders.
        device: of the network; the best one by default.

    Raises:
        UserError: a chosen model can't be loaded.
    """
    if model is None or model == NONE:
        return SignalEmbedder()
    source = Source(model, None, cache_dir, token, trust_remote_code)
    if is_chosen:
        return _load_chosen(source, device)
    try:
        return _load_clap(source, device)
    except UserError as error:
        log(f"sounds are compared by signal statistics instead of CLAP: {error}")
        return SignalEmbedder()


def check_embedder(
    model: str | None, *, cache_dir: str | None = None, token: str | None = None, trust_remote_code: bool = False
) -> None:
    """Raises UserError where `--embedder` names what is no audio encoder, without loading weights."""
    if model is None or model == NONE:
        return
    from musicgen_dreamboothing.pretrained.encoder import read_config, read_extractor

    source = Source(model, None, cache_dir, token, trust_remote_code)
    if read_config(source).model_type != CLAP_TYPE:
        read_extractor(source)


def _load_chosen(source: Source, device: torch.device | None) -> Embedder:
    from musicgen_dreamboothing.pretrained.encoder import AudioEncoder, read_config

    if read_config(source).model_type == CLAP_TYPE:
        return _load_clap(source, device)
    encoder = AudioEncoder(source, device=device)
    return NetworkEmbedder(encoder, encoder.name)


def _load_clap(source: Source, device: torch.device | None) -> Embedder:
    from musicgen_dreamboothing.pretrained.clap import load_tagger

    tagger = load_tagger(source.name, {}, cache_dir=source.cache_dir, token=source.token, device=device)
    return ClapEmbedder(tagger, tagger.name)


def _levelled(wave: Wave, rate: int) -> tuple[Wave, int]:
    """`[C, S]` -> `[1, S]` at the loudness of all embedded sounds, with its rate."""
    return levelled(audio.to_channels(wave, 1), rate, LOUDNESS), rate


def _at_rate(wave: Wave, rate: int) -> NDArray[np.float32]:
    """`[1, S]` -> `[S]` at `RATE`: the bands of one sound differ a little between rates."""
    return audio.resample(wave, rate, RATE)[0]


def _unit(rows: Array) -> Array:
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.asarray(rows / np.maximum(lengths, 1e-9), np.float64)
