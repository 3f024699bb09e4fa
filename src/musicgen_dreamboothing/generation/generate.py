"""`generate`: prompts to audio files."""

from __future__ import annotations

import json
import re
import time
import unicodedata
import zlib
from dataclasses import dataclass
from pathlib import Path

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.arguments import GenerateArguments, check_values, note_unused
from musicgen_dreamboothing.console import UserError, log, plural, quiet_libraries
from musicgen_dreamboothing.data.layout import GENERATED
from musicgen_dreamboothing.generation.generator import Generator
from musicgen_dreamboothing.generation.guidance import Sampling
from musicgen_dreamboothing.generation.requests import GeneratedClip
from musicgen_dreamboothing.generation.windows import TRAINED_SECONDS

MAX_SLUG = 40


@dataclass(frozen=True)
class Generation:
    """The files in the order of the prompts, and the speed: seconds of audio per second."""

    files: list[Path]
    speed: float


@quiet_libraries()
def generate(options: GenerateArguments) -> Generation:
    """Generates clips for every prompt and writes them to `output_dir`."""
    check_values(options)
    prompts = _prompts(options)
    suffix = _suffix(options.format)
    note_unused(options)
    generator = Generator(
        options.model,
        base_model=options.base_model,
        revision=options.model_revision,
        cache_dir=options.cache_dir,
        token=options.token,
        device=options.device,
        dtype=options.dtype,
        quantization=options.quantization,
        cuda_graphs=options.cuda_graphs,
    )
    log(_describe(generator, options.model))
    _warn(generator, prompts, options.seconds, options.base_model)
    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    files: dict[tuple[str, int], Path] = {}
    for clip in generator.generate(
        prompts,
        seconds=options.seconds,
        variations=options.variations,
        seed=options.seed,
        sampling=Sampling(options.guidance_scale, options.temperature, options.top_k, options.top_p),
        batch_size=options.batch_size,
    ):
        path = folder / _file_name(clip, prompts, options.seed, suffix)
        _list(path, clip, options)
        audio.write(path, clip.wave, clip.sampling_rate)
        files[clip.prompt, clip.variation] = path
    elapsed = time.perf_counter() - started
    made = options.seconds * len(files)
    log(f"{plural(len(files), 'clip')} of {options.seconds:g} s in {elapsed:.1f} s: {made / elapsed:.2f}x real time")
    in_order = [files[prompt, variation] for prompt in prompts for variation in range(options.variations)]
    for path in in_order:
        log(f"  {path}")
    return Generation(in_order, made / elapsed)


def _list(path: Path, clip: GeneratedClip, options: GenerateArguments) -> None:
    """Adds a file to the list before it is written, so that no scan for songs finds it unlisted."""
    row = {
        "file_name": path.name,
        "prompt": clip.prompt,
        "model": options.model,
        "seed": options.seed,
        "variation": clip.variation,
    }
    with (path.parent / GENERATED).open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _prompts(options: GenerateArguments) -> list[str]:
    """Prompts of the command line, then those of the file: one per line, without empty lines."""
    prompts = list(options.prompts)
    if options.prompts_file is not None:
        path = Path(options.prompts_file)
        if not path.is_file():
            raise UserError(f"no file of prompts at {path}; it holds one prompt per line")
        prompts += [line.strip() for line in _read_text(path).splitlines() if line.strip()]
    if not prompts:
        raise UserError('no prompt; write it after the model: generate MODEL "fast punk with loud guitars"')
    return list(dict.fromkeys(prompts))


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # some editors put a mark before the first line
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text; save it as such") from error


def _suffix(name: str) -> str:
    suffix = "." + name.lower().lstrip(".")
    if suffix not in audio.WRITTEN_SUFFIXES:
        possible = ", ".join(sorted(known.lstrip(".") for known in audio.WRITTEN_SUFFIXES))
        raise UserError(f"--format {name!r} can't be written; it takes {possible}")
    return suffix


def _describe(generator: Generator, model: str) -> str:
    """One or two lines on what was loaded, and whether the adapter is active."""
    base = generator.checkpoint
    channels = "stereo" if base.audio_channels == 2 else "mono"
    family = "melody" if base.is_melody else "text"
    where = f"on {generator.device} in {str(generator.dtype).removeprefix('torch.')}"
    if generator.quantization != "none":
        where += f", weights in {generator.quantization}"
    facts = f"{family} model, {channels}, {base.sampling_rate} Hz, {where}"
    if generator.active_layers is None:
        return f"loaded {model}: {facts}"
    active, total = generator.active_layers
    return f"loaded {base.name}: {facts}\nadapter {model}: active in {active} of {total} layers"


def _warn(generator: Generator, prompts: list[str], seconds: float, base_model: str | None) -> None:
    if base_model is not None and generator.active_layers is None:
        log("note: --base_model has no effect: MODEL is not an adapter")
    for prompt in generator.cut_prompts(prompts):
        log(f"prompt of {len(prompt)} characters is cut to what the text encoder reads: {prompt[:60]!r}…")
    if seconds > TRAINED_SECONDS:
        log(f"note: {seconds:g} s is longer than the {TRAINED_SECONDS:g} s the models were trained on")


def _file_name(clip: GeneratedClip, prompts: list[str], seed: int, suffix: str) -> str:
    """The prompt's number and words, the seed and the variation; a hash of the prompt where words lack a part of it."""
    prompt = unicodedata.normalize("NFC", clip.prompt)
    slug = re.sub(r"[\W_]+", "-", prompt.lower()).strip("-")[:MAX_SLUG].strip("-")
    if slug.replace("-", " ") != prompt:
        slug = f"{slug or 'prompt'}-{zlib.crc32(clip.prompt.encode(errors='replace')):08x}"
    return f"{prompts.index(clip.prompt):02d}_{slug}_seed{seed}_{clip.variation}{suffix}"
