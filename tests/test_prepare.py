"""`prepare`: songs of every kind become clips, captions and tokens, and a second run does only what changed."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from conftest import (
    SAMPLING_RATE,
    Ran,
    prepare_words,
    read_checkpoint,
    stored_codes,
    stored_states,
    tables_in,
    tone_song,
)
from random_checkpoint import write_tiny_checkpoint
from test_audio import dominant, encode, sine, sound_file
from transformers import MusicgenForConditionalGeneration

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.arguments import PrepareArguments, TrainArguments
from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.data.captions.captions import with_instance_prompt
from musicgen_dreamboothing.data.prepare import Prepared, checkpoint_of, prepare, prepare_songs, refresh
from musicgen_dreamboothing.data.songs.song import Collection, Columns
from musicgen_dreamboothing.data.songs.song_audio import INVALID
from musicgen_dreamboothing.data.songs.sources import find_songs
from musicgen_dreamboothing.data.tokens import store as tokens
from musicgen_dreamboothing.data.tokens import text_states
from musicgen_dreamboothing.data.tokens.arrow_tables import append_rows, join_rows, read_rows
from musicgen_dreamboothing.data.tokens.store import clip_rows
from musicgen_dreamboothing.files import folder_lock
from musicgen_dreamboothing.model import codec
from musicgen_dreamboothing.model.checkpoint import load_codec, load_tokenizer

Cli = Callable[..., Ran]
HOP = 320  # samples of a frame of the tiny codec: 50 frames a second


def write_song(path: Path, seconds: float, seed: int = 0, channels: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    audio.write(path, tone_song(seconds, seed, channels), SAMPLING_RATE)
    return path


def run(songs: Path | str, folder: Path, base: Path, **options: Any) -> Prepared:
    """`prepare` as a function, with options that suit short songs; their level stays, to compare samples."""
    usual = {"instance_prompt": "punk", "max_duration_in_seconds": 2, "min_duration_in_seconds": 1}
    usual |= {"normalize_loudness": False, "doctor": False}
    return prepare(
        PrepareArguments(songs=str(songs), output_dir=str(folder), model_name_or_path=str(base), **usual | options)
    )


def json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def metadata(folder: Path) -> list[dict[str, Any]]:
    return json_lines(folder / "clips" / "metadata.jsonl")


def change_metadata(folder: Path, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
    rows = change(metadata(folder))
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "clips" / "metadata.jsonl").write_text(text, encoding="utf-8")


def clips_of(folder: Path, source: str) -> list[dict[str, Any]]:
    return [row for row in metadata(folder) if row["source"] == source]


def captions(folder: Path) -> dict[str, str]:
    return {row["source"]: row["text"] for row in metadata(folder)}


def codes(folder: Path, base: Path | None = None) -> dict[str, np.ndarray]:
    """The codes `[K, T]` of each clip."""
    stored = {row["digest"]: np.asarray(row["codes"]) for row in stored_codes(folder, base).with_format("numpy")}
    return {row["file_name"]: stored[row["digest"]] for row in clip_rows(folder)}


def states(folder: Path, base: Path | None = None) -> dict[str, np.ndarray]:
    """The text states `[L, D]` of each caption."""
    stored = {row["text"]: np.asarray(row["states"]) for row in stored_states(folder, base)}
    return {row["text"]: stored[row["text"]] for row in clip_rows(folder, "punk")}


def assert_same_result(folder: Path, other: Path) -> None:
    assert metadata(folder) == metadata(other)
    names = [row["file_name"] for row in metadata(folder)]
    assert sorted(path.name for path in (folder / "clips").glob("*.flac")) == sorted(names)
    for name in names:
        assert (folder / "clips" / name).read_bytes() == (other / "clips" / name).read_bytes()
    for read in (codes, states):
        mine, theirs = read(folder), read(other)
        assert list(mine) == list(theirs)
        assert all(np.array_equal(mine[key], theirs[key]) for key in mine)


LOADERS = {"load_codec": tokens, "load_text_encoder": text_states}


@pytest.fixture(scope="module", autouse=True)
def kept_encoders() -> Iterator[None]:
    """Loads each encoder of each checkpoint once: a hundred times would take half a minute."""
    loaded: dict[tuple[str, str], Any] = {}

    def keep(name: str) -> Callable[..., Any]:
        load = getattr(LOADERS[name], name)
        return lambda base, device: (
            loaded.get((name, base.name)) or loaded.setdefault((name, base.name), load(base, device))
        )

    with pytest.MonkeyPatch.context() as patch:
        for name, module in LOADERS.items():
            patch.setattr(module, name, keep(name))
            patch.setattr(module, "release_memory", lambda: None)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """Three songs, prepared: `songs` and `data`, with clips of 2+2, 2+1.5 and 2 s."""
    root = tmp_path_factory.mktemp("finished")
    for number, seconds in enumerate((4.0, 3.5, 2.0)):
        write_song(root / "songs" / f"song {number}.wav", seconds, number)
    (root / "songs" / "song 1.txt").write_text("slow tones")
    made = run(root / "songs", root / "data", tiny)
    assert made == Prepared(root / "data", clips=5, songs_cut=3, clips_encoded=5, captions_encoded=2)
    return root


@pytest.fixture
def work(tmp_path: Path, finished: Path) -> Path:
    """A copy of `finished` to change; songs keep the time they were written at."""
    return shutil.copytree(finished, tmp_path / "work")


# --- cutting


def test_songs_of_every_length_are_cut_and_nothing_is_dropped(cli: Cli, tmp_path: Path, tiny: Path) -> None:
    lengths = {"a": 16.0, "b": 5.501, "c": 4.5, "d": 0.7}
    for seed, (name, seconds) in enumerate(lengths.items()):
        write_song(tmp_path / "songs" / f"{name}.wav", seconds, seed)
    ran = cli(*prepare_words(tmp_path / "songs", tmp_path / "data", tiny))
    assert ran.code == 0
    assert "13 clips from 3 songs, 0.4 minutes\n1 song skipped:\n  d.wav: lasts 0.7 s, less than the 1 s" in ran.out
    seconds = {name: [row["seconds"] for row in clips_of(tmp_path / "data", f"{name}.wav")] for name in lengths}
    assert seconds == {"a": [2.0] * 8, "b": [2.0, 2.0, 1.52], "c": [2.0, 2.0], "d": []}
    assert [row["start"] for row in clips_of(tmp_path / "data", "a.wav")] == [0, 2, 4, 6, 8, 10, 12, 14]
    for name in ("a", "b"):
        song = audio.decode(tmp_path / "songs" / f"{name}.wav", SAMPLING_RATE)
        files = [tmp_path / "data" / "clips" / row["file_name"] for row in clips_of(tmp_path / "data", f"{name}.wav")]
        clips = [audio.decode(path, SAMPLING_RATE) for path in files]
        assert all(clip.shape[1] % HOP == 0 for clip in clips)
        joined = np.concatenate(clips, axis=1)
        assert joined.shape[1] - song.shape[1] < HOP
        np.testing.assert_allclose(joined[:, : song.shape[1]], song, atol=2**-14)
        assert not joined[:, song.shape[1] :].any()


def test_a_clip_is_rounded_down_to_whole_frames(tmp_path: Path, tiny: Path) -> None:
    write_song(tmp_path / "songs" / "a.wav", 3.0)
    run(tmp_path / "songs", tmp_path / "data", tiny, max_duration_in_seconds=1.005)
    assert [row["seconds"] for row in metadata(tmp_path / "data")] == [1.0, 1.0, 1.0]


def test_a_minimum_above_the_maximum_keeps_whole_clips(tmp_path: Path, tiny: Path) -> None:
    write_song(tmp_path / "songs" / "a.wav", 2.5)
    run(tmp_path / "songs", tmp_path / "data", tiny, max_duration_in_seconds=1, min_duration_in_seconds=5)
    assert [row["seconds"] for row in metadata(tmp_path / "data")] == [1.0, 1.0]


def test_a_clip_needs_a_length(cli: Cli, songs: Path, tmp_path: Path, tiny: Path) -> None:
    ran = cli(*prepare_words(songs, tmp_path / "data", tiny), "--max_duration_in_seconds", 0)
    assert (ran.code, ran.err) == (
        1,
        "musicgen-dreamboothing: --max_duration_in_seconds 0 must be above 0 and at most 3600\n",
    )


def test_metadata_has_source_and_start_of_each_clip(cli: Cli, songs: Path, tmp_path: Path, tiny: Path) -> None:
    ran = cli(*prepare_words(songs, tmp_path / "data", tiny))
    assert ran.code == 0
    assert ran.out.endswith(
        f"Prepared in {tmp_path}/data. Edit captions in {tmp_path}/data/clips/metadata.jsonl, then run\n"
        f"  musicgen-dreamboothing train --dataset_name {tmp_path}/data --output_dir runs/mine "
        f"--model_name_or_path {tiny} --instance_prompt punk\n"
    )
    rows = metadata(tmp_path / "data")
    assert rows[0] == {
        "file_name": "album_0__song_0-000.flac",
        "text": "punk, slow tones over noise",
        "instance_prompt": "punk",
        "source": "album 0/song 0.wav",
        "split": "train",
        "start": 0.0,
        "seconds": 2.0,
    }
    assert all(list(row) == list(rows[0]) for row in rows)
    assert list(captions(tmp_path / "data")) == [f"album {n % 2}/song {n}.wav" for n in (0, 2, 1, 3)]
    assert [len(clips_of(tmp_path / "data", source)) for source in captions(tmp_path / "data")] == [5, 3, 4, 2]


def test_one_file_is_a_song(finished: Path, tmp_path: Path, tiny: Path) -> None:
    made = run(finished / "songs" / "song 1.wav", tmp_path / "data", tiny)
    assert (made.clips, captions(tmp_path / "data")) == (2, {"song 1.wav": "punk, slow tones"})


def test_songs_of_one_name_do_not_share_clips(tmp_path: Path, tiny: Path) -> None:
    names = ["song.wav", "song.flac", "Song.ogg", "a/song.wav", "a__song.wav", "a__song.flac"]
    for number, name in enumerate(names):
        write_song(tmp_path / "songs" / name, 2.0, number)
    run(tmp_path / "songs", tmp_path / "data", tiny)
    files = {row["source"]: row["file_name"] for row in metadata(tmp_path / "data")}
    assert sorted(files) == sorted(names)
    assert len({name.lower() for name in files.values()}) == len(names)  # some file systems know no capitals
    for number, name in enumerate(names):
        clip = audio.decode(tmp_path / "data" / "clips" / files[name], SAMPLING_RATE)
        np.testing.assert_allclose(clip, tone_song(2.0, number), atol=0.2)  # .ogg is lossy


def test_a_new_song_never_takes_the_clips_of_an_old_one(tmp_path: Path, tiny: Path) -> None:
    write_song(tmp_path / "songs" / "song.wav", 2.0, seed=1)
    run(tmp_path / "songs", tmp_path / "data", tiny)
    write_song(tmp_path / "songs" / "song.flac", 2.0, seed=2)  # comes before song.wav
    assert run(tmp_path / "songs", tmp_path / "data", tiny).songs_cut == 1
    for source, seed in (("song.wav", 1), ("song.flac", 2)):
        (row,) = clips_of(tmp_path / "data", source)
        clip = audio.decode(tmp_path / "data" / "clips" / row["file_name"], SAMPLING_RATE)
        np.testing.assert_allclose(clip, tone_song(2.0, seed), atol=2**-14)


def test_names_that_file_systems_refuse_are_made_legal(tmp_path: Path, tiny: Path) -> None:
    names = ["夜" * 80 + ".wav", "夜" * 80 + "に.wav", "...And.wav", 'a: "b" <c>|?*.wav', "-tab\tnew\nline.wav"]
    for number, name in enumerate(names):
        write_song(tmp_path / "songs" / name, 1.0, number)
    run(tmp_path / "songs", tmp_path / "data", tiny)
    assert sorted(captions(tmp_path / "data")) == sorted([*names[:-1], "-tab\\tnew\\nline.wav"])
    for row in metadata(tmp_path / "data"):
        assert len(row["file_name"].encode()) < 143
        assert not set(row["file_name"]) & set('<>:"|?*\\/ \t\n')
        assert not row["file_name"].startswith((".", "-"))


def test_what_macos_writes_beside_songs_is_no_song(tmp_path: Path, tiny: Path) -> None:
    write_song(tmp_path / "songs" / "song.wav", 1.0, 0)
    (tmp_path / "songs" / "._song.wav").write_bytes(b"Mac OS X")
    run(tmp_path / "songs", tmp_path / "data", tiny)
    assert list(captions(tmp_path / "data")) == ["song.wav"]


def test_our_own_clips_among_the_songs_are_no_songs(tmp_path: Path, tiny: Path) -> None:
    write_song(tmp_path / "songs" / "song.wav", 2.0)
    for _ in range(2):  # the output folders stand among the songs
        made = [run(tmp_path / "songs", tmp_path / "songs" / name, tiny) for name in ("run", "other", ".")]
        assert [one.clips for one in made] == [1, 1, 1]
    assert [one.songs_cut for one in made] == [0, 0, 0]


# --- captions


def test_the_instance_prompt_comes_first_and_once() -> None:
    for prompt, own, caption in (
        ("punk", "fast and loud", "punk, fast and loud"),
        ("punk", "Punk song with drums", "Punk song with drums"),
        ("punk", "punk, loud", "punk, loud"),
        ("punk", "punk", "punk"),
        ("punk", "punkish tune", "punk, punkish tune"),
        ("punk", "loud punk", "punk, loud punk"),
        (" punk ", "  loud ", "punk, loud"),
        ("80s punk", "80s pop", "80s punk, 80s pop"),
        ("punk", "", "punk"),
        ("punk", None, "punk"),
        (None, "loud", "loud"),
        ("", "loud", "loud"),
    ):
        assert with_instance_prompt(prompt, own) == caption
        assert with_instance_prompt(prompt, caption) == caption


def test_captions_come_from_text_files_and_metadata(tmp_path: Path, tiny: Path) -> None:
    songs = tmp_path / "songs"
    for number, name in enumerate(["file.wav", "both.wav", "row.wav", "none.wav", "sub/row.wav", "sub/deep/row.wav"]):
        write_song(songs / name, 1.0, number)
    (songs / "file.txt").write_bytes(b"\xef\xbb\xbfslow\r\ntones")  # from Notepad
    (songs / "both.txt").write_text("from the file")
    rows = [{"file_name": "row.wav", "text": "from \u2028 the row"}, {"file_name": "both.wav", "text": "from the row"}]
    text = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (songs / "metadata.jsonl").write_text("\ufeff" + text, encoding="utf-8")
    (songs / "sub" / "metadata.csv").write_text("file_name,text\nrow.wav,below\ndeep/row.wav,deeper\n", "utf-8-sig")
    for prompt in ("punk, ", ""):
        run(songs, tmp_path / "data", tiny, instance_prompt=prompt.strip(", ") or None)
        assert captions(tmp_path / "data") == {
            "both.wav": f"{prompt}from the file",
            "file.wav": f"{prompt}slow tones",
            "none.wav": prompt.strip(", "),
            "row.wav": f"{prompt}from the row",
            "sub/deep/row.wav": f"{prompt}deeper",
            "sub/row.wav": f"{prompt}below",
        }


def test_captions_from_a_column_of_ones_own(cli: Cli, tmp_path: Path, tiny: Path) -> None:
    write_song(tmp_path / "songs" / "a.wav", 1.0)
    (tmp_path / "songs" / "metadata.csv").write_text('file_name,mood\na.wav,"dark, and\nslow"\n')
    words = [*prepare_words(tmp_path / "songs", tmp_path / "data", tiny), "--text_column_name"]
    ran = cli(*words, "words")
    assert ran.code == 1
    assert "no column 'words' in" in ran.err
    assert ran.err.endswith("metadata.csv; it has file_name, mood\n")
    assert cli(*words, "mood").code == 0
    assert captions(tmp_path / "data")["a.wav"].split() == ["punk,", "dark,", "and", "slow"]


@pytest.mark.parametrize("content", [b"file_name,text\na.wav,f\xfcr\n", "file_name,text\n".encode("utf-16-le")])
def test_a_table_that_is_no_text_is_named(cli: Cli, tmp_path: Path, tiny: Path, content: bytes) -> None:
    write_song(tmp_path / "songs" / "a.wav", 1.0)
    (tmp_path / "songs" / "metadata.csv").write_bytes(content)
    ran = cli(*prepare_words(tmp_path / "songs", tmp_path / "data", tiny))
    assert ran.code == 1
    assert f"{tmp_path / 'songs' / 'metadata.csv'} is not UTF-8 text (" in ran.err
    assert ran.err.count("\n") == 1


def test_songs_without_any_caption_are_refused(songs: Path, tmp_path: Path, tiny: Path) -> None:
    (songs / "album 0" / "song 0.txt").write_text(" \n")
    with pytest.raises(UserError, match=r"no song has a caption\. Fix: give the style a name with"):
        run(songs, tmp_path / "data", tiny, instance_prompt=None)
    assert not list((tmp_path / "data").rglob("*.flac"))


# --- formats


def test_every_format_becomes_the_same_clip(cli: Cli, tmp_path: Path, tiny: Path) -> None:
    wide = np.repeat(sine(1.6, 48_000), 8, axis=0)
    files = {
        "a.mp3": encode("libmp3lame", "mp3", sine(1.6, 44_100), 44_100),
        "b.m4a": encode("aac", "ipod", sine(1.6, 44_100, 2), 44_100),
        "c.ogg": sound_file(sine(1.6, 44_100), 44_100, "OGG", "VORBIS"),
        "d.opus": encode("libopus", "ogg", sine(1.6, 48_000), 48_000),
        "e.flac": sound_file(sine(1.6, 44_100, 2), 44_100, "FLAC"),
        "f.WAV": sound_file(sine(1.6, 44_100), 44_100, "WAV", "FLOAT"),
        "g.aiff": sound_file(sine(1.6, 44_100), 44_100, "AIFF"),
        "h.mp4": encode("aac", "mp4", sine(1.6, 44_100), 44_100, pictures=True),
        "i.flac": encode("flac", "flac", wide, 48_000, layout="7.1"),
        "j.wav": sound_file(sine(1.6, 8_000), 8_000),
        "k.wav": sound_file(sine(1.6, 192_000), 192_000),
    }
    (tmp_path / "songs").mkdir()
    for name, content in files.items():
        (tmp_path / "songs" / name).write_bytes(content)
    (tmp_path / "songs" / "cover.jpg").write_bytes(b"no music")
    ran = cli(*prepare_words(tmp_path / "songs", tmp_path / "data", tiny), "--max_duration_in_seconds", 1.5)
    assert ran.code == 0
    assert "11 clips from 11 songs" in ran.out
    assert "skipped" not in ran.out
    assert "damaged" not in ran.out
    for row in metadata(tmp_path / "data"):
        clip = audio.decode(tmp_path / "data" / "clips" / row["file_name"], SAMPLING_RATE)
        assert (row["start"], row["seconds"]) == (0, 1.5)
        assert clip.shape == (2 if row["source"] in ("b.m4a", "e.flac", "i.flac") else 1, 24_000)
        assert dominant(clip, SAMPLING_RATE) == pytest.approx(440, abs=1)


def test_what_cannot_be_used_is_skipped_named_and_counted(cli: Cli, tmp_path: Path, tiny: Path) -> None:
    not_a_number = sine(2.0, SAMPLING_RATE)
    not_a_number[0, -5] = np.nan
    files = {
        "empty.wav": b"",
        "good.wav": sound_file(sine(2.0, SAMPLING_RATE), SAMPLING_RATE),
        "nan.wav": sound_file(not_a_number, SAMPLING_RATE, subtype="FLOAT"),
        "silent.wav": sound_file(np.zeros((1, 40_000), np.float32), SAMPLING_RATE),
        "text.wav": b"this is not music\n" * 40,
        "torn.mp3": encode("libmp3lame", "mp3", sine(6.0, 44_100), 44_100)[:60_000],
    }
    (tmp_path / "songs").mkdir()
    for name, content in files.items():
        (tmp_path / "songs" / name).write_bytes(content)
    words = prepare_words(tmp_path / "songs", tmp_path / "data", tiny)
    for _ in range(2):  # a second run says it again
        ran = cli(*words)
        assert ran.code == 0
        lines = ran.out.splitlines()
        assert lines[0] == "3 clips from 2 songs, 0.1 minutes"
        assert lines[1:7] == [
            "4 songs skipped:",
            "  empty.wav: not a readable audio file (Invalid data found when processing input)",
            f"  nan.wav: every clip that is not silent holds {INVALID}",
            "  silent.wav: is silent",
            "  text.wav: not a readable audio file (Invalid data found when processing input)",
            "1 song damaged, the rest of each is used:",
        ]
        assert lines[7].startswith("  torn.mp3: ")
    assert {row["source"] for row in metadata(tmp_path / "data")} == {"good.wav", "torn.mp3"}
    assert len(list((tmp_path / "data" / "clips").glob("*.flac"))) == 3
    (tmp_path / "songs" / "good.wav").unlink()
    (tmp_path / "songs" / "torn.mp3").unlink()
    ran = cli(*words)
    assert (ran.code, ran.err) == (1, "musicgen-dreamboothing: no song could be used; see the reasons above\n")
    assert ran.out.startswith("0 clips from 0 songs, 0.0 minutes\n4 songs skipped:\n  empty.wav: ")


def test_folders_without_songs_are_an_error_in_one_line(cli: Cli, tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("none yet")
    for place, told in (
        (tmp_path / "empty", f"no audio files in {tmp_path / 'empty'}; songs may be 3gp, aac, "),
        (tmp_path / "nothing", f"no such folder: {tmp_path / 'nothing'}; give a folder of songs, a saved dataset or"),
        ("./nothing", "no such folder: nothing; give a folder of songs"),
        ("some/thing", "no folder 'some/thing' here, and as a Hub dataset it can't be loaded: "),
        ("my songs", "no folder 'my songs' here, and as a Hub dataset it can't be loaded: Repo id must use"),
    ):
        ran = cli(*prepare_words(place, tmp_path / "data", tiny))
        assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
        assert ran.err.startswith(f"musicgen-dreamboothing: {told}")


# --- datasets


def rows_of_songs(seeds: list[int], paths: Path | None = None) -> dict[str, list[Any]]:
    """Songs as the columns of a dataset: 1 s each, as bytes or as files."""
    audios = []
    for seed in seeds:
        content = io.BytesIO()
        content.write(sound_file(tone_song(1.0, seed), SAMPLING_RATE, "FLAC"))
        if paths is None:
            audios.append({"bytes": content.getvalue(), "path": None})
        else:
            (paths / f"{seed}.flac").write_bytes(content.getvalue())
            audios.append({"bytes": None, "path": str(paths / f"{seed}.flac")})
    return {"others": audios, "mood": [f"mood {seed}" for seed in seeds], "number": seeds}


def audio_dataset(seeds: list[int], paths: Path | None = None) -> datasets.Dataset:
    """The same with an audio feature, which does not decode: that would need torchcodec."""
    table = datasets.Dataset.from_dict(rows_of_songs(seeds, paths))
    return table.cast_column("others", datasets.Audio(decode=False))


def test_a_saved_dataset(tmp_path: Path, tiny: Path) -> None:
    audio_dataset([0, 1, 2], paths=tmp_path).save_to_disk(str(tmp_path / "saved"))
    for cut in (3, 0):
        made = run(tmp_path / "saved", tmp_path / "data", tiny, text_column_name="mood")
        assert (made.clips, made.songs_cut, made.clips_encoded) == (3, cut, cut)
    assert captions(tmp_path / "data") == {f"train/00000{n}": f"punk, mood {n}" for n in range(3)}
    clip = audio.decode(tmp_path / "data" / "clips" / "Train__000002-000.flac", SAMPLING_RATE)
    np.testing.assert_allclose(clip, tone_song(1.0, 2), atol=2**-14)


def test_a_saved_dataset_with_splits(cli: Cli, tmp_path: Path, tiny: Path) -> None:
    splits = {"clean": audio_dataset([0, 1]), "test": audio_dataset([2]), "dirty": audio_dataset([3])}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
    words = prepare_words(tmp_path / "saved", tmp_path / "data", tiny)
    ran = cli(*words)
    assert (ran.code, ran.err) == (
        1,
        f"musicgen-dreamboothing: no split 'train' in {tmp_path / 'saved'}; it has clean, test, dirty\n",
    )
    ran = cli(*words, "--train_split_name", "clean", "--eval_split_name", "test")
    assert ran.code == 0
    assert "3 clips from 3 songs, 0.1 minutes\n1 song of them for evaluation\n" in ran.out
    assert {row["source"]: row["split"] for row in metadata(tmp_path / "data")} == {
        "clean/000000": "train",
        "clean/000001": "train",
        "test/000000": "eval",
    }
    ran = cli(*words, "--train_split_name", "clean", "--eval_split_name", "clean")
    assert ran.code == 0
    assert "--eval_split_name clean is the training split; songs are held out of it instead" in ran.out
    assert [row["split"] for row in metadata(tmp_path / "data")] == ["train", "train"]


def test_columns_are_found_or_named(cli: Cli, tmp_path: Path, tiny: Path) -> None:
    columns = rows_of_songs([0])
    table = datasets.Dataset.from_dict({**columns, "text": [5]})  # no audio feature, and captions that are numbers
    table.save_to_disk(str(tmp_path / "saved"))
    words = prepare_words(tmp_path / "saved", tmp_path / "data", tiny)
    for more, told in (
        ([], f"which column of {tmp_path / 'saved'} holds the songs? Say it with --target_audio_column_name; it has"),
        (["--target_audio_column_name", "audio"], f"no column 'audio' in {tmp_path / 'saved'}; it has"),
        (
            ["--target_audio_column_name", "others", "--text_column_name", "words"],
            f"no column 'words' in {tmp_path / 'saved'}; it has",
        ),
    ):
        ran = cli(*words, *more)
        assert (ran.code, ran.err) == (1, f"musicgen-dreamboothing: {told} others, mood, number, text\n")
    ran = cli(*words, "--target_audio_column_name", "others")
    assert ran.code == 0
    assert "1 row whose caption is no text and is left out: train/000000\n" in ran.out
    assert captions(tmp_path / "data") == {"train/000000": "punk"}


def test_a_column_called_audio_needs_no_option(tmp_path: Path, tiny: Path) -> None:
    table = datasets.Dataset.from_dict({"audio": rows_of_songs([0])["others"], "extra": rows_of_songs([1])["others"]})
    table.save_to_disk(str(tmp_path / "saved"))
    assert run(tmp_path / "saved", tmp_path / "data", tiny).clips == 1


def test_a_folder_of_parquet_files(tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "songs" / "data").mkdir(parents=True)
    audio_dataset([0, 1]).to_parquet(str(tmp_path / "songs" / "data" / "train-0.parquet"))
    audio_dataset([2]).to_parquet(str(tmp_path / "songs" / "data" / "test-0.parquet"))
    for cut in (3, 0):
        cache = {"cache_dir": str(tmp_path / "cache")}
        made = run(
            tmp_path / "songs", tmp_path / "data", tiny, text_column_name="mood", eval_split_name="test", **cache
        )
        assert (made.clips, made.songs_cut) == (3, cut)
    assert captions(tmp_path / "data")["test/000000"] == "punk, mood 2"
    assert (tmp_path / "cache").is_dir()


def test_a_folder_is_an_evaluation_split(cli: Cli, songs: Path, tmp_path: Path, tiny: Path) -> None:
    words = prepare_words(songs, tmp_path / "data", tiny)
    ran = cli(*words, "--eval_split_name", "album 3")
    assert ran.code == 1
    assert f"no songs in {songs / 'album 3'}; --eval_split_name takes a sub-folder of {songs}" in ran.err
    assert cli(*words).code == 0
    assert {row["split"] for row in metadata(tmp_path / "data")} == {"train"}
    ran = cli(*words, "--eval_split_name", "album 1")  # of songs that were cut before
    assert ran.code == 0
    assert "2 songs of them for evaluation" in ran.out
    held_out = {row["file_name"] for row in metadata(tmp_path / "data") if row["split"] == "eval"}
    assert set(tables_in(tmp_path / "data", tiny).held_out["file_name"]) == held_out
    assert {row["split"] for row in metadata(tmp_path / "data") if "album 1/" in row["source"]} == {"eval"}
    assert {row["split"] for row in metadata(tmp_path / "data") if "album 0/" in row["source"]} == {"train"}


# --- again


@pytest.fixture
def no_encoders(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes loading an encoder fail; which ones, the test says."""

    def refuse(*_: object) -> None:
        raise AssertionError("an encoder was loaded")

    return lambda name: monkeypatch.setattr(LOADERS[f"load_{name}"], f"load_{name}", refuse)


