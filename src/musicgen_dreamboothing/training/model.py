"""The model that is trained: a base of the wanted precision, with an adapter or all of it trainable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from musicgen_dreamboothing.arguments import TrainArguments
from musicgen_dreamboothing.console import log
from musicgen_dreamboothing.data.layout import TOKENS
from musicgen_dreamboothing.data.tokens.tables import Tables
from musicgen_dreamboothing.data.tokens.text_states import key_word_states
from musicgen_dreamboothing.device import parse_dtype
from musicgen_dreamboothing.files import write_json
from musicgen_dreamboothing.model.adapter import LoraSettings, SavedAdapter, add_adapter
from musicgen_dreamboothing.model.checkpoint import Checkpoint
from musicgen_dreamboothing.model.keyword import keyword_note
from musicgen_dreamboothing.model.loading import load_language_model
from musicgen_dreamboothing.model.recompute import use_full_recompute
from musicgen_dreamboothing.model.saved_adapter import start_from_adapter
from musicgen_dreamboothing.training.checkpoints import last_checkpoint


def check_key_word(base: Any, options: TrainArguments, checkpoint: Checkpoint, tables: Tables, prepared: Path) -> None:
    """Tells before a run begins if its key-word means something else to the base already.

    The answer is kept in a file of its own in `tokens/`, so that runs at the same time lose none.
    """
    word, noun = options.instance_prompt, options.class_prompt
    begun = last_checkpoint(Path(str(options.output_dir))) is not None
    if begun or not word or not options.freeze_text_encoder or not PartialState().is_main_process:
        return
    asked = json.dumps([checkpoint.identity, word, noun, options.quantization, tables.fingerprint])
    key = hashlib.blake2b(asked.encode(), digest_size=8).hexdigest()
    path = prepared / TOKENS / f"key-word-{key}.json"
    note = _noted(path)
    if note is None:  # on a CPU that takes a good part of a step of training
        states = key_word_states(prepared, word, checkpoint)
        codes = tables.train.with_format("numpy")["codes"]
        note = keyword_note(base, checkpoint, codes, states, word, noun) or ""
        write_json(path, {"note": note})
    if note:
        log(f"note: {note}")


def _noted(path: Path) -> str | None:
    """The answer of an earlier run; None where there is none that can be read."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        return str(json.loads(path.read_text(encoding="utf-8"))["note"])
    return None


def trainable_model(
    options: TrainArguments, checkpoint: Checkpoint, check: Callable[[Any], None], initial: SavedAdapter | None = None
) -> Any:
    """The language model, checked as it was, with what is to be trained made trainable.

    Args:
        options: of the training.
        checkpoint: the base.
        check: is called with the base before an adapter is put on it.
        initial: the adapter to begin from; a fresh one by default.
    """
    device = options.device
    # All weights of a full fine-tune are the optimizer's, which needs fp32.
    dtype = parse_dtype(options.dtype, device) if options.use_lora else torch.float32
    with_text = not options.freeze_text_encoder
    model = load_language_model(
        checkpoint, dtype, device, with_text_encoder=with_text, quantization=options.quantization
    )
    check(model)
    if options.recompute == "light":
        model.use_light_recompute()
    elif options.recompute == "full":
        use_full_recompute(model)
    if not options.use_lora:
        return _compiled(model, options)
    if initial is None:
        wrapped = add_adapter(model, lora_settings(options), with_text_encoder=with_text)
    else:
        wrapped = start_from_adapter(model, initial, dropout=options.lora_dropout, with_text_encoder=with_text)
    trainable, total = wrapped.get_nb_trainable_parameters()
    base = (total - trainable) / 1e6
    log(f"adapter of {trainable / 1e6:.2f} M weights on a base of {base:.0f} M in {str(dtype)[6:]}")
    return _compiled(wrapped, options)


def _compiled(model: Any, options: TrainArguments) -> Any:
    """Compiles the layers of the decoder, which are all alike: one compilation serves all of them."""
    if options.compiler is not None:
        for layer in model.decoder.model.decoder.layers:
            layer.compile(**options.compiler)
    # done: transformers shall not compile the model as a whole
    options.torch_compile, options.torch_compile_backend, options.torch_compile_mode = False, None, None
    return model


def lora_settings(options: TrainArguments) -> LoraSettings:
    """What is asked for of the adapter."""
    return LoraSettings(
        options.lora_r,
        options.lora_alpha,
        options.lora_dropout,
        options.lora_targets,
        options.use_dora,
        options.use_rslora,
        options.lora_init,
    )
