"""Tags by ear: CLAP compares a sound with words, without having been trained on those words (zero-shot).

Wu et al., "Large-scale contrastive language-audio pretraining", https://arxiv.org/abs/2211.06687. Knows waves and lists
of labels; which song a wave is from, or what becomes of the tags, it doesn't know.
"""

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
MOST_WINDOWS = 6  # of a clip: a whole minute is heard, of a longer one six places
ODDS = 1.5  # how much better than anything neutral a label must fit
ALIKE = 0.99  # cosine of any two texts, from which a model has no ear for words
RIVAL = 1 / 3  # of the best label's score, where labels of a group rule each other out
TEMPLATES = ("{}", "a recording of {}", "the sound of {}")
NEUTRAL = ("music", "a song", "sound")
SINGING = ("a person singing", "a song with a singer", "vocals", "a rapper")
PLAYING = ("instrumental music", "musical instruments playing", "an instrumental backing track")


@dataclass(frozen=True)
class Published:
    """Where the weights of a model are on the Hub.

    Attributes:
        revision: a commit, or a reference that may move.
        sha256: of `model.safetensors` there.
    """

    revision: str
    sha256: str


# These have their weights on `main` as a pickle only; the Hub's own converter put the same as safetensors into a pull
# request of each. The full id of the last one's commit (8a2acdb) is not known here: its reference is checked by hash.
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
    """How one list of labels is heard.

    Attributes:
        noun: what a label becomes before it is put into the templates.
        most: tags a clip gets at most.
        is_exclusive: whether labels compete (a song is rarely both bebop and techno) or may all be true (instruments).
    """

    noun: str
    most: int
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
    """The lists that come with the package, or a person's own: `genres.txt`, `moods.txt`, `instruments.txt`.

    One label a line; lines that begin with # are comments. A list that the folder lacks is the package's.

    Raises:
        UserError: no such folder, none of the files in it, or a file without labels.
    """
    ours = files("musicgen_dreamboothing.assets").joinpath("labels")
    texts = {name: ours.joinpath(f"{name}.txt").read_text(encoding="utf-8") for name in GROUPS}
    if folder is not None:
        texts |= _own_lists(folder)
    labels = {name: _labels_of(text) for name, text in texts.items()}
    for name, found in labels.items():
        if not found:
            raise UserError(f"no labels in {folder}/{name}.txt; write one a line, or delete it to have the usual ones")
    return labels


def _own_lists(folder: Path) -> dict[str, str]:
    paths = {name: folder / f"{name}.txt" for name in GROUPS}
    texts = {
        name: path.read_text(encoding="utf-8-sig", errors="replace") for name, path in paths.items() if path.is_file()
    }
    if not texts:
        wanted = ", ".join(path.name for path in paths.values())
        raise UserError(f"no lists of labels in {folder}; it should hold {wanted}, or some of them")
    return texts


def _labels_of(text: str) -> list[str]:
    lines = (" ".join(line.split()) for line in text.splitlines())
    return list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))


def another_clap(model: str) -> str:
    """What to try instead of a model, as a person types it."""
    return "another --clap_model_name_or_path" if model == PROVEN else f"--clap_model_name_or_path {PROVEN}"


