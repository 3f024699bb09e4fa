"""`evaluate`: did a run learn its style, what did that do to the rest, and is what it makes its own?"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from musicgen_dreamboothing.arguments import EvaluateArguments
from musicgen_dreamboothing.console import UserError, plural, say
from musicgen_dreamboothing.data.captions import key_phrase
from musicgen_dreamboothing.data.run import RunRecord, read_record
from musicgen_dreamboothing.data.sources import CLIPS
from musicgen_dreamboothing.data.tables import Tables
from musicgen_dreamboothing.evaluation.blind import blind_lines, score_blind, write_blind
from musicgen_dreamboothing.evaluation.embedding import load_embedder
from musicgen_dreamboothing.evaluation.figures import Heard, Losses, collapsed_prompts, figures_of
from musicgen_dreamboothing.evaluation.metrics import asked_of, key_adherence, tempo_adherence
from musicgen_dreamboothing.evaluation.originality import Likeness, nearest_by_embedding, nearest_by_tokens
from musicgen_dreamboothing.evaluation.playing import Played, Playlist, listen, play
from musicgen_dreamboothing.evaluation.report import write_report
from musicgen_dreamboothing.evaluation.result import NEUTRAL, STYLE, Curve, Evaluation, Nearest, Pair
from musicgen_dreamboothing.evaluation.songs import (
    Excerpts,
    clip_losses,
    excerpts,
    prepared_folder,
    tables_of,
    training_clips,
    waves_of,
)
from musicgen_dreamboothing.evaluation.verdict import verdict
from musicgen_dreamboothing.generation.decoding import Sampling
from musicgen_dreamboothing.generation.generator import Generator
from musicgen_dreamboothing.model import codec
from musicgen_dreamboothing.model.checkpoint import Checkpoint, load_codec, weights_fingerprint
from musicgen_dreamboothing.model.device import best_device, release_memory

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


def evaluate(options: EvaluateArguments) -> Evaluated | None:
    """Compares a run with its base on the same prompts and seeds, and writes `report.html` and `report.json`.

    The same call again makes no clip a second time. With `answers` it only counts what was said on the blind page, and
    returns None.

    Raises:
        UserError: no run, or its songs are gone.
    """
    _check(options)
    run = Path(options.run)
    folder = Path(options.output_dir or run / "evaluation")
    if options.answers is not None:
        word = _word(_record(run))
        for line in blind_lines(score_blind(folder, Path(options.answers)), word):
            say(line)
        return None
    record = _record(run)
    prepared = prepared_folder(run, record, options.data)
    tables = tables_of(record, prepared)
    playlist = _playlist(options, record, tables)
    folder.mkdir(parents=True, exist_ok=True)
    songs, held_out, before = _of_base(options, record, run, folder, tables, playlist)
    losses, checkpoint = _of_tuned(options, run, folder, tables, playlist, before)
    base, tuned = (listen(folder / side, playlist, checkpoint.sampling_rate) for side in (BASE, TUNED))
    embedder = load_embedder(
        options.clap_model_name_or_path, songs.waves, cache_dir=options.cache_dir, token=options.token
    )
    heard = Heard(base, tuned, songs, held_out, losses, embedder, options.seed)
    figures = figures_of(heard)
    nearest = _nearest(heard, folder, tables, prepared, checkpoint)
    word = _word(record)
    evaluation = Evaluation(
        run=run.resolve().name,
        base_model=Path(record.base_model).name if Path(record.base_model).is_dir() else record.base_model,
        word=word,
        embedding=embedder.name,
        verdict=verdict(figures, nearest, word),
        best=str(record.summary.get("kept") or ""),
        figures=figures,
        pairs=[_pair(one, other, folder) for one, other in zip(base, tuned, strict=True)],
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


def _check(options: EvaluateArguments) -> None:
    for name in ("variations", "seconds", "song_excerpts"):
        if getattr(options, name) <= 0:
            raise UserError(f"--{name} {getattr(options, name)} must be more than 0")


def _record(run: Path) -> RunRecord:
    record = read_record(run)
    if record is None:
        raise UserError(f"{run} holds no run: there is no run.json in it; train makes one")
    if not record.finished:
        raise UserError(f"the run in {run} is not finished; the command that began it goes on with it")
    return record


def _word(record: RunRecord) -> str:
    """What calls the style up."""
    return key_phrase(record.options.get("instance_prompt"), record.options.get("class_prompt")) or "your style"


def _playlist(options: EvaluateArguments, record: RunRecord, tables: Tables) -> Playlist:
    """What to play: own prompts, or captions of held-out songs and usual ones with the key-word."""
    usual = yaml.safe_load(files("musicgen_dreamboothing.assets").joinpath("prompts.yaml").read_text(encoding="utf-8"))
    word = key_phrase(record.options.get("instance_prompt"), record.options.get("class_prompt"))
    captions = dict.fromkeys((tables.held_out if len(tables.held_out) else tables.train)["text"])
    style = options.prompts or [*list(captions)[:OWN_CAPTIONS], *(usual[STYLE] if word else [])]
    neutral = options.neutral_prompts or usual[NEUTRAL]
    prompts = {prompt.format(word=word) if not options.prompts else prompt: STYLE for prompt in style}
    prompts = dict.fromkeys(neutral, NEUTRAL) | prompts
    ordered = sorted(prompts.items(), key=lambda item: item[1] == NEUTRAL)
    if len(style) * options.variations < 2:
        raise UserError("a style is judged by two clips at least; give more --prompts or --variations")
    longest = max(tables.train["seconds"])
    if options.seconds > longest:
        say(f"note: --seconds {options.seconds:g} is cut to {longest:g}, the length of the clips it was trained on")
    return Playlist(tuple(ordered), options.variations, min(options.seconds, longest), options.seed, Sampling())


def _of_base(
    options: EvaluateArguments, record: RunRecord, run: Path, folder: Path, tables: Tables, playlist: Playlist
) -> tuple[Excerpts, Excerpts | None, Any]:
    """What only the base has to be loaded for: its clips and losses, and the songs through its codec."""
    generator = _load(options, options.base_model or record.base_model, record.options.get("model_revision"), None)
    play(generator, folder / BASE, playlist, generator.checkpoint.identity, options.batch_size)
    losses = clip_losses(generator, tables.held_out, BASE) if len(tables.held_out) else None
    songs, held_out = (
        excerpts(
            generator.decode,
            generator.checkpoint,
            clips,
            seconds=playlist.seconds,
            most=options.song_excerpts,
            seed=options.seed,
        )
        for clips in (tables.train, tables.held_out)
    )
    del generator
    release_memory()
    return songs, held_out if held_out.waves else None, losses


def _of_tuned(
    options: EvaluateArguments, run: Path, folder: Path, tables: Tables, playlist: Playlist, before: Any
) -> tuple[Losses | None, Checkpoint]:
    """The same of the fine-tuned model, and the base's configuration."""
    generator = _load(options, str(run), None, options.base_model)
    play(generator, folder / TUNED, playlist, weights_fingerprint(run), options.batch_size)
    losses = None
    if before is not None:
        after, count = clip_losses(generator, tables.held_out, "fine-tuned model")
        losses = Losses(before[0], after, count, list(tables.held_out["source"]))
    checkpoint = generator.checkpoint
    del generator
    release_memory()
    return losses, checkpoint


