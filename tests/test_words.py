"""Captions in words, and what a song's own file says of itself."""

from __future__ import annotations

import doctest
import json
import os
import re
import subprocess
import sys
from dataclasses import asdict
from itertools import product
from pathlib import Path

import av
import mutagen
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutagen.id3 import COMM, ID3, TALB, TBPM, TCON, TIT2, TKEY, TPE1, TXXX
from mutagen.mp4 import MP4, MP4FreeForm

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.data.captions import templates as words
from musicgen_dreamboothing.data.captions.templates import ClipFacts, captions
from musicgen_dreamboothing.data.songs import file_tags as file_tags_module
from musicgen_dreamboothing.data.songs.file_tags import (
    FileTags,
    file_tags,
    parse_bpm,
    parse_comment,
    parse_genre,
    parse_key,
)

ALL = {
    "tempo": 118.4,
    "key": "F# minor",
    "genres": ["punk rock", "garage rock"],
    "moods": ["raw", "energetic", "dark"],
    "instruments": ["electric guitar", "bass guitar", "drums", "organ", "tambourine"],
    "vocals": False,
}
SUBSETS = [
    {name: value for (name, value), is_known in zip(ALL.items(), known, strict=True) if is_known}
    for known in product([True, False], repeat=len(ALL))
]


@pytest.mark.parametrize("module", [words, file_tags_module])
def test_examples_in_the_documentation(module):
    assert doctest.testmod(module).failed == 0


def assert_clean(caption: str) -> None:
    assert caption == " ".join(caption.split())
    assert not re.search(r"[,.:] ?[,.:]|^[,.: ]|[,:]$|[{}\[\]]|None| [,.]", caption), caption
    assert not re.search(r"\b(with|in|at|and|bpm:|key:|mood:)($|,|\.)", caption), caption  # a word that lacks its noun
    assert not re.search(r"\b(\w+) \1\b", caption), caption
    assert not re.search(r"\bin [\d(]|\bat [A-G]|with (in|at)\b", caption), caption


@pytest.mark.parametrize("known", SUBSETS, ids=lambda known: "+".join(known) or "nothing")
@pytest.mark.parametrize("own", [None, "We play loud.", "we play loud"])
def test_captions_are_complete_with_any_subset_of_facts(known, own):
    found = captions(ClipFacts(**known), instance_prompt="xyz band", own=own, seed=3, variants=12)
    assert 1 <= len(found) <= 12
    assert len({caption.lower() for caption in found}) == len(found)
    assert len(found) > 1 or own or not known
    for caption in found:
        assert_clean(caption)
        assert caption.startswith("xyz band")
        assert own is None or caption.startswith(f"xyz band, {own}")


def test_every_fact_is_in_some_caption():
    found = " | ".join(captions(ClipFacts(**ALL), instance_prompt=None, own=None, seed=0, variants=12))
    labels = [*ALL["genres"], *ALL["moods"], *ALL["instruments"]]
    assert all(word in found for word in [*labels, "118", "F# minor", "instrumental"])


def test_phrasing_and_order_vary():
    found = captions(ClipFacts(**ALL), instance_prompt=None, own=None, seed=0, variants=12)
    assert len(found) == 12
    tempos = {re.search(r"(\w+:? )?118( bpm)?", caption)[0] for caption in found}
    assert len(tempos) >= 4
    assert len({caption.split()[0] for caption in found}) >= 4
    assert len({re.findall(r"guitar|drums|organ|tambourine", caption)[0] for caption in found}) >= 2


def test_seeds_decide():
    def tell(seed: int, variants: int = 5) -> list[str]:
        return captions(ClipFacts(**ALL), instance_prompt="xyz", own=None, seed=seed, variants=variants)

    assert tell(1) == tell(1)
    assert tell(1) != tell(2)
    assert tell(1, 8)[:5] == tell(1)


