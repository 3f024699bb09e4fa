"""Captions that people keep beside songs: text and JSON files, metadata tables, and the metadata of clips."""

from __future__ import annotations

import json
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from conftest import SAMPLING_RATE, Ran, prepare_words, tone_song

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.arguments import PrepareArguments
from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.data.prepare import checkpoint_of, refresh
from musicgen_dreamboothing.data.songs.clips import listed_clips
from musicgen_dreamboothing.data.songs.song import Collection, Columns
from musicgen_dreamboothing.data.songs.sources import find_songs

Files = dict[str, str | bytes]
NFC, NFD = (unicodedata.normalize(form, "\u00fcber.wav") for form in ("NFC", "NFD"))


@pytest.fixture
def look(tmp_path: Path) -> Callable[..., Collection]:
    """What is found of empty songs `a.wav`, `b.wav` ... and of files beside them."""

    def find(files: Files, songs: tuple[str, ...] = ("a.wav", "b.wav"), column: str | None = None) -> Collection:
        for name, content in {**dict.fromkeys(songs, b""), **files}.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return find_songs(str(tmp_path), Columns(text=column))

    return find


Look = Callable[..., Collection]


def captions(collection: Collection) -> dict[str, str | None]:
    return {song.name: song.caption for song in collection.songs}


# --- text and JSON files


@pytest.mark.parametrize(
    "name",
    [
        "a.txt",
        "A.TXT",
        "a.caption",
        "a.wav.txt",
        "a.wav.caption",
        "a.caption.txt",
        "a_prompt.txt",
        "a.json",
        "a.wav.json",
    ],
)
def test_the_usual_names(look: Look, name: str) -> None:
    result = look({name: '"slow  song"' if name.endswith("json") else " slow\nsong\x07\n"})
    assert captions(result) == {"a.wav": "slow song", "b.wav": None}
    assert not result.notes


def test_captions_are_preferred_to_what_may_be_lyrics(look: Look) -> None:
    files = {"a.txt": "la la", "a.caption.txt": "slow", "a.lyrics.txt": "[Verse]\nla la", "a.json": '{"text": "json"}'}
    result = look(files)
    assert captions(result)["a.wav"] == "slow"
    assert not result.notes
    result = look({"a.caption.txt": " ", "a.txt": ""})  # the first that says something
    assert captions(result)["a.wav"] == "json"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_encodings_with_a_mark(look: Look, encoding: str) -> None:
    assert captions(look({"a.txt": "caf\u00e9 \U0001f3b8".encode(encoding)}))["a.wav"] == "caf\u00e9 \U0001f3b8"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "don\u2019t caf\u00e9".encode("cp1252"), "a.txt is not UTF-8 text (byte 3); save it as UTF-8"),
        ("a.txt", "fast".encode("utf-16-le"), "a.txt is not UTF-8 text (it holds zero bytes); save it as UTF-8"),
        ("a.txt", b"\xff\xfeodd", "a.txt is not UTF-16 text (byte 4); save it as UTF-8"),
        ("a.json", "{", "a.json is not JSON ("),
        ("a.json", "[" * 100_000, "a.json is not JSON (nested too deep)"),
        ("a.json", '{"caption": 5}', "a.json: the caption must be text or a list of texts, not 5"),
    ],
)
def test_a_broken_file_is_named_and_the_song_stays(look: Look, name: str, content: str | bytes, message: str) -> None:
    result = look({name: content, "b.txt": "slow"})
    assert captions(result) == {"a.wav": None, "b.wav": "slow"}
    assert result.notes[0] == "1 caption file not used:"
    assert message in result.notes[1]


@pytest.mark.parametrize(
    "text",
    [
        "[Verse 1] la la\n" * 60,
        "Verse 1:\nla la\n\nChorus:\nlo lo",
        "[00:12.50] la la\n[00:15.00] lo lo",
        "#TITLE:Song\n#BPM:120\n: 0 4 0 la",
        "[\u041f\u0440\u0438\u043f\u0435\u0432]\n\u043b\u0430",
    ],
)
def test_lyrics_are_no_caption(look: Look, text: str) -> None:
    result = look({"a.txt": text})
    assert captions(result)["a.wav"] is None
    assert result.notes == ["1 text file with lyrics not used as captions: a.txt"]


