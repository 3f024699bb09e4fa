"""Options of `generate`."""

from __future__ import annotations

from dataclasses import dataclass

from musicgen_dreamboothing.arguments.fields import LARGEST_BATCH, LARGEST_SEED, LONGEST_SECONDS, option

MOST_VARIATIONS = 10_000
DTYPES = ("auto", "float32", "bfloat16", "float16")
QUANTIZATIONS = ("none", "nf4", "int8")


@dataclass
class GenerateArguments:
    """Options of `generate`."""

    model: str = option(
        "",
        "Adapter (with a strength as you like: RUN:0.7), full fine-tune or base: folder or Hub id.",
        positional=True,
        required='give a model: generate MODEL "fast punk with loud guitars"',
    )
    prompts: list[str] = option([], "Descriptions of the music.", positional=True, may_be_empty=True)
    adapter: list[str] = option(
        [],
        "An adapter on the base that MODEL is or has: folder or Hub id, with its strength: punk:0.8, jazz:-0.3, or by "
        "groups of layers punk:0.8,heads=0 (attention, ffn, heads, embeddings). 0 is the base, 1 the adapter as "
        "trained. May be given several times.",
        repeated=True,
    )
    blend: bool = option(
        False,
        "Scale strengths so that their absolute values add up to 1, instead of adding all up.",
        needs=("--adapter",),
    )
    output_dir: str = option("generated", "Where the audio goes.")
    prompts_file: str | None = option(None, "Text file with one prompt a line.")
    seconds: float = option(
        10.0,
        "Length of each clip, the sound that it continues included; beyond 30 s it is made in windows.",
        above=0,
        at_most=LONGEST_SECONDS,
        unless="--loop_bars",
    )
    sections: str | None = option(
        None,
        "YAML file with the parts of one clip: a list with text, seconds and, as you like, melody and seed of each.",
    )
    continue_from: list[str] = option(
        [], "Sound files whose end is continued: one for all prompts, or one for each; any number for one prompt."
    )
    prompt_seconds: float = option(6.0, "Length of that end.", above=0, at_most=29, needs=("--continue_from",))
    keep_prompt: bool = option(
        True,
        "Begin each clip with that end, as it is in the file; false writes the new music alone.",
        needs=("--continue_from",),
    )
    melody: list[str] = option(
        [], "Sound files with a tune to follow, for melody models: one for all prompts, or one for each."
    )
    melody_start: float = option(0.0, "Second of the file in which the tune begins.", at_least=0, needs=("--melody",))
    melody_seconds: float | None = option(
        None, "Length of the tune; without it to the end.", above=0, needs=("--melody",)
    )
    melody_guidance: float = option(
        1.0,
        "Double guidance: weight of the prompt against the melody; below 1 the melody counts more.",
        at_least=0,
        at_most=100,
        needs=("--melody", "--sections"),
        unless="--guidance_scale 1",
    )
    negative_prompt: str | None = option(
        None, "What guidance leads away from, instead of from any music.", unless="--guidance_scale 1"
    )
    loop_bars: int | None = option(None, "Make loops of so many bars of four beats.", at_least=1, at_most=256)
    bpm: float | None = option(None, "Their tempo.", at_least=20, at_most=400, needs=("--loop_bars",))
    loop_takes: int = option(
        4,
        "Takes of each loop, of which the one with the smoothest join stays.",
        at_least=1,
        at_most=100,
        needs=("--loop_bars",),
    )
    variations: int = option(1, "Clips of each prompt.", at_least=1, at_most=MOST_VARIATIONS)
    guidance_scale: float = option(
        3.0, "How closely the prompt is followed; 1 switches guidance off.", at_least=0, at_most=100
    )
    temperature: float = option(
        1.0, "Above 1 is wilder, below 1 tamer, 0 takes the likeliest.", at_least=0, at_most=100
    )
    top_k: int = option(
        250, "Draw from the so many likeliest codes; 0 draws from all.", at_least=0, unless="--temperature 0"
    )
    top_p: float = option(
        1.0,
        "Draw from the fewest codes that have this probability together; 1 draws from all.",
        above=0,
        at_most=1,
        unless="--temperature 0",
    )
    seed: int = option(0, "With the prompt it fixes the clip.", at_least=0, at_most=LARGEST_SEED)
    batch_size: int | None = option(
        None, "Clips made at once; as many as memory holds without it.", at_least=1, at_most=LARGEST_BATCH
    )
    format: str = option("wav", "wav, flac or ogg.")
    device: str = option("auto", "auto, cpu, cuda, cuda:1 or mps.")
    dtype: str = option("auto", "Precision.", choices=DTYPES)
    quantization: str = option(
        "none", "Weights in fewer bits, for less memory; int8 is also faster on a CPU.", choices=QUANTIZATIONS
    )
    cuda_graphs: bool = option(True, "Replay each step on a GPU as one CUDA graph, which is faster.")
    base_model: str | None = option(None, "The adapter's base, if it has moved since the training.")
    model_revision: str | None = option(None, "Branch, tag or commit of MODEL on the Hub.")
    cache_dir: str | None = option(None, "Folder for downloads from the Hub.")
    token: str | None = option(None, "Hub token; the stored login is used without it.")
