"""Options of `export`, `import` and `extract`."""

from __future__ import annotations

from dataclasses import dataclass

from musicgen_dreamboothing.arguments.fields import option

FORMATS = ("audiocraft",)
AUTO = "auto"
CODECS = AUTO, WHOLE = AUTO, "whole"
TEXT_ENCODERS = AUTO, PUBLISHED, OWN = AUTO, "published", "own"
PRECISIONS = (AUTO, "float32", "float16", "bfloat16")


@dataclass
class ExportArguments:
    """Options of `export`."""

    model: str = option(
        "",
        "Adapter (merged on the way), full fine-tune, merged folder or base: folder or Hub id.",
        positional=True,
        required="give a model: export MODEL --output_dir DIR",
    )
    output_dir: str = option(
        "", "Where the package goes (required).", required="give an output folder: export MODEL --output_dir DIR"
    )
    format: str = option(FORMATS[0], "Format of the package.", choices=FORMATS)
    codec: str = option(
        AUTO, "auto refers to the published codec where the model has that one; whole always packs it.", choices=CODECS
    )
    text_encoder: str = option(
        AUTO,
        "published refers to T5 by its name; own packs the model's; auto packs it where the run trained it.",
        choices=TEXT_ENCODERS,
    )
    dtype: str = option(AUTO, "Precision of the weights; auto is that of the base's files.", choices=PRECISIONS)
    base_model: str | None = option(None, "The adapter's base, if it has moved since the training.")
    model_revision: str | None = option(None, "Branch, tag or commit of MODEL on the Hub.")
    cache_dir: str | None = option(None, "Folder for downloads from the Hub.")
    token: str | None = option(None, "Hub token; the stored login is used without it.")


@dataclass
class ImportArguments:
    """Options of `import`."""

    checkpoint: str = option(
        "",
        "audiocraft's checkpoint: a file, a folder with state_dict.bin, or a Hub id.",
        positional=True,
        required="give a checkpoint: import CHECKPOINT --base facebook/musicgen-small --output_dir DIR",
    )
    output_dir: str = option(
        "",
        "Where the model goes (required).",
        required="give an output folder: import CHECKPOINT --base facebook/musicgen-small --output_dir DIR",
    )
    base: str = option(
        "facebook/musicgen-small",
        "MusicGen in transformers' format that lends the text encoder and, where the checkpoint has none, the codec.",
    )
    text_encoder: str | None = option(
        None, "T5 of this folder or Hub id instead of the base's, such as t5-large for AudioGen, which is its default."
    )
    codec: str | None = option(
        None, "File with the codec, compression_state_dict.bin, where it is not beside the checkpoint."
    )
    model_revision: str | None = option(None, "Branch, tag or commit of CHECKPOINT on the Hub.")
    cache_dir: str | None = option(None, "Folder for downloads from the Hub.")
    token: str | None = option(None, "Hub token; the stored login is used without it.")


@dataclass
class ExtractArguments:
    """Options of `extract`."""

    model: str = option(
        "",
        "Full fine-tune: folder or Hub id.",
        positional=True,
        required="give a full fine-tune: extract FINETUNE --base BASE --output_dir DIR",
    )
    base: str = option(
        "",
        "The checkpoint that it was trained from (required).",
        required="give its base: extract FINETUNE --base BASE --output_dir DIR",
    )
    output_dir: str = option(
        "",
        "Where the adapter goes (required).",
        required="give an output folder: extract FINETUNE --base BASE --output_dir DIR",
    )
    rank: int = option(32, "Rank of the adapter: more keeps more of the difference.", at_least=1, at_most=4096)
    device: str = option(AUTO, "Where the decompositions are computed: auto, cpu, cuda, cuda:1 or mps.")
    model_revision: str | None = option(None, "Branch, tag or commit of FINETUNE on the Hub.")
    cache_dir: str | None = option(None, "Folder for downloads from the Hub.")
    token: str | None = option(None, "Hub token; the stored login is used without it.")
