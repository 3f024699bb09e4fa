"""Songs of datasets in every layout, with cells and captions of every type."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from conftest import Ran, prepare_words, tone_song
from mutagen.flac import FLAC
from random_checkpoint import SAMPLING_RATE

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.data.songs.file_tags import FileTags, file_tags
from musicgen_dreamboothing.data.songs.song import Collection, Columns, Song
from musicgen_dreamboothing.data.songs.sources import find_songs

Cli = Callable[..., Ran]
Layout = Callable[[Path, pa.Table], None]

AUDIO = {"_type": "Audio"}
TEXT = {"dtype": "string", "_type": "Value"}
FILE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
STORED = dict.fromkeys(("Audio", "Image", "Video"), FILE) | {"List": pa.list_(FILE)}  # other types: what pyarrow takes


def sound(seed: int) -> np.ndarray:
    """A song of 1 s, stereo where the seed is odd."""
    return tone_song(1.0, seed, channels=1 + seed % 2)


def flac(seed: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, sound(seed).T, SAMPLING_RATE, format="FLAC")
    return file.getvalue()


def cells(*seeds: int) -> list[dict[str, Any]]:
    return [{"bytes": flac(seed), "path": f"{seed}.flac"} for seed in seeds]


def table(columns: Mapping[str, Any], **features: Any) -> pa.Table:
    """A table as `datasets` stores it: with a note of each column's type."""
    note = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    stored = {name: STORED.get(feature.get("_type")) for name, feature in features.items() if isinstance(feature, dict)}
    arrays = {name: pa.array(column, stored.get(name)) for name, column in columns.items()}
    return pa.table(arrays).replace_schema_metadata(note if features else None)


def tiny_punk() -> pa.Table:
    """Columns like those of `ylacombe/tiny-punk`, and of every type that decodes, or that nobody knows yet."""
    noise = [{"bytes": b"cannot be decoded", "path": None}] * 2
    columns: dict[str, Any] = dict.fromkeys(("audio", "vocals", "bass", "drums", "cover", "clip"), noise)
    columns |= {
        "others": cells(0, 1),
        "genre": [0, 1],
        "words": [{"en": "a", "fr": "b"}] * 2,
        "takes": [noise, noise],
        "grid": [[[1.0, 2.0]], [[3.0, 4.0]]],
        "anything": ['{"a": 1}', "null"],
        "scent": [1, 2],
        "text": ["slow", None],
    }
    return table(
        columns,
        **dict.fromkeys(("audio", "others", "vocals", "bass", "drums"), AUDIO),
        cover={"_type": "Image"},
        clip={"_type": "Video"},
        genre={"names": ["rock", "punk"], "_type": "ClassLabel"},
        words={"languages": ["en", "fr"], "_type": "Translation"},
        takes={"feature": AUDIO, "_type": "List"},
        grid={"shape": [1, 2], "dtype": "float32", "_type": "Array2D"},
        anything={"_type": "Json"},
        scent={"strength": 1, "_type": "Smell"},
        text=TEXT,
    )


def parquet(*path: str, readme: str = "", schema: bool = True) -> Layout:
    """A Parquet file in the folder, beside another one that belongs to the split `test`."""

    def write(folder: Path, content: pa.Table) -> None:
        place = folder.joinpath(*path)
        place.parent.mkdir(parents=True)
        pq.write_table(content, place)
        if readme:
            (folder / "README.md").write_text(readme)

    return write


def arrow(path: Path, content: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.ipc.new_stream(path, content.schema) as stream:
        stream.write_table(content)


def parquet_file(path: Path, content: pa.Table) -> None:
    pq.write_table(content, path)


def saved(folder: Path, content: pa.Table) -> None:
    arrow(folder / "data-00000-of-00001.arrow", content)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))


def saved_splits(folder: Path, content: pa.Table) -> None:
    saved(folder / "clean", content)
    saved(folder / "noisy", content.slice(0, 1))
    (folder / "dataset_dict.json").write_text('{"splits": ["clean", "noisy"]}')


def cached(folder: Path, content: pa.Table) -> None:
    arrow(folder / "tiny-punk-clean.arrow", content)
    arrow(folder / "cache-1234.arrow", content)  # of a `map`
    (folder / "dataset_info.json").write_text('{"splits": {"clean": {"name": "clean"}}}')