def test_what_may_be_lyrics_is_used_and_named(look: Look) -> None:
    result = look({"a.txt": "a line of eight words that goes on\n" * 8, "b.txt": "rock\nloud\n" * 5})
    assert captions(result)["b.wav"] is not None
    assert result.notes == [
        "note: 1 caption of many lines; if these are lyrics, rename song.txt to song.lyrics.txt: a.txt"
    ]


def test_text_of_unknown_names_is_reported(look: Look) -> None:
    result = look({"a.tags.txt": "rock", "c.caption": "slow", "a.lyrics.txt": "la", "readme.txt": "hello"})
    (note,) = result.notes
    assert note.startswith("2 text files beside songs not used; captions are called song.txt, ")
    assert note.endswith(": a.tags.txt, c.caption")


# --- tables


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.jsonl", '{"file_name": "a.wav", "text": "x, y"}'),
        ("metadata.jsonl", '\ufeff{"File": "a.wav", "Caption": ["x", " ", "y"]}'),
        ("metadata.csv", 'file_name,text\na.wav,"x, y"\n'),
        ("METADATA.CSV", "\ufeffFilename;Description;\r\na.wav;x, y;;;\r\n"),
        ("metadata.csv", "sep=;\nprompt;path\nx, y;a.wav\n"),
        ("metadata.csv", "id\tFile Name\tPrompt\n1\ta.wav\tx, y\n".encode("utf-16")),
        ("metadata.tsv", "audio\ttext\na.wav\tx, y\n"),
    ],
)
def test_tables_of_every_kind(look: Look, name: str, content: str | bytes) -> None:
    result = look({name: content})
    assert captions(result) == {"a.wav": "x, y", "b.wav": None}
    assert not result.notes


def test_a_parquet_table(look: Look, tmp_path: Path) -> None:
    table = pa.table({"file_name": ["a.wav", "b.wav"], "text": [["x", "y"], None], "sound": [b"1", b"2"]})
    pa.parquet.write_table(table, tmp_path / "metadata.parquet")
    result = look({})
    assert captions(result) == {"a.wav": "x, y", "b.wav": None}
    assert not result.notes


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("metadata.csv", ["a.wav,fast, loud punk"], "line 2: 3 values for 2 columns (a caption with commas needs"),
        ("metadata.csv", ["a.wav"], "line 2: 1 value for 2 columns"),
        ("metadata.csv", ['a.wav,"fast'], "line 2: the quotation marks don't match ("),
        ("metadata.csv", ['a.wav,"fast" one'], "line 2: the quotation marks don't match ("),
        (
            "metadata.jsonl",
            ['{"file_name": "a.wav", "text": 5}'],
            "line 1: the caption must be text or a list of texts, n",
        ),
        (
            "metadata.jsonl",
            ['{"file_name": "a.wav", "text": {}}'],
            "line 1: the caption must be text or a list of texts",
        ),
        (
            "metadata.jsonl",
            ['{"file_name": "a.wav", "text": [1]}'],
            "line 1: the caption must be text or a list of text",
        ),
        ("metadata.jsonl", ['{"file_name": null, "text": "x"}'], "line 1: file_name is empty"),
        ("metadata.jsonl", ['{"file_name": 7, "text": "x"}'], "line 1: file_name must be text, not 7"),
        ("metadata.jsonl", ['{"file_name": "a.wav", "te'], "line 1: is not JSON (Unterminated string"),
        ("metadata.jsonl", ['["a.wav"]'], "line 1: must be an object such as "),
    ],
)
def test_a_broken_row_is_named_and_the_others_count(look: Look, name: str, lines: list[str], message: str) -> None:
    """No caption is ever cut."""
    head, good = (
        (["file_name,text"], "b.wav,slow") if name.endswith("csv") else ([], '{"file_name":"b.wav","text":"slow"}')
    )
    result = look({name: "\n".join([*head, *lines, good, ""])})
    assert captions(result) == {"a.wav": None, "b.wav": "slow"}
    assert result.notes[0] == f"1 line of {name} not used:"
    assert result.notes[1].startswith(f"  {message}")


