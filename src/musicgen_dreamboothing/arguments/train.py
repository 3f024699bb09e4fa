"""Options of `train`: ours, and all of transformers' `Seq2SeqTrainingArguments` under their own names."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from musicgen_dreamboothing.arguments.checking import check_values, shown
from musicgen_dreamboothing.arguments.data import DataArguments, ModelArguments
from musicgen_dreamboothing.arguments.fields import LARGEST_BATCH, LONGEST_SECONDS, WAIT, option
from musicgen_dreamboothing.arguments.generate import DTYPES, QUANTIZATIONS
from musicgen_dreamboothing.arguments.inherited import MOST_STEPS
from musicgen_dreamboothing.console import UserError, log, one_line, quiet_libraries, quiet_loggers

with quiet_loggers("bitsandbytes"):  # transformers imports it by way of peft, and it says which kernels it lacks
    from transformers import Seq2SeqTrainingArguments
    from transformers.training_args import OptimizerNames

    from musicgen_dreamboothing.arguments.trainer_options import check_trainer_options

METRICS = re.compile(r"(eval_)?(style|loss|ppl|(ce|ppl)_(q[1-8]|left|right))")  # of all the lowest is the best
STYLE_METRICS = ("style", "eval_style")
PATIENCE = 4  # epochs of a long run without improvement, after which it stops by itself
SHORT_EPOCHS = 8  # so many, or fewer, never stop early unless asked to
STRATEGIES = ("no", "steps", "epoch")
PRIORS = CLIPS, KL = "clips", "kl"  # what is preserved: generated clips of the class, or the base's predictions
POLICIES = ("none", "light", "full")  # of recomputation, the fastest first
CHECKPOINTING = ("gradient_checkpointing", "activation_checkpointing")  # transformers' old and new name
# Defaults by `use_lora`. Decay pulls an adapter towards the base, but all weights of a full fine-tune towards zero and
# away from it. Meta trained from scratch at 1e-4 with decay 0.1; published full fine-tunes in audiocraft take 1e-5 to
# 1e-4 with 0.01. Few songs ask for the lower rate: AdamW moves every weight by about the rate in each update.
LORA_DEFAULTS = {"learning_rate": 2e-4, "weight_decay": 0.1}
FULL_DEFAULTS = {"learning_rate": 1e-5, "weight_decay": 0.01}
# what other options need to have an effect
LORA, PRESERVING, STYLE = ("--use_lora",), ("--with_prior_preservation",), ("--metric_for_best_model style",)
SAMPLING = ("--sample_prompts", "--add_audio_samples_to_wandb")


PRODIGY = "prodigy"  # an optimizer that transformers does not know
OPTIMIZERS = (*(name.value for name in OptimizerNames), PRODIGY)
ADAPTER_TYPES = ("lora", "dora", "loha", "lokr")


@dataclass
class LoraArguments:
    """Which adapter is trained."""

    use_lora: bool = option(True, "Train a LoRA adapter; false trains all weights of the decoder.")
    adapter_type: str = option(
        "lora",
        "lora; dora (LoRA with --use_dora true); or loha or lokr, whose few weights give updates of a high rank, on "
        "linear layers only.",
        choices=ADAPTER_TYPES,
        needs=LORA,
    )
    loraplus_lr_ratio: float = option(
        1.0,
        "LoRA+: the learning rate of the matrices B is so many times that of A; 16 is usual, with half the usual rate.",
        above=0,
        at_most=10_000,
        needs=("--adapter_type lora",),
    )
    lora_r: int = option(16, "Rank of the adapter.", at_least=1, at_most=2048, needs=LORA)
    lora_alpha: int = option(16, "The update is scaled by alpha / r.", at_least=1, at_most=65536, needs=LORA)
    lora_dropout: float = option(0.0, "Dropout before the adapter.", at_least=0, below=1, needs=LORA)
    lora_targets: str = option(
        "all", "Adapted layers: all, attention, or a regular expression over module names.", needs=LORA
    )
    use_dora: bool = option(False, "Weight-decomposed adapter (DoRA).", needs=LORA)
    use_rslora: bool = option(False, "Scale by alpha / sqrt(r) (rank-stabilised LoRA).", needs=LORA)
    lora_init: str = option(
        "default",
        "Initial values: default, gaussian, orthogonal, olora, pissa, or pissa_niter_16 (the fast pissa).",
        needs=LORA,
    )
    init_adapter: str | None = option(
        None,
        "Begin a new run from the weights of this LoRA adapter (folder or Hub id), which settles rank and targets.",
        needs=LORA,
    )
    freeze_text_encoder: bool = option(True, "False trains the text encoder too; captions are then encoded each time.")


@dataclass
class RunArguments:
    """What is trained on."""

    dataset_name: str | None = option(
        None, "Songs (folder, Hub dataset, saved dataset) or a prepared folder (required)."
    )
    prepared_dir: str | None = option(None, "Folder for clips and tokens; by default OUTPUT_DIR/data.", for_songs=True)
    max_train_samples: int | None = option(None, "Train on the first N clips only.", at_least=1)
    max_eval_samples: int | None = option(None, "Evaluate on the first N clips only.", at_least=1)
    eval_fraction: float = option(
        0.1, "Share of the songs held out for evaluation; 0 holds out none.", at_least=0, below=1
    )
    crop_seconds: float | None = option(
        None, "Length of the crop from a song; by default that of a clip.", above=0, at_most=LONGEST_SECONDS
    )
    random_crop: bool = option(True, "Start each crop at a random position in every epoch.")
    with_prior_preservation: bool = option(
        False, "DreamBooth's prior preservation: train on music of the class (--class_prompt) too, to forget less."
    )
    prior: str = option(
        CLIPS,
        "What is preserved: clips (music of the class) or kl (the base's predictions of it).",
        choices=PRIORS,
        needs=PRESERVING,
    )
    class_prompts: list[str] = option(
        [], "More music to preserve: prompts that share the class clips.", needs=PRESERVING, may_be_empty=True
    )
    num_class_clips: int = option(
        32,
        "Clips that the base generates from the class prompt, once.",
        at_least=1,
        at_most=99_999,
        needs=PRESERVING,
        unless="--class_data_dir",
    )
    prior_loss_weight: float = option(
        1.0, "Weight of the class beside the songs.", at_least=0, at_most=1000, needs=PRESERVING
    )
    class_data_dir: str | None = option(
        None, "Your own songs of the class instead of generated clips.", needs=PRESERVING
    )
    sample_prompts: list[str] = option(
        [], "Prompts to generate before, during and after the training; or a .txt file of them.", may_be_empty=True
    )
    sample_steps: int = option(
        0,
        "Generate samples every so many updates; 0: only before and after.",
        at_least=0,
        at_most=MOST_STEPS,
        needs=SAMPLING,
    )
    sample_seconds: float = option(
        10.0, "Length of a sample.", above=0, at_most=LONGEST_SECONDS, needs=(*SAMPLING, *STYLE)
    )
    sample_at_start: bool = option(True, "Generate samples before the first update too.", needs=SAMPLING)
    guidance_scale: float = option(
        3.0, "How closely samples follow their prompt.", at_least=0, at_most=100, needs=(*SAMPLING, *STYLE)
    )
    add_audio_samples_to_wandb: bool = option(
        False,
        "With --report_to wandb and no sample prompts: generate from captions of held-out songs.",
        needs=("--report_to wandb",),
        unless="--sample_prompts",
    )
    num_samples_to_generate: int = option(
        4, "How many captions.", at_least=0, at_most=1000, needs=("--add_audio_samples_to_wandb",)
    )
    full_generation_sample_text: str = option(
        "80s blues track.", "A prompt in addition to them.", may_be_empty=True, needs=("--add_audio_samples_to_wandb",)
    )
    early_stopping_patience: int | None = option(
        None,
        "Stop after N evaluations in a row without improvement of --metric_for_best_model (by default loss), and save "
        f"the best weights; 0: never. By default {PATIENCE} where songs are held out, the run has more than "
        f"{SHORT_EPOCHS} epochs, and it is evaluated and saved by epoch.",
        at_least=0,
        at_most=MOST_STEPS,
    )
    embedder: str | None = option(
        None,
        "Model that compares sounds for the report and the style metric: a CLAP or another audio encoder (HuBERT, AST, "
        "MERT), or none for statistics of the signal. By default the model of --clap_model_name_or_path.",
        needs=("--final_report auto", "--final_report true", *STYLE),
    )
    final_report: str = option(
        "auto",
        "Compare the run with its base at the end, as `evaluate` does: true, false or auto (on a GPU).",
        choices=("auto", "true", "false"),
    )
    caption_dropout: float = option(
        0.2, "Share of crops trained without their caption (Meta: 0.3, melody 0.2).", at_least=0, at_most=1
    )
    continuation_fraction: float = option(
        0.0,
        "Share of crops whose loss begins only after a prompt of random length (2 s to two thirds of the crop), to "
        "train the continuation of given music.",
        at_least=0,
        at_most=1,
    )
    melody_dropout: float = option(
        0.5,
        "Share of crops with a caption that lack their melody (Meta: 0.5); without a caption all lack it.",
        at_least=0,
        at_most=1,
        needs=("--melody auto", "--melody self", "--melody paired"),
    )
    dtype: str = option("auto", "Precision of the base.", choices=DTYPES)
    quantization: str = option("none", "Store the frozen base in fewer bits (bitsandbytes).", choices=QUANTIZATIONS)
    recompute: str = option(
        "auto",
        "What the backward pass computes again to save memory: none, light (normalisations and activations), full "
        "(everything), or auto, which also splits the batch as memory allows.",
        choices=("auto", *POLICIES),
    )
    plan: bool = option(False, "Only print how much memory a step would take, and stop.")
    memory: str | None = option(
        None,
        "Memory to plan for, e.g. 8GB; by default what is free. With --plan and without a GPU: that of some GPU.",
        needs=("--recompute auto", "--plan"),
    )
    restart: bool = option(False, "Discard an earlier run in OUTPUT_DIR instead of continuing it.")


@dataclass
class TrainArguments(Seq2SeqTrainingArguments, LoraArguments, DataArguments, ModelArguments, RunArguments):
    """Options of `train`: ours first, then all of transformers' `Seq2SeqTrainingArguments`."""

    # transformers' own options with the defaults that published fine-tunes of MusicGen settled on
    num_train_epochs: float = option(
        4.0, "Passes over all clips; with few, the model keeps what it could do before.", above=0, at_most=10**6
    )
    learning_rate: float | None = option(
        None, "Peak learning rate; by default 2e-4, without LoRA 1e-5.", at_least=0, at_most=10
    )
    per_device_train_batch_size: int = option(
        2,
        "Clips in memory at once on each device; times the accumulation steps they are the clips of an update.",
        at_least=1,
        at_most=LARGEST_BATCH,
    )
    per_device_eval_batch_size: int = option(2, "The same for evaluation.", at_least=1, at_most=LARGEST_BATCH)
    gradient_accumulation_steps: int = option(
        8, "Batches added up before each update.", at_least=1, at_most=LARGEST_BATCH
    )
    optim: str = option(
        Seq2SeqTrainingArguments.default_optim,
        "Optimizer, by transformers' name; or prodigy, which finds the learning rate itself.",
        choices=OPTIMIZERS,
    )
    adam_beta2: float = option(0.99, "Beta2 of AdamW.", at_least=0, below=1)
    weight_decay: float | None = option(
        None, "Weight decay of AdamW; by default 0.1, without LoRA 0.01.", at_least=0, at_most=10
    )
    gradient_checkpointing: bool | None = option(
        None, "transformers' name: true is --recompute full, false is --recompute none; --recompute wins over it."
    )
    eval_on_start: bool = option(True, "Evaluate once before the training, for comparison.")
    eval_strategy: str = option("epoch", "When to evaluate.", choices=STRATEGIES)
    metric_for_best_model: str | None = option(
        None, "Keep the best checkpoint by this: style (distance to your songs), loss (on held-out songs), ppl, ..."
    )
    save_strategy: str = option("epoch", "When to save a checkpoint.", choices=(*STRATEGIES, "best"))
    save_total_limit: int | None = option(2, "How many checkpoints to keep; 0: all.", at_least=0)
    logging_steps: float = option(
        1,
        "Updates between two lines of the log; below 1 a share of all updates.",
        above=0,
        at_most=MOST_STEPS,
        needs=("--logging_strategy steps",),
    )
    report_to: list[str] = option(["none"], "Trackers: none, tensorboard, wandb, trackio or all.")
    disable_tqdm: bool | None = option(False, "Print lines only, without a progress bar.")
    dataloader_pin_memory: bool = field(
        default_factory=torch.cuda.is_available, metadata={"help": "Pinned memory for batches; by default with a GPU."}
    )
    ddp_find_unused_parameters: bool | None = option(False, "Look for weights without a gradient: there are none.")
    ddp_timeout: int = option(
        WAIT,
        "Seconds that a process waits for the others, e.g. while the main one downloads.",
        at_least=1,
        at_most=10**8,
    )
    remove_unused_columns: bool = option(False, "Must be false: the collator reads every column.")

    def __post_init__(self) -> None:
        if isinstance(self.report_to, str):  # as transformers takes it, too
            self.report_to = [self.report_to]
        check_values(self)
        if self.adapter_type == "dora":  # one name in the record of a run
            self.adapter_type, self.use_dora = "lora", True
        if not (self.output_dir or "").strip() and not self.plan:  # transformers would choose "trainer_output"
            raise UserError("give an output folder: --output_dir DIR")
        check_trainer_options(self)
        # transformers makes the process group without a time-out of its own on a CPU
        backend = {"backend": self.ddp_backend} if self.ddp_backend else {}
        on_cpu = self.use_cpu or parse_flag_from_env("ACCELERATE_USE_CPU")
        PartialState(cpu=on_cpu, timeout=timedelta(seconds=self.ddp_timeout), **backend)
        if self.optim == PRODIGY and self.learning_rate is None:
            self.learning_rate = 1.0  # of the rate that it finds
        for name, value in (LORA_DEFAULTS if self.use_lora else FULL_DEFAULTS).items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        self._settle_precision()
        self._settle_recompute()
        self._settle_best()
        compiler = self.compiler
        if compiler and self.recompute == "light":
            raise UserError("--recompute light needs layers that are not compiled; choose none or full, or auto")
        # transformers would compile the model as a whole, and tell accelerate by environment variables
        self.torch_compile, self.torch_compile_backend, self.torch_compile_mode = False, None, None
        self._check_by_transformers()
        if compiler:
            self.torch_compile, self.torch_compile_backend = True, compiler["backend"]
            self.torch_compile_mode = compiler["mode"]
        self._checkpoint_nothing()
        if self.use_lora and not self.fp16:
            self.mixed_precision = "no"  # whatever `accelerate launch` says: the base's dtype has it already

    @quiet_libraries()
    def _check_by_transformers(self) -> None:
        """transformers' own checks, whose errors are of any type: it parses JSON, looks up names, imports packages."""
        optimizer = self.optim
        if optimizer == PRODIGY:
            self.optim = "adamw_torch"
        try:
            super().__post_init__()
        except Exception as error:
            reason = one_line(str(error)) or type(error).__name__
            raise UserError(f"transformers refuses these options: {reason}") from error
        if optimizer == PRODIGY:
            self.optim = optimizer

    @property
    def measures_style(self) -> bool:
        """Whether evaluations measure the distance to the songs."""
        return self.metric_for_best_model in STYLE_METRICS

    @property
    def compiler(self) -> dict[str, Any] | None:
        """How layers are compiled, as `nn.Module.compile` takes it; None where they are not."""
        if not (self.torch_compile or self.torch_compile_backend or self.torch_compile_mode):
            return None
        return {"backend": self.torch_compile_backend or "inductor", "mode": self.torch_compile_mode}

    def _settle_recompute(self) -> None:
        """One option says it all: transformers' own two names for it are read, and then left empty."""
        given = [getattr(self, name, None) for name in CHECKPOINTING]
        if self.recompute == "auto" and any(value is not None for value in given):
            self.recompute = "full" if any(given) else "none"
        self._checkpoint_nothing()

    def _settle_best(self) -> None:
        """Keeps the best checkpoint where a metric is named, or the training stops early."""
        metric = self.metric_for_best_model
        if metric is not None and not METRICS.fullmatch(metric):
            raise UserError(
                f"--metric_for_best_model {shown(metric)} is unknown; it takes style, loss, ppl, or of one codebook "
                "ce_q1 or ppl_q1, or of one side of a stereo base ce_left or ppl_left"
            )
        if metric is None and str(self.save_strategy) == "best":
            raise UserError("--save_strategy best needs --metric_for_best_model, e.g. style")
        if metric or self.early_stopping_patience:
            self.load_best_model_at_end = True
            if str(self.eval_strategy) == "no":
                raise UserError("the best checkpoint is chosen by evaluations; set --eval_strategy epoch or steps")
        if self.greater_is_better is None:
            self.greater_is_better = False

    def _checkpoint_nothing(self) -> None:
        """The model sees to it itself (`recompute`); Trainer shall not do it a second time."""
        for name in CHECKPOINTING:
            if hasattr(self, name):
                setattr(self, name, None)

    def _settle_precision(self) -> None:
        """Makes `bf16`, `fp16` and accelerate's own setting choose the base's precision instead of autocast.

        Autocast over a 16-bit base would keep fp32 copies of what it casts. It stays for full
        fine-tunes (fp32 weights), and for fp16 on a GPU, whose gradients need the loss scaler that
        comes with it. On Apple's MPS, which has no scaler, the base is fp32 then.
        """
        on_gpu = torch.cuda.is_available() and not self.use_cpu
        has_bf16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
        launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        self.bf16 = self.bf16 or launched == "bf16" or (not self.use_lora and self.dtype == "bfloat16")
        self.fp16 = self.fp16 or launched == "fp16" or self.dtype == "float16"
        if self.dtype == "auto" and on_gpu and not (self.fp16 or self.bf16):
            self.fp16, self.bf16 = not has_bf16, has_bf16
        if self.fp16 and not on_gpu:
            log("fp16 needs a GPU by NVIDIA or AMD; the precision is chosen by what is here")
            self.fp16, self.dtype = False, "auto"
        if self.use_lora and self.bf16:
            self.dtype, self.bf16 = "bfloat16", False
        if self.fp16:
            self.dtype = "float16"
        if self.dtype == "auto" and not on_gpu and torch.backends.mps.is_available():
            self.dtype = "float32"

    def to_dict(self) -> dict[str, Any]:
        """All options, for trackers; transformers masks names that end in `_token`, and ours is `token`."""
        return {**super().to_dict(), **({"token": "<TOKEN>"} if self.token else {})}

    def __str__(self) -> str:
        return f"{type(self).__name__}({self.to_dict()})"

    __repr__ = __str__