def cached_in_parts(folder: Path, content: pa.Table) -> None:
    for number in range(2):
        arrow(folder / f"tiny-punk-clean-0000{number}-of-00002.arrow", content.slice(number, 1))
    (folder / "dataset_info.json").write_text('{"splits": {"clean": {"name": "clean"}}}')


DECLARED = """---
configs:
- config_name: default
  data_files:
  - {split: clean, path: songs/*}
  - {split: noisy, path: not-downloaded/*}
---
"""
UNKNOWN = "---\ndataset_info: {features: [{name: scent, dtype: smell}]}\n---\n"
LAYOUTS: dict[str, tuple[Layout, str]] = {
    "parquet, split in the file name": (parquet("train-00000-of-00001.parquet"), "train"),
    "parquet, split in the folder": (parquet("data", "train", "0000.parquet"), "train"),
    "parquet, split of any name": (parquet("data", "clean-00000-of-00001.parquet"), "clean"),
    "parquet, README": (parquet("songs", "0.parquet", readme=DECLARED.replace("not-downloaded", "songs")), "clean"),
    "parquet, README of more files": (parquet("data", "clean-00000-of-00001.parquet", readme=DECLARED), "clean"),
    "parquet, README of unknown types": (parquet("a.parquet", readme=UNKNOWN), "train"),
    "saved": (saved, "clean"),
    "saved, splits": (saved_splits, "clean"),
    "cache": (cached, "clean"),
    "cache, parts": (cached_in_parts, "clean"),
    "arrow": (lambda folder, content: arrow(folder / "train.arrow", content), "train"),
}


def songs(folder: Path, split: str = "train", **columns: Any) -> Collection:
    return find_songs(str(folder), Columns(train_split=split, **columns), cache_dir=str(folder.parent / "cache"))


def waves(song: Song) -> np.ndarray:
    return audio.decode(song.read(), SAMPLING_RATE)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_the_chosen_columns_are_read(tmp_path: Path, layout: str) -> None:
    write, split = LAYOUTS[layout]
    write(tmp_path / "data", tiny_punk())
    collection = songs(tmp_path / "data", split, audio="others", text="genre", config="default")
    assert [(song.name, song.caption) for song in collection.songs] == [
        (f"{split}/000000", "rock"),
        (f"{split}/000001", "punk"),
    ]
    assert collection.notes == []
    for seed, song in enumerate(collection.songs):
        np.testing.assert_allclose(waves(song), sound(seed), atol=2**-14)


def wave_cell(wave: np.ndarray, rate: Any = SAMPLING_RATE) -> dict[str, Any]:
    return {"array": wave.tolist(), "sampling_rate": rate}


@pytest.mark.parametrize(
    "column",
    [
        pa.array([{"bytes": flac(1), "path": None}]),
        pa.array([{"bytes": flac(1), "path": "gone.flac"}]),
        pa.array([{"bytes": None, "path": "songs/1.flac"}]),
        pa.array([{"bytes": b"", "path": "songs/1.flac"}]),
        pa.array([{"path": "songs\\1.flac"}]),
        pa.array(["songs/1.flac"]),
        pa.array(["songs/1.flac"], pa.large_string()),
        pa.array(["songs/1.flac"]).dictionary_encode(),
        pa.array([flac(1)]),
        pa.array([flac(1)], pa.large_binary()),
        pa.array([wave_cell(sound(1))]),
        pa.array([wave_cell(sound(1).T)]),
        pa.array([wave_cell(sound(1)[None])]),
        pa.array([wave_cell(np.round(sound(1) * 2**15).astype(int))]),
        pa.array([wave_cell(sound(1), float(SAMPLING_RATE)) | {"path": None}]),
    ],
    ids=str,
)
@pytest.mark.parametrize("layout", ["saved", "parquet, split in the file name"])
def test_a_sound_may_be_kept_in_many_ways(tmp_path: Path, column: pa.Array, layout: str) -> None:
    LAYOUTS[layout][0](tmp_path / "data", pa.table({"sound": column}))
    (tmp_path / "data" / "songs").mkdir()
    (tmp_path / "data" / "songs" / "1.flac").write_bytes(flac(1))
    collection = songs(tmp_path / "data", audio="sound")
    (song,) = collection.songs
    names_the_file = song.read() == tmp_path / "data" / "songs" / "1.flac"
    assert len(collection.notes) == (0 if names_the_file else 1)  # the audio file beside the table is named
    np.testing.assert_allclose(waves(song), sound(1), atol=2**-14)
    (again,) = songs(tmp_path / "data", audio="sound").songs
    assert song.fingerprint == again.fingerprint


