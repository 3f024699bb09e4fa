"""Every command and every line of Python in the README and in docs/ runs, on tiny songs and a tiny checkpoint."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Ran

from musicgen_dreamboothing import arguments
from musicgen_dreamboothing.arguments import TrainArguments, parse
from musicgen_dreamboothing.evaluation.blind import _questions
from musicgen_dreamboothing.hub import Source
from musicgen_dreamboothing.model.checkpoint import Checkpoint
from musicgen_dreamboothing.model.footprint import Estimator, Step

ROOT = Path(__file__).parent.parent
PAGES = {path.name: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]}
README = PAGES["README.md"]
OPTION = re.compile(r"--[a-z][a-z_]+")
SMALL = ["--max_duration_in_seconds", "2", "--min_duration_in_seconds", "1", "--num_train_epochs", "1"]
MEMORY_SIZES = ("medium", "large", "melody", "melody-large")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], flags=re.MULTILINE | re.DOTALL)


def commands(page: str, first_word: str) -> list[list[str]]:
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith(first_word)]


def shortened(words: list[str], base: Path) -> list[str]:
    """A page's words, on a tiny checkpoint and with short clips, so that a test takes seconds."""
    if words[0] == "merge":
        return words
    if words[0] == "generate":
        words = [str(base) if word == "facebook/musicgen-small" else word for word in words]
        words = [word if word != "facebook/musicgen-melody" else str(base.parent / "melody") for word in words]
        continued = ("--prompt_seconds", "0.2") if "--continue_from" in words else ()
        loop = ("--loop_bars", "1", "--bpm", "400", "--loop_takes", "1") if "--loop_bars" in words else ()
        return [*words, "--seconds", "0.5", *continued, *loop]
    if words[0] == "doctor":
        return words
    if words[0] == "warm-start":
        return [words[0], str(base), *words[2:]]
    if words[0] in ("export", "import", "extract"):
        return [word if word != "facebook/musicgen-small" else str(base) for word in words]
    if words[0] == "push":
        return [*words, "--list_only"]
    if words[0] == "evaluate":
        small = ["--seconds", "0.5", "--variations", "2", "--clap_model_name_or_path", "none"]
        return words if "--answers" in words else [*words, *small]
    words = [word if word != "facebook/musicgen-small" else str(base) for word in words]
    small = SMALL[:4] if words[0] == "prepare" else SMALL
    return [*words, "--model_name_or_path", str(base), *small]