def calibrate(
    labels: NDArray[np.float32], neutral: NDArray[np.float32], scale: float, group: Group
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Turns similarities of one sound into scores from 0 to 1, and says which labels are tags.

    A cosine says little by itself: some models give 0.05 to what fits and others 0.5. So each label is measured against
    neutral prompts ("a recording of music"), which fit anything, with the temperature that the model was trained with:

    - a label is a tag only where its odds against the best neutral prompt are `ODDS`: exp(scale * difference). A model
      that can't tell sounds apart says nothing then, rather than something at random;
    - in an exclusive group scores are a softmax over all labels and the best neutral prompt, and a tag must also reach
      `RIVAL` of the best label's score: one clear genre stands alone, mixtures are named by their parts;
    - otherwise each label is alone against the neutral prompt.

    Args:
        labels: cosine similarities `[L]` of a sound with each label.
        neutral: the same with each neutral prompt, `[N]`.
        scale: the model's inverse temperature.
        group: says whether labels are exclusive.

    Returns:
        scores `[L]`, and whether each is above the threshold `[L]`.
    """
    lead = scale * (labels.astype(np.float64) - float(neutral.max()))  # log odds against neutral, [L]
    above = lead >= np.log(ODDS)
    if not group.is_exclusive:
        return 1 / (1 + np.exp(-lead)), above
    top = max(0.0, float(lead.max()))
    scores = np.exp(lead - top) / (np.exp(lead - top).sum() + np.exp(-top))
    return scores, above & (scores >= RIVAL * scores.max())


def windows(wave: NDArray[np.float32], size: int) -> list[NDArray[np.float32]]:
    """`[S]` -> pieces of `size` samples spread evenly from beginning to end, at most `MOST_WINDOWS`; or all of it.

    They are cut here because CLAP's feature extractor would cut a long sound at random places.
    """
    if len(wave) <= size:
        return [wave]
    count = min(MOST_WINDOWS, -(-len(wave) // size))
    return [wave[start : start + size] for start in np.linspace(0, len(wave) - size, count).round().astype(int)]


class NoEarForWordsError(UserError):
    """To this model all words are the same."""


def _sha256(model: str) -> str | None:
    """Of the weights that are known of a model on the Hub."""
    return SAFETENSORS[model].sha256 if model in SAFETENSORS else None


def tagger_signature(model: str, labels: Mapping[str, Sequence[str]]) -> str:
    """Changes whenever the tags that `load_tagger` gives a sound could; nothing is loaded for it."""
    weights = weights_fingerprint(Path(model)) if Path(model).is_dir() else [model, _sha256(model)]
    fallback = [PROVEN, _sha256(PROVEN), ALIKE] if model == DEFAULT else []
    groups = {name: asdict(GROUPS[name]) for name in labels}
    settings = [dict(labels), groups, TEMPLATES, NEUTRAL, SINGING, PLAYING, ODDS, RIVAL, MOST_WINDOWS]
    return hashlib.blake2b(json.dumps([weights, fallback, *settings]).encode(), digest_size=8).hexdigest()


def load_tagger(model: str, labels: Mapping[str, Sequence[str]], **options: Any) -> Tagger:
    """A `Tagger` of these arguments; where the default turns out to know no words, the proven model in its place.

    Raises:
        UserError: as of `Tagger`.
    """
    try:
        return Tagger(model, labels, **options)
    except NoEarForWordsError:
        if model != DEFAULT:
            raise
        log(f"to {model} all words are the same; listening with {PROVEN}")
        return Tagger(PROVEN, labels, **options)


class Tagger:
    """A CLAP model that holds the embeddings of its labels.

    Args:
        model: a folder or Hub id with a CLAP checkpoint of transformers, as safetensors.
        labels: lists by group, as `read_labels` gives them; `GROUPS` has the names.
        revision, cache_dir, token: for the Hub; without a revision that in `SAFETENSORS`, or `main`.
        device: CUDA, MPS or the CPU, whichever there is, if not given.
        batch_size: windows of 10 s that are heard at once.

    Raises:
        UserError: there is no such model, it can't be had offline, it isn't a CLAP model for 48 kHz, or all words are
            the same to it.
    """

    rate = RATE

    def __init__(
        self,
        model: str,
        labels: Mapping[str, Sequence[str]],
        *,
        revision: str | None = None,
        cache_dir: str | None = None,
        token: str | None = None,
        device: torch.device | str | None = None,
        batch_size: int = 8,
    ) -> None:
        published = None if revision or Path(model).is_dir() else SAFETENSORS.get(model)
        source = Source(model, published.revision if published else revision, cache_dir, token)
        with _quiet_hub():
            self._model, self._processor = _load(source)
            self.name = name_with_commit(source)
            if published is not None:
                _compare_weights(source, published.sha256)
        self._model.to(device or best_device())
        self._batch_size = batch_size
        self.scale = float(self._model.logit_scale_a.exp())
        self._labels = {name: tuple(found) for name, found in labels.items()}
        self._embedded = {name: self._embed_ensemble(found, GROUPS[name]) for name, found in self._labels.items()}
        self._neutral = self._embed_ensemble(NEUTRAL)
        self._voices = np.stack([_mean(self._embed_ensemble(prompts)) for prompts in (SINGING, PLAYING)])
        self._check_words(model)

    def _check_words(self, model: str) -> None:
        """Such a model tags nothing, or anything; nobody should wait until it has heard all clips."""
        texts = np.concatenate([*self._embedded.values(), self._neutral, self._voices])
        if (texts @ texts.T).min() > ALIKE:
            raise NoEarForWordsError(f"to the CLAP model {model!r} all words are the same; take {another_clap(model)}")

    def tag(self, waves: Sequence[tuple[audio.Wave, int]]) -> list[dict[str, list[Tag]]]:
        """For each wave `[C, S]` and its rate in Hz: tags by group, best first; a group may have none."""
        return self.tags(self.embed(waves))

    def tags(self, embeddings: Embeddings) -> list[dict[str, list[Tag]]]:
        """The same for sounds that are embedded already, `[N, D]`."""
        return [{name: self._tags_of(row, name) for name in self._labels} for row in embeddings]

    def _tags_of(self, row: NDArray[np.float32], name: str) -> list[Tag]:
        group = GROUPS[name]
        scores, above = calibrate(self._embedded[name] @ row, self._neutral @ row, self.scale, group)
        best = [index for index in np.argsort(-scores, kind="stable") if above[index]][: group.most]
        return [Tag(self._labels[name][index], round(float(scores[index]), 4)) for index in best]

    def vocals(self, embeddings: Embeddings) -> list[float]:
        """For each embedded sound of `[N, D]` the probability that somebody sings in it."""
        singing, playing = (embeddings @ self._voices.T).astype(np.float64).T
        return [float(found) for found in 1 / (1 + np.exp(self.scale * (playing - singing)))]

    def embed(self, waves: Sequence[tuple[audio.Wave, int]]) -> Embeddings:
        """Waves `[C, S]` with their rates in Hz -> `[N, D]`: the mean over windows of 10 s, of length 1.

        A wave that is shorter than a window is repeated in it. Which others are in the batch makes no difference.
        """
        total = np.zeros((len(waves), self._model.config.projection_dim), np.float32)
        pieces = self._windows(waves)
        while batch := list(islice(pieces, self._batch_size)):
            np.add.at(total, [owner for owner, _ in batch], self._embed_windows([window for _, window in batch]))
        return _unit(total)

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
        found = self._model.get_audio_features(
            input_features=features["input_features"].to(self._model.device, torch.float32),
            # The extractor marks one sound at random as longer than it is, where the model fuses parts of long sounds.
            is_longer=torch.zeros(len(batch), 1, dtype=torch.bool, device=self._model.device),
        )
        return _unit(found.pooler_output.float().cpu().numpy())

    @torch.inference_mode()
    def embed_text(self, texts: Sequence[str]) -> Embeddings:
        """Texts -> `[N, D]`, of length 1: the cosine with a sound is the product with its row of `embed`."""
        rows = []
        for start in range(0, len(texts), 64):
            words = self._processor.tokenizer(
                list(texts[start : start + 64]), padding=True, truncation=True, return_tensors="pt"
            )
            found = self._model.get_text_features(**words.to(self._model.device))
            rows.append(_unit(found.pooler_output.float().cpu().numpy()))
        return np.concatenate(rows)

    def _embed_ensemble(self, labels: Sequence[str], group: Group | None = None) -> Embeddings:
        """`[L, D]`: each label as the mean over all templates."""
        nouns = [group.noun.format(label) if group else label for label in labels]
        found = self.embed_text([template.format(noun) for noun in nouns for template in TEMPLATES])
        return _unit(found.reshape(len(labels), len(TEMPLATES), -1).mean(axis=1))


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
            raise ValueError(f"it hears {processor.feature_extractor.sampling_rate} Hz, not {RATE}")
    except (OSError, ValueError, HfHubHTTPError, HFValidationError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(
            f"no CLAP model at {source.name!r} ({reason}); --clap_model_name_or_path takes a folder "
            f"or a Hub id such as {PROVEN}"
        ) from error
    return model.eval().requires_grad_(False), processor


def _compare_weights(source: Source, sha256: str) -> None:
    """Says so where the weights on the Hub are not the ones that were published when this was written."""
    digest = hashlib.sha256()
    with Path(cached_file(source.name, SAFE_WEIGHTS_NAME, **source.arguments())).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != sha256:
        log(
            f"note: the weights of {source.name} are not those that this version knows (SHA-256 "
            f"{digest.hexdigest()[:12]}..., not {sha256[:12]}...): tags and distances may differ"
        )


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Without a network the Hub's client would tell of each of its attempts; one line afterwards is enough."""
    level = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()
    try:
        yield
    finally:
        hub_logging.set_verbosity(level)


def _mean(rows: Embeddings) -> NDArray[np.float32]:
    """`[N, D]` -> `[D]`, of length 1."""
    mean: NDArray[np.float32] = _unit(rows.mean(axis=0, keepdims=True))[0]
    return mean


def _unit(rows: NDArray[np.float32]) -> Embeddings:
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    unit: Embeddings = (rows / np.maximum(lengths, 1e-9)).astype(np.float32)
    return unit
