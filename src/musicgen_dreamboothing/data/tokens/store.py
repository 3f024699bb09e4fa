"""Clips to tokens: EnCodec runs once for each clip, T5 once for each distinct caption.

`tokens/codes-<hash>` has codes without the delay pattern, keyed by the bytes of the clip; the hash is of the codec.
Captions and the instance prompt are not stored there: readers take them from the metadata and their options. So runs
with other instance prompts or bases share a folder; nothing that is stored is changed or deleted.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import PartialState

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.analysis.copies import joined_fingerprint, same_recordings
from musicgen_dreamboothing.analysis.duplicates import Fingerprint, fingerprint
from musicgen_dreamboothing.console import UserError, log, plural, progress_bar
from musicgen_dreamboothing.data.captions.caption_check import caption_notes
from musicgen_dreamboothing.data.captions.captions import key_phrase, with_instance_prompt, word_dropout_variants
from musicgen_dreamboothing.data.layout import CLIPS, METADATA, TOKENS
from musicgen_dreamboothing.data.songs.clips import listed_clips
from musicgen_dreamboothing.data.songs.song import MELODY_FILE, STEMS_FILE, TRAIN
from musicgen_dreamboothing.data.tokens.arrow_tables import append_rows, delete_unfinished, read_rows
from musicgen_dreamboothing.data.tokens.melodies import MelodySource, add_melodies, with_melodies
from musicgen_dreamboothing.data.tokens.text_states import add_states
from musicgen_dreamboothing.device import release_memory
from musicgen_dreamboothing.files import digest, write_json
from musicgen_dreamboothing.model import codec
from musicgen_dreamboothing.model.checkpoint import Checkpoint, load_codec, load_tokenizer
from musicgen_dreamboothing.model.keyword import texts_of

INFO = "info.json"  # names the base that clips were last encoded for
PART_CLIPS = 64  # codes are written after so many clips: what a kill can cost
READ_AHEAD = 8  # clips, at least
ENCODE_BATCH = 8  # clips at once on a CPU, whose LSTM products of 4 rows are slow; on a GPU its free memory decides
MAX_ENCODE_BATCH, ENCODE_BYTES = 16, 0.8e9  # EnCodec needs somewhat less for a clip of 30 s
# Of earlier versions: tables, the same ones after a kill, and files beside and in them.
OLD_TABLES = tuple(table + end for table in ("clips", "captions", "words", "parts/*") for end in ("", ".new", ".old"))
OLD_FILES = ("key_word.json", "clips.arrow", "captions.arrow", "words.arrow", "parts/*.arrow")
OLD_TABLE_FILES = ("data-*.arrow", "dataset_info.json", "state.json")

ReadClip = tuple[dict[str, Any], np.ndarray, Fingerprint]  # a row, its wave [C, S], its fingerprint [T]

CODE_FEATURES = datasets.Features(
    {
        "digest": datasets.Value("string"),
        "codes": datasets.List(datasets.List(datasets.Value("uint16"))),  # [K, T]
        "frames": datasets.Value("int32"),  # T
        "fingerprint": datasets.List(datasets.Value("uint32")),  # of the sound, see `analysis.duplicates`
    }
)


@dataclass(frozen=True)
class Tokenized:
    """The clips of the metadata with the captions of this run, and how many clips and captions were encoded."""

    rows: list[dict[str, Any]]
    clips_encoded: int
    captions_encoded: int


def tokenize_clips(
    folder: Path,
    checkpoint: Checkpoint,
    *,
    batch_size: int = 0,
    workers: int = 1,
    instance_prompt: str | None = None,
    class_prompt: str | None = None,
    word_dropout: float = 0.0,
    text_states: bool = True,
    melody: MelodySource | None = None,
) -> Tokenized:
    """Adds the missing tokens of a prepared folder; under `accelerate launch` the processes share the clips.

    Args:
        folder: the prepared folder.
        checkpoint: the base whose codec and text encoder are used.
        batch_size: clips encoded at once; 0 chooses by the device.
        workers: threads that read clips while the codec computes.
        instance_prompt, class_prompt: put in front of captions that do not begin with them.
        word_dropout: share of words that the extra copies of each caption lack; 0 makes no copies.
        text_states: False if the text encoder is trained, so that no states can be stored.
        melody: which sounds have the melodies of the clips; None computes none.

    Raises:
        UserError: no clip is left.
    """
    state = PartialState()
    rows = clip_rows(folder, instance_prompt, class_prompt)
    if state.is_main_process:
        _clean_up(folder / TOKENS, checkpoint)
        for note in caption_notes(rows, load_tokenizer(checkpoint)):
            log(note)
    state.wait_for_everyone()
    encoded = _add_codes(folder, rows, checkpoint, batch_size, workers)
    if melody is not None:
        _add_melodies(folder, rows, checkpoint, melody, workers)
    captioned = 0
    if state.is_main_process:
        recordings_of(folder, rows, *read_codes(folder, codes_name(checkpoint)))
        if text_states:
            captions = captions_of(rows, key_phrase(instance_prompt, class_prompt), word_dropout)
            prompts = texts_of(instance_prompt) if instance_prompt else []
            captioned = len(add_states(folder, captions + prompts, checkpoint).intersection(captions))
    state.wait_for_everyone()
    return Tokenized(rows, encoded, captioned)


def codes_name(checkpoint: Checkpoint) -> str:
    """The folder in `tokens/` that has the codes of this checkpoint's codec."""
    return f"codes-{checkpoint.codec_hash}"