def test_captions_do_not_depend_on_the_process():
    program = (
        "from musicgen_dreamboothing.data.captions.templates import *\n"
        f"for c in captions(ClipFacts(**{ALL}), instance_prompt='xyz', own=None, seed=7, variants=6): print(c)"
    )
    hash_seed = str(1 + int(os.environ.get("PYTHONHASHSEED") == "1"))
    env = {**os.environ, "PYTHONHASHSEED": hash_seed}
    ran = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == captions(ClipFacts(**ALL), instance_prompt="xyz", own=None, seed=7, variants=6)


def test_a_caption_is_rebuilt_without_listening():
    facts = ClipFacts(**ALL, own={"genre": "Oi!", "bpm": 120.0})
    again = ClipFacts.from_dict(json.loads(json.dumps(asdict(facts))))
    assert again == facts
    assert ClipFacts.from_dict({"tempo": None, "a column of somebody": 3}) == ClipFacts()


def test_facts_in_the_own_caption_are_not_repeated():
    own = "Raw punk rock at 60 bpm, in C major, sung by a choir."
    (caption,) = captions(
        ClipFacts(tempo=120, key="A minor", vocals=False), instance_prompt="xyz", own=own, seed=0, variants=4
    )
    assert caption == f"xyz, {own}"
    for caption in captions(ClipFacts(**ALL), instance_prompt=None, own=own, seed=0, variants=5):
        rest = caption.removeprefix(own)
        assert rest.startswith(" ")
        assert not re.search(r"raw|punk|bpm|118|minor|instrumental|vocal", rest)
        assert "garage rock" in rest


def test_labels_are_compared_as_words():
    (first, *_) = captions(ClipFacts(genres=["rap"]), instance_prompt=None, own="a rapid tune", seed=0, variants=1)
    assert re.search(r"\brap\b", first)


def test_the_instance_prompt_is_not_doubled():
    for caption in captions(
        ClipFacts(genres=["punk rock"], tempo=90), instance_prompt="punk rock", own=None, seed=0, variants=9
    ):
        assert caption.startswith("punk rock")
        assert caption.count("punk rock") == 1


def test_the_file_is_believed():
    facts = ClipFacts(tempo=60, key="C major", genres=["jazz"], own={"genre": "R&B/Soul", "bpm": 120, "key": "A minor"})
    for caption in captions(facts, instance_prompt=None, own=None, seed=0, variants=9):
        assert "60" not in caption
        assert "C major" not in caption
        assert re.search(r"120|A minor|r&b|soul|jazz", caption)
    assert any("r&b" in caption for caption in captions(facts, instance_prompt=None, own=None, seed=0, variants=9))


def test_a_comment_replaces_a_missing_caption():
    facts = ClipFacts(tempo=90, own={"comment": "slow jam  with two\nguitars"})
    assert captions(facts, instance_prompt="xyz", own=None, seed=0, variants=1)[0].startswith(
        "xyz, slow jam with two guitars, "
    )
    assert "jam" not in captions(facts, instance_prompt="xyz", own="our own words", seed=0, variants=1)[0]


def test_a_clip_has_at_least_one_caption():
    assert captions(ClipFacts(), instance_prompt=None, own=None, seed=0, variants=3) == [""]
    assert captions(ClipFacts(), instance_prompt=None, own=" a  tune ", seed=0, variants=3) == ["a tune"]
    with pytest.raises(ValueError, match="not 0"):
        captions(ClipFacts(), instance_prompt=None, own=None, seed=0, variants=0)


label = st.text("abc &'-{}[],", min_size=1, max_size=12)


@given(st.lists(label, max_size=3), st.lists(label, max_size=3), st.lists(label, max_size=5), st.integers(0, 2**32))
def test_any_labels_make_captions(genres, moods, instruments, seed):
    facts = ClipFacts(genres=genres, moods=moods, instruments=instruments)
    found = captions(facts, instance_prompt="xyz", own=None, seed=seed, variants=4)
    assert found
    for caption in found:
        assert caption.startswith("xyz")
        assert caption == " ".join(caption.split())
        assert not re.search(r",,|, ,|,$", caption)