def test_rows_without_a_sound_are_named(tmp_path: Path) -> None:
    column = [
        {"bytes": None, "path": None},
        {"bytes": flac(0), "path": None},
        None,
        {"bytes": b"", "path": ""},
        {"bytes": None, "path": "gone/song.flac"},
        {"bytes": None, "path": " "},
    ]
    saved(tmp_path / "data", table({"sound": column}, sound=AUDIO))
    collection = songs(tmp_path / "data")
    assert [song.name for song in collection.songs] == ["train/000001"]  # its place in the dataset
    assert collection.notes == [
        "4 rows without audio: train/000000, train/000002, train/000003, train/000005",
        "1 row whose audio file is missing: train/000004 (gone/song.flac)",
    ]


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ({"array": [0.1, 0.2], "sampling_rate": None}, "1 row whose audio array has no sampling rate: train/000000"),
        ({"array": [0.1, 0.2], "sampling_rate": 0}, "1 row whose audio array has no sampling rate: train/000000"),
        ({"array": [[0.1], [0.2, 0.3]], "sampling_rate": 8000}, r"1 row whose audio array is not \[S\], \[C, S\] or"),
        ({"array": [[[0.1] * 3, [0.2] * 5]] * 2, "sampling_rate": 8000}, r"1 row whose audio array is not \[S\], "),
        ({"array": [[0.1] * 3, [0.2] * 5], "sampling_rate": 8000}, r"1 row whose audio array is not \[S\], \[C, S\]"),
        ({"array": ["0.1", "0.2"], "sampling_rate": 8000}, r"1 row whose audio array is not \[S\], \[C, S\]"),
        ({"array": [0.1, 0.2], "sampling_rate": 2e12}, r"1 row whose sampling rate is impossible: train/000000 \(2"),
        ({"array": [0.1, 0.2], "sampling_rate": float("inf")}, "1 row whose sampling rate is impossible: train/000"),
        ({"array": [0.1, 0.2], "sampling_rate": "8000"}, "1 row whose audio array has no sampling rate: train/000000"),
        ("a" * 300, r"1 row whose audio file is missing: train/000000 \(aaa"),
        ({"array": [], "sampling_rate": 8000}, "1 row without audio: train/000000"),
        ({"array": None, "sampling_rate": 8000}, "1 row without audio: train/000000"),
        ("", "1 row without audio: train/000000"),
        (b"", "1 row without audio: train/000000"),
        ("https://example.org/a.mp3", r"1 row whose audio file is missing: train/000000 \(https://example.org/a.mp3\)"),
    ],
)
def test_a_dataset_without_any_sound_is_refused(tmp_path: Path, cell: Any, message: str) -> None:
    saved(tmp_path / "data", pa.table({"sound": [cell]}))
    with pytest.raises(UserError, match=f"^no row of {tmp_path / 'data'} has audio that can be read; {message}"):
        songs(tmp_path / "data", audio="sound")


