"""Clips to tokens: EnCodec runs once for each clip, T5 once for each distinct caption.

`tokens/clips` holds codes without the delay pattern, beside them what `text_states.py` keeps; all are `datasets`
folders. A code stays valid as long as the bytes of its clip and the codec are the same, so that a
changed caption costs a run of T5 on that caption and nothing else.
"""

from __future__ import annotations

import json
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import PartialState
from tqdm.auto import tqdm

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.console import UserError, plural, say
from musicgen_dreamboothing.data.arrow_tables import save_table
from musicgen_dreamboothing.data.caption_check import caption_notes
from musicgen_dreamboothing.data.captions import key_phrase, thinned_copies, with_instance_prompt
from musicgen_dreamboothing.data.clips import listed_clips
from musicgen_dreamboothing.data.files import digest, write_json
from musicgen_dreamboothing.data.layout import CLIPS, METADATA, TOKENS
from musicgen_dreamboothing.data.songs.song import TRAIN
from musicgen_dreamboothing.data.text_states import CAPTIONS, WORDS, update_states
from musicgen_dreamboothing.listening.copies import joined_fingerprint, same_recordings
from musicgen_dreamboothing.listening.duplicates import Fingerprint, fingerprint
from musicgen_dreamboothing.model import codec
from musicgen_dreamboothing.model.checkpoint import Checkpoint, load_codec, load_tokenizer
from musicgen_dreamboothing.model.device import release_memory
from musicgen_dreamboothing.model.keyword import texts_of

CODES, PARTS, INFO = "clips", "parts", "info.json"
PART_CLIPS = 64  # codes are put on disk after so many clips: what a kill can cost
READ_AHEAD = 8  # clips, at least
ENCODE_BATCH = 8  # clips at once on a CPU, whose LSTM products of 4 rows are slow; on a GPU its free memory decides
MAX_ENCODE_BATCH, ENCODE_BYTES = 16, 0.8e9  # EnCodec wants somewhat less for a clip of 30 s

ReadClip = tuple[dict[str, Any], np.ndarray, Fingerprint]  # a row, its wave [C, S], its fingerprint [T]

CODE_FEATURES = datasets.Features(
    {
        "digest": datasets.Value("string"),
        "codes": datasets.List(datasets.List(datasets.Value("uint16"))),  # [K, T]
        "fingerprint": datasets.List(datasets.Value("uint32")),  # of the sound, see `listening.duplicates`
    }
)
CLIP_COLUMNS = {
    **dict.fromkeys(("file_name", "source", "split", "text"), datasets.Value("string")),
    **dict.fromkeys(("start", "seconds"), datasets.Value("float64")),
    "variants": datasets.List(datasets.Value("string")),  # other captions of the clip
}
# The first song of those that are one recording, found when the table is written.
TABLE_FEATURES = datasets.Features({**CLIP_COLUMNS, **CODE_FEATURES, "recording": datasets.Value("string")})


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
) -> tuple[int, int]:
    """Brings `tokens/` up to date with `clips/`; under `accelerate launch` the processes share the clips.

    Args:
        folder: the prepared folder.
        checkpoint: the base whose codec and text encoder are used.
        batch_size: clips encoded at once; 0 chooses by the device.
        workers: threads that read clips while the codec computes.
        instance_prompt: put in front of captions that do not begin with it, and
        class_prompt: the noun behind it.
        word_dropout: above 0 a few copies of each caption lack this share of the words behind these two.
        text_states: False where the text encoder is trained, and no state of it stays true.

    Returns:
        How many clips and how many captions had to be encoded.

    Raises:
        UserError: no clip is left.
    """
    state, tokens = PartialState(), folder / TOKENS
    rows = clip_rows(folder, instance_prompt, class_prompt)
    if state.is_main_process:
        _begin(tokens, checkpoint)
        for note in caption_notes(rows, load_tokenizer(checkpoint)):
            say(note)
    state.wait_for_everyone()
    encoded = _update_codes(folder, rows, checkpoint, batch_size, workers)
    captioned = 0
    if state.is_main_process and text_states:
        captions = [text for row in rows for text in (row["text"], *row["variants"])]
        phrase = key_phrase(instance_prompt, class_prompt)
        thin = (
            [copy for text in captions for copy in thinned_copies(text, phrase, word_dropout)] if word_dropout else []
        )
        wanted = {CAPTIONS: captions + thin} | ({WORDS: texts_of(instance_prompt)} if instance_prompt else {})
        captioned = update_states(tokens, wanted, checkpoint)
    state.wait_for_everyone()
    return encoded, captioned