CODECS = {".mp3": "libmp3lame", ".m4a": "aac", ".opus": "libopus", ".wv": "wavpack", ".wma": "wmav2"}
CONTAINERS = {".m4a": "mp4", ".wma": "asf"}


def song(path: Path) -> Path:
    """A second of sound in the format of the suffix."""
    wave = np.tile(0.1 * np.sin(np.arange(48_000) / 20), (2, 1)).astype(np.float32)
    if path.suffix not in CODECS:
        audio.write(path, wave, 48_000)
        return path
    with av.open(path, "w", format=CONTAINERS.get(path.suffix, path.suffix[1:])) as file:
        track = file.add_stream(CODECS[path.suffix], rate=48_000, layout="stereo")
        track.bit_rate = 128_000
        frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="stereo")
        frame.sample_rate = 48_000
        resampler = av.AudioResampler(track.format, track.layout, track.rate, frame_size=track.frame_size or 4096)
        for piece in [*resampler.resample(frame), *resampler.resample(None), None]:
            file.mux(track.encode(piece))
    return path


def tag(path: Path, *, genre: object, bpm: object, key: str, comment: str) -> Path:
    """Writes tags as players do, each format in its own words; title, artist and album too."""
    if path.suffix in (".mp3", ".wav"):
        frames = [TCON(text=genre), TBPM(text=str(bpm)), TKEY(text=key), COMM(lang="eng", desc="", text=comment)]
        frames += [COMM(lang="eng", desc="iTunNORM", text=" 00000A1B 00000A1B"), TXXX(desc="BPM", text="77")]
        frames += [TIT2(text="My Title"), TPE1(text="My Artist"), TALB(text="My Album")]
        file = mutagen.File(path)
        if file.tags is None:
            file.add_tags()
        for frame in frames:
            file.tags.add(frame)
    elif path.suffix == ".m4a":
        file = MP4(path)
        file["\xa9gen"], file["tmpo"], file["\xa9cmt"] = genre, [int(bpm)], comment
        file["----:com.apple.iTunes:initialkey"] = MP4FreeForm(key.encode())
        file["\xa9nam"], file["\xa9ART"], file["\xa9alb"] = "My Title", "My Artist", "My Album"
    elif path.suffix == ".wma":
        file = mutagen.File(path)
        file["WM/Genre"], file["WM/BeatsPerMinute"], file["WM/InitialKey"] = genre, str(bpm), key
        file["Description"], file["Title"], file["Author"], file["WM/AlbumTitle"] = (
            comment,
            "My Title",
            "My Artist",
            "x",
        )
    else:
        file = mutagen.File(path)
        if file.tags is None:
            file.add_tags()
        file["GENRE"], file["BPM"], file["INITIALKEY"], file["COMMENT"] = genre, str(bpm), key, comment
        file["title"], file["artist"], file["album"] = "My Title", "My Artist", "My Album"
    file.save()
    return path


