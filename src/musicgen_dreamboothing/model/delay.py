"""The delay pattern: how K parallel codebooks become one sequence (Copet et al. 2023, section 2.2).

With four codebooks and five frames, `.` being the pad token::

    step        0  1  2  3  4  5  6  7
    codebook 0  a0 a1 a2 a3 a4 .  .  .
    codebook 1  .  b0 b1 b2 b3 b4 .  .
    codebook 2  .  .  c0 c1 c2 c3 c4 .
    codebook 3  .  .  .  d0 d1 d2 d3 d4

Stereo checkpoints interleave the codebooks of left and right, and both sides of a pair share a delay.
"""

from __future__ import annotations

import torch

UNFILLED = -1  # a code that is not drawn yet
SIDES = ("left", "right")  # codebook k of a stereo checkpoint is of side k % 2
IGNORED = -100  # label of a position that carries no loss, as in torch.nn.functional.cross_entropy


def delays(codebooks: int, audio_channels: int) -> tuple[int, ...]:
    """Delay of each codebook in frames: `0 1 2 3` for mono, `0 0 1 1 2 2 3 3` for stereo."""
    if codebooks % audio_channels:
        raise ValueError(f"{codebooks} codebooks can't be shared by {audio_channels} channels")
    return tuple(codebook // audio_channels for codebook in range(codebooks))


def sides_of(audio_channels: int) -> tuple[str, ...]:
    """Names of the sides whose codebooks are interleaved; none for mono."""
    return SIDES if audio_channels == len(SIDES) else ()


def apply_delay(codes: torch.Tensor, delay: tuple[int, ...], fill: int) -> torch.Tensor:
    """Shifts codebook k right by its delay: `[..., K, T]` -> `[..., K, T + max(delay)]`, `fill` elsewhere."""
    frames = codes.shape[-1]
    delayed = codes.new_full((*codes.shape[:-1], frames + max(delay)), fill)
    for codebook, shift in enumerate(delay):
        delayed[..., codebook, shift : shift + frames] = codes[..., codebook, :]
    return delayed


def undo_delay(delayed: torch.Tensor, delay: tuple[int, ...]) -> torch.Tensor:
    """The inverse of `apply_delay`: `[..., K, S]` -> `[..., K, S - max(delay)]`."""
    frames = delayed.shape[-1] - max(delay)
    rows = [delayed[..., codebook, shift : shift + frames] for codebook, shift in enumerate(delay)]
    return torch.stack(rows, dim=-2)


def training_steps(codes: torch.Tensor, delay: tuple[int, ...], start: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and labels of teacher forcing: `[K, T]` -> two of `[K, T]`.

    Only the first T steps are used, as in audiocraft (`keep_only_valid_steps` in its `models/lm.py`): codebook k's last
    k frames carry no loss. So crops are taken `max(delay)` frames longer where the clip has them.
    """
    frames = codes.shape[-1]
    labels = apply_delay(codes, delay, IGNORED)[..., :frames]
    targets = labels.masked_fill(labels == IGNORED, start)
    inputs = torch.cat([torch.full_like(targets[..., :1], start), targets[..., :-1]], dim=-1)
    return inputs, labels


def ignore_prompt(labels: torch.Tensor, delay: tuple[int, ...], frames: int) -> torch.Tensor:
    """Labels `[K, T]` without those of the first `frames` frames, whose codes are known when a prompt is continued.

    The label of frame t stands at step `t + delay[k]` in codebook k.
    """
    steps = torch.arange(labels.shape[-1], device=labels.device)
    ends = frames + torch.tensor(delay, device=labels.device)
    return labels.masked_fill(steps < ends[:, None], IGNORED)
