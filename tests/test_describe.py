"""Songs to described clips: separated, cut, tagged, captioned, examined."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mutagen.flac
import numpy as np
import pytest
import soundfile
import torch
from conftest import SAMPLING_RATE, Ran, prepare_words, read_checkpoint, tables_in, tone_song
from made_music import music
from random_demucs import random_demucs, save_safetensors
from test_captioner import write_tiny_captioner
from test_tags import write_tiny_clap

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.arguments import PrepareArguments, TrainArguments
from musicgen_dreamboothing.cli import main
from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.data.captions import describe as describing
from musicgen_dreamboothing.data.prepare import prepare, prepare_songs
from musicgen_dreamboothing.data.songs import cutting as cuttings
from musicgen_dreamboothing.data.songs.song import TRAIN, Collection, Columns, Song
from musicgen_dreamboothing.data.songs.song_audio import INVALID
from musicgen_dreamboothing.data.songs.sources import find_songs
from musicgen_dreamboothing.data.songs.stems import keep_stems
from musicgen_dreamboothing.pretrained import clap as clapping
from musicgen_dreamboothing.pretrained import separator as separating
from musicgen_dreamboothing.pretrained.captioner import Captioner
from musicgen_dreamboothing.pretrained.clap import Tagger
from musicgen_dreamboothing.pretrained.separator import Separator
from musicgen_dreamboothing.training.dataset import ClipDataset, Drawing

RATE, HOP = SAMPLING_RATE, 320
WIDE = {"max_duration_in_seconds": 8, "min_duration_in_seconds": 2, "normalize_loudness": False, "doctor": False}


def rows_of(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "clips" / "metadata.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


# Describing


@pytest.fixture(scope="module")
def clap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_clap(tmp_path_factory.mktemp("clap"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny: Path, clap: Path) -> Path:
    """Two songs of two clips each in `songs`, described in `data`."""
    root = tmp_path_factory.mktemp("described")
    described(write_two_songs(root / "songs", 16.0), root / "data", tiny, clap)
    return root


@pytest.fixture
def two_songs(finished: Path) -> Path:
    """Songs to read only."""
    return finished / "songs"


@pytest.fixture
def data(finished: Path, tmp_path: Path) -> Path:
    """A copy of the described clips to change."""
    return shutil.copytree(finished / "data", tmp_path / "data")


@pytest.fixture
def short_songs(tmp_path: Path) -> Path:
    return write_two_songs(tmp_path / "songs", 5.0)


def write_two_songs(folder: Path, seconds: float) -> Path:
    """Two songs, one with file tags and one with a caption."""
    for number, bpm in enumerate((120.0, 96.0)):
        folder.mkdir(exist_ok=True)
        song = music(seconds, RATE, number, bpm=bpm) + 0.01 * tone_song(seconds, number)  # not silent at its end
        audio.write(folder / f"{number}.flac", song, RATE)
    tags = mutagen.flac.FLAC(folder / "1.flac")
    tags.update({"genre": "Zydeco", "bpm": "77", "title": "Secret"})
    tags.save()
    (folder / "0.json").write_text('{"caption": "loud\\nand fast", "bpm": 3}', encoding="utf-8")
    return folder


def described(songs: Path, folder: Path, base: Path, clap: Path | str, **options: Any) -> list[dict[str, Any]]:
    words = {"add_metadata": True, "clap_model_name_or_path": str(clap), "instance_prompt": "punk", **WIDE}
    words["file_tags"] = ["genre", "bpm"]
    prepare(PrepareArguments(songs=str(songs), output_dir=str(folder), model_name_or_path=str(base), **words | options))
    return rows_of(folder)


def test_clips_are_described_in_several_ways(finished: Path) -> None:
    rows = rows_of(finished / "data")
    assert len(rows) == 4
    for row in rows:
        texts = [row["text"], *row["variants"]]
        assert 1 <= len(texts) <= 4
        assert len(set(texts)) == len(texts)
        assert all(text.startswith("punk") for text in texts)
        assert set(row["tags"]) == {"genres", "moods", "instruments", "vocals"}
    assert all(text.startswith("punk, loud and fast, ") for text in [rows[0]["text"], *rows[0]["variants"]])
    assert rows[0]["tempo"] is None or rows[0]["tempo"] == pytest.approx(120, rel=0.04)
    captions = " ".join([rows[3]["text"], *rows[3]["variants"]])
    assert "zydeco" in captions
    assert "77" in captions
    assert "Secret" not in captions


def test_own_captions_and_measured_ones(two_songs: Path, data: Path, tiny: Path, clap: Path) -> None:
    assert described(two_songs, data, tiny, clap, captions="own")[0]["text"] == "punk, loud and fast"
    text = described(two_songs, data, tiny, clap, captions="measured")[0]["text"]
    assert "loud and fast" not in text
    assert len(text) > len("punk, ")


def test_a_second_run_measures_nothing_and_keeps_edited_captions(
    two_songs: Path, data: Path, tiny: Path, clap: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(data)
    monkeypatch.setattr(Tagger, "__init__", lambda *rest, **options: pytest.fail("loaded CLAP"))
    monkeypatch.setattr(cuttings, "find_rhythm", lambda *rest: pytest.fail("measured"))
    edited = [{**row, "text": "punk, mine"} if number == 1 else row for number, row in enumerate(rows)]
    path = data / "clips" / "metadata.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in edited), encoding="utf-8")
    again = described(two_songs, data, tiny, clap)
    assert again[1]["text"] == "punk, mine"
    assert "variants" not in again[1]
    assert again[:1] + again[2:] == rows[:1] + rows[2:]


def test_a_killed_run_continues(
    two_songs: Path, finished: Path, data: Path, tiny: Path, clap: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed, batches = Tagger.embed, list[int]()

    def embed_or_die(tagger: Tagger, waves: Any) -> Any:
        batches.append(len(waves))
        return killed() if len(batches) == 3 else embed(tagger, waves)

    monkeypatch.setattr(describing, "CLIPS_IN_MEMORY", 1)
    monkeypatch.setattr(Tagger, "embed", embed_or_die)
    (data / "heard.jsonl").unlink()
    with pytest.raises(KeyboardInterrupt):
        described(two_songs, data, tiny, clap)
    incomplete = data / "heard-0.jsonl"
    incomplete.write_text(incomplete.read_text() + '{"digest": "a killed ru')
    assert described(two_songs, data, tiny, clap) == rows_of(finished / "data")
    assert batches == [1] * (3 + 2)  # of four clips, two are not embedded again


def unavailable(*_: object) -> None:
    raise UserError("no CLAP model")


def test_tags_of_another_model_are_stored_but_not_used(
    two_songs: Path, data: Path, tiny: Path, clap: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the model that is asked for cannot be loaded."""
    rows = rows_of(data)
    assert any(any(row["tags"].values()) for row in rows)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "genres.txt").write_text("waltz\n")
    monkeypatch.setattr(clapping, "_load", unavailable)
    for model, labels in ((clap, {"label_dir": str(tmp_path / "labels")}), (tmp_path / "nowhere", {})):
        untagged = described(two_songs, data, tiny, model, **labels)
        assert all(not any(row["tags"].values()) for row in untagged)
    assert described(two_songs, data, tiny, clap) == rows  # without loading the model again