@pytest.mark.parametrize(
    ("column", "feature", "captions", "not_text"),
    [
        (["slow\npunk", " fast "], TEXT, ["slow punk", "fast"], 0),
        (["", "  "], TEXT, [None, None], 0),
        ([None, None], TEXT, [None, None], 0),
        ([float("nan"), None], None, [None, None], 0),
        ([["fast", "loud"], ["slow", "", None]], None, ["fast, loud", "slow"], 0),
        ([[], None], None, [None, None], 0),
        (pa.array(["a", "b"]).dictionary_encode(), None, ["a", "b"], 0),
        ([1, 0], {"names": ["rock", "punk"], "_type": "ClassLabel"}, ["punk", "rock"], 0),
        ([-1, None], {"names": ["rock", "punk"], "_type": "ClassLabel"}, [None, None], 0),
        (
            [[1, 0], []],
            {"feature": {"names": ["rock", "punk"], "_type": "ClassLabel"}, "_type": "Sequence"},
            ["punk, rock", None],
            0,
        ),
        ([[0], [1]], [{"names": ["rock", "punk"], "_type": "ClassLabel"}], ["rock", "punk"], 0),
        ([120, 90], None, [None, None], 2),
        ([1.5, float("nan")], None, [None, None], 1),
        ([True, None], None, [None, None], 1),
        ([{"en": "a"}, None], None, [None, None], 1),
        ([[1, 2], []], None, [None, None], 1),
        ([b"a", b"b"], None, [None, None], 2),
    ],
    ids=str,
)
def test_captions_of_every_type(
    tmp_path: Path, column: Any, feature: Any, captions: list[str | None], not_text: int
) -> None:
    features = {"sound": AUDIO} | ({"words": feature} if feature else {})
    saved(tmp_path / "data", table({"sound": cells(0, 1), "words": column}, **features))
    collection = songs(tmp_path / "data", text="words")
    assert [song.caption for song in collection.songs] == captions
    message = {0: [], 1: ["1 row whose caption is no text and is left out: train/000000"]}
    assert collection.notes == message.get(
        not_text, ["2 rows whose caption is no text and is left out: train/000000, train/000001"]
    )


@pytest.mark.parametrize("layout", ["saved", "parquet, split in the file name"])
def test_a_caption_that_is_no_utf8_costs_itself_only(tmp_path: Path, layout: str) -> None:
    broken = pa.array([b"caf\xe9", "caf\u00e9".encode()]).view(pa.string())
    content = pa.table({"audio": pa.array(cells(0, 1), FILE), "text": broken})
    LAYOUTS[layout][0](tmp_path / "data", content)
    collection = songs(tmp_path / "data")
    assert [song.caption for song in collection.songs] == [None, "caf\u00e9"]
    assert collection.notes == ["1 row whose caption is no text and is left out: train/000000"]


def test_a_path_that_is_no_utf8_is_named(tmp_path: Path) -> None:
    saved(tmp_path / "data", pa.table({"audio": pa.array([b"caf\xe9.wav"]).view(pa.string())}))
    with pytest.raises(UserError, match=r"1 row whose audio file is missing: train/000000 \(caf\\xe9\.wav\)$"):
        songs(tmp_path / "data")


def test_a_song_that_is_gone_when_it_is_read_is_a_fault_of_this_song(tmp_path: Path) -> None:
    (tmp_path / "a.flac").write_bytes(flac(0))
    saved(tmp_path / "data", pa.table({"audio": [str(tmp_path / "a.flac")]}))
    shard(tmp_path / "tars" / "train.tar", {"a.flac": flac(0)})
    (row,), (member,) = songs(tmp_path / "data").songs, songs(tmp_path / "tars").songs
    (tmp_path / "a.flac").unlink()
    (tmp_path / "tars" / "train.tar").unlink()
    with pytest.raises(audio.AudioError, match=r"^train/000000 is a row whose audio file is missing \(.*a\.flac\)$"):
        row.read()
    with pytest.raises(audio.AudioError, match=r"^train\.tar/a\.flac can't be read \(No such file"):
        member.read()


@pytest.mark.parametrize("column", ["text", "caption", "description", "prompt", "Caption", "PROMPT"])
def test_captions_are_found_under_the_usual_names(tmp_path: Path, column: str) -> None:
    saved(tmp_path / "data", table({"sound": cells(0), column: ["slow"], "other": ["fast"]}, sound=AUDIO))
    assert songs(tmp_path / "data").songs[0].caption == "slow"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "which column of {} holds the songs? Say it with --target_audio_column_name; it has left, right"),
        ({"audio": "middle"}, "no column 'middle' in {}; it has left, right, number"),
        (
            {"audio": "number"},
            "column 'number' of {} holds int64, not audio; choose another --target_audio_column_name: left, right",
        ),
        ({"audio": "left", "text": "words"}, "no column 'words' in {}; it has left, right, number"),
        ({"audio": "left", "eval_split": "test"}, "no split 'test' in {}; it has train"),
    ],
)
def test_wrong_columns_are_reported_in_one_line(tmp_path: Path, columns: dict[str, str], message: str) -> None:
    content = {"left": cells(0), "right": cells(1), "number": [1]}
    saved(tmp_path / "data", table(content, left=AUDIO, right=AUDIO))
    with pytest.raises(UserError) as error:
        songs(tmp_path / "data", **columns)
    assert str(error.value) == message.format(tmp_path / "data")


