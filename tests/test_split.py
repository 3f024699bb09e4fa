"""Runs that share a prepared folder leave each other alone; what a run was trained on is in its record."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SAMPLING_RATE, Ran, prepare_words, read_checkpoint, stored_codes, tone_song, train_words
from filelock import FileLock
from safetensors.torch import load_file, save_file

from musicgen_dreamboothing import audio, files
from musicgen_dreamboothing.arguments import PrepareArguments
from musicgen_dreamboothing.cli import main
from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.data.prepare import refresh
from musicgen_dreamboothing.data.run_record import RunRecord, read_record
from musicgen_dreamboothing.data.tokens.split import Split, split_songs
from musicgen_dreamboothing.data.tokens.store import clip_rows
from musicgen_dreamboothing.evaluation.metrics import copies as copies_of_songs
from musicgen_dreamboothing.evaluation.references import tables_of
from musicgen_dreamboothing.training import model as training_model

Cli = Callable[..., Ran]
OPTIONS = PrepareArguments(instance_prompt="punk")
QUICK = ["--learning_rate", 0.01, "--eval_fraction", 0.4, "--save_strategy", "epoch"]
ONE_UPDATE = [*QUICK, "--max_steps", 1]
EVALUATE = [
    *("--seconds", 1, "--variations", 2, "--song_excerpts", 4, "--clap_model_name_or_path", "none"),
    *("--neutral_prompts", "a quiet song"),
]


@pytest.fixture(scope="module")
def other_base(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """The tiny checkpoint with another language model: codec, text encoder and tokenizer are the same."""
    folder = tmp_path_factory.mktemp("bases") / "other"
    shutil.copytree(tiny, folder)
    weights = load_file(folder / "model.safetensors")
    changed = {name: 1.1 * weight if name.startswith("decoder.") else weight for name, weight in weights.items()}
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "README.md").write_text("another model card")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, prepared: Path, tiny: Path) -> Path:
    """Prepared songs in `data` with captions of their own, a run on them in `run`, and what `evaluate` says of it."""
    root = tmp_path_factory.mktemp("shared")
    shutil.copytree(prepared.parent / "songs", root / "songs")
    for number in range(4):
        (root / "songs" / f"song-{number}.txt").write_text(f"tune {number}")
    words = [*prepare_words(root / "songs", root / "data", tiny)]
    place = words.index("--instance_prompt")
    del words[place : place + 2]  # captions of the metadata without an instance prompt
    train = [*train_words(root / "data", root / "run", tiny), *ONE_UPDATE]
    for command in (words, train, ["evaluate", root / "run", *EVALUATE]):
        assert main([str(word) for word in command]) == 0
    return root


@pytest.fixture
def root(tmp_path: Path, trained: Path) -> Path:
    """A copy of `trained` to change; files keep their times, and the run knows its folder under `--data`."""
    return shutil.copytree(trained, tmp_path / "copy")


def report(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / "run" / "evaluation" / "report.json").read_text())
    return found


def record_of(root: Path) -> RunRecord:
    record = read_record(root / "run")
    assert record is not None
    return record


def no_base() -> Any:
    raise AssertionError("the base was asked for")


def clips_of(root: Path) -> list[list[tuple[str, str]]]:
    """Files and captions of the clips that `evaluate` takes for those of the run, trained on and held out."""
    tables = tables_of(record_of(root), root / "data", no_base)
    return [list(zip(table["file_name"], table["text"], strict=True)) for table in (tables.train, tables.held_out)]


# --- two runs


def test_the_record_says_what_was_trained_on_and_what_was_held_out(trained: Path) -> None:
    record = record_of(trained)
    assert record.clips is not None
    split = Split.from_json(record.clips)
    assert len(split.train) == len(split.held_out) == 8
    assert not {row["source"] for row in split.train} & {row["source"] for row in split.held_out}
    for row in [*split.train, *split.held_out]:
        assert row["text"] == f"punk, tune {row['source'][5]}"
        assert row["file_name"].startswith(row["source"].removesuffix(".wav"))
        assert row["seconds"] == 2.0
        assert len(row["digest"]) == 32
    assert {row["start"] for row in split.train} == {0, 2, 4, 6}
    lines = (trained / "run" / "run.json").read_text().splitlines()
    assert sum('"punk, tune ' in line for line in lines) == 16  # a line for each clip


def test_tokens_have_no_instance_prompt_and_no_captions(trained: Path) -> None:
    names = {path.name.split("-")[0] for path in (trained / "data" / "tokens").iterdir()}
    assert names == {"codes", "text", "recordings", "key", "info.json"}
    assert set(stored_codes(trained / "data").column_names) == {"digest", "codes", "frames", "fingerprint"}


def test_other_prompts_bases_and_songs_change_nothing(cli: Cli, root: Path, tiny: Path, other_base: Path) -> None:
    before = {path: path.read_bytes() for path in (root / "data" / "tokens").rglob("*.arrow")}
    expected = report(root)
    ran = cli(*train_words(root / "data", root / "second", other_base), *ONE_UPDATE, "--instance_prompt", "zxqv")
    assert ran.code == 0, ran.err
    assert "encoding" not in ran.err  # the codec is the same
    after = {path: path.read_bytes() for path in (root / "data" / "tokens").rglob("*.arrow")}
    assert before.items() < after.items()  # texts with the other instance prompt were added
    second = Split.from_json(read_record(root / "second").clips)  # type: ignore[union-attr,arg-type]
    assert all(row["text"].startswith("zxqv, tune ") for row in second.train)
    add_songs(root, cli, tiny)
    delete_songs(root, cli, tiny)
    ran = cli("evaluate", root / "run", *EVALUATE, "--data", root / "data")
    assert ran.code == 0, ran.err
    assert report(root) == expected
    assert expected["settings"]["prompts"][0].startswith("punk, tune ")


def test_a_run_resumes_after_another_run_on_its_folder(
    cli: Cli, root: Path, tiny: Path, other_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both prepare the songs themselves, so that the metadata have the instance prompt of the last one."""
    first = [*train_words(root / "songs", root / "first", tiny), *QUICK, "--prepared_dir", root / "data"]
    second = [*train_words(root / "songs", root / "second", other_base), *QUICK, "--prepared_dir", root / "data"]
    assert cli(*first).code == 0
    assert cli(*second, "--instance_prompt", "zxqv", "--max_duration_in_seconds", 1.5).code == 0
    record = read_record(root / "first")
    assert record is not None
    record.finished = False  # as if it had been killed behind its last checkpoint
    record.write(root / "first")
    ran = cli(*first)
    assert ran.code == 0, ran.err
    assert f"Resuming from {root / 'first' / 'checkpoint-'}" in ran.out
    assert "encoding" not in ran.err
    assert "captions:" not in ran.err
    again = read_record(root / "first")
    assert again is not None
    assert (again.finished, again.data, again.clips) == (True, record.data, record.clips)


