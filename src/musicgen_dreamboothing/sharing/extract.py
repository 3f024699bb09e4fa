"""`extract`: a full fine-tune and its base in, a LoRA adapter out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from musicgen_dreamboothing.arguments import ExtractArguments, check_values
from musicgen_dreamboothing.console import UserError, best_effort, log, quiet_libraries
from musicgen_dreamboothing.device import parse_device
from musicgen_dreamboothing.files import new_folder
from musicgen_dreamboothing.hub import Source
from musicgen_dreamboothing.model.adapter import SavedAdapter
from musicgen_dreamboothing.model.checkpoint import Checkpoint, load_checkpoint, save_processor
from musicgen_dreamboothing.model.extraction import Extraction, extract_adapter, lost_kinds
from musicgen_dreamboothing.model.header import save_with_header
from musicgen_dreamboothing.model.saved_adapter import name_base
from musicgen_dreamboothing.sharing.header import header_of
from musicgen_dreamboothing.sharing.licence import licence_notice, licence_of

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class ExtractResult:
    """An adapter in a folder, and the share of the difference's energy that it keeps (0 to 1), in all and by group."""

    folder: Path
    kept: float
    groups: dict[str, float]


@quiet_libraries()
def extract(options: ExtractArguments) -> ExtractResult:
    """Writes a LoRA adapter of the difference between a full fine-tune and its base.

    Raises:
        UserError: one of them cannot be read, they do not belong together, or the folder holds something else.
    """
    check_values(options)
    folder, device = Path(options.output_dir), parse_device(options.device)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / CONFIG).is_file():
        raise UserError(f"{folder} holds something else (there is no {CONFIG}); choose another --output_dir")
    tuned = load_checkpoint(Source(options.model, options.model_revision, options.cache_dir, options.token))
    base = load_checkpoint(Source(options.base, None, options.cache_dir, options.token))
    if tuned.is_melody != base.is_melody:
        raise UserError(f"{tuned.name} is no fine-tune of {base.name}: one of them is a melody model")
    extraction = extract_adapter(tuned, base, options.rank, device)
    with new_folder(folder) as temporary:
        _write(temporary, extraction.adapter, base)
        with best_effort(f"the processor of {base.name} is not beside the adapter, where transformers looks for it"):
            save_processor(base, temporary)
    _log_result(folder, extraction, options.rank)
    if tuned.text_hash != base.text_hash:
        log("note: the fine-tune changed the text encoder too; that is not in the adapter")
    log(licence_notice(base.name, licence_of(base)))
    groups = {name: energy.share for name, energy in extraction.groups.items()}
    return ExtractResult(folder, extraction.all.share, groups)


def _write(folder: Path, adapter: SavedAdapter, base: Checkpoint) -> None:
    adapter.config.inference_mode = True
    adapter.config.save_pretrained(folder)
    name_base(folder / CONFIG, base)
    weights = {name: weight.contiguous() for name, weight in adapter.weights.items()}
    name = Path(base.name).resolve().name if base.is_local else base.name
    header = header_of(base, name, None, licence_of(base)) | {"rank": str(adapter.config.r)}
    save_with_header(weights, folder / WEIGHTS, header)


def _log_result(folder: Path, extraction: Extraction, rank: int) -> None:
    log(f"Saved in {folder}: an adapter of rank {rank} keeps {extraction.all.share:.1%} of the difference's energy")
    for name, energy in extraction.groups.items():
        log(f"  {name}: {energy.share:.1%}")
    for kind, share in lost_kinds(extraction):
        log(f"note: {kind} have no place in LoRA: {share:.2%} of the difference is not kept for them")
