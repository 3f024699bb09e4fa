"""`demo`: the whole chain on the built-in checkpoint and songs, from songs to the report of an evaluation."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path

import torch

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.arguments import DemoArguments, check_values
from musicgen_dreamboothing.console import log, quiet_libraries
from musicgen_dreamboothing.data.prepare import prepare
from musicgen_dreamboothing.demo.recipe import Recipe, evaluate_options, prepare_options, train_options
from musicgen_dreamboothing.evaluation.evaluate import evaluate
from musicgen_dreamboothing.files import write_json
from musicgen_dreamboothing.hub import weights_fingerprint
from musicgen_dreamboothing.training.train import train

STEPS = 4
PLAIN_PROMPTS = 2
FOLDERS = {
    "prepared/clips": "the songs as clips; captions to edit in metadata.jsonl",
    "run": "the adapter, with its card in README.md",
    "run/evaluation": "every clip of the base and of the adapter, and the report",
    "plain": "new music, made with plain transformers and PEFT",
}


@quiet_libraries()
def demo(options: DemoArguments, recipe: Recipe | None = None) -> Path:
    """Prepares the built-in songs, trains an adapter, evaluates it, and plays it with plain transformers and PEFT.

    A second call with the same options only does what is missing. Returns the folder.
    """
    check_values(options)
    started = time.perf_counter()
    folder, recipe = Path(options.output_dir), recipe or Recipe()
    prepared, run = folder / "prepared", folder / "run"
    _title(1, f"prepare: {recipe.word} songs to clips, captions, tokens")
    prepare(prepare_options(recipe, prepared))
    _title(2, f"train: a LoRA adapter on a tiny checkpoint that was not trained on {recipe.word}")
    train(train_options(recipe, prepared, run, options))
    _title(3, "evaluate: the same prompts and seeds before and after")
    page = evaluate(evaluate_options(recipe, prepared, run, options)).page
    _title(4, "the same adapter with plain transformers and PEFT")
    for path in _plain_clips(run, folder / "plain", list(recipe.prompts[:PLAIN_PROMPTS]), options.seed):
        log(f"  {path}")
    log(f"\ndone in {time.perf_counter() - started:.0f} s; everything is in {folder}:")
    for name, content in FOLDERS.items():
        log(f"  {folder / name}  {content}")
    for reason, command in _next_commands(recipe, run).items():
        log(f"\n{reason}:\n  musicgen-dreamboothing {command}")
    log(f"\nopen this page in a browser: {page.resolve().as_uri()}")
    return folder


def _title(number: int, text: str) -> None:
    log(f"\n[{number}/{STEPS}] {text}")


def _plain_clips(run: Path, folder: Path, prompts: list[str], seed: int) -> list[Path]:
    """One clip a prompt; those of an earlier call where adapter, prompts and seed are the same."""
    record = {"made_with": {"weights": weights_fingerprint(run), "seed": seed, "prompts": prompts}}
    paths = [folder / f"{number:02d}_seed{seed}.wav" for number in range(len(prompts))]
    note = folder / "made.json"
    if note.is_file() and json.loads(note.read_text(encoding="utf-8")) == record and all(map(Path.is_file, paths)):
        log(f"{folder} holds these clips already")
        return paths
    plain_inference(run, prompts, paths, seed=seed)
    write_json(note, record)
    return paths


def plain_inference(run: Path, prompts: list[str], paths: list[Path], *, seed: int) -> None:
    """The snippet of docs/generation.md: an adapter without this project, but for the writing of files."""
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

    paths[0].parent.mkdir(parents=True, exist_ok=True)
    for path, wave in zip(paths, sound.float().cpu().numpy(), strict=True):
        audio.write(path, wave, model.config.audio_encoder.sampling_rate)


def _next_commands(recipe: Recipe, run: Path) -> dict[str, str]:
    """Commands to type next, by what they are for."""
    more = ["generate", str(run), recipe.prompts[0], "--variations", "4", "--output_dir", "new-music"]
    return {
        f"more {recipe.word}": shlex.join(more),
        "your own songs and a real checkpoint (a GPU helps)": (
            "train --dataset_name YOUR_SONGS --instance_prompt WORD --output_dir runs/mine"
        ),
        "new music with it": 'generate runs/mine "WORD with loud drums" --output_dir new-music',
    }
