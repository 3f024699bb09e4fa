"""Stems of a song by demucs (Rouard, Massa & Défossez 2023, arXiv:2211.08553). Knows waves; no songs, no options.

What the stems leave of the mix belongs to `other`, which is by definition all that has no stem of its own: a model's
stems need not add up to the mix, and what they miss is music too. Then

- to drop vocals is to subtract them; nothing else of the mix is touched,
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
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import yaml
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError, safe_open

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.audio import Wave
from musicgen_dreamboothing.console import UserError
from musicgen_dreamboothing.device import best_device, free_memory

if TYPE_CHECKING:
    from demucs.apply import BagOfModels

REST, VOICE = "other", "vocals"
OVERLAP = 0.25  # of neighbouring segments, as demucs has it
SILENT_DEVIATION = 1e-8  # is added, as there, so that silence can be divided by it
PIECE = 1 << 18  # samples that are handed on at once: 6 s at 44.1 kHz
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

    def __init__(
        self,
        model: str = "htdemucs",
        *,
        device: torch.device | None = None,
        batch_size: int = 0,
        seed: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        self._bag = _load(model, cache_dir)
        self._device = device or best_device()
        self._bag.to(self._device)
        self.rate, self.stems = int(self._bag.samplerate), tuple(self._bag.sources)
        self._rest = next((stem for stem in (REST, *self.stems) if stem in self.stems and stem != VOICE), self.stems[0])
        self._batch_size, self._seed, self._turn = batch_size, seed, Lock()

    def keep(
        self,
        read: Callable[[], Iterable[Wave]],
        stems: Sequence[str],
        on_progress: Callable[[float], None] = lambda share: None,
    ) -> Iterator[Wave]:
        """The sum of some stems, neither louder nor softer than they are in the mix, piece by piece.

        Memory doesn't grow with the length of the mix: it is read twice, first for its level, which demucs takes of the
        whole, and no more of it is held than a batch of segments needs.

        Args:
            read: gives the mix from its beginning, in blocks `[C, n]` of any length, C 1 or 2, at the model's rate.
            stems: as `parse_stems` takes them.
            on_progress: is told the share that is done, up to 1.

        Yields:
            `[C, n]`, together as long as the mix; with all stems the mix itself.
        """
        kept = parse_stems(stems, self.stems)
        dropped = tuple(stem for stem in self.stems if stem not in kept)
        if not dropped:
            yield from read()
            return
        level = _level(read())
        mix, heard = _copies(audio.blocks(read(), PIECE), 2)
        wanted = dropped if self._rest in kept else kept
        for block, sums in zip(mix, self._sums(heard, level, wanted, on_progress), strict=True):
            found = audio.to_channels(sums, len(block))
            yield block - found if wanted is dropped else found

    def _sums(
        self, mix: Iterable[Wave], level: _Level, stems: Sequence[str], on_progress: Callable[[float], None]
    ) -> Iterator[Wave]:
        """The sum of some stems as the models hear them, in pieces of `PIECE` samples.

        Unlike demucs, the mean isn't given back to each stem, where it would count as often as there are stems: an
        offset of the mix stays in the rest.
        """
        needed = self._needed(stems)
        shares = [0.0] * len(needed)

        def tell(number: int, share: float) -> None:
            shares[number] = share
            on_progress(sum(shares) / len(shares))

        copies = _copies((audio.to_channels(block, self._bag.audio_channels) for block in mix), len(needed))
        voices = [
            audio.blocks(self._heard(model, counts, copy, level, partial(tell, number)), PIECE)
            for number, ((model, counts), copy) in enumerate(zip(needed, copies, strict=True))
        ]
        for pieces in zip(*voices, strict=True):  # at one pace, so that the copies of the mix hold little
            heard: Wave = np.add.reduce(pieces)
            heard *= np.float32(level.deviation)
            yield heard

    def _needed(self, stems: Sequence[str]) -> list[tuple[Any, torch.Tensor]]:
        """Models of the bag, each with what its K stems count in the sum, `[K]`; those that count nothing are left
        out. A bag such as htdemucs_ft has a model for each stem, so one of four is enough to drop vocals."""
        asked = torch.tensor([float(stem in stems) for stem in self.stems])
        weights = torch.tensor(self._bag.weights)  # [M, K]
        counts = asked * weights / weights.sum(0)
        return [(model, count) for model, count in zip(self._bag.models, counts, strict=True) if count.any()]

    def _heard(
        self, model: Any, counts: torch.Tensor, mix: Iterable[Wave], level: _Level, tell: Callable[[float], None]
    ) -> Iterator[Wave]:
        """What one model hears in a mix, `[C, n]` for each of its segments.

        Segments overlap and fade into each other along demucs' triangles. Behind the beginning of the next one no sum
        changes any more.
        """
        segment = int(model.samplerate * model.segment)
        stride = int((1 - OVERLAP) * segment)
        spans = [slice(start, min(start + segment, level.samples)) for start in range(0, level.samples, stride)]
        fade = np.minimum(np.arange(1, segment + 1), np.arange(segment, 0, -1), dtype=np.float32)
        sums = np.zeros((self._bag.audio_channels, segment), np.float32)
        weights = np.zeros(segment, np.float32)
        for span, piece in self._pieces(model, counts, _Tape(mix, level), spans, tell):
            length, ready = _length(span), min(stride, level.samples - span.start)
            sums[:, :length] += fade[:length] * piece
            weights[:length] += fade[:length]
            yield np.divide(sums[:, :ready], weights[:ready], dtype=np.float32)
            sums, weights = np.roll(sums, -stride, axis=1), np.roll(weights, -stride)
            sums[:, -stride:], weights[-stride:] = 0, 0

    def _pieces(
        self, model: Any, counts: torch.Tensor, tape: _Tape, spans: list[slice], tell: Callable[[float], None]
    ) -> Iterator[tuple[slice, Wave]]:
        """Each span with what the model hears in it."""
        done = 0
        for padded, batch in _batches(model, spans, self._segments_at_once(int(model.samplerate * model.segment))):
            windows = np.stack([tape.window(span, padded) for span in batch])
            found = self._hear(model, counts, torch.from_numpy(windows)).numpy()
            done += len(batch)
            tell(done / len(spans))
            for span, piece in zip(batch, found, strict=True):
                margin = _margin(span, padded)
                yield span, piece[:, margin : margin + _length(span)]

    def _hear(self, model: Any, counts: torch.Tensor, windows: torch.Tensor) -> torch.Tensor:
        """`[B, C, L]` -> the sums of stems `[B, C, L]`, on the CPU."""
        exact = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
        with torch.inference_mode(), self._turn, _seeded(self._seed), exact:
            stems = model(windows.to(self._device))  # [B, K, C, L]
            return torch.einsum("k,bkcl->bcl", counts.to(self._device), stems).cpu()

    def _segments_at_once(self, segment: int) -> int:
        if self._batch_size or self._device.type == "cpu":
            return self._batch_size or 1
        return max(1, min(LARGEST_BATCH, free_memory(self._device) // 2 // (segment * SAMPLE_BYTES)))


class _Level(NamedTuple):
    """What has to be known of a whole mix: its length, and mean and deviation of its middle, as demucs takes them."""

    samples: int
    mean: float
    deviation: float


def _level(mix: Iterable[Wave]) -> _Level:
    samples, total, squares = 0, 0.0, 0.0
    for block in mix:
        middle = block.mean(axis=0, dtype=np.float64)
        samples, total, squares = samples + len(middle), total + middle.sum(), squares + middle @ middle
    mean = total / max(1, samples)
    variance = max(0.0, squares - total * mean) / max(1, samples - 1)
    return _Level(samples, float(mean), float(variance) ** 0.5 + SILENT_DEVIATION)


class _Tape:
    """A mix that goes by once, brought to mean 0 and deviation 1. Windows are taken in order, and what lies before the
    latest one is forgotten; silence is what lies before and behind the mix."""

    def __init__(self, mix: Iterable[Wave], level: _Level) -> None:
        self._mix, self._level = iter(mix), level
        self._held: list[Wave] = []
        self._start = self._end = 0  # samples, of what is held

    def window(self, span: slice, padded: int) -> Wave:
        """`[C, padded]` with a span of samples in its middle, and as much of the mix around it as there is."""
        begin = span.start - _margin(span, padded)
        first, last = max(0, begin), min(self._level.samples, begin + padded)
        self._wind(first, last)
        held = np.concatenate(self._held, axis=1)[:, first - self._start : last - self._start]
        inside = (held - np.float32(self._level.mean)) / np.float32(self._level.deviation)
        return np.pad(inside, ((0, 0), (first - begin, begin + padded - last)))

    def _wind(self, first: int, last: int) -> None:
        """Forgets the blocks before one sample, and reads up to another."""
        while self._end < last:
            self._held.append(next(self._mix))
            self._end += self._held[-1].shape[1]
        while self._start + self._held[0].shape[1] <= first:
            self._start += self._held.pop(0).shape[1]


def _copies(blocks: Iterable[Wave], count: int) -> list[Iterator[Wave]]:
    """The same blocks several times, each read once. `itertools.tee` would hold on to 57 of them."""
    source, queues = iter(blocks), [deque[Wave]() for _ in range(count)]

    def copy(queue: deque[Wave]) -> Iterator[Wave]:
        while True:
            for block in islice(source, 0 if queue else 1):
                for each in queues:
                    each.append(block)
            if not queue:
                return
            yield queue.popleft()

    return [copy(queue) for queue in queues]


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


def signature(model: str, *, seed: int = 0, cache_dir: str | None = None) -> str:
    """A short hash of all that a separator's stems depend on, but for the wave and float rounding.

    Files are read, but no model is loaded. Arguments and errors are those of `Separator`.
    """
    with _explained(model):
        bag, paths = _files(model, cache_dir)
        return _signature(bag, paths, seed)


def _load(model: str, cache_dir: str | None) -> BagOfModels:
    """All of a bag's models."""
    with _explained(model):
        bag, paths = _files(model, cache_dir)
        from demucs.apply import BagOfModels

        models = BagOfModels([_read(path) for path in paths], bag.get("weights"), bag.get("segment"))
        return models.float().eval().requires_grad_(False)


@contextmanager
def _explained(model: str) -> Iterator[None]:
    """Turns what is wrong with a model's files into one line."""
    try:
        yield
    except pickle.UnpicklingError as error:
        raise UserError(f"{model} is no demucs model, or asks for code of its own, which is never run") from error
    except UNREADABLE as error:
        raise UserError(f"{model} can't be read as a demucs model ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".:")


def _files(model: str, cache_dir: str | None) -> tuple[dict[str, Any], list[Path]]:
    """The description of a bag, empty for a model alone, and the files of its models."""
    if importlib.util.find_spec("demucs") is None:
        raise UserError("separation needs: pip install 'musicgen-dreamboothing[separation]'")
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
    from demucs import __version__

    found = hashlib.blake2b(json.dumps([__version__, OVERLAP, seed, bag]).encode(), digest_size=8)
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                found.update(block)
    return found.hexdigest()
