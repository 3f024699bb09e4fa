"""A loaded model that turns prompts into audio: an adapter, a full fine-tune or a base checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import EncodecModel

from musicgen_dreamboothing.console import UserError, plural, quiet_libraries
from musicgen_dreamboothing.device import parse_device, parse_dtype
from musicgen_dreamboothing.generation.codes import CodeGenerator, prompt_codes_of
from musicgen_dreamboothing.generation.continuation import AudioPrompt, read_audio_prompt
from musicgen_dreamboothing.generation.guidance import Sampling
from musicgen_dreamboothing.generation.requests import GeneratedClip, GenerationRequest, variations_of
from musicgen_dreamboothing.generation.windows import continued, window_frames
from musicgen_dreamboothing.hub import Source
from musicgen_dreamboothing.model import codec
from musicgen_dreamboothing.model.checkpoint import Checkpoint, load_codec
from musicgen_dreamboothing.model.language_model import MelodyLM, TextLM
from musicgen_dreamboothing.model.loading import load_for_generation
from musicgen_dreamboothing.model.mix_sources import AdapterName, Mix, read_mix
from musicgen_dreamboothing.model.mixing import Mixer
from musicgen_dreamboothing.model.quantized import QUANTIZATIONS
from musicgen_dreamboothing.model.strengths import AnyStrength, as_strength, blended

PIECES = 6  # of 30 s, in which longer music is decoded


class Generator(CodeGenerator):
    """Loads a model once and generates any number of clips.

    Args:
        model: adapter folder or Hub id, fully fine-tuned folder, or base checkpoint. An adapter may have a strength
            behind its name: `punk:0.7`.
        adapters: adapters on the base that `model` is or has, with their strengths: `("punk", 0.8)` or `"punk:0.8"`.
        blend: whether strengths are scaled so that their absolute values add up to 1, instead of summed as they are.
        base_model: the adapters' base, if it is not where adapter_config.json says (a moved folder).
        revision: Hub revision of `model`.
        cache_dir: where Hub downloads are kept.
        token: Hub token, instead of the stored login.
        device: torch device, or `auto`.
        dtype: `auto`, `float32`, `bfloat16` or `float16`.
        quantization: `none`, or `nf4` or `int8` for the decoder's layers in 4 or 8 bits, with the adapter beside them;
            on a CPU `int8` is also faster for one or two clips at once.
        cuda_graphs: whether steps on an NVIDIA or AMD GPU are captured and replayed, which is faster.

    Attributes:
        checkpoint: the base's configuration.
        device, dtype, quantization: of the language model.
        active_layers: numbers of adapted layers with an update that is not zero, and of all adapted layers; None
            without an adapter.
        mix: base, adapters and strengths; None for a model in memory.
    """

    mix: Mix | None = None
    _mixer: Mixer | None = None

    @quiet_libraries()
    def __init__(
        self,
        model: str | Path,
        *,
        adapters: Sequence[AdapterName] = (),
        blend: bool = False,
        base_model: str | None = None,
        revision: str | None = None,
        cache_dir: str | None = None,
        token: str | None = None,
        device: torch.device | str = "auto",
        dtype: str = "auto",
        quantization: str = "none",
        cuda_graphs: bool = True,
    ) -> None:
        if quantization not in QUANTIZATIONS:
            raise UserError(f"--quantization {quantization!r} is unknown; it takes {', '.join(QUANTIZATIONS)}")
        chosen = parse_device(device)
        precision = parse_dtype(dtype, chosen)
        mix = read_mix(Source(str(model), revision, cache_dir, token), adapters, base_model)
        if blend:
            mix = replace(mix, strengths=tuple(blended(mix.strengths)))
        checkpoint = mix.checkpoint
        mixed = bool(mix.adapters) and (mix.single is None or bool(adapters))
        self._mixer = Mixer(checkpoint, mix.adapters, mix.strengths) if mixed else None
        loaded, active = load_for_generation(
            checkpoint,
            precision,
            chosen,
            adapter=None if mixed else mix.single,
            mixer=self._mixer,
            quantization=quantization,
        )
        self._set(loaded, checkpoint, {}, uses_graphs=chosen.type == "cuda" and cuda_graphs)
        self.dtype, self.quantization, self.active_layers, self.mix = precision, quantization, active, mix

    @classmethod
    def around(
        cls, model: TextLM | MelodyLM, checkpoint: Checkpoint, states: dict[str, np.ndarray] | None = None
    ) -> Generator:
        """A generator around a model in memory, such as one in the middle of a training.

        `Stack` joins weights of the model; the caller restores them. Steps are not captured as CUDA graphs, because
        threads of a training (pinned memory) would disturb that.

        Args:
            model: in eval mode.
            checkpoint: its base.
            states: text states by caption; missing ones are added.
        """
        made = cls.__new__(cls)
        made._set(model, checkpoint, {} if states is None else states, uses_graphs=False)
        made.quantization, made.active_layers = "none", None
        return made

    def _set(self, *loaded: Any, uses_graphs: bool) -> None:
        CodeGenerator.__init__(self, *loaded, uses_graphs=uses_graphs)
        self._codec: EncodecModel | None = None  # loaded when there are codes to decode

    def set_strengths(self, *strengths: AnyStrength, blend: bool = False) -> None:
        """Gives the adapters other strengths, without loading the model again.

        The model is then the one that a new `Generator` with these strengths loads, bit by bit.

        Args:
            strengths: of each adapter, in the order in which they were named: a number, `"0.8,heads=0"` or
                `{"heads": 0}`.
            blend: as in the constructor.

        Raises:
            UserError: there are not as many adapters, or the model was loaded without `adapters`.
        """
        if self.mix is None or self._mixer is None:
            raise UserError("strengths can be changed of adapters that were given as Generator(base, adapters=[...])")
        if len(strengths) != len(self.mix.adapters):
            raise UserError(
                f"{len(strengths)} strengths for {plural(len(self.mix.adapters), 'adapter')}: give one each"
            )
        values = tuple(as_strength(strength) for strength in strengths)
        self.mix = replace(self.mix, strengths=tuple(blended(values)) if blend else values)
        self._mixer.apply(self._model, self.mix.strengths)
        self._checked.clear()
        if self._mixer.trains_text_encoder:
            self._states.clear()

    def generate(
        self,
        prompts: Sequence[str | GenerationRequest],
        *,
        seconds: float = 10.0,
        variations: int = 1,
        seed: int = 0,
        sampling: Sampling = Sampling(),
        batch_size: int | None = None,
        progress: bool = True,
    ) -> Iterator[GeneratedClip]:
        """Yields `variations` clips of every prompt, batch by batch; a clip does not depend on the others.

        Args:
            prompts: descriptions of the music, or requests that say more.
            seconds: length of a clip, its audio prompt included; what is longer than 30 s is made in windows. A request
                with sections has their length.
            variations: clips of each prompt, each with its own random stream.
            seed: of the random numbers, with the prompt and the variation.
            sampling: guidance, temperature, top-k and top-p.
            batch_size: clips at once, by default as many as fit into memory; halved when memory runs out.
            progress: whether to show a bar on stderr.
        """
        requests = variations_of(prompts, variations)
        drawn = self.codes(
            requests, seconds=seconds, seed=seed, sampling=sampling, batch_size=batch_size, progress=progress
        )
        rate = self.checkpoint.sampling_rate
        for request, codes in drawn:
            yield GeneratedClip(request.prompt, request.variation, codes, self.decode(codes), rate)

    def stream(
        self,
        prompt: str | GenerationRequest,
        *,
        seconds: float = 10.0,
        seed: int = 0,
        sampling: Sampling = Sampling(),
        piece: float = 1.0,
    ) -> Iterator[np.ndarray]:
        """Yields one clip while it is being made, float32 `[C, S]` in pieces; together they are the clip of `generate`.

        Memory does not grow with the length of the clip, but for its codes.

        Args:
            prompt: description of the music, or a request.
            seconds: length of the clip.
            seed: of the random numbers, with the prompt.
            sampling: guidance, temperature, top-k and top-p.
            piece: seconds of each piece.
        """
        (request,), step = variations_of([prompt], 1), max(1, round(piece * self.checkpoint.frame_rate))
        self._prepare([request])
        plan = self._plan(request, seconds)
        decoder = codec.StreamDecoder(self._loaded_codec(), self.checkpoint)
        codes = prompt_codes_of([request])
        decoded, ready = 0, step + decoder.lookahead
        for number, window in enumerate(plan):
            stream = self._window_stream([request], window, number, codes, seed, sampling)
            while decoded < window.end:
                stream.advance()
                complete = window.start + stream.complete_frames
                if complete >= min(ready, window.end):
                    stream.check()
                    new = stream.codes(decoded - window.start, complete - window.start)[0]
                    decoded, ready = complete, complete + step
                    yield decoder.push(new, last=decoded == plan[-1].end).numpy()
            codes = continued(codes, stream.codes(0, window.frames), window)

    def audio_prompt(self, path: str | Path, seconds: float = 6.0) -> AudioPrompt:
        """The last seconds of a sound file, for `GenerationRequest(..., prompt_codes=prompt.codes)`.

        The clip begins with these codes; `AudioPrompt.restored` gives it the level of the file again.
        """
        return read_audio_prompt(Path(path), seconds, self._loaded_codec(), self.checkpoint)

    def decode(self, codes: torch.Tensor) -> np.ndarray:
        """Codes `[K, T]` of one clip to its wave `[C, S]`."""
        return np.concatenate(list(self.decoded(codes)), axis=-1)

    def decoded(self, codes: torch.Tensor) -> Iterator[np.ndarray]:
        """The wave of one clip in pieces `[C, n]`: one piece up to 30 s, and as many as memory likes beyond."""
        longest = window_frames(self.checkpoint.frame_rate)
        if codes.shape[-1] <= longest:
            yield codec.decode_clip(self._loaded_codec(), codes, self.checkpoint)
            return
        decoder = codec.StreamDecoder(self._loaded_codec(), self.checkpoint)
        pieces = codes.split(longest // PIECES, dim=-1)
        for number, piece in enumerate(pieces, start=1):
            yield decoder.push(piece, last=number == len(pieces)).numpy()

    @property
    def model(self) -> TextLM | MelodyLM:
        """The language model, for losses: its `forward` is that of the training."""
        return self._model

    def _loaded_codec(self) -> EncodecModel:
        if self._codec is None:
            self._codec = load_codec(self.checkpoint, self.device)
        return self._codec