def test_a_second_run_has_nothing_to_do(
    cli: Cli, work: Path, finished: Path, tiny: Path, no_encoders: Callable[[str], None]
) -> None:
    no_encoders("codec")
    no_encoders("text_encoder")
    made = run(work / "songs", work / "data", tiny)
    assert made == Prepared(work / "data", clips=5, songs_cut=0, clips_encoded=0, captions_encoded=0)
    assert cli(*prepare_words(work / "songs", work / "data", tiny)).err == ""  # no bar over nothing
    assert_same_result(work / "data", finished / "data")


def test_an_edited_caption_is_all_that_is_encoded(
    work: Path, finished: Path, tiny: Path, no_encoders: Callable[[str], None]
) -> None:
    def edit(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        rows[3] |= {"text": "my \u2028 words", "mood": "dark"}
        return rows

    change_metadata(work / "data", edit)
    no_encoders("codec")
    made = run(work / "songs", work / "data", tiny)
    assert (made.songs_cut, made.clips_encoded, made.captions_encoded) == (0, 0, 1)
    row = metadata(work / "data")[3]
    assert (row["text"], row["mood"]) == ("my \u2028 words", "dark")
    # the instance prompt comes first in edited captions, too
    assert set(states(work / "data")) == {"punk", "punk, slow tones", "punk, my \u2028 words"}
    for name, code in codes(finished / "data").items():
        assert np.array_equal(codes(work / "data")[name], code)
    assert run(work / "songs", work / "data", tiny).captions_encoded == 0


def test_a_line_without_a_caption_gets_ours_again(work: Path, finished: Path, tiny: Path) -> None:
    def edit(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        del rows[0]["text"]
        return [rows[0], rows[1] | {"text": None}, *rows[2:]]

    change_metadata(work / "data", edit)
    run(work / "songs", work / "data", tiny)
    assert_same_result(work / "data", finished / "data")


def test_captions_and_songs_that_come_back_are_known(
    work: Path, finished: Path, tiny: Path, no_encoders: Callable[[str], None]
) -> None:
    no_encoders("codec")
    no_encoders("text_encoder")
    for name in ("song 1.txt", "song 2.wav"):
        (work / "songs" / name).rename(work / name)
    made = run(work / "songs", work / "data", tiny)
    assert (made.clips, made.clips_encoded, made.captions_encoded) == (4, 0, 0)
    assert set(states(work / "data")) == {"punk"}
    for name in ("song 1.txt", "song 2.wav"):
        (work / name).rename(work / "songs" / name)
    made = run(work / "songs", work / "data", tiny)
    assert (made.clips, made.songs_cut, made.clips_encoded, made.captions_encoded) == (5, 1, 0, 0)
    assert_same_result(work / "data", finished / "data")


def test_a_deleted_line_is_not_restored(work: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_metadata(work / "data", lambda rows: rows[1:])
    for _ in range(2):
        made = run(work / "songs", work / "data", tiny)
        assert (made.clips, made.clips_encoded) == (4, 0)
        left_out = f"Left out 1 clip, whose lines were deleted from {work}/data/clips/metadata.jsonl"
        assert left_out in capsys.readouterr().out
        assert list(codes(work / "data")) == [row["file_name"] for row in metadata(work / "data")]
    (work / "data" / "clips" / "metadata.jsonl").unlink()  # to begin anew
    assert run(work / "songs", work / "data", tiny).clips == 5
    assert "Left out" not in capsys.readouterr().out


def test_without_any_line_there_is_nothing_to_do(cli: Cli, work: Path, tiny: Path) -> None:
    change_metadata(work / "data", lambda rows: [])
    ran = cli(*prepare_words(work / "songs", work / "data", tiny))
    assert ran.code == 1
    assert f"{work}/data/clips/metadata.jsonl lists no clip whose file is there" in ran.err


def test_a_missing_clip_is_noted(cli: Cli, work: Path, tiny: Path) -> None:
    (work / "data" / "clips" / "song_0-001.flac").unlink()
    ran = cli(*prepare_words(work / "songs", work / "data", tiny))
    assert ran.code == 0
    assert f"note: left out 1 line of {work}/data/clips/metadata.jsonl whose file is missing" in ran.out
    assert len(codes(work / "data")) == 4


def test_a_changed_song_is_cut_alone(work: Path, finished: Path, tiny: Path) -> None:
    write_song(work / "songs" / "song 0.wav", 3.0, seed=9)
    made = run(work / "songs", work / "data", tiny)
    assert made == Prepared(work / "data", clips=5, songs_cut=1, clips_encoded=2, captions_encoded=0)
    assert [row["seconds"] for row in clips_of(work / "data", "song 0.wav")] == [2.0, 1.0]
    old, new = codes(finished / "data"), codes(work / "data")
    assert {name for name in new if not np.array_equal(old[name], new[name])} == {"song_0-000.flac", "song_0-001.flac"}
    write_song(work / "songs" / "song 0.wav", 2.0, seed=9)
    assert run(work / "songs", work / "data", tiny).clips == 4
    assert not (work / "data" / "clips" / "song_0-001.flac").exists()


def test_a_removed_song_disappears(work: Path, tiny: Path, no_encoders: Callable[[str], None]) -> None:
    no_encoders("codec")
    (work / "songs" / "song 0.wav").unlink()
    made = run(work / "songs", work / "data", tiny)
    assert (made.clips, made.songs_cut) == (3, 0)
    assert sorted(path.name for path in (work / "data" / "clips").glob("*.flac")) == sorted(codes(work / "data"))
    assert "song 0.wav" not in captions(work / "data")


def test_another_length_cuts_again(work: Path, tiny: Path) -> None:
    made = run(work / "songs", work / "data", tiny, max_duration_in_seconds=1)
    assert (made.clips, made.songs_cut) == (9, 3)
    assert {row["seconds"] for row in metadata(work / "data")} == {1.0}
    assert run(work / "songs", work / "data", tiny, max_duration_in_seconds=1).songs_cut == 0


def test_another_instance_prompt_spares_edited_captions(
    work: Path, tiny: Path, no_encoders: Callable[[str], None]
) -> None:
    no_encoders("codec")
    change_metadata(work / "data", lambda rows: [rows[0] | {"text": "my words"}, *rows[1:]])
    made = run(work / "songs", work / "data", tiny, instance_prompt="metal")
    assert made.captions_encoded == 3
    expected = ["my words", "metal", "metal, slow tones", "metal, slow tones", "metal"]
    assert [row["text"] for row in metadata(work / "data")] == expected
    assert {row["instance_prompt"] for row in metadata(work / "data")} == {"metal"}


@pytest.fixture
def hub_of_songs(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives the Hub a dataset with the songs of `work`, each in a file of its own."""

    def find(where: str, columns: Columns, **_: object) -> Collection:
        assert where == "someone/songs"
        return Collection(find_songs(str(work / "songs"), Columns()).songs[: columns.max_train_songs])

    monkeypatch.setattr("musicgen_dreamboothing.data.prepare.find_songs", find)


def run_limited(folder: Path, base: Path, most: int | None, songs: str = "someone/songs", **more: Any) -> Prepared:
    """What `train` does with songs before it trains."""
    usual = {"instance_prompt": "punk", "max_duration_in_seconds": 2, "min_duration_in_seconds": 1}
    options = TrainArguments(output_dir=str(folder), max_train_samples=most, normalize_loudness=False, **usual | more)
    return prepare_songs(songs, folder, options, read_checkpoint(base))


@pytest.mark.usefixtures("hub_of_songs")
def test_a_limit_on_songs_keeps_what_is_on_record(work: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Edits, deletions and clips of the songs that it leaves out; without the limit nothing is cut again."""
    data = work / "data"
    change_metadata(data, lambda rows: [*rows[:2], rows[2] | {"text": "my own words", "mood": "dark"}, rows[4]])
    before = metadata(data), (data / "songs.jsonl").read_bytes(), sorted((data / "clips").glob("*.flac"))
    for most in (1, None, 2):
        made = run_limited(data, tiny, most)
        assert (made.clips, made.songs_cut, made.clips_encoded) == (4, 0, 0)
        assert before == (metadata(data), (data / "songs.jsonl").read_bytes(), sorted((data / "clips").glob("*.flac")))
        assert list(codes(data)) == [row["file_name"] for row in metadata(data)]
        kept = {1: "Kept 2 songs prepared earlier", None: "", 2: "Kept 1 song prepared earlier"}[most]
        assert kept in capsys.readouterr().out


@pytest.mark.usefixtures("hub_of_songs")
def test_a_limit_on_songs_limits_what_is_new(work: Path, tiny: Path) -> None:
    for most, songs, cut in ((1, 1, 1), (2, 2, 1), (1, 2, 0)):
        assert run_limited(work / "new", tiny, most).songs_cut == cut
        assert list(captions(work / "new")) == [f"song {number}.wav" for number in range(songs)]
    change_metadata(work / "new", lambda rows: rows[1:])
    made = run_limited(work / "new", tiny, 1, max_duration_in_seconds=1)  # the other song is not read
    assert (made.songs_cut, [row["seconds"] for row in clips_of(work / "new", "song 1.wav")]) == (1, [2.0, 1.5])
    made = run_limited(work / "new", tiny, None, max_duration_in_seconds=1)
    assert (made.songs_cut, {row["seconds"] for row in clips_of(work / "new", "song 1.wav")}) == (2, {1.0})


@pytest.mark.usefixtures("hub_of_songs")
def test_a_new_song_never_takes_the_clips_of_one_that_is_only_on_record(work: Path, tiny: Path) -> None:
    run_limited(work / "new", tiny, None)
    before = (work / "new" / "clips" / "song_1-000.flac").read_bytes()
    write_song(work / "songs" / "SONG 1.wav", 2.0, seed=9)  # first in the order of names
    made = run_limited(work / "new", tiny, 1)
    assert (made.songs_cut, (work / "new" / "clips" / "song_1-000.flac").read_bytes()) == (1, before)
    assert len(clips_of(work / "new", "song 1.wav")) == 2
    assert clips_of(work / "new", "SONG 1.wav")[0]["file_name"].casefold() != "song_1-000.flac"


def test_a_limit_does_not_keep_songs_that_are_gone_from_a_folder(work: Path, tiny: Path) -> None:
    (work / "songs" / "song 0.wav").unlink()
    made = run_limited(work / "data", tiny, 1, songs=str(work / "songs"))
    assert (made.clips, set(captions(work / "data"))) == (3, {"song 1.wav", "song 2.wav"})


@pytest.mark.parametrize("name", ["mine.flac", "{stem}-remix.flac", "{stem}-take2.flac", "{stem}-900.flac"])
def test_a_clip_that_a_user_added_is_not_deleted(work: Path, tiny: Path, name: str) -> None:
    """Whatever it is called: a name that begins as those of a song's clips makes it none of them."""
    stem = metadata(work / "data")[0]["file_name"].rpartition("-")[0]
    name = name.format(stem=stem)
    write_song(work / "data" / "clips" / name, 1.0, seed=7)
    change_metadata(work / "data", lambda rows: [*rows, {"file_name": name, "text": "my own", "mood": "dark"}])
    for encoded in (1, 0):
        made = run(work / "songs", work / "data", tiny)
        assert (made.clips, made.clips_encoded) == (6, encoded)
    assert metadata(work / "data")[-1] == {"file_name": name, "text": "my own", "mood": "dark"}
    assert codes(work / "data")[name].shape == (4, 50)


def test_overwrite_cache_prepares_everything_again(work: Path, finished: Path, tiny: Path) -> None:
    change_metadata(work / "data", lambda rows: [rows[0] | {"text": "my words"}])
    (work / "data" / "notes.txt").write_text("mine")
    made = run(work / "songs", work / "data", tiny, overwrite_cache=True)
    assert made == Prepared(work / "data", clips=5, songs_cut=3, clips_encoded=5, captions_encoded=2)
    assert (work / "data" / "notes.txt").read_text() == "mine"
    assert_same_result(work / "data", finished / "data")


def test_a_wrong_place_costs_nothing_that_is_prepared(work: Path, finished: Path, tiny: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        run(work / "nothing", work / "data", tiny, overwrite_cache=True)
    assert_same_result(work / "data", finished / "data")


@pytest.mark.parametrize("place", ["clips", "tokens", "a clip", "link", "relative", "linked folder", "linked clip"])
@pytest.mark.parametrize("options", [(), ("--overwrite_cache", "true")])
def test_songs_where_clips_are_written_are_refused(
    cli: Cli, work: Path, finished: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, place: str, options: tuple[str]
) -> None:
    """They would be deleted as clips of an earlier run."""
    clips = work / "data" / "clips"
    (work / "mixed").mkdir()
    write_song(work / "mixed" / "song.wav", 2.0)
    (work / "link").symlink_to(clips)
    if place == "linked folder":
        (work / "mixed" / "more").symlink_to(clips)
    elif place == "linked clip":
        (work / "mixed" / "best.flac").symlink_to(clips / "song_0-000.flac")
    monkeypatch.chdir(work / "songs")
    songs = {
        "clips": clips,
        "tokens": work / "data" / "tokens",
        "a clip": clips / "song_0-000.flac",
        "link": work / "link",
        "relative": "../data/../data/clips",
    }.get(place, work / "mixed")
    ran = cli(*prepare_words(Path(songs), work / "data", tiny), *options)
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
    written = work / "data" / ("tokens" if place == "tokens" else "clips")
    assert f"can't be read as songs: this run writes to {written}; choose another --output_dir" in ran.err
    assert_same_result(work / "data", finished / "data")


def test_own_songs_in_a_folder_called_clips_are_refused_before_they_are_mixed(cli: Cli, work: Path, tiny: Path) -> None:
    mine = write_song(work / "songs" / "clips" / "mine.flac", 2.0)
    ran = cli(*prepare_words(work / "songs", work / "songs", tiny), "--overwrite_cache", "true")
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert "mine.flac can't be read as songs" in ran.err
    assert [path.name for path in mine.parent.iterdir()] == ["mine.flac"]


def test_another_codec_and_text_encoder_encode_again(work: Path, finished: Path, tiny: Path, tmp_path: Path) -> None:
    other = write_tiny_checkpoint(tmp_path / "other", seed=1)
    made = run(work / "songs", work / "data", other)
    assert made == Prepared(work / "data", clips=5, songs_cut=0, clips_encoded=5, captions_encoded=2)
    old, new = codes(finished / "data"), codes(work / "data", other)
    assert not any(np.array_equal(old[name], new[name]) for name in old)
    assert not np.allclose(states(finished / "data")["punk"], states(work / "data", other)["punk"])
    made = run(work / "songs", work / "data", tiny)  # what is known of the first one is there still
    assert made == Prepared(work / "data", clips=5, songs_cut=0, clips_encoded=0, captions_encoded=0)


# --- killed, refused, full


class Counted:
    """Calls on to a function and counts; from call `limit` on it is Ctrl-C that comes."""

    def __init__(self, function: Callable[..., Any], limit: int | None = None) -> None:
        self.function = function
        self.limit = limit
        self.calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.calls == self.limit:
            raise KeyboardInterrupt
        self.calls += 1
        return self.function(*args, **kwargs)


STOPPED = "musicgen-dreamboothing: stopped; what is done is saved, and the same command resumes from there\n"


def test_a_run_killed_while_cutting_continues(
    cli: Cli, finished: Path, tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*prepare_words(finished / "songs", tmp_path / "data", tiny), "--preprocessing_num_workers", 1]
    monkeypatch.setattr(audio, "write", Counted(audio.write, limit=3))  # in the second song
    ran = cli(*words)
    assert ran.code == 130
    assert ran.err.endswith(STOPPED)
    assert not (tmp_path / "data" / "clips" / "metadata.jsonl").exists()
    with (tmp_path / "data" / "songs.jsonl").open("a") as journal:
        journal.write('{"source": "song 1.w')  # what a kill in the middle of a line leaves
    monkeypatch.undo()
    written = Counted(audio.write)
    monkeypatch.setattr(audio, "write", written)
    assert cli(*words).code == 0
    assert written.calls == 3
    assert_same_result(tmp_path / "data", finished / "data")


def test_what_a_killed_run_left_of_a_longer_cut_goes_away(
    cli: Cli, finished: Path, tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*prepare_words(finished / "songs", tmp_path / "data", tiny), "--preprocessing_num_workers", 1]
    monkeypatch.setattr(audio, "write", Counted(audio.write, limit=3))
    assert cli(*words, "--max_duration_in_seconds", 1).code == 130
    assert (tmp_path / "data" / "clips" / "song_0-002.flac").exists()
    monkeypatch.undo()
    assert cli(*words).code == 0
    assert_same_result(tmp_path / "data", finished / "data")


def test_a_run_killed_while_encoding_continues(
    cli: Cli, finished: Path, tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*prepare_words(finished / "songs", tmp_path / "data", tiny), "--encode_batch_size", 1]
    monkeypatch.setattr(tokens, "PART_CLIPS", 2)
    monkeypatch.setattr(codec, "encode", Counted(codec.encode, limit=3))
    ran = cli(*words)
    assert ran.code == 130
    assert ran.err.endswith(STOPPED)
    (table,) = (tmp_path / "data" / "tokens").glob("codes-*")
    assert [path.name for path in table.iterdir()] == ["000000-0.arrow"]
    written = (table / "000000-0.arrow").read_bytes()
    (table / "000001-0.unfinished").write_bytes(written[:100])  # as a kill leaves it
    monkeypatch.undo()
    made = run(finished / "songs", tmp_path / "data", tiny)
    assert (made.songs_cut, made.clips_encoded, made.captions_encoded) == (0, 3, 2)
    assert sorted(path.name for path in table.iterdir()) == ["000000-0.arrow", "000001-0.arrow"]
    assert (table / "000000-0.arrow").read_bytes() == written
    assert_same_result(tmp_path / "data", finished / "data")


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("suffix", [".flac", ".jsonl", ".json"])
def test_a_full_disk_is_an_error_in_one_line(
    cli: Cli, finished: Path, tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    replace = os.replace

    def replace_or_fail(source: Path, target: Path) -> None:
        if Path(target).suffix == suffix:
            full()
        replace(source, target)

    words = prepare_words(finished / "songs", tmp_path / "data", tiny)
    monkeypatch.setattr(os, "replace", replace_or_fail)
    ran = cli(*words)
    assert ran.code == 1
    told = ran.err.split("\n")[-2]
    assert told.startswith("musicgen-dreamboothing: ")
    assert "No space left on device" in told
    assert "Traceback" not in ran.err
    monkeypatch.undo()
    assert cli(*words).code == 0
    assert_same_result(tmp_path / "data", finished / "data")


def test_a_disk_that_fills_up_while_tokens_are_written(
    cli: Cli, finished: Path, tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = prepare_words(finished / "songs", tmp_path / "data", tiny)
    monkeypatch.setattr(datasets.arrow_writer.ArrowWriter, "finalize", full)
    ran = cli(*words)
    assert ran.code == 1
    assert ran.err.endswith(
        "musicgen-dreamboothing: the disk is full ([Errno 28] No space left on device); "
        "free some space and run the same command again\n"
    )
    monkeypatch.undo()
    assert cli(*words).code == 0
    assert_same_result(tmp_path / "data", finished / "data")


def test_a_folder_in_use_is_left_alone(cli: Cli, finished: Path, tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "data").mkdir()
    with folder_lock(tmp_path / "data"):
        ran = cli(*prepare_words(finished / "songs", tmp_path / "data", tiny))
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == (
        f"musicgen-dreamboothing: {tmp_path / 'data'} is in use by another run; "
        "wait for it or choose another --output_dir\n"
    )


def test_a_file_in_the_place_of_the_folder(cli: Cli, finished: Path, tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "data").write_text("a file")
    ran = cli(*prepare_words(finished / "songs", tmp_path / "data", tiny))
    assert ran.code == 1
    assert ran.err == f"musicgen-dreamboothing: {tmp_path / 'data'} is a file, not a folder; choose another folder\n"


# --- tokens


def test_codes_are_those_of_each_clip_alone(finished: Path, tmp_path: Path, tiny: Path) -> None:
    checkpoint = read_checkpoint(tiny)
    model = load_codec(checkpoint, torch.device("cpu"))
    run(finished / "songs", tmp_path / "data", tiny, encode_batch_size=1)
    for row in metadata(finished / "data"):
        wave = audio.decode(finished / "data" / "clips" / row["file_name"], SAMPLING_RATE)
        with torch.no_grad():
            alone = model.encode(torch.from_numpy(wave)[None]).audio_codes[0, 0]
        code = codes(tmp_path / "data")[row["file_name"]]
        assert code.shape == (4, round(row["seconds"] * 50))  # no delay pattern: T frames, not T + 3
        assert np.array_equal(code, alone.numpy())
        assert len(np.unique(code)) > 8
        # in a batch sums are rounded otherwise, which decides a tie here and there
        batched = codes(finished / "data")[row["file_name"]]
        assert (batched == code).all(axis=0).mean() > 0.95


def test_stereo_and_mono(tmp_path: Path, checkpoints: Callable[[str], Path], tiny: Path) -> None:
    write_song(tmp_path / "songs" / "mono.wav", 1.0, seed=0)
    write_song(tmp_path / "songs" / "stereo.wav", 1.0, seed=1, channels=2)
    run(tmp_path / "songs", tmp_path / "two", checkpoints("text-stereo"))
    run(tmp_path / "songs", tmp_path / "one", tiny)
    two, one = codes(tmp_path / "two"), codes(tmp_path / "one")
    assert np.array_equal(two["mono-000.flac"][0::2], two["mono-000.flac"][1::2])
    left, right = two["stereo-000.flac"][0::2], two["stereo-000.flac"][1::2]
    assert not np.array_equal(left, right)
    wave = audio.decode(tmp_path / "one" / "clips" / "stereo-000.flac", SAMPLING_RATE)
    assert wave.shape == (2, 16_000)  # the clip keeps both sides
    for base, sides in ((checkpoints("text-stereo"), {0: left, 1: right}), (tiny, {None: one["stereo-000.flac"]})):
        checkpoint = read_checkpoint(base)
        model = load_codec(checkpoint, torch.device("cpu"))
        for side, stored in sides.items():
            mono = wave.mean(axis=0) if side is None else wave[side]
            with torch.no_grad():
                alone = model.encode(torch.from_numpy(mono)[None, None]).audio_codes[0, 0]
            assert np.array_equal(stored, alone.numpy())


def test_text_states_are_those_of_the_full_model(finished: Path, tiny: Path) -> None:
    model = MusicgenForConditionalGeneration.from_pretrained(tiny).eval()
    tokenizer = load_tokenizer(read_checkpoint(tiny))
    stored = states(finished / "data")
    assert set(stored) == {"punk", "punk, slow tones"}
    for caption, state in stored.items():
        ids = tokenizer(caption, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            expected = model.text_encoder(input_ids=ids).last_hidden_state[0]
        np.testing.assert_allclose(state, expected.numpy(), atol=2e-3)  # kept in 16 bit


# --- folders of clips


def test_clips_are_a_legal_audiofolder(
    finished: Path, tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    songs = shutil.copytree(finished / "songs", tmp_path / "songs")
    for name in ("my-test-song", "train", "validation 1"):
        shutil.copy(songs / "song 2.wav", songs / f"{name}.wav")
    run(songs, tmp_path / "data", tiny)
    change_metadata(tmp_path / "data", lambda rows: rows[1:])  # a clip without a line is no clip
    # The original cannot so much as note a path without torchcodec.
    monkeypatch.setattr(datasets.Audio, "encode_example", lambda _, path: {"bytes": None, "path": path})
    loaded = datasets.load_dataset(
        "audiofolder", data_dir=str(tmp_path / "data" / "clips"), cache_dir=str(tmp_path / "cache")
    )
    assert list(loaded) == ["train"]
    rows = loaded["train"].cast_column("audio", datasets.Audio(decode=False)).to_list()
    ours = {"text", "instance_prompt", "source", "split", "start", "seconds"}
    assert all(set(row) == ours | {"audio"} for row in rows)
    found = sorted((Path(row["audio"]["path"]).name, row["text"], row["start"]) for row in rows)
    assert found == sorted((row["file_name"], row["text"], row["start"]) for row in metadata(tmp_path / "data"))
    assert len(found) == 7


def test_a_folder_made_by_hand(tmp_path: Path, tiny: Path) -> None:
    """Only files and their captions; `train` brings its tokens up to date with `refresh`."""
    for number, suffix in enumerate((".wav", ".mp3")):
        (tmp_path / "data" / "clips").mkdir(parents=True, exist_ok=True)
        content = encode("libmp3lame", "mp3", sine(1.0, 44_100), 44_100)
        wave = sound_file(sine(1.01, 44_100), 44_100)
        (tmp_path / "data" / "clips" / f"{number}{suffix}").write_bytes(wave if suffix == ".wav" else content)
    lines = '\ufeff{"file_name": "0.wav", "text": "slow"}\n{"file_name": "1.mp3"}\n{"file_name": "2.wav"}\n{}\n'
    (tmp_path / "data" / "clips" / "metadata.jsonl").write_text(lines, encoding="utf-8")
    options = PrepareArguments(model_name_or_path=str(tiny), instance_prompt="punk")
    made = refresh(tmp_path / "data", options, checkpoint_of(options))
    assert (made.clips_encoded, made.captions_encoded) == (2, 2)
    table = tables_in(tmp_path / "data", tiny, "punk").train
    assert table["text"][:] == ["punk, slow", "punk"]
    assert table["seconds"][:] == [len(row[0]) / 50 for row in table["codes"]]
    assert table["seconds"][0] == 1.02  # whole frames
    made = refresh(tmp_path / "data", options, checkpoint_of(options))
    assert (made.clips_encoded, made.captions_encoded) == (0, 0)
    assert (tmp_path / "data" / "clips" / "metadata.jsonl").read_text(encoding="utf-8") == lines  # the person's
    options.overwrite_cache = True
    assert refresh(tmp_path / "data", options, checkpoint_of(options)).clips_encoded == 2


def test_a_clip_that_cannot_be_read_is_named(work: Path, tiny: Path) -> None:
    (work / "data" / "clips" / "song_0-000.flac").write_bytes(b"no music")
    options = PrepareArguments(model_name_or_path=str(tiny))
    with pytest.raises(audio.AudioError, match=r"song_0-000\.flac: holds no samples"):
        refresh(work / "data", options, checkpoint_of(options))


# Reading ahead


def test_a_broken_clip_is_named(tmp_path: Path, tiny: Path) -> None:
    song = write_song(tmp_path / "songs" / "song.wav", 9.3)
    run(song.parent, tmp_path / "out", tiny)
    broken = sorted((tmp_path / "out" / "clips").rglob("*.flac"))[2]
    broken.write_bytes(b"no music")
    with pytest.raises(audio.AudioError) as caught:
        refresh(tmp_path / "out", PrepareArguments(instance_prompt="punk", overwrite_cache=True), read_checkpoint(tiny))
    assert broken.name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_batch_is_read_while_the_codec_encodes_the_one_before(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = 0

    class AtOnce:
        """Does what it is given when it is given it."""

        def __init__(self, threads: int) -> None: ...

        def submit(self, work: Callable[..., Any], *given: Any) -> Future[Any]:
            done: Future[Any] = Future()
            done.set_result(work(*given))
            return done

        def shutdown(self, **options: bool) -> None: ...

    def read_clip(clips: Path, row: dict[str, Any], checkpoint: Any) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
        nonlocal read
        read += 1
        return row, np.zeros((1, 320), np.float32), np.zeros(0, np.uint32)

    monkeypatch.setattr(tokens, "ThreadPoolExecutor", AtOnce)
    monkeypatch.setattr(tokens, "_read_clip", read_clip)
    rows = [{"file_name": f"{number}.flac", "seconds": 30.0} for number in range(60)]
    batches = tokens._equal_length_batches(Path("clips"), rows, read_checkpoint(tiny), 16, workers=2)
    assert len(next(batches)) == 16
    assert read == 2 * 16


def test_a_table_of_many_clips_stays_in_its_files(tmp_path: Path) -> None:
    """A code as Python's own integer takes 33 bytes: clips of 30 s took 0.2 MB each, and a thousand were held."""
    codes = np.arange(6000, dtype=np.uint16).reshape(4, 1500)
    clip = {"codes": codes, "frames": 1500, "fingerprint": np.arange(1, 751, dtype=np.uint32)}
    names = [str(number) for number in range(400)]
    tracemalloc.start()
    append_rows(tmp_path, ({"digest": name, **clip} for name in names), tokens.CODE_FEATURES)
    stored = read_rows(tmp_path, tokens.CODE_FEATURES)
    features = datasets.Features({"text": datasets.Value("string")})
    places = [*reversed(range(400)), 7, 7]  # two clips more are the same sound
    table = join_rows(stored, places, [{"text": f"{place}"} for place in places], features)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert table["text"][:] == table["digest"][:] == [*reversed(names), "7", "7"]
    assert table[401]["codes"] == codes.tolist()
    assert peak < 10e6
    assert len(pickle.dumps(table)) < 1e6  # a worker process gets the path


def test_however_many_clips_there_are_few_are_in_memory(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list as of ten hours; what is made of each clip is let go before the next ones are read."""
    alive = most = 0

    class Wave(np.ndarray):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def read(clips: Path, row: dict[str, Any], checkpoint: Any) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
        nonlocal alive, most
        alive += 1
        most = max(most, alive)
        return row, np.zeros((1, 320), np.float32).view(Wave), np.zeros(0, np.uint32)

    monkeypatch.setattr(tokens, "_read_clip", read)
    rows = [{"file_name": f"{number}.flac", "seconds": 30.0} for number in range(1200)]
    batches = tokens._equal_length_batches(Path("clips"), rows, read_checkpoint(tiny), 4, workers=2)
    assert sum(len(batch) for batch in batches) == 1200
    assert most <= tokens.READ_AHEAD + 2 * 4 + 2
