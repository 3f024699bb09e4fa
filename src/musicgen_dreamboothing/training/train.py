"""`train`: songs or tokens in, a fine-tuned model out."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import shlex
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import EarlyStoppingCallback, IntervalStrategy, TrainerCallback, set_seed
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from musicgen_dreamboothing.arguments import EvaluateArguments, TrainArguments
from musicgen_dreamboothing.console import UserError, plural, say
from musicgen_dreamboothing.data.captions import key_phrase
from musicgen_dreamboothing.data.lock import folder_lock
from musicgen_dreamboothing.data.prepare import checkpoint_of, is_prepared, prepare_songs, refresh
from musicgen_dreamboothing.data.run import RunRecord, read_record
from musicgen_dreamboothing.data.tables import Tables, load_tables
from musicgen_dreamboothing.data.tokens import word_states
from musicgen_dreamboothing.generation.decoding import Sampling
from musicgen_dreamboothing.model.adapter import SPLITTING, LoraSettings, add_adapter, check_settings
from musicgen_dreamboothing.model.checkpoint import Checkpoint, load_tokenizer
from musicgen_dreamboothing.model.device import (
    parse_dtype,
    peak_memory,
    release_memory,
    reset_peak_memory,
    return_freed_memory,
)
from musicgen_dreamboothing.model.keyword import keyword_note, texts_of
from musicgen_dreamboothing.model.language_model import load_language_model
from musicgen_dreamboothing.model.quantized import base_quantization
from musicgen_dreamboothing.model.recompute import use_full_recompute
from musicgen_dreamboothing.model.text import tokenize
from musicgen_dreamboothing.sharing.hub import open_repository, upload
from musicgen_dreamboothing.sharing.licence import licence_notice, licence_of
from musicgen_dreamboothing.training.collator import Collator
from musicgen_dreamboothing.training.dataset import ClipDataset, Drawing, PairedDataset
from musicgen_dreamboothing.training.plan import plan_of
from musicgen_dreamboothing.training.prior import check_prior, prior_tables
from musicgen_dreamboothing.training.progress import BarAndLines, Lines
from musicgen_dreamboothing.training.record import (
    check_same_base,
    check_same_data,
    check_same_run,
    discard_record,
    telling_options,
)
from musicgen_dreamboothing.training.samples import FOLDER as SAMPLES
from musicgen_dreamboothing.training.samples import (
    SampleCallback,
    Sampler,
    add_samples,
    read_prompts,
    sample_prompts_of,
)
from musicgen_dreamboothing.training.saving import discard_result, save_run
from musicgen_dreamboothing.training.trainer import CodebookTrainer, discard_checkpoints, last_checkpoint, step_of

POSITIVE = (
    *("lora_r", "crop_seconds", "max_train_samples", "max_eval_samples", "sample_seconds", "early_stopping_patience"),
    *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
)
SPLIT = ("per_device_train_batch_size", "gradient_accumulation_steps", "recompute")
UNSUPPORTED = {
    "label_smoothing_factor": "the loss of the codebooks is computed here",
    "neftune_noise_alpha": "the loss of the codebooks is computed here",
    "auto_find_batch_size": "--recompute auto splits the batch as memory allows",
    "batch_eval_metrics": "held-out clips are summed up over all batches",
    "hub_revision": "a run is pushed to the repository's main branch",
}
# transformers' options that its Trainer reads for other models, or leaves to scripts
IDLE = (
    *("predict_with_generate", "generation_max_length", "generation_num_beams", "generation_config"),
    *("sortish_sampler", "do_predict", "include_for_metrics", "train_sampling_strategy", "length_column_name"),
    *("prediction_loss_only", "hub_strategy", "hub_always_push"),
)


@dataclass(frozen=True)
class TrainResult:
    """A finished run.

    Attributes:
        folder: holds the adapter (or the model), processor, card and `run.json`.
        metrics: the last evaluation on held-out songs, empty where none were held out.
        summary: runtime, speed and peak memory, as in `run.json`.
    """

    folder: Path
    metrics: dict[str, float]
    summary: dict[str, Any]


def train(options: TrainArguments) -> TrainResult | None:
    """Fine-tunes a base checkpoint; the same call again continues a run that was cut short.

    With `plan` it only says how much memory a step takes, and returns None.

    Raises:
        UserError: anything that a person can mend, before hours are spent where possible.
    """
    options = copy.copy(options)  # what is settled below is not the caller's business
    _check(options)
    checkpoint = checkpoint_of(options)
    if options.plan:
        plan_of(options, checkpoint, _lora_settings(options))
        return None
    repository = _open_repository(options, checkpoint)
    folder = Path(str(options.output_dir))
    folder.mkdir(parents=True, exist_ok=True)
    with folder_lock(folder):
        finished = _settle_earlier_run(folder, options, checkpoint)
        result = finished or _run(options, checkpoint, folder)
        release_memory()
        if finished is None:
            _report(folder, options)
        if repository is not None and PartialState().is_main_process:
            say(f"uploaded to {upload(folder, repository, token=options.hub_token or options.token)}")
    return result


def _run(options: TrainArguments, checkpoint: Checkpoint, folder: Path) -> TrainResult:
    prepared = _prepared_folder(options, checkpoint)
    tables = load_tables(
        prepared,
        eval_fraction=options.eval_fraction,
        seed=options.seed,
        text_states=options.freeze_text_encoder,
    )
    tables = _limit(tables, options)
    _announce(tables, options)
    prior = _prior(options, checkpoint, prepared, tables)
    set_seed(options.seed)
    return_freed_memory()
    reset_peak_memory()
    asked = copy.copy(options)
    trainer = _trainer(options, checkpoint, tables, prior, prepared)
    _play_along(trainer, asked, checkpoint, tables, folder)
    split = {name: getattr(options, name) for name in SPLIT}
    data = tables.fingerprint + (prior.fingerprint if prior is not None else "")
    record = RunRecord(telling_options(asked), checkpoint.name, checkpoint.identity, data, split, str(prepared))
    resume = last_checkpoint(folder)
    if resume is not None:
        check_same_data(folder, record)
        say(f"continuing from {resume}")
    PartialState().wait_for_everyone()  # all have read the earlier record
    if trainer.is_world_process_zero():
        record.write(folder)
    started = time.perf_counter()
    outcome = trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    metrics = _last_evaluation(trainer)
    playing = sum(one.seconds for one in trainer.callback_handler.callbacks if isinstance(one, SampleCallback))
    seconds, begun_at = time.perf_counter() - started - playing, step_of(resume) if resume else 0
    summary = _summary(trainer, outcome.metrics, tables, checkpoint, seconds, begun_at)
    licence = licence_of(checkpoint)
    save_run(trainer, folder, checkpoint, tables, asked, metrics, licence)
    if trainer.is_world_process_zero():
        record.finished, record.summary, record.log = True, summary | metrics, trainer.state.log_history
        record.write(folder)
        _tell(folder, trainer, summary, metrics, licence_notice(checkpoint.name, licence), options)
    PartialState().wait_for_everyone()
    return TrainResult(folder, metrics, summary)


def _check(options: TrainArguments) -> None:
    """What can be known to fail fails before anything is loaded."""
    if not options.dataset_name and not options.plan:
        raise UserError("say which songs: train --dataset_name SONGS --instance_prompt WORD --output_dir DIR")
    for name in POSITIVE:
        if (value := getattr(options, name)) is not None and value <= 0:
            raise UserError(f"--{name} {value} must be more than 0")
    for name in UNSUPPORTED:
        if getattr(options, name):
            raise UserError(f"--{name} is not supported: {UNSUPPORTED[name]}")
    if not 0 <= options.caption_dropout <= 1:
        raise UserError(f"--caption_dropout {options.caption_dropout} must lie between 0 and 1")
    defaults = {entry.name: entry.default for entry in dataclasses.fields(options)}
    for name in IDLE:
        if getattr(options, name, None) and getattr(options, name) != defaults[name]:
            say(f"--{name} has no part in this training")
    if options.resume_from_checkpoint:
        say("--resume_from_checkpoint is not needed: the same command goes on from its last checkpoint")
    parse_dtype(options.dtype, options.device)
    check_settings(_lora_settings(options))
    _check_quantization(options)
    check_prior(options)
    _check_samples(options)
    _check_trackers(options.report_to)
    if options.n_gpu > 1:
        say(f"{options.n_gpu} GPUs are here and one is used; `accelerate launch` uses all of them")
        options._n_gpu = 1  # torch's DataParallel, which Trainer would use, splits neither captions nor losses rightly


def _check_quantization(options: TrainArguments) -> None:
    base_quantization(options.quantization, torch.float32)
    if options.quantization == "none":
        return
    if not options.use_lora:
        raise UserError(f"--quantization {options.quantization} freezes the base, which --use_lora false would train")
    if SPLITTING.fullmatch(options.lora_init):
        raise UserError(
            f"--lora_init {options.lora_init} changes the base, which --quantization has rounded; choose one"
        )


def _check_samples(options: TrainArguments) -> None:
    if options.final_report not in ("auto", "true", "false"):
        raise UserError(f"--final_report {options.final_report!r} is unknown; it takes auto, true or false")
    if options.sample_steps < 0:
        raise UserError(f"--sample_steps {options.sample_steps} must not be negative; 0 plays before and after only")
    if options.sample_prompts:
        read_prompts(options.sample_prompts)


def _check_trackers(trackers: list[str]) -> None:
    try:
        get_reporting_integration_callbacks(trackers)
    except ValueError as error:
        raise UserError(f"--report_to: {error}") from error
    for tracker in trackers:
        if tracker in ("wandb", "tensorboard", "trackio") and importlib.util.find_spec(tracker) is None:
            raise UserError(f"--report_to {tracker} needs: pip install 'musicgen-dreamboothing[{tracker}]'")


def _open_repository(options: TrainArguments, checkpoint: Checkpoint) -> str | None:
    """The Hub repository to push to, made now. The Trainer itself must not push: it would upload the songs."""
    if not options.push_to_hub:
        return None
    options.push_to_hub = False
    name = options.hub_model_id or Path(str(options.output_dir)).resolve().name
    if PartialState().is_main_process:
        name = open_repository(name, token=options.hub_token or options.token, private=options.hub_private_repo)
        if options.use_lora and checkpoint.is_local:
            say(f"note: the adapter will name its base {checkpoint.name}, which is a folder here and nowhere else")
    options.hub_model_id = name  # with its owner, for the card
    return name


def _settle_earlier_run(folder: Path, options: TrainArguments, checkpoint: Checkpoint) -> TrainResult | None:
    """Discards, continues or hands back what an earlier run left in the folder."""
    earlier = read_record(folder)
    if options.restart:
        if PartialState().is_main_process:
            discard_record(folder)  # first: a record without the rest would be taken for the run
            discard_checkpoints(folder)
            shutil.rmtree(folder / SAMPLES, ignore_errors=True)
            if earlier is not None:
                discard_result(folder, is_adapter=bool(earlier.options.get("use_lora", True)))
        PartialState().wait_for_everyone()
        return None
    if earlier is None:
        if last_checkpoint(folder) is not None:
            raise UserError(f"{folder} holds checkpoints of something else; choose another --output_dir")
        return None
    check_same_run(earlier, options, folder)
    check_same_base(earlier, checkpoint, folder)
    if not earlier.finished:
        return None
    say(f"{folder} holds this run already, finished; --restart true trains it anew")
    metrics = {key: value for key, value in earlier.summary.items() if key.startswith("eval_")}
    return TrainResult(folder, metrics, earlier.summary)


def _prepared_folder(options: TrainArguments, checkpoint: Checkpoint) -> Path:
    """The folder with tokens, brought up to date."""
    songs = Path(str(options.dataset_name)).expanduser()
    prepared = songs if is_prepared(songs) else Path(options.prepared_dir or f"{options.output_dir}/data")
    if prepared == songs:
        refresh(prepared, options, checkpoint, text_states=options.freeze_text_encoder)
    else:
        prepare_songs(str(options.dataset_name), prepared, options, checkpoint, text_states=options.freeze_text_encoder)
    return prepared


def _limit(tables: Tables, options: TrainArguments) -> Tables:
    """The first clips only, where that was asked for."""
    train_rows = range(min(len(tables.train), options.max_train_samples or len(tables.train)))
    eval_rows = range(min(len(tables.held_out), options.max_eval_samples or len(tables.held_out)))
    return Tables(tables.train.select(train_rows), tables.held_out.select(eval_rows), tables.captions)


def _announce(tables: Tables, options: TrainArguments) -> None:
    minutes = sum(tables.train["seconds"]) / 60
    say(f"training on {plural(len(tables.train), 'clip')}, {minutes:.1f} minutes")
    if held := tables.held_out_songs:
        names = ", ".join(held[:3]) + (", …" if len(held) > 3 else "")
        say(f"evaluating on {plural(len(tables.held_out), 'clip')} of {plural(len(held), 'song')} held out: {names}")
    elif options.eval_strategy != IntervalStrategy.NO and options.eval_fraction > 0:
        say("no song is held out: there are too few; --eval_split_name or a folder of more songs allows evaluation")


def _prior(options: TrainArguments, checkpoint: Checkpoint, prepared: Path, tables: Tables) -> Tables | None:
    """Clips of the class, where they are asked for."""
    if not options.with_prior_preservation:
        return None
    return prior_tables(options, checkpoint, prepared, options.crop_seconds or max(tables.train["seconds"]))


def _split(options: TrainArguments, checkpoint: Checkpoint, tables: Tables) -> None:
    """Splits the batch as memory allows, and chooses what is recomputed; what was said explicitly stays.

    A run that goes on keeps its split, so that it ends with the same weights.
    """
    folder = Path(str(options.output_dir))
    # Without a checkpoint it begins anew, perhaps since memory ran out, and then the plan may change.
    earlier = read_record(folder) if last_checkpoint(folder) is not None else None
    if options.recompute == "auto" and earlier is not None and earlier.split.keys() == set(SPLIT):
        for name, value in earlier.split.items():
            setattr(options, name, value)
    elif options.recompute == "auto" or options.memory is not None:
        longest = max(tables.train["seconds"])
        plan = plan_of(options, checkpoint, _lora_settings(options), longest, tables.longest_caption)
        # Processes must agree, and find different amounts of memory free: the first one's plan holds for all.
        values = broadcast_object_list([plan.clips, plan.accumulation, plan.policy])
        for name, value in zip(SPLIT, values, strict=True):
            setattr(options, name, value)


def _trainer(
    options: TrainArguments, checkpoint: Checkpoint, tables: Tables, prior: Tables | None, prepared: Path
) -> CodebookTrainer:
    _split(options, checkpoint, tables)
    model = _model(options, checkpoint, lambda base: _check_key_word(base, options, checkpoint, tables, prepared))
    frames = round(options.crop_seconds * checkpoint.frame_rate) if options.crop_seconds else None
    seed = options.seed if options.data_seed is None else options.data_seed
    drawing = Drawing(frames, options.random_crop, True, options.caption_dropout, seed)
    phrase = key_phrase(options.instance_prompt, options.class_prompt)
    thinning = replace(drawing, word_dropout=options.word_dropout, key_phrase=phrase)
    train_set: Any = ClipDataset(tables.train, tables.captions, checkpoint, thinning)
    if prior is not None:
        train_set = PairedDataset(train_set, ClipDataset(prior.train, prior.captions, checkpoint, drawing))
    eval_set = ClipDataset(tables.held_out, tables.captions, checkpoint, Drawing()) if len(tables.held_out) else None
    if eval_set is None:
        options.eval_strategy, options.eval_on_start, options.load_best_model_at_end = IntervalStrategy.NO, False, False
    options.label_names = ["labels"]
    trainer = CodebookTrainer(
        model,
        options,
        data_collator=_collator(options, checkpoint),
        train_dataset=train_set,
        eval_dataset=eval_set,
    )
    for plain in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(plain)
    trainer.add_callback(Lines if options.disable_tqdm else BarAndLines)
    if eval_set is not None and options.eval_strategy != IntervalStrategy.EPOCH:
        trainer.add_callback(_EvaluateAtEnd)
    return trainer


def _play_along(
    trainer: CodebookTrainer, options: TrainArguments, checkpoint: Checkpoint, tables: Tables, folder: Path
) -> None:
    """Samples while it learns, the distance to the songs, and an end where nothing gets better."""
    prompts = sample_prompts_of(
        options.sample_prompts,
        add_audio_samples_to_wandb=options.add_audio_samples_to_wandb,
        num_samples_to_generate=options.num_samples_to_generate,
        full_generation_sample_text=options.full_generation_sample_text,
        report_to=options.report_to,
        held_out_captions=list(tables.held_out["text"]),
    )
    sampling = Sampling(options.guidance_scale)
    sampler = Sampler(checkpoint, prompts, options.sample_seconds, options.seed, folder / SAMPLES, sampling)
    if prompts:
        add_samples(trainer, sampler, every=options.sample_steps, at_start=options.sample_at_start)
    if options.metric_for_best_model in ("style", "eval_style") and trainer.eval_dataset is not None:
        from musicgen_dreamboothing.training.style import style_meter

        trainer.style_of = style_meter(options, checkpoint, tables, sampler)
    if options.early_stopping_patience is not None and trainer.eval_dataset is not None:
        trainer.add_callback(EarlyStoppingCallback(options.early_stopping_patience))


class _EvaluateAtEnd(TrainerCallback):
    """Evaluates after the last update: afterwards trackers would show it as a run of its own."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_evaluate = True