def _load(options: EvaluateArguments, model: str, revision: str | None, base: str | None) -> Generator:
    return Generator(
        model,
        base_model=base,
        revision=revision,
        cache_dir=options.cache_dir,
        token=options.token,
        dtype=options.dtype,
    )


def _pair(base: Played, tuned: Played, folder: Path) -> Pair:
    before, after = (os.path.relpath(clip.file, folder) for clip in (base, tuned))
    return Pair(base.prompt, base.kind, base.variation, before, after, notes=_heard_of(tuned))


def _heard_of(clip: Played) -> dict[str, str]:
    """Tempo and key that were asked for, and those that were heard."""
    asked, notes = asked_of(clip.prompt), {}
    if asked.bpm is not None:
        tempo = tempo_adherence(asked.bpm, clip.wave, clip.rate).heard
        notes["tempo"] = f"asked {asked.bpm:g}, heard {'none' if tempo is None else f'{tempo:.0f}'}"
    if asked.key is not None:
        notes["key"] = f"asked {asked.key}, heard {key_adherence(asked.key, clip.wave, clip.rate).heard or 'none'}"
    return notes


def _nearest(heard: Heard, folder: Path, tables: Tables, prepared: Path, checkpoint: Checkpoint) -> list[Nearest]:
    """For each clip of the style the training clip it is most like: the one by codes, unless only sound tells."""
    codes, names = training_clips(tables.train)
    clips = [heard.tuned[row] for row in heard.rows(STYLE)]
    frame_rate = codes[0].shape[1] / tables.train["seconds"][0]
    by_codes = nearest_by_tokens([clip.codes for clip in clips], codes, names, frame_rate)
    device = best_device()
    few = tables.train.select(range(min(MOST_WINDOWED.get(device.type, MOST_WINDOWED_ON_A_GPU), len(tables.train))))
    loaded = load_codec(checkpoint, device)
    training = waves_of(lambda codes: codec.decode(loaded, codes[None], checkpoint)[0].numpy(), few, clips[0].rate)
    waves = [(clip.wave, clip.rate) for clip in clips]
    by_sound = nearest_by_embedding(waves, training, names[: len(few)], heard.embedder)
    found = []
    for clip, one, other in zip(clips, by_codes, by_sound, strict=True):
        told = other if other.is_copy and not one.is_copy else one
        found.append(_told(clip, told, folder, prepared))
    return found


