"""Every option once: its name, type, default and help. What an option does is not known here.

The dataclasses are read by transformers' `HfArgumentParser`; the training one extends
`Seq2SeqTrainingArguments`, so that all of its options keep their names. Files of options (JSON or
YAML) and names from older versions are understood by `parse`.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
import yaml
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from transformers import HfArgumentParser, Seq2SeqTrainingArguments

from musicgen_dreamboothing.console import UserError, say
from musicgen_dreamboothing.trainer_options import check_trainer_options

PRIORS = CLIPS, KL = "clips", "kl"  # what holds a model to its class: music it made, or what it would have said
POLICIES = ("none", "light", "full")  # of recomputation, the fastest first
CHECKPOINTING = ("gradient_checkpointing", "activation_checkpointing")  # transformers' old and new name
WAIT = 12 * 3600  # seconds: the main process downloads and prepares for hours, the others wait for it
DEFAULT_MODEL = "facebook/musicgen-small"
# Defaults by `use_lora`. Decay pulls an adapter towards the base, but all weights of a full fine-tune towards zero and
# away from it. Meta trained from scratch at 1e-4 with decay 0.1; published full fine-tunes in audiocraft take 1e-5 to
# 1e-4 with 0.01. Few songs ask for the lower rate: AdamW moves every weight by about the rate in each update.
LORA_DEFAULTS = {"learning_rate": 2e-4, "weight_decay": 0.1}
FULL_DEFAULTS = {"learning_rate": 1e-5, "weight_decay": 0.01}


def option(default: Any, text: str) -> Any:
    """A field with its default and its line in `--help`."""
    return field(default=default, metadata={"help": text})


@dataclass
class ModelArguments:
    """Which base checkpoint, and from where."""

    model_name_or_path: str = option(DEFAULT_MODEL, "Base checkpoint: a Hub id or a folder.")
    model_revision: str | None = option(None, "Branch, tag or commit of the base on the Hub.")
    cache_dir: str | None = option(None, "Where downloads from the Hub are kept.")
    token: str | None = option(None, "Hub token; the stored login is used without it.")
    trust_remote_code: bool = option(False, "Run code that a Hub repository brings along.")
    pad_token_id: int | None = option(None, "Override the checkpoint's pad id.")
    decoder_start_token_id: int | None = option(None, "Override the checkpoint's start id.")


@dataclass
class DataArguments:
    """How songs become clips, captions and tokens."""

    dataset_config_name: str | None = option(None, "Configuration of the Hub dataset.")
    train_split_name: str = option("train", "Split of a dataset to train on.")
    eval_split_name: str | None = option(None, "Split to evaluate on; it wins over songs held out by chance.")
    target_audio_column_name: str | None = option(
        None, "Column of a dataset that holds the songs; by default its only audio column, or 'audio'."
    )
    text_column_name: str | None = option(None, "Column that holds captions; by default 'text', if there is one.")
    instance_prompt: str | None = option(None, "Key-word that stands first in every caption, e.g. punk.")
    class_prompt: str | None = option(
        None, "Noun behind the key-word in every caption, e.g. rock: what it is a kind of."
    )
    word_dropout: float = option(0.0, "Share of the words behind the key-word left out (Meta: 0.3, melody 0.2).")
    max_duration_in_seconds: float = option(30.0, "Songs are cut into clips of this length.")
    min_duration_in_seconds: float = option(5.0, "A rest or a song shorter than this is left out.")
    cut: str = option("seconds", "Where songs are cut: seconds (the full length each) or bars (on downbeats).")
    bars: int = option(8, "With --cut bars: bars of a clip, or as many as the length of a clip holds.")
    normalize_loudness: bool = option(True, "Bring every song to one loudness, without squeezing its peaks.")
    loudness: float = option(-14.0, "That loudness, in LUFS (ITU-R BS.1770).")
    audio_separation: bool = option(False, "Take the vocals out first (demucs).")
    separation_model: str = option("htdemucs", "Published demucs model, or a folder with one.")
    keep_stems: list[str] = field(
        default_factory=lambda: ["drums", "bass", "other"], metadata={"help": "What --audio_separation keeps."}
    )
    audio_separation_batch_size: int = option(0, "Segments that demucs takes at once; 0 chooses by the device.")
    add_metadata: bool = option(False, "Listen to the songs and describe them: tempo, key, genre, mood, instruments.")
    captions: str = option("own+measured", "With --add_metadata: own (captions you gave), measured, or own+measured.")
    caption_variants: int = option(4, "With --add_metadata: captions of each clip, of which every epoch draws one.")
    file_tags: list[str] = field(
        default_factory=list,
        metadata={"help": "With --add_metadata: what to believe of the tags in the files: genre bpm key comment."},
    )
    clap_model_name_or_path: str = option("laion/larger_clap_music", "CLAP model that hears genre, mood, instruments.")
    label_dir: str | None = option(None, "Folder with your own genres.txt, moods.txt or instruments.txt.")
    captioner: str | None = option(
        None, "Audio language model that writes captions, e.g. Qwen/Qwen2-Audio-7B-Instruct."
    )
    push_metadata_repo_id: str | None = option(None, "Upload the clips with their captions to this dataset on the Hub.")
    push_metadata_private: bool = option(True, "Whether a dataset that is made for that can be seen by you alone.")
    preprocessing_num_workers: int = option(2, "Songs, and later clips, that are worked on at the same time.")
    encode_batch_size: int = option(0, "Clips that EnCodec encodes at once; 0 chooses by the device.")
    overwrite_cache: bool = option(False, "Prepare everything anew, edited captions included.")


@dataclass
class PrepareArguments(DataArguments, ModelArguments):
    """Options of `prepare`."""

    songs: str = field(
        default="", metadata={"help": "Folder of songs, one song, Hub dataset, or saved dataset.", "positional": True}
    )
    output_dir: str = option("", "Where clips and tokens go (required).")
    doctor: bool = option(True, "Examine the clips at the end and write report.html.")


@dataclass
class DoctorArguments:
    """Options of `doctor`."""

    folder: str = field(default="", metadata={"help": "A folder made by prepare.", "positional": True})
    model_name_or_path: str | None = option(
        None, "Checkpoint whose codec is previewed; by default that of the folder's tokens."
    )
    cache_dir: str | None = option(None, "Where downloads from the Hub are kept.")
    token: str | None = option(None, "Hub token; the stored login is used without it.")
    preview: bool = option(True, "Play three clips through the codec.")
    preprocessing_num_workers: int = option(2, "Clips that are examined at the same time.")


@dataclass
class LoraArguments:
    """Which adapter is trained."""

    use_lora: bool = option(True, "Train a LoRA adapter; false trains all weights of the decoder.")
    lora_r: int = option(16, "Rank of the adapter.")
    lora_alpha: int = option(16, "The update is scaled by alpha / r.")
    lora_dropout: float = option(0.0, "Dropout before the adapter.")
    lora_targets: str = option("all", "Adapted layers: all, attention, or a regular expression over module names.")
    use_dora: bool = option(False, "Weight-decomposed adapter (DoRA).")
    use_rslora: bool = option(False, "Scale by alpha / sqrt(r) (rank-stabilised LoRA).")
    lora_init: str = option(
        "default", "Initial values: default, gaussian, orthogonal, olora, pissa, or pissa_niter_16 (the fast pissa)."
    )
    init_adapter: str | None = option(
        None,
        "Begin a new run from the weights of this LoRA adapter (folder or Hub id), which settles rank and targets.",
    )
    freeze_text_encoder: bool = option(True, "False trains the text encoder too; captions are then encoded each time.")


@dataclass
class RunArguments:
    """What is trained on."""

    dataset_name: str | None = option(
        None, "Songs (folder, Hub dataset, saved dataset) or a prepared folder (required)."
    )
    prepared_dir: str | None = option(None, "Where clips and tokens are kept; by default OUTPUT_DIR/data.")
    max_train_samples: int | None = option(None, "Train on the first so many clips only.")
    max_eval_samples: int | None = option(None, "Evaluate on the first so many clips only.")
    eval_fraction: float = option(0.1, "Share of the songs held out for evaluation; 0 holds out none.")
    crop_seconds: float | None = option(None, "Length of the piece drawn from a song; by default that of a clip.")
    random_crop: bool = option(True, "Begin each piece elsewhere in every epoch.")
    with_prior_preservation: bool = option(
        False, "DreamBooth's prior preservation: train on music of the class (--class_prompt) too, to forget less."
    )
    prior: str = option(CLIPS, "What is preserved: clips (music of the class) or kl (what the base says of it).")
    class_prompts: list[str] = field(
        default_factory=list, metadata={"help": "More music to preserve: prompts that share the class clips."}
    )
    num_class_clips: int = option(32, "Clips that the base makes of the class prompt, once.")
    prior_loss_weight: float = option(1.0, "Weight of the class beside the songs.")
    class_data_dir: str | None = option(None, "Your own songs of the class instead of clips that the base makes.")
    sample_prompts: list[str] = field(
        default_factory=list,
        metadata={"help": "Prompts that are played before, during and after the training; or a .txt file of them."},
    )
    sample_steps: int = option(0, "Play them every so many updates; 0 only before and after.")
    sample_seconds: float = option(10.0, "Length of a sample.")
    sample_at_start: bool = option(True, "Play them before the first update too.")
    guidance_scale: float = option(3.0, "How closely samples follow their prompt.")
    add_audio_samples_to_wandb: bool = option(
        False, "With --report_to wandb and no sample prompts: play captions of held-out songs."
    )
    num_samples_to_generate: int = option(4, "So many of them.")
    full_generation_sample_text: str = option("80s blues track.", "And this prompt.")
    early_stopping_patience: int | None = option(
        None, "Stop after so many evaluations in a row that are no better, by --metric_for_best_model."
    )
    final_report: str = option(
        "auto", "Compare the run with its base at the end, as `evaluate` does: true, false, or auto (on a GPU)."
    )
    caption_dropout: float = option(0.2, "Share of pieces trained without their caption (Meta: 0.3, melody 0.2).")
    dtype: str = option("auto", "Precision of the base: auto, float32, bfloat16 or float16.")
    quantization: str = option("none", "Store the frozen base in fewer bits: none, nf4 or int8 (bitsandbytes).")
    recompute: str = option(
        "auto",
        "What the backward pass computes again to save memory: none, light (normalisations and activations), full "
        "(everything), or auto, which also splits the batch as memory allows.",
    )
    plan: bool = option(False, "Only say how much memory a step would take, and stop.")
    memory: str | None = option(
        None,
        "Memory to plan for, e.g. 8GB; by default what is free. With --plan and without a GPU: that of some GPU.",
    )
    restart: bool = option(False, "Discard an earlier run in OUTPUT_DIR instead of continuing it.")


@dataclass
class TrainArguments(Seq2SeqTrainingArguments, LoraArguments, DataArguments, ModelArguments, RunArguments):
    """Options of `train`: ours first, then all of transformers' `Seq2SeqTrainingArguments`."""

    # transformers' own options with the defaults that published fine-tunes of MusicGen settled on
    num_train_epochs: float = option(4.0, "Passes over all clips; few keep what the model could do before.")
    learning_rate: float | None = option(None, "Peak learning rate; by default 2e-4, without LoRA 1e-5.")
    per_device_train_batch_size: int = option(
        2, "Clips in memory at once on each device; times the accumulation steps they are the clips of an update."
    )
    per_device_eval_batch_size: int = option(2, "The same for evaluation.")
    gradient_accumulation_steps: int = option(8, "Batches added up before each update.")
    adam_beta2: float = option(0.99, "Beta2 of AdamW.")
    weight_decay: float | None = option(None, "Weight decay of AdamW; by default 0.1, without LoRA 0.01.")
    gradient_checkpointing: bool | None = option(
        None, "transformers' name: true is --recompute full, false is --recompute none; --recompute wins over it."
    )
    eval_on_start: bool = option(True, "Evaluate once before the training, to have something to compare with.")
    eval_strategy: str = option("epoch", "When to evaluate: no, steps or epoch.")
    metric_for_best_model: str | None = option(
        None, "Keep the best checkpoint by this: style (distance to your songs), loss (on held-out songs), ppl, ..."
    )
    save_strategy: str = option("epoch", "When to save a checkpoint: no, steps or epoch.")
    save_total_limit: int | None = option(2, "Checkpoints kept.")
    logging_steps: float = option(1, "Updates between two lines of the log.")
    report_to: list[str] = field(
        default_factory=lambda: ["none"], metadata={"help": "Trackers: none, tensorboard, wandb, trackio or all."}
    )
    disable_tqdm: bool | None = option(False, "Show lines only, without a bar.")
    dataloader_pin_memory: bool = field(
        default_factory=torch.cuda.is_available, metadata={"help": "Pinned memory for batches; by default with a GPU."}
    )
    ddp_find_unused_parameters: bool | None = option(False, "Look for weights without a gradient: there are none.")
    ddp_timeout: int = option(WAIT, "Seconds that a process waits for the others, e.g. for the main one to download.")
    remove_unused_columns: bool = option(False, "Kept false: the collator reads every column.")

    def __post_init__(self) -> None:
        if not self.output_dir and not self.plan:  # transformers would choose "trainer_output"
            raise UserError("say where the result goes: --output_dir DIR")
        check_trainer_options(self)
        # transformers makes the process group without a time-out of its own on a CPU
        backend = {"backend": self.ddp_backend} if self.ddp_backend else {}
        on_cpu = self.use_cpu or parse_flag_from_env("ACCELERATE_USE_CPU")
        PartialState(cpu=on_cpu, timeout=timedelta(seconds=self.ddp_timeout), **backend)
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
        super().__post_init__()
        if compiler:
            self.torch_compile, self.torch_compile_backend = True, compiler["backend"]
            self.torch_compile_mode = compiler["mode"]
        self._checkpoint_nothing()
        if self.use_lora and not self.fp16:
            self.mixed_precision = "no"  # whatever `accelerate launch` says: the base's dtype has it already

    @property
    def compiler(self) -> dict[str, Any] | None:
        """How layers are compiled, as `nn.Module.compile` takes it; None where they are not."""
        if not (self.torch_compile or self.torch_compile_backend or self.torch_compile_mode):
            return None
        return {"backend": self.torch_compile_backend or "inductor", "mode": self.torch_compile_mode}

    def _settle_recompute(self) -> None:
        """One option says it all: transformers' own two names for it are read, and then left empty."""
        if self.recompute not in ("auto", *POLICIES):
            raise UserError(f"--recompute {self.recompute!r} is unknown; it takes auto, {', '.join(POLICIES)}")
        asked = [getattr(self, name, None) for name in CHECKPOINTING]
        if self.recompute == "auto" and any(value is not None for value in asked):
            self.recompute = "full" if any(asked) else "none"
        self._checkpoint_nothing()

    def _settle_best(self) -> None:
        """Who names a metric, or wants to stop early, wants the best checkpoint; of ours the lowest is the best."""
        if self.metric_for_best_model or self.early_stopping_patience is not None:
            self.load_best_model_at_end = True
            if str(self.eval_strategy) == "no":
                raise UserError("the best checkpoint is found by evaluations; choose --eval_strategy epoch or steps")
        name = str(self.metric_for_best_model or "loss").removeprefix("eval_")
        if self.greater_is_better is None and name.startswith(("style", "loss", "ppl", "ce_q")):
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
            say("fp16 needs a GPU by NVIDIA or AMD; the precision is chosen by what is here")
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