def test_a_caption_in_a_table_is_one_line(look: Look) -> None:
    result = look({"metadata.csv": 'file_name,text\na.wav,"slow\n\tjam\x07"\n', "metadata.jsonl": ""})
    assert captions(result)["a.wav"] == "slow jam"
    result = look({"metadata.csv": "", "metadata.jsonl": '{"file_name": "a.wav", "text": ["x\\ny", null, "z"]}'})
    assert captions(result)["a.wav"] == "x y, z"


@pytest.mark.parametrize("row", ["a.wav,slow jam", "a.wav"])
def test_a_row_with_too_few_cells_is_named(look: Look, row: str) -> None:
    """Which cell is missing nobody knows: the last one there may be the caption or the artist."""
    result = look({"metadata.csv": f"file_name,artist,text,\n{row}\nb.wav,,slow,,\nb.wav,someone,\n"})
    assert captions(result) == {"a.wav": None, "b.wav": "slow"}
    count = "2 values" if "," in row else "1 value"
    assert result.notes == ["1 line of metadata.csv not used:", f"  line 2: {count} for 3 columns"]


@pytest.mark.parametrize("text", ["null", "NaN", '""', "[]", '"  "'])
def test_no_caption_is_no_fault(look: Look, text: str) -> None:
    result = look({"metadata.jsonl": f'{{"file_name": "a.wav", "text": {text}}}'})
    assert (captions(result)["a.wav"] or "").strip() == ""
    assert not result.notes


def test_half_a_letter_is_replaced(look: Look) -> None:
    assert captions(look({"metadata.jsonl": r'{"file_name": "a.wav", "text": "\ud83c fast"}'}))["a.wav"] == "? fast"


def test_rows_find_their_files(look: Look) -> None:
    songs = (NFD, "Case.WAV", "dot.wav", "sub/win.wav", "other.flac")
    rows = {NFC: "1", "case.wav": "2", "./dot.wav": "3", "sub\\win.wav": "4", "other.mp3": "5", "gone.wav": "6"}
    table = "\n".join(json.dumps({"file_name": name, "text": text}) for name, text in rows.items())
    result = look({"metadata.jsonl": table}, songs)
    assert captions(result) == dict(zip(songs, "12345", strict=True))
    assert result.notes == ["1 of 6 rows of metadata.jsonl fit no song: gone.wav"]


def test_a_similar_name_takes_nothing_from_the_exact_one(look: Look) -> None:
    table = 'file_name,text\na.wav,exact\na.mp3,similar\nold/a.wav,elsewhere\n"a.wav",\n'
    result = look({"metadata.csv": table})
    assert captions(result)["a.wav"] == "exact"
    assert result.notes == ["2 of 4 rows of metadata.csv fit no song: a.mp3, old/a.wav"]


def test_of_several_captions_the_last_is_used_and_said(look: Look) -> None:
    result = look({"metadata.csv": "file_name,text\na.wav,one\nb.wav,same\n./a.wav,two\nb.wav,same\n"})
    assert captions(result) == {"a.wav": "two", "b.wav": "same"}
    assert result.notes == ["1 song with several captions in metadata.csv, the last is used: a.wav (lines 2, 4)"]


def test_a_table_speaks_of_its_folder_and_the_nearest_wins(look: Look) -> None:
    files = {
        "metadata.csv": "file,text\nsub/c.wav,far\na.wav,here\n",
        "sub/metadata.jsonl": '{"file":"c.wav","text":"near"}',
    }
    assert captions(look(files, ("a.wav", "sub/c.wav"))) == {"a.wav": "here", "sub/c.wav": "near"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("sub/metadata.csv", "id,score\n1,2\n", "no column file_name; it has id, score"),
        ("sub/metadata.jsonl", '{"id": 5}', "no column file_name; it has id"),
        ("sub/metadata.jsonl", "<html>", "no usable line; line 1: is not JSON (Expecting value)"),
        ("sub/metadata.parquet", "PAR1", "can't be read: "),
    ],
)
def test_a_file_of_another_program_is_named_and_skipped(look: Look, name: str, content: str, message: str) -> None:
    result = look({name: content, "metadata.csv": "file_name,text\na.wav,slow\n"})
    assert captions(result) == {"a.wav": "slow", "b.wav": None}
    assert result.notes[0].startswith(f"1 metadata file not used: {name} ({message}")


