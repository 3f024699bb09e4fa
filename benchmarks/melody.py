"""Whether a fine-tuned melody checkpoint still follows melodies: the tiny one, with LoRA on music it does not know.

    python benchmarks/melody.py --folder WORK      # makes the checkpoint there, once: about 20 minutes on one core
    python benchmarks/melody.py --folder WORK --material songs

Two adapters learn the same clips: one with each clip's melody (`--melody self`), one without (`none`). The clips are
tunes of an instrument that the base does not know (`style`), or the songs in assets/songs (`songs`), which are so far
from its tunes that it has to learn everything anew. Base and adapters then generate the same clips: of melodies that
the base never had, with its captions (`tunes`), and of held-out clips of the new music. The table has the chroma cosine
with the melody that was asked for, and with those of the other clips (`shuffled`): what clips have that follow none.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import _common

MELODY = "melody"
BASE, SELF, NONE = "base", "LoRA, --melody self", "LoRA, --melody none"
MODES = {SELF: "self", NONE: "none"}
ENOUGH = 0.9  # of the base's margin over shuffled melodies
TOOL = Path(__file__).parents[1] / "tools" / "tiny" / "make_melody.py"
HELD_OUT_SEED, STYLE_TUNES = 1, 96
LEARNING_RATE, BATCH, MELODY_DROPOUT = 5e-4, 4, 0.2


@dataclass(frozen=True)
class Row:
    """Chroma cosines of one model's clips with one set of melodies."""

    model: str
    melodies: str
    clips: int
    asked: float
    shuffled: float

    @property
    def margin(self) -> float:
        return self.asked - self.shuffled


def main() -> None:
    _common.play(_options(), _compare, _measure)


def _options() -> argparse.Namespace:
    parser = _common.options(__doc__)
    parser.add_argument("--folder", help="keep everything here; the same call again goes on")
    parser.add_argument(
        "--steps", type=int, help="updates of the checkpoint; by default those of tools/tiny/melody.yaml"
    )
    parser.add_argument("--tunes", type=int, help="that it is trained on; by default as many as the tool makes")
    parser.add_argument("--material", choices=("style", "songs"), default="style", help="what the adapters learn")
    parser.add_argument("--updates", type=int, default=60, help="of each adapter")
    parser.add_argument("--clips", type=int, default=24, help="generated for each set of melodies")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def _compare(options: argparse.Namespace) -> None:
    about = _common.run_variant(__file__, _common.PROBE)
    with tempfile.TemporaryDirectory() as scratch:
        result = _common.run_variant(__file__, MELODY, "--folder", options.folder or scratch)
    _common.show(f"chroma cosine, on {about['device']}", result["rows"])
    print("\n".join(result["conclusions"]))
    path = _common.keep(about, MELODY, f"{options.material}, {options.updates} updates", result)
    print(f"kept in {path.parent.name}/{path.name}")


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    from musicgen_dreamboothing.generation.generator import Generator

    folder = Path(options.folder)
    tool = _tool()
    made = {"tunes": options.tunes} if options.tunes else {}
    base = tool.make(folder / "tiny", steps=options.steps, seed=options.seed, **made)
    place = folder / options.material
    runs = {name: _trained(place / mode, base, mode, options) for name, mode in MODES.items()}
    sets = {"tunes": _tunes(tool.TIMBRES, HELD_OUT_SEED, options.clips)}
    if options.material == "style":
        sets["style"] = _tunes((_style(),), HELD_OUT_SEED + 1, options.clips)
    else:
        sets["songs"] = _songs(runs[SELF], base, options.clips)
    rows = []
    for name, model in {BASE: base, **runs}.items():
        generator = Generator(model, device=options.device)
        rows += [_scored(generator, place, name, kind, asked, options.seed) for kind, asked in sets.items()]
    return {"rows": [asdict(row) for row in rows], "conclusions": conclusions(rows)}


def _tool() -> Any:
    """tools/tiny/make_melody.py as a module."""
    if str(TOOL.parent) not in sys.path:
        sys.path.append(str(TOOL.parent))
    return importlib.import_module(TOOL.stem)


