"""The language model is transformers' own: its parts, its logits and, on the valid steps, its loss."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from musicgen_dreamboothing.hub import Source
from musicgen_dreamboothing.model import codec, text, weight_files
from musicgen_dreamboothing.model.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_codec,
    load_text_encoder,
    load_tokenizer,
)
from musicgen_dreamboothing.model.delay import IGNORED, apply_delay, delays, training_steps
from musicgen_dreamboothing.model.language_model import MelodyLM, TextLM
from musicgen_dreamboothing.model.loading import load_language_model
from musicgen_dreamboothing.training.collator import Collator

CPU = torch.device("cpu")
CAPTIONS = ("punk", "a slow tune over loud guitars, then drums", "80s punk and pop track")
WEIGHTS = "model.safetensors"

Folders = Callable[[str], Path]
LM = TextLM | MelodyLM


@dataclass(frozen=True)
class Loaded:
    """A checkpoint's parts through our loaders, and `whole`: all of it in transformers' own class."""

    checkpoint: Checkpoint
    model: LM
    text_encoder: Any
    codec: Any
    tokenizer: Any
    whole: Any

    def states(self, captions: Sequence[str] = CAPTIONS) -> dict[str, np.ndarray]:
        return dict(text.encode_captions(self.tokenizer, self.text_encoder, captions))


Load = Callable[[str], Loaded]


@pytest.fixture(scope="module")
def loaded(checkpoints: Folders) -> Load:
    """Loads a kind once."""
    made: dict[str, Loaded] = {}

    def get(kind: str) -> Loaded:
        if kind not in made:
            checkpoint = read_checkpoint(checkpoints(kind))
            whole = checkpoint.model_class.from_pretrained(checkpoint.name, config=checkpoint.config)
            made[kind] = Loaded(
                checkpoint,
                language_model(checkpoints(kind)),
                load_text_encoder(checkpoint, CPU),
                load_codec(checkpoint, CPU),
                load_tokenizer(checkpoint),
                whole.eval().requires_grad_(False),
            )
        return made[kind]

    return get


def language_model(folder: Path, **options: Any) -> LM:
    return load_language_model(read_checkpoint(folder), torch.float32, CPU, **options)


def language_model_of(checkpoint: Checkpoint, device: torch.device) -> LM:
    return load_language_model(checkpoint, torch.float32, device)


def random_codes(base: Loaded, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, base.checkpoint.codebook_size, shape, generator=torch.Generator().manual_seed(seed))


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


def piece(base: Loaded, states: np.ndarray, frames: int, seed: int = 0, keep: bool = True) -> dict[str, Any]:
    """What `ClipDataset` gives, with random codes."""
    codes = random_codes(base, base.checkpoint.codebooks, frames, seed=seed)
    inputs, labels = training_steps(codes, base.checkpoint.delay, base.checkpoint.start_token_id)
    return {"codes": inputs, "labels": labels, "text_states": states, "keep_caption": keep}


def sums(base: Loaded, pieces: list[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed cross-entropy and count of each piece and codebook, without gradients."""
    with torch.no_grad():
        outputs = base.model(**Collator(base.checkpoint.pad_token_id)(pieces))
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
def test_each_part_equals_that_of_the_composite_model(kind: str, loaded: Load) -> None:
    base = loaded(kind)
    parts = {"text_encoder.": base.text_encoder, "audio_encoder.": base.codec, "": base.model}
    ours = {prefix + name: weight for prefix, part in parts.items() for name, weight in part.state_dict().items()}
    theirs = base.whole.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize(
    ("dtype", "quantization", "backend"),
    [
        (torch.float32, "none", "mmap"),
        (torch.bfloat16, "none", "pread"),
        (torch.float32, "nf4", "pread"),
        (torch.bfloat16, "int8", "pread"),
    ],
)
def test_files_are_mapped_if_weights_are_not_converted(
    dtype: torch.dtype, quantization: str, backend: str, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where weights change on their way, mapped pages would stay beside them until the last one is there."""
    if quantization != "none":
        pytest.importorskip("bitsandbytes")
    usual, opened = weight_files.safe_open, []

    def noting(*file: Any, **options: Any) -> Any:
        opened.append(options["backend"])
        return usual(*file, **options)

    monkeypatch.setattr(weight_files, "safe_open", noting)
    load_language_model(read_checkpoint(tiny), dtype, torch.device("cpu"), quantization=quantization)
    assert opened == [backend]


@pytest.mark.parametrize("kind", ["text", "melody-stereo"])
def test_encoders_that_are_not_used_are_not_in_memory(kind: str, checkpoints: Folders) -> None:
    alone = {name.split(".")[0] for name, _ in language_model(checkpoints(kind)).named_parameters()}
    assert alone == {"decoder", "enc_to_dec_proj"} | ({"audio_enc_to_dec_proj"} if "melody" in kind else set())
    with_text = language_model(checkpoints(kind), with_text_encoder=True)
    assert {name.split(".")[0] for name, _ in with_text.named_parameters()} == alone | {"text_encoder"}


@pytest.mark.parametrize("kind", ["text", "melody"])
def test_a_trained_text_encoder_equals_that_of_the_composite_model(
    kind: str, checkpoints: Folders, loaded: Load
) -> None:
    model = language_model(checkpoints(kind), with_text_encoder=True)
    for name, weight in loaded(kind).whole.text_encoder.state_dict().items():
        assert torch.equal(model.text_encoder.state_dict()[name], weight), name


def test_encoders_are_frozen_and_the_decoder_has_no_dropout(loaded: Load) -> None:
    for part in (loaded("text").text_encoder, loaded("text").codec):
        assert not part.training
        assert not any(parameter.requires_grad for parameter in part.parameters())
    decoder = loaded("text").model.config.decoder
    assert (decoder.dropout, decoder.attention_dropout, decoder.activation_dropout) == (0, 0, 0)


def test_old_names_of_weight_norm_load_right(tiny: Path, tmp_path: Path, loaded: Load) -> None:
    """The published checkpoints were written when torch called them `weight_g` and `weight_v`."""

    def old_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        new = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
        for now, before in new.items():
            weights = {name.replace(now, before): weight for name, weight in weights.items()}
        return weights

    old = rewrite(tiny, tmp_path / "old", old_names)
    assert any(name.endswith("weight_g") for name in load_file(old / WEIGHTS))
    before, after = loaded("text").codec.state_dict(), load_codec(read_checkpoint(old), CPU).state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


def test_sharded_checkpoints_load(tmp_path: Path, loaded: Load) -> None:
    single = loaded("text")
    single.whole.save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    checkpoint = read_checkpoint(tmp_path)
    pairs = [
        (load_text_encoder(checkpoint, CPU), single.text_encoder),
        (load_codec(checkpoint, CPU), single.codec),
        (language_model(tmp_path), single.model),
    ]
    for sharded, expected in pairs:
        for name, weight in expected.state_dict().items():
            assert torch.equal(sharded.state_dict()[name], weight), name


@pytest.mark.parametrize(
    ("load", "part", "lost"),
    [
        (load_text_encoder, "text_encoder", "encoder.block.1.layer.0.SelfAttention.q.weight"),
        (load_codec, "audio_encoder", "decoder.layers.0.conv.bias"),
        (language_model_of, "decoder", "model.decoder.layers.1.fc1.weight"),
        (language_model_of, "enc_to_dec_proj", "weight"),
    ],
)
def test_a_checkpoint_that_lacks_weights_is_refused(
    load: Callable[[Checkpoint, torch.device], Any], part: str, lost: str, tiny: Path, tmp_path: Path
) -> None:
    def without(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        assert weights.pop(f"{part}.{lost}") is not None
        return weights

    checkpoint = read_checkpoint(rewrite(tiny, tmp_path / "torn", without))
    with pytest.raises(UserError, match=f"lacks weights.*{part}.*{lost}"):
        load(checkpoint, CPU)


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
    with pytest.raises(UserError, match=r"is a 'bert' model, not MusicGen; .*facebook/musicgen-small"):
        load_checkpoint(Source(str(tmp_path)))


@pytest.mark.parametrize("name", ["no/such/folder", "/no/such/folder"])
def test_a_missing_folder_is_an_error_of_one_line(name: str) -> None:
    with pytest.raises(UserError, match=f"^no model at '{name}' .*config.json") as caught:
        load_checkpoint(Source(name))
    assert "\n" not in str(caught.value)


# What is computed


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_transformers_own(kind: str, loaded: Load) -> None:
    """In a padded batch here, each clip alone there: transformers lets melody codes move behind padding."""
    base = loaded(kind)
    codes = random_codes(base, 3, base.checkpoint.codebooks, 12)
    ids, mask = text.tokenize(base.tokenizer, CAPTIONS)
    with torch.no_grad():
        states = base.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        conditioning = base.model.condition(states, mask, torch.ones(3, dtype=torch.bool))
        logits = base.model.logits(base.model.hidden_states(codes, conditioning))
        for clip, length in enumerate(mask.sum(-1).tolist()):
            theirs = base.whole(
                input_ids=ids[[clip], :length], attention_mask=mask[[clip], :length], decoder_input_ids=codes[clip]
            ).logits
            assert torch.allclose(logits[clip], theirs[:, -12:], atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_with_cached_states_equals_that_with_the_encoder(
    kind: str, checkpoints: Folders, loaded: Load
) -> None:
    """Waveform and caption through live EnCodec and T5 there, through `codec.encode` and stored states here."""
    base, caption = loaded(kind), CAPTIONS[1]
    wave = torch.from_numpy(tone_song(0.5, 5, channels=base.checkpoint.audio_channels))[None]
    codes = codec.encode(base.codec, wave, base.checkpoint)
    inputs, labels = training_steps(codes[0], base.checkpoint.delay, base.checkpoint.start_token_id)
    states = base.states()[caption].astype(np.float16)  # as `prepare` stores them
    nll, count = sums(base, [{"codes": inputs, "labels": labels, "text_states": states, "keep_caption": True}])

    with torch.no_grad():
        sides = [base.whole.audio_encoder.encode(side[None, None]).audio_codes[0, 0] for side in wave[0]]
        assert torch.equal(torch.stack(sides, dim=1).flatten(0, 1), codes[0])
        ids, mask = text.tokenize(base.tokenizer, [caption])
        theirs = base.whole(input_ids=ids, attention_mask=mask, labels=labels.T[None]).loss.item()
        live = language_model(checkpoints(kind), with_text_encoder=True)(
            codes=inputs[None], labels=labels[None], keep_caption=torch.tensor([True]), input_ids=ids, text_mask=mask
        )
    assert (live.nll / live.count).mean().item() == pytest.approx(theirs, abs=1e-5)
    # fp16 keeps 11 bits: states of up to 4 move by up to 0.001, and the loss by less
    assert (nll / count).mean().item() == pytest.approx(theirs, abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_is_audiocrafts_and_transformers_counts_the_tail_too(kind: str, loaded: Load) -> None:
    """transformers also asks for the last frames of delayed codebooks, which come after the last valid step."""
    base, frames = loaded(kind), 9
    delay, start = base.checkpoint.delay, base.checkpoint.start_token_id
    codes = random_codes(base, 1, base.checkpoint.codebooks, frames)
    states = torch.from_numpy(base.states()["punk"])[None]
    mask, keep = torch.ones(states.shape[:2], dtype=torch.long), torch.ones(1, dtype=torch.bool)

    def loss(inputs: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            outputs = base.model(codes=inputs, labels=labels, text_mask=mask, keep_caption=keep, text_states=states)
        return outputs.nll, outputs.count

    inputs, labels = training_steps(codes, delay, start)
    nll, count = loss(inputs, labels)
    assert count.tolist() == [[frames - shift for shift in delay]]
    with torch.no_grad():
        logits = base.model.logits(base.model.hidden_states(inputs, base.model.condition(states, mask, keep)))
    assert (nll / count).mean().item() == pytest.approx(audiocrafts_loss(logits, labels).item(), abs=1e-5)

    # all T + max(delay) steps, as transformers' own labels have them
    all_labels = apply_delay(codes, delay, IGNORED)
    targets = all_labels.masked_fill(all_labels == IGNORED, start)
    only_tail = torch.cat([torch.full_like(labels, IGNORED), all_labels[..., frames:]], dim=-1)
    tail, _ = loss(functional.pad(targets[..., :-1], (1, 0), value=start), only_tail)
    ids, id_mask = text.tokenize(base.tokenizer, ["punk"])
    with torch.no_grad():
        theirs = base.whole(input_ids=ids, attention_mask=id_mask, labels=targets.transpose(1, 2)).loss.item()
    assert theirs == pytest.approx(((nll + tail) / frames).mean().item(), abs=1e-5)
    assert theirs != pytest.approx((nll / count).mean().item(), abs=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_a_clip_does_not_depend_on_its_batch(kind: str, loaded: Load) -> None:
    base = loaded(kind)
    states = base.states()
    pieces = [
        piece(base, states[caption], frames, seed=frames) for caption, frames in zip(CAPTIONS, (12, 7, 20), strict=True)
    ]
    together, counts = sums(base, pieces)
    for number, alone in enumerate(pieces):
        nll, count = sums(base, [alone])
        assert torch.allclose(nll[0], together[number], atol=2e-4)  # sums of up to 20 terms of about 4
        assert torch.equal(count[0], counts[number])
    backwards, _ = sums(base, pieces[::-1])
    assert torch.allclose(backwards.flip(0), together, atol=2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradients_of_a_clip_do_not_depend_on_its_batch(kind: str, loaded: Load) -> None:
    base = loaded(kind)
    states = base.states()
    pieces = [piece(base, states[caption], 8, seed) for seed, caption in enumerate(CAPTIONS[:2])]
    weights = list(base.model.parameters())

    def gradients(batch: list[dict[str, Any]]) -> torch.Tensor:
        nll = base.model(**Collator(base.checkpoint.pad_token_id)(batch)).nll
        return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(nll.sum(), weights)])

    together, summed = gradients(pieces), sum(gradients([alone]) for alone in pieces)
    assert torch.allclose(together, summed, atol=1e-4 * together.abs().max().item())


# The null condition


@pytest.mark.parametrize("kind", KINDS)
def test_a_dropped_caption_has_no_effect(kind: str, loaded: Load) -> None:
    """Of a melody model's dropped caption the length remains: its places stand before the codes, as in `generate`."""
    base = loaded(kind)
    captions = ("punk band", "jazz trio") if "melody" in kind else CAPTIONS[:2]
    states = base.states(captions)

    def nll(caption: str, keep: bool) -> torch.Tensor:
        return sums(base, [piece(base, states[caption], 10, keep=keep)])[0]

    dropped, other = (nll(caption, False) for caption in captions)
    assert torch.isfinite(dropped).all()
    assert torch.allclose(dropped, other, atol=1e-4)
    assert not torch.allclose(nll(captions[0], True), nll(captions[1], True), atol=1e-2)
    assert not torch.allclose(nll(captions[0], True), dropped, atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_null_condition_is_transformers_own(kind: str, loaded: Load) -> None:
    base = loaded(kind)
    dropped = piece(base, base.states()["punk"], 10, keep=False)
    nll, count = sums(base, [dropped])
    ids, mask = text.tokenize(base.tokenizer, ["punk"])
    with torch.no_grad():
        theirs = base.whole(input_ids=ids, attention_mask=torch.zeros_like(mask), labels=dropped["labels"].T[None])
    assert (nll / count).mean().item() == pytest.approx(theirs.loss.item(), abs=1e-5)


@pytest.mark.parametrize("kind", ["text", "melody"])
def test_dropping_a_caption_does_not_change_other_clips(kind: str, loaded: Load) -> None:
    base = loaded(kind)
    kept, dropped = (piece(base, base.states()["punk"], 10, keep=keep) for keep in (True, False))
    nll, _ = sums(base, [kept, dropped])
    assert torch.allclose(nll[0], sums(base, [kept])[0][0], atol=1e-4)
    assert torch.allclose(nll[1], sums(base, [dropped])[0][0], atol=1e-4)
