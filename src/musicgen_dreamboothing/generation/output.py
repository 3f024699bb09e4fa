"""Clips as files: their names, their list, and their sound."""

from __future__ import annotations

import json
import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.arguments import GenerateArguments
from musicgen_dreamboothing.audio import Wave
from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.data.layout import GENERATED
from musicgen_dreamboothing.generation.inputs import Entry
from musicgen_dreamboothing.model.checkpoint import Checkpoint

MAX_SLUG = 40


def suffix_of(name: str) -> str:
    """The suffix of a format, such as `.wav`."""
    suffix = "." + name.lower().lstrip(".")
    if suffix not in audio.WRITTEN_SUFFIXES:
        possible = ", ".join(sorted(known.lstrip(".") for known in audio.WRITTEN_SUFFIXES))
        raise UserError(f"--format {name!r} can't be written; it takes {possible}")
    return suffix


def file_name(number: int, prompt: str, seed: int, variation: int, suffix: str) -> str:
    """The prompt's number and words, the seed and the variation; a hash of the prompt where words lack a part of it."""
    normal = unicodedata.normalize("NFC", prompt)
    slug = re.sub(r"[\W_]+", "-", normal.lower()).strip("-")[:MAX_SLUG].strip("-")
    if slug.replace("-", " ") != normal:
        slug = f"{slug or 'prompt'}-{zlib.crc32(prompt.encode(errors='replace')):08x}"
    return f"{number:02d}_{slug}_seed{seed}_{variation}{suffix}"


class ClipWriter:
    """Writes clips to the folder of `generate` and lists them.

    Args:
        entries: what is generated.
        options: of `generate`.
        checkpoint: the model's rate and channels.

    Attributes:
        lengths: of the clips that were written, in seconds.
    """

    def __init__(self, entries: Sequence[Entry], options: GenerateArguments, checkpoint: Checkpoint) -> None:
        self._entries, self._options, self._checkpoint = entries, options, checkpoint
        self._folder, self._suffix = Path(options.output_dir), suffix_of(options.format)
        self._folder.mkdir(parents=True, exist_ok=True)
        self.lengths: list[float] = []

    def write(self, number: int, variation: int, pieces: Iterable[Wave], facts: dict[str, Any] | None = None) -> Path:
        """Writes one clip of an entry, piece by piece; `facts` are added to its line in the list.

        Facts with a `loop` of samples become loop points, where the format has them.
        """
        entry, checkpoint = self._entries[number], self._checkpoint
        facts = entry.facts | (facts or {})
        name = file_name(number, entry.input.name, self._options.seed, variation, self._suffix)
        path = self._folder / name
        self._list(path, entry, variation, facts)
        loop = facts.get("loop") if self._suffix == ".wav" else None
        audio.write_pieces(path, self._counted(pieces), checkpoint.sampling_rate, checkpoint.audio_channels, loop=loop)
        return path

    @property
    def seconds(self) -> float:
        """Of all clips together."""
        return sum(self.lengths)

    def _counted(self, pieces: Iterable[Wave]) -> Iterator[Wave]:
        self.lengths.append(0.0)
        for piece in pieces:
            self.lengths[-1] += piece.shape[1] / self._checkpoint.sampling_rate
            yield piece

    def _list(self, path: Path, entry: Entry, variation: int, facts: dict[str, Any]) -> None:
        """Adds a file to the list before it is written, so that no scan for songs finds it unlisted."""
        row = {
            "file_name": path.name,
            "prompt": entry.input.name,
            "model": self._options.model,
            "seed": self._options.seed,
            "variation": variation,
            **facts,
        }
        with (path.parent / GENERATED).open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
