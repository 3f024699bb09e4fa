"""The language model is transformers' own: its parts, its logits and, on the valid steps, its loss."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import KINDS, read_checkpoint, tone_song
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import BertConfig

from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.model import codec, text
from musicgen_dreamboothing.model.checkpoint import (
    Checkpoint,
    Source,
    load_checkpoint,
    load_codec,
    load_text_encoder,
    load_tokenizer,
)
from musicgen_dreamboothing.model.delay import IGNORED, apply_delay, delays, training_steps
from musicgen_dreamboothing.model.language_model import MelodyLM, TextLM, load_language_model
from musicgen_dreamboothing.training.collator import Collator

CPU = torch.device("cpu")
CAPTIONS = ("punk", "a slow tune over loud guitars, then drums", "80s punk and pop track")
WEIGHTS = "model.safetensors"

Folders = Callable[[str], Path]
LM = TextLM | MelodyLM


def language_model(folder: Path, **options: Any) -> LM:
    return load_language_model(read_checkpoint(folder), torch.float32, CPU, **options)


def whole_model(folder: Path) -> Any:
    """The same checkpoint in transformers' own class, with all of its parts."""
    checkpoint = read_checkpoint(folder)
    model = checkpoint.model_class.from_pretrained(checkpoint.name, config=checkpoint.config, dtype=torch.float32)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def wholes(checkpoints: Folders) -> Callable[[str], Any]:
    """Gives transformers' model of a kind, loaded once; tests leave it as it is."""
    made: dict[str, Any] = {}

    def get(kind: str) -> Any:
        if kind not in made:
            made[kind] = whole_model(checkpoints(kind))
        return made[kind]

    return get