def _clean_up(tokens: Path, checkpoint: Checkpoint) -> None:
    """Writes the name of the base, and deletes unfinished files and tables of earlier versions."""
    for table in (*tokens.glob("codes-*"), *tokens.glob("text-*"), *tokens.glob("melody-*")):
        delete_unfinished(table)
    info = read_info(tokens)
    if "identity" in info:
        _delete_old_tables(tokens)
    if info != {"model": checkpoint.name}:
        write_json(tokens / INFO, {"model": checkpoint.name})


def read_info(tokens: Path) -> dict[str, Any]:
    """The contents of `info.json`; empty if it is missing or damaged."""
    with suppress(OSError, ValueError, TypeError):
        return dict(json.loads((tokens / INFO).read_text(encoding="utf-8")))
    return {}


def _delete_old_tables(tokens: Path) -> None:
    """Deletes the files that an earlier version wrote, and no others."""
    tables = [path for table in OLD_TABLES for path in tokens.glob(table) if path.is_dir()]
    for folder, patterns in ((tokens, OLD_FILES), *((table, OLD_TABLE_FILES) for table in tables)):
        for path in (path for pattern in patterns for path in folder.glob(pattern) if path.is_file()):
            path.unlink()
    for folder in (*tables, tokens / "parts"):
        with suppress(OSError):  # it is not empty
            folder.rmdir()


def clip_rows(
    folder: Path, instance_prompt: str | None = None, class_prompt: str | None = None
) -> list[dict[str, Any]]:
    """The clips in the metadata whose file exists, with its digest, and captions that begin with the key phrase.

    Raises:
        UserError: there is none.
    """
    clips = folder / CLIPS
    listed = listed_clips(folder)
    rows = [row for row in listed if (clips / str(row.get("file_name"))).is_file()]
    if not rows:
        raise UserError(f"{clips / METADATA} lists no clip whose file is there")
    if len(rows) < len(listed):
        log(f"note: left out {plural(len(listed) - len(rows), 'line')} of {clips / METADATA} whose file is missing")
    return [_clip_row(row, clips, instance_prompt, class_prompt) for row in rows]


