"""Every option once: its name, type, default and help. What an option does is not known here.

The dataclasses are read by transformers' `HfArgumentParser`; the training one extends
`Seq2SeqTrainingArguments`, so that all of its options keep their names. Files of options (JSON or
YAML) and names from older versions are understood by `parse`.
"""

from musicgen_dreamboothing.arguments.checking import check_values, note_unused
from musicgen_dreamboothing.arguments.data import (
    DEFAULT_MODEL,
    DataArguments,
    DoctorArguments,
    ModelArguments,
    PrepareArguments,
)
from musicgen_dreamboothing.arguments.demo import DemoArguments
from musicgen_dreamboothing.arguments.evaluate import EvaluateArguments
from musicgen_dreamboothing.arguments.export import ExportArguments, ExtractArguments, ImportArguments
from musicgen_dreamboothing.arguments.fields import WAIT
from musicgen_dreamboothing.arguments.generate import GenerateArguments
from musicgen_dreamboothing.arguments.merge import MergeArguments
from musicgen_dreamboothing.arguments.old_names import RENAMED, RETIRED, WITHOUT_SUCCESSOR
from musicgen_dreamboothing.arguments.parsing import VERBS, parse, parser, words_of_file
from musicgen_dreamboothing.arguments.push import PushArguments
from musicgen_dreamboothing.arguments.train import (
    CHECKPOINTING,
    CLIPS,
    FULL_DEFAULTS,
    KL,
    LORA_DEFAULTS,
    PATIENCE,
    POLICIES,
    PRIORS,
    SHORT_EPOCHS,
    LoraArguments,
    RunArguments,
    TrainArguments,
)
from musicgen_dreamboothing.arguments.warm_start import EXACT, WarmStartArguments

__all__ = [
    "CHECKPOINTING",
    "CLIPS",
    "DEFAULT_MODEL",
    "EXACT",
    "FULL_DEFAULTS",
    "KL",
    "LORA_DEFAULTS",
    "PATIENCE",
    "POLICIES",
    "PRIORS",
    "RENAMED",
    "RETIRED",
    "SHORT_EPOCHS",
    "VERBS",
    "WAIT",
    "WITHOUT_SUCCESSOR",
    "DataArguments",
    "DemoArguments",
    "DoctorArguments",
    "EvaluateArguments",
    "ExportArguments",
    "ExtractArguments",
    "GenerateArguments",
    "ImportArguments",
    "LoraArguments",
    "MergeArguments",
    "ModelArguments",
    "PrepareArguments",
    "PushArguments",
    "RunArguments",
    "TrainArguments",
    "WarmStartArguments",
    "check_values",
    "note_unused",
    "parse",
    "parser",
    "words_of_file",
]