FORMATS = ["mp3", "wav", "flac", "ogg", "opus", "m4a", "wv", "wma"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_tags_are_read_in_each_format(tmp_path, suffix):
    path = tag(
        song(tmp_path / f"a.{suffix}"), genre=["Punk", "Garage Rock"], bpm=118, key="F#m", comment="two loud guitars"
    )
    assert file_tags(path) == FileTags("Punk, Garage Rock", 118.0, "F# minor", "two loud guitars")


@pytest.mark.parametrize("suffix", FORMATS)
def test_files_without_tags(tmp_path, suffix):
    assert file_tags(song(tmp_path / f"a.{suffix}")) == FileTags()


@pytest.mark.parametrize("suffix", FORMATS)
def test_what_cannot_be_meant_is_dropped(tmp_path, suffix):
    path = tag(
        song(tmp_path / f"a.{suffix}"), genre=["Other", "255"], bpm=9999, key="o", comment="My Title by My Artist"
    )
    found = file_tags(path)
    assert (found.genre, found.key, found.comment) == (None, None, None)
    assert found.bpm == (77.0 if suffix in ("mp3", "wav") else None)  # a second tempo, which can be meant


@pytest.mark.parametrize("suffix", FORMATS)
def test_broken_files_have_no_tags(tmp_path, suffix):
    path = tag(song(tmp_path / f"a.{suffix}"), genre="Punk", bpm=118, key="Am", comment="two loud guitars")
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for length in (0, 3, 10, 40, 200, len(whole) // 2):
        path.write_bytes(whole[:length])
        assert isinstance(file_tags(path), FileTags)
    for _ in range(60):
        broken = bytearray(whole)
        for place in rng.integers(0, min(len(whole), 3000), size=10):
            broken[place] = rng.integers(256)
        path.write_bytes(bytes(broken))
        assert isinstance(file_tags(path), FileTags)


def test_no_audio_file_at_all(tmp_path):
    (tmp_path / "a.mp3").write_text("only words")
    assert file_tags(tmp_path / "a.mp3") == FileTags()
    assert file_tags(tmp_path / "gone.mp3") == FileTags()


@pytest.mark.parametrize(("text", "genre"), [("(43)", "Punk"), ("43", "Punk"), ("(43)Dub", "Punk, Dub"), ("255", None)])
def test_genres_may_be_numbers_in_id3(tmp_path, text, genre):
    path = song(tmp_path / "a.mp3")
    tags = ID3()
    tags.add(TCON(text=text))
    tags.save(path)
    assert file_tags(path).genre == genre


def test_the_file_tags_reach_the_caption(tmp_path):
    path = tag(song(tmp_path / "a.ogg"), genre="Punk", bpm=118, key="8A", comment="two loud guitars")
    own = {name: value for name, value in vars(file_tags(path)).items() if value is not None}
    (caption,) = captions(ClipFacts(own=own), instance_prompt=None, own=None, seed=0, variants=1)
    assert caption.startswith("two loud guitars, ")
    for word in ("punk", "118", "A minor"):
        assert word in caption
    assert "My" not in caption


@pytest.mark.parametrize(
    "comment",
    [
        "https://shop.example/a", "Visit www.artist.example", "me@mail.example", "Encoded by LAME 3.100", "Lavf60.1",
        "ripped with Exact Audio Copy", "00000A1B 00000A1B 00000A1B", "8A - Energy 6", "0", "118", "Free download",
        "Purchased at the shop", "a" * 400, "word " * 100, "",
    ],
)  # fmt: skip
def test_comments_of_machines(comment):
    assert parse_comment(comment) is None


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("Am", "A minor"), ("A", "A major"), ("a", None), ("am", "A minor"), ("AM", "A major"), ("Bbm", "Bb minor"),
        ("B♭ Minor", "Bb minor"), ("C#", "C# major"), ("F sharp MAJOR", "F# major"), ("Dmaj", "D major"), ("o", None),
        ("", None), ("Amazing", None), ("H", None), ("1A", "Ab minor"), ("12B", "E major"), ("05A", "C minor"),
        ("6d", "B major"), ("1m", "A minor"), ("0A", None), ("13B", None),
    ],
)  # fmt: skip
def test_keys(text, key):
    assert parse_key(text) == key


@pytest.mark.parametrize("text", ["0", "9999", "-3", "", "fast", "12.3.4", "29", "301", "nan", "inf"])
def test_absurd_tempos(text):
    assert parse_bpm(text) is None


def test_genres_are_names():
    assert parse_genre([]) is None
    assert parse_genre(["Unknown", "12", "", "www.shop.example"]) is None
    assert parse_genre(["R&B/Soul", "r&b/soul", "Drum & Bass"]) == "R&B/Soul, Drum & Bass"
