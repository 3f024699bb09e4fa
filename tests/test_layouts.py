"""Published checkpoints load as they are, and what cannot be loaded is refused in one line."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Ran, prepare_words, train_words
from layouts import COMMIT, VALUES, Layout, mixed_layouts, write_layout
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForTextToWaveform, AutoTokenizer

from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.hub import Source, weights_fingerprint
from musicgen_dreamboothing.model import codec, text, weight_files
from musicgen_dreamboothing.model.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_codec,
    load_text_encoder,
    load_tokenizer,
    load_whole,
    save_processor,
)
from musicgen_dreamboothing.model.loading import load_language_model

Cli = Callable[..., Ran]
Folders = Callable[[str], Path]
CPU = torch.device("cpu")
CAPTIONS = ["80s punk, loud drums!", "a slow piano"]
MIXED = list(mixed_layouts(12))


def open_layout(layout: Layout, reference: Path, root: Path) -> Checkpoint:
    name, cache = write_layout(layout, reference, root)
    return load_checkpoint(Source(name, cache_dir=None if cache is None else str(cache)))


def outputs(checkpoint: Checkpoint, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """What each part of a checkpoint computes."""
    ids, mask = text.tokenize(load_tokenizer(checkpoint), CAPTIONS)
    encoder = load_text_encoder(checkpoint, CPU)
    model = load_language_model(checkpoint, dtype, CPU)
    generator = torch.Generator().manual_seed(0)
    waves = torch.randn(2, checkpoint.audio_channels, checkpoint.sampling_rate // 5, generator=generator)
    codes = codec.encode(load_codec(checkpoint, CPU), waves, checkpoint)
    with torch.inference_mode():
        states = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        keep = torch.ones(len(ids), dtype=torch.bool)
        logits = model.logits(model.states(codes.long(), mask, keep, states))
    return {"ids": ids, "states": states, "codes": codes, "logits": logits}


def test_the_layouts_cover_all_values() -> None:
    for name, values in VALUES.items():
        assert {getattr(layout, name) for layout in MIXED} == set(values)


@pytest.mark.parametrize("layout", MIXED, ids=lambda layout: layout.label)
def test_every_layout_gives_the_same_numbers(layout: Layout, checkpoints: Folders, tmp_path: Path) -> None:
    """And the same hashes: of two bases with one codec and text encoder, each uses the caches of the other."""
    reference = checkpoints(layout.kind)
    checkpoint = open_layout(layout, reference, tmp_path / "layout")
    plain = open_layout(Layout(kind=layout.kind, dtype=layout.dtype), reference, tmp_path / "plain")
    dtype = torch.bfloat16 if MIXED.index(layout) % 2 else torch.float32
    expected = outputs(plain, dtype)
    fresh = open_layout(layout, reference, tmp_path / "fresh")  # loading changes configurations
    for name, values in outputs(checkpoint, dtype).items():
        assert torch.equal(values, expected[name]), name
    assert checkpoint.codec_hash == fresh.codec_hash
    assert checkpoint.codec_hash == plain.codec_hash
    if layout.tokenizer == "tokenizer.json":  # others have more words
        assert checkpoint.text_hash == plain.text_hash


@pytest.mark.parametrize(
    ("change", "hashes"),
    [
        ("decoder.lm_heads.0.weight", set()),
        ("audio_encoder.quantizer.layers.2.codebook.embed", {"codec"}),
        ("text_encoder.shared.weight", {"text"}),
        ("sampling_rate", {"codec"}),
        ("num_heads", {"text"}),
        ("tokenizer", {"text"}),
        ("dtype", {"codec", "text"}),
    ],
)
def test_caches_depend_on_the_part_that_made_them(
    change: str, hashes: set[str], checkpoints: Folders, tmp_path: Path
) -> None:
    folder = shutil.copytree(checkpoints("text"), tmp_path / "base")
    before = load_checkpoint(Source(str(folder)))
    known = {"codec": before.codec_hash, "text": before.text_hash}
    weights = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    if change in weights:
        weights[change].view(-1)[-1] += 1
    elif change == "dtype":
        weights = {name: weight.half() for name, weight in weights.items()}
    elif change == "tokenizer":
        path = folder / "tokenizer.json"
        path.write_text(path.read_text().replace('"z"', '"zz"'))
    else:
        part = "audio_encoder" if change == "sampling_rate" else "text_encoder"
        config[part][change] *= 2
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    after = load_checkpoint(Source(str(folder)))
    assert {name for name, value in known.items() if getattr(after, f"{name}_hash") != value} == hashes


# What is refused


class Program:
    """Unpickled, it would run a program."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


