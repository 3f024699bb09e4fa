"""Melodies of clips: from the clips themselves or from other recordings, once in the token store, per clip."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from conftest import Ran, prepare_words, read_checkpoint, tone_song, train_words
from random_checkpoint import SAMPLING_RATE
from random_demucs import random_demucs, save_safetensors

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.arguments import PrepareArguments, TrainArguments
from musicgen_dreamboothing.cli import main
from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.data.prepare import prepare
from musicgen_dreamboothing.data.songs.melody_files import is_melody_file
from musicgen_dreamboothing.data.songs.song import Columns
from musicgen_dreamboothing.data.songs.sources import find_songs
from musicgen_dreamboothing.data.songs.stems import keep_stems
from musicgen_dreamboothing.data.tokens.melodies import PAIRED, SELF, MelodySource, melody_source
from musicgen_dreamboothing.data.tokens.store import clip_rows, tokenize_clips
from musicgen_dreamboothing.data.tokens.tables import Tables, load_tables
from musicgen_dreamboothing.evaluation.references import clip_losses
from musicgen_dreamboothing.generation.generator import Generator
from musicgen_dreamboothing.model.chroma import chroma_classes, fitted
from musicgen_dreamboothing.training.collator import Collator
from musicgen_dreamboothing.training.dataset import ClipDataset, Drawing
from musicgen_dreamboothing.training.plan import plan_step

Cli = Callable[..., Ran]
Folders = Callable[[str], Path]
GRID, FRAME, CHROMA_FRAME = 32, SAMPLING_RATE // 50, 2048  # codec frames; samples at 16 kHz
CHROMA = 11  # of the tiny checkpoint's prefix
DRAWN = Drawing(crop_frames=60, random_crop=True, melody_dropout=0.0)


@pytest.fixture(scope="module")
def base(checkpoints: Folders) -> Path:
    return checkpoints("melody")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    """Two songs of several clips each; the first has another recording, which is longer, beside it."""
    root = tmp_path_factory.mktemp("melodies")
    for name, seconds, seed in (("one.wav", 7.0, 0), ("one.MELODY.flac", 7.5, 1), ("two.wav", 5.0, 2)):
        (root / "songs").mkdir(exist_ok=True)
        audio.write(root / "songs" / name, tone_song(seconds, seed), SAMPLING_RATE)
    words = prepare_words(root / "songs", root / "data", base)
    assert main([str(word) for word in (*words, "--melody", "paired")]) == 0
    return root / "data"


def tables(folder: Path, base: Path, mode: str = SELF, **options: Any) -> Tables:
    checkpoint = read_checkpoint(base)
    rows = clip_rows(folder, "punk")
    return load_tables(folder, rows, checkpoint, eval_fraction=0, seed=0, melody=MelodySource(mode), **options)


def clips_of(folder: Path, base: Path, drawing: Drawing, mode: str = SELF) -> ClipDataset:
    found = tables(folder, base, mode)
    return ClipDataset(found.train, found.captions, read_checkpoint(base), drawing, found.melodies)


def wave_of(folder: Path, name: str) -> np.ndarray:
    return audio.decode(folder / "clips" / name, SAMPLING_RATE)


def live(wave: np.ndarray) -> torch.Tensor:
    return chroma_classes(torch.from_numpy(np.ascontiguousarray(wave)), SAMPLING_RATE).long()


# From clips to pieces


def test_a_clip_as_it_is_has_the_melody_of_its_file(prepared: Path, base: Path) -> None:
    clips = clips_of(prepared, base, Drawing())
    for number, row in enumerate(clips.clips):
        expected = fitted(live(wave_of(prepared, str(row["file_name"]))), CHROMA)
        assert torch.equal(clips[number]["melody"], expected)


def test_pieces_have_the_melody_of_what_they_play(prepared: Path, base: Path) -> None:
    """Also those that run from one clip into the next; but for the frames at both ends, which a live crop mirrors."""
    clips = clips_of(prepared, base, DRAWN)
    crossing = 0
    for index in range(4 * len(clips)):
        row, rng = index % len(clips), np.random.default_rng([0, index // len(clips), index % len(clips)])
        span = clips._draw_span(row, rng)
        assert span.begin % GRID == 0
        names = [str(clips.clips[clip]["file_name"]) for clip, _, _ in span.clips]
        passage = np.concatenate([wave_of(prepared, name) for name in names], axis=1)
        crossing += sum(start < span.end and start + length > span.begin for _, start, length in span.clips) > 1
        expected = live(passage[:, span.begin * FRAME : span.end * FRAME])
        melody = clips[index]["melody"][: len(expected)]
        assert torch.equal(melody[2:-2], expected[: len(melody)][2:-2])
    assert crossing


def test_limited_clips_have_melodies_too(prepared: Path, base: Path) -> None:
    """Of a passage that ends earlier than the one that `prepare` knew."""
    found = tables(prepared, base, limits=(2, None))
    clips = ClipDataset(found.train, found.captions, read_checkpoint(base), DRAWN, found.melodies)
    assert all(clips[index]["melody"].shape == (CHROMA,) for index in range(6))


def test_without_melodies_everything_else_is_the_same(prepared: Path, base: Path) -> None:
    drawing = Drawing(crop_frames=60, vary_captions=True, caption_dropout=0.5, melody_dropout=0.5)
    with_melodies = clips_of(prepared, base, drawing)
    without = ClipDataset(with_melodies.clips, with_melodies.captions, read_checkpoint(base), drawing)
    for index in range(2 * len(without)):
        piece, plain = with_melodies[index], without[index]
        assert "melody" not in plain
        assert torch.equal(piece["codes"], plain["codes"])
        assert (piece["caption"], piece["keep_caption"]) == (plain["caption"], plain["keep_caption"])


@pytest.mark.parametrize(("caption", "melody", "share"), [(0.0, 0.0, 1), (0.0, 1.0, 0), (1.0, 0.0, 0), (0.2, 0.5, 0.4)])
def test_a_melody_is_dropped_with_its_caption_and_alone(
    caption: float, melody: float, share: float, prepared: Path, base: Path
) -> None:
    drawing = replace(DRAWN, caption_dropout=caption, melody_dropout=melody)
    clips = clips_of(prepared, base, drawing)
    pieces = [clips[index] for index in range(90)]
    kept = [bool(piece["melody"].any()) for piece in pieces]
    assert np.mean(kept) == pytest.approx(share, abs=0.15)
    assert not any(keep and not piece["keep_caption"] for keep, piece in zip(kept, pieces, strict=True))


def test_a_batch_has_melodies_only_if_a_clip_has_one(prepared: Path, base: Path) -> None:
    clips = clips_of(prepared, base, Drawing())
    null = {**clips[1], "melody": torch.zeros(CHROMA, dtype=torch.long)}
    foreign = {key: value for key, value in clips[2].items() if key != "melody"}  # such as a clip of the class
    collate = Collator(64)
    assert "melody" not in collate([null, foreign])
    batch = collate([clips[0], null, foreign])["melody"]
    assert torch.equal(batch[0], clips[0]["melody"])
    assert not batch[1:].any()


# Where melodies come from


def test_a_melody_file_is_cut_like_its_song(prepared: Path, base: Path) -> None:
    rows = [json.loads(line) for line in (prepared / "clips" / "metadata.jsonl").read_text().splitlines()]
    assert {row["source"] for row in rows} == {"one.wav", "two.wav"}
    other = audio.decode(prepared.parent / "songs" / "one.MELODY.flac", SAMPLING_RATE)
    for row in (row for row in rows if row["source"] == "one.wav"):
        begin, cut = round(row["start"] * SAMPLING_RATE), wave_of(prepared, row["melody_file_name"])
        assert np.allclose(cut, other[:, begin : begin + cut.shape[1]], atol=1e-3)
    assert not any("melody_file_name" in row for row in rows if row["source"] == "two.wav")
    clips = clips_of(prepared, base, Drawing(), PAIRED)
    for number, row in enumerate(clips.clips):
        name = next(one.get("melody_file_name") for one in rows if one["file_name"] == row["file_name"])
        expected = fitted(live(wave_of(prepared, name)), CHROMA) if name else torch.zeros(CHROMA)
        assert torch.equal(clips[number]["melody"], expected.long())


def test_a_melody_of_another_length_is_named(prepared: Path) -> None:
    (record,) = (json.loads(line) for line in (prepared / "songs.jsonl").read_text().splitlines() if "one.wav" in line)
    assert record["melody"] == "0.50 s longer than the song"


@pytest.mark.parametrize(
    ("name", "is_melody"),
    [
        ("a.melody.wav", True),
        ("a.wav.Melody.MP3", True),
        ("melody.wav", False),
        ("a.melody.txt", False),
        ("a.wav", False),
    ],
)
def test_names_of_melody_files(name: str, is_melody: bool) -> None:
    assert is_melody_file(name) == is_melody


def write_tone(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    audio.write(path, tone_song(2, seed), SAMPLING_RATE)


@pytest.mark.parametrize("with_melodies", [True, False])
def test_melody_files_are_never_songs(with_melodies: bool, tmp_path: Path) -> None:
    for seed, name in enumerate(("a.wav", "a.melody.wav", "b.wav", "tunes/b.wav", "lost.melody.wav", "c.wav")):
        write_tone(tmp_path / name, seed)
    (tmp_path / "metadata.csv").write_text("file_name,text,melody_file_name\nb.wav,loud,tunes/b.wav\nc.wav,soft,\n")
    found = find_songs(str(tmp_path), Columns(with_melodies=with_melodies))
    songs = {song.name: song for song in found.songs}
    assert list(songs) == ["a.wav", "b.wav", "c.wav"]
    paths = {name: None if song.melody is None else song.melody.read() for name, song in songs.items()}
    expected = {"a.wav": tmp_path / "a.melody.wav", "b.wav": tmp_path / "tunes" / "b.wav", "c.wav": None}
    assert paths == (expected if with_melodies else dict.fromkeys(songs))
    assert any("1 melody file without a song of the same name: lost.melody.wav" in note for note in found.notes)


@pytest.mark.parametrize(("column", "chosen"), [("melody", None), ("humming", "humming")])
def test_a_column_of_a_dataset_has_melodies(column: str, chosen: str | None, tmp_path: Path) -> None:
    for seed, name in enumerate(("a.wav", "b.wav")):
        write_tone(tmp_path / name, seed)
    cells = [{"path": str(tmp_path / name), "bytes": None} for name in ("a.wav", "b.wav")]
    rows = {"audio": cells, column: [cells[1], None], "text": ["x", "y"]}
    kind = datasets.Features({"path": datasets.Value("string"), "bytes": datasets.Value("binary")})
    features = datasets.Features({"audio": kind, column: kind, "text": datasets.Value("string")})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    columns = Columns(audio="audio", melody=chosen, with_melodies=True)
    first, second = find_songs(str(tmp_path / "saved"), columns).songs
    assert first.melody is not None
    assert first.melody.read() == tmp_path / "b.wav"
    assert second.melody is None


@pytest.mark.parametrize(
    ("options", "stems"),
    [
        ({"melody_stems": "true"}, ["vocals", "other"]),
        ({"audio_separation": True}, ["other"]),  # the vocals are not in the clips
        ({"audio_separation": True, "keep_stems": ["vocals", "other"]}, None),  # the clips are their own melodies
        ({"audio_separation": True, "melody_stems": "false"}, None),
    ],
)
def test_melodies_of_stems(options: dict[str, Any], stems: list[str] | None, base: Path, tmp_path: Path) -> None:
    pytest.importorskip("demucs")
    save_safetensors(random_demucs(), tmp_path / "htdemucs" / "htdemucs.safetensors")
    write_tone(tmp_path / "songs" / "a.wav", 1)
    words: dict[str, Any] = {"instance_prompt": "punk", "min_duration_in_seconds": 1, "doctor": False}
    words |= {"model_name_or_path": str(base), "separation_model": str(tmp_path / "htdemucs")}
    for _ in range(2):  # the second time the stems are there
        prepare(PrepareArguments(songs=str(tmp_path / "songs"), output_dir=str(tmp_path / "data"), **words, **options))
    (row,) = clip_rows(tmp_path / "data", "punk")
    assert ("stems_file_name" in row) == (stems is not None)
    if stems is not None:
        (song,) = find_songs(str(tmp_path / "songs"), Columns()).songs
        (expected,) = keep_stems(tmp_path / "other", [song], stems, model=str(tmp_path / "htdemucs"))
        melody = wave_of(tmp_path / "data", row["stems_file_name"])
        stem = audio.to_channels(audio.decode(expected.read(), SAMPLING_RATE), 1)
        assert np.corrcoef(melody[0], stem[0])[0, 1] > 0.95  # its offset is removed
    files = list((tmp_path / "data" / "stems").glob("*.flac"))
    assert len(files) == (stems is not None) + ("audio_separation" in options)


@pytest.mark.parametrize("names", [("a", "b"), ("Vol. 1", "Vol. 2")])
def test_melodies_in_a_tar_file(names: tuple[str, str], tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for seed, name in enumerate((f"{names[0]}.wav", f"{names[0]}.melody.wav", f"{names[1]}.wav")):
            write_tone(tmp_path / "files" / name, seed)
            tar.add(tmp_path / "files" / name, name)
    for with_melodies in (True, False):
        first, second = find_songs(str(tmp_path / "shard.tar"), Columns(with_melodies=with_melodies)).songs
        assert (first.melody is not None, second.melody) == (with_melodies, None)
        if first.melody is not None:
            assert first.melody.read() == (tmp_path / "files" / f"{names[0]}.melody.wav").read_bytes()


# Options


@pytest.mark.parametrize(
    ("kind", "options", "mode"),
    [
        ("text", {}, None),
        ("text", {"conditional_audio_column_name": "melody"}, None),
        ("melody", {}, SELF),
        ("melody", {"melody": "none"}, None),
        ("melody", {"melody": "paired"}, PAIRED),
        ("melody", {"conditional_audio_column_name": "melody"}, PAIRED),
        ("melody", {"conditional_audio_column_name": "audio"}, SELF),  # as files of 2024 have it
    ],
)
def test_the_source_of_melodies(
    kind: str, options: dict[str, str], mode: str | None, checkpoints: Folders, tmp_path: Path
) -> None:
    source = melody_source(TrainArguments(output_dir=str(tmp_path), **options), read_checkpoint(checkpoints(kind)))
    assert (source and source.mode) == mode


def test_a_text_checkpoint_takes_no_melodies(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--melody self needs a melody checkpoint.*--melody none"):
        melody_source(TrainArguments(output_dir=str(tmp_path), melody="self"), read_checkpoint(tiny))


def test_clips_without_another_recording_are_counted(
    prepared: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tokenize_clips(prepared, read_checkpoint(base), melody=MelodySource(PAIRED)).rows
    missing = sum(row["source"] == "two.wav" for row in rows)
    expected = f"{missing} of {len(rows)} clips without another recording are trained without a melody"
    assert expected in capsys.readouterr().out
    tokenize_clips(prepared, read_checkpoint(base), melody=MelodySource(SELF))
    assert "without a melody" not in capsys.readouterr().out


def test_paired_without_pairs_is_refused(prepared: Path, base: Path) -> None:
    rows = [row | {"melody_file_name": None} for row in clip_rows(prepared, "punk")]
    with pytest.raises(UserError, match=r"no clip in .* has another recording.*song\.melody\.wav"):
        load_tables(prepared, rows, read_checkpoint(base), eval_fraction=0, seed=0, melody=MelodySource(PAIRED))


def test_a_plan_counts_a_prefix_for_each_clip(base: Path, tmp_path: Path) -> None:
    def kept(melody: str) -> float:
        options = TrainArguments(
            output_dir=str(tmp_path),
            melody=melody,
            crop_seconds=0.2,
            gradient_accumulation_steps=1,
            recompute="none",
            per_device_train_batch_size=8,
        )
        return plan_step(options, read_checkpoint(base), longest_caption=3).footprint.kept

    assert kept("self") > 1.3 * kept("none")


# A run


def test_a_run_trains_and_is_judged_with_melodies(cli: Cli, prepared: Path, base: Path, tmp_path: Path) -> None:
    words = [*train_words(prepared, tmp_path / "run", base), "--max_steps", 2, "--eval_fraction", 0]
    assert cli(*words).code == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["options"]["melody"], record["options"]["melody_dropout"]) == ("self", 0.5)
    again = cli(*words, "--melody", "none", "--num_train_epochs", 3)
    assert "melody (self -> none)" in again.err

    generator, found = Generator(base), tables(prepared, base)
    nll, _ = clip_losses(generator, found.train, "base", found.melodies)
    pieces = clips_of(prepared, base, Drawing())
    with torch.no_grad():
        outputs = generator.model(**Collator(64)([pieces[index] for index in range(len(pieces))]))
    assert np.allclose(nll, outputs.nll.numpy(), rtol=1e-5)
    assert not np.allclose(nll, clip_losses(generator, found.train, "base")[0], rtol=1e-4)