def test_splits_may_be_added_up(tmp_path: Path) -> None:
    saved_splits(tmp_path / "data", table({"audio": cells(0, 1)}, audio=AUDIO))
    collection = songs(tmp_path / "data", "clean+noisy")
    assert [song.name for song in collection.songs] == ["clean/000000", "clean/000001", "noisy/000000"]
    twice = songs(tmp_path / "data", "clean+clean")
    assert [song.name for song in twice.songs] == ["clean/000000", "clean/000001"]
    with pytest.raises(
        UserError, match=r"split 'noisy' is in --train_split_name clean\+noisy and in --eval_split_name"
    ):
        songs(tmp_path / "data", "clean+noisy", eval_split="noisy")
    with pytest.raises(UserError, match=r"no split 'dirty' in .*; it has clean, noisy"):
        songs(tmp_path / "data", "clean+dirty")


@pytest.mark.parametrize(
    ("readme", "config", "message"),
    [
        (
            DECLARED.replace("default", "live"),
            "loud",
            "no configuration 'loud' in {}; --dataset_config_name takes live",
        ),
        (
            "---\nconfigs:\n- {config_name: a, data_files: songs/*}\n- {config_name: b, data_files: songs/*}\n---\n",
            None,
            "{} has several configurations; choose one with --dataset_config_name: a, b",
        ),
    ],
)
def test_a_wrong_configuration_is_reported(tmp_path: Path, readme: str, config: str | None, message: str) -> None:
    parquet("songs", "0.parquet", readme=readme.replace("not-downloaded", "songs"))(tmp_path / "data", tiny_punk())
    with pytest.raises(UserError) as error:
        songs(tmp_path / "data", config=config)
    assert str(error.value) == message.format(tmp_path / "data")


def test_a_configuration_may_be_a_folder(tmp_path: Path) -> None:
    parquet("loops", "train.parquet")(tmp_path / "data", table({"audio": cells(0)}))
    parquet("stems", "train.parquet")(tmp_path / "data", table({"audio": cells(1, 2)}))
    assert len(songs(tmp_path / "data").songs) == 3
    assert len(songs(tmp_path / "data", config="stems").songs) == 2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.parquet", b"torn"),
        ("train.arrow", b"torn"),
        ("train.tar", b"torn"),
        ("data-00000-of-00001.arrow", b"torn"),
        ("data-00000-of-00001.arrow", None),
        ("state.json", b"torn"),
        ("state.json", b"{}"),
        ("dataset_dict.json", b"[]"),
        ("dataset_dict.json", b'{"splits": ["gone"]}'),
    ],
)
def test_datasets_that_are_broken_are_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    if name.startswith("train"):
        (tmp_path / "data").mkdir()
    else:
        saved(tmp_path / "data", table({"audio": cells(0)}))
    if content is None:
        (tmp_path / "data" / name).unlink()
    else:
        (tmp_path / "data" / name).write_bytes(content)
    with pytest.raises(UserError, match=str(tmp_path / "data")) as error:
        songs(tmp_path / "data")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("write", [arrow, parquet_file])
def test_shards_need_not_be_alike(tmp_path: Path, write: Layout) -> None:
    """Torn ones and ones without songs are named and passed over; captions may stand in some of them only."""
    suffix = "arrow" if write is arrow else "parquet"
    (tmp_path / "data").mkdir()
    first = table({"audio": cells(0)}, audio=AUDIO)
    others = [table({"text": ["b", "c"], "audio": cells(1, 2)}, audio=AUDIO), pa.table({"title": ["x"]})]
    for number, content in enumerate([first, *others, first]):
        write(tmp_path / "data" / f"train-{number}.{suffix}", content)
    (tmp_path / "data" / f"train-4.{suffix}").write_bytes(b"torn")
    collection = songs(tmp_path / "data")
    assert [(song.name, song.caption) for song in collection.songs] == [
        (f"train/00000{row}", caption) for row, caption in enumerate([None, "b", "c", None])
    ]
    assert collection.notes[0].startswith(f"1 file can't be read: train-4.{suffix} (")
    assert collection.notes[1:] == [f"1 file without a column 'audio': train-2.{suffix}"]


