"""Tokens to training pieces: a crop of a song, delayed, with its caption or the null condition.

Every draw depends on nothing but the seed, the epoch and the clip. So a run can be killed, taken up
again, or split over processes, and every piece stays the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from musicgen_dreamboothing.data.captions.captions import (
    WORD_DROPOUT_VARIANTS,
    with_word_dropout,
    word_dropout_variants,
)
from musicgen_dreamboothing.data.tokens.melodies import Melodies
from musicgen_dreamboothing.data.tokens.passages import find_passages
from musicgen_dreamboothing.data.tokens.split import MELODY
from musicgen_dreamboothing.model.checkpoint import Checkpoint
from musicgen_dreamboothing.model.chroma import NULL_CLASS
from musicgen_dreamboothing.model.delay import ignore_prompt, training_steps

INSTANCE, PRIOR = "instance", "prior"  # what is to be learned, and what is to stay
SHORTEST_PROMPT = 2.0  # seconds, of a continuation
LONGEST_PROMPT = 2, 3  # as a fraction of the piece


@dataclass(frozen=True)
class Drawing:
    """How pieces are drawn from clips; the defaults draw each clip as it is, for evaluation.

    With `vary_captions`, words behind the `key_phrase` are left out too, each at a probability of `word_dropout`.
    A share `continuation_fraction` of the pieces is a continuation: it has no labels in its first frames, the prompt.
    A melody is dropped with its clip's caption, and else at a probability of `melody_dropout`, as audiocraft drops it.
    """

    crop_frames: int | None = None
    random_crop: bool = False
    vary_captions: bool = False
    caption_dropout: float = 0.0
    seed: int = 0
    word_dropout: float = 0.0
    key_phrase: str = ""
    continuation_fraction: float = 0.0
    melody_dropout: float = 0.0


@dataclass(frozen=True)
class _Span:
    """Codec frames `begin` to `end` of clips that follow each other: `(row, first frame, frames)`."""

    clips: list[tuple[int, int, int]]
    begin: int
    end: int


class ClipDataset(Dataset[dict[str, Any]]):
    """Pieces of clips, one for each clip and epoch.

    The index of clip i in epoch e is `e * len(self) + i`, as `EpochSampler` gives it.

    A piece may begin in one clip and end in the next one of the same song: clips are cut where the
    clock says, and the music goes on. It has its clip's caption, and its middle lies in that clip or,
    where the song ends, as near to it as can be.
    """

    def __init__(
        self,
        clips: datasets.Dataset,
        captions: datasets.Dataset | None,
        checkpoint: Checkpoint,
        drawing: Drawing,
        melodies: Melodies | None = None,
    ) -> None:
        self.clips = clips.with_format("numpy")
        self.captions = captions.with_format("numpy") if captions is not None else None
        self.checkpoint = checkpoint
        self.drawing = drawing
        self.melodies = melodies
        self._sounds: list[str] = [] if melodies is None else list(clips[MELODY])  # digests of what has the melodies
        self._caption_rows = {caption: row for row, caption in enumerate(captions["text"] if captions else [])}
        places = clips.select_columns(["source", "start", "seconds"]).to_list()
        self._passages = find_passages(places, checkpoint.frame_rate)
        self._longest = max((round(s * checkpoint.frame_rate) for s in clips["seconds"]), default=0)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict[str, Any]:
        epoch, clip = divmod(index, len(self))
        rng = np.random.default_rng([self.drawing.seed, epoch, clip])
        span = self._draw_span(clip, rng)
        codes = torch.from_numpy(self._codes_in(span).astype(np.int64))
        inputs, labels = training_steps(codes, self.checkpoint.delay, self.checkpoint.start_token_id)
        keep_caption = bool(rng.random() >= self.drawing.caption_dropout)
        caption = self._draw_caption(clip, rng)
        # The last draw: with or without prompts, pieces have the same codes and captions.
        labels = ignore_prompt(labels, self.checkpoint.delay, self._draw_prompt(codes.shape[-1], rng))
        piece = {"codes": inputs, "labels": labels, "caption": caption, "keep_caption": keep_caption}
        if self.captions is not None:
            piece["text_states"] = self.captions[self._caption_rows[caption]]["states"]
        if self.melodies is not None:  # drawn last: caption and prompt are the same without melodies
            keep_melody = keep_caption and bool(rng.random() >= self.drawing.melody_dropout)
            piece["melody"] = self._melody_in(span, self.melodies, keep_melody)
        return piece

    def _draw_caption(self, clip: int, rng: np.random.Generator) -> str:
        """One of the clip's captions; the usual one where nothing else is drawn at random either."""
        texts = [str(self.clips[clip]["text"]), *map(str, self.clips[clip]["variants"])]
        if not self.drawing.vary_captions:
            return texts[0]
        return self._thin(texts[int(rng.integers(len(texts)))], rng)

    def _thin(self, caption: str, rng: np.random.Generator) -> str:
        """The caption with words left out: where states are cached, one of the copies that have theirs."""
        phrase, dropout = self.drawing.key_phrase, self.drawing.word_dropout
        if not dropout:
            return caption
        if self.captions is None:
            return with_word_dropout(caption, phrase, dropout, rng)
        return word_dropout_variants(caption, phrase, dropout)[int(rng.integers(WORD_DROPOUT_VARIANTS))]

    def _draw_prompt(self, frames: int, rng: np.random.Generator) -> int:
        """Frames of a piece that are its prompt; 0 where it is no continuation."""
        fraction = self.drawing.continuation_fraction
        if not fraction or rng.random() >= fraction:
            return 0
        longest = frames * LONGEST_PROMPT[0] // LONGEST_PROMPT[1]
        shortest = min(round(SHORTEST_PROMPT * self.checkpoint.frame_rate), longest)
        return int(rng.integers(shortest, longest + 1))

    def _draw_span(self, clip: int, rng: np.random.Generator) -> _Span:
        """Where a piece lies. It is taken `max(delay)` frames longer, which the delay pattern eats.

        With melodies, random pieces begin where a frame of chroma does, so that they have the stored classes: up to
        `grid - 1` frames earlier.
        """
        passage, begin, length = self._passages[clip]
        if self.drawing.crop_frames is None and not self.drawing.random_crop:
            return _Span([(clip, 0, length)], 0, length)
        frames = min((self.drawing.crop_frames or self._longest) + max(self.checkpoint.delay), passage.frames)
        if self.drawing.random_crop:
            begin = int(rng.integers(begin - frames // 2, begin - frames // 2 + length))
        begin = min(max(begin, 0), passage.frames - frames)
        if self.drawing.random_crop and self.melodies is not None:
            begin -= begin % self.melodies.grid
        return _Span(passage.clips, begin, begin + frames)

    def _codes_in(self, span: _Span) -> np.ndarray:
        """`[K, T]`."""
        parts = [
            self._codes_of(clip)[:, max(span.begin - start, 0) : span.end - start]
            for clip, start, length in span.clips
            if start < span.end and start + length > span.begin
        ]
        return np.concatenate(parts, axis=1)

    def _melody_in(self, span: _Span, melodies: Melodies, keep: bool) -> torch.Tensor:
        """Classes of the prefix `[C]`; those of the null melody where it is dropped, or a clip has none."""
        sounds = [(self._sounds[clip], length) for clip, _, length in span.clips]
        if not keep or not all(digest for digest, _ in sounds):
            return torch.full((melodies.length,), NULL_CLASS)
        return melodies.prefix(sounds, span.begin, span.end)

    def _codes_of(self, clip: int) -> np.ndarray:
        return np.asarray(self.clips[clip]["codes"])


class PairedDataset(Dataset[dict[str, Any]]):
    """Every piece of the songs with one of their class, which has epochs of its own: its clips come round and round."""

    def __init__(self, songs: ClipDataset, prior: ClipDataset) -> None:
        self.songs, self.prior = songs, prior

    def __len__(self) -> int:
        return len(self.songs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {INSTANCE: self.songs[index], PRIOR: self.prior[index]}


class EpochSampler(Sampler[int]):
    """A new order in every epoch, fixed by the seed, with the epoch in the index.

    `epoch` is set by the trainer. Samplers with `set_epoch` miss the call when a
    resumed epoch skips its first batches.
    """

    def __init__(self, length: int, seed: int) -> None:
        self.length = length
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        return iter((self.epoch * self.length + order).tolist())