@dataclass
class GenerateArguments:
    """Options of `generate`."""

    model: str = field(
        default="", metadata={"help": "Adapter, full fine-tune or base: folder or Hub id.", "positional": True}
    )
    prompts: list[str] = field(
        default_factory=list, metadata={"help": "Descriptions of the music.", "positional": True}
    )
    output_dir: str = option("generated", "Where the audio goes.")
    prompts_file: str | None = option(None, "Text file with one prompt a line.")
    seconds: float = option(10.0, "Length of each clip; the models were trained on 30 s.")
    variations: int = option(1, "Clips of each prompt.")
    guidance_scale: float = option(3.0, "How closely the prompt is followed; 1 switches guidance off.")
    temperature: float = option(1.0, "Above 1 is wilder, below 1 tamer, 0 takes the likeliest.")
    top_k: int = option(250, "Draw from the so many likeliest codes; 0 draws from all.")
    top_p: float = option(1.0, "Draw from the fewest codes that have this probability together; 1 draws from all.")
    seed: int = option(0, "With the prompt it fixes the clip.")
    batch_size: int | None = option(None, "Clips made at once; as many as memory holds without it.")
    format: str = option("wav", "wav, flac or ogg.")
    device: str = option("auto", "auto, cpu, cuda, cuda:1 or mps.")
    dtype: str = option("auto", "auto, float32, bfloat16 or float16.")
    quantization: str = option(
        "none", "Weights in fewer bits, for less memory: none, nf4, or int8, which is also faster on a CPU."
    )
    cuda_graphs: bool = option(True, "Replay each step on a GPU as one CUDA graph, which is faster.")
    base_model: str | None = option(None, "The adapter's base, if it has moved since the training.")
    model_revision: str | None = option(None, "Branch, tag or commit of MODEL on the Hub.")
    cache_dir: str | None = option(None, "Where downloads from the Hub are kept.")
    token: str | None = option(None, "Hub token; the stored login is used without it.")