def test_a_part_of_the_songs_leaves_what_is_known_of_the_others(
    short_songs: Path, tmp_path: Path, tiny: Path, clap: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the first song of a dataset on the Hub: lines in `heard.jsonl` and stems of the other one are kept."""

    def find(where: str, columns: Columns, **_: object) -> Collection:
        return Collection(find_songs(str(short_songs), Columns()).songs[: columns.max_train_songs])

    monkeypatch.setattr("musicgen_dreamboothing.data.prepare.find_songs", find)
    words: dict[str, Any] = {"add_metadata": True, "clap_model_name_or_path": str(clap), "instance_prompt": "punk"}
    words |= {"audio_separation": True, "separation_model": str(model), "file_tags": ["genre", "bpm"], **WIDE}
    del words["doctor"]
    folder = tmp_path / "data"
    for most in (None, 1):
        options = TrainArguments(output_dir=str(tmp_path / "run"), max_train_samples=most, **words)
        prepare_songs("someone/songs", folder, options, read_checkpoint(tiny))
        if most is None:
            text = rows_of(folder)[1]["text"]  # tags of the song's file, also without its vocals
            assert "zydeco" in text or "77" in text
            known = (folder / "heard.jsonl").read_bytes(), sorted((folder / "stems").iterdir())
    assert len(known[1]) == 2
    assert known == ((folder / "heard.jsonl").read_bytes(), sorted((folder / "stems").iterdir()))


def test_a_language_model_may_write(
    two_songs: Path, data: Path, tmp_path: Path, tiny: Path, clap: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For songs without a caption; its answers are stored."""
    captioner = write_tiny_captioner(tmp_path / "captioner")
    rows = described(two_songs, data, tiny, clap, captioner=str(captioner))
    lines = [json.loads(line) for line in (data / "heard.jsonl").read_text().splitlines()]
    answers = [line["found"] for line in lines if line["column"] == "caption"]
    assert len(answers) == len(rows) == 4
    assert all(answers)
    assert all(row["text"].startswith("punk, loud and fast") for row in rows[:2])
    assert all(any(answer in row["text"] for answer in answers) for row in rows[2:])
    monkeypatch.setattr(Captioner, "__init__", lambda *rest, **options: pytest.fail("asked again"))
    assert described(two_songs, data, tiny, clap, captioner=str(captioner)) == rows


def test_processes_find_songs_by_relative_paths(
    short_songs: Path, tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Worker processes are reused after the working directory has changed."""
    results = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        shutil.copytree(short_songs, tmp_path / name / "my-songs")
        monkeypatch.chdir(tmp_path / name)
        results.append(described(Path("my-songs"), Path("data"), tiny, "nowhere", doctor=True))
    assert results[0] == results[1]


def test_a_missing_captioner_is_an_error_and_a_missing_clap_a_note(
    two_songs: Path, data: Path, tmp_path: Path, tiny: Path, clap: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="--captioner"):
        described(two_songs, data, tiny, clap, captioner=str(tmp_path / "nowhere"))
    capsys.readouterr()
    rows = described(two_songs, data, tiny, str(tmp_path / "nowhere"))
    notes = [line for line in capsys.readouterr().out.splitlines() if "CLAP" in line]
    assert len(notes) == 1
    assert "Captions have tempo and key only" in notes[0]
    assert rows[0]["tags"] == {"genres": [], "moods": [], "instruments": [], "vocals": None}
    assert rows[0]["text"].startswith("punk")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cut": "beats"}, "--cut 'beats' is unknown; it takes seconds, bars"),
        ({"bars": 0}, "--bars 0 must be at least 1 and at most 1024"),
        ({"loudness": 3.0}, "--loudness 3 must be at least -40 and at most -5"),
        ({"captions": "both"}, "--captions 'both' is unknown; it takes own, measured, own.measured"),
        ({"caption_variants": 0}, "--caption_variants 0 must be at least 1 and at most 100"),
        ({"file_tags": ["title"]}, "--file_tags 'title' is unknown; it takes genre, bpm, key, comment"),
    ],
)
def test_invalid_options_are_refused_before_the_work(
    options: dict[str, Any], message: str, two_songs: Path, tmp_path: Path, tiny: Path
) -> None:
    with pytest.raises(UserError, match=message):
        described(two_songs, tmp_path / "data", tiny, "nowhere", **options)
    assert not (tmp_path / "data").exists()


def test_every_epoch_draws_one_of_the_captions(finished: Path, tiny: Path) -> None:
    rows, tables = rows_of(finished / "data"), tables_in(finished / "data", tiny, "punk")
    captions = [{row["text"], *row["variants"]} for row in rows]
    assert any(len(texts) > 1 for texts in captions)
    varied = ClipDataset(tables.train, tables.captions, read_checkpoint(tiny), Drawing(vary_captions=True))
    fixed = ClipDataset(tables.train, tables.captions, read_checkpoint(tiny), Drawing())
    drawn = [{varied[epoch * len(varied) + clip]["caption"] for epoch in range(40)} for clip in range(len(varied))]
    assert drawn == captions
    assert [fixed[len(fixed) + clip]["caption"] for clip in range(len(fixed))] == [row["text"] for row in rows]
    assert "text_states" in varied[3]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"description": " slow  song"}', "slow song"),
        ('"just words"', "just words"),
        ('{"bpm": 3}', None),
        ("[]", None),
    ],
)
def test_a_caption_in_json(text: str, expected: str | None, tmp_path: Path) -> None:
    audio.write(tmp_path / "a.wav", tone_song(1.0, 0), RATE)
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    assert find_songs(str(tmp_path), Columns()).songs[0].caption == expected
    (tmp_path / "a.txt").write_text("from the text file", encoding="utf-8")
    assert find_songs(str(tmp_path), Columns()).songs[0].caption == "from the text file"


def test_invalid_json_is_named_and_ignored(tmp_path: Path) -> None:
    audio.write(tmp_path / "a.wav", tone_song(1.0, 0), RATE)
    (tmp_path / "a.json").write_text("{", encoding="utf-8")
    found = find_songs(str(tmp_path), Columns())
    assert [song.caption for song in found.songs] == [None]
    assert found.notes[0] == "1 caption file not used:"
    assert re.search(r"a\.json is not JSON \(.*line 1\)", found.notes[1])


# Stems


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_safetensors(random_demucs(), tmp_path / "htdemucs" / "htdemucs.safetensors")
    return tmp_path / "htdemucs"


def separated(songs: Path, folder: Path, base: Path, model: Path | None, **options: Any) -> np.ndarray:
    """All clips in a row."""
    words = {"instance_prompt": "punk", **WIDE}
    if model is not None:
        words |= {"audio_separation": True, "separation_model": str(model)}
    prepare(PrepareArguments(songs=str(songs), output_dir=str(folder), model_name_or_path=str(base), **words | options))
    return np.concatenate([audio.decode(path, RATE) for path in sorted((folder / "clips").glob("*.flac"))], axis=1)


def test_stems_are_separated_once_and_stored(
    short_songs: Path, tmp_path: Path, tiny: Path, model: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (short_songs / "broken.flac").write_bytes(b"no music")
    plain = separated(short_songs, tmp_path / "plain", tiny, None)
    same = separated(short_songs, tmp_path / "all", tiny, model, keep_stems=["drums", "bass", "other", "vocals"])
    assert np.abs(same - plain).max() < 2e-3
    without = separated(short_songs, tmp_path / "some", tiny, model)
    assert np.abs(without - plain).max() > 0.01
    assert capsys.readouterr().out.count("broken.flac: ") == 3
    monkeypatch.setattr(Separator, "__init__", lambda *rest, **options: pytest.fail("loaded a model"))
    stems = ["other", "bass", "drums"]
    assert np.array_equal(separated(short_songs, tmp_path / "some", tiny, model, keep_stems=stems), without)


def test_tracks_of_a_file_have_stems_of_their_own(tmp_path: Path, model: Path) -> None:
    """In a float file of any scale, with a sample that is none."""
    stems: list[list[np.ndarray]] = []
    for scale in (40, 80):
        path = tmp_path / f"{scale}.wav"
        wave = scale * tone_song(3.0, 1, 2, 44_100)
        wave[0, 70_000] = np.nan
        soundfile.write(path, wave.T, 44_100, subtype="FLOAT")
        tracks = [
            Song(f"album {start}", lambda path=path: path, None, TRAIN, str(scale), start=start, end=end)
            for start, end in ((0.0, 1.0), (1.0, 2.5), (2.5, None))
        ]
        kept = keep_stems(tmp_path / f"data {scale}", tracks, ["drums", "bass"], model=str(model))
        assert [(song.start, song.end) for song in kept] == [(0.0, None)] * 3
        assert [song.damage for song in kept] == [None, f"album 1.0: silence at 1 place with {INVALID}", None]
        assert len({song.fingerprint for song in kept}) == 3
        stems.append([audio.decode(song.read(), 44_100) for song in kept])
    assert [stem.shape[1] for stem in stems[0]] == [44_100, 66_150, 22_050]
    assert all(np.abs(one - other).max() < 1e-3 for one, other in zip(*stems, strict=True))


def test_names_of_stem_files_are_those_of_earlier_versions(tmp_path: Path, model: Path) -> None:
    """A file name that earlier versions chose: songs that are separated already are not separated again."""
    path = tmp_path / "song.wav"
    audio.write(path, tone_song(1.0, 1), RATE)
    said = "\0".join(["song.wav", "1", separating.signature(str(model)), "drums"])
    known = hashlib.blake2b(said.encode(), digest_size=12).hexdigest()
    (song,) = keep_stems(
        tmp_path / "data", [Song("song.wav", lambda: path, None, TRAIN, "1")], ["drums"], model=str(model)
    )
    assert song.fingerprint == known


def test_stems_are_those_of_the_separator(
    short_songs: Path, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(separating, "PIECE", 5000)  # many pieces of a song
    songs = find_songs(str(short_songs), Columns()).songs
    kept = keep_stems(tmp_path / "data", songs, ["bass", "vocals"], model=str(model))
    separator = Separator(str(model), device=torch.device("cpu"))
    for song, stem in zip(songs, kept, strict=True):
        wave = audio.decode(song.read(), separator.rate)
        expected = np.concatenate(list(separator.keep(lambda wave=wave: [wave], ["bass", "vocals"])), axis=1)
        assert np.abs(audio.decode(stem.read(), separator.rate) - expected).max() < 2**-14


def test_damage_of_a_song_is_reported_for_its_stems(
    short_songs: Path, tmp_path: Path, tiny: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (short_songs / "0.flac").read_bytes()
    (short_songs / "0.flac").write_bytes(whole[: len(whole) // 2])
    for options in ({}, {"max_duration_in_seconds": 3}):  # the second time stems are kept, and cut anew
        separated(short_songs, tmp_path / "data", tiny, model, **options)
        records = [json.loads(line) for line in (tmp_path / "data" / "songs.jsonl").read_text().splitlines()]
        assert [bool(record["damage"]) for record in records] == [True, False]
        assert records[0]["damage"].startswith("0.flac: ")
        assert capsys.readouterr().out.count("0.flac: ") == 1


def test_an_offset_of_a_song_is_reported_for_its_stems(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "song.wav"
    audio.write(path, 0.5 * tone_song(4.0, 1, 2, 44_100) + np.float32(0.2), 44_100)
    cutting = cuttings.Cutting(RATE, HOP, 2, 1)
    expected = cuttings.cut_song(Song("song.wav", lambda: path, None, TRAIN, "1"), "song", tmp_path, cutting)
    for _ in range(2):  # the second time the stems are there
        (song,) = keep_stems(
            tmp_path / "data", [Song("song.wav", lambda: path, None, TRAIN, "1")], ["bass", "other"], model=str(model)
        )
        record = cuttings.cut_song(song, "song", tmp_path, cutting)
        assert record.offset == pytest.approx(expected.offset, rel=0.15)  # the peak depends on the rate
        assert record.offset > 0.1


def test_a_run_killed_while_separating_leaves_nothing(
    short_songs: Path, tmp_path: Path, tiny: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(separating, "PIECE", 5000)  # so that a part of the song is written
    forward, calls = Separator._forward, itertools.count()
    monkeypatch.setattr(Separator, "_forward", lambda *rest: killed() if next(calls) > 20 else forward(*rest))
    with pytest.raises(KeyboardInterrupt):
        separated(short_songs, tmp_path / "data", tiny, model)
    stems = tmp_path / "data" / "stems"
    (first,) = stems.iterdir()
    before = first.stat().st_mtime_ns
    (stems / f"{'0123' * 6}.part").write_bytes(b"of a kill that nothing could catch")
    monkeypatch.undo()
    separated(short_songs, tmp_path / "data", tiny, model)
    assert (len(list(stems.iterdir())), first.stat().st_mtime_ns) == (2, before)
    (short_songs / "0.flac").unlink()
    users = {"my drums.flac", "notes.txt", "session.part"}
    for name in users:
        (stems / name).write_bytes(b"of the user")
    separated(short_songs, tmp_path / "data", tiny, model)
    left = {path.name for path in stems.iterdir()}
    assert users < left
    assert len(left) == len(users) + 1


def killed() -> None:
    raise KeyboardInterrupt


def test_a_disk_that_fills_up_with_stems(short_songs: Path, tmp_path: Path, tiny: Path, model: Path) -> None:
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(audio.AudioWriteError, match=r"stems/.* cannot be written \(File too large\)"):
            separated(short_songs, tmp_path / "data", tiny, model)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "data" / "stems").iterdir()) == []


# The doctor


def test_prepare_ends_with_the_doctor(prepared: Path, tmp_path: Path, tiny: Path, cli: Callable[..., Ran]) -> None:
    data = shutil.copytree(prepared, tmp_path / "data")
    words = [*prepare_words(prepared.parent / "songs", data, tiny), "--doctor", "true"]
    report, metadata = data / "report.html", data / "clips" / "metadata.jsonl"
    ran = cli(*words)
    assert ran.code == 0
    assert f"Doctor: {data}" in ran.out
    assert "<audio" in report.read_text(encoding="utf-8")
    assert "Doctor: " not in cli(*words).out  # nothing has changed
    text = metadata.read_text(encoding="utf-8")
    metadata.write_text(text.replace('"text": "punk', '"text": "punk, edited', 1), encoding="utf-8")
    ran = cli(*words)
    assert "Doctor: " in ran.out
    assert "punk, edited" in report.read_text(encoding="utf-8")
    report.unlink()
    alone = cli("doctor", data, "--model_name_or_path", tmp_path / "nowhere")
    assert alone.code == 0
    assert "note: no codec preview: " in alone.out
    first, second = (one.out.split("Doctor: ")[1].splitlines()[:3] for one in (ran, alone))
    assert first == second
    assert report.exists()


@pytest.mark.parametrize("there", [True, False])
def test_the_doctor_needs_a_prepared_folder(there: bool, songs: Path, tmp_path: Path, cli: Callable[..., Ran]) -> None:
    ran = cli("doctor", songs if there else tmp_path / "nowhere")
    assert ran.code == 1
    assert "is no prepared folder; prepare SONGS --output_dir DIR makes one" in ran.err


# Several processes


@pytest.mark.slow
def test_two_processes_prepare_what_one_does(tmp_path: Path, tiny: Path, clap: Path, model: Path) -> None:
    two_songs = write_two_songs(tmp_path / "songs", 16.0)
    for number in (2, 3):
        audio.write(two_songs / f"{number}.flac", music(9.0, RATE, number), RATE)
    options = ["--add_metadata", "true", "--clap_model_name_or_path", clap, "--cut", "bars", "--bars", "2"]
    options += ["--audio_separation", "true", "--separation_model", model, "--preprocessing_num_workers", "1"]
    words = [*map(str, [*prepare_words(two_songs, tmp_path / "two", tiny), *options])]
    words[words.index("--max_duration_in_seconds") + 1] = "6"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launch = f"--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --main_process_port {port}"
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "accelerate.commands.launch", *launch.split(), "--dynamo_backend", "no"),
            *("-m", "musicgen_dreamboothing", *words),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    words[words.index("--output_dir") + 1] = str(tmp_path / "one")
    assert main(words) == 0
    for name in ("clips/metadata.jsonl", "songs.jsonl", "captions.json"):
        assert (tmp_path / "two" / name).read_text() == (tmp_path / "one" / name).read_text()
    assert sorted((tmp_path / "two" / "heard.jsonl").read_text().splitlines()) == sorted(
        (tmp_path / "one" / "heard.jsonl").read_text().splitlines()
    )
    paths = [*(tmp_path / "one" / "clips").glob("*.flac"), *(tmp_path / "one" / "stems").iterdir()]
    assert len(paths) > 8
    for path in paths:
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()
    assert not list((tmp_path / "two").glob("*-[0-9].jsonl"))
