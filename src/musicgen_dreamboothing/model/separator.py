"""Stems of a song by demucs (Rouard, Massa & Défossez 2023, arXiv:2211.08553). Knows waves; no songs, no options.

What the stems leave of the mix belongs to `other`, which is by definition all that has no stem of its own: a model's
stems need not add up to the mix, and what they miss is music too. Then

- to drop vocals is to subtract them; nothing else of the mix is touched, and it isn't even resampled,
- all stems together are the mix itself, and so are any selection and its complement,
- a selection without `other` is demucs' own sum, without a share of what the model could not place.

Where there's no `other`, the first stem that isn't `vocals` takes its part.

Nothing is executed that a model's file asks for. demucs publishes safetensors, and the class such a file names is held
against a list before demucs looks it up. Its older `.th` files are pickles: a published name never leads to one, and
one that a person gives by path is read by torch's restricted unpickler, which knows tensors, the same classes,
fractions and numbers of numpy.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from itertools import groupby
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import yaml
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError, safe_open
from torch.nn import functional

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.audio import Wave
from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.model.device import best_device, free_memory

if TYPE_CHECKING:
    from demucs.apply import BagOfModels

REST, VOICE = "other", "vocals"
OVERLAP = 0.25  # of neighbouring segments, as demucs has it
SAMPLE_BYTES = 2200  # of activations for each sample of a segment, measured with htdemucs on a CPU
LARGEST_BATCH = 16  # segments
WEIGHTS = (".safetensors", ".th")
BAG = ".yaml"
UNREADABLE = (  # what torch, safetensors, yaml and demucs raise at files that hold something else
    *(AssertionError, AttributeError, EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError),
    *(SafetensorError, yaml.YAMLError),
)


def parse_stems(names: Sequence[str], possible: Sequence[str]) -> tuple[str, ...]:
    """The stems to keep, in the model's order; no names at all mean every stem but the vocals.

    Raises:
        UserError: the model has no such stem, or no vocals to remove.
    """
    wrong = [name for name in names or [VOICE] if name not in possible]
    if wrong and names:
        raise UserError(f"--keep_stems {wrong[0]} is unknown to this model; it takes {', '.join(possible)}")
    if wrong:
        raise UserError(f"this model knows no {VOICE} to remove; choose --keep_stems from {', '.join(possible)}")
    return tuple(stem for stem in possible if (stem in names if names else stem != VOICE))


class Separator:
    """A demucs model, or a bag of them, in fp32.

    Segments are batched; apart from that the stems are those of `demucs.apply.apply_model` without random shifts, and
    a batch's size changes them by float rounding only. Threads may share a separator: they take turns at the model.

    Args:
        model: a name under which demucs publishes a model, or a file or folder of demucs' format: `.safetensors` or
            `.th` with one model, `.yaml` with a bag of models that lie beside it.
        device: where to compute; by default the best there is.
        batch_size: segments at once; 0 takes one on a CPU, and on a GPU what half of its free memory holds.
        seed: of the shift of positions that some models draw.
        cache_dir: where downloads from the Hub are kept.

    Raises:
        UserError: demucs is missing, the model is unknown or unreadable or can't be had without a network.
    """

    rate: int  # Hz, at which the model works
    stems: tuple[str, ...]
    signature: str  # changes whenever the stems would

    def __init__(
        self,
        model: str = "htdemucs",
        *,
        device: torch.device | None = None,
        batch_size: int = 0,
        seed: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        self._bag, self.signature = _load(model, seed, cache_dir)
        self._device = device or best_device()
        self._bag.to(self._device)
        self.rate, self.stems = int(self._bag.samplerate), tuple(self._bag.sources)
        self._rest = next((stem for stem in (REST, *self.stems) if stem in self.stems and stem != VOICE), self.stems[0])
        self._batch_size, self._seed, self._turn = batch_size, seed, Lock()

    def keep(
        self, wave: Wave, rate: int, stems: Sequence[str], on_progress: Callable[[float], None] = lambda share: None
    ) -> Wave:
        """The sum of some stems, neither louder nor softer than they are in the mix.

        Content above half of `rate` is lost to the model: decode at the separator's own rate, and resample afterwards.

        Args:
            wave: `[C, S]`, C 1 or 2.
            rate: of the wave, in Hz.
            stems: as `parse_stems` takes them.
            on_progress: is told the share that is done, up to 1.

        Returns:
            `[C, S]` at `rate`; with all stems the wave itself.
        """
        kept = parse_stems(stems, self.stems)
        dropped = tuple(stem for stem in self.stems if stem not in kept)
        if not dropped:
            return wave
        if self._rest not in kept:
            return self._sums(wave, rate, [kept], on_progress)[0]
        sums = self._sums(wave, rate, [dropped], on_progress)[0]
        return np.subtract(wave, sums, out=sums)  # in place: an hour of stereo at 44.1 kHz takes 1.3 GB

    def split(
        self, wave: Wave, rate: int, on_progress: Callable[[float], None] = lambda share: None
    ) -> dict[str, Wave]:
        """Every stem of a wave, each `[C, S]` at `rate`; their sum is the wave. Arguments as for `keep`."""
        heard = [stem for stem in self.stems if stem != self._rest]
        found = dict(zip(heard, self._sums(wave, rate, [[stem] for stem in heard], on_progress), strict=True))
        rest = wave - sum(found.values())
        return {stem: found.get(stem, rest) for stem in self.stems}

    @torch.inference_mode()
    def _sums(
        self, wave: Wave, rate: int, groups: Sequence[Sequence[str]], on_progress: Callable[[float], None]
    ) -> list[Wave]:
        """The sum of each group of stems as the models hear them: N times `[C, S]` at `rate`.

        The mix is brought to mean 0 and deviation 1, as demucs does it. Unlike there, the mean isn't given back to each
        stem, where it would count as often as there are stems: an offset of the mix stays in the rest.
        """
        at_rate = audio.to_channels(audio.resample(wave, rate, self.rate), self._bag.audio_channels)
        mix = torch.from_numpy(np.require(at_rate, np.float32, ("C", "W")))  # torch wants it in order and writable
        if mix.shape[1] < 2:  # too short to have a deviation
            return [np.zeros_like(wave) for _ in groups]
        mono = mix.mean(0)
        normalised = _Normalised(mix, mono.mean(), mono.std() + 1e-8)
        del mono  # half as large as the mix
        found = torch.zeros(len(groups), *mix.shape)
        needed = self._needed(groups)
        for number, (model, counts) in enumerate(needed):
            for share in self._add(found, model, counts, normalised):
                on_progress((number + share) / len(needed))
        found *= normalised.deviation
        back = [audio.resample(audio.to_channels(sums, len(wave)), self.rate, rate) for sums in found.numpy()]
        return [_fitted(sums, wave.shape[1]) for sums in back]

    def _needed(self, groups: Sequence[Sequence[str]]) -> list[tuple[Any, torch.Tensor]]:
        """Models of the bag, each with what its K stems count in N groups, `[N, K]`; those that count nothing are
        left out. A bag such as htdemucs_ft has a model for each stem, so one of four is enough to drop vocals."""
        asked = torch.tensor([[float(stem in group) for stem in self.stems] for group in groups])
        weights = torch.tensor(self._bag.weights)  # [M, K]
        counts = asked.view(1, len(groups), len(self.stems)) * (weights / weights.sum(0))[:, None]
        return [(model, count) for model, count in zip(self._bag.models, counts, strict=True) if count.any()]

    def _add(self, found: torch.Tensor, model: Any, counts: torch.Tensor, mix: _Normalised) -> Iterator[float]:
        """Adds what one model hears to `[N, C, S]`, and yields the share that is done.

        Segments overlap and fade into each other along demucs' triangles.
        """
        samples, segment = found.shape[-1], int(model.samplerate * model.segment)
        stride = int((1 - OVERLAP) * segment)
        spans = [slice(start, min(start + segment, samples)) for start in range(0, samples, stride)]
        fade = torch.minimum(torch.arange(1, segment + 1), torch.arange(segment, 0, -1)) / ((segment + 1) // 2)
        covered = torch.zeros(samples)
        for span in spans:
            covered[span] += fade[: _length(span)]
        done = 0
        for padded, batch in _batches(model, spans, self._segments_at_once(segment)):
            windows = torch.stack([mix.window(span, padded) for span in batch])
            for span, piece in zip(batch, self._hear(model, counts, windows), strict=True):
                length, margin = _length(span), _margin(span, padded)
                found[..., span] += piece[..., margin : margin + length] * (fade[:length] / covered[span])
            done += len(batch)
            yield done / len(spans)

    def _hear(self, model: Any, counts: torch.Tensor, windows: torch.Tensor) -> torch.Tensor:
        """`[B, C, L]` -> the sums of stems `[B, N, C, L]`, on the CPU."""
        exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
        with self._turn, _seeded(self._seed), exact:
            stems = model(windows.to(self._device))  # [B, K, C, L]
            return torch.einsum("nk,bkcl->bncl", counts.to(self._device), stems).cpu()

    def _segments_at_once(self, segment: int) -> int:
        if self._batch_size or self._device.type == "cpu":
            return self._batch_size or 1
        return max(1, min(LARGEST_BATCH, free_memory(self._device) // 2 // (segment * SAMPLE_BYTES)))


class _Normalised(NamedTuple):
    """A mix without its mean and at deviation 1; silence is what lies before and behind it."""

    mix: torch.Tensor  # [C, S]
    mean: torch.Tensor
    deviation: torch.Tensor

    def window(self, span: slice, padded: int) -> torch.Tensor:
        """`[C, padded]` with a span of samples in its middle, and as much of the mix around it as there is."""
        begin = span.start - _margin(span, padded)
        first, last = max(0, begin), min(self.mix.shape[1], begin + padded)
        inside = (self.mix[:, first:last] - self.mean) / self.deviation
        return functional.pad(inside, (first - begin, begin + padded - last))


def _length(span: slice) -> int:
    return int(span.stop - span.start)


def _margin(span: slice, padded: int) -> int:
    """Samples before a span that stands in the middle of a longer window."""
    return (padded - _length(span)) // 2


def _batches(model: Any, spans: list[slice], size: int) -> Iterator[tuple[int, list[slice]]]:
    """At most `size` spans that the model wants padded to one length, after that length in samples."""
    from demucs.hdemucs import HDemucs

    def padded(span: slice) -> int:  # HDemucs takes any length
        return _length(span) if isinstance(model, HDemucs) else int(model.valid_length(_length(span)))

    for samples, equal in groupby(spans, padded):
        group = list(equal)
        for first in range(0, len(group), size):
            yield samples, group[first : first + size]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Python's random numbers begin anew, and afterwards go on as if none had been drawn."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def _fitted(wave: Wave, samples: int) -> Wave:
    """Two resamplings may leave a sample too many or too few."""
    missing = samples - wave.shape[1]
    return np.pad(wave, ((0, 0), (0, missing))) if missing > 0 else wave[:, :samples]


def _load(model: str, seed: int, cache_dir: str | None) -> tuple[BagOfModels, str]:
    """All of a bag's models, and the signature of what they make."""
    if importlib.util.find_spec("demucs") is None:
        raise UserError("separation needs: pip install 'musicgen-dreamboothing[separation]'")
    from demucs.apply import BagOfModels

    try:
        bag, paths = _files(model, cache_dir)
        models = BagOfModels([_read(path) for path in paths], bag.get("weights"), bag.get("segment"))
        return models.float().eval().requires_grad_(False), _signature(bag, paths, seed)
    except pickle.UnpicklingError as error:
        raise UserError(f"{model} is no demucs model, or asks for code of its own, which is never run") from error
    except UNREADABLE as error:
        raise UserError(f"{model} can't be read as a demucs model ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".:")


def _files(model: str, cache_dir: str | None) -> tuple[dict[str, Any], list[Path]]:
    """The description of a bag, empty for a model alone, and the files of its models."""
    path = Path(model)
    if path.is_dir():
        path = _only_model(path)
    elif not path.is_file():
        return _published(model, cache_dir)
    if path.suffix not in (BAG, *WEIGHTS):
        raise UserError(f"{path} is no demucs model; those end in {', '.join((BAG, *WEIGHTS))}")
    if path.suffix != BAG:
        return {}, [path]
    bag = yaml.safe_load(path.read_text(encoding="utf-8"))
    return bag, [_weights(path.parent, str(signature)) for signature in bag["models"]]


def _only_model(folder: Path) -> Path:
    """A folder's bag, or else its model. demucs' own folders may hold several; then it takes a file's path."""
    bags = sorted(folder.glob(f"*{BAG}"))
    found = bags or sorted(path for path in folder.iterdir() if path.suffix in WEIGHTS)
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or f"no {BAG}, {' or '.join(WEIGHTS)}"
        raise UserError(f"{folder} has to hold one demucs model, but holds {names}; give the path of one such file")
    return found[0]


def _weights(folder: Path, signature: str) -> Path:
    """The file of one model in a bag: `SIGNATURE.safetensors`, `SIGNATURE.th` or `SIGNATURE-CHECKSUM.th`."""
    for path in sorted(folder.glob(f"{signature}*")):
        if path.suffix in WEIGHTS and path.stem.split("-")[0] == signature:
            return path
    raise UserError(f"{folder} lacks {signature}{WEIGHTS[0]}, which its bag of models asks for")


def _published(name: str, cache_dir: str | None) -> tuple[dict[str, Any], list[Path]]:
    from demucs.hf import DEFAULT_NAMESPACE, hf_repo_name
    from demucs.pretrained import REMOTE_ROOT

    names = sorted(path.stem for path in REMOTE_ROOT.glob("*.yaml") if not path.stem.endswith("_q"))  # see _safetensors
    if name not in names:
        raise UserError(f"no demucs model {name!r}: it takes a folder, a file, or one of {', '.join(names)}")
    repository = f"{DEFAULT_NAMESPACE}/{hf_repo_name(name)}"
    try:
        path = Path(hf_hub_download(repository, f"{name}.yaml", cache_dir=cache_dir))
        bag = yaml.safe_load(path.read_text(encoding="utf-8"))
        files = [f"{signature}.safetensors" for signature in bag["models"]]
        return bag, [Path(hf_hub_download(repository, file, cache_dir=cache_dir)) for file in files]
    except OSError as error:  # all that the Hub's client raises
        raise UserError(
            f"the weights of {name} are neither on this machine nor within reach ({_reason(error)}); run it once with "
            f"a network, or give a folder with the files of huggingface.co/{repository}"
        ) from error


def _read(path: Path) -> Any:
    """One model on the CPU. Its class is looked up here, so a file can't name another."""
    from demucs.demucs import Demucs
    from demucs.hdemucs import HDemucs
    from demucs.htdemucs import HTDemucs

    classes = (Demucs, HDemucs, HTDemucs)
    return _safetensors(path, classes) if path.suffix == ".safetensors" else _pickle(path, classes)


def _safetensors(path: Path, classes: tuple[type[Any], ...]) -> Any:
    """demucs would import whatever the file names as class, or as part of quantised weights, and call the class."""
    from demucs.hf import load_safetensors_model

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    if metadata.get("klass") not in [f"{known.__module__}.{known.__qualname__}" for known in classes]:
        raise ValueError(f"its class {metadata.get('klass')} is unknown")
    if "structure" in metadata:
        raise ValueError("its weights are quantised by diffq")
    return load_safetensors_model(path)


def _pickle(path: Path, classes: tuple[type[Any], ...]) -> Any:
    from demucs.states import load_model

    # Published files hold numbers of numpy among the records of their training, some under the name before numpy 2.
    scalar = np.float64(0).__reduce__()[0]
    numbers: list[Any] = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    numbers += [np.dtype, *(type(np.dtype(name)) for name in ("bool", "int64", "float32", "float64")), Fraction]
    with torch.serialization.safe_globals([*classes, *numbers]):
        package = torch.load(path, map_location="cpu", weights_only=True)
    if package["klass"] not in classes:
        raise ValueError(f"its class {package['klass']} is unknown")
    if "__quantized" in package["state"]:
        raise ValueError("its weights are quantised by diffq")
    return load_model(package)


def _signature(bag: dict[str, Any], paths: list[Path], seed: int) -> str:
    """A short hash of all that the stems depend on, but for the wave and float rounding."""
    from demucs import __version__

    found = hashlib.blake2b(json.dumps([__version__, OVERLAP, seed, bag]).encode(), digest_size=8)
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                found.update(block)
    return found.hexdigest()