@dataclass
class EvaluateArguments:
    """Options of `evaluate`."""

    run: str = field(default="", metadata={"help": "Folder of a finished run.", "positional": True})
    output_dir: str | None = option(None, "Where the report goes; by default RUN/evaluation.")
    data: str | None = option(None, "The prepared folder that the run was trained on, if it has moved.")
    prompts: list[str] = field(
        default_factory=list,
        metadata={"help": "Prompts of the style; by default captions of held-out songs and some with the key-word."},
    )
    neutral_prompts: list[str] = field(
        default_factory=list, metadata={"help": "Prompts of other music, to hear what the training did to them."}
    )
    variations: int = option(4, "Clips of each prompt, on the base and on the run.")
    seconds: float = option(10.0, "Length of each clip.")
    song_excerpts: int = option(64, "Pieces of songs that are compared with.")
    seed: int = option(0, "Of the clips and of all intervals.")
    clap_model_name_or_path: str = option(
        "laion/larger_clap_music", "CLAP model that compares sounds, or none for statistics of the signal."
    )
    blind: bool = option(False, "Write a page to listen to both without knowing which is which.")
    answers: str | None = option(None, "Count the answers which that page has saved in this file.")
    batch_size: int | None = option(None, "Clips made at once; as many as memory holds without it.")
    device: str = option("auto", "auto, cpu, cuda, cuda:1 or mps.")
    dtype: str = option("auto", "auto, float32, bfloat16 or float16.")
    quantization: str = option("none", "Weights of both models: none, nf4 or int8.")
    base_model: str | None = option(None, "The run's base, if it has moved since the training.")
    cache_dir: str | None = option(None, "Where downloads from the Hub are kept.")
    token: str | None = option(None, "Hub token; the stored login is used without it.")


