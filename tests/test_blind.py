"""Blind listening: what the page gives away (nothing), what a browser saves, and how answers are counted."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import Page, browse, needs_nothing

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.analysis.loudness import loudness
from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.evaluation.blind import BlindResult, Preference, blind_lines, score_blind, write_blind
from musicgen_dreamboothing.evaluation.metrics.statistics import binomial_interval
from musicgen_dreamboothing.evaluation.result import NEUTRAL, STYLE, Pair

RATE = 8_000
HOSTILE = """Näïve <script>alert("x")</script> & 'Loud' {{ 7 * 6 }} 夜"""
PITCHES = {"base": 300.0, "tuned": 500.0}


def tone(hertz: float, peak: float) -> audio.Wave:
    time = np.arange(RATE) / RATE
    return (peak * np.sin(2 * np.pi * hertz * time)).astype(np.float32)[None]


def pitch(wave: audio.Wave) -> float:
    return float(np.abs(np.fft.rfft(wave[0])).argmax() * RATE / wave.shape[1])


def write_test(folder: Path, style: int = 3, neutral: int = 2, seed: int = 0) -> Path:
    """A page of pairs in which both sides can be told by pitch, and the base is far quieter."""
    folder.mkdir(exist_ok=True)
    audio.write(folder / "one.flac", tone(PITCHES["base"], 0.02), RATE)
    audio.write(folder / "two.flac", tone(PITCHES["tuned"], 0.9), RATE)
    kinds = [STYLE] * style + [NEUTRAL] * neutral
    pairs = [
        Pair(f"prompt {number} {HOSTILE}", kind, number, "one.flac", "two.flac") for number, kind in enumerate(kinds)
    ]
    return write_blind(folder, pairs, HOSTILE, seed)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def answer(folder: Path, wish: str = "tuned", unsure: int = 0) -> Path:
    """Answers as the page saves them: one and the same model everywhere, but `unsure` in the first pairs."""
    key = read(folder / "blind_key.json")
    answers: dict[str, dict[str, str]] = {}
    for number, row in enumerate(key["pairs"]):
        side = "same" if number < unsure else next(side for side in ("A", "B") if row[side] == wish)
        answers[str(row["pair"])] = {"prompt": side} | ({"style": side} if row["kind"] == STYLE else {})
    path = folder / "blind_answers.json"
    path.write_text(json.dumps({"test": key["test"], "answers": answers}), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("blind")
    assert write_test(path) == path / "blind.html"
    return path


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "blind.html").read_text(encoding="utf-8"))


def sounds(page: Page) -> list[audio.Wave]:
    return [audio.decode(base64.b64decode(one["src"].partition("base64,")[2]), RATE) for one in page.all("audio")]


def test_the_page_needs_nothing_beside_it(page: Page) -> None:
    needs_nothing(page)


def test_each_pair_has_two_players_and_its_questions(page: Page) -> None:
    labels = [player["aria-label"] for player in page.all("audio")]
    assert labels == [f"{side} of pair {number}" for number in range(1, 6) for side in "AB"]
    assert page.words.count(f"Which sounds more like {HOSTILE}?") == 3
    assert page.words.count("Which fits the prompt better?") == 5
    radios = page.all("input")
    assert len(radios) == 8 * 3
    assert len({radio["name"] for radio in radios}) == 8
    assert {radio["value"] for radio in radios} == {"A", "B", "same"}
    assert all(f"prompt {number} {HOSTILE}" in page.words for number in range(5))


def test_the_key_tells_the_sides_as_they_are_heard(page: Page, folder: Path) -> None:
    rows = read(folder / "blind_key.json")["pairs"]
    heard = iter(sounds(page))
    for row in rows:
        for side in "AB":
            assert pitch(next(heard)) == pytest.approx(PITCHES[row[side]], abs=3)
    assert sorted(row["variation"] for row in rows) == list(range(5))


def test_the_page_gives_nothing_away(folder: Path) -> None:
    text = (folder / "blind.html").read_text(encoding="utf-8").partition("<main>")[2].partition("<script>")[0]
    page = Page(text.partition("</main>")[0])
    told = [page.words, *(value for _, given in page.tags for name, value in given.items() if name != "src")]
    for word in ("base", "tuned", "one.flac", "two.flac", "before", "after"):
        assert not [one for one in told if word in one]


def test_sides_and_order_are_drawn_by_the_seed(tmp_path: Path) -> None:
    keys, pages = [], []
    for seed in (1, 1, 2):
        pages.append(write_test(tmp_path, style=8, neutral=0, seed=seed).read_bytes())
        keys.append(read(tmp_path / "blind_key.json")["pairs"])
    assert keys[0] == keys[1] != keys[2]
    assert pages[0] == pages[1] != pages[2]
    assert {row["A"] for row in keys[0]} == {"base", "tuned"}
    assert [row["variation"] for row in keys[0]] != sorted(row["variation"] for row in keys[0])


def test_both_sides_are_equally_loud(page: Page) -> None:
    levels = [loudness(wave, RATE) for wave in sounds(page)]
    assert levels == pytest.approx([levels[0]] * len(levels), abs=0.5)
    assert levels[0] > -20


def test_silence_stays_silent_and_leaves_the_other_side_alone(tmp_path: Path) -> None:
    audio.write(tmp_path / "one.flac", tone(300, 0.5), RATE)
    audio.write(tmp_path / "two.flac", tone(300, 0.0), RATE)
    path = write_blind(tmp_path, [Pair("x", STYLE, 0, "one.flac", "two.flac")], "punk", 0)
    loudest, silent = sorted(sounds(Page(path.read_text(encoding="utf-8"))), key=lambda wave: -np.abs(wave).max())
    assert loudness(loudest, RATE) > -20
    assert audio.is_silent(silent)


@pytest.mark.parametrize(
    ("wish", "unsure", "style", "prompt"),
    [
        ("tuned", 0, (3, 0, 0), (5, 0, 0)),
        ("base", 0, (0, 3, 0), (0, 5, 0)),
        ("tuned", 5, (0, 0, 3), (0, 0, 5)),
    ],
)
def test_answers_are_counted(
    folder: Path, wish: str, unsure: int, style: tuple[int, int, int], prompt: tuple[int, int, int]
) -> None:
    found = score_blind(folder, answer(folder, wish, unsure))
    assert found.pairs == 5
    for one, (tuned, base, same) in ((found.style, style), (found.prompt, prompt)):
        assert (one.tuned, one.base, one.unsure) == (tuned, base, same)
        decided = tuned + base
        assert one.share == (tuned / decided if decided else None)
        assert one.interval == (binomial_interval(tuned, decided) if decided else None)


def test_who_could_not_tell_is_left_out_of_the_share(folder: Path) -> None:
    found = score_blind(folder, answer(folder, "tuned", 2)).prompt
    assert (found.tuned, found.base, found.unsure, found.share) == (3, 0, 2, 1.0)


def spoil(folder: Path, change: dict[str, Any]) -> Path:
    path = answer(folder)
    path.write_text(json.dumps(read(path) | change), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"test": "0123"}, "belongs to another page"),
        ({"answers": {}}, r"lacks answers to 5 pairs \(1, 2, 3, 4, 5\); finish the page"),
        ({"answers": []}, "aren't what blind.html saves"),
        ({"answers": {"1": "A"}}, "pair 1 aren't what blind.html saves"),
        ({"answers": {"1": {"prompt": "C", "style": "C"}}}, "pair 1: 'C' is no answer; it takes A, B or same"),
        ({"answers": {"1": {"prompt": [], "style": []}}}, r"pair 1: \[\] is no answer"),
    ],
)
def test_wrong_answers_are_named(folder: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        score_blind(folder, spoil(folder, change))
    assert "\n" not in str(error.value)


def test_half_an_answer_is_an_answer_missing(folder: Path) -> None:
    path = answer(folder)
    given = read(path)
    number = next(row["pair"] for row in read(folder / "blind_key.json")["pairs"] if row["kind"] == STYLE)
    del given["answers"][str(number)]["style"]
    path.write_text(json.dumps(given), encoding="utf-8")
    with pytest.raises(UserError, match=rf"lacks answers to 1 pair \({number}\)"):
        score_blind(folder, path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"test": "x"}', "null"])
def test_other_files_are_no_answers(folder: Path, tmp_path: Path, content: str) -> None:
    path = tmp_path / "odd.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"odd\.json .*save") as error:
        score_blind(folder, path)
    assert "\n" not in str(error.value)


def test_missing_files_and_pairs_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.json"):
        score_blind(folder, tmp_path / "gone.json")
    with pytest.raises(UserError, match=r"blind_key\.json"):
        score_blind(tmp_path, answer(folder))
    with pytest.raises(UserError, match="no pairs to listen to"):
        write_blind(tmp_path, [], "punk", 0)
    with pytest.raises(UserError, match=r"gone\.wav is missing"):
        write_blind(tmp_path, [Pair("x", STYLE, 0, "gone.wav", "gone.wav")], "punk", 0)
    assert list(tmp_path.iterdir()) == []


def test_the_result_claims_no_more_than_its_interval() -> None:
    nothing = Preference(0, 0, 0, None, None)
    clear = Preference(11, 1, 2, 11 / 12, (0.65, 0.99))
    result = BlindResult(14, clear, replace(clear, share=0.5, interval=(0.2, 0.8), unsure=0))
    first, second = blind_lines(result, "punk")
    assert first == (
        "For sounding more like punk the fine-tuned model was chosen in 11 of 12 (65 to 99 %), more than chance; "
        "in 2 pairs no difference was reported."
    )
    assert second.endswith("(20 to 80 %), which may be chance.")
    assert "less than chance" in blind_lines(BlindResult(9, nothing, replace(clear, interval=(0.1, 0.4))), "punk")[0]
    assert blind_lines(BlindResult(1, nothing, replace(nothing, unsure=1)), "punk") == [
        "For fitting the prompt better no difference was reported in 1 pair."
    ]


CLICKS = """<script>
for (const radio of radios) if (radio.value === (radio.dataset.pair === "1" ? "same" : "A")) radio.click();
const kept = localStorage.getItem("blind-" + test);
document.body.dataset.left = document.getElementById("left").textContent;
document.body.dataset.locked = document.getElementById("save").disabled;
document.body.dataset.done = document.querySelectorAll("article.done").length;
for (const radio of radios) radio.checked = false;
restore();
document.body.dataset.restored = radios.filter((radio) => radio.checked).length;
let saved = null; // what the button would write
URL.createObjectURL = (blob) => { saved = blob; return "#"; };
HTMLAnchorElement.prototype.click = function () { document.body.dataset.name = this.download; };
document.getElementById("save").click();
document.body.dataset.kept = kept;
saved.text().then((text) => { document.body.dataset.saved = text; });
</script></body>"""


def test_a_browser_keeps_and_saves_the_answers(tmp_path: Path) -> None:
    path = write_test(tmp_path)
    clean = path.read_text(encoding="utf-8")
    body = Page(browse(path, tmp_path / "profile", "--dump-dom")).all("button")[0]
    assert "disabled" in body
    path.write_text(clean.replace("</body>", CLICKS), encoding="utf-8")
    seen = browse(path, tmp_path / "profile", "--dump-dom", "--virtual-time-budget=2000")
    state = Page(seen).all("body")[0]
    assert state["data-left"].startswith("All answered.")
    assert (state["data-locked"], state["data-done"]) == ("false", "5")
    assert state["data-restored"] == "8"
    assert state["data-name"] == "blind_answers.json"
    assert json.loads(state["data-kept"]) == json.loads(state["data-saved"])
    answers = tmp_path / "saved.json"
    answers.write_text(state["data-saved"], encoding="utf-8")
    found = score_blind(tmp_path, answers)
    rows = read(tmp_path / "blind_key.json")["pairs"]
    assert (found.prompt.tuned, found.prompt.unsure) == (sum(row["A"] == "tuned" for row in rows[1:]), 1)
