"""`generate`: prompts to audio files."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from musicgen_dreamboothing.arguments import GenerateArguments, check_values, note_unused
from musicgen_dreamboothing.arguments.fields import LONGEST_SECONDS
from musicgen_dreamboothing.console import log, plural, quiet_libraries
from musicgen_dreamboothing.generation.generator import Generator
from musicgen_dreamboothing.generation.guidance import Sampling
from musicgen_dreamboothing.generation.inputs import Entry, read_entries, read_inputs
from musicgen_dreamboothing.generation.loops import Loop, LoopLength, best_loop, loop_wave
from musicgen_dreamboothing.generation.output import ClipWriter, suffix_of
from musicgen_dreamboothing.generation.requests import variations_of
from musicgen_dreamboothing.generation.windows import STRIDE_SECONDS, TRAINED_SECONDS

Written = Iterator[tuple[int, int, Path]]  # entry, variation and file


@dataclass(frozen=True)
class Generation:
    """The files in the order of the prompts, and the speed: seconds of audio per second."""

    files: list[Path]
    speed: float


@quiet_libraries()
def generate(options: GenerateArguments) -> Generation:
    """Generates clips for every prompt and writes them to `output_dir`."""
    check_values(options)
    inputs = read_inputs(options)
    suffix_of(options.format)
    note_unused(options)
    generator = Generator(
        options.model,
        adapters=options.adapter,
        blend=options.blend,
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
    entries = read_entries(inputs, options, generator)
    _warn(generator, entries, options)
    writer = ClipWriter(entries, options, generator.checkpoint)
    started = time.perf_counter()
    play = _clips if options.loop_bars is None else _loops
    files = {(number, variation): path for number, variation, path in play(generator, entries, options, writer)}
    elapsed = time.perf_counter() - started
    speed = writer.seconds / elapsed
    lengths = _range(writer.lengths, options.seconds, 1 / generator.checkpoint.frame_rate)
    log(f"{plural(len(files), 'clip')} of {lengths} s in {elapsed:.1f} s: {speed:.2f}x real time")
    in_order = [files[place] for place in sorted(files)]
    for path in in_order:
        log(f"  {path}")
    return Generation(in_order, speed)


def _sampling(options: GenerateArguments) -> Sampling:
    return Sampling(options.guidance_scale, options.temperature, options.top_k, options.top_p, options.melody_guidance)


def _clips(generator: Generator, entries: Sequence[Entry], options: GenerateArguments, writer: ClipWriter) -> Written:
    """Writes each clip as soon as its codes are drawn."""
    requests = variations_of([entry.request for entry in entries], options.variations)
    places = {id(request): divmod(place, options.variations) for place, request in enumerate(requests)}
    drawn = generator.codes(
        requests,
        seconds=options.seconds,
        seed=options.seed,
        sampling=_sampling(options),
        batch_size=options.batch_size,
    )
    for request, codes in drawn:
        number, variation = places[id(request)]
        pieces, continued = generator.decoded(codes), entries[number].continued
        if continued is not None:
            pieces = continued.restored(pieces, keep=options.keep_prompt)
        yield number, variation, writer.write(number, variation, pieces)


def _loops(generator: Generator, entries: Sequence[Entry], options: GenerateArguments, writer: ClipWriter) -> Written:
    """Writes the best of several takes of each loop, as soon as the last one is drawn."""
    assert options.loop_bars is not None
    assert options.bpm is not None
    checkpoint, takes = generator.checkpoint, options.loop_takes
    length = LoopLength.of(options.loop_bars, options.bpm, checkpoint.frame_rate, LONGEST_SECONDS)
    seconds = length.frames / checkpoint.frame_rate
    bars = plural(options.loop_bars, "bar")
    log(f"loops of {bars} in {seconds:g} s, {length.bpm:.10g} bpm, the best of {plural(takes, 'take')}")
    requests = variations_of([entry.request for entry in entries], options.variations * takes)
    places = {id(request): divmod(place // takes, options.variations) for place, request in enumerate(requests)}
    drawn = generator.codes(
        requests,
        seconds=length.searched / checkpoint.frame_rate,
        seed=options.seed,
        sampling=_sampling(options),
        batch_size=options.batch_size,
    )
    loops: dict[tuple[int, int], list[Loop]] = {}
    for request, codes in drawn:
        place = places[id(request)]
        loops.setdefault(place, []).append(best_loop(codes, generator.decode(codes), length))
        if len(loops[place]) == takes:
            best = min(loops.pop(place), key=lambda loop: loop.join)
            wave = loop_wave(generator, best)
            facts = {"bpm": length.bpm, "loop": (0, wave.shape[1] - 1), "join": round(best.join, 3)}
            yield *place, writer.write(*place, [wave], facts)


def _range(lengths: Iterable[float], asked: float, frame: float) -> str:
    """The shortest and the longest of some lengths in seconds; one number where they are the same.

    What is within a frame of the length that was asked for was rounded to whole frames, and counts as that.
    """
    rounded = [round(asked if abs(length - asked) <= frame else length, 2) for length in lengths]
    return " to ".join(f"{length:g}" for length in sorted({min(rounded), max(rounded)}))


def _describe(generator: Generator, model: str) -> str:
    """One or two lines on what was loaded, and whether the adapter is active."""
    base = generator.checkpoint
    channels = "stereo" if base.audio_channels == 2 else "mono"
    family = "melody" if base.is_melody else "text"
    where = f"on {generator.device} in {str(generator.dtype).removeprefix('torch.')}"
    if generator.quantization != "none":
        where += f", weights in {generator.quantization}"
    facts = f"{family} model, {channels}, {base.sampling_rate} Hz, {where}"
    if generator.active_layers is None or generator.mix is None:
        return f"loaded {model}: {facts}"
    active, total = generator.active_layers
    mix = generator.mix
    named = f"adapter{'s' if len(mix.adapters) > 1 else ''} {model if mix.single is not None else mix}"
    return f"loaded {base.name}: {facts}\n{named}: active in {active} of {total} layers"


def _warn(generator: Generator, entries: Sequence[Entry], options: GenerateArguments) -> None:
    if options.base_model is not None and generator.active_layers is None:
        log("note: --base_model has no effect: there is no adapter")
    texts = dict.fromkeys(text for entry in entries for text in entry.request.texts())
    for prompt in generator.cut_prompts(list(texts)):
        log(f"prompt of {len(prompt)} characters is cut to what the text encoder reads: {prompt[:60]!r}…")
    longest = max(sum(part.seconds for part in entry.request.parts(options.seconds)) for entry in entries)
    if longest > TRAINED_SECONDS and options.loop_bars is None:
        overlap = TRAINED_SECONDS - STRIDE_SECONDS
        log(
            f"note: {longest:g} s is longer than the {TRAINED_SECONDS:g} s the models were trained on; "
            f"it is made in windows that continue the last {overlap:.0f} s before them"
        )
    with_melody = any(part.melody is not None for entry in entries for part in entry.request.parts(0))
    if options.sections is not None and options.melody_guidance != 1 and not with_melody:
        log(f"note: --melody_guidance has no effect: no section in {options.sections} has a melody")
    if options.loop_bars is not None and suffix_of(options.format) != ".wav":
        log(f"note: {options.format} files have no loop points; the loop is the whole file")