def rewrite(folder: Path, target: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
    """A copy of a checkpoint with other weights."""
    shutil.copytree(folder, target)
    save_file(change(load_file(folder / WEIGHTS)), target / WEIGHTS, metadata={"format": "pt"})
    return target


def rewrite_config(folder: Path, target: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a checkpoint with another configuration."""
    shutil.copytree(folder, target)
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (target / "config.json").write_text(json.dumps(config))
    return target


def states_of(folder: Path, captions: tuple[str, ...] = CAPTIONS) -> dict[str, np.ndarray]:
    checkpoint = read_checkpoint(folder)
    return dict(text.encode_captions(load_tokenizer(checkpoint), load_text_encoder(checkpoint, CPU), captions))


def piece(checkpoint: Checkpoint, states: np.ndarray, frames: int, seed: int = 0, keep: bool = True) -> dict[str, Any]:
    """What `ClipDataset` gives, with random codes."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, checkpoint.codebook_size, (checkpoint.codebooks, frames), generator=generator)
    inputs, labels = training_steps(codes, checkpoint.delay, checkpoint.start_token_id)
    return {"codes": inputs, "labels": labels, "text_states": states, "keep_caption": keep, "caption": ""}


def sums(model: LM, checkpoint: Checkpoint, pieces: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed cross-entropy and count of each piece and codebook, without gradients."""
    with torch.no_grad():
        outputs = model(**Collator(checkpoint.pad_token_id)(pieces))
    return outputs.nll, outputs.count


def audiocrafts_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """`_compute_cross_entropy` of audiocraft's solvers/musicgen.py: valid steps, mean over codebooks of means.

    Args:
        logits: `[B, K, S, V]`.
        labels: `[B, K, S]`.
    """
    means = []
    for codebook in range(labels.shape[1]):
        valid = labels[:, codebook] != IGNORED
        means.append(functional.cross_entropy(logits[:, codebook][valid], labels[:, codebook][valid]))
    return torch.stack(means).mean()


# What is loaded


@pytest.mark.parametrize("kind", KINDS)
def test_each_part_equals_that_part_of_the_whole(
    kind: str, checkpoints: Folders, wholes: Callable[[str], Any]
) -> None:
    checkpoint, whole = read_checkpoint(checkpoints(kind)), wholes(kind).state_dict()
    parts = {
        "text_encoder.": load_text_encoder(checkpoint, CPU),
        "audio_encoder.": load_codec(checkpoint, CPU),
        "": language_model(checkpoints(kind)),
    }
    loaded = {prefix + name: weight for prefix, part in parts.items() for name, weight in part.state_dict().items()}
    assert loaded.keys() == whole.keys()
    assert [name for name in whole if not torch.equal(loaded[name], whole[name])] == []


@pytest.mark.parametrize("kind", ["text", "melody-stereo"])
def test_encoders_that_are_not_used_are_not_in_memory(kind: str, checkpoints: Folders) -> None:
    alone = {name.split(".")[0] for name, _ in language_model(checkpoints(kind)).named_parameters()}
    assert alone == {"decoder", "enc_to_dec_proj"} | ({"audio_enc_to_dec_proj"} if "melody" in kind else set())
    with_text = language_model(checkpoints(kind), with_text_encoder=True)
    assert {name.split(".")[0] for name, _ in with_text.named_parameters()} == alone | {"text_encoder"}


@pytest.mark.parametrize("kind", ["text", "melody"])
def test_a_text_encoder_that_is_trained_equals_that_of_the_whole(
    kind: str, checkpoints: Folders, wholes: Callable[[str], Any]
) -> None:
    model = language_model(checkpoints(kind), with_text_encoder=True)
    for name, weight in wholes(kind).text_encoder.state_dict().items():
        assert torch.equal(model.text_encoder.state_dict()[name], weight), name


def test_encoders_are_frozen_and_without_dropout(tiny: Path) -> None:
    checkpoint = read_checkpoint(tiny)
    for part in (load_text_encoder(checkpoint, CPU), load_codec(checkpoint, CPU)):
        assert not part.training
        assert not any(parameter.requires_grad for parameter in part.parameters())
    decoder = language_model(tiny).config.decoder
    assert (decoder.dropout, decoder.attention_dropout, decoder.activation_dropout) == (0, 0, 0)


def test_old_names_of_weight_norm_load_right(tiny: Path, tmp_path: Path) -> None:
    """The published checkpoints were written when torch called them `weight_g` and `weight_v`."""

    def old_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        new = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
        for now, before in new.items():
            weights = {name.replace(now, before): weight for name, weight in weights.items()}
        return weights

    old = rewrite(tiny, tmp_path / "old", old_names)
    assert any(name.endswith("weight_g") for name in load_file(old / WEIGHTS))
    before, after = (load_codec(read_checkpoint(folder), CPU).state_dict() for folder in (tiny, old))
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


def test_sharded_checkpoints_load(tiny: Path, tmp_path: Path, wholes: Callable[[str], Any]) -> None:
    folder = tmp_path / "sharded"
    wholes("text").save_pretrained(folder, max_shard_size="200KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    checkpoint, original = read_checkpoint(folder), read_checkpoint(tiny)
    pairs = [
        (load_text_encoder(checkpoint, CPU), load_text_encoder(original, CPU)),
        (load_codec(checkpoint, CPU), load_codec(original, CPU)),
        (language_model(folder), language_model(tiny)),
    ]
    for sharded, single in pairs:
        for name, weight in single.state_dict().items():
            assert torch.equal(sharded.state_dict()[name], weight), name


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("decoder.model.decoder.layers.1.fc1", "lacks weights of its decoder.*layers.1.fc1"),
        ("enc_to_dec_proj.weight", "lacks weights of its decoder.*enc_to_dec_proj"),
        ("text_encoder.encoder.block.1", "lacks weights of its text_encoder.*encoder.block.1"),
        ("audio_encoder.decoder.layers.0.conv.bias", "lacks weights of its audio_encoder.*conv.bias"),
    ],
)
def test_a_checkpoint_that_lacks_weights_is_refused(lost: str, message: str, tiny: Path, tmp_path: Path) -> None:
    torn = rewrite(tiny, tmp_path / "torn", lambda weights: {k: v for k, v in weights.items() if not k.startswith(lost)})
    checkpoint = read_checkpoint(torn)
    with pytest.raises(UserError, match=message):
        if lost.startswith("text_encoder"):
            load_text_encoder(checkpoint, CPU)
        elif lost.startswith("audio_encoder"):
            load_codec(checkpoint, CPU)
        else:
            load_language_model(checkpoint, torch.float32, CPU)


def test_a_language_model_asked_for_with_its_text_encoder_needs_those_weights(tiny: Path, tmp_path: Path) -> None:
    def without(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: weight for name, weight in weights.items() if not name.startswith("text_encoder.")}

    torn = rewrite(tiny, tmp_path / "torn", without)
    assert language_model(torn) is not None  # with cached states nobody misses them
    with pytest.raises(UserError, match=r"lacks weights.*text_encoder"):
        language_model(torn, with_text_encoder=True)


# What is read from the configuration


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_derived(kind: str, checkpoints: Folders) -> None:
    checkpoint = read_checkpoint(checkpoints(kind))
    channels = KINDS[kind][1]
    assert (checkpoint.pad_token_id, checkpoint.start_token_id) == (64, 64)
    assert (checkpoint.sampling_rate, checkpoint.hop_length, checkpoint.frame_rate) == (16_000, 320, 50.0)
    assert (checkpoint.codebooks, checkpoint.audio_channels, checkpoint.codebook_size) == (4 * channels, channels, 64)
    assert checkpoint.delay == delays(4 * channels, channels)
    assert checkpoint.is_melody == ("melody" in kind)
    assert checkpoint.is_local


@pytest.mark.parametrize("lost", [(), ("pad_token_id",), ("bos_token_id",), ("pad_token_id", "bos_token_id")])
def test_ids_that_a_configuration_lacks_are_derived(lost: tuple[str, ...], tiny: Path, tmp_path: Path) -> None:
    """A file written by transformers 5 has no `decoder_start_token_id`."""

    def lose(config: dict[str, Any]) -> None:
        assert "decoder_start_token_id" not in config["decoder"]
        for name in lost:
            config["decoder"][name] = None

    checkpoint = read_checkpoint(rewrite_config(tiny, tmp_path / "base", lose))
    assert (checkpoint.pad_token_id, checkpoint.start_token_id) == (64, 64)
    assert checkpoint.config.decoder.pad_token_id == checkpoint.config.decoder.decoder_start_token_id == 64


def test_ids_can_be_overridden(tiny: Path) -> None:
    checkpoint = load_checkpoint(Source(str(tiny)), pad_token_id=3, start_token_id=5)
    assert (checkpoint.pad_token_id, checkpoint.start_token_id) == (3, 5)


def test_another_kind_of_model_is_refused_by_its_name(tmp_path: Path) -> None:
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is a 'bert' model, not MusicGen; .*facebook/musicgen-small"):
        load_checkpoint(Source(str(tmp_path)))


@pytest.mark.parametrize("name", ["no/such/folder", "/no/such/folder"])
def test_a_missing_folder_is_told_in_one_line(name: str) -> None:
    with pytest.raises(UserError, match=f"^no model at '{name}' .*config.json") as caught:
        load_checkpoint(Source(name))
    assert "\n" not in str(caught.value)


# What is computed


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_transformers_own(kind: str, checkpoints: Folders, wholes: Callable[[str], Any]) -> None:
    """In a padded batch here, each clip alone there: transformers lets melody codes move behind padding."""
    folder = checkpoints(kind)
    checkpoint, model, whole = read_checkpoint(folder), language_model(folder), wholes(kind)
    codes = torch.randint(0, checkpoint.codebook_size, (3, checkpoint.codebooks, 12))
    ids, mask = text.tokenize(load_tokenizer(checkpoint), CAPTIONS)
    with torch.no_grad():
        states = whole.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        conditioning = model.condition(states, mask, torch.ones(3, dtype=torch.bool))
        logits = model.logits(model.hidden_states(codes, conditioning))
        for clip, length in enumerate(mask.sum(-1).tolist()):
            theirs = whole(
                input_ids=ids[[clip], :length], attention_mask=mask[[clip], :length], decoder_input_ids=codes[clip]
            ).logits
            assert torch.allclose(logits[clip], theirs[:, -12:], atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_from_the_cache_equals_that_of_the_whole_model(
    kind: str, checkpoints: Folders, wholes: Callable[[str], Any]
) -> None:
    """Waveform and caption through live EnCodec and T5 there, through `codec.encode` and fp16 states here."""
    folder = checkpoints(kind)
    checkpoint, model, whole = read_checkpoint(folder), language_model(folder), wholes(kind)
    wave = torch.from_numpy(tone_song(1.0, 5, channels=checkpoint.audio_channels))[None]
    codes = codec.encode(load_codec(checkpoint, CPU), wave, checkpoint)
    inputs, labels = training_steps(codes[0], checkpoint.delay, checkpoint.start_token_id)
    cached = {"codes": inputs, "labels": labels, "text_states": states_of(folder)[CAPTIONS[1]], "keep_caption": True}
    nll, count = sums(model, checkpoint, [cached])

    with torch.no_grad():
        sides = [whole.audio_encoder.encode(side[None, None]).audio_codes[0, 0] for side in wave[0]]
        live = torch.stack(sides, dim=1).flatten(0, 1)
        assert torch.equal(live, codes[0])
        ids, mask = text.tokenize(load_tokenizer(checkpoint), [CAPTIONS[1]])
        theirs = whole(input_ids=ids, attention_mask=mask, labels=labels.T[None])
    # the fp16 states differ by 2^-11 of their size, which is up to 4 here
    assert (nll / count).mean().item() == pytest.approx(theirs.loss.item(), abs=2e-3)

    exact = dict(zip(("input_ids", "text_mask"), (ids, mask), strict=True))
    with torch.no_grad():
        own = language_model(folder, with_text_encoder=True)(
            codes=inputs[None], labels=labels[None], keep_caption=torch.tensor([True]), **exact
        )
    assert (own.nll / own.count).mean().item() == pytest.approx(theirs.loss.item(), abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_is_audiocrafts_and_transformers_counts_the_tail_too(
    kind: str, checkpoints: Folders, wholes: Callable[[str], Any]
) -> None:
    """transformers also asks for the last frames of delayed codebooks, which come after the last valid step."""
    folder = checkpoints(kind)
    checkpoint, model, whole = read_checkpoint(folder), language_model(folder), wholes(kind)
    frames, delay = 9, checkpoint.delay
    codes = torch.randint(0, checkpoint.codebook_size, (1, checkpoint.codebooks, frames))
    states = torch.from_numpy(states_of(folder)["punk"]).float()[None]
    mask, keep = torch.ones(states.shape[:2], dtype=torch.long), torch.ones(1, dtype=torch.bool)

    def loss(inputs: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            outputs = model(codes=inputs, labels=labels, text_mask=mask, keep_caption=keep, text_states=states)
        return outputs.nll, outputs.count

    inputs, labels = training_steps(codes, delay, checkpoint.start_token_id)
    nll, count = loss(inputs, labels)
    assert count.tolist() == [[frames - shift for shift in delay]]
    with torch.no_grad():
        logits = model.logits(model.hidden_states(inputs, model.condition(states, mask, keep)))
    assert (nll / count).mean().item() == pytest.approx(audiocrafts_loss(logits, labels).item(), abs=1e-5)

    # all T + max(delay) steps, as transformers' own labels have them
    long_labels = apply_delay(codes, delay, IGNORED)
    targets = long_labels.masked_fill(long_labels == IGNORED, checkpoint.start_token_id)
    long_inputs = functional.pad(targets[..., :-1], (1, 0), value=checkpoint.start_token_id)
    only_tail = long_labels.clone()
    only_tail[..., :frames] = IGNORED
    tail, _ = loss(long_inputs, only_tail)
    ids, id_mask = text.tokenize(load_tokenizer(checkpoint), ["punk"])
    with torch.no_grad():
        theirs = whole(input_ids=ids, attention_mask=id_mask, labels=targets.transpose(1, 2))
    assert theirs.loss.item() == pytest.approx(((nll + tail) / frames).mean().item(), abs=2e-3)  # fp16 states
    assert theirs.loss.item() != pytest.approx((nll / count).mean().item(), abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_has_the_same_loss_alone_and_in_any_company(kind: str, checkpoints: Folders) -> None:
    folder = checkpoints(kind)
    checkpoint, model, states = read_checkpoint(folder), language_model(folder), states_of(folder)
    pieces = [
        piece(checkpoint, states[caption], frames, seed=frames)
        for caption, frames in zip(CAPTIONS, (12, 7, 20), strict=True)
    ]
    together, counts = sums(model, checkpoint, pieces)
    for number, alone in enumerate(pieces):
        nll, count = sums(model, checkpoint, [alone])
        assert torch.allclose(nll[0], together[number], atol=2e-4)  # sums of up to 20 terms of about 4
        assert torch.equal(count[0], counts[number])
    backwards, _ = sums(model, checkpoint, pieces[::-1])
    assert torch.allclose(backwards.flip(0), together, atol=2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_has_the_same_gradients_alone_and_in_company(kind: str, checkpoints: Folders) -> None:
    folder = checkpoints(kind)
    checkpoint, model, states = read_checkpoint(folder), language_model(folder), states_of(folder)
    pieces = [piece(checkpoint, states[caption], 8, seed) for seed, caption in enumerate(CAPTIONS[:2])]

    def gradients(batches: list[list[dict[str, Any]]]) -> torch.Tensor:
        model.zero_grad()
        for batch in batches:
            model(**Collator(checkpoint.pad_token_id)(batch)).nll.sum().backward()
        found = [weight.grad for weight in model.parameters()]
        assert all(gradient is not None for gradient in found)
        return torch.cat([gradient.flatten() for gradient in found if gradient is not None])

    together, apart = gradients([pieces]), gradients([[alone] for alone in pieces])
    assert torch.allclose(together, apart, atol=1e-4 * together.abs().max().item())


# The null condition


@pytest.mark.parametrize("kind", KINDS)
def test_a_dropped_caption_is_not_heard(kind: str, checkpoints: Folders) -> None:
    """Of a melody model's dropped caption the length remains: its places stand before the codes, as in `generate`."""
    folder = checkpoints(kind)
    captions = ("punk band", "jazz trio") if "melody" in kind else CAPTIONS[:2]
    checkpoint, model, states = read_checkpoint(folder), language_model(folder), states_of(folder, captions)
    first, second = (states[caption] for caption in captions)

    def nll(caption: np.ndarray, keep: bool) -> torch.Tensor:
        return sums(model, checkpoint, [piece(checkpoint, caption, 10, keep=keep)])[0]

    assert torch.isfinite(nll(first, False)).all()
    assert torch.allclose(nll(first, False), nll(second, False), atol=1e-4)
    assert not torch.allclose(nll(first, True), nll(second, True), atol=1e-2)
    assert not torch.allclose(nll(first, True), nll(first, False), atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_null_condition_is_transformers_own(
    kind: str, checkpoints: Folders, wholes: Callable[[str], Any]
) -> None:
    folder = checkpoints(kind)
    checkpoint, model, whole = read_checkpoint(folder), language_model(folder), wholes(kind)
    dropped = piece(checkpoint, states_of(folder)["punk"], 10, keep=False)
    nll, count = sums(model, checkpoint, [dropped])
    ids, mask = text.tokenize(load_tokenizer(checkpoint), ["punk"])
    with torch.no_grad():
        theirs = whole(input_ids=ids, attention_mask=torch.zeros_like(mask), labels=dropped["labels"].T[None])
    assert (nll / count).mean().item() == pytest.approx(theirs.loss.item(), abs=1e-5)


def test_dropping_one_caption_leaves_its_neighbour_alone(tiny: Path) -> None:
    checkpoint, model, states = read_checkpoint(tiny), language_model(tiny), states_of(tiny)
    kept, dropped = (piece(checkpoint, states["punk"], 10, keep=keep) for keep in (True, False))
    nll, _ = sums(model, checkpoint, [kept, dropped])
    assert torch.allclose(nll[0], sums(model, checkpoint, [kept])[0][0], atol=1e-4)
    assert torch.allclose(nll[1], sums(model, checkpoint, [dropped])[0][0], atol=1e-4)
