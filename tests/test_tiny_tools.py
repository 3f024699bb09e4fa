"""tools/tiny: what the built-in checkpoint was made with, as far as it needs no sound font."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import EncodecModel

sys.path.insert(0, str(Path(__file__).parent.parent / "tools" / "tiny"))

import figures
import make_base
import make_melody
import music
import polish_codec
import train_codec

from musicgen_dreamboothing.arguments import TrainArguments, parse
from musicgen_dreamboothing.hub import Source
from musicgen_dreamboothing.model.checkpoint import load_checkpoint
from musicgen_dreamboothing.model.chroma import chroma_classes
from musicgen_dreamboothing.model.loading import load_language_model

pytestmark = pytest.mark.slow  # of scripts beside the package

SETTINGS = [(style, bpm) for style, tempi in music.TEMPI.items() for bpm in tempi]


@pytest.mark.parametrize(("style", "bpm"), SETTINGS)
def test_music_stands_on_the_codecs_grid(style: str, bpm: int) -> None:
    piece = music.compose(style, bpm, "e minor", seed=3)
    assert piece == music.compose(style, bpm, "e minor", seed=3)
    assert piece != music.compose(style, bpm, "e minor", seed=4)
    assert min(note.start_ms for note in piece.notes) == 0
    assert abs(60_000 / (music.QUARTER_FRAMES[bpm] * music.FRAME_MS) - bpm) <= 0.5
    if bpm != 167:  # the one tempo whose eighths fall between two frames
        assert all(note.start_ms % music.FRAME_MS == 0 for note in piece.notes)
    words = music.tokens(piece.caption)
    assert style in words
    assert str(bpm) in words


def test_the_tokenizer_knows_every_word_of_every_caption() -> None:
    pieces = {piece.lstrip("▁") for piece, score in make_base.vocabulary() if score == -1.0}
    captions = [
        music.compose(style, bpm, key, seed).caption
        for style, bpm in SETTINGS
        for key in music.KEYS
        for seed in range(3)
    ]
    captions += [song.caption for song in music.songbook(24, seed=0)]
    assert {word for caption in captions for word in music.tokens(caption)} <= pieces


def test_no_tempo_gives_a_style_away_and_no_piece_is_in_both_sets() -> None:
    trained = {style: music.TEMPI[style] for style in music.STYLES}
    assert music.HELD_OUT not in trained
    for style, tempi in trained.items():
        shared = {tempo for other, theirs in trained.items() if other != style for tempo in theirs}
        assert set(tempi) - shared <= {188}
    pieces = [music.compose("folk", 94, "c major", seed) for seed in range(200)]
    valid = {piece.signature for piece in pieces if music.is_valid(piece)}
    train = {piece.signature for piece in pieces if not music.is_valid(piece)}
    assert valid
    assert not valid & train


def test_figures_of_a_copy() -> None:
    times = torch.arange(16_000) / 16_000
    tone = torch.sin(2 * torch.pi * 440 * times)[None]
    noise = torch.randn(1, 16_000, generator=torch.Generator().manual_seed(0))
    noise = noise - (noise * tone).sum() / tone.square().sum() * tone
    noise = noise * (tone.square().sum() / noise.square().sum()).sqrt() / 10  # 20 dB below the tone
    assert figures.si_sdr(3 * (tone + noise), tone).item() == pytest.approx(20, abs=0.01)
    assert figures.mel_distance(tone, tone, 16_000).item() == 0
    assert figures.mel_distance(0.5 * noise, noise, 16_000).item() == pytest.approx(6.02, abs=0.3)


def test_the_codec_in_training_and_the_exported_one_agree(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = train_codec.EncodecModel(train_codec.configuration(4, 8, [2, 4, 8, 10], 0, 1)).eval()
    quantizer = train_codec.Quantizer(8).eval()
    wave = torch.randn(2, 1, 30 * train_codec.HOP)
    train_codec.unit_variance(model, wave)
    with torch.no_grad():
        latent = model.encoder(wave)
        quantizer.begin(torch.randn(4096, 8) * latent.std())
        trained = model.decoder(quantizer(latent)[0])
        train_codec.export(model, quantizer, tmp_path)
        exported = train_codec.EncodecModel.from_pretrained(tmp_path).eval()
        codes = exported.encode(wave).audio_codes
        decoded = exported.decode(codes, [None]).audio_values
    assert codes.shape == (1, 2, train_codec.CODEBOOKS, 30)
    assert len(np.unique(codes)) > 100
    assert torch.allclose(decoded, trained, atol=1e-4)


def test_half_of_the_etudes_sound_like_the_held_out_style_and_are_no_music() -> None:
    etudes = [music.etude(seed) for seed in range(60)]
    held_out = [etude for etude in etudes if etude.style == music.HELD_OUT]
    assert len(held_out) == 30
    assert {etude.style for etude in etudes} == {*music.STYLES, music.HELD_OUT}
    bands = [len({note.part for note in etude.notes}) for etude in held_out]
    assert bands.count(4) >= 10
    assert bands.count(1) >= 3
    assert all(note.start_ms % (music.FRAME_MS // 2) == 0 for etude in etudes for note in etude.notes)
    assert all(note.start_ms < 8000 and note.length_ms >= music.FRAME_MS for etude in etudes for note in etude.notes)
    gaps = {b - a for etude in held_out for a, b in itertools.pairwise(sorted({n.start_ms for n in etude.notes}))}
    assert len(gaps) > 8  # in a song it would be that of an eighth


def test_polishing_changes_the_decoder_and_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for folder, number in (("data/train", 3), ("data/valid", 2), ("etudes", 2)):
        for clip in range(number):
            path = tmp_path / folder / f"{clip}.flac"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, 0.1 * rng.standard_normal(16_000), 16_000)
    torch.manual_seed(0)
    codec = EncodecModel(
        train_codec.configuration(filters=4, hidden=8, ratios=[2, 4, 8, 10], residual=0, lstm=1)
    ).eval()
    for layer in codec.quantizer.layers:
        layer.codebook.embed.normal_()
    codec.save_pretrained(tmp_path / "codec")
    words = ["polish", str(tmp_path / "codec"), "--data", str(tmp_path / "data"), "--output_dir", str(tmp_path / "out")]
    words += ["--clips", "2", "--frames", "8", "--filters", "2"]
    for steps in ("2", "3"):  # the second call goes on
        monkeypatch.setattr(sys, "argv", [*words, "--steps", steps])
        polish_codec.main()
    polished = EncodecModel.from_pretrained(tmp_path / "out").eval()
    wave = torch.from_numpy(0.1 * rng.standard_normal((1, 1, 6400)).astype(np.float32))
    with torch.no_grad():
        before, after = (model.encode(wave).audio_codes for model in (codec, polished))
        assert torch.equal(before, after)
        sounds = [model.decode(before, [None]).audio_values for model in (codec, polished)]
    assert not torch.allclose(*sounds)
    assert torch.load(tmp_path / "out" / "training.pt", weights_only=True)["step"] == 3


@pytest.mark.parametrize("name", ["language_model", "captions", "last"])
def test_the_files_of_the_three_trainings_are_files_of_options(name: str) -> None:
    path = Path(train_codec.__file__).with_name(f"{name}.yaml")
    options = parse(TrainArguments, "train", "", [str(path), "--output_dir", "out"])
    assert (options.use_lora, options.freeze_text_encoder) == (False, False)
    assert options.random_crop == (name == "captions")


def test_music_of_others_is_not_taken_for_ours(tmp_path: Path) -> None:
    render = pytest.importorskip("render", reason="needs mido")
    (tmp_path / "train").mkdir()
    with pytest.raises(SystemExit, match="is not of this script"):
        render.check_same_music(tmp_path, seed=0)
    render.check_same_music(tmp_path / "fresh", seed=0)
    render.check_same_music(tmp_path / "fresh", seed=0)
    with pytest.raises(SystemExit, match="holds music of another seed"):
        render.check_same_music(tmp_path / "fresh", seed=1)


def test_a_tune_has_the_notes_that_it_plays() -> None:
    timbre = make_melody.TIMBRES[0]
    frames = max(make_melody.NOTE_FRAMES.values())
    wave = torch.from_numpy(make_melody.tune(np.random.default_rng(0), timbre, frames))[None]
    classes = chroma_classes(wave, make_melody.RATE).tolist()
    assert len(classes) == int(make_melody.SECONDS / 0.128) + 1
    assert set(classes) <= set(make_melody.C_MAJOR)
    assert len(set(classes)) > 2
    words = {word for one in make_melody.TIMBRES for word in make_melody.caption(one, 94).split()}
    assert words <= set(music.VOCABULARY)


def test_an_untrained_melody_checkpoint_has_the_weights_of_the_text_checkpoint(tmp_path: Path) -> None:
    base = load_checkpoint(Source(str(make_melody.BASE)))
    make_melody.untrained(base, tmp_path, seed=0)
    text = load_language_model(base, torch.float32, torch.device("cpu")).state_dict()
    melody = load_language_model(load_checkpoint(Source(str(tmp_path))), torch.float32, torch.device("cpu"))
    assert melody.config.chroma_length == 21
    new = [name for name, weight in melody.state_dict().items() if not torch.equal(weight, text.get(name, weight * 0))]
    assert new == ["audio_enc_to_dec_proj.weight"]
