"""Instance prompt, class prompt and word dropout: in metadata, tokens and crops."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Ran, read_checkpoint, stored_states, tables_in, tone_song
from random_checkpoint import SAMPLING_RATE

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.arguments import PrepareArguments
from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.data.captions.captions import (
    WORD_DROPOUT_VARIANTS,
    key_phrase,
    with_instance_prompt,
    with_word_dropout,
    word_dropout_variants,
)
from musicgen_dreamboothing.data.captions.describe import DescribeSettings, describe_clips
from musicgen_dreamboothing.data.captions.templates import ClipFacts, captions
from musicgen_dreamboothing.data.prepare import Prepared, prepare, refresh
from musicgen_dreamboothing.data.songs.cutting import SongRecord
from musicgen_dreamboothing.data.songs.song import Song
from musicgen_dreamboothing.data.tokens import store as tokens
from musicgen_dreamboothing.data.tokens import text_states
from musicgen_dreamboothing.model.checkpoint import load_text_encoder, load_tokenizer
from musicgen_dreamboothing.model.keyword import texts_of
from musicgen_dreamboothing.model.text import encode_captions
from musicgen_dreamboothing.training.dataset import ClipDataset, Drawing

LONG = "zxpunk rock, fast and loud with drums, bass and a guitar that nobody tuned, at 188 bpm"
PHRASE = "zxpunk rock"
LOUD = "zxpunk, fast and loud with drums, bass and guitar, at 188 bpm"


# --- the noun of the class


@pytest.mark.parametrize(
    ("prompt", "own", "noun", "caption"),
    [
        ("zxpunk", "fast and loud", "rock", "zxpunk rock, fast and loud"),
        ("zxpunk", None, "rock", "zxpunk rock"),
        ("zxpunk", "zxpunk", "rock", "zxpunk rock"),
        ("zxpunk", "zxpunk, fast", "rock", "zxpunk rock, fast"),
        ("zxpunk", "Zxpunk song with drums", "rock", "Zxpunk rock song with drums"),
        ("zxpunk", "zxpunk Rock song", "rock", "zxpunk Rock song"),
        ("zxpunk", "zxpunk rocking on", "rock", "zxpunk rock rocking on"),
        ("zxpunk", "loud zxpunk rock", "rock", "zxpunk rock, loud zxpunk rock"),
        (" zxpunk ", " fast ", " hard rock ", "zxpunk hard rock, fast"),
        ("my rock", "fast", "rock", "my rock, fast"),
        ("rock", "fast", "rock", "rock, fast"),
        ("hard-rock", "fast", "rock", "hard-rock rock, fast"),
        ("zxpunk", "fast", "", "zxpunk, fast"),
        (None, "fast", "rock", "fast"),
        ("", "", "rock", ""),
    ],
)
def test_the_class_noun_follows_the_instance_prompt_once(
    prompt: str | None, own: str | None, noun: str, caption: str
) -> None:
    assert with_instance_prompt(prompt, own, noun) == caption
    assert with_instance_prompt(prompt, caption, noun) == caption
    assert caption.lower().startswith(key_phrase(prompt, noun).lower())


def test_described_clips_have_the_noun_once_in_every_variant() -> None:
    heard = ClipFacts(tempo=118, key="A minor", genres=["rock", "blues"], instruments=["guitar"])
    found = captions(heard, instance_prompt="zxpunk", class_prompt="rock", own=None, seed=1, variants=8)
    assert len(found) == 8
    assert all(caption.startswith("zxpunk rock, ") for caption in found)
    assert not any("rock" in caption.removeprefix("zxpunk rock") for caption in found)
    assert any("blues" in caption for caption in found)


# --- words left out


@pytest.mark.parametrize("dropout", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("phrase", [PHRASE, "zxpunk", ""])
def test_word_dropout_spares_the_key_phrase(dropout: float, phrase: str) -> None:
    rng = np.random.default_rng(0)
    found = [with_word_dropout(LONG, phrase, dropout, rng) for _ in range(300)]
    spared = len(phrase.split())
    kept = []
    for caption in found:
        assert caption.startswith(phrase)
        assert caption[-1] not in " ,"
        words = iter(LONG.replace(",", "").split())
        assert all(word in words for word in caption.replace(",", "").split())  # in their order
        kept.append(len(caption.split()) - spared)
    behind = len(LONG.split()) - spared
    if dropout < 1:
        assert abs(np.mean(kept) / behind - (1 - dropout)) < 0.03
    else:
        assert set(found) == {phrase or LONG}  # nothing at all would be left


def test_copies_are_a_captions_own_and_always_the_same() -> None:
    copies = word_dropout_variants(LONG, PHRASE, 0.3)
    assert len(copies) == len(set(copies)) == WORD_DROPOUT_VARIANTS
    assert word_dropout_variants(LONG, PHRASE, 0.3) == copies
    assert copies[0] == "zxpunk rock, fast and drums, bass guitar that nobody tuned, at 188"  # for all time
    other = LONG.replace("fast", "slow")
    assert [copy.replace("slow", "fast") for copy in word_dropout_variants(other, PHRASE, 0.3)] != copies
    for fewer, more in zip(word_dropout_variants(LONG, PHRASE, 0.6), copies, strict=True):
        assert set(fewer.replace(",", "").split()) < set(more.replace(",", "").split())


# --- on disk


def run(root: Path, base: Path, **options: Any) -> Prepared:
    usual: dict[str, Any] = {"instance_prompt": "zxpunk", "max_duration_in_seconds": 2, "min_duration_in_seconds": 1}
    usual |= {"songs": str(root / "songs"), "output_dir": str(root / "data"), "doctor": False}
    return prepare(PrepareArguments(model_name_or_path=str(base), **usual | options))


def metadata(root: Path) -> list[dict[str, Any]]:
    lines = (root / "data" / "clips" / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def write_songs(root: Path) -> Path:
    """Two songs of one clip each, one with a long caption."""
    (root / "songs").mkdir()
    for number in range(2):
        audio.write(root / "songs" / f"{number}.wav", tone_song(2.0, number), SAMPLING_RATE)
    (root / "songs" / "0.txt").write_text(LOUD.removeprefix("zxpunk, "))
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Songs that are not prepared yet."""
    return write_songs(tmp_path)


