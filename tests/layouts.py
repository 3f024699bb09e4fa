"""Checkpoints in the layouts that are met in the wild, each made from a tiny one that the installed transformers wrote.

Names, configurations and key order follow what transformers 4.31.0 and 4.41.2 wrote when they saved such a model.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers.models.musicgen.modeling_musicgen import MusicgenSinusoidalPositionalEmbedding

HUB_ID = "someone/musicgen-tiny"
COMMIT = "4c8334b02c6ec4e8664a91979669a501ec497792"
PARTS = {"text_encoder": "t5-base", "audio_encoder": "facebook/encodec_32khz", "decoder": ""}
SHARED, EMBED_TOKENS = "text_encoder.shared.weight", "text_encoder.encoder.embed_tokens.weight"
POSITIONS = "decoder.model.decoder.embed_positions.weights"
VALUES: dict[str, tuple[str, ...]] = {
    "kind": ("text", "melody", "text-stereo", "melody-stereo"),
    "config": ("4.31", "4.41", "5"),
    "generation": ("flagged", "unflagged", "absent", "odd", "broken"),
    "weight_norm": ("weight_g", "parametrizations"),
    "positions": ("absent", "present"),
    "weights": ("safetensors", "safetensors shards", "bin", "bin shards", "bin of 2019", "safetensors and bin"),
    "dtype": ("float32", "float16"),
    "tokenizer": ("tokenizer.json", "tokenizer.json of 4.31", "spiece.model"),
    "embedding": ("shared", "embed_tokens", "both"),
    "place": ("folder", "snapshot", "hub"),
    "others": ("none", "audiocraft and unknown weights"),
}


@dataclass(frozen=True)
class Layout:
    """One value of each of `VALUES`; as it stands, what transformers 5 writes."""

    kind: str = "text"
    config: str = "5"
    generation: str = "flagged"
    weight_norm: str = "parametrizations"
    positions: str = "absent"
    weights: str = "safetensors"
    dtype: str = "float32"
    tokenizer: str = "tokenizer.json"
    embedding: str = "shared"
    place: str = "folder"
    others: str = "none"

    @property
    def label(self) -> str:
        usual = Layout()
        changed = [getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != getattr(usual, f.name)]
        return ", ".join(changed) or "as transformers 5 writes"


def mixed_layouts(count: int, seed: int = 0) -> Iterator[Layout]:
    """Layouts in which every value of every dimension stands beside many of the others."""
    rng = random.Random(seed)
    columns = {}
    for name, values in VALUES.items():
        columns[name] = (list(values) * count)[:count]
        rng.shuffle(columns[name])
    for row in zip(*columns.values(), strict=True):
        yield Layout(**dict(zip(columns, row, strict=True)))


def write_layout(layout: Layout, reference: Path, root: Path) -> tuple[str, Path | None]:
    """Writes the checkpoint of the folder `reference` in another layout below `root`.

    Returns:
        Its name for `--model_name_or_path`, and the cache folder that it is in under that name, if any.
    """
    folder = root / "checkpoint"
    folder.mkdir(parents=True)
    _write_config(layout, reference, folder)
    _write_generation_config(layout, reference, folder)
    _write_weights(layout, reference, folder)
    _write_tokenizer(layout, reference, folder)
    shutil.copy(
        reference / ("preprocessor_config.json" if "melody" in layout.kind else "processor_config.json"), folder
    )
    if layout.others != "none":
        for name in ("state_dict.bin", "compression_state_dict.bin"):
            torch.save({"best_state": {"emb.0.weight": torch.ones(2, 2)}, "xp.cfg": "solver: musicgen"}, folder / name)
    if layout.place == "folder":
        return str(folder), None
    snapshot = to_cache(folder, root / "hub")
    return (str(snapshot), None) if layout.place == "snapshot" else (HUB_ID, root / "hub")


def to_cache(folder: Path, cache: Path) -> Path:
    """Moves a folder into the layout of the Hub's cache: a snapshot of links into blobs. Returns the snapshot."""
    repository = cache / f"models--{HUB_ID.replace('/', '--')}"
    snapshot, blobs = repository / "snapshots" / COMMIT, repository / "blobs"
    for path in (snapshot, blobs, repository / "refs"):
        path.mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for path in sorted(folder.iterdir()):
        blob = hashlib.sha256(path.read_bytes()).hexdigest()
        path.rename(blobs / blob)
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", blob))
    return snapshot


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


