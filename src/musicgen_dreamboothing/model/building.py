"""Models of transformers from weights that are already open, with one error line where the two do not fit."""

from __future__ import annotations

from typing import Any

from musicgen_dreamboothing.console import UserError, quiet_loading


def build_model(
    model_class: Any, config: Any, weights: dict[str, Any], name: str, *, prefix: str = "", **options: Any
) -> Any:
    """A model of `model_class` with its weights, which are read one by one.

    Given weights instead of a name, transformers looks for no other file: no `generation_config.json`, which is not
    used here and may hold anything, and no conversion of a repository on the Hub.

    Args:
        model_class: class of transformers.
        config: its configuration.
        weights: by the names of their parameters, as `weight_files.open_weights` gives them.
        name: the checkpoint's, for messages and as the model's `name_or_path`.
        prefix: what stands before the names of these weights in the checkpoint, for messages.
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
