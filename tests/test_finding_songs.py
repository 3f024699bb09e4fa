"""Which files of a folder are songs: links, hidden folders, outputs of this program, cue sheets, chapters and names."""

from __future__ import annotations

import json
import os
import unicodedata
import zipfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import SAMPLING_RATE, Ran, prepare_words, tone_song, train_words
from mutagen.flac import FLAC

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.data.songs import kinds, scan
from musicgen_dreamboothing.data.songs.kinds import UNREAD
from musicgen_dreamboothing.data.songs.names import NameIndex, printable
from musicgen_dreamboothing.data.songs.song import Collection, Columns
from musicgen_dreamboothing.data.songs.sources import find_songs
from musicgen_dreamboothing.data.songs.tracks import parse_cue_sheet
from musicgen_dreamboothing.evaluation.clips import NOTE
from musicgen_dreamboothing.training.samples import LISTING

Cli = Callable[..., Ran]


@pytest.fixture(scope="session")
def wav(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("sound") / "a.wav"
    audio.write(path, tone_song(2.0, 0), SAMPLING_RATE)
    return path.read_bytes()


@pytest.fixture
def fill(tmp_path: Path, wav: bytes) -> Callable[..., Path]:
    """Writes files below a folder: songs, or what is given as text or bytes."""

    def write(*songs: str | bytes, **files: str | bytes) -> Path:
        root = tmp_path / "songs"
        for name, content in [*((name, wav) for name in songs), *files.items()]:
            path = Path(os.fsdecode(os.path.join(os.fsencode(root), os.fsencode(name))))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return root

    return write


Fill = Callable[..., Path]


def collect(folder: Path) -> Collection:
    return find_songs(str(folder), Columns())


def names(folder: Path) -> list[str]:
    return [song.name for song in collect(folder).songs]


# --- what is passed over


def test_hidden_and_system_folders_are_no_songs(fill: Fill) -> None:
    junk = [".Trash-1000/files/x.wav", ".ipynb_checkpoints/a-checkpoint.wav", "@eaDir/a.wav", "$RECYCLE.BIN/a.wav"]
    junk += [
        "System Volume Information/a.wav",
        "__MACOSX/a.wav",
        "lost+found/a.wav",
        "sub/.git/a.wav",
        "#recycle/a.wav",
    ]
    root = fill("a.wav", ".hidden.wav", "...Like Clockwork/a.wav", *junk)
    collection = collect(root)
    assert [song.name for song in collection.songs] == ["...Like Clockwork/a.wav", "a.wav"]
    assert collection.notes == [
        "Skipped 9 hidden or system folders: #recycle, $RECYCLE.BIN, .Trash-1000, .ipynb_checkpoints and 5 more",
        "1 file not read:",
        "  hidden file: .hidden.wav",
    ]


def test_a_hidden_folder_that_is_named_is_read(fill: Fill) -> None:
    """Also a snapshot of the Hub's cache, which holds links."""
    root = fill("../.cache/blobs/0123abcd")
    snapshot = root.parent / ".cache" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    (snapshot / "a.wav").symlink_to("../../blobs/0123abcd")
    assert names(snapshot) == ["a.wav"]


def test_links_are_followed_and_every_file_is_read_once(fill: Fill) -> None:
    root = fill("real/a.wav", "../elsewhere/b.wav", "../elsewhere/deep/c.wav")
    for name, target in {
        "album": "../elsewhere",
        "once more": "../elsewhere/deep",
        "self": ".",
        "up": "..",
        "real/back": "..",
        "link.wav": "real/a.wav",
        "out.wav": "../elsewhere/b.wav",
    }.items():
        (root / name).symlink_to(target)
    collection = collect(root)
    assert [song.name for song in collection.songs] == ["album/b.wav", "album/deep/c.wav", "real/a.wav"]
    assert collection.notes == [
        "Skipped 5 links to what is read anyway: link.wav, once more, out.wav, real/back and 1 more",
        "1 folder not read: up (a link to a folder around this one)",
    ]


def test_what_may_be_music_and_is_not_read_is_named(fill: Fill) -> None:
    root = fill("a.wav")
    for name in (
        "a.m4p",
        "a.aax",
        "b.dsf",
        "c.mid",
        ".song.mp3.icloud",
        "d.mp3.part",
        "e.rar",
        "f.mp3.lnk",
        "list.m3u",
    ):
        (root / name).write_bytes(b"?" * 40)
    for name in ("cover.jpg", "notes.txt", "Thumbs.db", "run.log", "._a.wav", "sub.txt"):
        (root / name).write_bytes(b"?" * 40)
    (root / "pointer.wav").write_text("version https://git-lfs.github.com/spec/v1\n")
    (root / "lists").mkdir()
    (root / "lists" / "list.m3u8").write_text("a.wav")
    with zipfile.ZipFile(root / "album.zip", "w") as album, zipfile.ZipFile(root / "texts.zip", "w") as texts:
        album.writestr("a.mp3", "")
        texts.writestr("a.txt", "")
    (root / "gone.wav").symlink_to("/nowhere")
    (root / "gone.jpg").symlink_to("/nowhere")
    (root / "loop.wav").symlink_to("loop.wav")
    os.mkfifo(root / "pipe.wav")
    os.mkfifo(root / "pipe")
    collection = collect(root)
    assert [song.name for song in collection.songs] == ["a.wav"]
    assert collection.notes[0] == "14 files not read:"
    message = {name for line in collection.notes[1:] for name in line.partition(": ")[2].split(", ")}
    assert message == {
        *("a.m4p", "a.aax", "b.dsf", "c.mid", ".song.mp3.icloud", "d.mp3.part", "e.rar", "f.mp3.lnk", "pointer.wav"),
        *("lists/list.m3u8", "album.zip", "gone.wav", "loop.wav", "pipe.wav"),
    }


def test_what_may_not_be_opened_is_named(fill: Fill, monkeypatch: pytest.MonkeyPatch) -> None:
    root, listed = fill("a.wav", "locked.wav", "private/b.wav"), os.scandir

    def locked(folder: Path) -> object:
        if folder.name == "private":
            raise PermissionError(13, "Permission denied")
        return listed(folder)

    monkeypatch.setattr(scan.os, "scandir", locked)
    monkeypatch.setattr(os, "access", lambda path, _: "locked" not in path.name)
    collection = collect(root)
    assert [song.name for song in collection.songs] == ["a.wav"]
    assert collection.notes == [
        "1 folder not read: private (Permission denied)",
        "1 file not read:",
        "  no permission to read: locked.wav",
    ]


def test_sound_is_recognised_without_a_suffix(fill: Fill) -> None:
    root = fill("song", "01. Intro", "sound.bwf", words="no music at all")
    (root / "picture").write_bytes(b"\xff\xd8\xff\xe0 jpeg")
    assert names(root) == ["01. Intro", "song", "sound.bwf"]


def test_reasons_exclude_each_other() -> None:
    suffixes = [suffix for kind in UNREAD.values() for suffix in kind]
    assert len(set(suffixes)) == len(suffixes)
    assert not set(suffixes) & audio.AUDIO_SUFFIXES


# --- what this program made


def test_records_have_the_names_that_others_give_them() -> None:
    assert {NOTE, LISTING, "run.json", "report.json"} == set(kinds.RECORDS)


RUN_RECORD = json.dumps({"options": {}, "base_model": "x", "base_revision": None, "data": ""})


@pytest.mark.parametrize(
    ("record", "content", "songs"),
    [
        ("runs/x/run.json", RUN_RECORD, ["runs/x/samples/step_0001/a.wav", "runs/x/anything/a.wav"]),
        ("out/report.json", '{"verdict": [], "figures": []}', ["out/songs/a.wav"]),
        ("out/base/made.json", '{"weights": "", "sampling": {}}', ["out/base/a.wav"]),
        ("demo/before/made.json", '{"made_with": {}, "files": []}', ["demo/before/a.wav"]),
        ("step_1/samples.json", '{"prompts": {}, "sampling": {}}', ["step_1/a.wav"]),
        ("data/songs.jsonl", "", ["data/clips/a-000.flac", "data/clips/a-001.flac"]),  # killed while cutting
        ("class/own/songs.jsonl", "", ["class/own/clips/a-000.flac"]),
        ("data/stems/x.txt", "", ["data/stems/0123456789abcdef01234567.flac"]),  # killed while separating
        ("wandb/offline-run-1/x.wandb", "", ["wandb/offline-run-1/files/media/audio/a.wav"]),
    ],
)
def test_outputs_are_no_songs(fill: Fill, record: str, content: str, songs: list[str]) -> None:
    root = fill("a.wav", *songs, **{record: content})
    collection = collect(root)
    assert [song.name for song in collection.songs] == ["a.wav"]
    assert len(collection.notes) == 1
    assert collection.notes[0].startswith("Skipped output of this program: ")
    assert names(root / Path(songs[0]).parent)[0] == Path(songs[0]).name  # whoever asks for them gets them


@pytest.mark.parametrize("record", ["run.json", "report.json", "made.json", "samples.json"])
def test_records_of_other_programs_mean_nothing(fill: Fill, record: str) -> None:
    root = fill("album/a.wav", "album/samples/b.wav", **{f"album/{record}": '{"speed": 3}'})
    assert names(root) == ["album/a.wav", "album/samples/b.wav"]


def test_a_folder_of_songs_may_be_an_output_folder(fill: Fill) -> None:
    files = {"run.json": RUN_RECORD, "songs.jsonl": "", "album/run.json": RUN_RECORD, "new/generated.jsonl": "{torn"}
    files["clips/metadata.jsonl"] = ""
    root = fill("a.wav", "b/c.wav", "album/d.wav", "album/samples/x.wav", "samples/x.wav", "clips/x.flac", **files)
    with (root / "generated.jsonl").open("w") as file:
        file.write('{"file_name": "x.wav"}\n{"file_name": "y')
    fill("x.wav", "y.wav")
    assert names(root) == ["a.wav", "album/d.wav", "b/c.wav", "y.wav"]


def test_folders_of_songs_keep_their_names_beside_prepared_ones(fill: Fill) -> None:
    """A person's `stems`, `class`, `clips` and `tokens` are no outputs because a run was there."""
    own = ["class/a.wav", "clips/one.flac", "clips/one-001.flac", "stems/drums.wav", "tokens/a.wav"]
    root = fill("a.wav", *own, **{"songs.jsonl": ""})
    assert names(root) == ["a.wav", *sorted(own)]
    fill("stems/0123456789abcdef01234567.flac")
    collection = collect(root)
    assert [song.name for song in collection.songs] == ["a.wav", *sorted(own)]
    assert collection.notes == ["Skipped output of this program: 1 generated clip in stems"]


def test_a_second_run_among_the_songs_has_the_same_songs(cli: Cli, songs: Path, tiny: Path) -> None:
    options = ["--sample_prompts", "punk", "--max_steps", 1, "--eval_strategy", "no", "--eval_on_start", "false"]
    words = [*train_words(songs, songs / "runs" / "punk", tiny), *options, "--sample_seconds", 0.5]
    ran = cli(*words)
    assert ran.code == 0, ran.err
    assert collect(songs).notes == ["Skipped output of this program: runs/punk"]
    assert "already holds this run, finished" in cli(*words).out
    generated = songs / "album 0"
    assert cli("generate", tiny, "punk", "--output_dir", generated, "--seconds", 1).code == 0
    assert json.loads((generated / "generated.jsonl").read_text())["prompt"] == "punk"
    assert len(collect(songs).songs) == 4


def test_a_prepared_folder_is_no_folder_of_songs_but_its_clips_are(prepared: Path) -> None:
    with pytest.raises(
        UserError, match=r"which is a prepared folder: train takes it as it is; .*clips and another --output_dir$"
    ):
        collect(prepared)
    clips = collect(prepared / "clips")
    assert len(clips.songs) == 16
    assert {song.caption for song in clips.songs} == {"punk"}
    assert not clips.notes


# --- tracks

CUE = """PERFORMER "Nobody"
FILE "album.wav" WAVE
  TRACK 01 AUDIO
    TITLE "One / A"
    INDEX 01 00:00:00
  TRACK 02 AUDIO
    TITLE "Zw\u00f6lf"
    INDEX 00 00:00:50
    INDEX 01 00:01:15
"""
TRACKS = [("album.flac#01 One _ A", 0.0, 1.2), ("album.flac#02 Zw\u00f6lf", 1.2, None)]


def tracks(folder: Path) -> list[tuple[str, float, float | None]]:
    return [(song.name, song.start, song.end) for song in collect(folder).songs]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_cue_sheet_makes_tracks(fill: Fill, encoding: str, newline: str) -> None:
    sheet = CUE.replace("\n", newline).encode(encoding)
    table = "file_name,text\nalbum.flac#02 Zw\u00f6lf,its own\n"
    root = fill("album.flac", **{"album.cue": sheet, "album.txt": "of all", "metadata.csv": table})
    assert tracks(root) == TRACKS
    assert tracks(root / "album.flac") == TRACKS
    assert tracks(root / "album.cue") == TRACKS
    collection = collect(root)
    assert [song.caption for song in collection.songs] == ["of all", "its own"]
    assert collection.notes == ["2 tracks in 1 file, each used as a song"]
    before = [song.fingerprint for song in collection.songs]
    assert len(set(before)) == 2
    (root / "album.cue").write_bytes(sheet.replace(*(text.encode(encoding)[-4:] for text in ("01:15", "01:20"))))
    assert [song.fingerprint for song in collect(root).songs] != before


def test_a_cue_sheet_in_a_code_page_makes_tracks_without_foreign_titles(fill: Fill) -> None:
    root = fill("album.flac", **{"album.cue": CUE.encode("cp1252")})
    assert tracks(root) == [TRACKS[0], ("album.flac#02", 1.2, None)]


def test_a_cue_sheet_beside_single_tracks_changes_nothing(fill: Fill) -> None:
    sheet = 'FILE "1.wav" WAVE\nTRACK 01 AUDIO\nINDEX 01 00:00:00\nTRACK 02 AUDIO\nINDEX 00 00:01:00\n'
    root = fill("1.wav", "2.wav", **{"x.cue": sheet + 'FILE "2.wav" WAVE\nINDEX 01 00:00:00\n'})
    assert tracks(root) == [("1.wav", 0.0, None), ("2.wav", 0.0, None)]
    assert not collect(root).notes


def test_a_cue_sheet_of_several_files(fill: Fill) -> None:
    sheet = "".join(
        f"FILE cd\\{n}.WAV WAVE\nTRACK {n}1 AUDIO\nINDEX 01 0:0:0\nTRACK {n}2 AUDIO\nINDEX 01 0:1:0\n" for n in (1, 2)
    )
    root = fill("CD/1.wav", "CD/2.wav", **{"x.cue": sheet})
    assert [name for name, *_ in tracks(root)] == [f"CD/{n}.wav#{n}{m}" for n in (1, 2) for m in (1, 2)]


@pytest.mark.parametrize(
    ("sheet", "message"),
    [
        (CUE.replace("album.wav", "other.wav"), "album.cue: names 'other.wav', which is not among the songs"),
        (CUE.replace("00:01:15", "09:00:00"), "track 2 begins at 540.0 s, but album.flac lasts 2.0 s"),
        (CUE.replace("00:01:15", "00:00:00"), "track 2 begins at 0.0 s, not behind the track before it"),
        (CUE.replace("00:01:15", "00:01:75"), "track 2 has the INDEX 01 '00:01:75', which is not minutes:seconds:f"),
        (CUE.replace("INDEX 01 00:01:15", ""), "track 2 has no INDEX 01"),
        ("no cue sheet at all", "names no track with an INDEX 01"),
        (b"\0\1\2", "is not UTF-8 text (it holds zero bytes)"),
    ],
)
def test_a_cue_sheet_that_does_not_match_is_named(fill: Fill, sheet: str | bytes, message: str) -> None:
    root = fill("album.flac", **{"album.cue": sheet})
    assert tracks(root) == [("album.flac", 0.0, None)]
    assert collect(root).notes[0] == "1 list of tracks not used:"
    assert message in collect(root).notes[1]


@pytest.mark.parametrize("sheet", [CUE.replace("album.wav", "other.wav"), "no cue sheet at all", b"\0\1\2"])
def test_a_cue_sheet_of_other_songs_is_not_mentioned_for_one_song(fill: Fill, sheet: str | bytes) -> None:
    root = fill("a.wav", "album.wav", **{"x.cue": sheet, "metadata.csv": "file,text\na.wav,slow\nalbum.wav,fast\n"})
    collection = collect(root / "a.wav")
    assert [(song.name, song.caption) for song in collection.songs] == [("a.wav", "slow")]
    assert not collection.notes


def test_a_faulty_cue_sheet_of_one_song_is_named(fill: Fill) -> None:
    root = fill("album.wav", **{"x.cue": CUE.replace("00:01:15", "09:00:00"), "album.cue": "no cue sheet at all"})
    assert collect(root / "album.wav").notes == [
        "2 lists of tracks not used:",
        "  album.cue: names no track with an INDEX 01",
        "  x.cue: track 2 begins at 540.0 s, but album.wav lasts 2.0 s",
    ]


def test_one_of_several_files_of_a_cue_sheet(fill: Fill) -> None:
    sheet = "".join(
        f"FILE {n}.wav WAVE\nTRACK {n}1 AUDIO\nINDEX 01 0:0:0\nTRACK {n}2 AUDIO\nINDEX 01 0:1:0\n" for n in (1, 2)
    )
    root = fill("1.wav", "2.wav", "2.flac", **{"x.cue": sheet})
    assert [name for name, *_ in tracks(root / "2.wav")] == ["2.wav#21", "2.wav#22"]
    assert not [note for note in collect(root / "2.wav").notes if "not used" in note]
    assert tracks(root / "2.flac") == [("2.flac", 0.0, None)]


def test_data_tracks_are_no_songs() -> None:
    sheet = "FILE a.bin BINARY\nTRACK 01 MODE1/2352\nINDEX 01 00:00:00\nTRACK 02 AUDIO\nINDEX 1 70:00:74\n"
    assert [(one.number, one.start) for one in parse_cue_sheet(sheet)] == [(2, 4200 + 74 / 75)]


def write_chapters(path: Path, chapters: list[tuple[float, float, str]]) -> None:
    with av.open(str(path), "w", format="matroska" if path.suffix == ".mka" else None) as file:
        stream = file.add_stream("libmp3lame" if path.suffix == ".mp3" else "aac", rate=44_100, layout="mono")
        file.set_chapters(
            [
                {"id": n, "start": int(start * 1000), "end": int(end * 1000), "time_base": Fraction(1, 1000)}
                | {"metadata": {"title": title}}
                for n, (start, end, title) in enumerate(chapters)
            ]
        )
        fifo, wave = av.AudioFifo(), tone_song(3.0, 0, rate=44_100)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave), format="fltp", layout="mono")
        frame.sample_rate = 44_100
        fifo.write(frame)
        while piece := fifo.read(1024):
            file.mux(stream.encode(piece))
        file.mux(stream.encode(None))


