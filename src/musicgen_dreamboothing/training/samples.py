"""Samples before, during and after a training, with the same prompts and seeds.

A training with samples ends with the same weights as one without, bit by bit: what making music touches in the model
and in the random numbers of the process is put back.
"""

from __future__ import annotations

import json
import os
import random
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import extract_model_from_parallel
from peft import PeftModel
from torch import nn
from transformers import Trainer, TrainerCallback

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.console import UserError, best_effort, log, plural
from musicgen_dreamboothing.device import is_out_of_memory, release_memory
from musicgen_dreamboothing.files import write_json
from musicgen_dreamboothing.generation.generator import Generator
from musicgen_dreamboothing.generation.guidance import Sampling
from musicgen_dreamboothing.generation.requests import GeneratedClip
from musicgen_dreamboothing.model import codec
from musicgen_dreamboothing.model.adapter import trained_parameters
from musicgen_dreamboothing.model.checkpoint import Checkpoint, load_codec
from musicgen_dreamboothing.model.merging import merged_in_place
from musicgen_dreamboothing.model.seams import is_bitsandbytes
from musicgen_dreamboothing.pages import spectrogram
from musicgen_dreamboothing.signals import Stopped, StopRequest
from musicgen_dreamboothing.training.checkpoints import step_of
from musicgen_dreamboothing.training.trackers import Sample, log_before_and_after, log_samples

FOLDER, LISTING = "samples", "samples.json"
MAX_SLUG = 40


def sample_prompts_of(
    prompts: Sequence[str],
    *,
    add_audio_samples_to_wandb: bool,
    num_samples_to_generate: int,
    full_generation_sample_text: str | None,
    report_to: Sequence[str],
    held_out_captions: Sequence[str],
) -> list[str]:
    """The prompts of the samples; none unless asked for.

    Args:
        prompts: of `--sample_prompts`, or one file of them. They win over the published script's options:
        add_audio_samples_to_wandb: with `wandb` among the trackers, play the held-out clips' captions,
        num_samples_to_generate: so many of them,
        full_generation_sample_text: and this prompt.
        report_to: the trackers.
        held_out_captions: in the order of the clips; equal ones are played once.
    """
    if prompts:
        return read_prompts(prompts)
    if not add_audio_samples_to_wandb or "wandb" not in report_to:
        return []
    own = [full_generation_sample_text] if full_generation_sample_text else []
    return list(dict.fromkeys([*held_out_captions[:num_samples_to_generate], *own]))


def read_prompts(words: Sequence[str]) -> list[str]:
    """Prompts, or the lines of the one file that is named instead; each once.

    Raises:
        UserError: there is no such text file, it is not UTF-8, or it holds no prompt.
    """
    path = Path(words[0]).expanduser()
    if len(words) > 1 or path.suffix.lower() != ".txt":
        return list(dict.fromkeys(words))
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # some editors put a mark before the first line
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--sample_prompts {words[0]} can't be read ({error}); give prompts, or a UTF-8 file with one a line"
        ) from error
    found = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not found:
        raise UserError(f"--sample_prompts {words[0]} is empty; write one prompt a line")
    return found


def file_stem(number: int, prompt: str) -> str:
    """`00_80s-punk`: a name that every file system takes."""
    slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower())[:MAX_SLUG].strip("-")
    return f"{number:02d}_{slug or 'prompt'}"


