"""The songs of a run: excerpts to compare clips with, codes of the training clips, and the loss on held-out songs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from numpy.typing import NDArray

from musicgen_dreamboothing.audio import Wave
from musicgen_dreamboothing.console import UserError, log, progress_bar
from musicgen_dreamboothing.data.layout import TOKENS
from musicgen_dreamboothing.data.run_record import RunRecord
from musicgen_dreamboothing.data.tokens.melodies import Melodies
from musicgen_dreamboothing.data.tokens.split import MELODY, Split
from musicgen_dreamboothing.data.tokens.store import clip_rows
from musicgen_dreamboothing.data.tokens.tables import Tables, load_tables, tables_of_split
from musicgen_dreamboothing.evaluation.metrics.copies import TrainingClip
from musicgen_dreamboothing.evaluation.metrics.semitones import spectrogram
from musicgen_dreamboothing.generation.generator import Generator
from musicgen_dreamboothing.model import text
from musicgen_dreamboothing.model.checkpoint import Checkpoint
from musicgen_dreamboothing.model.delay import training_steps

Array = NDArray[np.float64]
Decode = Callable[[torch.Tensor], Wave]  # codes [K, T] to a wave [C, S]
Spectrogram = NDArray[np.float16]  # of `semitones.spectrogram`, [T, bands]

# Of training clips that are compared by sound, as the codec has to decode them; but at least a clip of each song.
MOST_SECONDS = {"cpu": 3600.0}
MOST_SECONDS_ON_A_GPU = 72_000.0


@dataclass(frozen=True)
class Excerpts:
    """Pieces of songs, decoded by the codec: waves `[C, S]` with their rate, and the song of each."""

    waves: list[tuple[Wave, int]]
    songs: list[str]


def prepared_folder(run: Path, record: RunRecord, data: str | None) -> Path:
    """The folder with the tokens that a run was trained on: `data`, or where the record says. Else UserError."""
    places = [Path(data)] if data else [Path(record.prepared), run / "data"]
    for place in places:
        if any((place / TOKENS).glob("codes-*")):
            return place
    raise UserError(
        f"the clips that {run} was trained on are not in {' or '.join(map(str, places))}; name their folder: --data DIR"
    )


def tables_of(record: RunRecord, prepared: Path, base: Callable[[], Checkpoint]) -> Tables:
    """The clips that a run was trained on and those that it held out, with the captions of that run.

    Args:
        record: of the run.
        prepared: the folder with its tokens.
        base: loads the run's base checkpoint, for records of earlier versions, which have no list of clips.
    """
    if record.clips is not None:
        return tables_of_split(prepared, Split.from_json(record.clips))
    log(f"the run has no list of its clips, as an earlier version made it: they are taken from {prepared} as it is now")
    options = record.options
    return load_tables(
        prepared,
        clip_rows(prepared, options.get("instance_prompt"), options.get("class_prompt")),
        base(),
        eval_fraction=options["eval_fraction"],
        seed=options["seed"],
        limits=(options.get("max_train_samples"), None),
        text_states=False,
    )


class Span(NamedTuple):
    """A piece of a clip: the row of the clip, and its first frame."""

    row: int
    begin: int


class Spans(NamedTuple):
    """Pieces of clips, all of so many frames, in the order of the clips."""

    frames: int
    places: list[Span]


def excerpt_spans(checkpoint: Checkpoint, clips: datasets.Dataset, *, seconds: float, most: int, seed: int) -> Spans:
    """Pieces of clips from random places.

    Args:
        checkpoint: the base.
        clips: rows with `seconds` and `source`.
        seconds: length of a piece; shorter clips are left out, unless all are shorter.
        most: number of pieces, which are spread over the songs, then over their clips; a clip has as many as fit.
        seed: of the places.
    """
    frames = max(1, round(seconds * checkpoint.frame_rate))
    lengths = [round(length * checkpoint.frame_rate) for length in clips["seconds"]]
    long_enough = [row for row, length in enumerate(lengths) if length >= frames] or list(range(len(clips)))
    pieces = sorted((number, row) for row in long_enough for number in range(max(1, lengths[row] // frames)))
    turns = spread_over_songs(list(range(len(pieces))), [clips["source"][row] for _, row in pieces], most)
    chosen = sorted((row, number) for number, row in (pieces[turn] for turn in turns))
    counts, rng = Counter(row for row, _ in chosen), np.random.default_rng(seed)
    starts = {row: int(rng.integers(max(0, lengths[row] - count * frames) + 1)) for row, count in counts.items()}
    return Spans(frames, [Span(row, starts[row] + number * frames) for row, number in chosen])


def decode_songs(
    decode: Decode, checkpoint: Checkpoint, clips: datasets.Dataset, spans: Spans, searched: Sequence[int] = ()
) -> tuple[Excerpts, list[Spectrogram]]:
    """Excerpts of clips, and spectrograms of entire clips for the search for copies by sound; each is decoded once.

    They are decoded by the codec, whose faults are then not the model's.

    Args:
        decode: codes `[K, T]` to a wave `[C, S]`.
        checkpoint: the base.
        clips: rows with `codes` and `source`.
        spans: of the excerpts.
        searched: rows whose spectrograms are returned, in their order.
    """
    begins: dict[int, list[int]] = {row: [] for row in searched}
    for row, begin in spans.places:
        begins.setdefault(row, []).append(begin)
    rate, hop, waves = checkpoint.sampling_rate, checkpoint.hop_length, list[tuple[Wave, int]]()
    spectra: dict[int, Spectrogram | None] = dict.fromkeys(searched)
    for row in progress_bar(sorted(begins), unit="clip", desc="decoding songs", leave=False):
        wave = decode(torch.from_numpy(np.asarray(clips[row]["codes"], np.int64)))
        if row in spectra:
            spectra[row] = spectrogram(wave, rate).astype(np.float16)
        waves += [(wave[:, begin * hop : (begin + spans.frames) * hop].copy(), rate) for begin in begins[row]]
    songs = [clips["source"][span.row] for span in spans.places]
    return Excerpts(waves, songs), [one for one in spectra.values() if one is not None]


def searched_rows(clips: datasets.Dataset, device: str) -> list[int]:
    """Rows of the training clips that are compared by sound: all, or as many as the codec may decode on this device."""
    seconds, songs = list(clips["seconds"]), list(clips["source"])
    allowed = MOST_SECONDS.get(device, MOST_SECONDS_ON_A_GPU)
    most = len(seconds) if sum(seconds) <= allowed else int(allowed * len(seconds) / sum(seconds))
    return spread_over_songs(list(range(len(seconds))), songs, max(most, len(set(songs))))


def spread_over_songs(rows: list[int], songs: list[str], most: int) -> list[int]:
    """At most so many rows: first one of each song, then the second ones, and so on."""
    counts: Counter[str] = Counter()
    turns = []
    for row in rows:
        turns.append((counts[songs[row]], row))
        counts[songs[row]] += 1
    return sorted(row for _, row in sorted(turns)[:most])


def training_clips(
    clips: datasets.Dataset, recordings: Mapping[str, str]
) -> tuple[list[NDArray[Any]], list[TrainingClip]]:
    """Codes `[K, T]` and names of all clips; `recordings` has the recording of each song."""
    codes = [np.asarray(row["codes"]) for row in clips.with_format("numpy")]
    names = zip(clips["source"], clips["start"], clips["file_name"], strict=True)
    return codes, [TrainingClip(song, start, file, recordings[song]) for song, start, file in names]


@torch.inference_mode()
def clip_losses(
    generator: Generator, clips: datasets.Dataset, name: str, melodies: Melodies | None = None
) -> tuple[Array, Array]:
    """Summed cross-entropy in nats and number of steps of each clip and codebook, both `[N, K]`.

    The loss that training minimises, under teacher forcing with each clip's own caption, and its melody where the run
    was trained with `melodies`.
    """
    checkpoint, rows = generator.checkpoint, clips.with_format("numpy")
    states = [
        state.astype(np.float16).astype(np.float32)  # as training reads them from the tokens
        for state in generator.text_states([str(caption) for caption in clips["text"]])
    ]
    sums = []
    for row, state in zip(
        progress_bar(rows, unit="clip", desc=f"loss of the {name}", leave=False), states, strict=True
    ):
        codes = torch.from_numpy(np.asarray(row["codes"], np.int64))
        inputs, labels = training_steps(codes, checkpoint.delay, checkpoint.start_token_id)
        padded, mask = text.pad_states([state])
        batch = {"codes": inputs[None], "labels": labels[None], "text_states": padded, "text_mask": mask}
        batch["keep_caption"] = torch.ones(1, dtype=torch.bool)
        if melodies is not None and row[MELODY]:
            frames = codes.shape[1]
            batch["melody"] = melodies.prefix([(str(row[MELODY]), frames)], 0, frames)[None]
        outputs = generator.model(**{key: value.to(generator.device) for key, value in batch.items()})
        sums.append(torch.stack([outputs.nll[0], outputs.count[0].to(outputs.nll.dtype)]).double().cpu())
    nll, count = torch.stack(sums, dim=1).numpy()
    return nll, count
