"""How much an instance prompt means to a base. The trained checkpoint knows five styles; punk is not among them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import read_checkpoint, stored_codes
from transformers import PreTrainedTokenizerBase, T5Tokenizer

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.arguments import TrainArguments, parse
from musicgen_dreamboothing.data.tokens.text_states import key_word_states
from musicgen_dreamboothing.demo.recipe import ASSETS
from musicgen_dreamboothing.model import codec
from musicgen_dreamboothing.model.checkpoint import load_codec, load_text_encoder, load_tokenizer
from musicgen_dreamboothing.model.delay import training_steps
from musicgen_dreamboothing.model.keyword import (
    CONTEXTS,
    CROP_SECONDS,
    MADE_UP,
    Meaning,
    is_common,
    is_readable,
    keyword_note,
    meaning_of,
    rare_word,
    surprisal,
    texts_of,
)
from musicgen_dreamboothing.model.loading import load_language_model
from musicgen_dreamboothing.model.text import encode_captions, pad_states
from musicgen_dreamboothing.training.model import check_key_word

CPU = torch.device("cpu")
Folders = Callable[[str], Path]
STYLES = ("house", "techno")


class Base:
    """A checkpoint with all that the judgement of a word needs."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        self.checkpoint = read_checkpoint(folder)
        self.model: Any = load_language_model(self.checkpoint, dtype, CPU)
        self.encoder = load_text_encoder(self.checkpoint, CPU)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.checkpoint)

    @cached_property
    def noise(self) -> list[np.ndarray]:
        """Codes `[K, T]` of clips of 2.5 s that nobody made."""
        rng = np.random.default_rng(0)
        shape = (self.checkpoint.codebooks, round(2.5 * self.checkpoint.frame_rate))
        return [rng.integers(0, self.checkpoint.codebook_size, shape).astype(np.uint16) for _ in range(3)]

    @cached_property
    def songs(self) -> list[np.ndarray]:
        """Codes `[K, T]` of 4 s of three punk songs."""
        encoder, samples = load_codec(self.checkpoint, CPU), 4 * self.checkpoint.sampling_rate
        paths = sorted((ASSETS / "songs").glob("*.ogg"))[:3]
        waves = np.stack([audio.decode(path, self.checkpoint.sampling_rate)[:1, :samples] for path in paths])
        return list(codec.encode(encoder, torch.from_numpy(waves), self.checkpoint).numpy().astype(np.uint16))

    def states(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        return dict(encode_captions(self.tokenizer, self.encoder, texts))

    def meaning(self, word: str, codes: Sequence[np.ndarray], references: Sequence[str] = MADE_UP) -> Meaning:
        states = self.states([context.format(one) for one in (word, *references) for context in CONTEXTS])
        first, *rest = ([states[context.format(one)] for context in CONTEXTS] for one in (word, *references))
        return meaning_of(self.model, self.checkpoint, codes, first, rest)

    def note(self, word: str, codes: Sequence[np.ndarray], **options: Any) -> str | None:
        return keyword_note(self.model, self.checkpoint, codes, self.states(texts_of(word)), word, **options)


@pytest.fixture(scope="module")
def trained() -> Base:
    return Base(ASSETS / "musicgen-tiny")


# --- by its tokens


def test_few_pieces_with_low_ids_are_a_common_word() -> None:
    assert surprisal([300], 32_100) < surprisal([20_000], 32_100) < surprisal([300, 300], 32_100)
    assert surprisal([32_099], 32_100) < 20 < surprisal([3, 20_000], 32_100)  # any word that has its own piece
    assert surprisal([3, 172, 226], 32_100) > 20  # T5's pieces of "zx", letters that are common one by one
    probabilities = [2 ** -surprisal([piece], 32_100) for piece in range(1, 32_101)]
    assert sum(probabilities) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("prompt", "common"),
    [("house", True), ("punk", True), ("acid house", True), ("zxhouse", False), ("zxqv", False), ("zxqv house", False)],
)
def test_words_of_the_built_in_vocabulary(prompt: str, common: bool, trained: Base) -> None:
    assert is_common(trained.tokenizer, prompt) == common


