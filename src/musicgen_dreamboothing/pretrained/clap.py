"""Zero-shot tags by CLAP: Wu et al., "Large-scale contrastive language-audio pretraining", arXiv:2211.06687."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import logging as hub_logging
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from numpy.typing import NDArray
from safetensors import SafetensorError
from transformers import AutoConfig, ClapModel, ClapProcessor
from transformers.utils import SAFE_WEIGHTS_NAME, cached_file

from musicgen_dreamboothing import audio
from musicgen_dreamboothing.console import UserError, log, quiet_loading
from musicgen_dreamboothing.device import best_device
from musicgen_dreamboothing.hub import Source, name_with_commit, weights_fingerprint

RATE = 48_000  # Hz; all CLAP models of transformers
MAX_WINDOWS = 6  # of a clip: a minute is covered, of a longer one six places
ODDS = 1.5  # of a label against the best neutral prompt, from which it is a tag
ALIKE = 0.99  # cosine of all pairs of texts, from which a model does not distinguish texts
RIVAL = 1 / 3  # of the best label's score, where labels of a group rule each other out
TEMPLATES = ("{}", "a recording of {}", "the sound of {}")
NEUTRAL = ("music", "a song", "sound")
SINGING = ("a person singing", "a song with a singer", "vocals", "a rapper")
PLAYING = ("instrumental music", "musical instruments playing", "an instrumental backing track")


@dataclass(frozen=True)
class Published:
    """A commit or reference on the Hub, and the SHA-256 of `model.safetensors` there."""

    revision: str
    sha256: str


# On `main` these have a pickle only; the Hub's converter put safetensors into a pull request of each. The full id of
# the last one's commit (8a2acdb) is not known here: its reference is checked by hash.
SAFETENSORS = {
    "laion/larger_clap_music": Published(
        "4189a948e5e2aaa5df3e69da506e54513e977191",
        "013f1d40b8981b5dd741c0ccc444ae6cf8485d7cd4333892bcb2c6e8c3047064",
    ),
    "laion/larger_clap_general": Published(
        "16c8cc3159a3c8a31e8ff5ef1f66b0d9ab3667db",
        "c3d0e564a97cb5eccea412f11d5c51c8a1ccceb80c51e3c6957bb5a796b423b6",
    ),
    "laion/larger_clap_music_and_speech": Published(
        "refs/pr/1",
        "d4e5cf6317c7521ca62c11b524f5646565310e040129fe35719cad661696d745",
    ),
}
# `larger_clap_music` on the Hub is reported to have one embedding for all texts: embeddings-benchmark/mteb#5069
DEFAULT = "laion/larger_clap_music"
PROVEN = "laion/larger_clap_general"

Embeddings = NDArray[np.float32]  # [N, D], each row of length 1


@dataclass(frozen=True)
class Group:
    """How one list of labels is used."""

    noun: str  # pattern of a label in the templates
    max_tags: int  # of a clip
    # whether labels compete (a song is rarely both bebop and techno) or may all be true (instruments)
    is_exclusive: bool


GROUPS = {
    "genres": Group("{} music", 3, is_exclusive=True),
    "moods": Group("{} music", 3, is_exclusive=True),
    "instruments": Group("{}", 6, is_exclusive=False),
}


@dataclass(frozen=True)
class Tag:
    """A label that fits, and how well, from 0 to 1 (see `calibrate`)."""

    label: str
    score: float


def read_labels(folder: Path | None = None) -> dict[str, list[str]]:
    """The built-in lists of labels, replaced by those of a folder: `genres.txt`, `moods.txt`, `instruments.txt`.

    One label a line; lines that begin with # are comments.

    Raises:
        UserError: no such folder, none of the files in it, or a file without labels.
    """
    built_in = files("musicgen_dreamboothing.assets").joinpath("labels")
    texts = {name: built_in.joinpath(f"{name}.txt").read_text(encoding="utf-8") for name in GROUPS}
    if folder is not None:
        texts |= _own_lists(folder)
    labels = {name: _labels_of(text) for name, text in texts.items()}
    for name, lines in labels.items():
        if not lines:
            raise UserError(f"no labels in {folder}/{name}.txt; write one a line, or delete it for the built-in ones")
    return labels


def _own_lists(folder: Path) -> dict[str, str]:
    paths = {name: folder / f"{name}.txt" for name in GROUPS}
    texts = {
        name: path.read_text(encoding="utf-8-sig", errors="replace") for name, path in paths.items() if path.is_file()
    }
    if not texts:
        names = ", ".join(path.name for path in paths.values())
        raise UserError(f"no lists of labels in {folder}; it should hold {names}, or some of them")
    return texts


def _labels_of(text: str) -> list[str]:
    lines = (" ".join(line.split()) for line in text.splitlines())
    return list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))


def another_clap(model: str) -> str:
    """The option that chooses another model than this one."""
    return "another --clap_model_name_or_path" if model == PROVEN else f"--clap_model_name_or_path {PROVEN}"


def calibrate(
    labels: NDArray[np.float32], neutral: NDArray[np.float32], scale: float, group: Group
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Scores from 0 to 1 of labels for one sound `[L]`, and which of them are tags `[L]`.

    The scale of cosines differs between models (0.05 for a good fit, or 0.5). So each label is compared with neutral
    prompts ("a recording of music"), which fit anything, at the temperature that the model was trained with:

    - a tag needs odds of `ODDS` against the best neutral prompt, exp(scale * difference): a model that can't
      distinguish sounds gives no tags rather than random ones;
    - in an exclusive group scores are a softmax over all labels and the best neutral prompt, and a tag also needs
      `RIVAL` of the best label's score;
    - otherwise each label is compared with the neutral prompt alone.

    Args:
        labels: cosine similarities `[L]` of a sound with each label.
        neutral: the same with each neutral prompt, `[N]`.
        scale: the model's inverse temperature.
        group: of the labels.
    """
    lead = scale * (labels.astype(np.float64) - float(neutral.max()))  # log odds against neutral, [L]
    above = lead >= np.log(ODDS)
    if not group.is_exclusive:
        return 1 / (1 + np.exp(-lead)), above
    top = max(0.0, float(lead.max()))
    scores = np.exp(lead - top) / (np.exp(lead - top).sum() + np.exp(-top))
    return scores, above & (scores >= RIVAL * scores.max())