def _check_key_word(base: Any, options: TrainArguments, checkpoint: Checkpoint, tables: Tables, prepared: Path) -> None:
    """Tells before a run begins if its key-word means something else to the base already."""
    word, states = options.instance_prompt, word_states(prepared)
    begun = last_checkpoint(Path(str(options.output_dir))) is not None
    if begun or not word or not PartialState().is_main_process:
        return
    if not set(texts_of(word)) <= states.keys():  # none are cached where T5 is trained
        return
    codes = tables.train.with_format("numpy")["codes"]
    if note := keyword_note(base, checkpoint, codes, states, word, options.class_prompt):
        say(f"note: {note}")


def _model(options: TrainArguments, checkpoint: Checkpoint, check: Callable[[Any], None]) -> Any:
    """The language model, checked as it was, with what is to be trained made trainable."""
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
    wrapped = add_adapter(model, _lora_settings(options), with_text_encoder=with_text)
    trainable, total = wrapped.get_nb_trainable_parameters()
    base = (total - trainable) / 1e6
    say(f"adapter of {trainable / 1e6:.2f} M weights on a base of {base:.0f} M in {str(dtype)[6:]}")
    return _compiled(wrapped, options)


def _compiled(model: Any, options: TrainArguments) -> Any:
    """Compiles the layers of the decoder, which are all alike: one compilation serves all of them."""
    if options.compiler is not None:
        for layer in model.decoder.model.decoder.layers:
            layer.compile(**options.compiler)
    # done: transformers shall not compile the model as a whole
    options.torch_compile, options.torch_compile_backend, options.torch_compile_mode = False, None, None
    return model


