"""What the options of `generate` ask for: prompts, the sounds that they continue and the melodies that they follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from musicgen_dreamboothing.arguments import GenerateArguments
from musicgen_dreamboothing.console import UserError, log
from musicgen_dreamboothing.generation.continuation import AudioPrompt
from musicgen_dreamboothing.generation.generator import Generator
from musicgen_dreamboothing.generation.melodies import read_melody
from musicgen_dreamboothing.generation.requests import Classes, GenerationRequest
from musicgen_dreamboothing.generation.sections import PlannedSection, read_sections

EXCLUSIVE = (("sections", "loop_bars"), ("sections", "melody"), ("loop_bars", "continue_from"))


@dataclass(frozen=True)
class Input:
    """One line of the order: clips with its prompt, in so many variations.

    Attributes:
        name: the prompt, or the name of the file of sections.
        song: the sound file that is continued.
        melody: the sound file with the tune.
        sections: instead of prompt and melody.
    """

    name: str
    song: Path | None = None
    melody: Path | None = None
    sections: tuple[PlannedSection, ...] = ()

    def facts(self) -> dict[str, Any]:
        """What generated.jsonl says besides the prompt."""
        facts: dict[str, Any] = {}
        if self.song is not None:
            facts["continued"] = str(self.song)
        if self.melody is not None:
            facts["melody"] = str(self.melody)
        if self.sections:
            facts["sections"] = [part.facts() for part in self.sections]
        return facts


@dataclass(frozen=True, eq=False)
class Entry:
    """An input that was read: its request in the first variation, and the sound that it continues."""

    input: Input
    request: GenerationRequest
    continued: AudioPrompt | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def read_inputs(options: GenerateArguments) -> list[Input]:
    """Checks what is asked for and whether its files exist, before anything is loaded.

    Raises:
        UserError: no prompt, a missing file, or options that exclude each other.
    """
    _check_together(options)
    songs = [_existing(name, "--continue_from") for name in options.continue_from]
    if options.sections is not None:
        path = Path(options.sections)
        sections = tuple(read_sections(path))
        return [
            Input(path.stem, song, None, sections) for song in _spread(songs, max(1, len(songs)), "--continue_from")
        ]
    melodies = [_existing(name, "--melody") for name in options.melody]
    prompts = _prompts(options)
    count = max(len(prompts), len(songs), len(melodies))
    columns = (
        _spread(prompts, count, "prompts"),
        _spread(songs, count, "--continue_from"),
        _spread(melodies, count, "--melody"),
    )
    rows = zip(*columns, strict=True)
    return list(dict.fromkeys(Input(*row) for row in rows))


def read_entries(inputs: Sequence[Input], options: GenerateArguments, generator: Generator) -> list[Entry]:
    """Reads the sound files of inputs, each once."""
    songs: dict[Path, AudioPrompt] = {}
    tunes: dict[Path, Classes] = {}
    entries = []
    for item in inputs:
        if item.song is not None and item.song not in songs:
            songs[item.song] = generator.audio_prompt(item.song, options.prompt_seconds)
        if item.melody is not None and item.melody not in tunes:
            tunes[item.melody] = read_melody(item.melody, options.melody_start, options.melody_seconds)
        continued = None if item.song is None else songs[item.song]
        request = GenerationRequest(
            _with_tempo(item.name, options.bpm) if options.loop_bars else item.name,
            melody=None if item.melody is None else tunes[item.melody],
            prompt_codes=None if continued is None else continued.codes,
            negative_prompt=options.negative_prompt,
            sections=tuple(section.loaded() for section in item.sections),
        )
        facts = {} if options.negative_prompt is None else {"negative_prompt": options.negative_prompt}
        entries.append(Entry(item, request, continued, facts | item.facts()))
    return entries


def _check_together(options: GenerateArguments) -> None:
    for name, other in EXCLUSIVE:
        if getattr(options, name) and getattr(options, other):
            raise UserError(f"--{name} and --{other} exclude each other; leave one of them out")
    if options.sections is not None:
        if options.prompts or options.prompts_file:
            raise UserError("--sections holds the prompts of its clip; leave out the others, or the file of sections")
        if options.seconds != type(options).seconds:
            log("note: --seconds has no effect with --sections, which have their own lengths")
    if options.loop_bars and options.bpm is None:
        raise UserError(f"--loop_bars {options.loop_bars} needs a tempo: add --bpm 120")


def _existing(name: str, option: str) -> Path:
    path = Path(name)
    if not path.is_file():
        raise UserError(f"no file at {path}; {option} takes sound files")
    return path


def _spread(values: Sequence[Any], count: int, name: str) -> Sequence[Any]:
    """One value for each of `count` inputs, from as many, from a single one, or from none."""
    if len(values) not in (0, 1, count):
        raise UserError(
            f"{name} has {len(values)} values, and another option {count}; give one for all clips, or one for each"
        )
    return values if len(values) == count else list(values or [None]) * count


def _with_tempo(prompt: str, bpm: float | None) -> str:
    """A prompt that names the tempo."""
    return prompt if "bpm" in prompt.lower() else f"{prompt}, {bpm:g} bpm".lstrip(", ")


def _prompts(options: GenerateArguments) -> list[str]:
    """Prompts of the command line, then those of the file: one per line, without empty lines.

    The same prompt twice is one, unless each has its own sound file.
    """
    prompts = list(options.prompts)
    if options.prompts_file is not None:
        path = Path(options.prompts_file)
        if not path.is_file():
            raise UserError(f"no file of prompts at {path}; it holds one prompt per line")
        prompts += [line.strip() for line in _read_text(path).splitlines() if line.strip()]
    if not prompts:
        raise UserError('no prompt; write it after the model: generate MODEL "fast punk with loud guitars"')
    paired = max(len(options.continue_from), len(options.melody)) > 1
    return prompts if paired else list(dict.fromkeys(prompts))


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # some editors put a mark before the first line
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text; save it as such") from error