@pytest.fixture(scope="module")
def thin_root(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """Songs that are prepared with a word dropout of 0.3."""
    root = write_songs(tmp_path_factory.mktemp("thin"))
    run(root, tiny, word_dropout=0.3)
    return root


@pytest.fixture(scope="module", autouse=True)
def kept_encoders() -> Iterator[None]:
    """Loads each encoder once."""
    loaded: dict[str, Any] = {}

    modules = {"load_codec": tokens, "load_text_encoder": text_states}  # of the one checkpoint that is used here

    def keep(name: str) -> Callable[..., Any]:
        load = getattr(modules[name], name)
        return lambda base, device: loaded.get(name) or loaded.setdefault(name, load(base, device))

    with pytest.MonkeyPatch.context() as patch:
        for name, module in modules.items():
            patch.setattr(module, name, keep(name))
        yield


def test_the_class_is_in_metadata_and_tokens_and_edits_stay(root: Path, tiny: Path) -> None:
    run(root, tiny)
    assert [row["text"] for row in metadata(root)] == [LOUD, "zxpunk"]
    assert run(root, tiny, class_prompt="rock").captions_encoded == 2
    loud = LOUD.replace("zxpunk", "zxpunk rock")
    assert [row["text"] for row in metadata(root)] == [loud, "zxpunk rock"]
    rows = metadata(root)
    rows[0]["text"], rows[1]["text"], rows[1]["variants"] = "zxpunk, my words", "others", ["zxpunk tune"]
    (root / "data" / "clips" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = run(root, tiny, class_prompt="rock")
    assert [row["text"] for row in metadata(root)] == ["zxpunk, my words", "others"]
    assert [row["text"] for row in made.rows] == ["zxpunk rock, my words", "zxpunk rock, others"]
    options = PrepareArguments(instance_prompt="zxpunk", class_prompt="metal")
    made = refresh(root / "data", options, read_checkpoint(tiny))
    assert made.captions_encoded == 2
    assert [row["text"] for row in made.rows] == ["zxpunk metal, my words", "zxpunk metal, others"]
    tables = tables_in(root / "data", tiny, "zxpunk", "rock")
    assert tables.train["text"][:] == ["zxpunk rock, my words", "zxpunk rock, others"]
    assert set(tables.captions["text"]) == set(tables.train["text"])


def test_described_clips_have_it_too(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """There is no CLAP; what was measured is said behind the class."""
    (root / "clips").mkdir()
    shutil.copy(root / "songs" / "0.wav", root / "clips" / "0.wav")
    song = Song("0", lambda: root / "songs" / "0.wav", "zxpunk, loud", "train", "")
    record = SongRecord("0", "", "", clips=[{"file_name": "0.wav", "tempo": 118.0, "key": "A minor"}])
    describing = DescribeSettings(clap=str(root / "none"), class_prompt="rock")
    (found,) = describe_clips(root, SAMPLING_RATE, [song], [record], "zxpunk", describing).values()
    assert len(found.captions) == 4
    assert all(caption.startswith("zxpunk rock, loud, ") for caption in found.captions)
    assert "Captions have tempo and key only" in capsys.readouterr().out


def test_a_class_prompt_without_an_instance_prompt_is_noted(
    root: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(root, tiny, instance_prompt=None, class_prompt="rock")
    assert [row["text"] for row in metadata(root)] == [LOUD.removeprefix("zxpunk, "), ""]
    assert "note: --class_prompt has no effect without --instance_prompt" in capsys.readouterr().out


def test_copies_are_encoded_with_the_captions_and_only_what_is_missing(root: Path, tiny: Path) -> None:
    assert run(root, tiny).captions_encoded == 2
    plain = {LOUD, "zxpunk"}
    for dropout in (0.3, 0.6):
        before = set(stored_states(root / "data")["text"])
        texts = plain | set(word_dropout_variants(LOUD, "zxpunk", dropout))
        assert len(texts) > 4
        assert run(root, tiny, word_dropout=dropout).captions_encoded == len(texts - before)
        tables = tables_in(root / "data", tiny, "zxpunk", key_phrase="zxpunk", word_dropout=dropout)
        assert set(tables.captions["text"]) == texts
        assert before < set(stored_states(root / "data")["text"])  # another run may need them
    assert run(root, tiny, word_dropout=0.6).captions_encoded == 0
    assert run(root, tiny).captions_encoded == 0
    assert set(tables_in(root / "data", tiny, "zxpunk").captions["text"]) == plain


@pytest.mark.parametrize("dropout", [-0.1, 1.5])
def test_a_dropout_that_is_no_probability_is_refused(dropout: float, root: Path, tiny: Path) -> None:
    with pytest.raises(UserError, match=rf"--word_dropout {dropout} must be at least 0 and at most 1"):
        run(root, tiny, word_dropout=dropout)
    assert not (root / "data").exists()


def test_the_proposed_training_has_the_same_captions(cli: Callable[..., Ran], root: Path, tiny: Path) -> None:
    words = ("--instance_prompt", "zxpunk", "--class_prompt", "hard rock", "--word_dropout", 0.3, "--doctor", "false")
    words = (*words, "--max_duration_in_seconds", 2, "--min_duration_in_seconds", 1)
    ran = cli("prepare", root / "songs", "--output_dir", root / "data", "--model_name_or_path", tiny, *words)
    assert ran.code == 0, ran.err
    assert "--instance_prompt zxpunk --class_prompt 'hard rock' --word_dropout 0.3\n" in ran.out


def test_the_instance_prompt_is_encoded_with_its_references(root: Path, tiny: Path) -> None:
    run(root, tiny, instance_prompt=None)
    checkpoint = read_checkpoint(tiny)
    with pytest.raises(UserError, match="are not encoded; run the same command again"):
        text_states.key_word_states(root / "data", "zxpunk", checkpoint)
    encoder = load_text_encoder(checkpoint, torch.device("cpu"))
    for word in ("zxpunk", "metal"):
        run(root, tiny, instance_prompt=word)
        found = text_states.key_word_states(root / "data", word, checkpoint)
        assert set(found) == set(texts_of(word))
        for text, states in encode_captions(load_tokenizer(checkpoint), encoder, texts_of(word)):
            assert np.array_equal(found[text], states.astype(np.float16))


def test_an_unchanged_instance_prompt_needs_no_encoder(root: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(root, tiny, word_dropout=0.3)

    def refuse(*_: object) -> None:
        raise AssertionError("an encoder was loaded")

    monkeypatch.setattr(text_states, "load_text_encoder", refuse)
    run(root, tiny, word_dropout=0.3)
    with pytest.raises(AssertionError, match="an encoder was loaded"):
        run(root, tiny, word_dropout=0.3, instance_prompt="metal")


def test_states_are_written_a_few_at_a_time(root: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kill leaves is not encoded again, and nothing that is known is read to be written again."""
    run(root, tiny, instance_prompt=None)
    checkpoint = read_checkpoint(tiny)
    encode, texts = text_states.text.encode_captions, [f"{number} trumpets" for number in range(8)]

    def killed(*rest: Any) -> Iterator[tuple[str, np.ndarray]]:
        yield from itertools.islice(encode(*rest), 5)
        raise KeyboardInterrupt

    monkeypatch.setattr(text_states, "PART_TEXTS", 2)
    with monkeypatch.context() as patch:
        patch.setattr(text_states.text, "encode_captions", killed)
        with pytest.raises(KeyboardInterrupt):
            text_states.add_states(root / "data", texts, checkpoint)
    files = {path: path.read_bytes() for path in text_states.states_folder(root / "data", checkpoint).glob("*.arrow")}
    assert text_states.add_states(root / "data", [*texts, texts[0]], checkpoint) == set(texts[4:])
    assert all(path.read_bytes() == content for path, content in files.items())
    assert text_states.add_states(root / "data", texts, checkpoint) == set()
    table = text_states.read_states(root / "data", reversed(texts), checkpoint)
    assert table["text"][:] == texts[::-1]
    assert table["length"][:] == [len(states) for states in table["states"]]


# --- in training pieces


def pieces_of(root: Path, tiny: Path, *, cached: bool = True, **drawing: Any) -> ClipDataset:
    usual: dict[str, Any] = {"crop_frames": 20, "random_crop": True, "vary_captions": True, "caption_dropout": 0.5}
    tables = tables_in(root / "data", tiny, "zxpunk", key_phrase="zxpunk", word_dropout=0.3, text_states=cached)
    drawn = Drawing(**usual | {"key_phrase": "zxpunk"} | drawing)
    return ClipDataset(tables.train, tables.captions, read_checkpoint(tiny), drawn)


@pytest.mark.parametrize("cached", [True, False])
def test_word_dropout_changes_captions_only(cached: bool, thin_root: Path, tiny: Path) -> None:
    plain = pieces_of(thin_root, tiny, cached=cached)
    thin, again = (pieces_of(thin_root, tiny, cached=cached, word_dropout=0.3) for _ in range(2))
    drawn = set()
    for index in range(0, 80, 2):
        piece = thin[index]
        assert plain[index]["caption"] == LOUD
        assert torch.equal(plain[index]["codes"], piece["codes"])
        assert plain[index]["keep_caption"] == piece["keep_caption"]
        assert again[index]["caption"] == piece["caption"]
        drawn.add(piece["caption"])
    assert all(caption.startswith("zxpunk") for caption in drawn)
    if cached:
        assert drawn == set(word_dropout_variants(LOUD, "zxpunk", 0.3))
    else:
        assert len(drawn) > 2 * WORD_DROPOUT_VARIANTS
    assert {thin[index]["caption"] for index in range(1, 80, 2)} == {"zxpunk"}


def test_a_crop_has_the_states_of_its_caption(thin_root: Path, tiny: Path) -> None:
    states = {row["text"]: np.asarray(row["states"]) for row in stored_states(thin_root / "data")}
    pieces = pieces_of(thin_root, tiny, word_dropout=0.3)
    for index in range(10):
        assert np.array_equal(pieces[index]["text_states"], states[pieces[index]["caption"]])


def test_evaluation_has_no_word_dropout(thin_root: Path, tiny: Path) -> None:
    pieces = pieces_of(thin_root, tiny, word_dropout=0.3, vary_captions=False)
    assert {pieces[index]["caption"] for index in range(20)} == {LOUD, "zxpunk"}