def test_words_of_a_made_up_vocabulary() -> None:
    """In order of frequency: a word, 20,000 others, one at the end; two syllables early and late."""
    words = ["▁rock", "▁pu", "nk"] + [f"▁w{number}" for number in range(20_000)] + ["▁grun", "ge", "▁ska"]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    tokenizer = T5Tokenizer(vocab=pieces + [(word, -float(rank)) for rank, word in enumerate(words, 1)], extra_ids=0)
    found = {word: is_common(tokenizer, word) for word in ("rock", "ska", "punk", "grunge", "rock grunge")}
    assert found == {"rock": True, "ska": True, "punk": True, "grunge": False, "rock grunge": False}


def test_letters_outside_the_vocabulary_are_not_readable(trained: Base) -> None:
    assert is_readable(trained.tokenizer, "zxqv house")
    assert not is_readable(trained.tokenizer, "zxqv дом")


def test_rare_words_are_rare(trained: Base) -> None:
    for prompt in ("punk", "House", "drum & bass", "aeiou", "дом"):
        word = rare_word(prompt)
        assert word.isascii()
        assert word.isalpha()
        assert is_readable(trained.tokenizer, word)
        assert not is_common(trained.tokenizer, word)


# --- by its output


@pytest.mark.parametrize("word", STYLES)
def test_a_style_of_the_training_data_has_a_strong_meaning(word: str, trained: Base) -> None:
    assert trained.meaning(word, trained.songs).is_strong


@pytest.mark.parametrize("word", ["punk", "shoegaze", "my zxpunk"])
def test_other_words_have_no_strong_meaning(word: str, trained: Base) -> None:
    assert not trained.meaning(word, trained.songs).is_strong


def test_it_is_the_divergence_of_its_docstring(trained: Base) -> None:
    """Once more from the loss of the model itself, with one context, one clip and two references."""
    base, code = trained, torch.from_numpy(trained.noise[0].astype(np.int64))
    frames = round(CROP_SECONDS * base.checkpoint.frame_rate) + 3
    start = (code.shape[1] - frames) // 2
    inputs, labels = training_steps(
        code[:, start : start + frames], base.checkpoint.delay, base.checkpoint.start_token_id
    )
    states = base.states(["house", *MADE_UP[:2]])
    chances = []
    for word in ("house", *MADE_UP[:2]):
        padded, mask = pad_states([states[word]])
        with torch.no_grad():
            hidden = base.model.hidden_states(inputs[None], base.model.condition(padded, mask, torch.tensor([True])))
            chances.append(base.model.logits(hidden)[0].softmax(-1)[labels >= 0].double())
    word, one, other = chances

    def divergence(p: torch.Tensor, q: torch.Tensor) -> float:
        return float((p * (p / q).log()).sum(-1).mean())

    scale = (divergence(one, other) + divergence(other, one)) / 2
    found = meaning_of(
        base.model, base.checkpoint, [base.noise[0]], [states["house"]], [[states[name]] for name in MADE_UP[:2]]
    )
    assert found.score == pytest.approx(divergence(word, (one + other) / 2) / scale, rel=1e-3)
    assert found.reference_spread == pytest.approx(
        max(divergence(one, other), divergence(other, one)) / scale, rel=1e-3
    )


@pytest.mark.parametrize("kind", ["text-stereo", "melody"])
def test_every_kind_of_base_has_a_score(kind: str, checkpoints: Folders) -> None:
    base = Base(checkpoints(kind))
    mine = base.meaning("punk", base.noise)
    turned = base.meaning("punk", base.noise, MADE_UP[::-1])
    assert mine.score > 0
    assert mine.reference_spread >= 1
    assert turned.score == pytest.approx(mine.score, rel=1e-3)
    assert base.meaning("punk", [clip.tolist() for clip in base.noise]) == mine  # as a table gives them


def test_the_score_in_16_bits_is_the_same(trained: Base) -> None:
    half = Base(ASSETS / "musicgen-tiny", torch.bfloat16)
    assert half.meaning("reggae", trained.songs).is_strong


def test_short_and_single_clips_are_enough(tiny: Path) -> None:
    base = Base(tiny)
    short = [base.noise[0][:, :60], base.noise[1], base.noise[2][:, :9]]
    for codes in (short, short[2:]):
        assert np.isfinite(base.meaning("punk", codes).score)


