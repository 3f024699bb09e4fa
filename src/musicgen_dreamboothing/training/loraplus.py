"""LoRA+ (Hayou et al. 2024): a higher learning rate for the matrices B of LoRA than for A."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def raise_rates(optimizer: torch.optim.Optimizer, model: nn.Module, ratio: float) -> None:
    """Moves the matrices B `[out, r]` of linear layers into groups of their own with `ratio` times the learning rate.

    Those of embeddings stay: there A, with a column for each code, is what begins at zero.

    Args:
        optimizer: new, before any schedule is made for it.
        model: with a LoRA adapter.
        ratio: above 0.
    """
    raised = {id(weight) for name, weight in model.named_parameters() if ".lora_B." in name}
    groups: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        parts: dict[bool, list[Any]] = {False: [], True: []}
        for weight in group["params"]:
            parts[id(weight) in raised].append(weight)
        groups += [
            {**group, "params": weights, "lr": group["lr"] * (ratio if is_raised else 1.0)}
            for is_raised, weights in parts.items()
            if weights
        ]
    optimizer.param_groups[:] = groups
