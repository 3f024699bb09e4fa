"""`export`: a model of transformers, with or without an adapter, as a package that audiocraft loads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoConfig

from musicgen_dreamboothing.arguments import ExportArguments, check_values, note_unused
from musicgen_dreamboothing.arguments.export import AUTO, OWN, WHOLE
from musicgen_dreamboothing.console import UserError, log, quiet_libraries, quiet_loading
from musicgen_dreamboothing.files import new_folder
from musicgen_dreamboothing.hub import Source
from musicgen_dreamboothing.model.adapter import SavedAdapter, read_adapter
from musicgen_dreamboothing.model.audiocraft.codec import codec_settings, codec_to_audiocraft
from musicgen_dreamboothing.model.audiocraft.config import PUBLISHED_CODEC, TEXT_ENCODERS, model_settings, template
from musicgen_dreamboothing.model.audiocraft.names import T5, Architecture, to_audiocraft
from musicgen_dreamboothing.model.checkpoint import Checkpoint, load_checkpoint
from musicgen_dreamboothing.model.merging import Merger
from musicgen_dreamboothing.model.part_hash import current_name
from musicgen_dreamboothing.model.weight_files import AUDIOCRAFT, open_weights
from musicgen_dreamboothing.sharing.card import write_audiocraft_card
from musicgen_dreamboothing.sharing.licence import licence_notice, licence_of

VERSION = "1.3.0"  # of the format, as audiocraft writes it
MODEL_FILE, CODEC_FILE = AUDIOCRAFT
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
TABLE = "encoder.embed_tokens.weight"  # T5's embeddings, which it stores as `shared.weight` as well


@dataclass(frozen=True)
class ExportResult:
    """A package in a folder.

    Attributes:
        folder: holds `state_dict.bin`, `compression_state_dict.bin` and a card.
        has_whole_codec: whether the codec's weights are in it, instead of the name of the published one.
        has_text_encoder: whether T5's weights are in it, instead of its name.
    """

    folder: Path
    has_whole_codec: bool
    has_text_encoder: bool


@quiet_libraries()
def export(options: ExportArguments) -> ExportResult:
    """Writes a package for `MusicGen.get_pretrained`.

    Raises:
        UserError: the model cannot be read or has no counterpart in audiocraft, or the folder holds something else.
    """
    check_values(options)
    folder = Path(options.output_dir)
    _check_folder(folder)
    source = Source(options.model, options.model_revision, options.cache_dir, options.token)
    adapter = read_adapter(source.name, **source.arguments())
    checkpoint = load_checkpoint(source if adapter is None else _base_of(adapter, options))
    if adapter is None:
        note_unused(options)
        if options.base_model is not None:
            log("note: --base_model has no effect: MODEL is not an adapter")
    merger = None if adapter is None else Merger(checkpoint, adapter)
    has_text_encoder = _packs_text_encoder(options, adapter)
    is_published = options.codec != WHOLE and _has_published_codec(checkpoint)
    with new_folder(folder) as temporary:
        _write_model(temporary, checkpoint, merger, options.dtype, is_published, has_text_encoder)
        _write_codec(temporary, checkpoint, is_published=is_published)
        licence = licence_of(checkpoint)
        write_audiocraft_card(temporary, folder.resolve().name, checkpoint, licence, is_merged=adapter is not None)
    _log_result(folder, checkpoint, licence_notice(checkpoint.name, licence), is_published=is_published)
    return ExportResult(folder, not is_published, has_text_encoder)


def _check_folder(folder: Path) -> None:
    """Refuses a folder that holds something else than a package."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MODEL_FILE).is_file():
        raise UserError(f"{folder} holds something else (there is no {MODEL_FILE}); choose another --output_dir")


def _base_of(adapter: SavedAdapter, options: ExportArguments) -> Source:
    """Where the base of an adapter is, at the revision that it was trained on."""
    name = options.base_model or str(adapter.config.base_model_name_or_path)
    revision = adapter.config.revision if options.base_model is None and not Path(name).is_dir() else None
    return Source(name, revision, options.cache_dir, options.token)


