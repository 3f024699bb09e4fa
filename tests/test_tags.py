"""Tags by CLAP, on a tiny random model: what is heard of a sound, and which labels are said of it."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, ClapProcessor, RobertaTokenizerFast

from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.pretrained import clap as clap_module
from musicgen_dreamboothing.pretrained.clap import (
    DEFAULT,
    GROUPS,
    NEUTRAL,
    PLAYING,
    PROVEN,
    RATE,
    SINGING,
    TEMPLATES,
    Tagger,
    another_clap,
    calibrate,
    read_labels,
    tagger_signature,
    windows,
)

LABELS = {
    "genres": ["punk rock", "jazz", "techno"],
    "moods": ["dark", "happy", "aggressive", "calm"],
    "instruments": ["guitar", "drums", "piano", "a very long choir of old trombones"],
}
SECONDS = 2  # of the tiny model's window


def write_tiny_clap(folder: Path, *, seed: int = 0, fused: bool = False, rate: int = RATE) -> Path:
    """A CLAP checkpoint of random weights, in the layout of the real ones (under 1 MB)."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    vocabulary = {token: number for number, token in enumerate([*special, *sorted(ByteLevel.alphabet())])}
    config = ClapConfig(
        text_config={
            "vocab_size": len(vocabulary),
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "max_position_embeddings": 130,
            "initializer_factor": 2.0,  # at 1 all texts sound alike to so small a network
        },
        audio_config={
            "hidden_size": 32,
            "patch_embeds_hidden_size": 8,
            "depths": [1, 1, 1],
            "num_hidden_layers": 3,
            "num_attention_heads": [2, 2, 2],
            "spec_size": 128,
            "window_size": 4,
            "initializer_factor": 5.0,
            "enable_fusion": fused,
            "fusion_type": "aff_2d" if fused else None,
        },
        projection_dim=16,
        logit_scale_init_value=300.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        ClapModel(config).save_pretrained(folder)
    extractor = ClapFeatureExtractor(
        sampling_rate=rate, max_length_s=SECONDS, truncation="fusion" if fused else "rand_trunc"
    )
    tokenizer = RobertaTokenizerFast(vocab=vocabulary, merges=[], model_max_length=128)
    ClapProcessor(extractor, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clap(tmp_path_factory) -> Path:
    return write_tiny_clap(tmp_path_factory.mktemp("clap") / "tiny")


@pytest.fixture(scope="module")
def tagger(clap) -> Tagger:
    return Tagger(str(clap), LABELS, device="cpu", batch_size=3)


def noise(seconds: float, seed: int, rate: int = RATE, channels: int = 1) -> tuple[np.ndarray, int]:
    """Noise that swells and ebbs, so that its windows differ."""
    rng = np.random.default_rng(seed)
    samples = round(seconds * rate)
    swell = np.sin(np.linspace(0, 3 + seed, samples)) ** 2
    return (rng.standard_normal((channels, samples)) * 0.2 * swell).astype(np.float32), rate


def sine(seconds: float, rate: int, hertz: float = 3_000.0, channels: int = 1) -> tuple[np.ndarray, int]:
    wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
    return np.tile(wave, (channels, 1)).astype(np.float32), rate


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))


def test_embeddings_have_length_one_and_differ(tagger):
    found = tagger.embed([noise(1, 1), noise(SECONDS, 2), noise(5, 3, channels=2)])
    assert found.shape == (3, 16)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert cosine(found[0], found[1]) < 0.999
    texts = tagger.embed_text(["punk", "jazz", "a recording of something much longer"])
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-5)
    assert cosine(texts[0], texts[1]) < 0.999


def test_no_sounds_give_no_tags(tagger):
    assert tagger.embed([]).shape == (0, 16)
    assert tagger.tags(tagger.embed([])) == []
    with pytest.raises(ValueError, match="wave 1 has no samples"):
        tagger.embed([noise(1, 0), (np.zeros((1, 0), np.float32), RATE)])


@pytest.mark.parametrize("rate", [16_000, 32_000, 44_100])
def test_sounds_of_every_rate_are_resampled(tagger, rate):
    heard, same, higher = tagger.embed(
        [sine(SECONDS, rate), sine(SECONDS, RATE), sine(SECONDS, RATE, hertz=3_000 * RATE / rate)]
    )
    assert cosine(heard, same) > 0.9999
    assert cosine(heard, same) > cosine(heard, higher) + 0.0001  # which it would be if fed as it is


