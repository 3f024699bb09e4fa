"""Classifier-free guidance: the rows of a batch, and the logits that are made of theirs.

Branches, in this order: `c` with prompt and melody; `w` with the melody alone, where double guidance needs it; `u` with
neither, or with a negative prompt instead of the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.model.language_model import Conditioning, MelodyLM, TextLM


@dataclass(frozen=True)
class Sampling:
    """How the next code is chosen.

    Attributes:
        guidance_scale: 1 ignores classifier-free guidance; Meta uses 3 (Copet et al. 2023, section 3.1).
        temperature: 0 takes the likeliest code.
        top_k: number of likeliest codes to draw from; 0 draws from all.
        top_p: draw from the fewest codes that have this probability together (Holtzman et al. 2020); 1 draws from all.
        melody_guidance: weight of the prompt against the melody in double guidance (see `guided`); 1 is plain guidance.
    """

    guidance_scale: float = 3.0
    temperature: float = 1.0
    top_k: int = 250
    top_p: float = 1.0
    melody_guidance: float = 1.0

    def branches(self, *, with_melody: bool) -> int:
        """Rows of the decoder for each clip."""
        if self.guidance_scale == 1:
            return 1
        return 3 if with_melody and self.melody_guidance != 1 else 2


@dataclass(frozen=True)
class TextRows:
    """Texts of a batch.

    Attributes:
        states: of the text encoder `[B, L, D_text]`, padded at the end.
        mask: 1 for states of a text `[B, L]`.
        keep: False where the text is dropped for the null condition `[B]`.
    """

    states: torch.Tensor
    mask: torch.Tensor
    keep: torch.Tensor

    def dropped(self) -> TextRows:
        """The same places without their text."""
        return TextRows(self.states, self.mask, torch.zeros_like(self.keep))

    def to(self, device: torch.device) -> TextRows:
        """On a device."""
        return TextRows(self.states.to(device), self.mask.to(device), self.keep.to(device))


def guided_conditioning(
    model: TextLM | MelodyLM,
    prompts: TextRows,
    sampling: Sampling,
    melody: torch.Tensor | None = None,
    negative: TextRows | None = None,
) -> Conditioning:
    """The conditioning of all branches, one after the other.

    On a CPU each row is computed alone: in a batch its last digit would depend on the other rows.

    Args:
        model: either family.
        prompts: of the clips.
        sampling: says which branches there are.
        melody: chroma classes `[B, C]`; None for the null melody.
        negative: texts of branch `u`; without it that branch has the null condition.
    """
    branches = sampling.branches(with_melody=melody is not None)
    captioned, unconditional = [prompts, prompts.dropped()][: max(1, branches - 1)], negative or prompts.dropped()
    texts = [*captioned, unconditional][:branches]
    rows = _joined([text.to(model.device) for text in texts])
    melodies = None
    if melody is not None:
        melodies = torch.cat([*[melody] * len(captioned), torch.zeros_like(melody)][:branches]).to(model.device)
    if model.device.type != "cpu":
        return model.condition(rows.states, rows.mask, rows.keep, melodies)
    parts = [
        model.condition(
            rows.states[[row], :length],
            rows.mask[[row], :length],
            rows.keep[[row]],
            None if melodies is None else melodies[[row]],
        )
        for row, length in enumerate(rows.mask.sum(-1).tolist())
    ]
    return Conditioning(
        pad_sequence([part.states[0] for part in parts], batch_first=True),
        pad_sequence([part.mask[0] for part in parts], batch_first=True),
        torch.cat([part.lengths for part in parts]),
    )


def _joined(parts: list[TextRows]) -> TextRows:
    """Several batches of texts as one, padded to the longest."""
    return TextRows(
        pad_sequence([row for part in parts for row in part.states], batch_first=True),
        pad_sequence([row for part in parts for row in part.mask], batch_first=True),
        torch.cat([part.keep for part in parts]),
    )


def guided(logits: torch.Tensor, branches: int, sampling: Sampling) -> torch.Tensor:
    """Logits of all branches `[branches * B, ...]` -> guided logits `[B, ...]`.

    `u + g * (c - u)`; with three branches `u + g * (w + b * (c - w) - u)`, as audiocraft's double guidance.
    """
    if branches == 1:
        return logits
    first, *middle, null = logits.chunk(branches)
    captioned = torch.lerp(middle[0], first, sampling.melody_guidance) if middle else first
    return torch.lerp(null, captioned, sampling.guidance_scale)


def check_prompts(logits: torch.Tensor, branches: int) -> None:
    """Raises a `UserError` where the first two branches of the first step are the same."""
    if branches > 1 and torch.equal(*logits.chunk(branches)[:2]):
        raise UserError("the prompt changes nothing in this model: captioned and null logits are the same")
