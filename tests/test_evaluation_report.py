"""The report of an evaluation: its verdict, `report.json`, and the page, read by a parser and by a real browser."""

from __future__ import annotations

import base64
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_music import music
from pages import Page, browse, needs_nothing
from PIL import Image

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.evaluation import report
from musicgen_dreamboothing.evaluation.report import read_report, write_report
from musicgen_dreamboothing.evaluation.result import (
    HIGHER,
    LOWER,
    NEITHER,
    NEUTRAL,
    STYLE,
    CopyCounts,
    Curve,
    Evaluation,
    Figure,
    Nearest,
    Originality,
    Pair,
)
from musicgen_dreamboothing.evaluation.verdict import direction, verdict

RATE = 8_000
SECONDS = 6
HOSTILE = """Näïve <script>alert("x")</script> & 'Loud' {{ 7 * 6 }} 夜"""


def write_clips(folder: Path, count: int, seconds: float = SECONDS) -> list[str]:
    """Files of different music, relative to the folder."""
    for number in range(count):
        (folder / "clips").mkdir(parents=True, exist_ok=True)
        audio.write(folder / "clips" / f"{number}.flac", music(seconds, RATE, number), RATE)
    return [f"clips/{number}.flac" for number in range(count)]


def figure(
    key: str, tuned: float | None = 1.0, *, base: float | None = 1.0, better: str = HIGHER, **more: object
) -> Figure:
    return Figure(key, f"title of {key}", better, base, tuned, **more)  # type: ignore[arg-type]


GAP = figure("style_gap_closed", 0.64, base=None, unit="%", goal=1.0, tuned_interval=(0.52, 0.75), clips=9)
LOSS = figure("loss", 3.1, base=3.4, better=LOWER, unit="nats", change=(-0.33, -0.26), base_interval=(3.35, 3.46))
WORDS = figure("text_score", 0.31, base=0.30, change=(-0.01, 0.03))
DRIFT = figure("drift", 0.9, base=None, better=NEITHER, tuned_interval=(0.7, 1.1))


def near(is_copy: bool = False, strength: float = 0.4, song: str = "Last Bus", song_at: float = 41.7) -> Nearest:
    place = {"at": 2.0, "song": song, "clip_file": "", "clip_at": 1.0, "song_at": song_at, "seconds": 5.0}
    clip = {"file": "clips/1.flac", "prompt": "a prompt", "kind": STYLE}
    return Nearest(**place, score=0.9, strength=strength, by="codes", is_copy=is_copy, **clip)


def searched(flagged: int = 0, base: int = 0, generated: int = 32, **changes: Any) -> Originality:
    """All clips were searched by codes and by sound."""
    both = [CopyCounts(generated, generated, generated, count) for count in (base, flagged)]
    usual = Originality(*both, style_clips=generated, clips=28, songs=14, clips_by_sound=28, songs_by_sound=14)
    return replace(usual, **changes)


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Evaluation]:
    """A written report of two style prompts, one with two takes, and a neutral one; a copy; and hostile words."""
    folder = tmp_path_factory.mktemp("report") / "Näïve & Loud"
    clips = write_clips(folder, 8)
    pairs = [
        Pair(HOSTILE, STYLE, 0, clips[0], clips[1], notes={"tempo": HOSTILE}),
        Pair("plain punk", STYLE, 0, clips[2], clips[3]),
        Pair("plain punk", STYLE, 1, clips[4], clips[5]),
        Pair("a waltz", NEUTRAL, 0, clips[6], clips[7]),
    ]
    copy = replace(near(True, 7.3, HOSTILE), clip_file=clips[2], prompt=HOSTILE)
    codebooks = [replace(LOSS, key=f"ce_q{number}", title=f"codebook {number}") for number in (1, 2)]
    missing = replace(WORDS, base=None, tuned=None, change=None, reason=f"No CLAP here: {HOSTILE}", source=HOSTILE)
    curves = [
        Curve("held-out loss", [0, 10, 20], [3.4, 3.2, 3.1]),
        Curve("flat", [5], [0.0]),
        Curve("nothing", [], []),
    ]
    found = Evaluation(
        run=HOSTILE,
        base_model="facebook/musicgen-small",
        word=HOSTILE,
        embedding=HOSTILE,
        verdict=verdict([GAP, LOSS], [copy, near()], searched(1), HOSTILE),
        best="",
        figures=[GAP, LOSS, *codebooks, DRIFT, missing],
        pairs=pairs,
        nearest=[near(), copy],
        curves=curves,
        settings={"prompts": [HOSTILE, "plain punk"], "seeds": [0, 1], "versions": {"torch": "2.13"}, "seconds": 6},
        notes=[HOSTILE],
        originality=searched(1, not_checked=[HOSTILE]),
    )
    assert write_report(folder, found) == folder / "report.html"
    return folder, found