def _packs_text_encoder(options: ExportArguments, adapter: SavedAdapter | None) -> bool:
    if options.text_encoder != AUTO:
        return options.text_encoder == OWN
    if adapter is not None:
        return adapter.trains_text_encoder
    record = Path(options.model) / "run.json"  # of a full fine-tune
    try:
        return not json.loads(record.read_text(encoding="utf-8"))["options"]["freeze_text_encoder"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write_model(
    folder: Path,
    checkpoint: Checkpoint,
    merger: Merger | None,
    dtype: str,
    is_published: bool,
    has_text_encoder: bool,
) -> None:
    left_out = ("audio_encoder.",) if has_text_encoder else ("audio_encoder.", "text_encoder.")
    hub = checkpoint.source.arguments()
    stored = open_weights(
        checkpoint.name, hub, lambda name: None if name.startswith(left_out) else name, convert=merger is not None
    )
    weights = stored if merger is None else _Rounded(merger.wrap(stored), stored)
    settings = model_settings(
        checkpoint,
        has_published_codec=is_published,
        text_encoder=_text_encoder_name(checkpoint),
        with_text_encoder=has_text_encoder,
    )
    try:
        state = to_audiocraft(weights, Architecture.of(checkpoint), checkpoint.config.decoder.hidden_size)
    except KeyError as error:
        raise UserError(f"{checkpoint.name} lacks the weight {error}; take a complete checkpoint") from error
    if dtype != AUTO:
        state = {name: weight.to(DTYPES[dtype]) for name, weight in state.items()}
    _check_finite(state, dtype)
    if has_text_encoder:
        state |= _text_encoder_state(weights)
    _save(folder / MODEL_FILE, {"best_state": state, "xp.cfg": _yaml(settings)})


class _Rounded(dict[str, Any]):
    """Merged weights in the precision in which the base stores them."""

    def __init__(self, merged: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
        super().__init__({name: _RoundedEntry(entry, stored[name]) for name, entry in merged.items()})


class _RoundedEntry:
    def __init__(self, merged: Any, stored: Any) -> None:
        self._merged, self._stored = merged, stored

    def __getitem__(self, place: Any) -> torch.Tensor:
        weight: torch.Tensor = self._merged[place]
        return weight if self._merged is self._stored else weight.to(self._stored[place].dtype)


def _text_encoder_name(checkpoint: Checkpoint) -> str:
    width = checkpoint.config.text_encoder.hidden_size
    if width in TEXT_ENCODERS:
        return TEXT_ENCODERS[width]
    log(
        f"note: the text encoder of {checkpoint.name} has states of width {width}, which no T5 that audiocraft knows "
        "has: players cannot load this package, `import` can"
    )
    return "t5-base"


def _text_encoder_state(weights: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    prefix = "text_encoder."
    state = {
        f"{T5}{name.removeprefix(prefix)}": entry[...].clone()
        for name, entry in weights.items()
        if name.startswith(prefix)
    }
    shared = state.get(f"{T5}shared.weight", state.get(f"{T5}{TABLE}"))
    assert shared is not None
    return state | {f"{T5}shared.weight": shared, f"{T5}{TABLE}": shared}


def _check_finite(state: Mapping[str, torch.Tensor], dtype: str) -> None:
    for name, weight in state.items():
        if not bool(torch.isfinite(weight).all()):
            hint = "try --dtype float32" if dtype == "float16" else "its training diverged"
            raise UserError(f"the weight {name} is not finite: {hint}")


def _has_published_codec(checkpoint: Checkpoint) -> bool:
    """Whether the codec is the one that audiocraft loads by its name: the same settings and weights."""
    published = Source(PUBLISHED_CODEC, None, checkpoint.source.cache_dir, checkpoint.source.token)
    names = ("sampling_rate", "audio_channels", "num_filters", "upsampling_ratios", "codebook_size", "hidden_size")
    own = checkpoint.config.audio_encoder
    try:
        with quiet_loading():
            config = AutoConfig.from_pretrained(published.name, **published.arguments())
        if any(getattr(config, name) != getattr(own, name) for name in names):
            return False
        theirs = open_weights(published.name, published.arguments(), _codec_name, convert=False)
    except (OSError, ValueError, UserError) as error:
        log(f"note: {PUBLISHED_CODEC} cannot be read for comparison, so the codec is packed whole ({_line(error)})")
        return False
    ours = _codec_weights(checkpoint)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name][...], theirs[name][...]) for name in ours)


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _codec_name(name: str) -> str | None:
    name = current_name(name)
    return name if name.startswith(("encoder.", "decoder.", "quantizer.")) else None


def _codec_weights(checkpoint: Checkpoint) -> dict[str, Any]:
    prefix = "audio_encoder."
    return open_weights(
        checkpoint.name,
        checkpoint.source.arguments(),
        lambda name: _codec_name(name.removeprefix(prefix)) if name.startswith(prefix) else None,
        convert=False,
    )


def _write_codec(folder: Path, checkpoint: Checkpoint, *, is_published: bool) -> None:
    if is_published:
        _save(folder / CODEC_FILE, {"pretrained": PUBLISHED_CODEC})
        return
    config, weights = checkpoint.config.audio_encoder, _codec_weights(checkpoint)
    if not weights:
        raise UserError(f"{checkpoint.name} holds no weights of its codec; take a complete checkpoint")
    state = codec_to_audiocraft(weights, config)
    quantizers = sum(name.endswith("._codebook.embed") for name in state)
    settings = codec_settings(config, template("codec"), quantizers)
    _save(folder / CODEC_FILE, {"best_state": state, "xp.cfg": _yaml(settings)})


def _yaml(settings: dict[str, Any]) -> str:
    return yaml.safe_dump(settings, sort_keys=False)


def _save(path: Path, content: dict[str, Any]) -> None:
    torch.save(content | {"version": VERSION, "exported": True}, path)


def _log_result(folder: Path, checkpoint: Checkpoint, notice: str, *, is_published: bool) -> None:
    log(f"Saved in {folder}: {MODEL_FILE} and {CODEC_FILE}")
    log(f"The codec is {f'the name of {PUBLISHED_CODEC}' if is_published else 'packed whole'}")
    if not checkpoint.is_melody:
        log("note: audiocraft has no mask for captions of unequal length: play one prompt at a time there")
    log(notice)
    log(f'Play:  audiocraft.models.MusicGen.get_pretrained("{folder}")')