@pytest.mark.parametrize("suffix", [".m4a", ".mka", ".mp3"])
def test_chapters_make_tracks(fill: Fill, suffix: str) -> None:
    root = fill()
    root.mkdir()
    write_chapters(root / f"mix{suffix}", [(0, 1, "Uno"), (1, 3, "Dos")])
    expected = [(f"mix{suffix}#01 Uno", 0.0, 1.0), (f"mix{suffix}#02 Dos", 1.0, None)]
    assert tracks(root) == tracks(root / f"mix{suffix}") == expected
    write_chapters(root / f"mix{suffix}", [(0, 3, "all of it")])
    assert tracks(root) == [(f"mix{suffix}", 0.0, None)]


def test_tracks_leave_no_gaps(fill: Fill) -> None:
    root = fill("album.flac", **{"album.cue": CUE.replace("01 00:00:00", "01 00:01:00")})
    assert tracks(root) == TRACKS
    write_chapters(root / "mix.mka", [(0.5, 1, "Uno"), (1.5, 2, "Dos")])
    assert tracks(root)[2:] == [("mix.mka#01 Uno", 0.0, 1.5), ("mix.mka#02 Dos", 1.5, None)]


def test_chapters_that_overlap_are_named(fill: Fill) -> None:
    root = fill()
    root.mkdir()
    write_chapters(root / "mix.mka", [(0, 2, "Uno"), (1, 3, "Dos")])
    assert tracks(root) == [("mix.mka", 0.0, None)]
    assert collect(root).notes[1] == "  mix.mka: chapters '01 Uno' and '02 Dos' overlap"