@dataclass
class DemoArguments:
    """Options of `demo`."""

    output_dir: str = option("demo", "Where everything goes.")
    seed: int = option(0, "Of the training and the music.")
    restart: bool = option(False, "Train anew instead of keeping what is in OUTPUT_DIR.")
    proof: bool = option(
        False, "Then train three seeds with and without prior preservation, and one 20 times too long: an hour or more."
    )


# Names that older files carry, and what became of them.
RENAMED: dict[str, str] = {
    "evaluation_strategy": "eval_strategy",
    "use_auth_token": "token",
    "overwrite_output_dir": "restart",
    "warmup_ratio": "warmup_steps",
    "push_to_hub_token": "hub_token",
    "push_to_hub_model_id": "hub_model_id",
    "no_cuda": "use_cpu",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
}
RETIRED: dict[str, str] = {
    "include_inputs_for_metrics": "include_for_metrics; evaluation here needs neither",
    "logging_dir": "the environment variable TENSORBOARD_LOGGING_DIR",
    "group_by_length": "train_sampling_strategy; clips of one length need neither",
}
WITHOUT_SUCCESSOR = frozenset(
    (
        *("save_safetensors", "half_precision_backend", "fp16_backend", "fp16_opt_level", "use_mps_device"),
        *("jit_mode_eval", "use_ipex", "past_index", "dispatch_batches", "split_batches", "torchdynamo"),
        *("include_tokens_per_second", "ray_scope", "tpu_num_cores", "tpu_metrics_debug", "mp_parameters"),
        *("fsdp_min_num_params", "fsdp_transformer_layer_cls_to_wrap", "push_to_hub_organization"),
        *("use_legacy_prediction_loop", "config_name", "processor_name", "use_fast_tokenizer"),
    )
)
NOT_YET: dict[str, str] = {
    "conditional_audio_column_name": "melody models are trained with the null melody",
}

