"""`import`: a checkpoint of audiocraft as a model of transformers, to train on and to play."""

from __future__ import annotations

import json
import shlex
import tarfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musicgen_dreamboothing.arguments import ImportArguments, check_values
from musicgen_dreamboothing.console import UserError, log, quiet_libraries
from musicgen_dreamboothing.files import new_folder, write_json
from musicgen_dreamboothing.hub import Source
from musicgen_dreamboothing.model.audiocraft.config import PUBLISHED_CODEC
from musicgen_dreamboothing.model.audiocraft.imported import (
    Codec,
    TextEncoder,
    codec_of_base,
    codec_of_package,
    read_text_encoder,
    write_imported,
)
from musicgen_dreamboothing.model.audiocraft.package import language_model_state, read_package
from musicgen_dreamboothing.model.audiocraft.sizes import Sizes, sizes_of
from musicgen_dreamboothing.model.checkpoint import Checkpoint, load_checkpoint
from musicgen_dreamboothing.model.weight_files import AUDIOCRAFT, find_file
from musicgen_dreamboothing.sharing.card import write_imported_card
from musicgen_dreamboothing.sharing.licence import META, licence_notice, licence_of

ORIGIN = "import.json"
MODEL_FILE, CODEC_FILE = AUDIOCRAFT
SUFFIXES = (".bin", ".th", ".pt", ".pth", ".ckpt")
PUBLISHED_RATE = 32_000


@dataclass(frozen=True)
class ImportResult:
    """A model in a folder.

    Attributes:
        folder: holds what transformers loads.
        sizes: of the language model.
    """

    folder: Path
    sizes: Sizes


@quiet_libraries()
def import_checkpoint(options: ImportArguments) -> ImportResult:
    """Writes a folder of transformers from a checkpoint of audiocraft; the text encoder comes from `base`.

    Raises:
        UserError: the checkpoint cannot be read without running code, is of another kind of model, or does not fit the
            base.
    """
    check_values(options)
    folder = Path(options.output_dir)
    _check_folder(folder)
    file = _find(options)
    package = read_package(file)
    if package.pretrained is not None:
        raise UserError(f"{file} names the codec {package.pretrained}; give the file of the language model")
    state = language_model_state(package.state, file)
    sizes = sizes_of(state, package.settings)
    base = load_checkpoint(Source(options.base, None, options.cache_dir, options.token))
    codec, codec_name = _codec(options, file, base)
    text_encoder = _text_encoder(options, sizes, base)
    licence = licence_of(base) if base.name.startswith(META) else None
    with new_folder(folder) as temporary:
        write_imported(temporary, state, sizes, text_encoder, codec)
        origin = {"checkpoint": _shown(options.checkpoint), "base": _shown(base.name), "codec": codec_name}
        write_json(temporary / ORIGIN, origin | {"text_encoder": _shown(text_encoder.name)})
        write_imported_card(temporary, folder.resolve().name, origin, is_melody=sizes.has_melody)
    _log_result(folder, sizes, codec, codec_name, text_encoder, licence_notice(_shown(options.checkpoint), licence))
    return ImportResult(folder, sizes)


def _check_folder(folder: Path) -> None:
    """Refuses a folder that this verb did not write."""
    if folder.is_dir() and any(folder.iterdir()) and not _is_ours(folder):
        raise UserError(f"{folder} holds something else (it has no valid {ORIGIN}); choose another --output_dir")


def _is_ours(folder: Path) -> bool:
    with suppress(OSError, ValueError):
        return isinstance(json.loads((folder / ORIGIN).read_text(encoding="utf-8")), dict)
    return False


def _shown(name: str) -> str:
    """A Hub id, or the last part of a path: paths are private."""
    return Path(name).resolve().name if Path(name).exists() else name


def _find(options: ImportArguments) -> Path:
    """The file of the language model."""
    path, hub = Path(options.checkpoint), _hub(options)
    if path.is_file():
        if tarfile.is_tarfile(path):
            raise UserError(f"{path} is an archive; unpack it with `tar xf {shlex.quote(str(path))}` and give the file")
        return path
    if path.is_dir():
        return _in_folder(path)
    found = find_file(options.checkpoint, MODEL_FILE, hub)
    if found is None:
        raise UserError(f"no file or folder {options.checkpoint!r} here, and no {MODEL_FILE} of it on the Hub")
    return found


