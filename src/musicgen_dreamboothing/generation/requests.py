"""What is generated: prompts with melodies and audio prompts, and the clips that come of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

Classes = NDArray[np.uint8]  # chroma classes of a melody [T], 7.8125 a second


@dataclass(frozen=True, eq=False)
class Section:
    """A part of a clip with its own prompt.

    Attributes:
        prompt: description of the music.
        seconds: its length.
        melody: chroma classes `[T]`, from the start of the section, periodic; None for no melody.
        seed: instead of the run's seed.
    """

    prompt: str
    seconds: float
    melody: Classes | None = None
    seed: int | None = None


@dataclass(frozen=True, eq=False)
class GenerationRequest:
    """One clip to generate.

    Attributes:
        prompt: description of the music; of a clip with sections its name.
        variation: clips with the same prompt and another variation have other random numbers.
        melody: chroma classes `[T]` of a melody that the clip follows, from its start, periodic; None for no melody.
        prompt_codes: codes `[K, P]` of sound that the clip begins with and continues; None to begin with nothing.
        negative_prompt: what guidance leads away from, instead of from music without a description.
        sections: parts of the clip, instead of its prompt, its melody and a length.
    """

    prompt: str
    variation: int = 0
    melody: Classes | None = None
    prompt_codes: torch.Tensor | None = None
    negative_prompt: str | None = None
    sections: tuple[Section, ...] = ()

    @property
    def prompt_frames(self) -> int:
        """P, the number of frames that are given."""
        return 0 if self.prompt_codes is None else self.prompt_codes.shape[-1]

    def parts(self, seconds: float) -> tuple[Section, ...]:
        """Its sections, or itself as the only one with a length in seconds."""
        return self.sections or (Section(self.prompt, seconds, self.melody),)

    def texts(self) -> Iterator[str]:
        """All that the text encoder reads."""
        yield from (part.prompt for part in self.parts(0))
        if self.negative_prompt is not None:
            yield self.negative_prompt


Clip = tuple[str, int]  # prompt and variation


def as_request(clip: Clip | GenerationRequest) -> GenerationRequest:
    """A request of a prompt and its variation; a request as it is."""
    return clip if isinstance(clip, GenerationRequest) else GenerationRequest(*clip)


def variations_of(prompts: Iterable[str | GenerationRequest], variations: int) -> Sequence[GenerationRequest]:
    """Each prompt or request in so many variations."""
    requests = [prompt if isinstance(prompt, GenerationRequest) else GenerationRequest(prompt) for prompt in prompts]
    return [
        replace(request, variation=request.variation + number) for request in requests for number in range(variations)
    ]


@dataclass(frozen=True)
class GeneratedClip:
    """One piece of new music: `wave` is float32 `[C, S]` at `sampling_rate`, `codes` int64 `[K, T]`."""

    prompt: str
    variation: int
    codes: torch.Tensor
    wave: np.ndarray
    sampling_rate: int