# What `PretrainedConfig.to_dict` of transformers 4 wrote into each part, settings of `generate` among it.
_NONE = (
    "architectures bad_words_ids begin_suppress_tokens bos_token_id cross_attention_hidden_size decoder_start_token_id "
    "eos_token_id exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id "
    "pad_token_id prefix problem_type sep_token_id suppress_tokens task_specific_params tokenizer_class"
)
_FALSE = (
    "add_cross_attention do_sample early_stopping is_decoder is_encoder_decoder output_attentions output_hidden_states "
    "output_scores remove_invalid_values return_dict_in_generate tf_legacy_loss tie_encoder_decoder torchscript "
    "use_bfloat16"
)
_ZERO = "chunk_size_feed_forward encoder_no_repeat_ngram_size min_length no_repeat_ngram_size"
_ONE = "num_beam_groups num_beams num_return_sequences"
_ONE_POINT = "length_penalty repetition_penalty temperature top_p typical_p"
NESTED_4: dict[str, Any] = {
    **dict.fromkeys(_NONE.split()),
    **dict.fromkeys(_FALSE.split(), False),
    **dict.fromkeys(_ZERO.split(), 0),
    **dict.fromkeys(_ONE.split(), 1),
    **dict.fromkeys(_ONE_POINT.split(), 1.0),
    "diversity_penalty": 0.0,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "max_length": 20,
    "pruned_heads": {},
    "return_dict": True,
    "tie_word_embeddings": True,
    "top_k": 50,
}
T5_TASKS = {"summarization": {"early_stopping": True, "length_penalty": 2.0, "max_length": 200, "num_beams": 4}}


def _write_config(layout: Layout, reference: Path, folder: Path) -> None:
    config = json.loads((reference / "config.json").read_text())
    if layout.config == "5":
        _write_json(folder / "config.json", config | {"dtype": layout.dtype})
        return
    version = {"4.31": "4.31.0.dev0", "4.41": "4.41.2"}[layout.config]
    for part, name in PARTS.items():
        own = {key: value for key, value in config[part].items() if key not in ("dtype", "transformers_version")}
        config[part] = NESTED_4 | own | {"_name_or_path": name, "torch_dtype": layout.dtype}
        if layout.config == "4.31":
            config[part] |= {"transformers_version": version}
    config["text_encoder"] |= {"task_specific_params": T5_TASKS, "n_positions": 512, "output_past": True}
    if layout.kind == "text" and layout.config == "4.31":
        del config["decoder"]["audio_channels"]  # there was no stereo yet
    for key in ("dtype", "pad_token_id", "bos_token_id", "decoder_start_token_id"):
        config.pop(key, None)
    config |= {"_name_or_path": "./musicgen-tiny/", "_commit_hash": "0" * 40, "torch_dtype": layout.dtype}
    config["transformers_version"] = None if layout.config == "4.31" else version
    _write_json(folder / "config.json", config)


def _write_generation_config(layout: Layout, reference: Path, folder: Path) -> None:
    path = folder / "generation_config.json"
    config = json.loads((reference / path.name).read_text())
    config.pop("_from_model_config", None)
    if layout.generation == "flagged":
        _write_json(path, config | {"_from_model_config": True, "transformers_version": "4.31.0.dev0"})
    elif layout.generation == "unflagged":
        _write_json(path, config | {"transformers_version": "4.41.2"})
    elif layout.generation == "odd":
        odd = {"do_sample": False, "temperature": 0.3, "num_beams": 0, "max_length": None, "melody_strength": [1]}
        _write_json(path, config | odd)
    elif layout.generation == "broken":
        path.write_text("[1, 2")


def stored_weights(layout: Layout, reference: Path) -> dict[str, torch.Tensor]:
    """The weights of a layout under its names."""
    weights = load_file(reference / "model.safetensors")
    embedding = weights.pop(SHARED, None)
    embedding = weights.pop(EMBED_TOKENS) if embedding is None else embedding
    for name, wanted in ((SHARED, "shared"), (EMBED_TOKENS, "embed_tokens")):
        if layout.embedding in (wanted, "both"):
            weights[name] = embedding
    weights.pop(POSITIONS, None)
    if layout.positions == "present":
        width = weights["decoder.model.decoder.embed_tokens.0.weight"].shape[1]
        weights[POSITIONS] = MusicgenSinusoidalPositionalEmbedding(2048, width).weights
    if layout.weight_norm == "weight_g":
        for number, old in enumerate("gv"):
            new = f".parametrizations.weight.original{number}"
            weights = {name.replace(new, f".weight_{old}"): weight for name, weight in weights.items()}
    if layout.others != "none":
        weights["text_encoder.decoder.block.0.layer.0.SelfAttention.q.weight"] = torch.ones(4, 4)
        weights["audio_encoder.discriminator.0.weight"] = weights["optimizer.step"] = torch.ones(2)
    return {name: weight.to(getattr(torch, layout.dtype)) for name, weight in sorted(weights.items())}


