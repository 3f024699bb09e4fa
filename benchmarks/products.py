"""Which way round a product of few rows is faster: `x @ W.T`, or `(W @ x.T).T`, over the weights of a decoding step.

    python benchmarks/products.py
    python benchmarks/products.py --rows 2 8 16 --width 1536

The weights of a layer of musicgen-small in fp32, so many copies that no cache holds them. A step under guidance has two
rows for each clip. One should see milliseconds of a layer both ways, and from how many rows on the second one wins: the
engine's `TURNED`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import _common

PRODUCTS = "products"
COPIES, ROUNDS = 12, 5


def main() -> None:
    _common.play(_options(), _compare, _measure)


def _options() -> argparse.Namespace:
    parser = _common.options(__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 3, 4, 6, 8, 16, 32, 64, 128])
    parser.add_argument("--width", type=int, default=1024, help="of the model")
    return parser.parse_args()


def _compare(options: argparse.Namespace) -> None:
    about = _common.run_variant(__file__, _common.PROBE, *_common.ON_THE_CPU)
    rows = _common.run_variant(__file__, PRODUCTS)["rows"]
    _common.show(f"products of a layer on {about['device']}", rows)
    path = _common.keep(about, "products", f"width {options.width}", {"rows": rows})
    print(f"kept in {path.parent.name}/{path.name}")


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    import torch
    from torch.nn import functional

    width = options.width
    shapes = [(3 * width, width), (4 * width, width), (width, 4 * width), *[(width, width)] * 3]
    layers = [[torch.randn(shape) for shape in shapes] for _ in range(COPIES)]
    found = []
    with torch.inference_mode():
        for rows in options.rows:
            sides = {side: torch.randn(rows, side) for side in (width, 4 * width)}
            plain = _milliseconds(layers, lambda weight, x=sides: functional.linear(x[weight.shape[1]], weight))
            turned = _milliseconds(layers, lambda weight, x=sides: (weight @ x[weight.shape[1]].mT).mT)
            found.append({"rows": rows, "x @ W.T": plain, "(W @ x.T).T": turned, "ratio": plain / turned})
    return {"rows": found}


def _milliseconds(layers: list[list[Any]], product: Callable[[Any], Any]) -> float:
    """Of one layer, the best of some rounds over all of them."""
    took = []
    for _ in range(1 + ROUNDS):
        started = time.perf_counter()
        for layer in layers:
            for weight in layer:
                product(weight)
        took.append(time.perf_counter() - started)
    return 1000 * min(took[1:]) / len(layers)


if __name__ == "__main__":
    main()
