"""The model that is trained: the base in the chosen precision, with an adapter or all of its weights trainable."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState

from musicgen_dreamboothing.arguments import TrainArguments
from musicgen_dreamboothing.console import log
from musicgen_dreamboothing.data.layout import TOKENS
from musicgen_dreamboothing.data.tokens.text_states import key_word_states
from musicgen_dreamboothing.files import write_json
from musicgen_dreamboothing.model.adapter import LoraSettings, add_adapter
from musicgen_dreamboothing.model.keyword import keyword_note
from musicgen_dreamboothing.model.loading import load_language_model
from musicgen_dreamboothing.model.recompute import use_full_recompute
from musicgen_dreamboothing.model.saved_adapter import start_from_adapter

if TYPE_CHECKING:
    from musicgen_dreamboothing.training.settings import Settings


def check_key_word(base: Any, settings: Settings) -> None:
    """Warns before a run begins if its key-word already means something else to the base.

    The answer is cached in a file of its own in `tokens/`, so that concurrent runs do not overwrite each other's.
    """
    options, checkpoint = settings.options, settings.checkpoint
    word, noun = options.instance_prompt, options.class_prompt
    if settings.resume or not word or not options.freeze_text_encoder or not PartialState().is_main_process:
        return
    depends_on = [checkpoint.identity, word, noun, options.quantization, settings.tables.fingerprint]
    key = hashlib.blake2b(json.dumps(depends_on).encode(), digest_size=8).hexdigest()
    path = settings.prepared / TOKENS / f"key-word-{key}.json"
    note = _cached_note(path)
    if note is None:  # on a CPU it takes as long as a good part of a training step
        states = key_word_states(settings.prepared, word, checkpoint)
        codes = settings.tables.train.with_format("numpy")["codes"]
        note = keyword_note(base, checkpoint, codes, states, word, noun) or ""
        write_json(path, {"note": note})
    if note:
        log(f"note: {note}")


def _cached_note(path: Path) -> str | None:
    with suppress(OSError, ValueError, TypeError, KeyError):
        return str(json.loads(path.read_text(encoding="utf-8"))["note"])
    return None


def trainable_model(settings: Settings) -> Any:
    """The language model in the settings' precision, with its adapter or all of its weights trainable."""
    options, with_text = settings.options, not settings.options.freeze_text_encoder
    model = load_language_model(
        settings.checkpoint,
        settings.dtype,
        options.device,
        with_text_encoder=with_text,
        quantization=options.quantization,
    )
    check_key_word(model, settings)
    if settings.split.recompute == "light":
        model.use_light_recompute()
    elif settings.split.recompute == "full":
        use_full_recompute(model)
    trained = _with_adapter(model, settings) if options.use_lora else model
    if options.compiler is not None:  # all layers are alike, so one compilation serves all of them
        for layer in trained.decoder.model.decoder.layers:
            layer.compile(**options.compiler)
    return trained


def _with_adapter(model: Any, settings: Settings) -> Any:
    options, with_text = settings.options, not settings.options.freeze_text_encoder
    if settings.initial is None:
        wrapped = add_adapter(model, lora_settings(options), with_text_encoder=with_text)
    else:
        dropout = options.lora_dropout
        wrapped = start_from_adapter(model, settings.initial, dropout=dropout, with_text_encoder=with_text)
    trainable, total = wrapped.get_nb_trainable_parameters()
    base = (total - trainable) / 1e6
    log(f"Adapter of {trainable / 1e6:.2f} M weights on a base of {base:.0f} M in {str(settings.dtype)[6:]}")
    return wrapped


def lora_settings(options: TrainArguments) -> LoraSettings:
    """The adapter that the options ask for."""
    return LoraSettings(
        options.lora_r,
        options.lora_alpha,
        options.lora_dropout,
        options.lora_targets,
        options.use_dora,
        options.use_rslora,
        options.lora_init,
        options.adapter_type,
    )
