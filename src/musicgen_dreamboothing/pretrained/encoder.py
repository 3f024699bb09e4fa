"""Embeddings of sounds by audio encoders of transformers: HuBERT, wav2vec 2.0, AST, MERT and others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from numpy.typing import NDArray
from safetensors import SafetensorError
from transformers import ASTFeatureExtractor, AutoConfig, AutoFeatureExtractor, AutoModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.console import UserError, one_line, quiet_loading
from musicgen_dreamboothing.device import best_device, is_out_of_memory
from musicgen_dreamboothing.hub import Source, explain_refusal, name_with_commit
from musicgen_dreamboothing.pretrained.clap import Embeddings, unit_rows, windows

WINDOW_SECONDS = 10.0  # of models without a length of their own
AST_FRAME_SECONDS = 0.01
UNUSED = ("masked_spec_embed",)  # weights for pre-training only; checkpoints of fine-tuned models lack them
PROBE_SECONDS = 0.5
FAILURES = (OSError, ValueError, ImportError, HfHubHTTPError, HFValidationError, SafetensorError)


class AudioEncoder:
    """An encoder of `AutoModel` with its `AutoFeatureExtractor`.

    Args:
        source: where it comes from; its own code runs only with `trust_remote_code`.
        device: the best one by default.
        batch_size: windows.

    Attributes:
        rate: Hz, of its feature extractor.
        name: with the commit.

    Raises:
        UserError: there is no such model, it takes no sounds, or it gives no vectors for them.
    """

    def __init__(self, source: Source, *, device: torch.device | str | None = None, batch_size: int = 8) -> None:
        self._extractor = read_extractor(source)
        self.rate = int(self._extractor.sampling_rate)
        self._model = _load(source).to(device or best_device())
        self._batch_size = batch_size
        self._window = round(_window_seconds(self._extractor) * self.rate)  # samples
        self.name = name_with_commit(source)
        self._width = self._probe(source)

    def embed(self, waves: Sequence[tuple[audio.Wave, int]]) -> Embeddings:
        """Waves `[C, S]` with their rates in Hz -> `[N, D]`, of length 1: the mean over windows of one length.

        A wave that is shorter than a window is repeated in it: padding would change what many models give, and so would
        the rest of a batch.
        """
        total = np.zeros((len(waves), self._width), np.float32)
        pieces = self._windows(waves)
        while batch := list(islice(pieces, self._batch_size)):
            np.add.at(total, [owner for owner, _ in batch], self._embed_windows([window for _, window in batch]))
        return unit_rows(total)

    def _windows(self, waves: Sequence[tuple[audio.Wave, int]]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Each window `[S]`, all of one length, with the number of the wave it belongs to."""
        for owner, (wave, rate) in enumerate(waves):
            if not wave.shape[1]:
                raise ValueError(f"wave {owner} has no samples")
            mono = audio.resample(audio.to_channels(wave, 1), rate, self.rate)[0]
            for window in windows(mono, self._window):
                yield owner, np.resize(window, self._window)

    @torch.inference_mode()
    def _embed_windows(self, batch: list[NDArray[np.float32]]) -> Embeddings:
        """Windows `[S]` -> `[N, D]`: the model's own pooled output, or the mean over time of its last hidden states."""
        inputs = self._extractor(batch, sampling_rate=self.rate, return_tensors="pt").to(self._model.device)
        output = self._model(**inputs)
        pooled = output.get("pooler_output")
        if pooled is None:
            pooled = output["last_hidden_state"].mean(dim=1)
        if pooled.ndim != 2:
            raise ValueError(f"its output has the shape {tuple(pooled.shape)}")
        return unit_rows(pooled.float().cpu().numpy())

    def _probe(self, source: Source) -> int:
        """The size of an embedding; a model that takes other inputs or gives other outputs is refused here."""
        noise = np.random.default_rng(0).standard_normal((1, round(PROBE_SECONDS * self.rate))).astype(np.float32)
        try:
            return self._embed_windows([window for _, window in self._windows([(0.1 * noise, self.rate)])]).shape[1]
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            raise _unusable(source, f"it gives no vectors for sounds: {type(error).__name__}: {error}") from error


def read_config(source: Source) -> Any:
    """The configuration of a model; UserError where there is none."""
    try:
        return AutoConfig.from_pretrained(source.name, **_arguments(source))
    except FAILURES as error:
        raise _unusable(source, _reason(source, error)) from error


def read_extractor(source: Source) -> Any:
    """The feature extractor of an audio encoder; UserError where a model has none, or is more than an encoder."""
    config = read_config(source)
    if config.is_encoder_decoder:
        raise _unusable(source, f"a {config.model_type!r} model is an encoder and a decoder, not an encoder alone")
    try:
        return AutoFeatureExtractor.from_pretrained(source.name, **_arguments(source))
    except FAILURES as error:
        reason = (
            f"it is a {config.model_type!r} model without a feature extractor (preprocessor_config.json) for sounds"
        )
        raise _unusable(source, reason) from error


def _load(source: Source) -> Any:
    """The model, in float32: from safetensors, or from a `.bin` file, which is read without running its code."""
    arguments = _arguments(source)
    try:
        with quiet_loading():
            model, report = AutoModel.from_pretrained(
                source.name,
                dtype=torch.float32,
                use_safetensors=_has_safetensors(source),
                weights_only=True,
                output_loading_info=True,
                **arguments,
            )
    except (*FAILURES, RuntimeError, UnpicklingError) as error:
        if is_out_of_memory(error):
            raise
        raise _unusable(source, _reason(source, error)) from error
    if missing := sorted(name for name in report["missing_keys"] if not name.endswith(UNUSED)):
        raise _unusable(source, f"it lacks weights: {missing[:3]}")
    return model.eval().requires_grad_(False)


def _has_safetensors(source: Source) -> bool:
    """Whether there are weights as safetensors; where a loader has to look itself, it asks the Hub to convert them."""
    arguments = {key: value for key, value in _arguments(source).items() if key != "trust_remote_code"}
    return any(
        cached_file(source.name, name, _raise_exceptions_for_missing_entries=False, **arguments)
        for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
    )


def _arguments(source: Source) -> dict[str, Any]:
    """Keyword arguments of all loaders; left open, `trust_remote_code` would be asked for in a prompt."""
    return source.arguments() | {"trust_remote_code": source.trust_remote_code}


def _window_seconds(extractor: Any) -> float:
    """AST takes spectrograms of one size; other encoders take any length."""
    return extractor.max_length * AST_FRAME_SECONDS if isinstance(extractor, ASTFeatureExtractor) else WINDOW_SECONDS


def _reason(source: Source, error: BaseException) -> str:
    if "trust_remote_code" in str(error):
        return "it brings its own code, which runs with --trust_remote_code true only"
    refusal = explain_refusal(source.name, error)
    return refusal or (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _unusable(source: Source, reason: str) -> UserError:
    return UserError(
        f"no audio encoder at {source.name!r} ({one_line(reason)}). Fix: --embedder with a CLAP model, an encoder of "
        "transformers for sounds (such as HuBERT, wav2vec 2.0, AST or MERT), or none for statistics of the signal"
    )