def _lora_settings(options: TrainArguments) -> LoraSettings:
    return LoraSettings(
        options.lora_r,
        options.lora_alpha,
        options.lora_dropout,
        options.lora_targets,
        options.use_dora,
        options.use_rslora,
        options.lora_init,
    )


def _collator(options: TrainArguments, checkpoint: Checkpoint) -> Collator:
    if options.freeze_text_encoder:
        return Collator(checkpoint.pad_token_id)
    tokenizer = load_tokenizer(checkpoint)
    return Collator(checkpoint.pad_token_id, lambda captions: tokenize(tokenizer, captions))


def _last_evaluation(trainer: CodebookTrainer) -> dict[str, float]:
    """The newest evaluation in the log; made now where the strategy left none at the end."""
    if trainer.eval_dataset is None:
        return {}
    evaluations = [line for line in trainer.state.log_history if "eval_loss" in line]
    is_last = bool(evaluations) and evaluations[-1]["step"] == trainer.state.global_step
    if is_last and not trainer.args.load_best_model_at_end:
        logs = evaluations[-1]
    else:
        logs = trainer.evaluate()
    return {key: float(value) for key, value in logs.items() if key.startswith(("eval_loss", "eval_ppl", "eval_ce"))}


def _summary(
    trainer: CodebookTrainer,
    metrics: dict[str, float],
    tables: Tables,
    checkpoint: Checkpoint,
    seconds: float,
    went_on_from: int,
) -> dict[str, Any]:
    gigabytes, kind = peak_memory(trainer.args.device)
    first = [line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line and line["step"] == 0]
    heard = trainer.audio_seconds(checkpoint)
    return {
        "kept": _kept(trainer),
        "updates": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "train_loss": metrics.get("train_loss"),
        "went_on_from": went_on_from,  # seconds and speed are those of the updates behind it
        "seconds": round(seconds, 1),
        "audio_seconds": round(heard, 1),
        "x_real_time": round(heard / seconds, 2),
        "peak_gb": round(gigabytes, 2),
        "peak_of": kind,
        "loss_before": first[0] if first else None,
        "clips": len(tables.train),
    }