@pytest.mark.parametrize("content", ["", "\n\n", "file_name,text\n"])
def test_an_empty_table_is_not_reported(look: Look, content: str) -> None:
    assert not look({"metadata.csv": content}).notes


def test_a_column_that_was_asked_for_must_be_there(look: Look) -> None:
    table = {"metadata.csv": "file_name,Mood\na.wav,dark\n"}
    with pytest.raises(UserError, match=r"no column 'words' in .*metadata\.csv; it has file_name, Mood$"):
        look(table, column="words")
    assert captions(look(table, column="mood"))["a.wav"] == "dark"


def test_prepare_lists_what_it_did_not_use(cli: Callable[..., Ran], songs: Path, tmp_path: Path, tiny: Path) -> None:
    (songs / "metadata.csv").write_text("file_name,text\nsong 1.wav,fast, loud\ngone.wav,x\n")
    ran = cli(*prepare_words(songs, tmp_path / "data", tiny))
    assert ran.out.splitlines()[:4] == [
        "1 of 1 row of metadata.csv fit no song: gone.wav",
        "1 line of metadata.csv not used:",
        "  line 2: 3 values for 2 columns (a caption with commas needs quotation marks)",
        "14 clips from 4 songs, 0.4 minutes",
    ]


# --- the metadata of clips, which people edit


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "clips"
    folder.mkdir(parents=True)
    audio.write(folder / NFD, tone_song(1.0, 0), SAMPLING_RATE)
    return folder


def test_clips_from_a_mac_are_found(clips: Path, tiny: Path) -> None:
    rows = [{"file_name": NFC, "text": ["slow", "sad"]}, {"file_name": None}, {"file_name": 5}, {"text": "x"}]
    (clips / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert listed_clips(clips.parent)[0] == {"file_name": NFD, "text": "slow, sad"}
    options = PrepareArguments(model_name_or_path=str(tiny), instance_prompt="punk")
    assert refresh(clips.parent, options, checkpoint_of(options)).clips_encoded == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": 5}, "the caption must be text or a list of texts, not 5"),
        ({"text": {"a": 1}}, 'the caption must be text or a list of texts, not {"a": 1}'),
        ({"text": "x", "variants": "y"}, "variants must be a list of texts"),
    ],
)
def test_a_line_that_makes_no_caption_is_named(clips: Path, row: dict[str, object], message: str) -> None:
    (clips / "metadata.jsonl").write_text("\n" + json.dumps({"file_name": NFD} | row))
    with pytest.raises(UserError) as caught:
        listed_clips(clips.parent)
    assert str(caught.value) == f"{clips / 'metadata.jsonl'} line 2: {message}; correct the line and run again"


def test_a_moved_folder_from_a_mac_is_brought_up_to_date(
    cli: Callable[..., Ran], tmp_path: Path, prepared: Path, tiny: Path
) -> None:
    """A line without a name hurts nobody, and clips in another Unicode form are no deleted ones."""
    songs = shutil.copytree(prepared.parent / "songs", tmp_path / "songs")
    (songs / "song-0.wav").rename(songs / NFC)
    words = prepare_words(songs, tmp_path / "data", tiny)
    assert cli(*words).code == 0
    for path in (tmp_path / "data" / "clips").glob("*.flac"):
        path.rename(path.with_name(unicodedata.normalize("NFD", path.name)))
    with (tmp_path / "data" / "clips" / "metadata.jsonl").open("a") as file:
        file.write('{"file_name": null, "text": "x"}\n')
    ran = cli(*words)
    assert (ran.code, ran.out.splitlines()[0]) == (0, "16 clips from 4 songs, 0.5 minutes")
    assert "missing" not in ran.out