def test_a_run_is_not_resumed_with_other_songs(cli: Cli, root: Path, tiny: Path) -> None:
    words = [*train_words(root / "data", root / "first", tiny), *QUICK]
    assert cli(*words).code == 0
    record = read_record(root / "first")
    assert record is not None
    record.finished = False
    record.write(root / "first")
    path = root / "data" / "clips" / "metadata.jsonl"
    metadata = path.read_text()
    for caption in ("others", None):
        path.write_text(metadata)
        edit_metadata(root, caption)
        ran = cli(*words)
        assert ran.code == 1
        assert f"songs or captions have changed since the run in {root / 'first'} began; " in ran.err


def edit_metadata(root: Path, caption: str | None) -> None:
    """Gives all clips a caption, or deletes the line of the last one."""
    path = root / "data" / "clips" / "metadata.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = rows[:-1] if caption is None else [row | {"text": caption} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_each_instance_prompt_is_checked_once(
    cli: Cli, root: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[str]()

    def note(base: object, checkpoint: object, codes: object, states: object, word: str, noun: str | None) -> str:
        asked.append(word)
        return f"about {word}"

    monkeypatch.setattr(training_model, "keyword_note", note)
    words = [*train_words(root / "data", root / "second", tiny), *ONE_UPDATE, "--restart", "true"]
    for _ in range(2):
        assert "note: about zxqv\n" in cli(*words, "--instance_prompt", "zxqv").out
    assert asked == ["zxqv"]
    for path in (root / "data" / "tokens").glob("key-word-*.json"):
        path.write_text("{")  # damaged
    assert "note: about zxqv\n" in cli(*words, "--instance_prompt", "zxqv").out
    assert asked == ["zxqv", "zxqv"]


# --- songs that come and go


def add_songs(root: Path, cli: Cli, tiny: Path) -> None:
    for number in range(4, 12):
        audio.write(root / "songs" / f"song-{number}.wav", tone_song(2.0, number), SAMPLING_RATE)
    assert cli(*prepare_words(root / "songs", root / "data", tiny)).code == 0


def delete_songs(root: Path, cli: Cli, tiny: Path) -> None:
    for row in Split.from_json(record_of(root).clips or {}).held_out:
        (root / "songs" / row["source"]).unlink(missing_ok=True)
    assert cli(*prepare_words(root / "songs", root / "data", tiny)).code == 0


def cut_otherwise(root: Path, cli: Cli, tiny: Path) -> None:
    words = [*prepare_words(root / "songs", root / "data", tiny), "--instance_prompt", "zxqv"]
    assert cli(*words, "--max_duration_in_seconds", 1.5).code == 0