@dataclass
class Sampler:
    """Generates from a model that is being trained.

    Attributes:
        checkpoint: its base.
        prompts: what is played; each once.
        seconds: length of a clip.
        seed: with the prompt it fixes the random numbers of a clip, at every step the same.
        folder: where `step_0000` and the following go.
        sampling: how codes are chosen.
        stop: generating ends at once, with `Stopped`, where it was or is asked for.
    """

    checkpoint: Checkpoint
    prompts: list[str]
    seconds: float
    seed: int
    folder: Path
    sampling: Sampling = Sampling()
    stop: StopRequest = field(default_factory=StopRequest)
    _states: dict[str, np.ndarray] = field(default_factory=dict, init=False, repr=False)  # of prompts, by a frozen T5

    def play(self, model: nn.Module, step: int, *, base: bool = False) -> list[Sample]:
        """The clips of a step as files; those that an earlier call has made are taken as they are.

        Without memory, or if the model ignores prompts, it logs the reason and returns none.

        Args:
            model: as it is being trained: with or without adapter, wrapped or not.
            step: the update whose weights the model has.
            base: play the base below the adapter.
        """
        samples = self._planned(step)
        if not samples or self._is_made(step):
            return samples
        with self.stop.interruptible():
            log(f"playing {plural(len(samples), 'sample')} of {self.seconds:g} s at update {step}")
        try:
            clips = self.make(model, self.prompts, base=base)
        except UserError as error:
            log(f"no samples at update {step}: {error}")
            return []
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            log(f"no samples at update {step}: out of memory for a single clip; try a shorter --sample_seconds")
            return []
        for sample, clip in zip(samples, clips, strict=True):
            _write(sample, clip)
        write_json(self._listing(step), self._facts())
        return samples

    def make(
        self,
        model: nn.Module,
        prompts: Sequence[str],
        variations: int = 1,
        seconds: float | None = None,
        seed: int | None = None,
        *,
        base: bool = False,
    ) -> list[GeneratedClip]:
        """Clips of a model that is being trained, which is left as it was; prompt by prompt with all its variations.

        Args:
            model: as of `play`.
            prompts: what to play; each once.
            variations: clips of each prompt.
            seconds: length of a clip; the sampler's own by default.
            seed: the sampler's own by default.
            base: play the base below the adapter.

        Raises:
            UserError: the prompt changes nothing, or there is no base below the adapter.
            RuntimeError: no memory for a single clip.
        """
        requests = [(prompt, variation) for prompt in prompts for variation in range(variations)]
        length = self.seconds if seconds is None else seconds
        with _restored_random_state():
            try:
                codes = self._draw(model, requests, length, self.seed if seed is None else seed, base)
                release_memory()  # before the codec comes
                return self._decode(codes, next(model.parameters()).device, requests)
            finally:
                release_memory()

    def _draw(
        self, model: nn.Module, requests: list[tuple[str, int]], seconds: float, seed: int, base: bool
    ) -> dict[tuple[str, int], torch.Tensor]:
        unwrapped = extract_model_from_parallel(model)
        learns_text = any("text_encoder." in name for name, _ in trained_parameters(unwrapped))
        with _base_of(unwrapped) if base else _fine_tuned(unwrapped, self.checkpoint) as playable, _restored(playable):
            generator = Generator.around(playable, self.checkpoint, None if learns_text else self._states)
            with self.stop.interruptible():  # neither before nor behind it: weights are merged and put back there
                return dict(
                    generator.codes(requests, seconds=seconds, seed=seed, sampling=self.sampling, progress=False)
                )

    def _decode(
        self, codes: dict[tuple[str, int], torch.Tensor], device: torch.device, requests: list[tuple[str, int]]
    ) -> list[GeneratedClip]:
        loaded, rate = load_codec(self.checkpoint, device), self.checkpoint.sampling_rate
        return [
            GeneratedClip(*clip, codes[clip], codec.decode_clip(loaded, codes[clip], self.checkpoint), rate)
            for clip in requests
        ]

    def _planned(self, step: int) -> list[Sample]:
        stems = [self._folder(step) / file_stem(*numbered) for numbered in enumerate(self.prompts)]
        return [
            Sample(prompt, step, stem.with_name(f"{stem.name}.wav"), stem.with_name(f"{stem.name}.png"))
            for prompt, stem in zip(self.prompts, stems, strict=True)
        ]

    def _folder(self, step: int) -> Path:
        return self.folder / f"step_{step:04d}"

    def _listing(self, step: int) -> Path:
        return self._folder(step) / LISTING

    def _facts(self) -> dict[str, Any]:
        """What the files of a step are: written when all of them are there, and read to know whether they are."""
        files = {sample.audio.name: sample.prompt for sample in self._planned(0)}
        return {"seconds": self.seconds, "seed": self.seed, "sampling": asdict(self.sampling), "prompts": files}

    def _is_made(self, step: int) -> bool:
        try:
            facts = json.loads(self._listing(step).read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            return False
        return bool(facts == self._facts()) and all(
            sample.audio.exists() and sample.picture.exists() for sample in self._planned(step)
        )


class SampleCallback(TrainerCallback):
    """Plays the model before, during and after a training, and shows it to the trackers; see `add_samples`.

    Args:
        sampler: what is played.
        every: updates between two samples; 0 plays at the start and the end only.
        at_start: whether the base is played too, as step 0.
        callbacks: the trainer's, among them the trackers'.

    Attributes:
        seconds: what playing has taken of the training's time so far.
    """

    def __init__(self, sampler: Sampler, every: int, at_start: bool, callbacks: Sequence[TrainerCallback]) -> None:
        self._sampler, self._every, self._at_start, self._callbacks = sampler, every, at_start, callbacks
        self._played: dict[int, list[Sample]] = {}  # by step
        self._logged: set[int] = set()
        self.seconds = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """The trackers don't listen yet: what is played now is shown when the first epoch begins."""
        if self._at_start:
            self._play(state, model, 0, base=state.global_step > 0)
        if state.global_step and self._is_due(state):  # where the run was stopped
            self._play(state, model, state.global_step)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._log(state)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if self._is_due(state):
            self._play(state, model, state.global_step)
            self._log(state)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """By now the best weights are loaded, if that was asked for, and if the training was not stopped."""
        best = state.best_model_checkpoint if args.load_best_model_at_end else None
        last = step_of(Path(best)) if best else state.global_step
        self._play(state, model, last)
        self._log(state)
        before, after = self._played.get(0, []), self._played.get(last, [])
        if state.is_world_process_zero and before and after and last and not self._sampler.stop.number:
            with best_effort("the samples before and after are not in the trackers"):
                log_before_and_after(self._callbacks, before, after, state.global_step)

    def _is_due(self, state: Any) -> bool:
        """At the last update it is not known yet which weights will be kept."""
        return bool(self._every) and state.global_step % self._every == 0 and state.global_step < state.max_steps

    def _play(self, state: Any, model: Any, step: int, *, base: bool = False) -> None:
        """The main process plays and the others wait, for their next update needs it."""
        started = time.perf_counter()
        if state.is_world_process_zero:
            with (
                best_effort(f"no samples at update {step}"),
                suppress(Stopped),
            ):  # the trainer stops next; what was not played is played when the run goes on
                self._played[step] = self._sampler.play(model, step, base=base)
        PartialState().wait_for_everyone()
        self.seconds += time.perf_counter() - started

    def _log(self, state: Any) -> None:
        if not state.is_world_process_zero:
            return
        for step in sorted(self._played.keys() - self._logged):
            self._logged.add(step)
            with best_effort(f"the samples of update {step} are not in the trackers"):
                log_samples(self._callbacks, self._played[step], step)


def add_samples(trainer: Trainer, sampler: Sampler, *, every: int, at_start: bool) -> SampleCallback:
    """Has a training played. The callback stands before the trackers', which close at the end of a training."""
    callbacks = trainer.callback_handler.callbacks
    callback = SampleCallback(sampler, every, at_start, callbacks)
    callbacks.insert(0, callback)
    return callback


@contextmanager
def _fine_tuned(model: Any, checkpoint: Checkpoint) -> Iterator[Any]:
    """The language model as it is by now."""
    if not isinstance(model, PeftModel):
        yield model
        return
    with merged_in_place(model, checkpoint) as merged:
        yield merged


@contextmanager
def _base_of(model: Any) -> Iterator[Any]:
    """The language model as it was."""
    if not isinstance(model, PeftModel) or model.initial_adapter is not None:
        raise UserError("the training has changed the base, which can be played only before it")
    if model.initial_digest is not None:
        raise UserError("the adapter that the training began from can be played only before its first update")
    with model.disable_adapter():
        yield model.get_base_model()


@contextmanager
def _restored(model: Any) -> Iterator[None]:
    """Lets a model be played in eval mode, and puts back what that changes in it.

    `engine.Stack` lays weights together, and long clips make the table of positions grow, in inference mode.
    bitsandbytes packs 4-bit weights in eval mode on a CPU, for good and without a gradient: its layers stay in theirs.
    """
    modes = [(module, module.training) for module in model.modules()]
    weights = [(weight, weight.data) for weight in model.parameters() if type(weight) is nn.Parameter]
    positions = model.decoder.model.decoder.embed_positions
    table = positions.weights
    for module, _ in modes:
        module.training = module.training and is_bitsandbytes(module)
    try:
        yield
    finally:
        positions.weights = table
        for weight, data in weights:
            weight.data = data
        for module, mode in modes:
            module.training = mode


@contextmanager
def _restored_random_state() -> Iterator[None]:
    """Gives back the random states of Python, numpy and torch: loading a part of a checkpoint may draw from them."""
    device = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    apple = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    python, numbers = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(device):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)
            if apple is not None:
                torch.mps.set_rng_state(apple)


def _write(sample: Sample, clip: GeneratedClip) -> None:
    sample.audio.parent.mkdir(parents=True, exist_ok=True)
    audio.write(sample.audio, clip.wave, clip.sampling_rate)
    temporary = sample.picture.with_name(f".{sample.picture.name}.part")
    try:
        temporary.write_bytes(spectrogram(clip.wave, clip.sampling_rate))
        os.replace(temporary, sample.picture)
    finally:
        temporary.unlink(missing_ok=True)