def test_a_prepared_folder_has_all_inputs(prepared: Path, tiny: Path) -> None:
    base, table = Base(tiny), stored_codes(prepared)
    codes = table.with_format("numpy")["codes"]
    states = key_word_states(prepared, "punk", base.checkpoint)
    first, *rest = ([states[context.format(word)] for context in CONTEXTS] for word in ("punk", *MADE_UP))
    found = meaning_of(base.model, base.checkpoint, codes, first, rest)
    assert found.score == pytest.approx(base.meaning("punk", table["codes"][:]).score, rel=0.02)  # states of 16 bits
    assert (keyword_note(base.model, base.checkpoint, codes, states, "punk") is not None) == found.is_strong


def test_a_base_that_ignores_text_knows_no_word(tiny: Path) -> None:
    base = Base(tiny)
    with torch.no_grad():
        base.model.enc_to_dec_proj.weight.zero_()
        base.model.enc_to_dec_proj.bias.zero_()
    assert not base.meaning("punk", base.noise).is_strong


def test_the_note_changes_no_state(tiny: Path) -> None:
    """Random state, mode and weights stay, and what the model kept of the forward pass can be trained through."""
    base = Base(tiny)
    before = {name: weight.clone() for name, weight in base.model.state_dict().items()}
    random, arrays = torch.get_rng_state(), np.random.get_state()[1].copy()
    states = base.states(texts_of("punk"))
    base.note("punk", base.noise)
    assert torch.equal(torch.get_rng_state(), random)
    assert np.array_equal(np.random.get_state()[1], arrays)
    assert not base.model.training
    assert all(torch.equal(weight, before[name]) for name, weight in base.model.state_dict().items())
    codes = torch.from_numpy(base.noise[0].astype(np.int64))
    inputs, labels = training_steps(codes, base.checkpoint.delay, base.checkpoint.start_token_id)
    padded, mask = pad_states([states["punk"]])
    loss = base.model.train()(inputs[None], labels[None], mask, torch.tensor([True]), padded)
    loss.nll.sum().backward()
    assert base.model.decoder.lm_heads[0].weight.grad is not None


# --- the note


def test_the_note_on_a_known_word_is_one_line_with_a_remedy(trained: Base) -> None:
    note = trained.note("house", trained.songs)
    assert note is not None
    assert note.startswith("'house' already means much to this base (by its tokens: well known; by its output: ")
    assert "x a made-up word)" in note
    assert note.endswith("use a rare word such as 'zxhs' with --class_prompt house to keep the two apart")
    assert "\n" not in note
    classy = trained.note("house", trained.songs, class_prompt="music")
    assert classy is not None
    assert "--class_prompt" not in classy


@pytest.mark.parametrize("word", ["punk", MADE_UP[0]])
def test_a_good_word_has_no_note(word: str, trained: Base) -> None:
    assert trained.note(word, trained.songs) is None


def test_the_note_on_an_unreadable_word(trained: Base) -> None:
    note = trained.note("дом", trained.songs)
    assert note is not None
    assert "'дом' has letters that the text encoder of this base doesn't know" in note
    assert "'zxqv'" in note


def test_the_note_of_a_training_is_computed_once(
    prepared: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[Any, ...]] = []

    def note(*about: Any) -> str:
        calls.append(about)
        return "'punk' is taken"

    monkeypatch.setattr("musicgen_dreamboothing.training.model.keyword_note", note)
    data = shutil.copytree(prepared, tmp_path / "data")
    options = parse(TrainArguments, "train", "", ["--instance_prompt", "punk", "--output_dir", str(tmp_path / "run")])
    tables: Any = SimpleNamespace(fingerprint="same", train=stored_codes(data))
    for class_prompt, expected in ((None, 1), (None, 1), ("rock", 2)):
        options.class_prompt = class_prompt
        settings: Any = SimpleNamespace(
            options=options, checkpoint=read_checkpoint(tiny), tables=tables, prepared=data, resume=None
        )
        check_key_word(None, settings)
        assert "note: 'punk' is taken" in capsys.readouterr().out
        assert len(calls) == expected