@pytest.fixture
def home(songs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as a reader has it, with `my-songs` in it."""
    shutil.move(songs, tmp_path / "my-songs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_commands_and_python_run(
    home: Path,
    tiny: Path,
    checkpoints: Callable[[str], Path],
    cli: Callable[..., Ran],
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert checkpoints("melody").parent == tiny.parent
    shutil.copy(next(home.glob("my-songs/*/*.wav")), home / "intro.wav")
    (plan,) = blocks("generation.md", "yaml")
    (home / "plan.yaml").write_text(re.sub(r"seconds: \d+", "seconds: 0.2", plan))
    verbs = []
    for page in ("data.md", "README.md", "training.md", "evaluation.md", "generation.md", "sharing.md"):
        for words in commands(page, "musicgen-dreamboothing"):
            verbs.append(words[0])
            if "runs/jazz:-0.3" in words:
                shutil.copytree(home / "runs" / "punk", home / "runs" / "jazz")
            if "--answers" in words:
                write_answers(home / words[-1], home / "runs" / "punk" / "evaluation" / "blind_key.json")
            base = checkpoints("melody") if "facebook/musicgen-melody" in words else tiny
            ran = cli(*shortened(words, base))
            assert ran.code == 0, (words, ran.err)
    assert verbs == [
        "prepare",
        "doctor",
        "train",
        "generate",
        *["train"] * 2,
        "warm-start",
        "train",
        *["evaluate"] * 4,
        *["generate"] * 3,
        "merge",
        *["generate"] * 6,
        *("push", "export", "push", "import", "extract"),
    ]
    assert list((home / "new-music").glob("00_punk-with-fast-drums*.wav"))
    (api,) = blocks("README.md", "python")
    api = api.replace("output_dir=", f"model_name_or_path={str(tiny)!r}, max_duration_in_seconds=2, output_dir=")
    (home / "api.py").write_text(api.replace("seconds=10", "seconds=0.5"))
    runpy.run_path("api.py")
    assert "punk bossa nova (1, 8000) 16000" in capfd.readouterr().out
    mixing, continuing, snippet = blocks("generation.md", "python")
    short = mixing.replace("facebook/musicgen-small", str(tiny)).replace("seconds=10", "seconds=0.5")
    (home / "mixing.py").write_text(short)
    assert runpy.run_path("mixing.py")["clip"].wave.shape == (1, 8000)
    short = continuing.replace("seconds=6", "seconds=0.2").replace("seconds=30", "seconds=0.4")
    (home / "continuing.py").write_text(short)
    runpy.run_path("continuing.py")
    assert (home / "continued-1.wav").is_file()
    (home / "snippet.py").write_text(snippet.replace("max_new_tokens=256", "max_new_tokens=20"))
    made = runpy.run_path("snippet.py")
    assert made["audio"].shape[:2] == (2, 1)


def write_answers(path: Path, key: Path) -> None:
    """The file that the blind page saves when every answer is the first side."""
    test = json.loads(key.read_text(encoding="utf-8"))
    answers = {str(row["pair"]): dict.fromkeys(_questions(row["kind"]), "A") for row in test["pairs"]}
    path.write_text(json.dumps({"test": test["test"], "answers": answers}))


def test_the_example_of_a_verdict_is_that_of_the_demo() -> None:
    (shown,) = re.findall(r"^```\n(- It learned.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    demo = json.loads((ROOT / "benchmarks" / "results" / "demo.json").read_text(encoding="utf-8"))
    assert [" ".join(sentence.split()) for sentence in re.split(r"^- ", shown, flags=re.MULTILINE)[1:]] == demo[
        "verdict"
    ]


def test_the_script_reads_the_example(monkeypatch: pytest.MonkeyPatch) -> None:
    (words,) = [shlex.split(line)[1:] for line in re.findall(r"`(python finetune_musicgen\.py [^`]+)`", README)]
    monkeypatch.chdir(ROOT)
    options = parse(TrainArguments, "train", "", words[1:])
    assert (options.instance_prompt, options.num_train_epochs) == ("punk", 8)
    assert "cli import main" in (ROOT / words[0]).read_text()


def test_every_option_in_the_pages_exists() -> None:
    known = {"--help", "--help_all"}
    for target in arguments.VERBS.values():
        known |= {flag for action in arguments.parser(target, "", "")._actions for flag in action.option_strings}
    row = re.compile(r"`([a-z_]+\.py)( --[^`]*)?` \|$", flags=re.MULTILINE)
    benchmarks = row.findall(README)
    assert len(benchmarks) == 4
    for script, words in benchmarks:
        declared = (ROOT / "benchmarks" / script).read_text()
        assert all(f'"{flag}"' in declared for flag in OPTION.findall(words)), script
    for name, text in PAGES.items():
        if name != "benchmarks.md":  # its scripts have options of their own
            assert set(OPTION.findall(row.sub("", text))) <= known, name


def test_the_readme_is_short_and_its_links_lead_somewhere() -> None:
    assert len(README.splitlines()) <= 150
    for name, text in PAGES.items():
        folder = ROOT if name == "README.md" else ROOT / "docs"
        for link in re.findall(r"\]\(([^)]+)\)", text):
            path, _, anchor = link.partition("#")
            if not link.startswith("http"):
                target = folder / path if path else folder / name
                assert target.is_file(), link
                assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link
    linked = set(re.findall(r"\]\(docs/([a-z]+\.md)", README))
    assert linked == PAGES.keys() - {"README.md"}


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_package_in_the_readme_exists() -> None:
    table = README[README.index("| package or module") : README.index("## Benchmarks")]
    listed = [
        name.rstrip("/")
        for row in re.findall(r"^\| (`[^|]+) \|", table, flags=re.MULTILINE)
        for name in re.findall(r"`([a-z_./]+)`", row)
    ]
    source = ROOT / "src" / "musicgen_dreamboothing"
    present = {path.name for path in source.iterdir() if not path.name.startswith(("_", "py."))}
    assert sorted(listed) == sorted(present)
    for path in re.findall(r"`((?:training|songs|model|data)/[a-z_]+\.py)`", table):
        assert list(source.rglob(path)), path


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for text in PAGES.values():
        for target in set(re.findall(r"(?:^|`)make ([a-z-]+)", text, flags=re.MULTILINE)):
            assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


@pytest.mark.parametrize("size", ["small", *(pytest.param(size, marks=pytest.mark.slow) for size in MEMORY_SIZES)])
def test_the_memory_of_a_training_is_what_is_planned(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from _shapes import configuration

    config = configuration(size)
    base = Checkpoint(Source(f"facebook/musicgen-{size}"), config, config.decoder.pad_token_id)
    row = next(line for line in README.splitlines() if line.startswith(f"| `facebook/musicgen-{size}`"))
    told = [float(cell.split()[0]) for cell in row.split("|")[4:7]]
    for gigabytes, policy, quantization in zip(told, ("none", "full", "full"), ("none", "none", "nf4"), strict=True):
        step = Step(30 * 50 + 3, torch.bfloat16, quantization)
        assert gigabytes == pytest.approx(Estimator(base, step).footprint(policy, 1).total / 1e9, abs=0.051)


@pytest.mark.parametrize(
    ("figure", "benchmark", "case", "row"),
    [
        ("a training step, musicgen-small", "train_step", "small, 1 x 30 s, auto", "ours, light"),
        ("a step of generation, musicgen-small", "generate", "small, 4 s, auto", "ours"),
        ("eight prompts at once", "generate", "small, 4 s, auto", "ours, 8 at once"),
        ("EnCodec, 27 minutes of songs", "prepare", "54 x 30 s", "batched"),
    ],
)
def test_figures_are_those_that_were_kept(figure: str, benchmark: str, case: str, row: str) -> None:
    (results,) = (ROOT / "benchmarks" / "results").glob("intel-*.json")
    first, *others = json.loads(results.read_text())[benchmark][case]["rows"]
    kept = next(other for other in others if row in (other.get("variant"), other.get("way")))
    told = next(line for line in README.splitlines() if line.startswith(f"| {figure}")).split("|")[3:5]
    for cell, ratio in zip(told, (kept["speed"], kept["peak GB"] / first["peak GB"]), strict=True):
        if cell.strip() != "–":
            assert float(cell.strip().removesuffix("x")) == pytest.approx(ratio, abs=0.051)
    assert any(cell.strip() != "–" for cell in told)