def _begin(tokens: Path, checkpoint: Checkpoint) -> None:
    """Keeps the tokens of this base and drops those of another."""
    origin = _origin(checkpoint)
    if _read_info(tokens) != origin:
        shutil.rmtree(tokens, ignore_errors=True)
    tokens.mkdir(parents=True, exist_ok=True)
    write_json(tokens / INFO, origin)


def clip_rows(
    folder: Path, instance_prompt: str | None = None, class_prompt: str | None = None
) -> list[dict[str, Any]]:
    """The clips listed in the metadata whose file exists, with the digest of each file."""
    clips = folder / CLIPS
    listed = listed_clips(folder)
    rows = [row for row in listed if (clips / str(row.get("file_name"))).is_file()]
    if not rows:
        raise UserError(f"{clips / METADATA} lists no clip whose file is there")
    if len(rows) < len(listed):
        say(f"left out: {plural(len(listed) - len(rows), 'line')} of {clips / METADATA} whose file is missing")
    return [_clip_row(row, clips, instance_prompt, class_prompt) for row in rows]


def _clip_row(
    row: dict[str, Any], clips: Path, instance_prompt: str | None, class_prompt: str | None
) -> dict[str, Any]:
    """Fills in what a person who wrote the metadata by hand may have left out."""
    name = row["file_name"]
    usual = {"source": name, "split": TRAIN, "start": 0.0, "seconds": 0.0}
    return {
        **{key: row.get(key) or value for key, value in usual.items()},
        "file_name": name,
        "text": with_instance_prompt(instance_prompt, str(row.get("text") or ""), class_prompt),
        "variants": [
            with_instance_prompt(instance_prompt, str(text), class_prompt) for text in row.get("variants") or []
        ],
        "digest": digest(clips / name),
    }


