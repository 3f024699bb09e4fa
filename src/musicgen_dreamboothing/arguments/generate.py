"""Options of `generate`."""

from __future__ import annotations

from dataclasses import dataclass, field

from musicgen_dreamboothing.arguments.fields import option


@dataclass
class GenerateArguments:
    """Options of `generate`."""

    model: str = field(
        default="", metadata={"help": "Adapter, full fine-tune or base: folder or Hub id.", "positional": True}
    )
    prompts: list[str] = field(
        default_factory=list, metadata={"help": "Descriptions of the music.", "positional": True}
    )
    output_dir: str = option("generated", "Where the audio goes.")
    prompts_file: str | None = option(None, "Text file with one prompt a line.")
    seconds: float = option(10.0, "Length of each clip; the models were trained on 30 s.")
    variations: int = option(1, "Clips of each prompt.")
    guidance_scale: float = option(3.0, "How closely the prompt is followed; 1 switches guidance off.")
    temperature: float = option(1.0, "Above 1 is wilder, below 1 tamer, 0 takes the likeliest.")
    top_k: int = option(250, "Draw from the so many likeliest codes; 0 draws from all.")
    top_p: float = option(1.0, "Draw from the fewest codes that have this probability together; 1 draws from all.")
    seed: int = option(0, "With the prompt it fixes the clip.")
    batch_size: int | None = option(None, "Clips made at once; as many as memory holds without it.")
    format: str = option("wav", "wav, flac or ogg.")
    dtype: str = option("auto", "auto, float32, bfloat16 or float16.")
    quantization: str = option("none", "none, or int8 for weights in 8 bits: less memory, faster on a CPU.")
    base_model: str | None = option(None, "The adapter's base, if it has moved since the training.")
    model_revision: str | None = option(None, "Branch, tag or commit of MODEL on the Hub.")
    cache_dir: str | None = option(None, "Where downloads from the Hub are kept.")
    token: str | None = option(None, "Hub token; the stored login is used without it.")
