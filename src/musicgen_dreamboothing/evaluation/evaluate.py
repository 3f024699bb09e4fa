"""`evaluate`: did a run learn its style, what did that do to the rest, and is what it makes its own?"""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import yaml

from musicgen_dreamboothing.arguments import EvaluateArguments, check_values, note_unused
from musicgen_dreamboothing.console import UserError, log, plural, quiet_libraries
from musicgen_dreamboothing.data.layout import CLIPS
from musicgen_dreamboothing.data.run_record import RunRecord, read_record
from musicgen_dreamboothing.data.tokens.tables import Tables
from musicgen_dreamboothing.device import parse_device, release_memory
from musicgen_dreamboothing.evaluation.blind import blind_lines, score_blind, write_blind
from musicgen_dreamboothing.evaluation.figures import Heard, Losses, collapsed_prompts, figures_of
from musicgen_dreamboothing.evaluation.metrics.embedding import load_embedder
from musicgen_dreamboothing.evaluation.metrics.originality import nearest_by_embedding, nearest_by_tokens
from musicgen_dreamboothing.evaluation.playing import Played, Playlist, listen, play
from musicgen_dreamboothing.evaluation.report import write_report
from musicgen_dreamboothing.evaluation.result import NEUTRAL, STYLE, Curve, Evaluation, Likeness, Nearest, Pair
from musicgen_dreamboothing.evaluation.songs import (
    clip_losses,
    excerpts,
    prepared_folder,
    tables_of,
    training_clips,
    waves_of,
)
from musicgen_dreamboothing.evaluation.verdict import verdict
from musicgen_dreamboothing.files import digest, folder_lock
from musicgen_dreamboothing.generation.decoding import Sampling
from musicgen_dreamboothing.generation.generator import Generator
from musicgen_dreamboothing.hub import Source, weights_fingerprint
from musicgen_dreamboothing.model.checkpoint import Checkpoint, load_checkpoint, load_codec
from musicgen_dreamboothing.model.codec import decode_clip
from musicgen_dreamboothing.model.quantized import base_quantization

BASE, TUNED, SONGS = "base", "tuned", "songs"  # folders of clips
OWN_CAPTIONS = 2  # of held-out songs, among the style prompts
MOST_WINDOWED = {"cpu": 64}  # training clips that are compared by sound, window by window; the codec plays them first
MOST_WINDOWED_ON_A_GPU = 400
CURVES = {
    "loss": "loss while training",
    "eval_loss": "loss on held-out songs",
    "eval_style": "distance to your songs",
    "prior_loss": "loss on the class",
}


@dataclass(frozen=True)
class Evaluated:
    """The page, and what is in it."""

    page: Path
    evaluation: Evaluation


@quiet_libraries()
def evaluate(options: EvaluateArguments) -> Evaluated | None:
    """Compares a run with its base on the same prompts and seeds, and writes `report.html` and `report.json`.

    The same call again makes no clip a second time. With `answers` it only counts what was said on the blind page, and
    returns None.

    Raises:
        UserError: no run, or its songs are gone.
    """
    check_values(options)
    parse_device(options.device)
    base_quantization(options.quantization, torch.float32)
    note_unused(options)
    run = Path(options.run)
    record = _record(run)
    folder, word = Path(options.output_dir or run / "evaluation"), record.key_phrase or "your style"
    if options.answers is not None:
        for line in blind_lines(score_blind(folder, Path(options.answers)), word):
            log(line)
        return None
    prepared = prepared_folder(run, record, options.data)
    tables = tables_of(record, prepared, partial(_base, options, record))
    playlist = _playlist(options, record, tables)
    folder.mkdir(parents=True, exist_ok=True)
    with folder_lock(folder):
        return _evaluate(options, record, folder, prepared, tables, playlist)


def _evaluate(
    options: EvaluateArguments, record: RunRecord, folder: Path, prepared: Path, tables: Tables, playlist: Playlist
) -> Evaluated:
    """Plays both sides, measures them and writes the report."""
    run, word = Path(options.run), record.key_phrase or "your style"
    heard, checkpoint = _heard(options, record, folder, tables, playlist)
    figures, nearest = figures_of(heard), _nearest(options, heard, folder, tables, prepared, checkpoint)
    evaluation = Evaluation(
        run=run.resolve().name,
        base_model=Path(record.base_model).name if Path(record.base_model).is_dir() else record.base_model,
        word=word,
        embedding=heard.embedder.name,
        verdict=verdict(figures, nearest, word),
        best=str(record.summary.get("kept") or ""),
        figures=figures,
        pairs=_pairs(heard, folder),
        nearest=nearest,
        curves=_curves(record),
        settings=_settings(options, playlist, heard),
        notes=_notes(heard, tables),
    )
    page = write_report(folder, evaluation)
    _tell(evaluation, page)
    if options.blind:
        _blind(folder, evaluation, options)
    return Evaluated(page, evaluation)