@pytest.fixture(scope="module")
def page(evaluation: tuple[Path, Evaluation]) -> Page:
    return Page((evaluation[0] / "report.html").read_text(encoding="utf-8"))


def test_it_is_read_back_as_it_was(evaluation: tuple[Path, Evaluation]) -> None:
    folder, found = evaluation
    assert read_report(folder) == found
    assert {path.name for path in folder.iterdir()} == {"clips", "report.json", "report.html"}  # no temporary file


def test_what_is_not_finite_is_null_in_json(tmp_path: Path, evaluation: tuple[Path, Evaluation]) -> None:
    torn = Curve("loss", [0, 1, 2], [3.0, math.nan, 2.0])
    odd = replace(LOSS, tuned=math.inf, base=math.nan, change=(math.nan, math.nan))
    write_report(tmp_path, replace(evaluation[1], figures=[odd], pairs=[], nearest=[], curves=[torn]))

    def refuse(name: str) -> None:
        raise AssertionError(name)

    json.loads((tmp_path / "report.json").read_text(encoding="utf-8"), parse_constant=refuse)
    back = read_report(tmp_path)
    assert back.figures[0].tuned is back.figures[0].base is None
    np.testing.assert_array_equal(back.curves[0].values, torn.values)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "holds no report.json; make one"),
        *(
            (content, "is no report of this version")
            for content in ("{", "{}", '{"figures": [{"key": 1}]}', "[]", "\udcff")
        ),
    ],
)
def test_a_report_that_cannot_be_read_is_named(tmp_path: Path, content: str | None, reason: str) -> None:
    if content is not None:
        (tmp_path / "report.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=reason) as error:
        read_report(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_clip_is_named_and_the_old_report_stays(tmp_path: Path, evaluation: tuple[Path, Evaluation]) -> None:
    (tmp_path / "report.json").write_text("old", encoding="utf-8")
    with pytest.raises(UserError, match=r"clips/0\.flac is missing"):
        write_report(tmp_path, evaluation[1])
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    assert (tmp_path / "report.json").read_text(encoding="utf-8") == "old"


def test_the_page_needs_nothing_beside_it(page: Page) -> None:
    needs_nothing(page)


def test_the_page_has_its_sections_in_order(page: Page) -> None:
    ids = [given["id"] for _, given in page.tags if "id" in given]
    assert ids == ["verdict", "listen", "figures", "curves", "original", "settings", "notes"]
    assert len(page.all("li")) == 3 + 1  # the verdict's sentences and a note


def test_every_clip_has_one_player_and_one_picture(page: Page) -> None:
    labels = [player["aria-label"] for player in page.all("audio")]
    prompts = [HOSTILE, "plain punk", "plain punk", "a waltz"]
    pairs = [f"{side}: {prompt}" for prompt in prompts for side in ("before", "after")]
    assert labels == [*pairs, f"new clip: {HOSTILE}", f"your song: {HOSTILE}"]
    assert [picture["alt"] for picture in page.all("img")] == [f"Spectrogram, {label}" for label in labels]
    assert page.words.count("1 more take of this prompt") == 1


def test_players_play_their_clips(page: Page, evaluation: tuple[Path, Evaluation]) -> None:
    folder, _ = evaluation
    sounds = [
        audio.decode(base64.b64decode(player["src"].partition("base64,")[2]), RATE) for player in page.all("audio")
    ]
    for number, sound in enumerate(sounds[:8]):
        assert sound.shape[1] / RATE == pytest.approx(SECONDS, abs=0.2)
        assert likeness(sound, audio.decode(folder / "clips" / f"{number}.flac", RATE)) > 0.9
    for sound, clip, start in zip(sounds[8:], (1, 2), (2.0, 1.0), strict=True):  # a near-copy begins at its place
        original = audio.decode(folder / "clips" / f"{clip}.flac", RATE)[:, int(start * RATE) :]
        assert sound.shape[1] / RATE == pytest.approx(min(5, original.shape[1] / RATE), abs=0.2)
        assert likeness(sound, original) > 0.9


def likeness(one: audio.Wave, other: audio.Wave) -> float:
    """The highest correlation within the few hundredths of a second that mp3 may shift."""
    length = min(one.shape[1], other.shape[1])
    spectra = np.fft.rfft(one[0, :length]) * np.conj(np.fft.rfft(other[0, :length]))
    shifts = np.fft.irfft(spectra)
    near = np.concatenate([shifts[: RATE // 10], shifts[-RATE // 10 :]])
    return float(near.max() / (np.linalg.norm(one[0, :length]) * np.linalg.norm(other[0, :length])))


def test_words_are_words_and_no_markup(page: Page) -> None:
    assert not [tag for tag, given in page.tags if tag == "script" and given]
    assert "alert" in page.words
    # title and heading, run twice, embedding, verdict, prompt, its note, copy's song and prompt, setting, note, figure
    assert page.words.count(HOSTILE) >= 12


def test_the_figures_are_told_with_their_intervals(page: Page) -> None:
    words = " ".join(page.words.split())
    assert "64 %52 to 75" in words
    assert "3.403.35 to 3.46" in words
    assert "−0.30−0.33 to −0.26better" in words
    assert "lower is better" in words
    assert f"No CLAP here: {HOSTILE}" in page.words
    labels = [drawing["aria-label"] for drawing in page.all("svg")]
    assert labels[0] == "title of style_gap_closed: after 64 %, goal 100 %"
    assert [label.partition(" over")[0] for label in labels if " over the updates" in label] == [
        "held-out loss",
        "flat",
    ]


def test_curves_run_through_their_points(page: Page) -> None:
    line, dot = (given["points"] for given in page.all("polyline"))
    (left, top), (right, bottom) = (
        tuple(map(float, point.split(","))) for point in (line.split()[0], line.split()[-1])
    )
    assert (left, top) == (0, 0)  # the highest loss, first
    assert (right, bottom) == (report.CURVE_WIDTH, report.CURVE_HEIGHT)
    assert dot == "0.0,0.0"


def test_copies_are_shown_and_the_rest_is_a_table(page: Page) -> None:
    assert len(page.marked("copy")) == 1
    words = " ".join(page.words.split())
    assert f"Close to {HOSTILE}, 0:41" in words
    assert "1 clip more, the nearest first" in words
    assert "Last Bus, 0:41" in words
    assert "7.3 s of evidence by codes" in words
    for model, flagged in (("the base model", 0), ("the fine-tuned model", 1)):
        assert f"{model}32 of 3232 of 32{flagged} of 32".replace(" ", "") in words.replace(" ", "")
    assert f"It could not be checked {HOSTILE}." in words


def test_the_strongest_evidence_comes_first(tmp_path: Path, evaluation: tuple[Path, Evaluation]) -> None:
    """Not the highest likeness, which short ones have."""
    nearest = [
        replace(near(strength=1.0, song="short"), score=1.0),
        replace(near(strength=3.0, song="long"), score=0.7),
    ]
    write_report(tmp_path, replace(evaluation[1], pairs=[], nearest=nearest, originality=searched()))
    words = Page((tmp_path / "report.html").read_text(encoding="utf-8")).words
    assert words.index("long, 0:41") < words.index("short, 0:41")


def test_what_was_not_checked_is_not_called_original(tmp_path: Path, evaluation: tuple[Path, Evaluation]) -> None:
    nothing = searched(
        tuned=CopyCounts(32, 0, 0, 0), not_checked=["by codes, because R"], clips_by_sound=9, songs_by_sound=8
    )
    write_report(tmp_path, replace(evaluation[1], pairs=[], nearest=[], originality=nothing))
    words = " ".join(Page((tmp_path / "report.html").read_text(encoding="utf-8")).words.split())
    assert "close enough" not in words
    assert "It could not be checked by codes, because R." in words
    assert "By sound, 9 of 28 training clips were searched, of 8 of 14 songs." in words


def test_a_song_that_was_deleted_is_not_played(tmp_path: Path, evaluation: tuple[Path, Evaluation]) -> None:
    folder, found = evaluation
    shutil.copytree(folder / "clips", tmp_path / "clips")
    copy = replace(near(True), file=found.pairs[0].tuned_file, clip_file="songs/gone.flac")
    write_report(tmp_path, replace(found, pairs=[], nearest=[copy], originality=searched(1)))
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert [player["aria-label"].split(":")[0] for player in page.all("audio")] == ["new clip"]


def test_a_page_of_nothing(tmp_path: Path, evaluation: tuple[Path, Evaluation]) -> None:
    empty = replace(
        evaluation[1], figures=[], pairs=[], nearest=[], curves=[], settings={}, notes=[], originality=Originality()
    )
    page = Page(write_report(tmp_path, empty).read_text(encoding="utf-8"))
    assert page.all("audio") == page.all("img") == page.all("svg") == []
    assert "That was not measured." in page.words
    assert read_report(tmp_path) == empty


def test_many_copies_are_named_and_some_are_heard(tmp_path: Path, evaluation: tuple[Path, Evaluation]) -> None:
    folder, found = evaluation
    shutil.copytree(folder / "clips", tmp_path / "clips")
    many = [replace(near(True, 6.0), clip_file=found.pairs[1].base_file) for _ in range(report.COPIES + 5)]
    write_report(tmp_path, replace(found, pairs=[], nearest=[*many, near()]))
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert len(page.marked("copy")) == report.COPIES
    assert "And 5 more near-copies: they come first in the list below." in page.words
    assert "6 clips more, the nearest first" in page.words


def test_a_page_without_copies_says_so(tmp_path: Path, evaluation: tuple[Path, Evaluation]) -> None:
    page = Page(
        write_report(tmp_path, replace(evaluation[1], pairs=[], nearest=[near()], originality=searched())).read_text()
    )
    assert "No clip that was checked is close enough to a song" in page.words
    assert page.marked("copy") == []


def test_reports_of_earlier_versions_are_read(tmp_path: Path, evaluation: tuple[Path, Evaluation]) -> None:
    """They name pictures of the clips, too."""
    text = json.loads((evaluation[0] / "report.json").read_text(encoding="utf-8"))
    text["pairs"] = [pair | {"base_picture": "a.png", "tuned_picture": ""} for pair in text["pairs"]]
    (tmp_path / "report.json").write_text(json.dumps(text), encoding="utf-8")
    assert read_report(tmp_path) == evaluation[1]


def test_many_pairs_make_a_page_that_can_be_sent(
    tmp_path: Path, evaluation: tuple[Path, Evaluation], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "PAGE_SECONDS", 40.0)  # a tenth
    audio.write(tmp_path / "a.flac", music(8, 32_000), 32_000)
    pairs = [Pair(f"prompt {n}", STYLE, take, "a.flac", "a.flac") for n in range(2) for take in range(4)]
    path = write_report(tmp_path, replace(evaluation[1], pairs=pairs, nearest=[]))
    page = Page(path.read_text(encoding="utf-8"))
    labels = [player["aria-label"] for player in page.all("audio")]
    assert labels == ["before: prompt 0", "after: prompt 0", "before: prompt 1", "after: prompt 1"]  # no prompt is lost
    assert "6 more pairs of clips are only in the folder" in " ".join(page.words.split())
    assert path.stat().st_size < 1e6


def test_a_browser_shows_the_page(tmp_path: Path, evaluation: tuple[Path, Evaluation]) -> None:
    folder, found = evaluation
    shot = tmp_path / "shot.png"
    options = ("--dump-dom", f"--screenshot={shot}", "--window-size=1100,2400", "--hide-scrollbars")
    seen = browse(folder / "report.html", tmp_path / "profile", *options)
    for sentence in found.verdict:
        assert sentence in Page(seen).words.replace("\u00a0", " ")
    assert len(Page(seen).all("audio")) == 10
    if not shot.exists():  # this version does one thing at a time
        browse(folder / "report.html", tmp_path / "profile", *options[1:])
    with Image.open(shot) as image:
        assert image.size == (1100, 2400)
        assert len(image.convert("RGB").getcolors(1 << 24) or []) > 500  # pictures are among it: text alone has few


def first(figures: list[Figure], word: str = "punk") -> str:
    return verdict(figures, [], Originality(), word)[0]


def second(*figures: Figure) -> str:
    return verdict(list(figures), [], Originality(), "punk")[1]


def test_a_verdict_has_three_sentences() -> None:
    for figures in ([], [GAP, LOSS, WORDS, DRIFT], [replace(GAP, tuned=math.nan), replace(LOSS, tuned=None)]):
        sentences = verdict(figures, [near(), near(True)], searched(1), "punk")
        assert len(sentences) == 3
        assert all(one.endswith(".") and ".." not in one and "\n" not in one for one in sentences)
        assert all(one[0].isupper() or one[0].isdigit() for one in sentences)


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        (
            (0.52, 0.75),
            "It learned punk: its clips went 64 % of the way from the base model to your songs (52 to 75 %)",
        ),
        ((0.12, 0.75), "It learned something of punk: its clips went 64 % of the way"),
        ((-0.1, 0.75), "Whether its clips sound more like punk is unclear: they went 64 %"),
        ((-0.9, -0.2), "It did not learn punk: its clips are further from your songs"),
        (None, "Whether its clips sound more like punk is unclear: there were too few"),
        ((math.nan, math.nan), "Whether its clips sound more like punk is unclear: there were too few"),
    ],
)
def test_the_style_is_learned_as_far_as_the_interval_says(interval: tuple[float, float] | None, said: str) -> None:
    assert first([replace(GAP, tuned_interval=interval)]).startswith(said)


@pytest.mark.parametrize(
    ("change", "better", "said"),
    [
        ((-8.0, -5.0), LOWER, "It learned something of punk: its clips are nearer to your songs"),
        ((1.0, 2.0), LOWER, "It did not learn punk: its clips are further from your songs"),
        ((-1.0, 2.0), LOWER, "Whether its clips sound more like punk is unclear"),
        (None, LOWER, "Whether its clips sound more like punk is unclear"),
    ],
)
def test_without_held_out_songs_the_distance_speaks(change: tuple[float, float] | None, better: str, said: str) -> None:
    distance = figure("style_distance", 5.0, base=12.0, better=better, change=change)
    assert first([distance]).startswith(said)
    assert first([GAP, distance]) == first([GAP])


@pytest.mark.parametrize(
    ("tuned", "change", "said"),
    [
        (3.1, (-0.33, -0.26), "the perplexity on held-out songs is 26 % lower (23 to 28 %)."),  # 1 - exp(-0.3) = 0.259
        (
            3.6,
            (0.1, 0.3),
            "the perplexity on held-out songs is 22 % higher (11 to 35 %), a sign of overfitting",
        ),
        (3.398, (-0.003, -0.001), "the perplexity on held-out songs is 0.2 % lower (0.1 to 0.3 %)."),
        (-8.0, (-12.0, -10.9), "the perplexity on held-out songs is far lower."),
        (3.1, (-0.5, 0.01), "whether the perplexity on held-out songs fell is unclear."),
        (3.1, None, "whether the perplexity on held-out songs fell is unclear."),
        (3.1, (math.nan, math.nan), "whether the perplexity on held-out songs fell is unclear."),
    ],
)
def test_the_loss_is_given_as_perplexity(tuned: float, change: tuple[float, float] | None, said: str) -> None:
    loss = replace(LOSS, tuned=tuned, change=change)
    assert f"; {said}" in first([GAP, loss])
    assert f"How near its clips are to punk was not measured; {said}" in first([loss])


def test_a_style_of_which_nothing_is_known() -> None:
    for figures in ([], [replace(GAP, tuned=None)], [replace(LOSS, base=None)]):
        assert first(figures) == "Whether it learned punk was not measured."


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        ([], "Whether it still follows prompts was not measured."),
        ([WORDS], "It still follows prompts: clips fit their words as well as before."),
        (
            [replace(WORDS, change=(-0.029, -0.01))],
            "It still follows prompts: clips fit their words as well as before.",
        ),
        ([replace(WORDS, change=(-0.2, 0.1))], "Whether it still follows prompts is unclear."),
        ([replace(WORDS, change=None)], "Whether it still follows prompts is unclear."),
        ([replace(WORDS, base=None)], "Whether it still follows prompts is unclear."),
        (
            [replace(WORDS, change=(-0.2, -0.1))],
            "It follows prompts less well than the base model: clips fit their words",
        ),
        ([replace(WORDS, better=LOWER, change=(0.1, 0.2))], "It follows prompts less well"),
        ([replace(WORDS, better=LOWER, change=(-0.2, -0.1))], "It still follows prompts"),
        (
            [WORDS, replace(WORDS, key="tempo_adherence"), replace(WORDS, key="key_adherence", change=(-1, 1))],
            "It still follows prompts: clips fit their words and the tempo as well as before, but for the key",
        ),
        (
            [WORDS, replace(WORDS, key="tempo_adherence"), replace(WORDS, key="key_adherence")],
            "It still follows prompts: clips fit their words, the tempo and the key as well as before.",
        ),
        (
            [WORDS, replace(WORDS, key="key_adherence", change=(-0.9, -0.5))],
            "It follows prompts less well than the base model: clips fit the key less often or less well.",
        ),
    ],
)
def test_prompts_are_followed_as_far_as_the_intervals_say(figures: list[Figure], said: str) -> None:
    assert second(*figures).startswith(said)


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        ((0.7, 1.1), "other music changed hardly more than it does from seed to seed"),
        ((1.01, 1.2), "other music changed hardly more than it does from seed to seed"),
        ((1.3, 1.9), "other music changed, too: 1.6 times what another seed does (1.3 to 1.9)"),
        ((0.8, 1.9), "whether other music changed is unclear"),
        ((math.nan, math.nan), "whether other music changed is unclear"),
        (None, "whether other music changed is unclear"),
    ],
)
def test_drift_is_measured_in_seeds(interval: tuple[float, float] | None, said: str) -> None:
    assert second(WORDS, replace(DRIFT, tuned=1.6, tuned_interval=interval)).endswith(f"; {said}.")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ((-0.5, -0.35), "clips of one prompt differ less than half as much as before, a sign of too much training"),
        ((-0.5, -0.1), "clips of one prompt are more alike than before"),
        ((-0.5, 0.1), ""),
        ((0.1, 0.2), ""),
        (None, ""),
    ],
)
def test_collapse_is_told(change: tuple[float, float] | None, said: str) -> None:
    diversity = figure("diversity", 0.2, base=0.6, change=change)
    assert second(WORDS, diversity) == second(WORDS).removesuffix(".") + (f"; {said}." if said else ".")