def _kept(trainer: CodebookTrainer) -> str:
    """Which weights were kept, and why; empty where they are the last ones."""
    state, name = trainer.state, trainer.args.metric_for_best_model
    if not trainer.args.load_best_model_at_end or state.best_metric is None:
        return ""
    key = name if str(name).startswith("eval_") else f"eval_{name}"
    epochs = {line["step"]: line["epoch"] for line in state.log_history if key in line and line["step"] > 0}
    which = "highest" if trainer.args.greater_is_better else "lowest"
    early = "" if state.global_step >= state.max_steps else f"; stopped early, at update {state.global_step}"
    return (
        f"the weights of epoch {epochs.get(state.best_global_step, 0.0):g} "
        f"(update {state.best_global_step} of {state.max_steps}) were kept: "
        f"{key} {state.best_metric:.4f} was the {which} of {plural(len(epochs), 'evaluation')}{early}"
    )


def _report(folder: Path, options: TrainArguments) -> None:
    """Compares the run with its base, where that is asked for; `auto` is for GPUs, on a CPU it takes long."""
    wanted = options.final_report == "true" or (options.final_report == "auto" and options.device.type == "cuda")
    if wanted and PartialState().is_main_process:
        from musicgen_dreamboothing.evaluation.evaluate import evaluate

        evaluate(
            EvaluateArguments(
                run=str(folder),
                clap_model_name_or_path=options.clap_model_name_or_path,
                cache_dir=options.cache_dir,
                token=options.token,
            )
        )
    elif options.final_report == "auto":
        say(f"did it learn?  musicgen-dreamboothing evaluate {shlex.quote(str(folder))}")


def _tell(
    folder: Path,
    trainer: CodebookTrainer,
    summary: dict[str, Any],
    metrics: dict[str, float],
    notice: str,
    options: TrainArguments,
) -> None:
    """The end of a run in a few lines: what it took, what it brought, where it is, what comes next."""
    say(
        f"{plural(summary['updates'] - summary['went_on_from'], 'update')} in {summary['seconds']:.0f} s, "
        f"{summary['x_real_time']:.1f}x real time, peak {summary['peak_of']} {summary['peak_gb']:.2f} GB"
    )
    if metrics:
        before = summary["loss_before"]
        say(f"held-out loss {'' if before is None else f'{before:.4f} before, '}{metrics['eval_loss']:.4f} after")
    if summary["kept"]:
        say(summary["kept"])
    say(f"saved in {folder}")
    say(notice)
    prompt = options.instance_prompt or "your prompt"
    words = shlex.join(["generate", str(folder), prompt, "--output_dir", str(folder / "generated")])
    say(f"listen:  musicgen-dreamboothing {words}")
