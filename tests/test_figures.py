"""Figures of drift and variety from clips to the sentences about them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from figure_data import data_of

from musicgen_dreamboothing.evaluation.collect import EvaluationData, Losses
from musicgen_dreamboothing.evaluation.figures import ONE_TAKE, _diversity, _drift, _losses, collapsed_prompts
from musicgen_dreamboothing.evaluation.result import NEUTRAL, STYLE, Figure, Originality
from musicgen_dreamboothing.evaluation.verdict import direction, verdict

TAKES = 4


def neutral_data(tuned: np.ndarray | None = None, prompts: int = 4, kind: str = NEUTRAL) -> EvaluationData:
    """Clips of a base whose prompts differ, and of a model that gives `tuned` (as the base with other seeds)."""
    rng = np.random.default_rng(0)
    centres = np.repeat(3 * rng.standard_normal((prompts, 6)), TAKES, axis=0)
    base, again = (centres + rng.standard_normal((prompts * TAKES, 6)) for _ in range(2))
    songs = np.ones((2, 6)) if kind == NEUTRAL else rng.standard_normal((2, 6))
    return data_of(base, again if tuned is None else tuned, songs, TAKES, kind)


def figures(data: EvaluationData, kind: str = NEUTRAL) -> dict[str, Figure]:
    key = "diversity" if kind == STYLE else "neutral_diversity"
    return {"drift": _drift(data), "variety": _diversity(data, kind, key)}


def second(found: dict[str, Figure]) -> str:
    return verdict(list(found.values()), [], Originality(), "punk")[1]


def test_another_seed_is_no_change() -> None:
    found = figures(neutral_data())
    assert abs(found["drift"].tuned or 9) < 0.6
    assert found["drift"].goal == 0
    assert direction(found["variety"]) == "unclear"
    assert "changed, too" not in second(found)
    assert collapsed_prompts(neutral_data()) == []


def test_sixteen_clips_of_one_sound_are_told() -> None:
    """Whose songs are all the same, too, as of an only song."""
    data = neutral_data(np.ones((16, 6)))
    found = figures(data)
    assert (found["drift"].tuned or 0) > 3
    assert (found["variety"].base, found["variety"].tuned, direction(found["variety"])) == (1, 0, "worse")
    said = second(found)
    assert "other music changed, too: drift" in said
    assert "clips of other music differ less than half as much as before" in said
    assert collapsed_prompts(data) == [f"neutral {number}" for number in range(4)]


def test_one_sound_for_each_prompt_is_told() -> None:
    data = neutral_data(np.repeat(neutral_data().vectors.base[::TAKES], TAKES, axis=0))
    assert (figures(data)["drift"].tuned or 0) > 1
    assert len(collapsed_prompts(data)) == 4


def test_the_same_varied_music_for_all_prompts_is_told() -> None:
    found = figures(neutral_data(np.random.default_rng(1).standard_normal((16, 6))))
    assert (found["drift"].tuned or 0) > 1
    assert direction(found["variety"]) == "worse"


def test_style_prompts_that_collapse_are_told() -> None:
    data = neutral_data(np.ones((16, 6)), kind=STYLE)
    assert (figures(data, STYLE)["variety"].tuned, len(collapsed_prompts(data))) == (0, 4)


@pytest.mark.parametrize("prompts", [1, 2])
def test_few_prompts_tell_a_value_without_an_interval(prompts: int) -> None:
    found = figures(neutral_data(prompts=prompts))
    assert found["drift"].tuned is not None
    assert found["drift"].tuned_interval is None
    assert found["drift"].is_rough
    assert "whether other music changed is unclear" in second(found)


def test_many_prompts_are_not_called_rough() -> None:
    assert not figures(neutral_data(prompts=6))["drift"].is_rough


def test_one_take_can_not_be_told_from_chance() -> None:
    rows = np.random.default_rng(0).standard_normal((4, 6))
    data = data_of(rows, rows + 1, rows, 1, NEUTRAL)
    for figure in figures(data).values():
        assert (figure.tuned, figure.reason) == (None, ONE_TAKE)
    assert collapsed_prompts(data) == []


def test_a_base_without_variety_is_no_measure() -> None:
    rows = np.random.default_rng(0).standard_normal((16, 6))
    data = data_of(np.ones((16, 6)), rows, rows, TAKES, NEUTRAL)
    for figure in figures(data).values():
        assert figure.tuned is None
        assert "all takes of the base sound the same" in figure.reason
    assert collapsed_prompts(data) == []


@pytest.mark.parametrize(("sides", "last"), [((), "codebook 8 of 8"), (("left", "right"), "codebook 8 of 8 (right)")])
def test_losses_are_named_by_side_and_codebook(sides: tuple[str, ...], last: str) -> None:
    rng = np.random.default_rng(0)
    count = np.full((4, 8), 50.0)
    losses = Losses(count * rng.uniform(3, 4, (4, 8)), count * rng.uniform(2, 3, (4, 8)), count, list("abcd"), sides)
    titles = {figure.key: figure.title for figure in _losses(replace(neutral_data(), losses=losses))}
    assert list(titles)[:2] == ["loss", "ppl"]
    assert (titles["ce_q8"], titles["ppl_q8"]) == (f"loss, {last}", f"perplexity, {last}")
    expected = {f"ce_{side}": f"loss, {side} channel" for side in sides}
    assert {key: title for key, title in titles.items() if key in ("ce_left", "ce_right")} == expected