def test_stereo_is_mixed_down(tagger):
    stereo, rate = noise(SECONDS, 4, channels=2)
    np.testing.assert_allclose(*tagger.embed([(stereo, rate), (stereo.mean(axis=0, keepdims=True), rate)]), atol=1e-5)


def test_a_clip_is_the_mean_of_its_windows(tagger):
    wave, rate = noise(3 * SECONDS, 5)
    parts = tagger.embed([(part, rate) for part in np.split(wave, 3, axis=1)])
    whole = tagger.embed([(wave, rate)])[0]
    np.testing.assert_allclose(whole, parts.mean(axis=0) / np.linalg.norm(parts.mean(axis=0)), atol=1e-5)
    assert cosine(whole, parts[0]) < 0.99999


def test_windows_cover_the_sound():
    wave = np.arange(25, dtype=np.float32)
    assert [list(window[[0, -1]]) for window in windows(wave, 10)] == [[0, 9], [8, 17], [15, 24]]
    assert [len(window) for window in windows(wave[:10], 10)] == [10]
    assert [len(window) for window in windows(wave[:3], 10)] == [3]
    long = windows(np.arange(1000, dtype=np.float32), 10)
    assert len(long) == 6
    assert (long[0][0], long[-1][-1]) == (0, 999)


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_the_batch_makes_no_difference(clap, tagger, batch_size):
    waves = [noise(seconds, seed, channels=1 + seed % 2) for seed, seconds in enumerate((0.5, 5, 2, 3.1, 9))]
    other = Tagger(str(clap), LABELS, device="cpu", batch_size=batch_size)
    together = other.embed(waves)
    np.testing.assert_allclose(together, tagger.embed(waves), atol=1e-5)
    np.testing.assert_allclose(together, np.concatenate([other.embed([wave]) for wave in waves]), atol=1e-5)


@pytest.mark.parametrize("fused", [False, True])
def test_nothing_is_random(tmp_path, fused):
    tagger = Tagger(str(write_tiny_clap(tmp_path / "clap", fused=fused)), LABELS, device="cpu")
    waves = [noise(7, 1), noise(0.7, 2), noise(SECONDS, 3)]
    np.random.seed(1)
    first = tagger.embed(waves)
    np.random.seed(2)
    np.testing.assert_array_equal(first, tagger.embed(waves))


def ensemble(tagger: Tagger, *nouns: str) -> np.ndarray:
    """The embedding `[1, D]` of a sound that is just what these words say."""
    mean = tagger.embed_text([template.format(noun) for noun in nouns for template in TEMPLATES]).mean(axis=0)
    return mean[None] / np.linalg.norm(mean)


@pytest.mark.parametrize(
    ("group", "label", "noun"),
    [("genres", "jazz", "jazz music"), ("moods", "calm", "calm music"), ("instruments", "drums", "drums")],
)
def test_a_label_that_matches_is_the_first_tag(tagger, group, label, noun):
    tags = tagger.tags(ensemble(tagger, noun))[0]
    assert set(tags) == set(LABELS)
    assert tags[group][0].label == label
    assert 0.3 < tags[group][0].score <= 1


@pytest.mark.parametrize("neutral", NEUTRAL)
def test_a_sound_like_any_other_has_no_tags(tagger, neutral):
    assert tagger.tags(ensemble(tagger, neutral)) == [{group: [] for group in LABELS}]


def test_labels_are_read_once(clap, monkeypatch):
    """However many sounds are tagged; the test of what they get is the next one."""
    tagger = Tagger(str(clap), LABELS, device="cpu")
    monkeypatch.setattr(tagger._model, "get_text_features", lambda **words: pytest.fail("read labels again"))
    for seed in range(3):
        found = tagger.embed([noise(1, seed)])
        assert len(tagger.tags(found)) == len(tagger.vocals(found)) == 1


def test_waves_get_the_tags_of_their_embeddings(clap):
    tagger = Tagger(str(clap), {"genres": [f"style {number}" for number in range(30)]}, device="cpu")
    waves = [noise(1, 0), noise(5, 1), sine(1, RATE)]
    tags = tagger.tags(tagger.embed(waves))
    assert tags == tagger.tags(tagger.embed(waves))
    assert len(tags) == 3


@pytest.mark.parametrize(("prompt", "sings"), [(SINGING, True), (PLAYING, False)])
def test_vocals_are_distinguished_from_instruments(tagger, prompt, sings):
    probabilities = tagger.vocals(np.repeat(ensemble(tagger, *prompt), 2, axis=0))
    assert len(probabilities) == 2
    assert all(0 < probability < 1 and (probability > 0.5) == sings for probability in probabilities)


