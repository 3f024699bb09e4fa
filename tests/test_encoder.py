"""Sounds compared by audio encoders of transformers: tiny random models in the published layouts."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tone_song
from test_tags import write_tiny_clap
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTModel,
    BertConfig,
    BertModel,
    HubertConfig,
    HubertForCTC,
    HubertModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
    Wav2Vec2FeatureExtractor,
    WhisperConfig,
    WhisperModel,
)

from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.evaluation.metrics.embedding import ClapEmbedder, Embedder, load_embedder
from musicgen_dreamboothing.hub import Source
from musicgen_dreamboothing.pretrained.encoder import WINDOW_SECONDS, AudioEncoder

RATE = 16_000
AST_FRAMES = 100  # of the tiny model: 1 s
CPU = torch.device("cpu")


def write_hubert(folder: Path, *, rate: int = RATE, model_class: type = HubertModel, norm: str = "group") -> Path:
    """As facebook/hubert-base-ls960, whose group norm would notice padding, or with the layer norm of larger ones."""
    config = HubertConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(16, 16),
        conv_stride=(5, 64),
        conv_kernel=(10, 64),
        feat_extract_norm=norm,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model_class(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(sampling_rate=rate, return_attention_mask=norm == "layer").save_pretrained(folder)
    return folder


def write_ast(folder: Path) -> Path:
    """As MIT/ast-finetuned-audioset: spectrograms of one size."""
    config = ASTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_length=AST_FRAMES,
        num_mel_bins=32,
        patch_size=8,
        frequency_stride=8,
        time_stride=8,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ASTModel(config).save_pretrained(folder)
    ASTFeatureExtractor(max_length=AST_FRAMES, num_mel_bins=32).save_pretrained(folder)
    return folder


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "hubert": write_hubert,
    "hubert with layer norm": lambda folder: write_hubert(folder, norm="layer"),
    "hubert at 24 kHz": lambda folder: write_hubert(folder, rate=24_000),
    "ast": write_ast,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("encoders")
    return {name: write(root / name.replace(" ", "-")) for name, write in LAYOUTS.items()}


@pytest.fixture(params=LAYOUTS)
def folder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Path:
    return folders[request.param]


def load(model: Path | str, **more: bool) -> Embedder:
    return load_embedder(str(model), is_chosen=True, device=CPU, **more)


def test_sounds_have_one_vector_each_whatever_is_beside_them(folder: Path) -> None:
    waves = [(tone_song(seconds, seed), RATE) for seed, seconds in enumerate((0.2, 1.0, 3.0, 25.0))]
    encoder = AudioEncoder(Source(str(folder)), device=CPU, batch_size=3)
    rows = encoder.embed(waves)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    for row, wave in zip(rows, waves, strict=True):
        np.testing.assert_allclose(encoder.embed([wave])[0], row, atol=1e-5)
    assert (rows @ rows.T)[np.triu_indices(4, 1)].max() < 0.99999
    assert encoder.embed([]).shape == (0, rows.shape[1])


def test_a_long_sound_is_the_mean_of_its_windows(folder: Path) -> None:
    encoder = AudioEncoder(Source(str(folder)), device=CPU)
    seconds = 1.0 if folder.name == "ast" else WINDOW_SECONDS
    wave = tone_song(2 * seconds, 3, rate=encoder.rate)
    whole, *parts = encoder.embed([(part, encoder.rate) for part in (wave, *np.split(wave, 2, axis=1))])
    mean = np.mean(parts, axis=0)
    np.testing.assert_allclose(whole, mean / np.linalg.norm(mean), atol=1e-5)


def test_a_sound_is_resampled_to_the_rate_of_the_model(folders: dict[str, Path]) -> None:
    for name, rate in (("hubert", RATE), ("hubert at 24 kHz", 24_000)):
        encoder = AudioEncoder(Source(str(folders[name])), device=CPU)
        assert encoder.rate == rate
        fine, coarse = (tone_song(1.0, 3, rate=hertz) for hertz in (48_000, rate))
        near, far = encoder.embed([(fine, 48_000), (fine, 24_000)]) @ encoder.embed([(coarse, rate)])[0]
        assert near > far


def test_it_is_an_embedder_without_words(folder: Path) -> None:
    embedder = load(folder)
    assert embedder.name == str(folder)
    wave = tone_song(4.0, 8)
    rows = embedder.embed([(wave, RATE), (0.1 * wave, RATE)])
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-4)
    assert embedder.embed_text(["punk"]) is None
    assert embedder.tag_probabilities(rows) is None


def test_a_clap_that_is_chosen_has_words(tmp_path: Path) -> None:
    assert isinstance(load(write_tiny_clap(tmp_path / "clap")), ClapEmbedder)


def test_weights_of_a_bin_file_are_read_without_running_code(tmp_path: Path) -> None:
    folder = write_hubert(tmp_path / "hubert")
    expected = load(folder).embed([(tone_song(1.0, 0), RATE)])
    model = HubertModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    np.testing.assert_allclose(load(folder).embed([(tone_song(1.0, 0), RATE)]), expected, atol=1e-6)


class Harmful:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_code_in_a_bin_file_does_not_run(tmp_path: Path) -> None:
    folder = write_hubert(tmp_path / "hubert")
    (folder / "model.safetensors").unlink()
    torch.save({"a": Harmful(tmp_path / "ran")}, folder / "pytorch_model.bin", pickle_module=pickle)
    with pytest.raises(UserError, match="no audio encoder at"):
        load(folder)
    assert not (tmp_path / "ran").exists()


def test_weights_of_another_head_are_no_obstacle(tmp_path: Path) -> None:
    """Models for speech recognition have one, and lack the vector that masks steps in pre-training."""
    folder = write_hubert(tmp_path / "ctc", model_class=HubertForCTC)
    assert load(folder).embed([(tone_song(1.0, 0), RATE)]).shape == (1, 24)


def write_bert(folder: Path) -> None:
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    BertModel(config).save_pretrained(folder)


def write_vit(folder: Path) -> None:
    config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=32)
    ViTModel(config).save_pretrained(folder)
    ViTImageProcessorPil().save_pretrained(folder)


def write_whisper(folder: Path) -> None:
    sizes = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    heads = {"encoder_attention_heads": 1, "decoder_attention_heads": 1}
    WhisperModel(WhisperConfig(vocab_size=99, pad_token_id=1, **sizes, **heads)).save_pretrained(folder)


def write_nothing(folder: Path) -> None:
    folder.mkdir()


def write_own_code(folder: Path) -> None:
    """As m-a-p/MERT-v1-95M."""
    write_hubert(folder)
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "own"}
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(
        "from transformers import HubertConfig, HubertModel\n\n\n"
        "class OwnConfig(HubertConfig):\n    model_type = 'own'\n\n\n"
        "class OwnModel(HubertModel):\n    config_class = OwnConfig\n"
    )


def write_without_weights(folder: Path) -> None:
    write_hubert(folder)
    (folder / "model.safetensors").unlink()


def write_half_the_weights(folder: Path) -> None:
    write_hubert(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))


WRONG: list[tuple[Callable[[Path], object], str]] = [
    (write_bert, "'bert' model without a feature extractor"),
    (write_vit, "'vit' model without a feature extractor"),
    (write_whisper, "a 'whisper' model is an encoder and a decoder"),
    (write_nothing, "config.json"),
    (write_own_code, "its own code, which runs with --trust_remote_code true only"),
    (write_without_weights, "pytorch_model.bin"),
    (write_half_the_weights, "it lacks weights"),
    (lambda folder: None, "nowhere"),
]


@pytest.mark.parametrize(("write", "reason"), WRONG)
def test_what_is_no_audio_encoder_is_one_line(tmp_path: Path, write: Callable[[Path], object], reason: str) -> None:
    write(tmp_path / "nowhere")
    with pytest.raises(UserError) as error:
        load(tmp_path / "nowhere")
    message = str(error.value)
    assert message.startswith(f"no audio encoder at '{tmp_path / 'nowhere'}' (")
    assert reason in message
    assert message.endswith("or none for statistics of the signal")
    assert "\n" not in message


def test_own_code_runs_where_it_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    write_own_code(tmp_path / "own")
    assert load(tmp_path / "own", trust_remote_code=True).embed([(tone_song(1.0, 0), RATE)]).shape == (1, 24)
