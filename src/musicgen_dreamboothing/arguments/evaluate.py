"""Options of `evaluate`."""

from __future__ import annotations

from dataclasses import dataclass

from musicgen_dreamboothing.arguments.fields import LARGEST_BATCH, LARGEST_SEED, LONGEST_SECONDS, option
from musicgen_dreamboothing.arguments.generate import DTYPES, QUANTIZATIONS

COUNTING = "--answers"  # it only counts the answers


@dataclass
class EvaluateArguments:
    """Options of `evaluate`."""

    run: str = option(
        "", "Folder of a finished run.", positional=True, required="give a run: evaluate RUN, a folder made by train"
    )
    output_dir: str | None = option(None, "Where the report goes; by default RUN/evaluation.")
    data: str | None = option(
        None, "The prepared folder that the run was trained on, if it has moved.", unless=COUNTING
    )
    prompts: list[str] = option(
        [],
        "Prompts of the style; by default captions of held-out songs and some with the key-word.",
        may_be_empty=True,
        unless=COUNTING,
    )
    neutral_prompts: list[str] = option(
        [], "Prompts of other music, to measure what the training changed there.", may_be_empty=True, unless=COUNTING
    )
    variations: int = option(
        2, "Clips of each prompt, on the base and on the run.", at_least=1, at_most=1000, unless=COUNTING
    )
    seconds: float = option(10.0, "Length of each clip.", above=0, at_most=LONGEST_SECONDS, unless=COUNTING)
    song_excerpts: int = option(
        64, "Pieces of songs that are compared with.", at_least=1, at_most=100_000, unless=COUNTING
    )
    seed: int = option(0, "Of the clips and of the song excerpts.", at_least=0, at_most=LARGEST_SEED, unless=COUNTING)
    embedder: str | None = option(
        None,
        "Model that compares sounds: a CLAP or another audio encoder (HuBERT, AST, MERT), or none for statistics "
        "of the signal. By default the model of --clap_model_name_or_path.",
        unless=COUNTING,
    )
    trust_remote_code: bool = option(
        False, "Run code that the repository of the embedder brings along.", needs=("--embedder",), unless=COUNTING
    )
    clap_model_name_or_path: str = option(
        "laion/larger_clap_music",
        "CLAP model that compares sounds, or none for statistics of the signal.",
        unless=COUNTING,
    )
    strengths: list[float] = option(
        [],
        "Write a page with clips of the adapter at these strengths, such as 0 0.5 1 1.5: 0 is the base, 1 the run.",
        at_least=-2,
        at_most=3,
        unless=COUNTING,
    )
    blind: bool = option(False, "Write a page to listen to both without knowing which is which.", unless=COUNTING)
    save_embeddings: str | None = option(
        None,
        "Write sounds and embeddings of clips and songs into this folder, as fadtk and kadtk read them; "
        "true: OUTPUT_DIR/embeddings.",
        unless=COUNTING,
    )
    answers: str | None = option(None, "Count the answers which that page has saved in this file.")
    batch_size: int | None = option(
        None,
        "Clips made at once; as many as memory holds without it.",
        at_least=1,
        at_most=LARGEST_BATCH,
        unless=COUNTING,
    )
    device: str = option("auto", "auto, cpu, cuda, cuda:1 or mps.", unless=COUNTING)
    dtype: str = option("auto", "Precision.", choices=DTYPES, unless=COUNTING)
    quantization: str = option("none", "Weights of both models in fewer bits.", choices=QUANTIZATIONS, unless=COUNTING)
    base_model: str | None = option(None, "The run's base, if it has moved since the training.", unless=COUNTING)
    cache_dir: str | None = option(None, "Folder for downloads from the Hub.")
    token: str | None = option(None, "Hub token; the stored login is used without it.")