Arguments = TypeVar("Arguments")


class _Parser(HfArgumentParser):
    """Names the nearest option where one is unknown, and errs in one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")

    def parse(self, words: Sequence[str]) -> Any:
        """One instance of the parser's dataclass."""
        known, unknown = self.parse_known_intermixed_args(list(words))
        for word in unknown:
            raise UserError(self._unknown(word))
        target = self.dataclass_types[0]
        names = {entry.name for entry in dataclasses.fields(target) if entry.init}
        try:
            return target(**{name: value for name, value in vars(known).items() if name in names})
        except (ValueError, ImportError) as error:  # what transformers finds wrong with its own options
            raise UserError(" ".join(str(error).split())) from error

    def _unknown(self, word: str) -> str:
        if not word.startswith("--"):
            return f"{word!r} belongs to no option; see {self.prog} --help"
        name = word.split("=")[0]
        field = name.removeprefix("--").replace("-", "_").removeprefix("no_")
        verbs = {"prepare": PrepareArguments, "train": TrainArguments, "generate": GenerateArguments}
        owners = [
            verb for verb, target in verbs.items() if field in {entry.name for entry in dataclasses.fields(target)}
        ]
        if owners and field not in {entry.name for entry in dataclasses.fields(self.dataclass_types[0])}:
            return f"{name} is an option of {' and '.join(owners)} only; see {self.prog} --help"
        options = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
        near = difflib.get_close_matches(name, options, n=1, cutoff=0.0)
        return f"unknown option {name}; the nearest is {near[0]} (all: {self.prog} --help)"


