"""What a base in fewer bits costs in quality: the loss on held-out songs, before and after the same training.

    python benchmarks/quantization.py                     # the built-in checkpoint and songs
    python benchmarks/quantization.py --updates 240

Each variant trains the demo's adapter with the same seed on the same clips, in a process of its own. One should see a
table of losses in nats a code, with their distance to bf16's.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import _common

VARIANTS = {"bf16": "none", "int8": "int8", "nf4": "nf4"}
DTYPE = "bfloat16"
PREPARE = "prepare"


def main() -> None:
    _common.play(_options(), _compare, _work)


def _work(options: argparse.Namespace) -> dict[str, Any]:
    return _prepared(options) if options.variant == PREPARE else _trained(options)


def _options() -> argparse.Namespace:
    parser = _common.options(__doc__)
    parser.add_argument("--updates", type=int, default=60, help="updates of the adapter")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser.parse_args()


def _compare(options: argparse.Namespace) -> None:
    about = _common.run_variant(__file__, _common.PROBE)
    with tempfile.TemporaryDirectory() as folder:
        _common.run_variant(__file__, PREPARE, "--folder", folder)
        runs = {name: _common.run_variant(__file__, name, "--folder", folder) for name in VARIANTS}
    plain = runs["bf16"]
    rows = [
        {
            "base": name,
            "loss before": run["before"],
            "more than bf16": run["before"] - plain["before"],
            "loss after": run["after"],
            "more than bf16's": run["after"] - plain["after"],
        }
        for name, run in runs.items()
    ]
    case = f"built-in, {options.updates} updates"
    _common.show(f"held-out loss on {about['device']}: {case}", rows)
    path = _common.keep(about, "quantization", case, {"rows": rows})
    print(f"kept in {path.parent.name}/{path.name}")


def _prepared(options: argparse.Namespace) -> dict[str, Any]:
    from musicgen_dreamboothing.data.prepare import prepare
    from musicgen_dreamboothing.demo.recipe import Recipe, prepare_options

    prepare(prepare_options(Recipe(), Path(options.folder) / "data"))
    return {}


def _trained(options: argparse.Namespace) -> dict[str, Any]:
    from musicgen_dreamboothing.arguments import TrainArguments
    from musicgen_dreamboothing.demo.recipe import Recipe
    from musicgen_dreamboothing.training.train import train

    recipe, folder = Recipe(), Path(options.folder)
    result = train(
        TrainArguments(
            dataset_name=str(folder / "data"),
            output_dir=str(folder / options.variant),
            model_name_or_path=str(recipe.base),
            instance_prompt=recipe.word,
            quantization=VARIANTS[options.variant],
            dtype=DTYPE,
            recompute="none",
            max_steps=options.updates,
            learning_rate=recipe.learning_rate,
            per_device_train_batch_size=recipe.batch_size,
            gradient_accumulation_steps=1,
            eval_strategy="no",
            save_strategy="no",
            final_report="false",
            use_cpu=options.device == "cpu",
        )
    )
    assert result is not None
    return {"before": result.summary["loss_before"], "after": result.metrics["eval_loss"]}


if __name__ == "__main__":
    main()
