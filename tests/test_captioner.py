"""Captions by a language model that hears, on a tiny random model of that class."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    Qwen2Tokenizer,
    WhisperFeatureExtractor,
)

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.pretrained import captioner as module
from musicgen_dreamboothing.pretrained.captioner import (
    MAX_WORDS,
    Captioner,
    WeightBytes,
    captioner_signature,
    clean,
    fits_in_4_bits,
    weight_bytes,
)

RATE = 16_000
SECONDS = 2  # that the tiny model hears
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"]


def write_tiny_captioner(folder: Path, *, seed: int = 0, width: int = 32) -> Path:
    """A Qwen2-Audio checkpoint of random weights, in the layout of the real ones (under 1 MB)."""
    vocabulary = {token: number for number, token in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[], additional_special_tokens=SPECIAL[1:])
    config = Qwen2AudioConfig(
        audio_config={
            "num_mel_bins": 16,
            "d_model": width,
            "encoder_layers": 1,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": width,
            "max_source_positions": SECONDS * 50,
        },
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": width,
            "intermediate_size": width,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "initializer_range": 0.5,  # at 0.02 so small a network says the same whatever it hears
            "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
        },
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2AudioForConditionalGeneration(config)
        torch.nn.init.normal_(model.model.multi_modal_projector.linear.weight)
    model.generation_config.update(do_sample=True, temperature=0.7, top_k=20, top_p=0.5)  # as the real one has it
    model.save_pretrained(folder)
    extractor = WhisperFeatureExtractor(feature_size=16, sampling_rate=RATE, chunk_length=SECONDS)
    Qwen2AudioProcessor(extractor, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_tiny_captioner(tmp_path_factory.mktemp("captioner") / "tiny")


def load(checkpoint: Path, **options) -> Captioner:
    return Captioner(str(checkpoint), device="cpu", dtype=torch.float32, **{"max_new_tokens": 12, **options})


def noise(seconds: float, seed: int, rate: int = RATE, channels: int = 1) -> tuple[audio.Wave, int]:
    wave = np.random.default_rng(seed).standard_normal((channels, round(seconds * rate)))
    return (wave * 0.3 * (seed + 1) / 4).astype(np.float32), rate


def test_each_sound_gets_a_line(checkpoint):
    waves = [noise(1, 0), noise(SECONDS, 1, channels=2), noise(3 * SECONDS, 2, rate=44_100), noise(0.3, 3)]
    found = load(checkpoint).caption(waves)
    assert len(found) == 4
    assert all("\n" not in text and text == text.strip() for text in found)
    assert len(set(found)) > 1  # it listens
    assert "".join(found)


def test_no_sounds_give_no_captions(checkpoint):
    assert load(checkpoint).caption([]) == []


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_batch_makes_no_difference_and_nothing_is_random(checkpoint, batch_size):
    waves = [noise(seconds, seed) for seed, seconds in enumerate((1, 0.4, SECONDS, 1.7))]
    torch.manual_seed(batch_size)
    found = load(checkpoint, batch_size=batch_size).caption(waves)
    assert found == load(checkpoint, batch_size=4).caption(waves)


def test_sounds_are_resampled_to_the_processors_rate(checkpoint):
    captioner = load(checkpoint)
    assert captioner.rate == RATE
    time = np.arange(48_000 * SECONDS) / 48_000
    tone = (0.5 * np.sin(2 * np.pi * 3_000 * time) * np.sin(2 * np.pi * time) ** 2).astype(np.float32)[None]
    same, stereo, other = captioner.caption(
        [(audio.resample(tone, 48_000, RATE), RATE), (np.repeat(tone, 2, axis=0), 48_000), (tone, RATE)]
    )
    assert same == stereo
    assert same != other


def test_answers_end(checkpoint):
    (short,), (long,) = (load(checkpoint, max_new_tokens=count).caption([noise(1, 0)]) for count in (2, 40))
    assert len(short) <= 2 < len(long)  # the tiny model's tokens are letters


def test_the_signature_depends_on_model_and_prompt(tmp_path, checkpoint, monkeypatch):
    other = write_tiny_captioner(tmp_path / "other", seed=1)
    signatures = [captioner_signature(str(model)) for model in (checkpoint, other)]
    monkeypatch.setattr("musicgen_dreamboothing.pretrained.captioner.PROMPT", "What is it?")
    signatures.append(captioner_signature(str(checkpoint)))
    assert len(set(signatures)) == 3


def test_what_does_not_describe_sound_is_one_line(tmp_path, tiny):
    mute = write_tiny_captioner(tmp_path / "mute")
    for path in mute.glob("*process*.json"):
        path.unlink()
    for model, reason in [
        ("Qwen/Qwen2-Audio-7B-Instruct", "no audio language model at 'Qwen/Qwen2-Audio-7B-Instruct'"),
        (str(tmp_path / "missing"), "missing"),
        (str(tiny), "a 'musicgen' model is no audio language model"),
        (str(mute), "no audio language model"),
    ]:
        with pytest.raises(UserError, match=reason) as error:
            Captioner(model, device="cpu")
        assert "\n" not in str(error.value)
        assert "--captioner" in str(error.value)


def test_a_text_only_model_is_refused(tmp_path):
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=10, d_model=8, d_ff=8, d_kv=4, num_heads=2, num_layers=1, decoder_start_token_id=0)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="a 't5' model is no audio language model"):
        Captioner(str(tmp_path))


# Qwen2-Audio-7B: 8.4 billion weights, nearly all of them in linear layers.
SEVEN_B = WeightBytes(16_800_000_000, 5_600_000_000, 16)
GB = 1_000_000_000


def test_weights_are_counted_without_being_loaded(checkpoint):
    from safetensors.torch import load_file

    config, model_class = Qwen2AudioConfig.from_pretrained(checkpoint), Qwen2AudioForConditionalGeneration
    count = sum(weight.numel() for weight in load_file(checkpoint / "model.safetensors").values())
    sizes = weight_bytes(model_class, config, torch.bfloat16)
    assert (sizes.plain, sizes.bits) == (2 * count, 16)
    assert weight_bytes(model_class, config, torch.float32).plain == 4 * count
    assert count / 2 < sizes.nf4 < 2 * count


@pytest.mark.parametrize(("free", "in_4_bits"), [(24 * GB, False), (17 * GB, True), (8 * GB, True)])
def test_four_bits_are_chosen_where_sixteen_do_not_fit(capsys, free, in_4_bits):
    assert fits_in_4_bits("Qwen", SEVEN_B, torch.device("cuda", 0), free) is in_4_bits
    note = (
        f"note: Qwen takes 16.8 GB in 16 bits, and {free / GB:.1f} GB are free on cuda:0: it is loaded in 4 bits (5.6"
    )
    assert capsys.readouterr().out.startswith(note if in_4_bits else "")


@pytest.mark.parametrize(("device", "free"), [("cuda:0", 6 * GB), ("cpu", 12 * GB), ("mps", 12 * GB)])
def test_a_model_that_does_not_fit_is_one_line(device, free):
    with pytest.raises(UserError, match=r"--captioner Qwen takes 16\.8 GB in 16 bits") as error:
        fits_in_4_bits("Qwen", SEVEN_B, torch.device(device), free)
    text = str(error.value)
    assert f"{free / GB:.1f} GB are free on {device}. Fix: close other programs, choose a smaller model" in text
    assert ("5.6 GB in 4 bits" in text) == device.startswith("cuda")
    assert "\n" not in text


def test_four_bits_need_bitsandbytes(monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install 'musicgen-dreamboothing\[quantization\]'"):
        fits_in_4_bits("Qwen", SEVEN_B, torch.device("cuda"), 8 * GB)


def test_a_full_device_is_an_error_before_loading(checkpoint, monkeypatch):
    monkeypatch.setattr(module, "free_memory", lambda _: 1000)
    monkeypatch.setattr(Qwen2AudioForConditionalGeneration, "from_pretrained", None)
    with pytest.raises(UserError, match=r"takes 0.0 GB in 32 bits .* 0.0 GB are free on cpu"):
        load(checkpoint)


def test_a_model_in_four_bits_describes_sound(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "fits_in_4_bits", lambda *_: True)
    captioner = load(write_tiny_captioner(tmp_path / "wider", width=64))  # scales are those of 64 weights
    assert captioner._model.is_loaded_in_4bit
    assert any(captioner.caption([noise(1, 0), noise(1, 1)]))


def test_memory_that_runs_out_makes_smaller_batches(checkpoint, monkeypatch):
    waves = [noise(1, seed) for seed in range(5)]
    expected, captioner, sizes = load(checkpoint).caption(waves), load(checkpoint), []
    answers = captioner._answers

    def scarce(batch):
        sizes.append(len(batch))
        if len(batch) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return answers(batch)

    monkeypatch.setattr(captioner, "_answers", scarce)
    assert captioner.caption(waves) == expected
    assert sizes == [4, 2, 1, 1, 2, 1, 1, 1]

    def none_left(_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(captioner, "_answers", none_left)
    with pytest.raises(UserError, match="--captioner ran out of memory on cpu with a single clip"):
        captioner.caption(waves)


@pytest.mark.parametrize(
    ("answer", "caption"),
    [
        ("A fast song.", "A fast song"),
        ("  'Slow jazz'\n\n with  piano . ", "Slow jazz' with piano"),
        ("The music is energetic and loud.", "energetic and loud"),
        ("This song features an acoustic guitar.", "acoustic guitar"),
        ("The provided audio clip is a slow waltz", "slow waltz"),
        ("Here is a description: techno, dark", "techno, dark"),
        ("Certainly! **Techno**, dark", "Techno, dark"),
        ("“Dreamy” pop", "Dreamy pop"),
        ("Surely a hit", "Surely a hit"),
        ("The musicians play", "The musicians play"),
        ("don't stop", "don't stop"),
        ("bad\x05\x17 \N{REPLACEMENT CHARACTER}bytes", "bad bytes"),
        ("", ""),
        ('"."', ""),
    ],
)
def test_answers_become_captions(answer, caption):
    assert clean(answer) == caption


def test_long_answers_are_cut_at_a_stop():
    sentence = "drums and bass play loud in a big room. "
    assert clean(sentence * 20) == (sentence * 6).strip(" .")
    assert len(clean("word " * 500).split()) == MAX_WORDS
    assert clean(", ".join(["one two three"] * 40)).endswith("three")
    assert not re.search(r"[,.]$", clean("a, " * 300))


def test_examples_in_the_documentation():
    assert doctest.testmod(module).failed == 0