def _trained(run: Path, base: Path, mode: str, options: argparse.Namespace) -> Path:
    """An adapter on the new music, as far as it is not trained already."""
    from musicgen_dreamboothing.arguments import TrainArguments
    from musicgen_dreamboothing.demo.recipe import VALIDATION, Recipe
    from musicgen_dreamboothing.training.train import train

    tool, recipe = _tool(), Recipe()
    songs = recipe.songs
    if options.material == "style":
        songs = run.parent / "music"
        tool.write_tunes(songs, STYLE_TUNES, HELD_OUT_SEED + 2, (_style(),))
    held_out = {"eval_split_name": VALIDATION} if options.material == "songs" else {"eval_fraction": 0.0}
    train(
        TrainArguments(
            dataset_name=str(songs),
            prepared_dir=str(run.parent / "prepared"),
            output_dir=str(run),
            model_name_or_path=str(base),
            instance_prompt=recipe.word,
            **held_out,
            max_duration_in_seconds=tool.SECONDS,
            min_duration_in_seconds=tool.SECONDS / 2,
            normalize_loudness=options.material == "style",  # as of the base's tunes; the codec knows the songs' level
            melody=mode,
            melody_dropout=MELODY_DROPOUT,
            max_steps=options.updates,
            learning_rate=LEARNING_RATE,
            per_device_train_batch_size=BATCH,
            gradient_accumulation_steps=1,
            recompute="none",
            eval_strategy="no",
            save_strategy="no",
            logging_steps=max(1, options.updates // 6),
            seed=options.seed,
            final_report="false",
        )
    )
    return run


def _style() -> Any:
    """The instrument that the adapters learn."""
    return _tool().Timbre("lead guitar", (1.0, 0.4, 0.3, 0.2, 0.15), 0.4)


def _tunes(timbres: Sequence[Any], seed: int, number: int) -> list[Any]:
    """Melodies of tunes that no model was trained on, with their captions."""
    import numpy as np
    import torch

    from musicgen_dreamboothing.evaluation.melodies import AskedMelody
    from musicgen_dreamboothing.model.chroma import chroma_classes

    tool = _tool()
    asked, bpms = [], list(tool.NOTE_FRAMES)
    for index in range(number):
        timbre, bpm = timbres[index % len(timbres)], bpms[index // len(timbres) % len(bpms)]
        wave = tool.tune(np.random.default_rng([seed, index]), timbre, tool.NOTE_FRAMES[bpm])
        classes = chroma_classes(torch.from_numpy(wave)[None], tool.RATE).numpy()
        asked.append(AskedMelody(tool.caption(timbre, bpm), f"tune {index}", classes))
    return asked


def _songs(run: Path, base: Path, number: int) -> list[Any]:
    """Melodies of clips of the held-out songs, with their captions."""
    from musicgen_dreamboothing.data.run_record import read_record
    from musicgen_dreamboothing.evaluation.melodies import asked_melodies, melodies_of_run
    from musicgen_dreamboothing.evaluation.references import prepared_folder, tables_of
    from musicgen_dreamboothing.hub import Source
    from musicgen_dreamboothing.model.checkpoint import load_checkpoint

    record, checkpoint = read_record(run), load_checkpoint(Source(str(base)))
    assert record is not None
    prepared = prepared_folder(run, record, None)
    tables, melodies = tables_of(record, prepared, lambda: checkpoint), melodies_of_run(record, prepared, checkpoint)
    seconds = max(tables.held_out["seconds"])
    return asked_melodies(tables, melodies, checkpoint, lambda codes: codes.numpy(), seconds, most=number)


def _scored(generator: Any, folder: Path, model: str, kind: str, asked: list[Any], seed: int) -> Row:
    from musicgen_dreamboothing.evaluation.clips import ClipPlan
    from musicgen_dreamboothing.evaluation.melodies import generate_melody_clips
    from musicgen_dreamboothing.evaluation.metrics.melody import melody_scores

    seconds = _tool().SECONDS
    place, plan = folder / "clips" / f"{MODES.get(model, model)}-{kind}", ClipPlan((), 1, seconds, seed)
    clips = generate_melody_clips(generator, place, asked, plan, model, batch_size=None)
    scores = melody_scores(clips, [one.classes for one in asked], [one.song for one in asked])
    return Row(model, kind, len(asked), float(scores.asked.mean()), float(scores.shuffled.mean()))


def conclusions(rows: list[Row]) -> list[str]:
    """What the margins over shuffled melodies say, in sentences."""
    lines = []
    for kind in dict.fromkeys(row.melodies for row in rows):
        margins = {row.model: row.margin for row in rows if row.melodies == kind}
        for name in (SELF, NONE):
            share = margins[name] / margins[BASE] if margins[BASE] > 0 else float("nan")
            verdict = "at least" if share >= ENOUGH else "less than"
            lines.append(
                f"{kind}: {name} keeps {100 * share:.0f} % of the base's margin, {verdict} {100 * ENOUGH:.0f} %"
            )
    return lines


if __name__ == "__main__":
    main()