def parser(target: type[Any], verb: str, about: str) -> _Parser:
    """The parser of one verb; fields marked as positional are taken by place."""
    made = _Parser(
        _without_positionals(target),
        prog=f"musicgen-dreamboothing {verb}",
        description=about,
        allow_abbrev=False,
    )
    for entry in dataclasses.fields(target):
        if entry.metadata.get("positional"):
            many = "list" in str(entry.type)
            made.add_argument(entry.name, nargs="*" if many else None, help=entry.metadata["help"])
    made.dataclass_types = [target]
    return made


def _without_positionals(target: type[Any]) -> type[Any]:
    """A look-alike of the dataclass for HfArgumentParser, which knows only `--options`."""
    hidden = [entry.name for entry in dataclasses.fields(target) if entry.metadata.get("positional")]
    if not hidden:
        return target
    kept = [
        (entry.name, entry.type, _same_field(entry)) for entry in dataclasses.fields(target) if entry.name not in hidden
    ]
    made = dataclasses.make_dataclass(target.__name__, kept)
    made.__module__ = target.__module__
    return made


def _same_field(entry: dataclasses.Field[Any]) -> Any:
    if entry.default_factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=entry.default_factory, metadata=entry.metadata)
    return dataclasses.field(default=entry.default, metadata=entry.metadata)