def similar(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_one_clear_genre_is_the_only_tag():
    scores, above = calibrate(similar(0.5, 0.3, 0.2), similar(0.1, 0.2), 20.0, GROUPS["genres"])
    assert list(above) == [True, False, False]
    assert scores[0] > 0.9
    assert scores.sum() < 1  # the rest is the neutral prompt's


def test_a_mixture_is_named_by_its_parts():
    _, above = calibrate(similar(0.5, 0.49, 0.2), similar(0.1, 0.2), 20.0, GROUPS["genres"])
    assert list(above) == [True, True, False]


def test_instruments_do_not_rival():
    one, _ = calibrate(similar(0.5, 0.3), similar(0.2), 20.0, GROUPS["instruments"])
    more, above = calibrate(similar(0.5, 0.3, 0.5, 0.5, 0.21), similar(0.2), 20.0, GROUPS["instruments"])
    np.testing.assert_allclose(one, more[:2])
    assert list(above) == [True, True, True, True, False]


@pytest.mark.parametrize("group", list(GROUPS))
def test_what_the_neutral_prompts_reach_counts(group):
    labels = similar(0.4, 0.3, 0.1)
    for shift in (-0.3, 0.0, 0.3):  # a model's cosines may lie anywhere
        scores, above = calibrate(labels + shift, similar(0.2, 0.05) + shift, 10.0, GROUPS[group])
        np.testing.assert_allclose(scores, calibrate(labels, similar(0.2, 0.05), 10.0, GROUPS[group])[0], rtol=1e-5)
        assert above[0]
        assert not above[2]
    assert not calibrate(labels, similar(0.41), 10.0, GROUPS[group])[1].any()


def test_a_model_that_cannot_distinguish_sounds_gives_no_tags():
    for group in GROUPS.values():
        assert not calibrate(similar(0.21, 0.2001, 0.19), similar(0.2, 0.1999), 20.0, group)[1].any()


@pytest.mark.parametrize("group", list(GROUPS))
def test_a_few_tags_are_enough_best_first(clap, group):
    labels = [f"kind {number}" for number in range(40)]
    many = Tagger(str(clap), {group: labels}, device="cpu")
    tags = many.tags(ensemble(many, *(GROUPS[group].noun.format(label) for label in labels)))[0][group]
    assert len(tags) == GROUPS[group].max_tags
    assert [tag.score for tag in tags] == sorted((tag.score for tag in tags), reverse=True)


def test_the_signature_covers_all_that_tags_depend_on(tmp_path, clap, monkeypatch):
    other = str(write_tiny_clap(tmp_path / "other", seed=1))
    signatures = [tagger_signature(model, LABELS) for model in (str(clap), other, DEFAULT, PROVEN)]
    signatures.append(tagger_signature(str(clap), LABELS | {"genres": ["punk rock", "jazz"]}))
    copied = shutil.copytree(clap, tmp_path / "copied")
    assert tagger_signature(str(copied), LABELS) == signatures[0]
    for name, value in (("TEMPLATES", ("{}",)), ("ODDS", 9.0), ("RIVAL", 0.5), ("SINGING", ("a choir",))):
        with monkeypatch.context() as patch:
            patch.setattr(f"musicgen_dreamboothing.pretrained.clap.{name}", value)
            signatures.append(tagger_signature(str(clap), LABELS))
    with monkeypatch.context() as patch:  # takes the place of the default
        patch.setattr("musicgen_dreamboothing.pretrained.clap.PROVEN", "laion/larger_clap_music_and_speech")
        signatures.append(tagger_signature(DEFAULT, LABELS))
        assert tagger_signature(str(clap), LABELS) == signatures[0]
    assert len(set(signatures)) == len(signatures)


def test_what_is_no_clap_model_is_one_line(tmp_path, tiny):
    pickled = write_tiny_clap(tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    slow = write_tiny_clap(tmp_path / "slow", rate=32_000)
    for model, reason in [
        ("laion/larger_clap_music", "no CLAP model at 'laion/larger_clap_music'"),  # nothing is to be had offline
        (str(tmp_path / "missing"), "missing"),
        (str(tiny), "it is a 'musicgen' model"),
        (str(pickled), "model.safetensors"),
        (str(slow), "its rate is 32000 Hz, not 48000"),
    ]:
        with pytest.raises(UserError, match=reason) as error:
            Tagger(model, LABELS, device="cpu")
        assert "\n" not in str(error.value)
        assert "--clap_model_name_or_path" in str(error.value)


def cached_clap(cache: Path, model: str) -> tuple[str, str]:
    """A tiny CLAP in the Hub's cache as this known model; revision and SHA-256 of its weights."""
    repository = cache / f"models--{model.replace('/', '--')}"
    revision = clap_module.SAFETENSORS[model].revision
    commit = "a" * 40 if revision.startswith("refs/") else revision
    folder = write_tiny_clap(repository / "snapshots" / commit)
    if commit != revision:
        (repository / "refs" / revision).parent.mkdir(parents=True)
        (repository / "refs" / revision).write_text(commit)
    return revision, hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_a_reference_that_has_moved_is_refused(tmp_path, monkeypatch, capsys):
    """On the Hub a commit holds the same weights for ever, and `refs/pr/1` whatever it points to now."""
    model = "laion/larger_clap_music_and_speech"
    revision, sha256 = cached_clap(tmp_path, model)
    with pytest.raises(
        UserError, match=r"weights of .*music_and_speech are not those .*: refs/pr/1 on the Hub has moved"
    ):
        Tagger(model, LABELS, cache_dir=str(tmp_path), device="cpu")
    monkeypatch.setitem(clap_module.SAFETENSORS, model, clap_module.Published(revision, sha256))
    assert Tagger(model, LABELS, cache_dir=str(tmp_path), device="cpu").name == f"{model}@aaaaaaa"
    assert capsys.readouterr().out == ""


def test_other_weights_at_a_commit_are_noted(tmp_path, capsys):
    cached_clap(tmp_path, PROVEN)
    Tagger(PROVEN, LABELS, cache_dir=str(tmp_path), device="cpu")
    assert "are not those that this version knows (SHA-256" in capsys.readouterr().out


def test_a_default_with_equal_text_embeddings_is_replaced(tmp_path, monkeypatch, capsys):
    flat, proven = write_tiny_clap(tmp_path / "flat"), write_tiny_clap(tmp_path / "proven")
    model = ClapModel.from_pretrained(flat)
    torch.nn.init.zeros_(model.text_model.pooler.dense.weight)
    torch.nn.init.ones_(model.text_model.pooler.dense.bias)
    model.save_pretrained(flat)
    monkeypatch.setattr(clap_module, "DEFAULT", str(flat))
    monkeypatch.setattr(clap_module, "PROVEN", str(proven))
    assert clap_module.load_tagger(str(flat), LABELS, device="cpu").name == str(proven)
    assert "has the same embedding for all texts; using" in capsys.readouterr().out
    monkeypatch.setattr(clap_module, "DEFAULT", "another")
    with pytest.raises(UserError, match="the same embedding for all texts"):
        clap_module.load_tagger(str(flat), LABELS, device="cpu")


def test_a_model_with_equal_text_embeddings_is_refused(tmp_path):
    folder = write_tiny_clap(tmp_path / "flat")
    model = ClapModel.from_pretrained(folder)
    torch.nn.init.zeros_(model.text_model.pooler.dense.weight)
    torch.nn.init.ones_(model.text_model.pooler.dense.bias)
    model.save_pretrained(folder)
    with pytest.raises(UserError) as error:
        Tagger(str(folder), LABELS, device="cpu")
    assert str(error.value) == (
        f"the CLAP model {str(folder)!r} has the same embedding for all texts. "
        f"Fix: use --clap_model_name_or_path {PROVEN}"
    )
    assert another_clap(PROVEN) == "another --clap_model_name_or_path"


def test_our_labels_are_clean():
    labels = read_labels()
    assert set(labels) == set(GROUPS)
    for found in labels.values():
        assert 40 <= len(found) == len(set(found)) <= 80
        assert all(label == label.strip().lower() and "," not in label for label in found)


def test_a_person_may_bring_other_labels(tmp_path):
    (tmp_path / "genres.txt").write_text("﻿# mine\ngabber\n\n  happy   hardcore \ngabber\n", encoding="utf-8")
    labels = read_labels(tmp_path)
    assert labels["genres"] == ["gabber", "happy hardcore"]
    assert labels["moods"] == read_labels()["moods"]


def test_lists_that_cannot_be_used_are_named(tmp_path):
    with pytest.raises(UserError, match=r"no lists of labels in .*gone; it should hold genres\.txt, moods\.txt"):
        read_labels(tmp_path / "gone")
    (tmp_path / "moods.txt").write_text("# nothing yet\n")
    with pytest.raises(UserError, match=r"no labels in .*moods\.txt"):
        read_labels(tmp_path)