def _record(run: Path) -> RunRecord:
    record = read_record(run)
    if record is None:
        raise UserError(f"{run} holds no run: there is no run.json in it; train makes one")
    if not record.finished:
        raise UserError(f"the run in {run} is not finished; the command that began it goes on with it")
    return record


def _playlist(options: EvaluateArguments, record: RunRecord, tables: Tables) -> Playlist:
    """What to play: own prompts, or captions of held-out songs and usual ones with the key-word."""
    usual = yaml.safe_load(files("musicgen_dreamboothing.assets").joinpath("prompts.yaml").read_text(encoding="utf-8"))
    style = options.prompts or _style_prompts(record.key_phrase, usual[STYLE], tables)
    neutral = options.neutral_prompts or usual[NEUTRAL]
    if len(style) * options.variations < 2:
        raise UserError("a style is judged by two clips at least; give more --prompts or --variations")
    # A prompt that is in both lists is one of the style.
    prompts = dict.fromkeys(style, STYLE) | {prompt: NEUTRAL for prompt in neutral if prompt not in style}
    longest = max(tables.train["seconds"])
    if options.seconds > longest:
        log(f"note: --seconds {options.seconds:g} is cut to {longest:g}, the length of the clips it was trained on")
    return Playlist(tuple(prompts.items()), options.variations, min(options.seconds, longest), options.seed, Sampling())


def _style_prompts(word: str, usual: list[str], tables: Tables) -> list[str]:
    captions = dict.fromkeys((tables.held_out if len(tables.held_out) else tables.train)["text"])
    return [*list(captions)[:OWN_CAPTIONS], *(prompt.format(word=word) for prompt in usual if word)]


def _heard(
    options: EvaluateArguments, record: RunRecord, folder: Path, tables: Tables, playlist: Playlist
) -> tuple[Heard, Checkpoint]:
    """Everything that is compared, and the base's configuration; one model is loaded at a time."""
    base = _load(options, *_base_of(options, record), None)
    checkpoint = base.checkpoint
    play(base, folder / BASE, playlist, checkpoint.identity, options.batch_size)
    before = clip_losses(base, tables.held_out, BASE) if len(tables.held_out) else None
    songs, held_out = (
        excerpts(
            base.decode, checkpoint, clips, seconds=playlist.seconds, most=options.song_excerpts, seed=options.seed
        )
        for clips in (tables.train, tables.held_out)
    )
    del base
    release_memory()
    tuned = _load(options, options.run, None, options.base_model)
    play(tuned, folder / TUNED, playlist, weights_fingerprint(Path(options.run)), options.batch_size)
    losses = None
    if before is not None:
        after, count = clip_losses(tuned, tables.held_out, "fine-tuned model")
        losses = Losses(before[0], after, count, list(tables.held_out["source"]))
    del tuned
    release_memory()
    embedder = load_embedder(
        options.clap_model_name_or_path,
        songs.waves,
        cache_dir=options.cache_dir,
        token=options.token,
        device=parse_device(options.device),
    )
    first, second = (listen(folder / side, playlist, checkpoint.sampling_rate) for side in (BASE, TUNED))
    heard = Heard(first, second, songs, held_out if held_out.waves else None, losses, embedder, options.seed)
    return heard, checkpoint


def _base(options: EvaluateArguments, record: RunRecord) -> Checkpoint:
    """The configuration of the run's base."""
    return load_checkpoint(Source(*_base_of(options, record), options.cache_dir, options.token))


def _base_of(options: EvaluateArguments, record: RunRecord) -> tuple[str, str | None]:
    """Name and revision of the run's base: on the Hub the commit that it was trained on."""
    if options.base_model:
        return options.base_model, None
    return record.base_model, None if Path(record.base_model).is_dir() else record.base_revision


def _load(options: EvaluateArguments, model: str, revision: str | None, base: str | None) -> Generator:
    return Generator(
        model,
        base_model=base,
        revision=revision,
        cache_dir=options.cache_dir,
        token=options.token,
        device=options.device,
        dtype=options.dtype,
        quantization=options.quantization,
    )


def _pairs(heard: Heard, folder: Path) -> list[Pair]:
    """The clips as a report shows them."""
    found = []
    for base, tuned, followed in zip(heard.base, heard.tuned, heard.adherence[1], strict=True):
        before, after = (os.path.relpath(clip.file, folder) for clip in (base, tuned))
        found.append(Pair(base.prompt, base.kind, base.variation, before, after, notes=followed.notes))
    return found


