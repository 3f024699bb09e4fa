"""What the card of a finished run says, from `run.json`, the evaluation report and the samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.data.run_record import RunRecord
from musicgen_dreamboothing.data.tokens.split import Split
from musicgen_dreamboothing.evaluation.report import read_report
from musicgen_dreamboothing.evaluation.result import LOSS_PARTS, STYLE, Evaluation, Figure
from musicgen_dreamboothing.sharing.card import CardFacts, Listening, Player
from musicgen_dreamboothing.training.record import changed_values
from musicgen_dreamboothing.training.samples import FOLDER as SAMPLES
from musicgen_dreamboothing.training.samples import LISTING

EVALUATION = "evaluation"


def facts_of_record(record: RunRecord | None, name: str, *, is_adapter: bool, songs_licence: str | None) -> CardFacts:
    """The facts of a run; most are empty without its record, as of an adapter that was made elsewhere.

    Args:
        record: of the run.
        name: of the repository.
        is_adapter: whether it is one, or a full fine-tune.
        songs_licence: what the card says of the songs.
    """
    if record is None:
        return CardFacts(name, is_adapter, None, [], 0, 0.0, 0, {}, None, {}, songs_licence)
    split = Split("", [], []) if record.clips is None else Split.from_json(record.clips)
    options = {key: without_path(value) for key, value in changed_values(record.options).items()}
    return CardFacts(
        name=name,
        is_adapter=is_adapter,
        instance_prompt=record.options.get("instance_prompt"),
        captions=list(dict.fromkeys(str(row["text"]) for row in split.train)),
        songs=len({row["source"] for row in split.train}),
        minutes=sum(float(row["seconds"]) for row in split.train) / 60,
        held_out_songs=len({row["source"] for row in split.held_out}),
        metrics={key: value for key, value in record.summary.items() if key.startswith("eval_")},
        init_adapter=without_path(record.options.get("init_adapter")),
        options=options,
        songs_licence=songs_licence,
    )


def without_path(value: Any) -> Any:
    """A folder of this machine by its last name: a card is made to be shared."""
    return Path(value).name if isinstance(value, str) and Path(value).exists() else value


def listening_of(run: Path, players: int) -> Listening | None:
    """Clips of the base and of the run with the same prompts and seeds, and the report's verdict; None without any.

    Args:
        run: folder of the run.
        players: how many pairs, at most.
    """
    try:
        report = read_report(run / EVALUATION)
    except UserError:
        return _from_samples(run, players)
    return _from_report(run / EVALUATION, report, players)


def _from_report(folder: Path, report: Evaluation, players: int) -> Listening:
    pairs = sorted(report.pairs, key=lambda pair: (pair.variation, pair.kind != STYLE))
    whole = [pair for pair in pairs if (folder / pair.base_file).is_file() and (folder / pair.tuned_file).is_file()]
    shown = [Player(pair.prompt, pair.variation, folder / pair.base_file, folder / pair.tuned_file) for pair in whole]
    settings = report.settings
    return Listening(
        players=shown[:players],
        seed=int(settings["seed"]),
        seconds=float(settings["seconds"]),
        options={name: settings[name] for name in ("guidance_scale", "temperature", "top_k") if name in settings},
        variations=int(settings["variations"]),
        verdict=report.verdict,
        figures=[_row(figure) for figure in report.figures if not figure.key.startswith(LOSS_PARTS)],
    )


def _row(figure: Figure) -> tuple[str, str, str]:
    """Title, before and after as texts; a share is in percent."""

    def text(value: float | None) -> str:
        if value is None:
            return "–"
        return f"{value:.0%}" if figure.unit == "%" else f"{value:.3g} {figure.unit}".strip()

    return figure.title, text(figure.base), text(figure.tuned)


def _from_samples(run: Path, players: int) -> Listening | None:
    """The samples of the first and the last step, which `train --sample_prompts` makes."""
    steps = sorted((run / SAMPLES).glob(f"step_*/{LISTING}"), key=lambda path: int(path.parent.name.split("_")[1]))
    if len(steps) < 2 or int(steps[0].parent.name.split("_")[1]) != 0:
        return None
    first, last = steps[0].parent, steps[-1].parent
    try:
        facts = json.loads(steps[-1].read_text(encoding="utf-8"))
        prompts, seed, seconds = dict(facts["prompts"]), int(facts["seed"]), float(facts["seconds"])
        options = {name: facts["sampling"][name] for name in ("guidance_scale", "temperature", "top_k")}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{steps[-1]} is damaged ({error!r}); delete {run / SAMPLES} to push without players"
        ) from error
    shown = [Player(prompt, 0, first / name, last / name) for name, prompt in prompts.items()]
    shown = [player for player in shown if player.before.is_file() and player.after.is_file()]
    return Listening(shown[:players], seed, seconds, options, variations=1)