def test_a_cue_sheet_inside_a_flac_makes_tracks(fill: Fill) -> None:
    root = fill()
    root.mkdir()
    audio.write(root / "album.flac", tone_song(2.0, 0), SAMPLING_RATE)
    file = FLAC(root / "album.flac")
    file["CUESHEET"] = CUE
    file.save()
    assert tracks(root) == TRACKS


# --- names

ODD = [b"caf\xe9.wav", b"caf\\xe9.wav", b"two\nlines.wav", b"\x1b[31m.wav", b"-dash.wav", b"a.wav", b"A.wav"]
ODD += ["#%&? \U0001f468\u200d\U0001f469.wav".encode(), b"x" * 251 + b".wav", "\u66f2\u3000\u540d.wav".encode()]
ODD += [unicodedata.normalize(form, "\u00fcber.wav").encode() for form in ("NFC", "NFD")]


def test_names_of_any_bytes(fill: Fill, cli: Cli, tiny: Path, tmp_path: Path) -> None:
    root = fill(*ODD)
    listed = names(root)
    assert len(set(listed)) == len(ODD)
    assert all("\n" not in name and "\x1b" not in name and name.encode() for name in listed)
    assert {"caf\\xe9.wav", "caf\\xe9.wav (2)", "two\\nlines.wav", "a.wav", "A.wav"} <= set(listed)
    for _ in range(2):
        ran = cli(*prepare_words(root, tmp_path / "data", tiny))
        assert (ran.code, ran.out.splitlines()[0]) == (0, f"{len(ODD)} clips from {len(ODD)} songs, 0.4 minutes")
    clips = [path.name for path in (tmp_path / "data" / "clips").glob("*.flac")]
    assert len({unicodedata.normalize("NFC", name).casefold() for name in clips}) == len(ODD)


def test_bidirectional_marks_are_shown() -> None:
    assert printable("evil\u202etxt.wav") == "evil\\u202etxt.wav"


@pytest.mark.parametrize(
    ("requested", "name"),
    [
        ("a.wav", "a.wav"),
        ("./a.wav", "a.wav"),
        ("sub\\B.WAV", "sub/b.wav"),
        ("C:\\Users\\me\\songs\\sub\\b.wav", "sub/b.wav"),
        ("/home/me/songs/a.wav", "a.wav"),
        ("b.wav", "sub/b.wav"),
        ("u\u0308ber.wav", "\u00fcber.wav"),
        ("b", "sub/b.wav"),
        ("b.mp3", "sub/b.wav"),
        ("twice.wav", None),
        ("../a.wav", None),
        ("missing.wav", None),
        ("1/two.wav", None),
    ],
)
def test_a_name_matches_as_other_systems_write_it(requested: str, name: str | None) -> None:
    index = NameIndex(["a.wav", "sub/b.wav", "\u00fcber.wav", "1/twice.wav", "2/twice.wav", "2/two.wav"])
    nearest = index.find(requested)
    assert (nearest and nearest[0]) == name
