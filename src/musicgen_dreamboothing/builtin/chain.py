"""`demo`: the whole chain, offline, on songs and a checkpoint made on the spot."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.arguments import DemoArguments, GenerateArguments, PrepareArguments, TrainArguments
from musicgen_dreamboothing.builtin.checkpoint import write_tiny_checkpoint
from musicgen_dreamboothing.builtin.songs import write_songs
from musicgen_dreamboothing.console import say
from musicgen_dreamboothing.data.prepare import prepare
from musicgen_dreamboothing.generation.generate import generate
from musicgen_dreamboothing.training.train import train

PROMPTS = ["80s punk and pop track with bassy drums and synth", "punk bossa nova"]


def demo(options: DemoArguments) -> Path:
    """Songs, checkpoint, prepare, train, generate, then the same adapter with plain transformers and PEFT."""
    started = time.perf_counter()
    folder = Path(options.output_dir)
    songs, base, prepared, run = (folder / name for name in ("songs", "tiny-checkpoint", "prepared", "run"))
    _title(1, "songs are synthesised")
    write_songs(songs, seed=options.seed)
    _title(2, "a tiny checkpoint with random weights is made: it will make noise, not music")
    write_tiny_checkpoint(base, seed=options.seed)
    _title(3, "prepare: clips, captions, tokens")
    prepare(
        PrepareArguments(
            songs=str(songs),
            output_dir=str(prepared),
            model_name_or_path=str(base),
            instance_prompt="punk",
            max_duration_in_seconds=10,
        )
    )
    _title(4, "train: a LoRA adapter")
    train(
        TrainArguments(
            dataset_name=str(prepared),
            output_dir=str(run),
            model_name_or_path=str(base),
            instance_prompt="punk",
            gradient_accumulation_steps=1,
            learning_rate=2e-3,
            seed=options.seed,
            restart=True,
        )
    )
    _title(5, "generate: new music with the adapter")
    generate(
        GenerateArguments(
            model=str(run), prompts=PROMPTS, output_dir=str(folder / "generated"), seconds=5, seed=options.seed
        )
    )
    _title(6, "the same adapter with plain transformers and PEFT")
    for path in plain_inference(run, folder / "generated-plain", seed=options.seed):
        say(f"  {path}")
    _end(folder, time.perf_counter() - started)
    return folder


def plain_inference(run: Path, folder: Path, *, seed: int) -> list[Path]:
    """What the README shows for others to use an adapter, with nothing of this project but the writing of files."""
    from peft import PeftConfig, PeftModel
    from transformers import AutoModelForTextToWaveform, AutoProcessor

    torch.manual_seed(seed)
    repo_id, device = str(run), "cuda" if torch.cuda.is_available() else "cpu"
    config = PeftConfig.from_pretrained(repo_id)
    model = AutoModelForTextToWaveform.from_pretrained(config.base_model_name_or_path, dtype=torch.float16)
    model = PeftModel.from_pretrained(model, repo_id).to(device)
    processor = AutoProcessor.from_pretrained(repo_id)
    inputs = processor(text=PROMPTS, padding=True, return_tensors="pt").to(device)
    sound = model.generate(**inputs, do_sample=True, guidance_scale=3, max_new_tokens=256)

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:02d}.wav" for number in range(len(PROMPTS))]
    for path, wave in zip(paths, sound.float().cpu().numpy(), strict=True):
        audio.write(path, wave, model.config.audio_encoder.sampling_rate)
    return paths


def _title(number: int, text: str) -> None:
    say(f"\n[{number}/6] {text}")


def _end(folder: Path, seconds: float) -> None:
    say(f"\ndone in {seconds:.0f} s; everything is in {folder}:")
    for name, what in (
        ("songs", "what it was taught"),
        ("prepared/clips", "clips; captions to edit in metadata.jsonl"),
        ("run", "the adapter, with its card in README.md"),
        ("generated", "new music"),
        ("generated-plain", "new music, made with plain transformers and PEFT"),
    ):
        say(f"  {folder / name}  {what}")
    say("\nnow with your own songs and a real checkpoint (a GPU helps):")
    say("  musicgen-dreamboothing train --dataset_name YOUR_SONGS --instance_prompt WORD --output_dir runs/mine")
    say('  musicgen-dreamboothing generate runs/mine "WORD with loud drums" --output_dir new-music')