def _hub(options: ImportArguments) -> dict[str, Any]:
    return Source(options.checkpoint, options.model_revision, options.cache_dir, options.token).arguments()


def _in_folder(folder: Path) -> Path:
    if (folder / MODEL_FILE).is_file():
        return folder / MODEL_FILE
    if (folder / "config.json").is_file():
        raise UserError(f"{folder} is in transformers' format already; give it to --model_name_or_path as it is")
    files = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.name != CODEC_FILE)
    if len(files) != 1:
        names = ", ".join(path.name for path in files[:3]) or "no file that could be one"
        raise UserError(f"{folder} has no {MODEL_FILE}, but {names}; give the checkpoint's file")
    return files[0]


def _codec(options: ImportArguments, file: Path, base: Checkpoint) -> tuple[Codec, str]:
    """The codec, and what it comes from: the checkpoint's own if it has one, else that of the base."""
    path = _codec_file(options, file)
    package = None if path is None else read_package(path)
    if package is not None and package.pretrained is None:
        return codec_of_package(package), "the checkpoint's own"
    codec = codec_of_base(base)
    if package is not None:
        name = str(package.pretrained)
        is_known = name in (PUBLISHED_CODEC, PUBLISHED_CODEC.partition("/")[2])
        if not is_known or codec.config.sampling_rate != PUBLISHED_RATE:
            raise UserError(
                f"the checkpoint names the codec {name}, which {base.name} does not have; give --base a published "
                f"MusicGen, whose codec is {PUBLISHED_CODEC}, or the codec itself with --codec"
            )
    return codec, f"that of {_shown(base.name)}"


def _codec_file(options: ImportArguments, file: Path) -> Path | None:
    if options.codec is not None:
        if not Path(options.codec).is_file():
            raise UserError(f"no file {options.codec} (--codec)")
        return Path(options.codec)
    if not Path(options.checkpoint).exists():
        return find_file(options.checkpoint, CODEC_FILE, _hub(options))
    beside = file.with_name(CODEC_FILE)
    return beside if beside.is_file() and file.name == MODEL_FILE else None


def _text_encoder(options: ImportArguments, sizes: Sizes, base: Checkpoint) -> TextEncoder:
    """That of the base, or where the checkpoint asks for another width, the T5 that it names."""
    name, width = options.text_encoder, base.config.text_encoder.hidden_size
    if name is None and width != sizes.text_width:
        name = sizes.text_encoder
        if name is None:
            raise UserError(
                f"the checkpoint was trained with a text encoder of width {sizes.text_width}, and that of {base.name} "
                f"has {width}; name it with --text_encoder (t5-large has 1024, t5-base 768)"
            )
    encoder = read_text_encoder(base.source if name is None else Source(name, None, options.cache_dir, options.token))
    if encoder.config.hidden_size != sizes.text_width:
        raise UserError(
            f"{encoder.name} has states of width {encoder.config.hidden_size}, and the checkpoint was trained with "
            f"{sizes.text_width}; name its text encoder with --text_encoder"
        )
    return encoder


def _log_result(
    folder: Path, sizes: Sizes, codec: Codec, codec_name: str, text_encoder: TextEncoder, notice: str
) -> None:
    family = "melody" if sizes.has_melody else "text"
    sides = "stereo" if sizes.channels > 1 else "mono"
    log(f"Saved in {folder}: {family} model, {sides}, {sizes.layers} layers of width {sizes.width}")
    log(f"Codec: {codec_name}, {codec.config.sampling_rate} Hz; text encoder: {_shown(text_encoder.name)}")
    if sizes.seconds < 30:
        log(
            f"note: it was trained on clips of {sizes.seconds:g} s; "
            f"train on such clips: --max_duration_in_seconds {sizes.seconds:g}"
        )
    log(notice)
    words = shlex.join(["--model_name_or_path", str(folder), "--output_dir", "runs/imported"])
    log(f"Train:  musicgen-dreamboothing train --dataset_name SONGS {words}")
