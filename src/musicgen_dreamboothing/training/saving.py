"""The result of a run as files: the adapter or the model, the processor and the card."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from musicgen_dreamboothing.console import UserError, best_effort
from musicgen_dreamboothing.model.adapter import has_learned, save_adapter
from musicgen_dreamboothing.model.checkpoint import Checkpoint, load_whole, save_processor
from musicgen_dreamboothing.model.saved_adapter import name_base
from musicgen_dreamboothing.sharing.card import CardFacts, write_card
from musicgen_dreamboothing.sharing.header import header_of
from musicgen_dreamboothing.training.record import changed_options
from musicgen_dreamboothing.training.settings import Settings
from musicgen_dreamboothing.training.trainer import CodebookTrainer


def save_run(trainer: CodebookTrainer, settings: Settings, metrics: dict[str, float], licence: str | None) -> None:
    """Writes everything that plain transformers and PEFT need, into a side folder first.

    Weights are saved whatever becomes of the processor and the card, which can be made again.

    Raises:
        UserError: the weights are not finite, or the adapter changes nothing.
    """
    folder, checkpoint = settings.folder, settings.checkpoint
    model = trainer.accelerator.unwrap_model(trainer.model)
    _check_weights(model)
    if not trainer.is_world_process_zero():
        return
    staging = folder / ".saving"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    if isinstance(model, PeftModel):
        base = Path(checkpoint.name).resolve().name if checkpoint.is_local else checkpoint.name
        save_adapter(model, staging, header_of(checkpoint, base, settings.options.instance_prompt, licence))
        name_base(staging / "adapter_config.json", checkpoint)
        (staging / "README.md").unlink(missing_ok=True)  # PEFT's; ours is next
    else:
        _save_whole(model, staging, checkpoint)
    with best_effort(f"the processor of {checkpoint.name} is not beside the weights, where transformers looks for it"):
        save_processor(checkpoint, staging)
    with best_effort("there is no model card"):
        write_card(staging, _facts(settings, metrics), checkpoint, licence)
    for path in staging.iterdir():
        os.replace(path, folder / path.name)
    staging.rmdir()


def discard_result(folder: Path, *, is_adapter: bool) -> None:
    """Removes the weights of an earlier run: an adapter left beside a full fine-tune would be taken for the result."""
    adapter, whole = ("adapter_*",), ("model*.safetensors*", "config.json", "generation_config.json")
    for pattern in adapter if is_adapter else whole:
        for path in folder.glob(pattern):
            path.unlink()


def _check_weights(model: torch.nn.Module) -> None:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not all(bool(torch.isfinite(parameter).all()) for parameter in trained):
        raise UserError("the training diverged: weights are not finite; try a lower --learning_rate or --dtype float32")
    if isinstance(model, PeftModel) and not has_learned(model):
        unchanged = "all its updates are zero" if model.initial_digest is None else "it is still the initial adapter"
        raise UserError(f"the adapter learned nothing: {unchanged}; train for more updates")


def _save_whole(model: torch.nn.Module, folder: Path, checkpoint: Checkpoint) -> None:
    """A full fine-tune with the encoders it was trained without, as one checkpoint."""
    whole: Any = load_whole(checkpoint)
    unexpected = whole.load_state_dict(model.state_dict(), strict=False).unexpected_keys
    if unexpected:
        raise RuntimeError(f"trained weights without a place in {type(whole).__name__}: {unexpected[:3]}")
    whole.save_pretrained(folder)


def _without_paths(options: dict[str, Any]) -> dict[str, Any]:
    """Folders of this machine by their last name only: a card is made to be shared."""
    return {
        name: Path(value).name if isinstance(value, str) and Path(value).exists() else value
        for name, value in options.items()
    }


def _facts(settings: Settings, metrics: dict[str, float]) -> CardFacts:
    options, tables = settings.options, settings.tables
    return CardFacts(
        name=options.hub_model_id or settings.folder.resolve().name,
        is_adapter=options.use_lora,
        instance_prompt=options.instance_prompt,
        captions=list(dict.fromkeys(tables.train["text"])),
        songs=len(set(tables.train["source"])),
        minutes=sum(tables.train["seconds"]) / 60,
        held_out_songs=len(tables.held_out_songs),
        metrics=metrics,
        init_adapter=options.init_adapter and _without_paths({"": options.init_adapter})[""],
        options=_without_paths(changed_options(options)),
    )
