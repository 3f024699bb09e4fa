"""Options of `evaluate`."""

from __future__ import annotations

from dataclasses import dataclass, field

from musicgen_dreamboothing.arguments.fields import option


@dataclass
class EvaluateArguments:
    """Options of `evaluate`."""

    run: str = field(default="", metadata={"help": "Folder of a finished run.", "positional": True})
    output_dir: str | None = option(None, "Where the report goes; by default RUN/evaluation.")
    data: str | None = option(None, "The prepared folder that the run was trained on, if it has moved.")
    prompts: list[str] = field(
        default_factory=list,
        metadata={"help": "Prompts of the style; by default captions of held-out songs and some with the key-word."},
    )
    neutral_prompts: list[str] = field(
        default_factory=list, metadata={"help": "Prompts of other music, to hear what the training did to them."}
    )
    variations: int = option(4, "Clips of each prompt, on the base and on the run.")
    seconds: float = option(10.0, "Length of each clip.")
    song_excerpts: int = option(64, "Pieces of songs that are compared with.")
    seed: int = option(0, "Of the clips and of all intervals.")
    clap_model_name_or_path: str = option(
        "laion/larger_clap_music", "CLAP model that compares sounds, or none for statistics of the signal."
    )
    blind: bool = option(False, "Write a page to listen to both without knowing which is which.")
    answers: str | None = option(None, "Count the answers which that page has saved in this file.")
    batch_size: int | None = option(None, "Clips made at once; as many as memory holds without it.")
    dtype: str = option("auto", "auto, float32, bfloat16 or float16.")
    base_model: str | None = option(None, "The run's base, if it has moved since the training.")
    cache_dir: str | None = option(None, "Where downloads from the Hub are kept.")
    token: str | None = option(None, "Hub token; the stored login is used without it.")