def _write_weights(layout: Layout, reference: Path, folder: Path) -> None:
    weights = stored_weights(layout, reference)
    if layout.weights == "safetensors and bin":
        save_safetensors(weights, folder / "model.safetensors")
        torch.save({name: torch.zeros_like(weight) for name, weight in weights.items()}, folder / "pytorch_model.bin")
    elif "shards" in layout.weights:
        write_shards(weights, folder, pickled=layout.weights.startswith("bin"))
    elif layout.weights == "safetensors":
        save_safetensors(weights, folder / "model.safetensors")
    else:
        zipped = layout.weights != "bin of 2019"
        torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)


def save_safetensors(weights: dict[str, torch.Tensor], path: Path) -> None:
    save_file({name: weight.clone() for name, weight in weights.items()}, path, metadata={"format": "pt"})


def write_shards(weights: dict[str, torch.Tensor], folder: Path, *, pickled: bool, count: int = 3) -> None:
    """`count` shards and their index."""
    stem, suffix = ("pytorch_model", ".bin") if pickled else ("model", ".safetensors")
    names, places = list(weights), {}
    for number in range(count):
        share = names[number * len(names) // count : (number + 1) * len(names) // count]
        shard = folder / f"{stem}-{number + 1:05}-of-{count:05}{suffix}"
        part = {name: weights[name] for name in share}
        torch.save(part, shard) if pickled else save_safetensors(part, shard)
        places |= dict.fromkeys(share, shard.name)
    size = sum(weight.nbytes for weight in weights.values())
    _write_json(folder / f"{stem}{suffix}.index.json", {"metadata": {"total_size": size}, "weight_map": places})


EXTRA_IDS = [f"<extra_id_{number}>" for number in range(100)]
SPECIAL_TOKENS = {
    "additional_special_tokens": EXTRA_IDS,
    "eos_token": "</s>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
}
TOKENIZER_4 = {
    **SPECIAL_TOKENS,
    "clean_up_tokenization_spaces": True,
    "extra_ids": 100,
    "model_max_length": 512,
    "tokenizer_class": "T5Tokenizer",
}


def _write_tokenizer(layout: Layout, reference: Path, folder: Path) -> None:
    if layout.tokenizer == "tokenizer.json":
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(reference / name, folder)
        return
    _write_json(folder / "tokenizer_config.json", TOKENIZER_4)
    _write_json(folder / "special_tokens_map.json", SPECIAL_TOKENS)
    content = json.loads((reference / "tokenizer.json").read_text())
    if layout.tokenizer == "spiece.model":
        (folder / "spiece.model").write_bytes(sentencepiece_model(content["model"]["vocab"]))
        return
    shared = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    first = len(content["model"]["vocab"])
    content["model"]["vocab"] += [[token, 0.0] for token in reversed(EXTRA_IDS)]
    content["added_tokens"] += [
        {"id": first + place, "content": token, **shared} for place, token in enumerate(reversed(EXTRA_IDS))
    ]
    _write_json(folder / "tokenizer.json", content)


def sentencepiece_model(vocabulary: list[list[Any]]) -> bytes:
    """A unigram model of pieces with their scores; the first three are padding, end and unknown, as T5's are."""
    from sentencepiece import sentencepiece_model_pb2 as proto

    model = proto.ModelProto()
    kinds = {"<pad>": 3, "</s>": 3, "<unk>": 2}  # control, control, unknown
    for piece, score in vocabulary:
        model.pieces.add(piece=piece, score=score, type=kinds.get(piece, 1))
    model.trainer_spec.model_type = 1
    model.trainer_spec.pad_id, model.trainer_spec.eos_id, model.trainer_spec.unk_id = 0, 1, 2
    model.trainer_spec.bos_id = -1
    model.normalizer_spec.name = "identity"
    content: bytes = model.SerializeToString()
    return content
