"""The doctor: what it finds in folders with defects, what it ignores, and what it shows."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_music import low_passed, music
from pages import Page, needs_nothing

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.analysis.duplicates import Duplicate
from musicgen_dreamboothing.analysis.similarity import mel_distance, si_sdr
from musicgen_dreamboothing.analysis.sound import Sound
from musicgen_dreamboothing.audio import Wave
from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.data.captions.metadata import update_metadata
from musicgen_dreamboothing.data.doctor import page as report
from musicgen_dreamboothing.data.doctor.advice import advice
from musicgen_dreamboothing.data.doctor.examination import CACHE, Clip, Examination, PreviewedClip, examine
from musicgen_dreamboothing.data.doctor.findings import Finding, findings
from musicgen_dreamboothing.data.doctor.page import write_report
from musicgen_dreamboothing.data.doctor.summary import lines
from musicgen_dreamboothing.data.songs.clips import listed_clips
from musicgen_dreamboothing.data.songs.cutting import SongRecord

RATE = 16_000
HOSTILE = """Näïve <b>"Live"</b> & 'Loud' 夜"""
DEFECTIVE: dict[str, Callable[[], Wave]] = {
    "Clipping in 1 clip": lambda: np.clip(8 * music(4, RATE, 11, channels=2), -1, 1),
    "1 clip mostly silent": lambda: np.pad(music(1, RATE, 12), ((0, 0), (0, 3 * RATE))),
    "1 clip off centre (DC offset)": lambda: 0.9 * music(4, RATE, 20) + np.float32(0.05),
    "No treble above 4.1 kHz in 1 clip": lambda: low_passed(music(4, RATE, 14), RATE, 4000),
    "1 clip with one channel inverted": lambda: music(4, RATE, 15) * np.array([[1], [-1]], np.float32),
    "1 clip with one silent channel": lambda: music(4, RATE, 16) * np.array([[1], [0]], np.float32),
    "1 clip partly out of phase": lambda: np.concatenate([music(4, RATE, 17), music(4, RATE, 3) - music(4, RATE, 17)]),
    "1 clip in stereo with two equal channels": lambda: np.repeat(music(4, RATE, 18), 2, axis=0),
    "1 clip far quieter than the others": lambda: 0.03 * music(4, RATE, 19),
}


def write_folder(folder: Path, waves: dict[str, Wave], **columns: Any) -> Path:
    """A prepared folder with a clip for each wave, the name before its last `-` being its song."""
    (folder / "clips").mkdir(parents=True)
    rows = []
    for name, wave in waves.items():
        audio.write(folder / "clips" / f"{name}.flac", wave, RATE)
        row = {"file_name": f"{name}.flac", "text": f"punk, {name}", "source": f"{name.rpartition('-')[0]}.mp3"}
        rows.append(row | {"split": "train", "start": 0.0, "seconds": wave.shape[1] / RATE} | columns)
    write_rows(folder, rows)
    return folder


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "clips" / "metadata.jsonl").write_text(text, encoding="utf-8")


def read_rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "clips" / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def good_clips(songs: int = 3) -> dict[str, Wave]:
    return {f"song {number}-000": music(4, RATE, number, channels=2) for number in range(songs)}


def rougher(wave: Wave) -> Wave:
    """A codec that adds noise, and fills up its last frame."""
    noise = np.random.default_rng(0).standard_normal(wave.shape)
    return np.pad(wave + 0.02 * noise, ((0, 0), (0, 100))).astype(np.float32)


def look(folder: Path, preview: Callable[[Wave], Wave] | None = None) -> Examination:
    return examine(folder, preview=preview, rate=RATE)


def titles(examination: Examination) -> list[str]:
    return [finding.title for finding in findings(examination)]


# Examinations of folders


def test_nothing_is_found_in_a_healthy_folder(tmp_path: Path) -> None:
    seen = look(write_folder(tmp_path / "songs", good_clips()))
    assert findings(seen) == []
    assert seen.minutes == pytest.approx(3 * 4 / 60)
    assert "Nothing wrong was found." in lines(seen)


def test_every_defect_is_found_in_its_clip_only(tmp_path: Path) -> None:
    defective = {f"defective {number}-000": make() for number, make in enumerate(DEFECTIVE.values())}
    found = findings(look(write_folder(tmp_path / "songs", {**good_clips(), **defective})))
    expected = {title: (f"defective {number}-000.flac",) for number, title in enumerate(DEFECTIVE)}
    assert {finding.title: finding.clips for finding in found} == expected
    assert [finding.severity for finding in found] == ["fix"] * 2 + ["listen"] * 6 + ["note"]


def test_a_take_in_two_songs_and_in_both_splits(tmp_path: Path) -> None:
    take, other = music(5, RATE, 30), music(5, RATE, 31)
    waves = {"a-000": take, "b-000": 0.3 * take, "c-000": other, "c-001": other, "d-000": take}
    folder = write_folder(tmp_path / "songs", waves)
    rows = read_rows(folder)
    write_rows(folder, [*rows[:-1], {**rows[-1], "split": "eval"}])
    found = {finding.title: finding for finding in findings(look(folder)) if "far quieter" not in finding.title}
    assert list(found) == [
        "3 clips both trained on and held out",
        "2 clips that are one recording in several songs",
        "2 clips that repeat each other within a song",
    ]
    assert found["3 clips both trained on and held out"].where == ("a-000.flac = b-000.flac = d-000.flac",)


def test_unreadable_clips_are_named_and_the_others_are_measured(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "songs", good_clips())
    (folder / "clips" / "song 0-000.flac").write_bytes(b"no music at all")
    (folder / "clips" / "song 1-000.flac").unlink()
    seen = look(folder)
    (finding,) = findings(seen)
    assert finding.title == "2 clips can't be read"
    assert finding.severity == "fix"
    assert [place.partition(":")[0] for place in finding.where] == ["song 0-000.flac", "song 1-000.flac"]
    assert "the file is missing" in finding.where[1]
    assert len(seen.readable) == 1
    assert any("song 0-000.flac" in line for line in lines(seen))


def test_folders_and_dead_links_are_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "songs", good_clips())
    for number in (0, 1):
        (folder / "clips" / f"song {number}-000.flac").unlink()
    (folder / "clips" / "song 0-000.flac").mkdir()
    (folder / "clips" / "song 1-000.flac").symlink_to("nowhere")
    (finding,) = findings(look(folder))
    assert finding.where == ("song 0-000.flac: is no file", "song 1-000.flac: the file is missing")


def test_a_clip_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "songs", good_clips())
    (folder / "clips" / "song 0-000.flac").chmod(0)
    if os.access(folder / "clips" / "song 0-000.flac", os.R_OK):
        pytest.skip("who runs this may read everything")
    seen = look(folder)
    (finding,) = findings(seen)
    assert (finding.title, finding.where) == ("1 clip can't be read", ("song 0-000.flac: Permission denied",))
    assert len(seen.readable) == 2
    write_report(seen, folder / "report.html")
    (folder / "clips" / "metadata.jsonl").chmod(0)
    with pytest.raises(UserError, match=r"metadata\.jsonl can't be read \(Permission denied\)"):
        look(folder)


@pytest.mark.parametrize("name", ["../song.flac", "a/../../song.flac", "/song.flac"])
def test_a_clip_from_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    """By all that reads the list."""
    folder = write_folder(tmp_path / "songs", good_clips())
    path = folder / "clips" / "metadata.jsonl"
    path.write_text(f'{path.read_text(encoding="utf-8")}\n{{"file_name": "{name}"}}\n', encoding="utf-8")
    told = f"{path} line 5: '{name}' is outside of {path.parent}; copy it there and name the copy"
    for reader in (look, lambda folder: update_metadata(folder, [], [], None, {}), listed_clips):
        with pytest.raises(UserError) as error:
            reader(folder)
        assert str(error.value) == told


def test_a_truncated_clip_is_measured_as_far_as_possible(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "songs", good_clips())
    path = folder / "clips" / "song 0-000.flac"
    path.write_bytes(path.read_bytes()[:-60_000])
    assert titles(look(folder)) == ["1 clip with damaged data"]


@pytest.mark.parametrize("rows", [None, [], [{"text": "no file"}], [{"file_name": "gone.flac"}]])
def test_without_a_clip_there_is_nothing_to_examine(tmp_path: Path, rows: list[dict[str, Any]] | None) -> None:
    (tmp_path / "clips").mkdir()
    if rows is not None:
        write_rows(tmp_path, rows)
    with pytest.raises(UserError, match="prepare"):
        look(tmp_path)


def test_people_may_leave_out_and_misspell_columns(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "songs", good_clips(2))
    write_rows(
        folder,
        [
            {"file_name": "song 0-000.flac", "tempo": "fast", "tags": "punk", "start": None, "key": 3},
            {"file_name": "song 1-000.flac", "tempo": 120, "tags": {"genres": ["punk"], "moods": None, "vocals": True}},
        ],
    )
    first, second = look(folder).clips
    assert (first.tempo, first.key, first.tags, first.vocals, first.source) == (None, "3", (), None, first.file_name)
    assert (second.tempo, second.tags, second.vocals) == (120.0, ("punk",), True)


def test_a_second_run_decodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "songs", good_clips())
    first = look(folder)
    rows = read_rows(folder)
    write_rows(folder, [{**rows[0], "text": "another caption"}, *rows[1:]])
    monkeypatch.setattr(audio, "decode", None)
    second = look(folder)
    assert second.clips[0].text == "another caption"
    assert [clip.sound for clip in second.clips] == [clip.sound for clip in first.clips]


def test_only_what_changed_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "songs", good_clips())
    before = look(folder)
    audio.write(folder / "clips" / "song 1-000.flac", music(4, RATE, 8), RATE)
    decoded: list[str] = []
    decode = audio.decode
    monkeypatch.setattr(
        audio, "decode", lambda path, *args, **keys: decoded.append(path.name) or decode(path, *args, **keys)
    )
    after = look(folder)
    assert decoded == ["song 1-000.flac"]
    changed = [a.sound != b.sound for a, b in zip(before.clips, after.clips, strict=True)]
    assert changed == [False, True, False]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"v1@16000": {"x": {"seconds": 1}}}', '{"v0@16000": {}}'])
def test_a_damaged_cache_is_written_again(tmp_path: Path, content: str) -> None:
    folder = write_folder(tmp_path / "songs", good_clips(1))
    before = look(folder)
    (folder / CACHE).write_text(content)
    assert look(folder).clips == before.clips


def test_another_rate_measures_again(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "songs", good_clips(1))
    assert look(folder).readable[0][1].bandwidth == RATE / 2
    assert examine(folder, preview=None, rate=2 * RATE).readable[0][1].bandwidth == pytest.approx(RATE / 2, rel=0.05)


def test_worker_processes_give_the_same_measurements(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "songs", good_clips())
    (folder / "clips" / "song 0-000.flac").write_bytes(b"no music at all")
    alone = look(folder)
    (folder / CACHE).unlink()
    assert examine(folder, preview=None, rate=RATE, workers=2) == alone


# The codec preview


def test_previews_are_spread_over_the_songs_and_always_the_same(tmp_path: Path) -> None:
    waves = {f"{song}-{number:03d}": music(2, RATE, 40 + 9 * song + number) for song in range(5) for number in range(3)}
    waves["5-000"] = np.zeros((1, 2 * RATE), np.float32)
    folder = write_folder(tmp_path / "songs", waves)
    chosen = [coded.clip.file_name for coded in look(folder, rougher).previews]
    assert chosen == [coded.clip.file_name for coded in look(folder, rougher).previews]
    assert len({name.partition("-")[0] for name in chosen}) == 3


def test_a_single_song_is_previewed_in_three_places(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "songs", {f"a-{number:03d}": music(2, RATE, number) for number in range(7)})
    assert len({coded.clip.file_name for coded in look(folder, rougher).previews}) == 3


def test_the_preview_scores_the_codec(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "songs", good_clips(1))
    (perfect,) = look(folder, lambda wave: wave).previews
    (rough,) = look(folder, rougher).previews
    (mono,) = look(folder, lambda wave: audio.to_channels(wave, 1)).previews
    assert perfect.mel_db == pytest.approx(0, abs=1e-6)
    assert perfect.si_sdr_db > 60
    assert rough.mel_db > 1
    assert rough.original.shape == rough.coded.shape == (2, 4 * RATE)
    assert rough.si_sdr_db == pytest.approx(20 * np.log10(rough.original.std() / 0.02), abs=0.5)
    assert mono.original.shape == (1, 4 * RATE)
    assert mono.mel_db == pytest.approx(0, abs=1e-6)


def test_the_preview_of_quiet_music_is_scored_at_full_level(tmp_path: Path) -> None:
    def scores(level: float) -> float:
        folder = write_folder(tmp_path / f"songs {level}", {"a-000": level * music(4, RATE)})
        return look(folder, lambda wave: np.zeros_like(wave)).previews[0].mel_db

    assert scores(0.02) == pytest.approx(scores(1.0), rel=0.1)


def test_si_sdr_depends_on_noise_but_not_on_gain() -> None:
    wave = music(4, RATE, channels=2)
    noise = np.random.default_rng(0).standard_normal(wave.shape) * wave.std(axis=1, keepdims=True)
    assert si_sdr(0.1 * wave, wave) > 60
    assert si_sdr((wave + 0.1 * noise).astype(np.float32), wave) == pytest.approx(20, abs=0.2)
    assert si_sdr(np.zeros_like(wave), wave) < -50


def test_mel_distance_is_in_decibels() -> None:
    noise = 0.5 * np.random.default_rng(0).standard_normal((1, 4 * RATE)).astype(np.float32)
    assert mel_distance(noise, noise, RATE) == 0
    assert mel_distance(0.5 * noise, noise, RATE) == pytest.approx(6.02, abs=0.05)


# What the figures mean


def sound(**changes: Any) -> Sound:
    usual = Sound(30.0, -14.0, -1.0, 0.0, 0.0, 0.0, "stereo", RATE / 2, None, [0.1] * 60, "")
    return replace(usual, **changes)


def clip(number: int = 0, **changes: Any) -> Clip:
    usual = Clip(
        f"{number:03d}.flac", f"{number}.mp3", "train", 0.0, f"punk {number}", None, None, (), None, sound(), None
    )
    return replace(usual, **changes)


def examination(*clips: Clip, **changes: Any) -> Examination:
    return replace(Examination(Path("songs"), RATE, clips, (), (), ()), **changes)


def song(**changes: Any) -> SongRecord:
    return SongRecord("a.mp3", "1", "2", **changes)


@pytest.mark.parametrize(
    ("seen", "found"),
    [
        (examination(clip(text="")), [("1 clip without a caption", "fix")]),
        (examination(clip(vocals=True), clip(1, vocals=False)), [("1 clip with vocals", "listen")]),
        (examination(clip(), songs=(song(skipped="a.mp3: is silent"),)), [("1 song skipped", "listen")]),
        (examination(clip(), songs=(song(damage="a.mp3: ends early"),)), [("1 song damaged", "listen")]),
        (examination(clip(), songs=(song(note="a.mp3: has no bars"),)), [("1 song with a remark", "note")]),
        (examination(clip(), clip(1, sound=None, broken="gone")), [("1 clip can't be read", "fix")]),
        (examination(clip(), clip(1, sound=sound(lufs=None))), []),
        (examination(clip(sound=sound(lufs=None))), []),
    ],
)
def test_findings_that_need_no_sound(seen: Examination, found: list[tuple[str, str]]) -> None:
    assert [(finding.title, finding.severity) for finding in findings(seen)] == found


def test_copies_of_copies_are_one_group() -> None:
    pairs = (Duplicate(0, 1, 0.9, 0.0), Duplicate(2, 3, 0.9, 0.0), Duplicate(1, 3, 0.9, 0.0), Duplicate(4, 5, 0.9, 0.0))
    (finding,) = findings(examination(*map(clip, range(6)), duplicates=pairs))
    assert finding.where == ("000.flac = 001.flac = 002.flac = 003.flac", "004.flac = 005.flac")


@pytest.mark.parametrize(
    ("minutes", "words"),
    [
        (0.5, "30 seconds of training music: very little"),
        (1, "1 minute of training music: very little"),
        (5, "little for a style"),
        (11, "11 minutes of training music: enough for a style. 4 epochs are a good start."),
        (200, "plenty"),
    ],
)
def test_advice_follows_the_minutes_that_are_trained_on(minutes: float, words: str) -> None:
    seen = examination(clip(0, sound=sound(seconds=60 * minutes)), clip(1, split="eval", sound=sound(seconds=9999)))
    assert words in advice(seen)[0]


COMMON = examination(*(clip(number) for number in range(10)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sound": sound(lufs=-24.0)}, "Loudness differs by 10 LU"),
        ({"text": "punk"}, "All captions are the same"),
        ({"source": "hit.mp3"}, "hit.mp3 is 60% of all music"),
        ({"sound": sound(bandwidth=4000)}, "Most clips have nothing above 4.0 kHz"),
    ],
)
def test_advice_on_what_most_clips_share(changes: dict[str, Any], words: str) -> None:
    several = [replace(one, **changes) for one in COMMON.clips[:6]]
    rest = [] if "text" in changes else COMMON.clips[6:]
    assert words not in " ".join(advice(COMMON))
    assert words in " ".join(advice(examination(*several, *rest)))


@pytest.mark.parametrize(("mel_db", "words"), [(1.0, "hardly any"), (4.0, "fine detail"), (9.0, "audibly rougher")])
def test_advice_on_the_codecs_ceiling(mel_db: float, words: str) -> None:
    wave = np.zeros((1, 10), np.float32)
    assert words in advice(examination(clip(), previews=(PreviewedClip(clip(), wave, wave, mel_db, 3.0),)))[-1]


# The screen


def test_the_summary_fits_the_screen() -> None:
    long = "x" * 300 + "\x1b[2J\n"
    kinds = ("inverted", "left only", "out of phase", "twin")
    defective = sound(clipping=0.5, silence=0.9, offset=0.3, bandwidth=900, damage="torn")
    sounds = [replace(defective, channels=kinds[number % 4], lufs=-14.0 - number % 40) for number in range(300)]
    clips = [clip(number, sound=heard, file_name=f"{long}{number}", text="") for number, heard in enumerate(sounds)]
    clips += [
        clip(300, sound=None, broken=long),
        clip(301, vocals=True, split="eval"),
        clip(302, source=clips[0].source),
    ]
    pairs = tuple(Duplicate(0, other, 1.0, 0.0) for other in (1, 301, 302))
    shown = lines(examination(*clips, songs=(song(skipped=long), song(damage=long, note=long)), duplicates=pairs))
    assert len(shown) <= 40
    assert all(len(line) <= 100 and (line.isprintable() or not line) for line in shown)
    assert any("more in the report" in line for line in shown)
    assert any("of training music" in line for line in shown)


@pytest.mark.parametrize(
    ("vocals", "said"),
    [
        ((None, None), "vocals     unknown: --add_metadata true with a CLAP model detects them"),
        ((True, None, False), "vocals     in 1 of 3 clips, 1 unclear"),
        ((False, False), "vocals     in 0 of 2 clips"),
    ],
)
def test_the_summary_distinguishes_no_vocals_from_unknown(vocals: tuple[bool | None, ...], said: str) -> None:
    assert said in lines(examination(*(clip(number, vocals=sings) for number, sings in enumerate(vocals))))


def test_the_summary_names_songs_with_their_reasons() -> None:
    songs = [song(skipped=f"{number}.mp3: is silent", note="it was short") for number in range(5)]
    shown = lines(examination(clip(), songs=(*songs, song(damage="a.mp3: ends early", note="a.mp3: has no bars"))))
    first = shown.index("!  5 songs skipped:")
    assert shown[first + 1 : first + 5] == [*(f"     {n}.mp3: is silent" for n in range(3)), "     and 2 more"]
    assert shown[shown.index("   1 song with a remark:") + 1] == "     a.mp3: has no bars"


def test_the_summary_lists_changes_of_levels() -> None:
    clips = [{"file_name": "a-000.flac"}]
    changes = (
        {"offset": 0.25},
        {"invalid": 2},
        {"soft_by": 3.0, "loudness": -17.0},
        {"soft_by": 0.3, "loudness": -14.3},
    )
    seen = examination(clip(), songs=tuple(song(clips=clips, **change) for change in changes))
    assert [(found.severity, found.title, found.where) for found in findings(seen)] == [
        ("listen", "1 song with clips left out because of invalid samples", ("a.mp3: 2 clips",)),
        ("note", "1 song below the target loudness because of single peaks", ("a.mp3: by 3.0 LU",)),
        ("note", "1 song from which a DC offset was removed", ("a.mp3: up to 25.0% of its peak",)),
    ]


def test_the_summary_has_the_amount_of_music() -> None:
    seen = examination(
        clip(tempo=120.0, key="A minor"),
        clip(1, split="eval"),
        songs=(song(silent=2), song(skipped="b.mp3: is silent")),
    )
    assert lines(seen)[1].startswith(
        "music      1.0 minutes in 2 clips of 2 songs, 0.5 minutes of them held out, 1 song"
    )
    assert "tempo      120 bpm" in lines(seen)
    assert "keys       A minor" in lines(seen)


# The page


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """Of a folder with a hostile name and songs of hostile names, two of them defective."""
    waves = good_clips(4) | {
        "defective-000": DEFECTIVE["Clipping in 1 clip"](),
        "defective-001": DEFECTIVE["1 clip with one channel inverted"](),
    }
    tags = {"genres": [HOSTILE], "vocals": False}
    folder = tmp_path_factory.mktemp("page") / "Näïve <Live> & Loud"
    write_folder(folder, waves, text=HOSTILE, source=HOSTILE, key=HOSTILE, tags=tags)
    rows = read_rows(folder)
    others = [{**row, "source": f"{number}{HOSTILE}"} for number, row in enumerate(rows)]
    write_rows(folder, [*others, {**rows[0], "file_name": f"{HOSTILE}.flac"}])
    write_report(look(folder, rougher), folder / "report.html")
    assert not list(folder.glob("*.tmp"))
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_the_page_needs_nothing_beside_it(page: Page) -> None:
    needs_nothing(page, scripts=0)


def test_every_preview_has_two_players_and_two_pictures(page: Page) -> None:
    labels = [player["aria-label"] for player in page.all("audio")]
    for side in ("original", "through the codec"):
        assert sum(label.startswith(f"{side}: ") for label in labels) == 3
        assert sum(picture["alt"].startswith(f"Spectrogram, {side}: ") for picture in page.all("img")) == 3
    assert [label for label in labels if ":" not in label] == ["defective-001.flac", "defective-000.flac"]


def test_players_play(page: Page) -> None:
    for player in page.all("audio"):
        wave = audio.decode(base64.b64decode(player["src"].partition("base64,")[2]), RATE)
        assert wave.shape[1] == pytest.approx(4 * RATE, rel=0.05)
        assert not audio.is_silent(wave)


def test_names_are_escaped(page: Page) -> None:
    assert not page.all("live")
    assert "Näïve <Live> & Loud" in page.words
    assert page.words.count(HOSTILE) >= 3 * 7  # captions, tags and keys of the clips at least
    assert f"{HOSTILE}.flac: the file is missing" in page.words


def test_the_page_lists_each_clip_and_song(page: Page) -> None:
    for name in (*good_clips(4), "defective-000", "defective-001"):
        assert f"{name}.flac" in page.words
    assert len([figure for figure in page.all("svg") if figure["role"] == "img"]) == 6


def test_the_page_of_two_hundred_findings_is_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fewer = report.PLAYERS // 4  # enough to tell how much all would take
    monkeypatch.setattr(report, "PLAYERS", fewer)
    monkeypatch.setattr(report, "PLAYERS_EACH", fewer)
    folder = write_folder(tmp_path / "songs", {})
    first = folder / "clips" / "000.flac"
    audio.write(first, music(10, 32_000), 32_000)
    for number in range(1, 200):
        os.link(first, folder / "clips" / f"{number:03d}.flac")
    rows = [
        {"file_name": f"{number:03d}.flac", "text": "words " * 30, "tags": {"vocals": True}} for number in range(200)
    ]
    write_rows(folder, rows)
    write_report(examine(folder, preview=None, rate=32_000), folder / "report.html")
    assert 4 * (folder / "report.html").stat().st_size < 6e6  # and previews take some 2 MB
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert len(page.all("audio")) == fewer
    assert f"{fewer} of the 200 clips with findings have one" in " ".join(page.words.split())


def test_a_page_without_findings_and_previews(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "songs", good_clips(1))
    write_report(look(folder), folder / "report.html")
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert page.all("audio") == page.all("img") == []
    assert "Nothing wrong was found." in page.words
    assert "unknown: --add_metadata true" in page.words


def test_a_finding_lists_its_clips_up_to_a_limit(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "songs", good_clips(1))
    seen = look(folder)
    clips = tuple(replace(seen.clips[0], text="", file_name=f"{n}.flac", sound=None, broken="gone") for n in range(100))
    write_report(replace(seen, clips=(*seen.clips, *clips)), folder / "report.html")
    assert f"and {100 - report.NAMES} more" in Page((folder / "report.html").read_text(encoding="utf-8")).words


def test_a_group_of_copies_is_named_up_to_a_limit() -> None:
    clips = [clip(number) for number in range(50)]
    pairs = tuple(Duplicate(number, number + 1, 1.0, 0.0) for number in range(49))
    (finding,) = findings(examination(*clips, duplicates=pairs))
    assert finding.where[0].endswith("005.flac and 44 more")
    assert len(finding.clips) == 50


def test_findings_have_a_remedy() -> None:
    defective = sound(clipping=0.5, silence=0.9, offset=0.3, bandwidth=900, channels="inverted", damage="torn")
    found: list[Finding] = findings(
        examination(clip(sound=defective, text="", vocals=True), clip(1, sound=None, broken="x"))
    )
    assert len(found) == 9
    assert all(finding.meaning.endswith(".") and finding.remedy.endswith(".") and finding.where for finding in found)
