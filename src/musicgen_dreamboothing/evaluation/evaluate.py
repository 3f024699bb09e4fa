"""`evaluate`: did a run learn its style, what did that do to the rest, and is what it generates its own?"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from musicgen_dreamboothing.arguments import EvaluateArguments, check_values, note_unused
from musicgen_dreamboothing.console import UserError, log, plural, quiet_libraries
from musicgen_dreamboothing.data.run_record import RunRecord, read_record
from musicgen_dreamboothing.data.tokens.tables import Tables
from musicgen_dreamboothing.device import parse_device
from musicgen_dreamboothing.evaluation.blind import BlindResult, blind_lines, score_blind, write_blind
from musicgen_dreamboothing.evaluation.clips import ClipPlan
from musicgen_dreamboothing.evaluation.collect import EvaluationData, base_of, collect_data
from musicgen_dreamboothing.evaluation.embedding_files import check_folder, embeddings_folder, save_embeddings
from musicgen_dreamboothing.evaluation.figures import collapsed_prompts, figures_of, near_copies
from musicgen_dreamboothing.evaluation.metrics.embedding import check_embedder
from musicgen_dreamboothing.evaluation.nearest import nearest_clips
from musicgen_dreamboothing.evaluation.plan import style_prompts, usual_prompts
from musicgen_dreamboothing.evaluation.references import prepared_folder, tables_of
from musicgen_dreamboothing.evaluation.report import PAGE, read_report, write_report
from musicgen_dreamboothing.evaluation.result import NEUTRAL, STYLE, Curve, Evaluation, Pair
from musicgen_dreamboothing.evaluation.strengths import write_strengths
from musicgen_dreamboothing.evaluation.verdict import verdict
from musicgen_dreamboothing.files import folder_lock
from musicgen_dreamboothing.generation.generator import Generator
from musicgen_dreamboothing.generation.guidance import Sampling
from musicgen_dreamboothing.hub import Source, weights_fingerprint
from musicgen_dreamboothing.model.checkpoint import Checkpoint, load_checkpoint
from musicgen_dreamboothing.model.quantized import base_quantization

FEW_CLIPS = 16  # of the style; below that a note is added
CURVES = {
    "loss": "loss while training",
    "eval_loss": "loss on held-out songs",
    "eval_style": "distance to your songs",
    "prior_loss": "loss on the class",
}


@dataclass(frozen=True)
class Evaluated:
    """The page, its content, the result of the blind page if `answers` were given, and the page of `strengths`."""

    page: Path
    evaluation: Evaluation
    blind: BlindResult | None = None
    strengths: Path | None = None


@quiet_libraries()
def evaluate(options: EvaluateArguments) -> Evaluated:
    """Compares a run with its base on the same prompts and seeds, and writes `report.html` and `report.json`.

    A second call generates no clip again. With `answers` it only counts the answers of the blind page.

    Raises:
        UserError: there is no finished run, or its songs are gone.
    """
    check_values(options)
    parse_device(options.device)
    base_quantization(options.quantization, torch.float32)
    check_embedder(
        options.embedder,
        cache_dir=options.cache_dir,
        token=options.token,
        trust_remote_code=options.trust_remote_code,
    )
    note_unused(options)
    run = Path(options.run)
    record = _record(run)
    _check_strengths(options)
    folder, word = Path(options.output_dir or run / "evaluation"), record.key_phrase or "your style"
    if options.answers is not None:
        blind = score_blind(folder, Path(options.answers))
        for line in blind_lines(blind, word):
            log(line)
        return Evaluated(folder / PAGE, read_report(folder), blind)
    embeddings = embeddings_folder(options.save_embeddings, folder)
    if embeddings is not None:
        check_folder(embeddings)
    prepared = prepared_folder(run, record, options.data)
    tables = tables_of(record, prepared, partial(_base_checkpoint, options, record))
    plan = _plan(options, record, tables)
    folder.mkdir(parents=True, exist_ok=True)
    with folder_lock(folder):
        return _evaluate(options, record, folder, prepared, tables, plan, embeddings)


def _evaluate(
    options: EvaluateArguments,
    record: RunRecord,
    folder: Path,
    prepared: Path,
    tables: Tables,
    plan: ClipPlan,
    embeddings: Path | None,
) -> Evaluated:
    """Generates the clips of both models, measures them and writes the report."""
    run, word = Path(options.run), record.key_phrase or "your style"
    data = collect_data(options, record, folder, prepared, tables, plan)
    if embeddings is not None:
        save_embeddings(embeddings, data)
        log(f"sounds and embeddings for fadtk and kadtk: {embeddings}")
    figures = figures_of(data)
    nearest, originality = nearest_clips(data, folder, tables, prepared)
    evaluation = Evaluation(
        run=run.resolve().name,
        base_model=Path(record.base_model).name if Path(record.base_model).is_dir() else record.base_model,
        word=word,
        embedding=data.embedder.name,
        verdict=verdict(figures, nearest, originality, word),
        best=str(record.summary.get("kept") or ""),
        figures=[*figures, near_copies(data, originality)],
        pairs=_pairs(data, folder),
        nearest=nearest,
        curves=_curves(record),
        settings=_settings(options, plan, data),
        notes=_notes(data, tables),
        originality=originality,
    )
    page = write_report(folder, evaluation)
    log("\n" + "\n".join(f"- {sentence}" for sentence in evaluation.verdict))
    log(f"\nread and listen: {page}")
    if options.blind:
        blind = write_blind(folder, evaluation.pairs, word, options.seed)
        log(f"blind listening: {blind}; then: musicgen-dreamboothing evaluate {options.run} --answers FILE")
    strengths = _strengths(options, record, folder, plan, data) if options.strengths else None
    return Evaluated(page, evaluation, strengths=strengths)


def _check_strengths(options: EvaluateArguments) -> None:
    """Refuses `--strengths` before anything is generated where they cannot be set."""
    if not options.strengths:
        return
    if not (Path(options.run) / "adapter_config.json").is_file():
        raise UserError(f"--strengths needs an adapter; {options.run} is a full fine-tune, which has no strength")
    if options.quantization != "none":
        raise UserError(
            f"--strengths needs weights that are not quantised, without --quantization {options.quantization}"
        )


def _strengths(
    options: EvaluateArguments, record: RunRecord, folder: Path, plan: ClipPlan, data: EvaluationData
) -> Path:
    base, revision = base_of(options, record)
    page = write_strengths(
        lambda strength: Generator(
            base,
            adapters=[(options.run, strength)],
            base_model=base,
            revision=revision,
            cache_dir=options.cache_dir,
            token=options.token,
            device=options.device,
            dtype=options.dtype,
        ),
        folder,
        plan,
        options.strengths,
        data,
        run=Path(options.run).resolve().name,
        weights=weights_fingerprint(Path(options.run)),
        batch_size=options.batch_size,
    )
    log(f"strengths to compare: {page}")
    return page


def _record(run: Path) -> RunRecord:
    record = read_record(run)
    if record is None:
        raise UserError(f"{run} holds no run: there is no run.json in it; train makes one")
    if not record.finished:
        raise UserError(f"the run in {run} is not finished; repeat its command to resume it")
    return record


def _base_checkpoint(options: EvaluateArguments, record: RunRecord) -> Checkpoint:
    return load_checkpoint(Source(*base_of(options, record), options.cache_dir, options.token))


def _plan(options: EvaluateArguments, record: RunRecord, tables: Tables) -> ClipPlan:
    """The prompts of the options; else captions of held-out songs and usual prompts with the `instance_prompt`."""
    style = options.prompts or style_prompts(record.key_phrase, tables)
    neutral = options.neutral_prompts or usual_prompts()[NEUTRAL]
    if len(style) * options.variations < 2:
        raise UserError("a style is judged by two clips at least; give more --prompts or --variations")
    # A prompt that is in both lists is one of the style.
    prompts = dict.fromkeys(style, STYLE) | {prompt: NEUTRAL for prompt in neutral if prompt not in style}
    longest = max(tables.train["seconds"])
    if options.seconds > longest:
        log(f"note: --seconds {options.seconds:g} is cut to {longest:g}, the length of the clips it was trained on")
    return ClipPlan(tuple(prompts.items()), options.variations, min(options.seconds, longest), options.seed, Sampling())


def _pairs(data: EvaluationData, folder: Path) -> list[Pair]:
    """The clips as a report shows them."""
    pairs = []
    for base, tuned, adherence in zip(data.base, data.tuned, data.adherence[1], strict=True):
        before, after = (os.path.relpath(clip.file, folder) for clip in (base, tuned))
        pairs.append(Pair(base.prompt, base.kind, base.variation, before, after, notes=adherence.notes))
    return pairs


def _curves(record: RunRecord) -> list[Curve]:
    """Losses and distances in the run's log, by update."""
    curves = []
    for key, title in CURVES.items():
        points = {int(line["step"]): float(line[key]) for line in record.log if key in line and "step" in line}
        if len(points) > 1:
            curves.append(Curve(title, list(points), list(points.values())))
    return curves