@pytest.mark.parametrize("name", ["songs.parquet", "songs.arrow", "songs.tar"])
def test_one_file_is_a_dataset(tmp_path: Path, name: str) -> None:
    content = table({"audio": cells(0, 1)}, audio=AUDIO)
    if name.endswith("parquet"):
        pq.write_table(content, tmp_path / name)
    elif name.endswith("arrow"):
        arrow(tmp_path / name, content)
    else:
        shard(tmp_path / name, {"a.flac": flac(0), "b.flac": flac(1)})
    assert len(songs(tmp_path / name).songs) == 2


# --- tar files


def shard(path: Path, files: Mapping[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_songs_of_webdataset_shards(tmp_path: Path) -> None:
    shard(
        tmp_path / "data" / "train-0000.tar",
        {
            "a.flac": flac(0),
            "a.txt": b"slow\npunk\n",
            "b.flac": flac(1),
            "b.json": b'{"caption": ["fast", "loud"], "text": null}',
            "._b.flac": b"of macOS",
        },
    )
    shard(
        tmp_path / "data" / "train-0001.tar",
        {"more/c.FLAC": flac(2), "d.txt": b"no sound", "e.flac": flac(3), "e.json": b"{torn"},
    )
    shard(tmp_path / "data" / "test-0000.tar", {"a.flac": flac(4)})
    collection = songs(tmp_path / "data", eval_split="test")
    assert [(song.name, song.caption, song.split) for song in collection.songs] == [
        ("train/train-0000/a.flac", "slow punk", "train"),
        ("train/train-0000/b.flac", "fast, loud", "train"),
        ("train/train-0001/more/c.FLAC", None, "train"),
        ("train/train-0001/e.flac", None, "train"),
        ("test/test-0000/a.flac", None, "eval"),
    ]
    assert collection.notes == [
        "1 row without audio: train/train-0001/d",
        "1 caption file not used:",
        "  train-0001.tar/e.json is not JSON (Expecting property name enclosed in double quotes, line 1)",
    ]
    for seed, song in enumerate(collection.songs):
        np.testing.assert_allclose(waves(song), sound(seed), atol=2**-14)


def test_one_of_several_sounds_of_a_sample(tmp_path: Path) -> None:
    files = {"a.vocals.flac": flac(0), "a.others.flac": flac(1), "a.json": b'{"mood": "dark", "text": "x"}'}
    shard(tmp_path / "data" / "train.tar", files)
    with pytest.raises(UserError, match=r"choose one with --target_audio_column_name: vocals\.flac, others\.flac"):
        songs(tmp_path / "data")
    with pytest.raises(UserError, match=r"no column 'drums\.flac' in .*; it has vocals\.flac, others\.flac, json"):
        songs(tmp_path / "data", audio="drums.flac")
    (song,) = songs(tmp_path / "data", audio="others.flac", text="mood").songs
    assert (song.name, song.caption) == ("train/train/a.others.flac", "dark")
    np.testing.assert_allclose(waves(song), sound(1), atol=2**-14)


def test_songs_of_equal_names_in_tar_files_of_several_folders(tmp_path: Path) -> None:
    for seed, folder in enumerate(("rock", "jazz")):
        shard(tmp_path / "data" / folder / "00000.tar", {"000.flac": flac(seed)})
    names = [song.name for song in songs(tmp_path / "data").songs]
    assert sorted(names) == ["train/jazz/00000/000.flac", "train/rock/00000/000.flac"]


def test_names_in_a_tar_file_that_are_no_utf8(tmp_path: Path) -> None:
    shard(tmp_path / "data" / "train.tar", {"caf\udce9.flac": flac(0), "na\udce9.txt": b"alone"})
    collection = songs(tmp_path / "data")
    assert [song.name for song in collection.songs] == ["train/train/caf\\xe9.flac"]
    assert collection.notes == ["1 row without audio: train/train/na\\xe9"]


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (("Vol. 1.flac", "Vol. 2.flac"), ("Vol. 1.flac", "Vol. 2.flac")),
        (("Vol.1.flac", "Vol.2.flac"), ("Vol.1.flac", "Vol.2.flac")),
        (("Mr.Big.flac", "Mr.Bad.flac", "b.flac"), ("Mr.Big.flac", "Mr.Bad.flac", "b.flac")),
        (("x/Vol. 1.flac", "x/Vol. 2.flac", "y/Vol. 1.flac"), ("x/Vol. 1.flac", "x/Vol. 2.flac", "y/Vol. 1.flac")),
    ],
)
def test_titles_with_dots_in_a_tar_file_are_songs(tmp_path: Path, files: list[str], names: list[str]) -> None:
    texts = {f"{name.removesuffix('.flac')}.txt": name.encode() for name in files}
    shard(tmp_path / "data" / "train.tar", dict.fromkeys(files, flac(0)) | texts)
    collection = songs(tmp_path / "data")
    assert [song.name for song in collection.songs] == [f"train/train/{name}" for name in names]
    assert [song.caption for song in collection.songs] == list(files)
    assert not collection.notes