def parse(target: type[Arguments], verb: str, about: str, words: Sequence[str]) -> Arguments:
    """Reads the words of a command line: `[FILE] [--option value ...]`, options winning over the file."""
    made = parser(target, verb, about)
    words = list(words)
    if _takes_file(target) and words and not words[0].startswith("-"):
        words = [*words_of_file(Path(words[0])), *words[1:]]
    return made.parse(_modernise(words, {entry.name for entry in dataclasses.fields(target)}))  # type: ignore[arg-type]


def _takes_file(target: type[Any]) -> bool:
    return not any(entry.metadata.get("positional") for entry in dataclasses.fields(target))


def words_of_file(path: Path) -> list[str]:
    """The options in a JSON or YAML file as the words of a command line.

    Raises:
        UserError: no such file, or it does not hold one mapping of names to values.
    """
    if path.suffix not in (".json", ".yaml", ".yml"):
        raise UserError(f"{str(path)!r} is neither an option nor a .json, .yaml or .yml file of options")
    if not path.is_file():
        raise UserError(f"no file of options at {path}")
    try:
        text = path.read_text(encoding="utf-8-sig")
        values = json.loads(text) if path.suffix == ".json" else yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:
        hint = "; in JSON a path takes / or \\\\ for each \\" if "escape" in str(error) else ""
        raise UserError(f"{path} can't be read: {' '.join(str(error).split())}{hint}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold one mapping of option names to values")
    return [word for name, value in values.items() for word in _words(str(name), value)]


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 2e-4 as text; here it is the number that JSON says it is."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _words(name: str, value: Any) -> Iterable[str]:
    if value is None:
        return []
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    if isinstance(value, dict):
        return [f"--{name}", json.dumps(value)]
    return [f"--{name}={str(value).lower() if isinstance(value, bool) else value}"]


def _modernise(words: Sequence[str], known: set[str]) -> list[str]:
    """Replaces the names of older versions that are not among the known ones, saying each in one line."""
    return [word for flag, values in _grouped(words) for word in _modern(flag, values, known)]


def _grouped(words: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Each `--option` with the words that follow it; words before the first stand under an empty name."""
    groups: list[tuple[str, list[str]]] = [("", [])]
    for word in words:
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            groups.append((flag, [value] if equals else []))
        else:
            groups[-1][1].append(word)
    return groups


def _modern(flag: str, values: list[str], known: set[str]) -> list[str]:
    name = flag.removeprefix("--").replace("-", "_")
    if name in known:
        return _option(flag, values)
    if name in RETIRED:
        say(f"option {name} is gone; its successor is {RETIRED[name]}")
        return values[1:]  # what follows the option's own value stands by itself
    if name in NOT_YET:
        say(f"option {name} is not used by this version: {NOT_YET[name]}")
        return values[1:]
    if name in WITHOUT_SUCCESSOR:
        say(f"option {name} is gone and has no successor")
        return values[1:]
    if name in RENAMED:
        say(f"option {name} is now called {RENAMED[name]}")
        if name == "use_auth_token" and values in ([], ["true"], ["false"], ["True"], ["False"]):
            return []  # it used to switch the stored login on and off; a token itself stands there now
        return _option(f"--{RENAMED[name]}", values)
    return _option(flag, values) if flag else values


def _option(flag: str, values: list[str]) -> list[str]:
    """The words of one option; argparse would take a value such as `-metal-` for another one."""
    return [f"{flag}={values[0]}"] if len(values) == 1 and values[0].startswith("-") else [flag, *values]