def windows(wave: NDArray[np.float32], size: int) -> list[NDArray[np.float32]]:
    """`[S]` -> at most `MAX_WINDOWS` pieces of `size` samples, evenly spread: CLAP's extractor would cut at random."""
    if len(wave) <= size:
        return [wave]
    count = min(MAX_WINDOWS, -(-len(wave) // size))
    return [wave[start : start + size] for start in np.linspace(0, len(wave) - size, count).round().astype(int)]


class IndistinctTextsError(UserError):
    """The model has the same embedding for all texts."""


def _sha256(model: str) -> str | None:
    """Of the weights of a known model on the Hub."""
    return SAFETENSORS[model].sha256 if model in SAFETENSORS else None


def tagger_signature(model: str, labels: Mapping[str, Sequence[str]]) -> str:
    """A hash of everything that the tags of a loaded tagger depend on; nothing is loaded."""
    weights = weights_fingerprint(Path(model)) if Path(model).is_dir() else [model, _sha256(model)]
    fallback = [PROVEN, _sha256(PROVEN), ALIKE] if model == DEFAULT else []
    groups = {name: asdict(GROUPS[name]) for name in labels}
    settings = [dict(labels), groups, TEMPLATES, NEUTRAL, SINGING, PLAYING, ODDS, RIVAL, MAX_WINDOWS]
    return hashlib.blake2b(json.dumps([weights, fallback, *settings]).encode(), digest_size=8).hexdigest()


def load_tagger(model: str, labels: Mapping[str, Sequence[str]], **options: Any) -> Tagger:
    """A `Tagger` of these arguments; if the default model has the same embedding for all texts, the proven one."""
    try:
        return Tagger(model, labels, **options)
    except IndistinctTextsError:
        if model != DEFAULT:
            raise
        log(f"note: {model} has the same embedding for all texts; using {PROVEN} instead")
        return Tagger(PROVEN, labels, **options)


class Tagger:
    """A CLAP model with the embeddings of its labels.

    Args:
        model: a folder or Hub id with a CLAP checkpoint of transformers, as safetensors.
        labels: lists by the names of `GROUPS`.
        cache_dir, token: for the Hub.
        device: the best one by default.
        batch_size: windows of 10 s.

    Raises:
        UserError: there is no such model, it is not available offline, it is not a CLAP model for 48 kHz, its
            weights have moved on the Hub, or it has the same embedding for all texts.
    """

    rate = RATE

    def __init__(
        self,
        model: str,
        labels: Mapping[str, Sequence[str]],
        *,
        cache_dir: str | None = None,
        token: str | None = None,
        device: torch.device | str | None = None,
        batch_size: int = 8,
    ) -> None:
        published = None if Path(model).is_dir() else SAFETENSORS.get(model)
        source = Source(model, published.revision if published else None, cache_dir, token)
        with _quiet_hub():
            self._model, self._processor = _load(source)
            self.name = name_with_commit(source)
            if published is not None:
                _check_weights(source, published.sha256)
        self._model.to(device or best_device())
        self._batch_size = batch_size
        self.scale = float(self._model.logit_scale_a.exp())
        self._labels = {name: tuple(lines) for name, lines in labels.items()}
        self._embedded = {name: self._embed_ensemble(lines, GROUPS[name]) for name, lines in self._labels.items()}
        self._neutral = self._embed_ensemble(NEUTRAL)
        self._vocals = unit_rows(
            np.stack([self._embed_ensemble(prompts).mean(axis=0) for prompts in (SINGING, PLAYING)])
        )
        texts = np.concatenate([*self._embedded.values(), self._neutral, self._vocals])
        if (texts @ texts.T).min() > ALIKE:
            raise IndistinctTextsError(
                f"the CLAP model {model!r} has the same embedding for all texts. Fix: use {another_clap(model)}"
            )

    def tags(self, embeddings: Embeddings) -> list[dict[str, list[Tag]]]:
        """Of embedded sounds `[N, D]`: tags by group, best first; a group may have none."""
        return [{name: self._tags_of(row, name) for name in self._labels} for row in embeddings]

    def _tags_of(self, row: NDArray[np.float32], name: str) -> list[Tag]:
        group = GROUPS[name]
        scores, above = calibrate(self._embedded[name] @ row, self._neutral @ row, self.scale, group)
        best = [index for index in np.argsort(-scores, kind="stable") if above[index]][: group.max_tags]
        return [Tag(self._labels[name][index], round(float(scores[index]), 4)) for index in best]

    def vocals(self, embeddings: Embeddings) -> list[float]:
        """For each embedded sound of `[N, D]` the probability of vocals."""
        singing, playing = (embeddings @ self._vocals.T).astype(np.float64).T
        return [float(value) for value in 1 / (1 + np.exp(self.scale * (playing - singing)))]

    def embed(self, waves: Sequence[tuple[audio.Wave, int]]) -> Embeddings:
        """Waves `[C, S]` with their rates in Hz -> `[N, D]`: the mean over windows of 10 s, of length 1.

        A wave that is shorter than a window is repeated in it. The rest of the batch has no influence.
        """
        total = np.zeros((len(waves), self._model.config.projection_dim), np.float32)
        pieces = self._windows(waves)
        while batch := list(islice(pieces, self._batch_size)):
            np.add.at(total, [owner for owner, _ in batch], self._embed_windows([window for _, window in batch]))
        return unit_rows(total)

    def _windows(self, waves: Iterable[tuple[audio.Wave, int]]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Each window with the number of the wave it belongs to."""
        for owner, (wave, rate) in enumerate(waves):
            if not wave.shape[1]:
                raise ValueError(f"wave {owner} has no samples")
            mono = audio.resample(audio.to_channels(wave, 1), rate, RATE)[0]
            for window in windows(mono, self._processor.feature_extractor.nb_max_samples):
                yield owner, window

    @torch.inference_mode()
    def _embed_windows(self, batch: list[NDArray[np.float32]]) -> Embeddings:
        features = self._processor.feature_extractor(batch, sampling_rate=RATE, return_tensors="pt")
        output = self._model.get_audio_features(
            input_features=features["input_features"].to(self._model.device, torch.float32),
            # For models that fuse parts of long sounds the extractor marks a random sound as longer than it is.
            is_longer=torch.zeros(len(batch), 1, dtype=torch.bool, device=self._model.device),
        )
        return unit_rows(output.pooler_output.float().cpu().numpy())

    @torch.inference_mode()
    def embed_text(self, texts: Sequence[str]) -> Embeddings:
        """Texts -> `[N, D]`, of length 1: the cosine with a sound is the product with its row of `embed`."""
        rows = []
        for start in range(0, len(texts), 64):
            words = self._processor.tokenizer(
                list(texts[start : start + 64]), padding=True, truncation=True, return_tensors="pt"
            )
            output = self._model.get_text_features(**words.to(self._model.device))
            rows.append(unit_rows(output.pooler_output.float().cpu().numpy()))
        return np.concatenate(rows)

    def _embed_ensemble(self, labels: Sequence[str], group: Group | None = None) -> Embeddings:
        """`[L, D]`: each label as the mean over all templates."""
        nouns = [group.noun.format(label) if group else label for label in labels]
        rows = self.embed_text([template.format(noun) for noun in nouns for template in TEMPLATES])
        return unit_rows(rows.reshape(len(labels), len(TEMPLATES), -1).mean(axis=1))


def _load(source: Source) -> tuple[Any, Any]:
    """Model and processor."""
    try:
        config = AutoConfig.from_pretrained(source.name, **source.arguments())
        if config.model_type != "clap":
            raise ValueError(f"it is a {config.model_type!r} model")
        with quiet_loading():
            model, report = ClapModel.from_pretrained(
                source.name, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **source.arguments()
            )
        processor = ClapProcessor.from_pretrained(source.name, **source.arguments())
        if report["missing_keys"]:
            raise ValueError(f"it lacks weights: {sorted(report['missing_keys'])[:3]}")
        if processor.feature_extractor.sampling_rate != RATE:
            raise ValueError(f"its rate is {processor.feature_extractor.sampling_rate} Hz, not {RATE}")
    except (OSError, ValueError, HfHubHTTPError, HFValidationError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(
            f"no CLAP model at {source.name!r} ({reason}). "
            f"Fix: --clap_model_name_or_path with a folder or a Hub id such as {PROVEN}"
        ) from error
    return model.eval().requires_grad_(False), processor


def _check_weights(source: Source, sha256: str) -> None:
    """Compares weights on the Hub with those known here.

    A reference such as `refs/pr/1` may move, so the hash is what pins its weights. A commit holds the same files for
    ever; what differs there comes from a mirror, and is noted.

    Raises:
        UserError: a reference has moved to other weights.
    """
    digest = hashlib.sha256()
    with Path(cached_file(source.name, SAFE_WEIGHTS_NAME, **source.arguments())).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() == sha256:
        return
    difference = (
        f"the weights of {source.name} are not those that this version knows (SHA-256 {digest.hexdigest()[:12]}..., "
        f"not {sha256[:12]}...)"
    )
    if (source.revision or "").startswith("refs/"):
        raise UserError(
            f"{difference}: {source.revision} on the Hub has moved. Fix: download weights that you trust and name "
            f"their folder, or use {another_clap(source.name)}"
        )
    log(f"note: {difference}: tags and distances may differ")


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Without a network the Hub's client would log each attempt; one line afterwards is enough."""
    level = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()
    try:
        yield
    finally:
        hub_logging.set_verbosity(level)


def unit_rows(rows: NDArray[np.float32]) -> Embeddings:
    """`[N, D]` with rows of length 1; rows of zeros stay."""
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    unit: Embeddings = (rows / np.maximum(lengths, 1e-9)).astype(np.float32)
    return unit