SIDECARS: dict[str, tuple[dict[str, bytes], str | None]] = {
    "utf-16": ({"a.txt": "caf\u00e9".encode("utf-16")}, "caf\u00e9"),
    "capitals": ({"A.TXT": b"slow"}, "slow"),
    "behind the suffix": ({"a.flac.txt": b"slow"}, "slow"),
    "caption first": ({"a.txt": b"la la", "a.caption.txt": b"slow"}, "slow"),
    "lyrics": ({"a.txt": b"[Verse]\nla la", "a.json": b'{"caption": "slow"}'}, "slow"),
    "called lyrics": ({"a.lyrics.txt": b"la la"}, None),
    "not text": ({"a.txt": b"caf\xe9"}, None),
    "control characters": ({"a.txt": b"slow\x07\tjam"}, "slow jam"),
    "JSON of other cases": ({"a.json": b'{"Caption": "slow"}'}, "slow"),
    "JSON of numbers": ({"a.json": b'{"caption": 5}'}, None),
    "JSON, nested": ({"a.json": b"[" * 100_000}, None),
}


@pytest.mark.parametrize("key", SIDECARS)
def test_captions_in_tar_files_are_read_as_those_beside_songs(tmp_path: Path, key: str) -> None:
    files, caption = SIDECARS[key]
    shard(tmp_path / "tars" / "train.tar", {"a.flac": flac(0)} | {n.replace("A", "a"): c for n, c in files.items()})
    (tmp_path / "files").mkdir()
    for name, content in {"a.flac": flac(0), **files}.items():
        (tmp_path / "files" / name).write_bytes(content)
    in_tar, beside = songs(tmp_path / "tars"), songs(tmp_path / "files")
    assert in_tar.songs[0].caption == beside.songs[0].caption == caption
    if key != "called lyrics":
        notes = [note.replace(f"{tmp_path}/files", "train.tar") for note in beside.notes]
        assert in_tar.notes == notes


def test_a_torn_shard_is_named_and_skipped(tmp_path: Path) -> None:
    shard(tmp_path / "data" / "train-0.tar", {"a.flac": flac(0)})
    (tmp_path / "data" / "train-1.tar").write_bytes(b"torn")
    collection = songs(tmp_path / "data")
    assert len(collection.songs) == 1
    assert collection.notes == ["1 file can't be read as a tar file: train-1.tar (truncated header)"]


# --- tables and audio files in one folder


def test_tables_with_songs_go_before_audio_files(tmp_path: Path) -> None:
    parquet("data", "train.parquet")(tmp_path / "data", table({"audio": cells(0, 1)}))
    (tmp_path / "data" / "demo.flac").write_bytes(flac(2))
    collection = songs(tmp_path / "data")
    assert [song.name for song in collection.songs] == ["train/000000", "train/000001"]
    assert collection.notes == ["1 audio file not read, for the songs come from tables: demo.flac"]


def test_audio_files_go_before_tables_without_songs(tmp_path: Path) -> None:
    parquet("plays.parquet")(tmp_path / "data", table({"title": ["a"], "plays": [3]}))
    (tmp_path / "data" / "torn.arrow").write_bytes(b"torn")
    (tmp_path / "data" / "a.flac").write_bytes(flac(2))
    collection = songs(tmp_path / "data")
    assert [song.name for song in collection.songs] == ["a.flac"]
    assert collection.notes == ["2 tables not read, for the songs come from audio files: plays.parquet, torn.arrow"]