def _nearest(
    options: EvaluateArguments, heard: Heard, folder: Path, tables: Tables, prepared: Path, checkpoint: Checkpoint
) -> list[Nearest]:
    """For each clip of the style the training clip it is most like: the one by codes, unless only sound tells."""
    codes, names = training_clips(tables.train)
    clips = [heard.tuned[row] for row in heard.rows(STYLE)]
    frame_rate = codes[0].shape[1] / tables.train["seconds"][0]
    by_codes = nearest_by_tokens([clip.codes for clip in clips], codes, names, frame_rate)
    device = parse_device(options.device)
    few = tables.train.select(range(min(MOST_WINDOWED.get(device.type, MOST_WINDOWED_ON_A_GPU), len(tables.train))))
    loaded = load_codec(checkpoint, device)
    training = waves_of(partial(decode_clip, loaded, checkpoint=checkpoint), few, checkpoint.sampling_rate)
    waves = [(clip.wave, clip.rate) for clip in clips]
    by_sound = nearest_by_embedding(waves, training, names[: len(few)], heard.embedder)
    digests = dict(zip(tables.train["file_name"], tables.train["digest"], strict=True))
    found = []
    for clip, one, other in zip(clips, by_codes, by_sound, strict=True):
        nearest = other if other.is_copy and not one.is_copy else one
        source = prepared / CLIPS / nearest.clip_file
        is_unchanged = source.is_file() and digest(source) == digests[nearest.clip_file]
        found.append(_nearest_place(clip, nearest, folder, source if nearest.is_copy and is_unchanged else None))
    return found


def _nearest_place(clip: Played, likeness: Likeness, folder: Path, source: Path | None) -> Nearest:
    """The place that a clip is nearest to; a training clip that it copies is put beside the report, which plays it."""
    shown = asdict(likeness) | {"clip_file": ""}
    if source is not None:
        name = likeness.clip_file.replace("/", "_")
        (folder / SONGS).mkdir(exist_ok=True)
        try:
            shutil.copyfile(source, folder / SONGS / name)
            shown["clip_file"] = f"{SONGS}/{name}"
        except OSError as error:
            log(f"note: the report can't play {source} ({error.strerror})")
    elif likeness.is_copy:
        log(f"note: the report can't play {likeness.clip_file}: the clip is gone or has changed since the training")
    return Nearest(**shown, file=os.path.relpath(clip.file, folder), prompt=clip.prompt)


def _curves(record: RunRecord) -> list[Curve]:
    """What the run's log tells of its course."""
    found = []
    for key, title in CURVES.items():
        points = {int(line["step"]): float(line[key]) for line in record.log if key in line and "step" in line}
        if len(points) > 1:
            found.append(Curve(title, list(points), list(points.values())))
    return found


def _settings(options: EvaluateArguments, playlist: Playlist, heard: Heard) -> dict[str, Any]:
    return {
        "prompts": [prompt for prompt, _ in playlist.prompts],
        "variations": playlist.variations,
        "seconds": playlist.seconds,
        "seed": options.seed,
        "guidance_scale": playlist.sampling.guidance_scale,
        "temperature": playlist.sampling.temperature,
        "top_k": playlist.sampling.top_k,
        "song excerpts": len(heard.songs.waves),
        "held-out excerpts": len(heard.held_out.waves) if heard.held_out else 0,
        "embedding": heard.embedder.name,
        "versions": [f"{name} {version(name)}" for name in ("musicgen-dreamboothing", "transformers", "torch", "peft")],
    }


def _notes(heard: Heard, tables: Tables) -> list[str]:
    notes = []
    if not heard.embedder.is_clap:
        notes.append(
            "Sounds were compared without CLAP, by statistics of the signal: timbre, its movement and rhythm. These "
            "figures can't be compared with those of papers, or of reports with CLAP."
        )
    if len(heard.rows(STYLE)) < 16:
        notes.append(f"{plural(len(heard.rows(STYLE)), 'clip')} of the style are few: intervals are wide.")
    if held := tables.held_out_songs:
        notes.append(f"{plural(len(held), 'song')} held out: {', '.join(held[:8])}{', …' if len(held) > 8 else ''}.")
    notes += [f"all clips of {prompt!r} sound the same" for prompt in collapsed_prompts(heard)]
    return notes


def _tell(evaluation: Evaluation, page: Path) -> None:
    log("")
    for sentence in evaluation.verdict:
        log(f"- {sentence}")
    log(f"\nread and listen: {page}")


def _blind(folder: Path, evaluation: Evaluation, options: EvaluateArguments) -> None:
    page = write_blind(folder, evaluation.pairs, evaluation.word, options.seed)
    log(f"without knowing which is which: {page}; then: musicgen-dreamboothing evaluate {options.run} --answers FILE")