def _settings(options: EvaluateArguments, plan: ClipPlan, data: EvaluationData) -> dict[str, Any]:
    return {
        "prompts": [prompt for prompt, _ in plan.prompts],
        "variations": plan.variations,
        "seconds": plan.seconds,
        "seed": options.seed,
        "guidance_scale": plan.sampling.guidance_scale,
        "temperature": plan.sampling.temperature,
        "top_k": plan.sampling.top_k,
        "song excerpts": len(data.songs.waves),
        "held-out excerpts": len(data.held_out.waves) if data.held_out else 0,
        "embedding": data.embedder.name,
        "versions": [f"{name} {version(name)}" for name in ("musicgen-dreamboothing", "transformers", "torch", "peft")],
    }


def _notes(data: EvaluationData, tables: Tables) -> list[str]:
    notes, clips = [], len(data.rows(STYLE))
    if data.embedder.note:
        notes.append(data.embedder.note)
    if clips < FEW_CLIPS:
        notes.append(f"{plural(clips, 'clip')} of the style are few: intervals are wide.")
    if songs := tables.held_out_songs:
        notes.append(f"{plural(len(songs), 'song')} held out: {', '.join(songs[:8])}{', …' if len(songs) > 8 else ''}.")
    notes += [f"all clips of {prompt!r} sound the same" for prompt in collapsed_prompts(data)]
    return notes