Spoil = Callable[[Path], object]


def truncated(name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return spoil


def removed(name: str) -> Spoil:
    return lambda folder: (folder / name).unlink()


def written(name: str, content: bytes) -> Spoil:
    return lambda folder: (folder / name).write_bytes(content)


def pickled(content: object, name: str = "pytorch_model.bin", **options: Any) -> Spoil:
    return lambda folder: torch.save(content, folder / name, **options)


def with_program(save: Callable[[Program, Path], object]) -> Spoil:
    return lambda folder: save(Program(folder / "executed"), folder / PICKLED)


def only(*names: str) -> Spoil:
    def spoil(folder: Path) -> None:
        for path in list(folder.iterdir()):
            path.unlink()
        for name in names:
            (folder / name).write_bytes(b"content")

    return spoil


def renamed_keys(old: str, new: str) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / WEIGHTS
        save_file({name.replace(old, new): weight for name, weight in load_file(path).items()}, path)

    return spoil


def config(part: str | None = None, **changes: object) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / "config.json"
        content = json.loads(path.read_text())
        (content if part is None else content[part]).update(changes)
        path.write_text(json.dumps(content))

    return spoil


SHARDED, SHARDED_BIN, BIN = Layout(weights="safetensors shards"), Layout(weights="bin shards"), Layout(weights="bin")
PLAIN, BIN_2019, SPIECE = Layout(), Layout(weights="bin of 2019"), Layout(tokenizer="spiece.model")
WEIGHTS, PICKLED, INDEX = "model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"
SHARD, SHARD_BIN = "model-00002-of-00003.safetensors", "pytorch_model-00002-of-00003.bin"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"
SYSTEM = r"pytorch_model.bin is refused: .*asks for (os|posix|nt).system"
MORE = "something else than a dictionary"
ANY = {"decoder.lm_heads.0.weight": torch.ones(2)}
# What people point at: the layout, what is wrong with it, and the message.
UNUSABLE: dict[str, tuple[Layout, Spoil, str]] = {
    "a program": (BIN, with_program(lambda it, path: torch.save(ANY | {"z": it}, path)), SYSTEM),
    "a program in 2019": (
        BIN,
        with_program(lambda it, path: torch.save(ANY | {"z": it}, path, _use_new_zipfile_serialization=False)),
        SYSTEM,
    ),
    "a shard with a program": (
        SHARDED_BIN,
        with_program(lambda it, path: torch.save([it], path.with_name(SHARD_BIN))),
        rf"{SHARD_BIN} is refused: .*system",
    ),
    "a program in a plain pickle": (BIN, with_program(lambda it, path: path.write_bytes(pickle.dumps([it]))), SYSTEM),
    "a program in a newer protocol": (
        BIN,
        with_program(lambda it, path: torch.save([it], path, pickle_protocol=4)),
        SYSTEM,
    ),
    "an old protocol": (BIN, written(PICKLED, b"(S'true'\nios\nsystem\n."), "is refused: it asks for os.system"),
    "a web page": (BIN, written(PICKLED, b"<!doctype html>"), f"{PICKLED} is damaged"),
    "no dictionary": (BIN, pickled([torch.ones(2)]), MORE),
    "nested": (BIN, pickled({"model": {}}), MORE),
    "missing shard": (SHARDED, removed(SHARD), f"lacks {SHARD}, which .* names"),
    "missing .bin shard": (SHARDED_BIN, removed(SHARD_BIN), f"lacks {SHARD_BIN}, which .* names"),
    "truncated shard": (SHARDED, truncated(SHARD), f"{SHARD} is damaged .*download it again"),
    "truncated .bin shard": (SHARDED_BIN, truncated(SHARD_BIN), f"{SHARD_BIN} is damaged .*download it again"),
    "truncated .bin of 2019": (BIN_2019, truncated(PICKLED), f"{PICKLED} is damaged"),
    "empty file": (BIN, written(PICKLED, b""), "is damaged"),
    "LFS pointer": (PLAIN, written(WEIGHTS, LFS), "Git LFS pointer .*`git lfs pull`"),
    "no index": (SHARDED_BIN, removed(f"{PICKLED}.index.json"), "shards without their index"),
    "broken index": (SHARDED, truncated(INDEX), "is not the index .*download it again"),
    "index without weights": (SHARDED, written(INDEX, b'{"weight_map": {}}'), "not the index"),
    "index that leaves": (SHARDED, written(INDEX, b'{"weight_map": {"a": "../a.bin"}}'), "not the index"),
    "dangling link": (
        Layout(place="snapshot"),
        lambda folder: (folder / WEIGHTS).resolve().unlink(),
        "has no weights .*model.safetensors is a link to a file that is not there; download it again",
    ),
    "no configuration": (PLAIN, removed("config.json"), "no model at .*; give a folder with a config.json"),
    "no weights": (PLAIN, removed(WEIGHTS), "has no weights"),
    "variant": (
        PLAIN,
        lambda folder: (folder / WEIGHTS).rename(folder / "model.fp16.safetensors"),
        "has no weights .*it has model.fp16.safetensors",
    ),
    "audiocraft": (
        PLAIN,
        only("state_dict.bin", "compression_state_dict.bin"),
        "state_dict.bin is in audiocraft's own format",
    ),
    "GGUF": (PLAIN, only("musicgen-Q4.gguf"), "GGUF files cannot be trained on"),
    "adapter": (PLAIN, only("adapter_config.json"), "is an adapter, not a base checkpoint"),
    "T5 alone": (PLAIN, config(model_type="t5"), "is a 't5' model, not MusicGen"),
    "EnCodec alone": (PLAIN, config(model_type="encodec"), "is a 'encodec' model, not MusicGen"),
    "another width": (
        PLAIN,
        config("decoder", ffn_dim=100),
        r"fc1.weight has the size \[96, 48\], but its config.json asks for \[100, 48\]",
    ),
    "no text encoder": (PLAIN, renamed_keys("text_encoder.", "t5."), "holds no weights of its text_encoder"),
    "no codec": (PLAIN, renamed_keys("audio_encoder.", "encodec."), "holds no weights of its audio_encoder"),
    "no tokenizer": (PLAIN, removed("tokenizer.json"), "has no tokenizer"),
    "broken tokenizer": (PLAIN, truncated("tokenizer.json"), "tokenizer .*cannot be read"),
    "broken spiece.model": (
        SPIECE,
        written("spiece.model", b"\xff\xff"),
        "tokenizer .*cannot be read; download spiece.model",
    ),
    "broken config": (PLAIN, truncated("config.json"), "config.json is not the configuration .*JSON"),
    "wrong type": (
        PLAIN,
        config("decoder", num_codebooks="four"),
        "config.json is not the configuration of a MusicGen model .*expected int, got str",
    ),
}


def load_all_parts(folder: Path) -> None:
    checkpoint = load_checkpoint(Source(str(folder)))
    load_language_model(checkpoint, torch.bfloat16, CPU)
    load_text_encoder(checkpoint, CPU)
    load_codec(checkpoint, CPU)
    load_tokenizer(checkpoint)


@pytest.mark.parametrize("name", UNUSABLE)
def test_what_cannot_be_loaded_is_refused_in_one_line(name: str, tiny: Path, tmp_path: Path) -> None:
    layout, spoil, message = UNUSABLE[name]
    folder = Path(write_layout(layout, tiny, tmp_path)[0])
    spoil(folder)
    with pytest.raises(UserError, match=message) as error:
        load_all_parts(folder)
    assert "\n" not in str(error.value)
    assert not (folder / "executed").exists()


def test_a_file_is_not_a_folder(tiny: Path) -> None:
    with pytest.raises(UserError, match="is a file; give the folder"):
        load_checkpoint(Source(str(tiny / "model.safetensors")))


@pytest.mark.parametrize("package", ["sentencepiece", "google.protobuf"])
def test_spiece_model_names_the_extra_that_reads_it(
    package: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_layout(Layout(tokenizer="spiece.model"), tiny, tmp_path)
    usual = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else usual(name))
    with pytest.raises(UserError, match=r"spiece.model only.*pip install 'musicgen-dreamboothing\[sentencepiece\]'"):
        load_tokenizer(checkpoint)


# What tells one checkpoint from another


@pytest.mark.parametrize("weights", ["safetensors", "safetensors shards", "bin", "bin shards"])
def test_other_weights_are_another_checkpoint(weights: str, tiny: Path, tmp_path: Path) -> None:
    folder = Path(write_layout(Layout(weights=weights), tiny, tmp_path)[0])
    before = weights_fingerprint(folder)
    path = max(folder.glob("*.safetensors" if "safetensors" in weights else "*.bin"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert weights_fingerprint(folder) != before


def test_the_commit_is_that_of_the_cache_and_not_one_in_config_json(tiny: Path, tmp_path: Path) -> None:
    cached = open_layout(Layout(config="4.41", place="hub"), tiny, tmp_path / "a")
    assert (cached.revision, cached.identity) == (COMMIT, COMMIT)
    assert open_layout(Layout(config="4.41"), tiny, tmp_path / "b").revision is None


# Memory


def test_a_mapped_file_is_mapped_again_and_again_while_its_weights_are_converted(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages of a mapping stay in the process, and a base in 16 bits would take its size in fp32 besides."""
    checkpoint = open_layout(BIN, tiny, tmp_path)
    mappings: list[bool] = []
    usual = torch.load

    def noting(*file: Any, **options: Any) -> Any:
        mappings.append(options["mmap"])
        return usual(*file, **options)

    monkeypatch.setattr(torch, "load", noting)
    monkeypatch.setattr(weight_files, "REMAP_BYTES", 100_000)
    decoder_bytes = sum(
        weight.numel() * 4 for weight in load_language_model(checkpoint, torch.bfloat16, CPU).parameters()
    )
    assert mappings == [True] * len(mappings)
    assert decoder_bytes // 250_000 < len(mappings) - 1 <= decoder_bytes // 100_000
    mappings.clear()
    load_language_model(checkpoint, torch.float32, CPU)
    assert mappings == [True]


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@pytest.mark.parametrize("weights", ["bin shards", "bin of 2019"])
def test_a_pickled_base_can_be_quantised(quantization: str, weights: str, tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    models = [
        load_language_model(
            open_layout(layout, tiny, tmp_path / str(n)), torch.bfloat16, CPU, quantization=quantization
        )
        for n, layout in enumerate((Layout(weights=weights), Layout()))
    ]
    for (name, one), (_, other) in zip(*(model.state_dict().items() for model in models), strict=True):
        assert torch.equal(one, other), name


# Every command, from end to end

UNKNOWN = "audiocraft and unknown weights"
JSON_431 = "tokenizer.json of 4.31"
LARGE = Layout(
    "text", "4.31", "flagged", "weight_g", "present", "bin shards", "float32", JSON_431, "both", "hub", UNKNOWN
)
ADAPTED = [
    LARGE,
    Layout("melody", "4.41", "unflagged", "weight_g", "present", "safetensors shards", tokenizer="spiece.model"),
    Layout("text-stereo", "4.41", "absent", "weight_g", "absent", "safetensors", "float16", JSON_431, place="snapshot"),
    Layout("melody-stereo", "5", "odd", weights="bin", dtype="float16", embedding="embed_tokens"),
]
FULL = [
    Layout("text", "4.31", "broken", "weight_g", "present", "bin of 2019", tokenizer="spiece.model", place="hub"),
    Layout("melody-stereo", "4.41", "unflagged", weights="safetensors and bin", dtype="float16", place="snapshot"),
]
QUICK = ["--max_steps", 1, "--learning_rate", 0.01, "--eval_strategy", "no"]
SHORT = ["--seconds", 0.5]
EVALUATION = [
    "--variations",
    2,
    "--song_excerpts",
    2,
    "--clap_model_name_or_path",
    "none",
    "--neutral_prompts",
    "a song",
]


def test_the_commands_run_on_all_values() -> None:
    for name, values in VALUES.items():
        assert {getattr(layout, name) for layout in [*ADAPTED, *FULL]} == set(values)


def first_and_slow(layouts: list[Layout]) -> list[Any]:
    """The first one in every test run, the others in the slow ones."""
    return [layouts[0], *(pytest.param(layout, marks=pytest.mark.slow) for layout in layouts[1:])]


def plain_generate(model: Any, tokenizer: Any, **options: Any) -> torch.Tensor:
    """What the README shows, in fp32. A processor of the melody family would need torchaudio."""
    inputs = tokenizer(text=["punk"], padding=True, return_tensors="pt")
    wave: torch.Tensor = model.generate(**inputs, max_new_tokens=8, **options)
    return wave


def prepared_run(
    layout: Layout, words: list[object], cli: Cli, songs: Path, reference: Path, tmp_path: Path
) -> tuple[Path, list[object], str | None]:
    """A run on a base in `layout`, the options that find this base again, and the cache that it is in."""
    name, cache = write_layout(layout, reference, tmp_path / "base")
    found_by: list[object] = [] if cache is None else ["--cache_dir", cache]
    prepared = cli(*prepare_words(songs, tmp_path / "data", Path(name)), *found_by)
    assert prepared.code == 0, prepared.err
    trained = cli(*train_words(tmp_path / "data", tmp_path / "run", Path(name)), *found_by, *words)
    assert trained.code == 0, trained.err
    return tmp_path / "run", found_by, None if cache is None else str(cache)


@pytest.mark.parametrize("layout", first_and_slow(ADAPTED), ids=lambda layout: layout.label)
def test_an_adapter_is_trained_and_makes_music(
    layout: Layout, cli: Cli, songs: Path, checkpoints: Folders, tmp_path: Path
) -> None:
    run, found_by, cache = prepared_run(layout, QUICK, cli, songs, checkpoints(layout.kind), tmp_path)
    generated = cli("generate", run, "punk", "--output_dir", tmp_path / "made", *SHORT, *found_by)
    assert (generated.code, len(list((tmp_path / "made").glob("*.wav")))) == (0, 1), generated.err
    if layout.kind == "melody":  # it takes as long as all the rest
        evaluated = cli("evaluate", run, *SHORT, *EVALUATION, *found_by)
        assert evaluated.code == 0, evaluated.err
    config = PeftConfig.from_pretrained(run)
    base = AutoModelForTextToWaveform.from_pretrained(
        config.base_model_name_or_path, revision=config.revision, cache_dir=cache, dtype=torch.float32
    )
    model = PeftModel.from_pretrained(base, run)
    wave = plain_generate(model, AutoTokenizer.from_pretrained(run), do_sample=True, guidance_scale=3, num_beams=1)
    assert torch.isfinite(wave).all()
    assert wave.shape[1] == (2 if "stereo" in layout.kind else 1)


@pytest.mark.slow
@pytest.mark.parametrize("layout", FULL, ids=lambda layout: layout.label)
def test_a_full_fine_tune_is_trained_and_makes_music(
    layout: Layout, cli: Cli, songs: Path, checkpoints: Folders, tmp_path: Path
) -> None:
    words = [*QUICK, "--use_lora", "false"]
    run, found_by, _ = prepared_run(layout, words, cli, songs, checkpoints(layout.kind), tmp_path)
    generated = cli("generate", run, "punk", "--output_dir", tmp_path / "made", *SHORT, *found_by)
    assert (generated.code, len(list((tmp_path / "made").glob("*.wav")))) == (0, 1), generated.err
    check_plain_model(run)


@pytest.mark.parametrize("generation", ["absent", "odd", "broken"])
def test_a_saved_model_can_generate_whatever_its_base_said(generation: str, tiny: Path, tmp_path: Path) -> None:
    layout = Layout(generation=generation)
    checkpoint = open_layout(layout, tiny, tmp_path)
    load_whole(checkpoint).save_pretrained(tmp_path / "saved")
    save_processor(checkpoint, tmp_path / "saved")
    check_plain_model(tmp_path / "saved")


def check_plain_model(folder: Path) -> None:
    model = AutoModelForTextToWaveform.from_pretrained(folder, dtype=torch.float32)
    config = model.generation_config
    assert (config.do_sample, config.guidance_scale, config.decoder_start_token_id) == (True, 3.0, 64)
    assert torch.isfinite(plain_generate(model, AutoTokenizer.from_pretrained(folder))).all()
