"""A base checkpoint and its parts, each loaded on its own: text encoder, codec, language model.

No stage pays for a part that it does not use. Every number that an option could ask for (pad and
start ids, rates, codebooks, delays) is read from the checkpoint's configuration.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from transformers import (
    AutoConfig,
    AutoTokenizer,
    EncodecModel,
    MusicgenForConditionalGeneration,
    MusicgenMelodyForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5EncoderModel,
    modeling_utils,
)
from transformers.utils import cached_file, logging

from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.model.delay import delays

TEXT, MELODY = "musicgen", "musicgen_melody"
EXAMPLES = tuple(f"facebook/musicgen-{size}" for size in ("small", "medium", "large", "melody"))
SAMPLES, SAMPLE_BYTES = 256, 1 << 16  # that tell one file of weights from another; all of it up to 16 MB
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class Source:
    """Where a checkpoint comes from: the arguments that every `from_pretrained` needs."""

    name: str
    revision: str | None = None
    cache_dir: str | None = None
    token: str | None = None
    trust_remote_code: bool = False

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for transformers' loaders. `token` is left out when unset: then the stored login counts."""
        wanted = {"revision": self.revision, "cache_dir": self.cache_dir, "token": self.token}
        given = {key: value for key, value in wanted.items() if value is not None}
        return given | ({"trust_remote_code": True} if self.trust_remote_code else {})


@dataclass(frozen=True)
class Checkpoint:
    """A MusicGen checkpoint's configuration, with every derived number under its name in the field."""

    source: Source
    config: Any = field(repr=False)
    pad_token_id: int = 0
    start_token_id: int = 0

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def is_melody(self) -> bool:
        return bool(self.config.model_type == MELODY)

    @property
    def model_class(self) -> type[PreTrainedModel]:
        """transformers' own class for this family."""
        return MusicgenMelodyForConditionalGeneration if self.is_melody else MusicgenForConditionalGeneration

    @property
    def is_local(self) -> bool:
        return Path(self.name).is_dir()

    @property
    def revision(self) -> str | None:
        """The commit that was loaded, if it came from the Hub."""
        return getattr(self.config, "_commit_hash", None) or self.source.revision

    @cached_property
    def identity(self) -> str | None:
        """The commit of a checkpoint of the Hub; of a folder a hash that changes when other weights are put there."""
        return weights_fingerprint(Path(self.name)) if self.is_local else self.revision

    @property
    def sampling_rate(self) -> int:
        return int(self.config.audio_encoder.sampling_rate)

    @property
    def hop_length(self) -> int:
        """Samples per frame: 640 at 32 kHz and 50 Hz."""
        return int(self.config.audio_encoder.hop_length)

    @property
    def frame_rate(self) -> float:
        """Frames per second; EncodecConfig.frame_rate rounds it up, this does not."""
        return self.sampling_rate / self.hop_length

    @property
    def codebooks(self) -> int:
        """K: 4 for mono checkpoints, 8 for stereo ones."""
        return int(self.config.decoder.num_codebooks)

    @property
    def codebook_size(self) -> int:
        return int(self.config.decoder.vocab_size)

    @property
    def audio_channels(self) -> int:
        return int(self.config.decoder.audio_channels)

    @cached_property
    def delay(self) -> tuple[int, ...]:
        return delays(self.codebooks, self.audio_channels)


