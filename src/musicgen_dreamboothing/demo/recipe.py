"""What the demo teaches the built-in checkpoint, and what each verb is asked for on the way."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from musicgen_dreamboothing.arguments import DemoArguments, EvaluateArguments, PrepareArguments, TrainArguments

ASSETS = Path(str(files("musicgen_dreamboothing.assets")))  # torch and PyAV read files, so there must be a folder
VALIDATION = "validation"  # the sub-folder of songs that it is judged by


@dataclass(frozen=True)
class Recipe:
    """What the demo teaches, to what, for how long: about 80 s of training on two cores.

    Attributes:
        base: the checkpoint.
        songs: folder of songs with captions; those in its sub-folder `validation` are held out.
        word: the key-word of the new style.
        new: prompts for the new style.
        known: prompts for styles that the base knows, to hear what the training did to them.
        judged: more prompts for both, by which the run is judged.
        seconds: length of every clip, of those to learn from and of those that are made.
        takes: clips of each of these prompts, each with random numbers of its own.
        updates: of the training; it is judged and saved six times on its way.
        seeds: of the proof, from the demo's own on.
        too_long: times the updates that the proof's last run has; 0 leaves it out.
        known_styles: what the base knows: names of classes for prior preservation.
        class_clips: that the base makes of them.
    """

    base: Path = ASSETS / "musicgen-tiny"
    songs: Path = ASSETS / "songs"
    word: str = "punk"
    new: tuple[str, ...] = (
        "punk at 188 bpm in e minor with overdriven guitar, picked bass and loud drums",
        "punk at 188 bpm in g major",
    )
    known: tuple[str, ...] = (
        "a 125 bpm house track in c major, electric piano, synth bass, drum machine, marimba",
        "ballad at 75 bpm in a minor with piano, strings, upright bass and soft drums",
    )
    judged: tuple[tuple[str, ...], tuple[str, ...]] = (
        ("punk", "punk at 167 bpm in c major with lead guitar and loud drums", "punk at 211 bpm in a minor"),
        ("a reggae song in g major", "folk music in e minor"),
    )
    takes: int = 4
    seconds: float = 8.0
    updates: int = 240
    batch_size: int = 4
    learning_rate: float = 4e-3
    lora_r: int = 16
    seeds: int = 3
    too_long: int = 20
    known_styles: tuple[str, ...] = ("ballad", "reggae", "folk", "house", "techno")
    class_clips: int = 40

    @property
    def prompts(self) -> list[str]:
        return [*self.new, *self.known]


def prepare_options(recipe: Recipe, prepared: Path) -> PrepareArguments:
    """What `prepare` is asked for."""
    return PrepareArguments(
        songs=str(recipe.songs),
        output_dir=str(prepared),
        model_name_or_path=str(recipe.base),
        instance_prompt=recipe.word,
        eval_split_name=VALIDATION,
        max_duration_in_seconds=recipe.seconds,
        min_duration_in_seconds=recipe.seconds / 2,
        normalize_loudness=False,  # the checkpoint knows music at the level of these songs
        doctor=False,
    )


def train_options(recipe: Recipe, prepared: Path, run: Path, options: DemoArguments) -> TrainArguments:
    """What `train` is asked for."""
    stage = max(1, recipe.updates // 6)
    return TrainArguments(
        dataset_name=str(prepared),
        output_dir=str(run),
        model_name_or_path=str(recipe.base),
        instance_prompt=recipe.word,
        max_steps=recipe.updates,
        learning_rate=recipe.learning_rate,
        lora_r=recipe.lora_r,
        lora_alpha=recipe.lora_r,
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=recipe.batch_size,
        gradient_accumulation_steps=1,
        gradient_checkpointing=False,
        logging_steps=max(1, stage // 4),
        eval_strategy="steps",
        eval_steps=stage,
        save_strategy="steps",
        save_steps=stage,
        save_total_limit=1,
        seed=options.seed,
        restart=options.restart,
        final_report="false",  # the demo compares by itself, with its own prompts
    )


def evaluate_options(recipe: Recipe, prepared: Path, run: Path, options: DemoArguments) -> EvaluateArguments:
    """What `evaluate` is asked for."""
    style, neutral = recipe.judged
    return EvaluateArguments(
        run=str(run),
        data=str(prepared),
        prompts=[*recipe.new, *style],
        neutral_prompts=[*recipe.known, *neutral],
        variations=recipe.takes,
        seconds=recipe.seconds,
        seed=options.seed,
        clap_model_name_or_path="none",  # none can be had offline
        base_model=str(recipe.base),
    )
