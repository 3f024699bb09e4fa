"""transformers' Trainer with the loss of the paper, metrics of each codebook, and updates that fit into memory."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from peft import PeftModel
from torch.utils.data import Sampler
from transformers import EvalPrediction, TrainerCallback

from musicgen_dreamboothing.arguments import KL
from musicgen_dreamboothing.console import UserError, log, plural
from musicgen_dreamboothing.device import is_out_of_memory, release_memory
from musicgen_dreamboothing.model.checkpoint import Checkpoint
from musicgen_dreamboothing.model.delay import IGNORED, sides_of
from musicgen_dreamboothing.model.recompute import use_full_recompute
from musicgen_dreamboothing.model.seams import switch_autocast_off
from musicgen_dreamboothing.signals import Stopped
from musicgen_dreamboothing.training.collator import IS_PRIOR
from musicgen_dreamboothing.training.dataset import EpochSampler
from musicgen_dreamboothing.training.loraplus import raise_rates
from musicgen_dreamboothing.training.optimizers import SCHEDULE_FREE, AverageWeights, optimizer_name, optimizer_of
from musicgen_dreamboothing.training.stopping import StoppableTrainer

SPLIT = "split"  # in a checkpoint's state: how micro-batches are computed


class CodebookTrainer(StoppableTrainer):
    """Trains the language models of `model.language_model`.

    The loss is the mean over codebooks of the mean cross-entropy over that codebook's valid steps, as
    in audiocraft's `solvers/musicgen.py`. Both means run over the whole batch of an update, whatever
    it is split into: micro-batches, accumulation steps, processes.
    """

    # Trainer divides by the number of accumulation steps unless the loss is marked as scaled.
    loss_is_scaled_for_ga = True

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        self._sides = sides_of(model.config.decoder.audio_channels)
        super().__init__(model, *args, compute_metrics=partial(evaluation_metrics, sides=self._sides), **kwargs)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        self._sampler = EpochSampler(len(self.train_dataset), seed)
        self._train_sums: torch.Tensor | None = None  # [2, G, K]: nll and count since the last line of the log
        self._frames: Any = 0  # of audio that this process was trained on since its start, padding left out
        self._parts = 1  # a micro-batch is computed in so many, since memory ran out
        self._recomputes_all = self.args.recompute == "full"
        self._earlier_batches: list[dict[str, torch.Tensor]] = []  # micro-batches of this update before the one at hand
        self.style_of: Callable[[Any], float] | None = None  # how far the model's music is from the songs
        self.add_callback(_SetEpoch(self._sampler))
        if optimizer_name(self.args).startswith(SCHEDULE_FREE):
            self.add_callback(AverageWeights())  # before those that play and save

    def create_accelerator_and_postprocess(self) -> None:
        """A frozen 16-bit base computes in its own precision: of accelerate's fp16 it needs the loss scaler alone.

        Autocast would keep fp32 copies of what it normalises, which no plan knows of.
        """
        super().create_accelerator_and_postprocess()
        if self.args.use_lora:
            switch_autocast_off(self.accelerator)

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: Any, model: Any = None) -> tuple[Any, Any]:
        """transformers' optimizers, and Prodigy."""
        return optimizer_of(args, model)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' optimizer, with the rates of LoRA+ where they are asked for."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if is_new and self.args.loraplus_lr_ratio != 1:
            raise_rates(optimizer, self.model, self.args.loraplus_lr_ratio)
        return optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return self._sampler

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], torch.Tensor | None]:
        """The micro-batches of an update, and `_get_num_items_in_batch` of them."""
        self.stop_before_update()
        batches = list(islice(epoch_iterator, num_batches))
        if batches and self.accelerator.gradient_state.end_of_dataloader:
            self._ignore_repeats(batches[-1])
        self._frames = sum((_frames(batch["labels"]) for batch in batches), self._frames)
        return batches, self._get_num_items_in_batch(batches, device)

    def _ignore_repeats(self, batch: dict[str, torch.Tensor]) -> None:
        """Leaves out the clips from an epoch's start with which accelerate fills its last batch for all processes."""
        processes, groups = self.accelerator.num_processes, 2 if IS_PRIOR in batch else 1
        size = len(batch["labels"]) // groups
        left = len(self.train_dataset) % (size * processes)
        if processes == 1 or left == 0 or self.args.dataloader_drop_last:
            return
        own = max(0, left - size * self.accelerator.process_index)
        batch["labels"].unflatten(0, (groups, size))[:, own:] = IGNORED

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> torch.Tensor | None:
        """Valid steps of each group and codebook `[G, K]` in the whole batch of an update, over all processes."""
        if not batch_samples:
            return None
        counts = sum(_groups(batch) @ (batch["labels"] != IGNORED).sum(2).float() for batch in batch_samples)
        return self.accelerator.reduce(torch.as_tensor(counts).to(device), reduction="sum")

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        """The share of this micro-batch in the loss of the update, times the number of processes.

        The gradients of the processes are averaged afterwards, which undoes that factor. With prior preservation it is
        the songs' loss plus the weighted loss of their class, each a mean over its own clips.
        """
        groups = _groups(inputs)
        rows = {name: values for name, values in inputs.items() if name != IS_PRIOR}
        if self.args.prior == KL and IS_PRIOR in inputs:
            rows |= self._base_states(model, rows, clips=int(inputs[IS_PRIOR].sum()))  # on the host, see `Collator`
        outputs = model(**rows)
        nll, own = groups @ outputs.nll, groups @ outputs.count.float()
        counts = own if num_items_in_batch is None else num_items_in_batch
        losses = (nll / counts.clamp(min=1)).mean(-1)  # [G]
        loss = (losses * losses.new_tensor([1.0, self.args.prior_loss_weight])[: len(losses)]).sum()
        if model.training:
            sums = torch.stack([nll.detach(), own])
            self._train_sums = sums if self._train_sums is None else self._train_sums + sums
        loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _base_states(self, model: Any, rows: dict[str, torch.Tensor], clips: int) -> dict[str, torch.Tensor]:
        """The base's hidden states of the last clips: the same weights with the adapter disabled."""
        if not clips:
            return {}
        adapted = self.accelerator.unwrap_model(model)
        last = {name: values[-clips:] for name, values in rows.items() if name != "labels"}
        with torch.no_grad(), adapted.disable_adapter():
            return {"base_states": adapted.get_base_model().states(**last)}

    def training_step(
        self, model: Any, inputs: dict[str, torch.Tensor], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Gradients of one micro-batch. Where memory runs out, this update begins anew with half as many clips at once.

        The loss is a sum over clips, so the update stays the same. Gradients of an incomplete backward pass
        are discarded with the rest of them, and the earlier micro-batches of the update are computed again.
        """
        earlier, counted = self._earlier_batches, self._train_sums
        self._earlier_batches = [] if self.accelerator.sync_gradients else [*earlier, inputs]
        again: list[dict[str, torch.Tensor]] = []
        while True:
            at_hand = inputs
            try:
                for at_hand in again:
                    self._step_in_parts(model, at_hand, num_items_in_batch)
                at_hand, self._train_sums = inputs, counted
                return self._step_in_parts(model, inputs, num_items_in_batch)
            except RuntimeError as error:
                self._shrink(error, len(at_hand["labels"]))
            model.zero_grad()
            release_memory()
            again = earlier

    def _step_in_parts(self, model: Any, inputs: dict[str, torch.Tensor], num_items_in_batch: Any) -> torch.Tensor:
        """One micro-batch in as many parts as memory asks for; their losses add up."""
        clips = len(inputs["labels"])
        size = -(-clips // self._parts)
        parts = (
            {name: values[first : first + size] for name, values in inputs.items()} for first in range(0, clips, size)
        )
        step = super().training_step
        return torch.stack([step(model, part, num_items_in_batch) for part in parts]).sum()

    def _shrink(self, error: RuntimeError, clips: int) -> None:
        """Half as many clips at once from now on, then full recomputation, or the error where neither is a cure."""
        size = -(-clips // self._parts)
        if not is_out_of_memory(error):
            raise error
        if self.accelerator.num_processes > 1 and (size > 1 or not self._recomputes_all):
            raise UserError(self._advice_for_processes(size)) from error
        if size > 1:
            self._parts = -(-clips // (size // 2))
            log(f"no memory for {plural(size, 'clip')} at once; continuing with {size // 2}, the update stays the same")
        elif not self._recomputes_all:
            use_full_recompute(self.model)
            self._recomputes_all = True
            log("no memory for a single clip; continuing with --recompute full, the update stays the same")
        else:
            raise UserError(
                "no memory for a single clip; try --quantization nf4, shorter crops (--crop_seconds 15), or a smaller "
                "--model_name_or_path"
            ) from error

    def _advice_for_processes(self, size: int) -> str:
        """What a person can do where several processes train, of which none can change its way alone."""
        problem = f"no memory for {plural(size, 'clip')} at once on one of {self.accelerator.num_processes} processes"
        if not self._recomputes_all:
            return f"{problem}; the same command with --recompute full resumes from the last checkpoint"
        times = self.args.gradient_accumulation_steps
        return (
            f"{problem}; start again with --restart true --per_device_train_batch_size {size // 2} "
            f"--gradient_accumulation_steps {2 * times}"
        )

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Adds the distance to the songs, where it is asked for: early stopping and the best checkpoint go by it."""
        output = super().evaluation_loop(*args, **kwargs)
        if self.style_of is not None:
            distance = self._style_distance() if self.is_world_process_zero() else None
            (distance,) = broadcast_object_list([distance])  # all processes must decide the same
            self.cut_evaluation_if_asked()
            if distance is not None:
                output.metrics["eval_style"] = distance
        return output

    def _style_distance(self) -> float | None:
        """None where a stop was asked for while its clips were generated."""
        assert self.style_of is not None
        try:
            return self.style_of(self.model)
        except Stopped:
            return None

    def prediction_step(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, torch.Tensor, torch.Tensor]:
        """Sums and counts `[B, K]` of each clip, from which `evaluation_metrics` makes exact means."""
        self.cut_evaluation_if_asked()
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**self._prepare_inputs(inputs))
        return None, outputs.nll, outputs.count

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds cross-entropy and perplexity of each codebook to the training lines."""
        if "loss" in logs and self._train_sums is not None:
            nll, count = self.accelerator.reduce(self._train_sums, reduction="sum").cpu()
            metrics = codebook_metrics(nll[0], count[0], self._sides)
            if len(nll) > 1:  # what Trainer calls loss is the weighted sum of these two
                logs |= {"instance_loss": metrics["loss"], "prior_loss": codebook_metrics(nll[1], count[1])["loss"]}
            logs |= {key: value for key, value in metrics.items() if key != "loss"}
            self._train_sums = None
        super().log(logs, start_time)

    def audio_seconds(self, checkpoint: Checkpoint) -> float:
        """Seconds of audio that all processes were trained on since their start; all of them have to ask."""
        frames = torch.as_tensor(self._frames, device=self.accelerator.device)
        return float(self.accelerator.reduce(frames, reduction="sum")) / checkpoint.frame_rate

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Keeps with it how micro-batches were split: a resumed run would run out of memory again."""
        self.state.stateful_callbacks[SPLIT] = {"parts": self._parts, "recomputes_all": self._recomputes_all}
        super()._save_checkpoint(model, trial)

    def _load_callback_state(self) -> None:
        split = self.state.stateful_callbacks.pop(SPLIT, None)
        super()._load_callback_state()
        if split is None or self.accelerator.num_processes > 1:  # several processes do not split any further
            return
        self._parts = split["parts"]
        if split["recomputes_all"] and not self._recomputes_all:
            use_full_recompute(self.model)
            self._recomputes_all = True

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Saves weights only: no pickled arguments, and not PEFT's guess at embeddings, which takes T5's for ours."""
        if not self.args.should_save:
            return
        folder = output_dir or str(self.args.output_dir)
        os.makedirs(folder, exist_ok=True)
        if isinstance(self.model, PeftModel):
            self.model.save_pretrained(folder, save_embedding_layers=False)
        else:
            self.model.save_pretrained(folder)


class _SetEpoch(TrainerCallback):
    """Sets the epoch of the sampler; a resumed one begins in its middle."""

    def __init__(self, sampler: EpochSampler) -> None:
        self.sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.sampler.epoch = int(state.epoch or 0)


def _groups(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Which clips belong together, `[G, B]` of zeros and ones: all, or the songs and their class."""
    if IS_PRIOR not in batch:
        return torch.ones(1, len(batch["labels"]), device=batch["labels"].device)
    is_prior = torch.as_tensor(batch[IS_PRIOR])
    return torch.stack([~is_prior, is_prior]).float().to(batch["labels"].device)


