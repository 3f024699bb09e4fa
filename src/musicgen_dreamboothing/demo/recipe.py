"""What the demo teaches the built-in checkpoint, and the options of each verb on the way."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from musicgen_dreamboothing.arguments import DemoArguments, EvaluateArguments, PrepareArguments, TrainArguments

ASSETS = Path(str(files("musicgen_dreamboothing.assets")))  # torch and PyAV read files, so there must be a folder
VALIDATION = "validation"  # the sub-folder of songs that are held out


@dataclass(frozen=True)
class Recipe:
    """What the demo teaches, to what, for how long: about 80 s of training on two cores.

    Attributes:
        base: the checkpoint.
        songs: folder of songs with captions; those in its sub-folder `validation` are held out.
        word: the `instance_prompt` of the new style.
        prompts: of the new style.
        neutral_prompts: of styles that the base knows, to measure what the training did to them.
        classes: styles that the base knows, whose music is trained on, too, so that it is not forgotten (prior
            preservation); empty for none.
        class_clips: that the base makes of them.
        variations: clips of each prompt.
        seconds: length of every clip, of the songs' and of the generated ones.
        updates: of the training; it is evaluated and saved six times.
    """

    base: Path = ASSETS / "musicgen-tiny"
    songs: Path = ASSETS / "songs"
    word: str = "punk"
    prompts: tuple[str, ...] = (
        "punk at 188 bpm in e minor with overdriven guitar, picked bass and loud drums",
        "punk at 188 bpm in g major",
        "punk",
        "punk at 167 bpm in c major with lead guitar and loud drums",
        "punk at 211 bpm in a minor",
        "punk at 178 bpm in d major with overdriven guitar and loud drums",
        "a punk song at 188 bpm with picked bass and lead guitar",
        "a 167 bpm punk track in g major, overdriven guitar, loud drums",
        "punk in e minor",
    )
    neutral_prompts: tuple[str, ...] = (
        "a 125 bpm house track in c major, electric piano, synth bass, drum machine, marimba",
        "ballad at 75 bpm in a minor with piano, strings, upright bass and soft drums",
        "a reggae song in g major",
        "folk music in e minor",
        "techno at 132 bpm in d minor with synth bass and drum machine",
        "a slow folk song in c major",
        "reggae at 80 bpm in d minor with organ, electric bass and drums",
        "a 120 bpm house track in a minor",
        "ballad in c major with piano and strings",
    )
    classes: tuple[str, ...] = ("ballad", "reggae", "folk", "house", "techno")
    class_clips: int = 20
    variations: int = 2
    seconds: float = 8.0
    updates: int = 240
    batch_size: int = 2  # songs; as many clips of the classes besides
    learning_rate: float = 4e-3
    lora_r: int = 16


def prepare_options(recipe: Recipe, prepared: Path) -> PrepareArguments:
    """The options of `prepare`."""
    return PrepareArguments(
        songs=str(recipe.songs),
        output_dir=str(prepared),
        model_name_or_path=str(recipe.base),
        instance_prompt=recipe.word,
        eval_split_name=VALIDATION,
        max_duration_in_seconds=recipe.seconds,
        min_duration_in_seconds=recipe.seconds / 2,
        normalize_loudness=False,  # the checkpoint was trained on music at the level of these songs
        doctor=False,
    )


def train_options(recipe: Recipe, prepared: Path, run: Path, options: DemoArguments) -> TrainArguments:
    """The options of `train`."""
    stage = max(1, recipe.updates // 6)
    return TrainArguments(
        dataset_name=str(prepared),
        output_dir=str(run),
        model_name_or_path=str(recipe.base),
        instance_prompt=recipe.word,
        with_prior_preservation=bool(recipe.classes),
        class_prompts=list(recipe.classes),
        num_class_clips=recipe.class_clips,
        word_dropout=0.3,  # so that the word works alone, too: every caption has more
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
        final_report="false",  # the demo evaluates with its own prompts
    )


def evaluate_options(recipe: Recipe, prepared: Path, run: Path, options: DemoArguments) -> EvaluateArguments:
    """The options of `evaluate`."""
    return EvaluateArguments(
        run=str(run),
        data=str(prepared),
        prompts=list(recipe.prompts),
        neutral_prompts=list(recipe.neutral_prompts),
        variations=recipe.variations,
        seconds=recipe.seconds,
        seed=options.seed,
        clap_model_name_or_path="none",  # not available offline
        base_model=str(recipe.base),
    )
