"""Options of `demo`."""

from __future__ import annotations

from dataclasses import dataclass

from musicgen_dreamboothing.arguments.fields import option


@dataclass
class DemoArguments:
    """Options of `demo`."""

    output_dir: str = option("demo", "Where everything goes.")
    seed: int = option(0, "Of the training and the music.", at_least=0, at_most=2**31)
    restart: bool = option(False, "Train anew instead of keeping what is in OUTPUT_DIR.")