def _frames(labels: torch.Tensor) -> torch.Tensor:
    """Frames of audio in labels `[B, K, S]`, prompts included: codebook 1 has its last label in a clip's last frame."""
    steps = torch.arange(1, labels.shape[-1] + 1, device=labels.device)
    return ((labels[:, 0] != IGNORED) * steps).amax(-1).sum()


def codebook_metrics(nll: torch.Tensor, count: torch.Tensor, sides: tuple[str, ...] = ()) -> dict[str, float]:
    """Mean cross-entropy (nats) and perplexity, for all, each side and each codebook, named as audiocraft names them.

    Args:
        nll: summed cross-entropy of each codebook `[K]`.
        count: number of valid steps of each codebook `[K]`.
        sides: names of the sides whose codebooks are interleaved.
    """
    means = (nll.double() / count.clamp(min=1)).tolist()
    mean = sum(means) / len(means)
    metrics = {"loss": mean, "ppl": _perplexity(mean)}
    of_sides = {side: means[number :: len(sides)] for number, side in enumerate(sides)}
    parts = {side: sum(books) / len(books) for side, books in of_sides.items()}
    parts |= {f"q{number}": value for number, value in enumerate(means, start=1)}
    for name, value in parts.items():
        metrics |= {f"ce_{name}": value, f"ppl_{name}": _perplexity(value)}
    return metrics


def _perplexity(cross_entropy: float) -> float:
    return math.exp(cross_entropy) if cross_entropy < 700 else math.inf  # a double ends near exp(709)


def evaluation_metrics(prediction: EvalPrediction, sides: tuple[str, ...] = ()) -> dict[str, float]:
    """Metrics of held-out clips from their sums and counts, both `[N, K]`."""
    nll, count = torch.as_tensor(prediction.predictions), torch.as_tensor(prediction.label_ids)
    return codebook_metrics(nll.double().sum(0), count.sum(0), sides)
