"""Builds a model of transformers from open weights, or says in one line why they do not fit its configuration."""

from __future__ import annotations

from typing import Any

from musicgen_dreamboothing.console import UserError, quiet_loading


def build_model(
    model_class: Any, config: Any, weights: dict[str, Any], name: str, *, prefix: str = "", **options: Any
) -> Any:
    """A model with its weights, which are read one by one.

    Given weights instead of a name, transformers reads no other file: not `generation_config.json`, which is not needed
    here and may be invalid, and no converted copy on the Hub.

    Args:
        model_class: class of transformers.
        config: its configuration.
        weights: of `weight_files.open_weights`.
        name: of the checkpoint.
        prefix: of the names of these weights in the checkpoint, for messages.
        options: for `from_pretrained`.

    Raises:
        UserError: weights are missing, or their sizes are not those of the configuration.
    """
    with quiet_loading():
        model, report = model_class.from_pretrained(
            None,
            config=config,
            state_dict=weights,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are an error below
            **options,
        )
    _check(report, name, prefix)
    model.name_or_path = model.config.name_or_path = name
    return model


def _check(report: dict[str, Any], name: str, prefix: str) -> None:
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise UserError(
            f"{name} lacks weights that its config.json asks for: {prefix}{missing[0]} ({len(missing)} in all); "
            "take a complete checkpoint, such as facebook/musicgen-small"
        )
    if report["mismatched_keys"]:
        weight, stored, expected = sorted(report["mismatched_keys"])[0]
        raise UserError(
            f"{name}: {prefix}{weight} has the size {list(stored)}, but its config.json asks for {list(expected)}; "
            "take weights and config.json from the same checkpoint"
        )