def _clip_row(
    row: dict[str, Any], clips: Path, instance_prompt: str | None, class_prompt: str | None
) -> dict[str, Any]:
    """A row of the metadata, which people may write by hand, with all columns."""
    name = row["file_name"]
    return {
        **{key: str(row.get(key) or usual) for key, usual in (("source", name), ("split", TRAIN))},
        **{key: _number(row.get(key)) for key in ("start", "seconds")},
        "file_name": name,
        "text": with_instance_prompt(instance_prompt, str(row.get("text") or ""), class_prompt),
        "variants": [
            with_instance_prompt(instance_prompt, str(text), class_prompt)
            for text in row.get("variants") or []
            if text is not None
        ],
        "digest": digest(clips / name),
        **{column: row[column] for column in (MELODY_FILE, STEMS_FILE) if isinstance(row.get(column), str)},
    }


def _number(value: Any) -> float:
    """Seconds; 0 for values that are no finite number."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else 0.0


def captions_of(rows: Iterable[Mapping[str, Any]], phrase: str, word_dropout: float) -> list[str]:
    """All texts that a run may draw for these clips: captions, variants, and copies with word dropout."""
    captions = list(dict.fromkeys(text for row in rows for text in (row["text"], *row["variants"])))
    if not word_dropout:
        return captions
    return captions + [copy for text in captions for copy in word_dropout_variants(text, phrase, word_dropout)]


def read_codes(folder: Path, name: str) -> tuple[datasets.Dataset, dict[str, int]]:
    """The codes in one of the folders in `tokens/`, and the row of each digest."""
    table = read_rows(folder / TOKENS / name, CODE_FEATURES)
    return table, {one: row for row, one in enumerate(table["digest"])}


def _add_codes(folder: Path, rows: list[dict[str, Any]], checkpoint: Checkpoint, batch_size: int, workers: int) -> int:
    """Encodes the clips that have no codes, each process its share; returns their number in all."""
    state = PartialState()
    _, known = read_codes(folder, codes_name(checkpoint))
    missing = list({row["digest"]: row for row in rows if row["digest"] not in known}.values())
    state.wait_for_everyone()  # all have read before one of them writes
    if share := missing[state.process_index :: state.num_processes]:
        _encode_missing(folder, share, checkpoint, batch_size, workers)
    state.wait_for_everyone()
    return len(missing)


def _add_melodies(
    folder: Path, rows: list[dict[str, Any]], checkpoint: Checkpoint, source: MelodySource, workers: int
) -> None:
    """Computes the melodies that are missing, of clips as long as their codes."""
    table, row_of = read_codes(folder, codes_name(checkpoint))
    frames = table["frames"][:]
    timed = [row | {"seconds": frames[row_of[row["digest"]]] / checkpoint.frame_rate} for row in rows]
    paired = with_melodies(folder, timed, source)
    if missing := sum(not row["melody_file"] for row in paired):
        log(f"{missing} of {plural(len(paired), 'clip')} without another recording are trained without a melody")
    add_melodies(folder, paired, checkpoint, workers)


def recordings_of(
    folder: Path, rows: Sequence[Mapping[str, Any]], table: datasets.Dataset, row_of: Mapping[str, int]
) -> dict[str, str]:
    """For each song the first one, by name, that is the same recording: its own name if there is no other.

    Stored in `tokens/`, as thousands of songs take a while. `rows` are clips with `source`, `digest` and `start` in
    seconds, `table` and `row_of` are those of `read_codes`.
    """
    clips = sorted((row["source"], row["start"], row["digest"]) for row in rows)
    key = hashlib.blake2b(json.dumps(clips).encode(), digest_size=8).hexdigest()
    path = folder / TOKENS / f"recordings-{key}.json"
    names = sorted({source for source, _, _ in clips})
    with suppress(OSError, ValueError, TypeError):
        copies = json.loads(path.read_text(encoding="utf-8"))
        return {name: copies.get(name, name) for name in names}
    prints = table.select_columns(["fingerprint"]).with_format("numpy")
    parts: dict[str, list[tuple[float, np.ndarray]]] = {}
    for source, start, one in clips:
        parts.setdefault(source, []).append((start, np.asarray(prints[row_of[one]]["fingerprint"], np.uint32)))
    first = same_recordings([joined_fingerprint(parts[name]) for name in names])
    recordings = {name: names[number] for name, number in zip(names, first, strict=True)}
    if PartialState().is_main_process:
        with suppress(OSError):  # a folder that can only be read has no cache
            write_json(path, {name: other for name, other in recordings.items() if name != other})
    return recordings


def _encode_missing(
    folder: Path, rows: list[dict[str, Any]], checkpoint: Checkpoint, batch_size: int, workers: int
) -> None:
    """Encodes clips; the codec is freed at the end."""
    state, table = PartialState(), folder / TOKENS / codes_name(checkpoint)
    device = state.device
    batch_size = batch_size or batch_size_of(device)
    model = load_codec(checkpoint, device)
    pending: list[dict[str, Any]] = []
    with progress_bar(total=len(rows), unit="clip", desc="encoding", disable=not state.is_main_process) as bar:
        for batch in _equal_length_batches(folder / CLIPS, rows, checkpoint, batch_size, workers):
            waves = torch.from_numpy(np.stack([wave for _, wave, _ in batch]))
            codes = codec.encode(model, waves, checkpoint).cpu().numpy().astype(np.uint16)
            pending += [
                {"digest": row["digest"], "codes": code, "frames": code.shape[1], "fingerprint": print_}
                for (row, _, print_), code in zip(batch, codes, strict=True)
            ]
            bar.update(len(batch))
            if len(pending) >= PART_CLIPS:
                append_rows(table, pending, CODE_FEATURES, state.process_index)
                pending = []
    if pending:
        append_rows(table, pending, CODE_FEATURES, state.process_index)
    del model
    release_memory()


def batch_size_of(device: torch.device) -> int:
    """Clips of 30 s for EnCodec at once."""
    if device.type != "cuda":
        return ENCODE_BATCH
    free, _ = torch.cuda.mem_get_info(device)
    return max(1, min(MAX_ENCODE_BATCH, int(free / ENCODE_BYTES)))


def _equal_length_batches(
    clips: Path, rows: Sequence[dict[str, Any]], checkpoint: Checkpoint, batch_size: int, workers: int
) -> Iterator[list[ReadClip]]:
    """Batches of equal length: padding would change the codes of shorter clips."""
    ordered = sorted(rows, key=lambda row: (-row["seconds"], row["file_name"]))
    clips_read = _read(clips, ordered, checkpoint, workers, max(READ_AHEAD, batch_size))
    for _, group in groupby(clips_read, key=lambda clip: clip[1].shape[-1]):
        batch: list[ReadClip] = []
        for clip in group:
            batch.append(clip)
            if len(batch) == batch_size:
                yield batch
                batch = []
        if batch:
            yield batch


def _read(
    clips: Path, rows: Sequence[dict[str, Any]], checkpoint: Checkpoint, workers: int, read_ahead: int
) -> Iterator[ReadClip]:
    """Clips in order; a batch of the codec is read ahead while it encodes the one before.

    Threads suffice, as decoding and resampling release the GIL: two processes took as long for 27 minutes of FLAC.
    """
    ahead: deque[Future[ReadClip]] = deque()
    pool = ThreadPoolExecutor(max(1, workers))
    try:
        for row in rows:
            ahead.append(pool.submit(_read_clip, clips, row, checkpoint))
            if len(ahead) > read_ahead:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _read_clip(clips: Path, row: dict[str, Any], checkpoint: Checkpoint) -> ReadClip:
    """A clip at the codec's rate, in the model's channels, padded to whole frames."""
    decoded = audio.decode(clips / row["file_name"], checkpoint.sampling_rate)
    wave = audio.to_channels(decoded, checkpoint.audio_channels)
    wave = np.pad(wave, ((0, 0), (0, -wave.shape[1] % checkpoint.hop_length)))
    return row, wave, fingerprint(decoded, checkpoint.sampling_rate)
