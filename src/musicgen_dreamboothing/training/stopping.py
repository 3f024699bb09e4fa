"""A Trainer that can be stopped at any moment, and whose run then goes on as if nothing had happened."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import torch
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_callback import ExportableState

from musicgen_dreamboothing.model.seams import wrap_worker_start
from musicgen_dreamboothing.signals import SIGNALS, Stopped, StopRequest


class EvaluationStoppedError(Exception):
    """A stop was asked for in the middle of an evaluation."""


class StoppableTrainer(Trainer):
    """Ends a training between two updates where a stop was asked for, behind a checkpoint of the last one.

    All processes do so at the same update, whichever of them got the signal. That checkpoint is no evaluation and no
    end: only evaluations and checkpoints that were due anyway are made at their places, as in a run at one go.

    Attributes:
        stop: what was asked for; signals are noted while it is `deferred`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stop = StopRequest()
        self.args.restore_callback_states_from_checkpoint = True  # the patience of early stopping, and what is due
        self._saved_step: int | None = None
        self._resumed_step: int | None = None
        self._stopped_early_of: int | None = None  # planned updates of a run that early stopping has ended
        self._epoch_has_begun = False

    def agreed_signal(self) -> int:
        """The signal that any of the processes got, or 0; each must ask at the same point."""
        if not torch.distributed.is_initialized():
            return self.stop.number
        number = torch.tensor(self.stop.number, device=self.args.device)
        torch.distributed.all_reduce(number, op=torch.distributed.ReduceOp.MAX)
        agreed = int(number)
        if agreed:  # else a signal that has come meanwhile would be forgotten
            self.stop.number = agreed
        return agreed

    def _stop_if_asked(self) -> None:
        if self.agreed_signal():
            self._save_and_stop()

    def _save_and_stop(self) -> NoReturn:
        step, text = self.state.global_step, "stopped before the first update; the same command begins again"
        if step:
            if self._saved_step != step:
                self._save_checkpoint(self.model, trial=None)
            text = f"stopped at update {step} of {self.state.max_steps} and saved checkpoint-{step}"
            text += "; the same command resumes"
        self.callback_handler.on_train_end(self.args, self.state, self.control)  # trackers and bars are closed
        self.accelerator.wait_for_everyone()  # a launcher kills the others when the first process ends
        raise Stopped(text, self.stop.number)

    def stop_before_update(self) -> None:
        """Stops between two updates of an epoch.

        Not before the first one: the loader has drawn from the random numbers by then, and a resumed epoch would draw
        once more.
        """
        if self._epoch_has_begun:
            self._stop_if_asked()
        self._epoch_has_begun = True

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        self._finish_last_update(kwargs)
        if self.state.global_step >= self.state.max_steps or self._stopped_early_of == self.state.max_steps:
            self.control.should_training_stop = True  # resumed behind its last update, and not to train longer
        if self.control.should_training_stop:
            return
        self._stop_if_asked()
        self._epoch_has_begun = False
        super()._run_epoch(*args, **kwargs)

    def _finalize_training(self, trial: Any, num_train_samples: int, start_time: float) -> Any:
        """Behind this point the best weights may be loaded: the run is finished then, whatever is asked for."""
        self._finish_last_update({"start_time": start_time})
        self._stop_if_asked()
        return super()._finalize_training(trial, num_train_samples, start_time)

    def _finish_last_update(self, loop: dict[str, Any]) -> None:
        """Makes up for the evaluation in which an earlier part of the run was stopped, and its checkpoint."""
        if not self.control.should_evaluate:
            return
        self._saved_step = None
        values = {name: loop.get(name) for name in ("trial", "epoch", "ignore_keys_for_eval", "start_time")}
        self._maybe_log_save_evaluate(self._tr_loss, None, loop.get("model", self.model_wrapped), **values)

    def _evaluate(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super()._evaluate(*args, **kwargs)
        except EvaluationStoppedError:
            self._save_and_stop()  # `control`, saved with the rest, says what is due

    def cut_evaluation_if_asked(self) -> None:
        """Leaves an evaluation within a training, which the resumed run makes anew.

        Raises:
            EvaluationStoppedError: a stop was asked for.
        """
        if self.is_in_train and self.agreed_signal():
            raise EvaluationStoppedError

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self._saved_step = self.state.global_step

    def _save_rng_state(self, output_dir: str) -> None:
        """Of all processes, before the main one writes the state: its file tells that a checkpoint is complete.

        Where the run was resumed the states are there, and are loaded only when the next epoch has started.
        """
        if self.state.global_step != self._resumed_step:
            super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()

    def _load_callback_state(self) -> None:
        super()._load_callback_state()
        for callback in self.callback_handler.callbacks:  # one that the run began without would fail to save
            if isinstance(callback, ExportableState):
                self.state.stateful_callbacks.setdefault(type(callback).__name__, callback.state())
        self._saved_step = self._resumed_step = self.state.global_step
        if self.control.should_training_stop and self.state.global_step < self.state.max_steps:
            self._stopped_early_of = self.state.max_steps

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> DataLoader[Any]:
        loader: DataLoader[Any] = super()._get_dataloader(*args, **kwargs)
        if loader.num_workers and sys.platform != "win32":
            torchs = loader.base_dataloader  # type: ignore[attr-defined]  # accelerate's own one only passes through
            torchs.worker_init_fn = partial(_ignore_signals, torchs.worker_init_fn)
            wrap_worker_start(torchs, lambda start: partial(_with_signals_blocked, start))
        return loader


def _with_signals_blocked(start_workers: Callable[[], Any]) -> Any:
    """Workers inherit the mask, and unblock when they ignore the signals: else one could end them as they start."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        return start_workers()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _ignore_signals(begin: Callable[[int], None] | None, worker: int) -> None:
    """Lets the workers of a loader live until the training ends: signals go to all processes of a group."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    if begin is not None:
        begin(worker)