def _told(clip: Played, likeness: Likeness, folder: Path, prepared: Path) -> Nearest:
    """Copies the training clip beside the report where it is to be heard in it."""
    kept = ""
    if likeness.is_copy:
        kept = f"{SONGS}/{likeness.clip_file.replace('/', '_')}"
        (folder / SONGS).mkdir(exist_ok=True)
        shutil.copyfile(prepared / CLIPS / likeness.clip_file, folder / kept)
    return Nearest(
        file=os.path.relpath(clip.file, folder),
        prompt=clip.prompt,
        at=likeness.at,
        song=likeness.song,
        clip_file=kept,
        clip_at=likeness.clip_at,
        song_at=likeness.song_at,
        seconds=likeness.seconds,
        score=likeness.score,
        by=likeness.by,
        is_copy=likeness.is_copy,
    )


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
            "No CLAP could be loaded, so sounds were compared by statistics of the signal: timbre, its movement and "
            "rhythm. These figures can't be compared with those of papers, or of reports with CLAP."
        )
    if len(heard.rows(STYLE)) < 16:
        notes.append(f"{plural(len(heard.rows(STYLE)), 'clip')} of the style are few: intervals are wide.")
    if held := tables.held_out_songs:
        notes.append(f"{plural(len(held), 'song')} held out: {', '.join(held[:8])}{', …' if len(held) > 8 else ''}.")
    notes += [f"all clips of {prompt!r} sound the same" for prompt in collapsed_prompts(heard)]
    return notes


def _tell(evaluation: Evaluation, page: Path) -> None:
    say("")
    for sentence in evaluation.verdict:
        say(f"- {sentence}")
    say(f"\nread and listen: {page}")


def _blind(folder: Path, evaluation: Evaluation, options: EvaluateArguments) -> None:
    page = write_blind(folder, evaluation.pairs, evaluation.word, options.seed)
    say(f"without knowing which is which: {page}; then: musicgen-dreamboothing evaluate {options.run} --answers FILE")