@pytest.mark.parametrize("place", [("prep", "tokens", "clips"), (".git", "lfs"), (".cache",)], ids=str)
def test_tables_that_no_one_put_there_are_no_dataset(tmp_path: Path, place: tuple[str, ...]) -> None:
    arrow(tmp_path.joinpath("data", *place, "a.arrow"), pa.table({"digest": ["a"], "codes": [[1]]}))
    if place[0] == "prep":
        (tmp_path / "data" / "prep" / "songs.jsonl").touch()
        (tmp_path / "data" / "prep" / "tokens" / "info.json").write_text("{}")
    with pytest.raises(UserError, match=f"^no audio files in {tmp_path / 'data'}"):
        songs(tmp_path / "data")
    parquet("songs", "train.parquet")(tmp_path / "data", table({"audio": cells(0)}))
    assert [song.name for song in songs(tmp_path / "data").songs] == ["train/000000"]


# --- through `prepare`


def captions(folder: Path) -> dict[str, str]:
    lines = (folder / "clips" / "metadata.jsonl").read_text().splitlines()
    return {row["source"]: row["text"] for row in map(json.loads, lines)}


def test_another_column_changes_captions_only(cli: Cli, tmp_path: Path, tiny: Path) -> None:
    """Songs are known by their sound: the dataset may be written anew, or elsewhere, with more columns and rows."""
    words = prepare_words(tmp_path / "data", tmp_path / "out", tiny)
    saved(tmp_path / "data", table({"audio": cells(0, 1)}, audio=AUDIO))
    assert cli(*words, "--min_duration_in_seconds", 0.5).code == 0
    clips = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "clips").glob("*.flac")}
    assert len(clips) == 2
    (tmp_path / "data").rename(tmp_path / "before")
    content = table({"text": ["slow", "fast"], "audio": cells(0, 1)}, audio=AUDIO)
    parquet("data", "train.parquet")(tmp_path / "data", content)
    words += ["--min_duration_in_seconds", 0.5, "--cache_dir", tmp_path / "cache"]
    assert cli(*words).code == 0
    assert captions(tmp_path / "out") == {"train/000000": "punk, slow", "train/000001": "punk, fast"}
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "clips").glob("*.flac")} == clips


def test_rows_can_be_pickled_and_their_tags_are_used(cli: Cli, tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "song.flac").write_bytes(flac(0))
    tagged = FLAC(tmp_path / "song.flac")
    tagged.update({"genre": "Garage Rock", "bpm": "118", "title": "A secret"})
    tagged.save()
    content = [{"bytes": (tmp_path / "song.flac").read_bytes(), "path": None}, *cells(1, 2)]
    saved(tmp_path / "data", table({"audio": content, "text": ["slow", None, "5"]}, audio=AUDIO))
    ran = cli(
        *prepare_words(tmp_path / "data", tmp_path / "out", tiny),
        *("--preprocessing_num_workers", 1, "--min_duration_in_seconds", 0.5),
        *("--add_metadata", "true", "--caption_variants", 1),
        *("--file_tags", "genre", "bpm", "--clap_model_name_or_path", tmp_path / "none"),
    )
    assert ran.code == 0, ran.err
    assert "garage rock" in captions(tmp_path / "out")["train/000000"].lower()
    assert "118" in captions(tmp_path / "out")["train/000000"]
    assert "secret" not in captions(tmp_path / "out")["train/000000"]
    for song in songs(tmp_path / "data").songs:
        assert pickle.loads(pickle.dumps(song)).read() == song.read()


def test_tags_of_bytes_are_those_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "song.flac").write_bytes(flac(0))
    tagged = FLAC(tmp_path / "song.flac")
    tagged.update({"genre": "Punk", "bpm": "118", "initialkey": "Am", "comment": "slow jam"})
    tagged.save()
    tags = FileTags("Punk", 118.0, "A minor", "slow jam")
    assert file_tags((tmp_path / "song.flac").read_bytes()) == file_tags(tmp_path / "song.flac") == tags
    assert file_tags(b"") == file_tags(b"torn") == FileTags()
