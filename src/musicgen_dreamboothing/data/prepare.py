"""`prepare`: songs to clips, captions and tokens in one folder."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from musicgen_dreamboothing.arguments import (
    DEFAULT_MODEL,
    WAIT,
    DataArguments,
    ModelArguments,
    PrepareArguments,
    TrainArguments,
    check_values,
    note_unused,
)
from musicgen_dreamboothing.console import UserError, log, plural, quiet_libraries
from musicgen_dreamboothing.data.captions.describe import FACTS_FILE, DescribeSettings, describe_clips
from musicgen_dreamboothing.data.captions.metadata import WRITTEN, update_metadata
from musicgen_dreamboothing.data.doctor.checkup import REPORT, check_up
from musicgen_dreamboothing.data.layout import CLIPS, METADATA, SONGS, TOKENS
from musicgen_dreamboothing.data.songs.clips import cut_songs, listed_clips, summary_lines
from musicgen_dreamboothing.data.songs.cutting import Cutting
from musicgen_dreamboothing.data.songs.scan import scan
from musicgen_dreamboothing.data.songs.song import MELODY_FILE, STEMS_FILE, Collection, Columns, Song
from musicgen_dreamboothing.data.songs.sources import find_songs
from musicgen_dreamboothing.data.songs.textfiles import read_json_lines
from musicgen_dreamboothing.data.tokens.melodies import PAIRED, SELF, MelodySource, melody_source
from musicgen_dreamboothing.data.tokens.store import Tokenized, tokenize_clips
from musicgen_dreamboothing.files import folder_lock
from musicgen_dreamboothing.hub import Source
from musicgen_dreamboothing.model.checkpoint import Checkpoint, load_checkpoint
from musicgen_dreamboothing.sharing.clips import open_dataset, push_clips
from musicgen_dreamboothing.sharing.repository import Repository

OURS = (CLIPS, TOKENS, SONGS, FACTS_FILE, REPORT, WRITTEN)  # what `overwrite_cache` removes, and nothing else


@dataclass(frozen=True)
class Prepared:
    """A prepared folder, and what this run did.

    `rows` are its clips with the captions of this run, as another run may change the metadata meanwhile.
    """

    folder: Path
    clips: int
    songs_cut: int
    clips_encoded: int
    captions_encoded: int
    rows: list[dict[str, Any]] = field(default_factory=list, repr=False, compare=False)


@quiet_libraries()
def prepare(options: PrepareArguments) -> Prepared:
    """Cuts, captions and encodes songs; a second run processes only changes.

    Raises:
        UserError: no such songs, no caption for any of them, or no song that can be used.
    """
    check_values(options)
    check_durations(options)
    note_unused(options)
    PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=timedelta(seconds=WAIT))
    checkpoint = checkpoint_of(options)
    result = prepare_songs(options.songs, Path(options.output_dir), options, checkpoint)
    has_changed = bool(result.songs_cut or result.clips_encoded or result.captions_encoded)
    if options.doctor and (has_changed or not (result.folder / REPORT).exists()) and PartialState().is_main_process:
        check_up(result.folder, checkpoint, workers=options.preprocessing_num_workers)
    log(f"Prepared in {result.folder}. Edit captions in {result.folder / CLIPS / METADATA}, then run")
    log(f"  musicgen-dreamboothing train {_train_arguments(result.folder, options)}")
    return result


def check_durations(options: DataArguments) -> None:
    """Refuses a minimum length above that of clips, except the default one.

    Raises:
        UserError: no song could be cut like that.
    """
    least, most = options.min_duration_in_seconds, options.max_duration_in_seconds
    if least > most and least != DataArguments.min_duration_in_seconds:
        raise UserError(
            f"--min_duration_in_seconds {least:g} must be at most --max_duration_in_seconds, which is {most:g}"
        )


def _train_arguments(folder: Path, options: PrepareArguments) -> str:
    """The arguments of a training on this folder with the same base and captions, which are encoded already."""
    arguments = ["--dataset_name", str(folder), "--output_dir", "runs/mine"]
    if options.model_name_or_path != DEFAULT_MODEL:
        arguments += ["--model_name_or_path", options.model_name_or_path]
    for name in ("instance_prompt", "class_prompt", "word_dropout"):
        if value := getattr(options, name):
            arguments += [f"--{name}", f"{value:g}" if isinstance(value, float) else value]
    if options.melody != "auto":
        arguments += ["--melody", options.melody]
    return shlex.join(arguments)


def checkpoint_of(options: ModelArguments) -> Checkpoint:
    """The base checkpoint of the options."""
    name, revision = options.model_name_or_path, options.model_revision
    source = Source(name, revision, options.cache_dir, options.token, options.trust_remote_code)
    return load_checkpoint(source, pad_token_id=options.pad_token_id, start_token_id=options.decoder_start_token_id)


def prepare_songs(
    songs: str, folder: Path, options: DataArguments, checkpoint: Checkpoint, *, text_states: bool = True
) -> Prepared:
    """Brings a prepared folder up to date with its songs."""
    _note_class_prompt(options)
    _refuse_own_clips(songs, folder)
    cutting, describing = _cutting(options, checkpoint), _describing(options, checkpoint.source)
    dataset = _open_dataset(options, checkpoint)
    folder.mkdir(parents=True, exist_ok=True)
    with folder_lock(folder):
        state = PartialState()
        with state.main_process_first():  # the others use its downloads
            collection = _find(songs, options, checkpoint)
        for note in collection.notes:
            log(note)
        sources, limited = collection.songs, _is_limited(songs, options)
        melody = melody_source(options, checkpoint)
        if options.overwrite_cache and state.is_main_process:
            _remove(folder, OURS)
        state.wait_for_everyone()
        if options.audio_separation or options.melody_stems == "true":
            sources = _separated(folder, sources, options, melody, checkpoint.source.cache_dir, keep_others=limited)
        cut = _cut(folder, sources, options, cutting, describing, keep_others=limited)
        state.wait_for_everyone()
        tokens = _tokenize(folder, options, checkpoint, text_states=text_states)
        if dataset is not None:
            columns = ("file_name", MELODY_FILE, STEMS_FILE)
            names = [str(row[column]) for row in listed_clips(folder) for column in columns if row.get(column)]
            log(f"uploaded to {push_clips(folder / CLIPS, [*names, METADATA], dataset)}")
        return _prepared(folder, cut, tokens)


def _refuse_own_clips(songs: str, folder: Path) -> None:
    """Refuses songs in the folders that this run writes to: they would be deleted as old clips."""
    source, outputs = Path(songs).expanduser(), [(folder / name).resolve() for name in (CLIPS, TOKENS)]
    if not source.exists() or not any(path.is_dir() for path in outputs):
        return
    for path in [source, *(scan(source).songs if source.is_dir() else [])]:
        for output in outputs:
            if path.resolve().is_relative_to(output):
                raise UserError(
                    f"{path} can't be read as songs: this run writes to {output}; choose another --output_dir"
                )


def _open_dataset(options: DataArguments, checkpoint: Checkpoint) -> Repository | None:
    """The dataset to upload clips to, in the main process; a missing login is an error before the work."""
    if not options.push_metadata_repo_id or not PartialState().is_main_process:
        return None
    name, private = options.push_metadata_repo_id, options.push_metadata_private
    return open_dataset(name, token=checkpoint.source.token, private=private)


def _note_class_prompt(options: DataArguments) -> None:
    if options.class_prompt and not options.instance_prompt:
        log("note: --class_prompt has no effect without --instance_prompt")


def _cutting(options: DataArguments, checkpoint: Checkpoint) -> Cutting:
    return Cutting(
        checkpoint.sampling_rate,
        checkpoint.hop_length,
        options.max_duration_in_seconds,
        options.min_duration_in_seconds,
        bars=options.bars if options.cut == "bars" else 0,
        loudness=options.loudness if options.normalize_loudness else None,
        listen=options.add_metadata,
    )


def _describing(options: DataArguments, base: Source) -> DescribeSettings | None:
    if not options.add_metadata:
        return None
    return DescribeSettings(
        captions=options.captions,
        variants=options.caption_variants,
        file_tags=tuple(options.file_tags),
        clap=options.clap_model_name_or_path,
        labels=Path(options.label_dir) if options.label_dir else None,
        captioner=options.captioner,
        class_prompt=options.class_prompt,
        cache_dir=base.cache_dir,
        token=base.token,
    )


def _separated(
    folder: Path,
    songs: list[Song],
    options: DataArguments,
    melody: MelodySource | None,
    cache_dir: str | None,
    *,
    keep_others: bool,
) -> list[Song]:
    """The songs with some stems only, or with stems for their melodies; both are stored in `stems/`."""
    from musicgen_dreamboothing.data.songs.stems import delete_other_stems, keep_stems, stems_in_use, with_melody_stems

    separation: dict[str, Any] = {
        "model": options.separation_model,
        "batch_size": options.audio_separation_batch_size,
        "cache_dir": cache_dir,
    }
    kept, stems = songs, None
    if options.audio_separation:
        kept, stems = keep_stems(folder, songs, options.keep_stems, keep_others=True, **separation), options.keep_stems
    if melody is not None and _takes_stems(options, melody):
        kept = with_melody_stems(folder, kept, songs, stems, **separation)
    if not keep_others:
        delete_other_stems(folder, stems_in_use(kept))
    return kept


def _takes_stems(options: DataArguments, melody: MelodySource) -> bool:
    """Whether melodies are taken from stems: on request, or of mixes that are separated anyway."""
    if options.melody_stems == "auto":
        return options.audio_separation and melody.mode == SELF
    return options.melody_stems == "true"


def _tokenize(folder: Path, options: DataArguments, checkpoint: Checkpoint, *, text_states: bool) -> Tokenized:
    return tokenize_clips(
        folder,
        checkpoint,
        batch_size=options.encode_batch_size,
        workers=options.preprocessing_num_workers,
        instance_prompt=options.instance_prompt,
        class_prompt=options.class_prompt,
        word_dropout=options.word_dropout,
        text_states=text_states,
        melody=melody_source(options, checkpoint),
    )


def _find(songs: str, options: DataArguments, checkpoint: Checkpoint) -> Collection:
    """The songs, at least one of which must get a caption."""
    base, melody = checkpoint.source, melody_source(options, checkpoint)
    columns = replace(
        _columns(options),
        melody=options.conditional_audio_column_name,
        with_melodies=melody is not None and melody.mode == PAIRED,
    )
    collection = find_songs(songs, columns, token=base.token, cache_dir=base.cache_dir)
    if not options.instance_prompt and not options.add_metadata and not any(song.caption for song in collection.songs):
        raise UserError(
            "no song has a caption. Fix: give the style a name with --instance_prompt, "
            "name a column with --text_column_name, put a song.txt beside each song, "
            "or describe them with --add_metadata true"
        )
    return collection


def _columns(options: DataArguments) -> Columns:
    eval_split = options.eval_split_name
    if eval_split == options.train_split_name:
        log(f"note: --eval_split_name {eval_split} is the training split; songs are held out of it instead")
        eval_split = None
    return Columns(
        options.target_audio_column_name,
        options.text_column_name,
        options.dataset_config_name,
        options.train_split_name,
        eval_split,
        *((options.max_train_samples, options.max_eval_samples) if isinstance(options, TrainArguments) else ()),
    )


def _is_limited(songs: str, options: DataArguments) -> bool:
    """Whether only some files of a Hub dataset are read; local songs are always read completely."""
    if not isinstance(options, TrainArguments) or Path(songs).expanduser().exists():
        return False
    return bool(options.max_train_samples or options.max_eval_samples)


def refresh(folder: Path, options: DataArguments, checkpoint: Checkpoint, *, text_states: bool = True) -> Prepared:
    """Brings the tokens of a prepared folder up to date with its clips and captions, without the songs."""
    _note_class_prompt(options)
    with folder_lock(folder, wait=True):
        if options.overwrite_cache and PartialState().is_main_process:
            _remove(folder, (TOKENS,))
        PartialState().wait_for_everyone()
        tokens = _tokenize(folder, options, checkpoint, text_states=text_states)
        return _prepared(folder, 0, tokens)


def _prepared(folder: Path, songs_cut: int, tokens: Tokenized) -> Prepared:
    clips = len(read_json_lines(folder / CLIPS / METADATA))
    return Prepared(folder, clips, songs_cut, tokens.clips_encoded, tokens.captions_encoded, tokens.rows)


def _cut(
    folder: Path,
    songs: list[Song],
    options: DataArguments,
    cutting: Cutting,
    describing: DescribeSettings | None,
    *,
    keep_others: bool,
) -> int:
    """Cuts and describes songs, and updates the metadata; returns how many songs were cut."""
    records, fresh = cut_songs(folder, songs, cutting, options.preprocessing_num_workers, keep_others=keep_others)
    if (others := len(records) - len(songs)) > 0:
        log(f"Kept {plural(others, 'song')} prepared earlier, which the limit on samples leaves out of this run")
    for line in summary_lines(records):
        log(line)
    if not any(record.clips for record in records):
        raise UserError("no song could be used; see the reasons above")
    prompt, descriptions = options.instance_prompt, {}
    if describing is not None:
        record_of = {record.source: record for record in records}
        own = [record_of[song.name] for song in songs]
        descriptions = describe_clips(folder, cutting.rate, songs, own, prompt, describing)
    if PartialState().is_main_process:
        deleted = update_metadata(folder, songs, records, prompt, descriptions, options.class_prompt)
        if deleted:
            log(f"Left out {plural(deleted, 'clip')}, whose lines were deleted from {folder / CLIPS / METADATA}")
    return fresh


def _remove(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
