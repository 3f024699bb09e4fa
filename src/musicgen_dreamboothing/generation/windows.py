"""Music longer than the models were trained on, in windows that overlap.

A window of 30 s begins with the last 12 s before it as its prompt (audiocraft's `extend_stride` is 18 s)::

    frames     0        896      1500   1792     2396
    window 0   [ new             ]
    window 1            [ prompt ][ new          ]
    window 2                           [ prompt  ][ new ...

Strides are 896 frames of 50 a second, since 32 frames of codes are exactly 5 of a melody's chroma.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

TRAINED_SECONDS = 30.0  # Meta trained on clips of 30 s; what is longer is made in windows
STRIDE_SECONDS = 17.92  # 896 frames of 20 ms, or 140 of chroma


class Window(NamedTuple):
    """A stretch of a clip that is decoded at once, in frames.

    Attributes:
        start: its first frame; those up to `first` are its prompt.
        first: its first new frame.
        end: the frame behind it.
        section: number of the section that it belongs to.
        section_start: the first frame of that section.
    """

    start: int
    first: int
    end: int
    section: int
    section_start: int

    @property
    def frames(self) -> int:
        return self.end - self.start

    @property
    def new(self) -> int:
        return self.end - self.first


def window_frames(frame_rate: float) -> int:
    """Frames of the longest window."""
    return round(TRAINED_SECONDS * frame_rate)


def window_plan(lengths: Sequence[int], prompt: int, frame_rate: float) -> tuple[Window, ...]:
    """The windows of a clip.

    Args:
        lengths: frames of each section; those of the prompt belong to the first one.
        prompt: frames that are given, fewer than a window.
        frame_rate: frames per second.
    """
    longest = window_frames(frame_rate)
    overlap = longest - round(STRIDE_SECONDS * frame_rate)
    windows: list[Window] = []
    position, section_start = prompt, 0
    for number, length in enumerate(lengths):
        section_end = section_start + length
        while position < section_end:
            start = max(0, position - overlap) if windows else 0
            end = min(section_end, start + longest)
            windows.append(Window(start, position, end, number, section_start))
            position = end
        section_start = section_end
    return tuple(windows)


def steps_of(plan: Sequence[Window], delay: Sequence[int]) -> int:
    """Number of decoding steps of a clip."""
    return sum(window.new + max(delay) for window in plan)


def continued(codes: torch.Tensor | None, drawn: torch.Tensor, window: Window) -> torch.Tensor:
    """All codes `[B, K, end]` up to a window's end, from those before it and its own `[B, K, frames]`."""
    if codes is None:
        return drawn
    return torch.cat([codes[..., : window.first].to(drawn.device), drawn[..., window.first - window.start :]], dim=-1)