BY_SOUND = "by sound, because there is a single song"
NEITHER_WAY = "by codes and by sound, because clips of 1 s are too short"


def counts(clips: int, by_codes: int, by_sound: int, flagged: int = 0) -> CopyCounts:
    return CopyCounts(clips, by_codes, by_sound, flagged)


@pytest.mark.parametrize(
    ("nearest", "originality", "said"),
    [
        ([], Originality(), "Whether it copies your songs was not measured."),
        (
            [near()],
            searched(),
            "None of 32 clips is close to a song it was trained on, and none of the base model's is.",
        ),
        (
            [],
            searched(style_clips=20, neutral_clips=12),
            "None of 32 clips (20 of the style, 12 of other music) is close to a song it was trained on, "
            "and none of the base model's is.",
        ),
        (
            [],
            searched(base=1),
            "None of 32 clips is close to a song it was trained on; 1 of the 32 clips of the base model is.",
        ),
        (
            [],
            searched(not_checked=[BY_SOUND], tuned=counts(32, 32, 0)),
            "None of 32 clips is close to a song it was trained on, and none of the base model's is; "
            "it could not be checked by sound, because there is a single song.",
        ),
        (
            [],
            searched(not_checked=[NEITHER_WAY], tuned=counts(32, 0, 0)),
            f"Whether it copies your songs could not be checked: {NEITHER_WAY}.",
        ),
        (
            [],
            searched(not_checked=[NEITHER_WAY], tuned=counts(32, 30, 8)),
            "None of 30 clips is close to a song it was trained on, and none of the base model's is; "
            f"it could not be checked {NEITHER_WAY}.",
        ),
        (
            [],
            searched(clips=2000, clips_by_sound=120),
            "None of 32 clips is close to a song it was trained on, and none of the base model's is; "
            "by sound only 120 of 2000 training clips were searched.",
        ),
        (
            [near(), near(True)],
            searched(1),
            "1 of 32 clips is close to Last Bus, 0:41; 0 of the 32 clips of the base model are.",
        ),
        (
            [near(True, 3.0, "B", 3), near(strength=9.0), near(True, 4.0, "A", 125)],
            searched(2, style_clips=20, neutral_clips=12),
            "2 of 32 clips (20 of the style, 12 of other music) are close to songs it was trained on: A, 2:05; "
            "B, 0:03; 0 of the 32 clips of the base model are.",
        ),
        (
            [near(True, 9 - number, str(number), 60) for number in range(5)],
            searched(5, base=1),
            "5 of 32 clips are close to songs it was trained on: 0, 1:00; 1, 1:00; 2, 1:00; and 2 more; "
            "1 of the 32 clips of the base model is.",
        ),
        (
            [near(True)],
            searched(1, base=2, not_checked=[BY_SOUND]),
            "1 of 32 clips is close to Last Bus, 0:41; but 2 of the 32 clips of the base model are, too, "
            "which never heard them: that may be likeness of the style; "
            "it could not be checked by sound, because there is a single song.",
        ),
    ],
)
def test_copies_are_counted(nearest: list[Nearest], originality: Originality, said: str) -> None:
    assert verdict([], nearest, originality, "punk")[2] == said


@pytest.mark.parametrize(
    ("better", "change", "said"),
    [
        (LOWER, (-2.0, -1.0), "better"),
        (LOWER, (1.0, 2.0), "worse"),
        (HIGHER, (1.0, 2.0), "better"),
        (HIGHER, (-2.0, -1.0), "worse"),
        (NEITHER, (1.0, 2.0), "changed"),
        (HIGHER, (-1.0, 2.0), "unclear"),
        (HIGHER, (0.0, 2.0), "unclear"),
        (LOWER, (math.nan, math.nan), "unclear"),
        (LOWER, None, ""),
    ],
)
def test_a_change_has_a_direction(better: str, change: tuple[float, float] | None, said: str) -> None:
    assert direction(figure("x", better=better, change=change)) == said
