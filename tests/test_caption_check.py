"""Captions that the text encoder reads only in part are counted and named by `prepare`, `train` and the doctor."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Ran, prepare_words, read_checkpoint, tone_song

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.arguments import PrepareArguments
from musicgen_dreamboothing.data.captions.caption_check import caption_faults, caption_notes, unknown_share
from musicgen_dreamboothing.data.prepare import refresh
from musicgen_dreamboothing.model.checkpoint import load_tokenizer

LONG = "loud drums " * 60  # the tokenizer here has a token for each letter
TOO_LONG = "note: captions of 1 song are longer than the 512 tokens that the text encoder reads, and are cut there"
KANJI, EMOJI = "速いパンク、大きなドラム", "🎸🔥🎸"


@pytest.mark.parametrize(
    ("caption", "share"),
    [
        ("fast punk with drums", 0.0),
        ("120 bpm!", 0.0),
        ("", 0.0),
        (KANJI, 1.0),
        (EMOJI, 1.0),
        (f"punk {KANJI}", 11 / 15),  # one unknown token for eleven letters
        ("a caf\u00e9", 1 / 5),
        ("~ ^ |", 0.0),  # T5 knows no such signs, but they are no words
    ],
)
def test_unknown_letters_are_counted(tiny: Path, caption: str, share: float) -> None:
    assert unknown_share(load_tokenizer(read_checkpoint(tiny)), caption) == pytest.approx(share)


def test_each_fault_has_its_captions(tiny: Path) -> None:
    tokenizer = load_tokenizer(read_checkpoint(tiny))
    captions = ["punk", LONG, KANJI, EMOJI, LONG + KANJI, "a fast song of Beyonc\u00e9"]
    assert caption_faults(captions, tokenizer) == {
        LONG: "too long",
        KANJI: "unknown letters",
        EMOJI: "unknown letters",
        LONG + KANJI: "too long",
    }
    rows = [{"source": f"{number}.ogg", "text": KANJI, "variants": []} for number in range(5)]
    rows.append({"source": "last.ogg", "text": "punk", "variants": ["punk", LONG]})
    assert caption_notes(rows, tokenizer) == [
        f"{TOO_LONG}: last.ogg",
        "note: captions of 5 songs are largely in letters that the text encoder does not know: 0.ogg, 1.ogg, 2.ogg, …",
    ]
    assert caption_notes(rows[:0], tokenizer) == []


def test_prepare_doctor_and_train_report_them(
    cli: Callable[..., Ran], tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, caption in (("long", LONG), ("kanji", KANJI), ("fine", "slow tones")):
        (tmp_path / "songs").mkdir(exist_ok=True)
        audio.write(tmp_path / "songs" / f"{name}.wav", tone_song(2, 1), 16_000)
        (tmp_path / "songs" / f"{name}.txt").write_text(caption, encoding="utf-8")
    words = [*prepare_words(tmp_path / "songs", tmp_path / "data", tiny), "--doctor", "true"]
    ran = cli(*words)
    assert ran.code == 0, ran.err
    too_long = f"{TOO_LONG}: long.wav"
    assert ran.out.splitlines().count(too_long) == 1
    assert "does not know: kanji.wav" in ran.out
    assert "1 clip with a caption that is too long" in ran.out
    assert "1 clip with a caption in unknown letters" in ran.out
    refresh(tmp_path / "data", PrepareArguments(instance_prompt="punk"), read_checkpoint(tiny))  # as `train` does
    assert too_long in capfd.readouterr().out
    path = tmp_path / "data" / "clips" / "metadata.jsonl"
    rows = [json.loads(line) | {"text": "punk"} for line in path.read_text(encoding="utf-8").splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    ran = cli("doctor", tmp_path / "data")
    assert "caption that is too long" not in ran.out
    assert "unknown letters" not in ran.out