def _origin(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the tokens depend on besides the clips."""
    return {
        "model": checkpoint.name,
        "identity": checkpoint.identity,
        "sampling_rate": checkpoint.sampling_rate,
        "frame_rate": checkpoint.frame_rate,
        "codebooks": checkpoint.codebooks,
        "audio_channels": checkpoint.audio_channels,
    }


def _read_info(tokens: Path) -> dict[str, Any] | None:
    path = tokens / INFO
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _update_codes(
    folder: Path, rows: list[dict[str, Any]], checkpoint: Checkpoint, batch_size: int, workers: int
) -> int:
    """Encodes what is missing, each process its share, and lets the main one write the table."""
    state, tokens = PartialState(), folder / TOKENS
    if _is_current(tokens / CODES, rows):
        return 0
    known = _known_codes(tokens)
    missing = list({row["digest"]: row for row in rows if row["digest"] not in known}.values())
    state.wait_for_everyone()  # all have looked before one of them writes
    if share := missing[state.process_index :: state.num_processes]:
        _encode_missing(folder, share, checkpoint, batch_size, workers)
    state.wait_for_everyone()
    if state.is_main_process:
        _assemble(tokens, rows, _known_codes(tokens), checkpoint.frame_rate)
        shutil.rmtree(tokens / PARTS, ignore_errors=True)
    return len(missing)


def _is_current(codes: Path, rows: list[dict[str, Any]]) -> bool:
    if not codes.exists():
        return False
    table = datasets.load_from_disk(str(codes))
    if set(TABLE_FEATURES) != set(table.column_names):  # of an earlier version
        return False
    stored = table.select_columns([*CLIP_COLUMNS, "digest"]).to_list()
    # the length of a clip is measured, not read from what a person may have written
    return len(stored) == len(rows) and all(
        old | {"seconds": row["seconds"]} == row for old, row in zip(stored, rows, strict=True)
    )


def _known_codes(tokens: Path) -> dict[str, tuple[datasets.Dataset, int]]:
    """Where the codes of each digest stand: in the finished table or in the parts of a run that was cut short."""
    tables = [tokens / CODES, *sorted((tokens / PARTS).glob("[0-9]*"))]
    known = {}
    for path in tables:
        if (path / "state.json").exists() and not path.suffix:  # a kill leaves a torn 000000.new behind
            table = datasets.load_from_disk(str(path))
            if not set(CODE_FEATURES) <= set(table.column_names):  # of an earlier version
                continue
            table = table.select_columns(list(CODE_FEATURES))
            numbers = table.with_format("numpy")  # a code as Python's own integer takes 33 bytes instead of 2
            known.update({found: (numbers, index) for index, found in enumerate(table["digest"])})
    return known


def _assemble(
    tokens: Path, rows: list[dict[str, Any]], known: dict[str, tuple[datasets.Dataset, int]], frame_rate: float
) -> None:
    """Writes the table of all clips in the order of the metadata, with their true lengths and recordings."""
    recordings = recordings_of(rows, [known[row["digest"]] for row in rows])

    def examples() -> Iterator[dict[str, Any]]:
        for row in rows:
            table, index = known[row["digest"]]
            stored = table[index]
            codes, words = np.asarray(stored["codes"], np.uint16), np.asarray(stored["fingerprint"], np.uint32)
            seconds = codes.shape[1] / frame_rate
            yield row | {
                "seconds": seconds,
                "codes": codes,
                "fingerprint": words,
                "recording": recordings[row["source"]],
            }

    save_table(examples(), TABLE_FEATURES, tokens / CODES)


def recordings_of(rows: list[dict[str, Any]], places: Sequence[tuple[datasets.Dataset, int]]) -> dict[str, str]:
    """For each song the first one, by name, that is the same recording: its own name where there is no other.

    Args:
        rows: the clips, with `source` and `start` in seconds.
        places: the table and the row with the fingerprint of each.
    """
    parts: dict[str, list[tuple[float, np.ndarray]]] = {}
    for row, (table, index) in zip(rows, places, strict=True):
        words = np.asarray(table[index]["fingerprint"], np.uint32)
        parts.setdefault(row["source"], []).append((row["start"], words))
    names = sorted(parts)
    first = same_recordings([joined_fingerprint(parts[name]) for name in names])
    return {name: names[number] for name, number in zip(names, first, strict=True)}


def _encode_missing(
    folder: Path, rows: list[dict[str, Any]], checkpoint: Checkpoint, batch_size: int, workers: int
) -> None:
    """Runs EnCodec over the clips and keeps the codes in parts; the codec leaves memory at the end."""
    device = PartialState().device  # of this process, and the CPU where `--use_cpu` says so
    batch_size = batch_size or batch_size_of(device)
    model = load_codec(checkpoint, device)
    parts = folder / TOKENS / PARTS
    parts.mkdir(exist_ok=True)
    pending: list[dict[str, Any]] = []
    with tqdm(total=len(rows), unit="clip", desc="encoding", disable=not PartialState().is_main_process) as bar:
        for batch in _equal_length_batches(folder / CLIPS, rows, checkpoint, batch_size, workers):
            waves = torch.from_numpy(np.stack([wave for _, wave, _ in batch]))
            codes = codec.encode(model, waves, checkpoint).cpu().numpy().astype(np.uint16)
            pending += [
                {"digest": row["digest"], "codes": code, "fingerprint": words}
                for (row, _, words), code in zip(batch, codes, strict=True)
            ]
            bar.update(len(batch))
            if len(pending) >= PART_CLIPS:
                pending = _save_part(parts, pending)
    if pending:
        _save_part(parts, pending)
    del model
    release_memory()


def batch_size_of(device: torch.device) -> int:
    """Clips of 30 s that EnCodec takes at once on a device."""
    if device.type != "cuda":
        return ENCODE_BATCH
    free, _ = torch.cuda.mem_get_info(device)
    return max(1, min(MAX_ENCODE_BATCH, int(free / ENCODE_BYTES)))


def _save_part(parts: Path, pending: list[dict[str, Any]]) -> list[dict[str, Any]]:
    process = PartialState().process_index
    own = [path for path in parts.glob(f"*-{process}") if path.is_dir()]
    number = max((int(path.name.split("-")[0]) for path in own), default=-1) + 1
    save_table(iter(pending), CODE_FEATURES, parts / f"{number:06d}-{process}")
    return []


def _equal_length_batches(
    clips: Path, rows: Sequence[dict[str, Any]], checkpoint: Checkpoint, batch_size: int, workers: int
) -> Iterator[list[ReadClip]]:
    """Clips of equal length: padding would change the codes of the shorter ones."""
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
    """Clips in order; a few are read ahead, so that memory doesn't grow with their number.

    They are a batch of the codec's at least, which is read while it encodes the one before.

    Decoding and resampling are done by C, which lets others work meanwhile: two processes took as long as two threads
    for 27 minutes of FLAC (4.0 s), and 0.7 s more to start.
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
    """A clip as the codec takes it: its rate, the model's channels, whole frames."""
    decoded = audio.decode(clips / row["file_name"], checkpoint.sampling_rate)
    wave = audio.to_channels(decoded, checkpoint.audio_channels)
    wave = np.pad(wave, ((0, 0), (0, -wave.shape[1] % checkpoint.hop_length)))
    return row, wave, fingerprint(decoded, checkpoint.sampling_rate)