def edit_captions(root: Path, cli: Cli, tiny: Path) -> None:
    edit_metadata(root, caption="others")
    refresh(root / "data", OPTIONS, read_checkpoint(tiny))


def delete_clips(root: Path, cli: Cli, tiny: Path) -> None:
    shutil.rmtree(root / "data" / "clips")


@pytest.mark.parametrize("change", [add_songs, delete_songs, cut_otherwise, edit_captions, delete_clips])
def test_what_happens_to_the_songs_later_leaves_the_split_as_it_was(
    cli: Cli, root: Path, tiny: Path, change: Callable[[Path, Cli, Path], None]
) -> None:
    expected = clips_of(root)
    change(root, cli, tiny)
    assert clips_of(root) == expected


def test_a_near_copy_whose_clip_is_gone_does_not_end_the_evaluation(
    cli: Cli, root: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the place of a generated clip stands one that was trained on; another clip has the name of its file by now."""
    monkeypatch.setattr(copies_of_songs, "LEAST_SECONDS", 1.0)  # the training clips last 2 s
    monkeypatch.setattr(copies_of_songs, "FEW_SECONDS", 0.0)
    row = Split.from_json(record_of(root).clips or {}).train[0]
    table = stored_codes(root / "data")
    codes = np.asarray(table[table["digest"][:].index(row["digest"])]["codes"])
    fake = sorted((root / "run" / "evaluation" / "tuned").glob("punk-*_0.npy"))[0]
    np.save(fake, codes)
    shutil.copyfile(root / "data" / "clips" / row["file_name"], fake.with_suffix(".wav"))
    audio.write(fake.with_suffix(".wav"), tone_song(2.0, 99), SAMPLING_RATE)
    audio.write(root / "data" / "clips" / row["file_name"], tone_song(2.0, 98), SAMPLING_RATE)
    ran = cli("evaluate", root / "run", *EVALUATE, "--data", root / "data")
    assert ran.code == 0, ran.err
    copies = [one for one in report(root)["nearest"] if one["is_copy"]]
    assert [(one["song"], one["clip_file"]) for one in copies] == [(row["source"], "")]


# --- codes and records that are missing or damaged


def test_codes_that_are_gone_are_named_and_counted(root: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split = Split.from_json(record_of(root).clips or {})
    path = root / "run" / "run.json"
    for rows in (split.train[:3], split.held_out):
        for row in rows:
            path.write_text(path.read_text().replace(row["digest"], "0" * 32))
    clips = clips_of(root)
    assert list(map(len, clips)) == [5, 0]
    said = capsys.readouterr().out
    folder, songs = root / "data", sorted({row["source"] for row in split.held_out})
    assert f"note: left out 3 clips of 8 trained on, as {folder} has no codes of them any more: song-" in said
    assert (
        f"note: left out 8 clips of 8 held out, as {folder} has no codes of them any more: {', '.join(songs)}\n" in said
    )
    for row in split.train:
        path.write_text(path.read_text().replace(row["digest"], "0" * 32))
    with pytest.raises(UserError, match="has no codes of the clips that this run was trained on"):
        clips_of(root)


def test_songs_prepared_again_have_the_same_codes(cli: Cli, root: Path, tiny: Path) -> None:
    expected = clips_of(root)
    words = [*prepare_words(root / "songs", root / "data", tiny), "--overwrite_cache", "true"]
    assert cli(*words).code == 0
    assert clips_of(root) == expected


def test_a_record_of_an_earlier_version_is_read(cli: Cli, root: Path, tiny: Path) -> None:
    path, expected = root / "run" / "run.json", report(root)
    values = json.loads(path.read_text())
    del values["clips"]
    path.write_text(json.dumps(values | {"of a later version": 1}))
    ran = cli("evaluate", root / "run", *EVALUATE, "--data", root / "data")
    assert ran.code == 0, ran.err
    said = f"the run has no list of its clips, as an earlier version made it: they are taken from {root / 'data'} as"
    assert said in ran.out
    assert report(root) == expected
    shutil.rmtree(root / "data" / "tokens")
    ran = cli("evaluate", root / "run", *EVALUATE, "--data", root / "data")
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert "name their folder: --data DIR" in ran.err


@pytest.mark.parametrize(
    "clips", [{}, [], {"codes": "a", "columns": ["digest"], "train": [[1]], "held_out": []}, {"train": 3}], ids=str
)
def test_a_damaged_list_of_clips_is_one_line(cli: Cli, root: Path, clips: Any) -> None:
    path = root / "run" / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"clips": clips}))
    ran = cli("evaluate", root / "run", *EVALUATE, "--data", root / "data")
    assert ran.code == 1
    assert "the list of clips in run.json is damaged" in ran.err
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize("damage", [b"", b"no table", None], ids=["empty", "other", "half"])
def test_clips_of_a_damaged_file_of_codes_are_encoded_again(root: Path, tiny: Path, damage: bytes | None) -> None:
    expected = {row["digest"]: row for row in stored_codes(root / "data")}
    (path,) = (root / "data" / "tokens").glob("codes-*/*.arrow")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if damage is None else damage)
    assert refresh(root / "data", OPTIONS, read_checkpoint(tiny)).clips_encoded == len(expected)
    assert {row["digest"]: row for row in stored_codes(root / "data")} == expected


def test_an_unchanged_folder_is_not_written_to(cli: Cli, root: Path, tiny: Path) -> None:
    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (root / "data").rglob("*") if path.name != ".lock"}

    before = times()
    assert cli(*train_words(root / "data", root / "second", tiny), *ONE_UPDATE).code == 0
    assert times() == before


def test_only_our_files_of_an_earlier_version_are_deleted(root: Path, tiny: Path) -> None:
    tokens = root / "data" / "tokens"
    shutil.rmtree(tokens)
    for table in ("clips", "captions", "captions.old", "words.new", "parts/000000-0"):
        for name in ("data-00000-of-00001.arrow", "dataset_info.json", "state.json"):
            (tokens / table).mkdir(parents=True, exist_ok=True)
            (tokens / table / name).write_text("{}")
    for name in ("key_word.json", "clips.arrow", "parts/000001-0.arrow", "my notes.txt", "captions/mine.txt"):
        (tokens / name).write_text("{}")
    (tokens / "info.json").write_text(json.dumps({"model": str(tiny), "identity": "1", "codebooks": 4}))
    assert refresh(root / "data", OPTIONS, read_checkpoint(tiny)).clips_encoded == 16
    left = {str(path.relative_to(tokens)) for path in tokens.rglob("*") if path.is_file()}
    ours = {name for name in left if name.split("-")[0] in ("codes", "text", "recordings")}
    assert left - ours == {"info.json", "my notes.txt", "captions/mine.txt"}
    assert not (tokens / "parts").exists()


# --- the split itself


def rows_of(songs: dict[str, str]) -> list[dict[str, Any]]:
    return [{"source": song, "split": split} for song, split in songs.items() for _ in range(2)]


def test_limits_take_the_first_clips() -> None:
    rows = rows_of({f"song {number}": "train" for number in range(6)})
    split = split_songs(rows, {row["source"]: row["source"] for row in rows}, "codes", eval_fraction=0.4, seed=0)
    assert (len(split.train), len(split.held_out)) == (8, 4)
    limited = split.limited(3, 1)
    assert (limited.train, limited.held_out) == (split.train[:3], split.held_out[:1])
    assert split.limited(None, 0) == split


def test_a_split_survives_its_record(tmp_path: Path) -> None:
    names = {"digest": "a", "file_name": 'b "\u2028.flac', "source": "ü\n", "start": 0.0, "seconds": 2.5}
    row = names | {"text": "punk", "variants": ["punk, fast", ""]}
    for split in (Split("codes-1", [row], []), Split("codes-1", [row, row], [row]), Split("codes-1", [], [])):
        RunRecord({}, "base", None, "data", clips=split.to_json()).write(tmp_path)
        record = read_record(tmp_path)
        assert record is not None
        assert Split.from_json(record.clips or {}) == split


def test_metadata_with_odd_values_are_read(root: Path) -> None:
    path = root / "data" / "clips" / "metadata.jsonl"
    name = json.loads(path.read_text().splitlines()[0])["file_name"]
    odd = [
        {"start": "abc", "source": 5},
        {"start": float("nan"), "seconds": "7"},
        {"start": float("inf"), "source": ["a"], "variants": [1, None, "v"]},
        {"start": None, "split": 3, "seconds": float("-inf")},
    ]
    path.write_text("".join(json.dumps({"file_name": name, "text": "t", **row}) + "\n" for row in odd))
    rows = clip_rows(root / "data", "punk")
    assert [(row["start"], row["seconds"]) for row in rows] == [(0.0, 0.0)] * 4
    assert [row["source"] for row in rows] == ["5", name, "['a']", name]
    assert rows[2]["variants"] == ["punk, 1", "punk, v"]


def test_a_training_waits_for_another_one_that_prepares_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, said = FileLock(tmp_path / ".lock"), list[str]()

    def log(text: str) -> None:
        said.append(text)
        other.release()

    monkeypatch.setattr(files, "log", log)
    other.acquire()
    refused = pytest.raises(UserError, match="is in use by another run")
    with files.folder_lock(tmp_path, wait=True), refused, files.folder_lock(tmp_path):
        pass
    assert said == [f"waiting for another run that is preparing {tmp_path}"]
