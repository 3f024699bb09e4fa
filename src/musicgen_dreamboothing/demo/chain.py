"""`demo`: teaches the built-in checkpoint a style that it has never heard, and shows before and after on one page."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.arguments import DemoArguments, GenerateArguments, check_values
from musicgen_dreamboothing.console import log, quiet_libraries
from musicgen_dreamboothing.data.prepare import prepare
from musicgen_dreamboothing.demo.page import Pair, write_page
from musicgen_dreamboothing.demo.proof import prove
from musicgen_dreamboothing.demo.recipe import Recipe, evaluate_options, prepare_options, train_options
from musicgen_dreamboothing.evaluation.evaluate import evaluate
from musicgen_dreamboothing.files import write_json
from musicgen_dreamboothing.generation.generate import generate
from musicgen_dreamboothing.hub import weights_fingerprint
from musicgen_dreamboothing.training.train import train

STEPS = 7


@quiet_libraries()
def demo(options: DemoArguments, recipe: Recipe | None = None) -> Path:
    """Before, prepare, train, after, the page, and the same adapter with plain transformers and PEFT.

    The same call again does only what is missing.
    """
    check_values(options)
    started = time.perf_counter()
    folder, recipe = Path(options.output_dir), recipe or Recipe()
    prepared, run = folder / "prepared", folder / "run"
    _title(
        1, f"before: what a tiny checkpoint makes of {len(recipe.prompts)} prompts; it has never heard {recipe.word}"
    )
    before = _clips(recipe.base, folder / "before", recipe, options.seed)
    _title(2, f"prepare: {recipe.word} songs to clips, captions, tokens")
    prepare(prepare_options(recipe, prepared))
    _title(3, "train: a LoRA adapter")
    train(train_options(recipe, prepared, run, options))
    _title(4, "after: the same prompts and seeds with the adapter")
    after = _clips(run, folder / "after", recipe, options.seed)
    _title(5, "a page to hear and see both")
    clips = zip(before, after, recipe.prompts, strict=True)
    pairs = [Pair(old, new, prompt, prompt in recipe.new) for old, new, prompt in clips]
    here = folder.resolve().parent  # a page that is shared names no folder of this machine
    page = write_page(folder, run, pairs, recipe.word, _next_commands(recipe, run.resolve().relative_to(here)))
    log(f"  {page}")
    _title(6, "the same adapter with plain transformers and PEFT")
    for path in _plain_clips(run, folder / "plain", recipe, options.seed):
        log(f"  {path}")
    _title(STEPS, "did it learn?")
    judged = evaluate(evaluate_options(recipe, prepared, run, options))
    if options.proof and judged is not None:
        log(f"\nthe proof: {recipe.seeds} seeds, with and without prior preservation, and one run far too long")
        prove(recipe, prepared, folder / "proof", options, (run, judged.evaluation))
    commands = _next_commands(recipe, run)
    if not options.proof:
        words = shlex.join(["demo", "--output_dir", str(folder), "--seed", str(options.seed), "--proof", "true"])
        commands.append((f"teaching or luck? {recipe.seeds} seeds, in an hour", f"musicgen-dreamboothing {words}"))
    _end(folder, page, commands, time.perf_counter() - started)
    return folder


def _clips(model: Path, folder: Path, recipe: Recipe, seed: int) -> list[Path]:
    """One clip for each prompt."""

    def make() -> list[Path]:
        options = GenerateArguments(str(model), recipe.prompts, str(folder), seconds=recipe.seconds, seed=seed)
        return generate(options).files

    return _made_once(folder, {"weights": weights_fingerprint(model), "seed": seed, "recipe": _told(recipe)}, make)


def _plain_clips(run: Path, folder: Path, recipe: Recipe, seed: int) -> list[Path]:
    """The prompts of the new style once more, as others will use the adapter."""
    made_with = {"weights": weights_fingerprint(run), "seed": seed, "recipe": _told(recipe)}
    return _made_once(folder, made_with, lambda: plain_inference(run, folder, list(recipe.new), seed=seed))


def _told(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe can be heard in a clip, as JSON values."""
    return {"prompts": recipe.prompts, "seconds": recipe.seconds}


def _made_once(folder: Path, made_with: dict[str, Any], make: Callable[[], list[Path]]) -> list[Path]:
    """The clips that `make` gives; those of an earlier run where they were made with the same."""
    note = folder / "made.json"
    earlier = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}
    files = [folder / name for name in earlier.get("files", [])]
    if earlier.get("made_with") == made_with and all(path.is_file() for path in files):
        log(f"{folder} holds these clips already")
        return files
    for path in files:
        path.unlink(missing_ok=True)
    files = make()
    write_json(note, {"made_with": made_with, "files": [path.name for path in files]})
    return files


def plain_inference(run: Path, folder: Path, prompts: list[str], *, seed: int) -> list[Path]:
    """What the README shows for others to use an adapter, with nothing of this project but the writing of files."""
    from peft import PeftConfig, PeftModel
    from transformers import AutoModelForTextToWaveform, AutoProcessor

    torch.manual_seed(seed)
    repo_id, device = str(run), "cuda" if torch.cuda.is_available() else "cpu"
    config = PeftConfig.from_pretrained(repo_id)
    model = AutoModelForTextToWaveform.from_pretrained(config.base_model_name_or_path, dtype=torch.float16)
    model = PeftModel.from_pretrained(model, repo_id).to(device)
    processor = AutoProcessor.from_pretrained(repo_id)
    inputs = processor(text=prompts, padding=True, return_tensors="pt").to(device)
    sound = model.generate(**inputs, do_sample=True, guidance_scale=3, max_new_tokens=256)

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:02d}_seed{seed}.wav" for number in range(len(prompts))]
    for path, wave in zip(paths, sound.float().cpu().numpy(), strict=True):
        audio.write(path, wave, model.config.audio_encoder.sampling_rate)
    return paths


def _title(number: int, text: str) -> None:
    log(f"\n[{number}/{STEPS}] {text}")


def _next_commands(recipe: Recipe, run: Path) -> list[tuple[str, str]]:
    """What to type next: the reason, and the command."""
    more = shlex.join(["generate", str(run), recipe.new[0], "--variations", "4", "--output_dir", "new-music"])
    mine = "train --dataset_name YOUR_SONGS --instance_prompt WORD --output_dir runs/mine"
    return [
        (f"more {recipe.word}", f"musicgen-dreamboothing {more}"),
        ("your own songs and a real checkpoint (a GPU helps)", f"musicgen-dreamboothing {mine}"),
        (
            "new music with it",
            'musicgen-dreamboothing generate runs/mine "WORD with loud drums" --output_dir new-music',
        ),
    ]


def _end(folder: Path, page: Path, commands: list[tuple[str, str]], seconds: float) -> None:
    log(f"\ndone in {seconds:.0f} s; everything is in {folder}:")
    for name, what in (
        ("before", "what the checkpoint made of the prompts"),
        ("prepared/clips", "what it was taught; captions to edit in metadata.jsonl"),
        ("run", "the adapter, with its card in README.md"),
        ("after", "the same prompts with the adapter"),
        ("plain", "new music, made with plain transformers and PEFT"),
        ("run/evaluation/report.html", "figures, and every clip beside that of the base"),
        ("proof", "the same over several seeds, and trained too long (--proof true)"),
    ):
        if (folder / name).exists():
            log(f"  {folder / name}  {what}")
    for reason, command in commands:
        log(f"\n{reason}:\n  {command}")
    log(f"\nopen this page in a browser: {page.resolve().as_uri()}")