def weights_fingerprint(folder: Path) -> str:
    """A short hash over samples of all weights in a folder: to read gigabytes at every start would take too long."""
    found = hashlib.blake2b(digest_size=8)
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        found.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for start in range(0, size, max(SAMPLE_BYTES, size // SAMPLES)):
                file.seek(start)
                found.update(file.read(SAMPLE_BYTES))
    return found.hexdigest()


def load_checkpoint(
    source: Source, *, pad_token_id: int | None = None, start_token_id: int | None = None
) -> Checkpoint:
    """Reads a checkpoint's configuration; no weights are touched.

    Raises:
        UserError: there is no such checkpoint, or it is not MusicGen.
    """
    config = _read_config(source)
    if config.model_type not in (TEXT, MELODY):
        raise UserError(
            f"{source.name} is a {config.model_type!r} model, not MusicGen; "
            f"--model_name_or_path takes for example {', '.join(EXAMPLES)}"
        )
    decoder = config.decoder
    pad = _first(pad_token_id, decoder.pad_token_id, decoder.vocab_size)
    start = _first(start_token_id, getattr(decoder, "decoder_start_token_id", None), decoder.bos_token_id, pad)
    for name, value in (("pad_token_id", pad), ("decoder_start_token_id", start)):
        if not 0 <= value <= decoder.vocab_size:
            raise UserError(f"--{name} {value} lies outside the checkpoint's codes; it takes 0 to {decoder.vocab_size}")
    # The forward pass of plain MusicGen reads both from the configuration, and a file written by
    # transformers 5 may lack them.
    decoder.pad_token_id, decoder.decoder_start_token_id = pad, start
    return Checkpoint(source, config, pad, start)


def _first(*candidates: int | None) -> int:
    return next(int(value) for value in candidates if value is not None)


def _read_config(source: Source) -> Any:
    try:
        return AutoConfig.from_pretrained(source.name, **source.arguments())
    except (OSError, HfHubHTTPError, HFValidationError, ValueError) as error:
        raise UserError(
            f"no model at {source.name!r} ({_first_line(error)}); give a folder with a config.json, "
            f"or a Hub id such as {EXAMPLES[0]}"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def load_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    """The text encoder's tokenizer, without the processor: a melody processor would ask for torchaudio."""
    return AutoTokenizer.from_pretrained(checkpoint.name, **checkpoint.source.arguments())


def load_text_encoder(checkpoint: Checkpoint, device: torch.device) -> T5EncoderModel:
    """T5 alone, in fp32: half precision overflows in its feed-forward layers."""
    return _load_part(T5EncoderModel, "text_encoder", checkpoint, device)


def load_codec(checkpoint: Checkpoint, device: torch.device) -> EncodecModel:
    """EnCodec alone, in fp32. On Apple's MPS its quantiser errs, so there it stays on the CPU."""
    return _load_part(
        EncodecModel, "audio_encoder", checkpoint, torch.device("cpu") if device.type == "mps" else device
    )


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Holds back transformers' reports: a part's loader would list every weight of the other parts."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def files_read() -> Iterator[None]:
    """Has transformers read weights from their files, tensor by tensor, as it does on Windows, instead of mapping them.

    Pages of a mapped file stay in the process until all of it is loaded: a base in 16 or 4 bits would take its size in
    fp32 besides its own.
    """
    usual = modeling_utils.safe_open
    modeling_utils.safe_open = lambda *file, **options: usual(*file, **options | {"backend": "pread"})
    try:
        yield
    finally:
        modeling_utils.safe_open = usual


def _load_part(model_class: Any, prefix: str, checkpoint: Checkpoint, device: torch.device) -> Any:
    with quiet_loading():
        model, report = model_class.from_pretrained(
            checkpoint.name,
            config=getattr(checkpoint.config, prefix),
            dtype=torch.float32,
            key_mapping={rf"^{prefix}\.": ""},
            output_loading_info=True,
            use_safetensors=True,  # no pickle is ever loaded
            attn_implementation="eager",  # EnCodec refuses SDPA
            **checkpoint.source.arguments(),
        )
    if report["missing_keys"]:
        raise UserError(f"{checkpoint.name} lacks weights of its {prefix}: {sorted(report['missing_keys'])[:3]}")
    return model.eval().requires_grad_(False).to(device)


def save_processor(checkpoint: Checkpoint, folder: Path) -> None:
    """Writes tokenizer and feature extractor files, so that `AutoProcessor.from_pretrained(folder)` works.

    The feature extractor's files are copied, never instantiated: the melody one needs torchaudio.
    """
    load_tokenizer(checkpoint).save_pretrained(folder)
    for name in PROCESSOR_FILES:
        found = cached_file(
            checkpoint.name, name, _raise_exceptions_for_missing_entries=False, **checkpoint.source.arguments()
        )
        if found is not None:
            shutil.copyfile(found, folder / name)
